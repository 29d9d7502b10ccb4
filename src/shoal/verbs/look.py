"""A look at the data: types, roles, classes and parts as sharding would make them; nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.cluster.config import StorageConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.arrays import one_chunk
from shoal.cluster.sharding.assign import Resplit
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.costs import Judge, refuse_costs, require_costs
from shoal.cluster.sharding.decide import Decided, decide
from shoal.cluster.sharding.features import candidates
from shoal.cluster.sharding.files import class_counts, identifiers
from shoal.cluster.sharding.fitting import complete, cost_sums, foresee
from shoal.cluster.sharding.listing import find, partition_notice
from shoal.cluster.sharding.manifest import SPLITS, Column, Schema, Target
from shoal.cluster.sharding.reading import Reading, roles_of
from shoal.cluster.sharding.scan import Roles, Scan, merge_away, pieces, scan_piece
from shoal.cluster.sharding.source import Source, open_source
from shoal.cluster.sharding.statistics import Statistics
from shoal.evaluation.deciding.plan import Known

BATCH_ROWS = 262_144


@dataclass(frozen=True)
class Look:
    """What the data hold and what sharding would make of them.

    Attributes
    ----------
    labels
        Of each part, ``[n]`` or ``[n, K]``.
    n_shards
        V.
    costs, row_ids
        Of each part: its cost columns ``[n, C]``, and its ids where these were asked for.
    known
        The rows of each class, and the training rows' costs.
    """

    files: int
    rows: int
    schema: Schema
    dropped: dict[str, str]
    labels: dict[str, NDArray[Any]]
    n_shards: int
    split_kind: str
    class_rows: dict[str, int]
    known: Known
    costs: dict[str, NDArray[np.float64]]
    row_ids: dict[str, pa.Array]
    notices: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        """What is predicted."""
        return self.schema.target

    @property
    def columns(self) -> tuple[Column, ...]:
        """The features."""
        return self.schema.columns

    @property
    def parts(self) -> dict[str, int]:
        """Rows of each part."""
        return {name: len(labels) for name, labels in self.labels.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "files": self.files,
            "rows": self.rows,
            "task": self.target.task,
            "classes": {str(name): rows for name, rows in self.class_rows.items()},
            "columns": {c.name: {"type": c.type, "reason": c.reason} for c in self.columns},
            "dropped": self.dropped,
            "split": {"kind": self.split_kind, "rows": self.parts, "shards": self.n_shards},
            "notices": list(self.notices),
        }


def look(
    data: DataConfig,
    seed: int,
    storage: StorageConfig,
    reporter: Reporter | None = None,
    costs: Sequence[str] = (),
    ids: bool = False,
    resplit: Resplit | None = None,
    reading: Reading | None = None,
    known: Schema | None = None,
    judge: Judge | None = None,
) -> Look:
    """Decide from the data what the sharding service would: types, roles, classes, parts.

    Parameters
    ----------
    data, seed, storage, reporter, costs, resplit, known, judge
        As the service takes them.
    ids
        Whether the ids of the rows are needed.
    resplit, reading
        As the service takes them.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    """
    reporter = reporter or Silent()
    files = find(data.path, storage)
    source = open_source(files)
    chosen, excluded, notices = candidates(source.schema, data)
    notices += require_costs(source.schema, data, costs, chosen)
    scan = _scan(source, roles_of(data, costs, resplit), reporter) if reading is None else reading.scan
    found = decide(scan, source.schema, data, seed, chosen, costs, resplit, known)
    refuse_costs(found.costs, costs, found.plan, source, found.target, data, judge)
    resampled = foresee(data, found)
    said = [
        *source.notices,
        *partition_notice(files),
        *found.notices,
        *notices,
        *found.features.notices,
        *([resampled] if resampled else []),
    ]
    read_before = None if reading is None else reading.tables
    schema, more, of_rows = _schema(source, read_before, found, data, costs, ids)
    parts = {name: found.plan.part(i) for i, name in enumerate(SPLITS)}
    labels = {name: found.labels[part] for name, part in parts.items()}
    of_class = [
        class_counts(labels[name], found.target) or (0,) * len(found.target.classes)
        for name in ("train", "validation")
    ]
    private = bool(set(data.target) & set(data.private))
    return Look(
        len(files),
        source.n_rows,
        schema,
        {**excluded, **found.features.dropped},
        labels,
        found.plan.n_shards,
        found.split_kind,
        {} if private else _class_rows(found.labels, found.target),
        Known(of_class[0], of_class[1], cost_sums(found, costs)),
        {name: found.costs[part] for name, part in parts.items()},
        {} if of_rows is None else {name: of_rows[part] for name, part in parts.items()},
        (*said, *more),
    )


def _scan(source: Source, roles: Roles, reporter: Reporter) -> Scan:
    reporter.stage("reading")
    scans, done = [], 0
    for piece in pieces(source, list(source.schema.names), BATCH_ROWS):
        scans.append(scan_piece(piece, roles))
        done += len(piece)
        reporter.advance(done, source.n_rows, "rows")
    reporter.done()
    return merge_away(scans)


def _schema(
    source: Source,
    read_before: Sequence[pa.Table] | None,
    found: Decided,
    data: DataConfig,
    costs: Sequence[str],
    ids: bool,
) -> tuple[Schema, list[str], pa.Array | None]:
    """Read the features once more, now that the training rows are known; complete the schema, and return ids in final order.

    In the order of reading: means may differ from those of the shards in their last bits, and nothing here depends on those.
    """
    gathered = found.features.columns if found.known is None else []
    statistics, start, n_train = Statistics(gathered), 0, found.plan.part(0).stop
    names, own = [column.name for column in found.features.columns], []
    wanted = [*names, *([data.id] if data.id and ids else [])]
    for piece in pieces(source, wanted, BATCH_ROWS) if read_before is None else read_before:
        place = found.plan.position[start : start + len(piece)]
        train = piece.filter(pa.array((place >= 0) & (place < n_train)))
        statistics.add(train, [0, len(train)])
        start += len(piece)
        if data.id and ids:
            own.append(identifiers(one_chunk(piece.column(data.id)), data.id))
    schema, said = complete(statistics, found, data, costs)
    if not ids:
        return schema, said, None
    if not data.id:
        return schema, said, pa.array(found.plan.row_id)
    order = found.plan.arrange(np.arange(len(found.plan.position)))
    return schema, said, pa.concat_arrays(own).take(pa.array(order))


def _class_rows(labels: Any, target: Target) -> dict[str, int]:
    if target.task == "regression":
        return {}
    counts = (
        labels.sum(axis=0)
        if target.task == "multilabel"
        else np.bincount(labels, minlength=len(target.classes))
    )
    return {str(name): int(count) for name, count in zip(target.classes, counts, strict=True)}
