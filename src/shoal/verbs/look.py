"""check: read the data once and say what would be done; nothing is written and nothing runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.cluster.config import StorageConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.arrays import one_chunk
from shoal.cluster.sharding.assign import Resplit
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.costs import refuse_missing, require_costs
from shoal.cluster.sharding.decide import Decided, decide
from shoal.cluster.sharding.features import candidates
from shoal.cluster.sharding.files import class_counts, identifiers
from shoal.cluster.sharding.fitting import complete, cost_sums, foresee
from shoal.cluster.sharding.listing import find, partition_notice
from shoal.cluster.sharding.manifest import SPLITS, Column, Schema, Target
from shoal.cluster.sharding.scan import merge_away, pieces, scan_piece
from shoal.cluster.sharding.service import roles_of
from shoal.cluster.sharding.source import Source, open_source
from shoal.cluster.sharding.statistics import Statistics
from shoal.evaluation.crossval.config import AutoConfig
from shoal.evaluation.deciding.plan import Known
from shoal.experiment import Experiment, given, to_dict
from shoal.verbs.dealing import Recorder

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
) -> Look:
    """Decide from the data what the sharding service would: types, roles, classes, parts.

    Parameters
    ----------
    data, seed, storage, reporter, costs
        As the service takes them.
    ids
        Whether the ids of the rows are needed.

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
    roles = roles_of(data, costs, resplit)
    reporter.stage("reading")
    scans, done = [], 0
    for piece in pieces(source, list(source.schema.names), BATCH_ROWS):
        scans.append(scan_piece(piece, roles))
        done += len(piece)
        reporter.advance(done, source.n_rows, "rows")
    reporter.done()
    found = decide(merge_away(scans), source.schema, data, seed, chosen, costs, resplit)
    refuse_missing(found.costs, costs, found.plan, source, data)
    resampled = foresee(data, found)
    said = [
        *source.notices,
        *partition_notice(files),
        *found.notices,
        *notices,
        *found.features.notices,
        *([resampled] if resampled else []),
    ]
    schema, more, of_rows = _schema(source, found, data, costs, ids)
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


def _schema(
    source: Source, found: Decided, data: DataConfig, costs: Sequence[str], ids: bool
) -> tuple[Schema, list[str], pa.Array | None]:
    """Read the features once more, now that the training rows are known; complete the schema, and return ids in final order.

    In the order of reading: means may differ from those of the shards in their last bits, and nothing here depends on those.
    """
    statistics, start, n_train = Statistics(found.features.columns), 0, found.plan.part(0).stop
    names, own = [column.name for column in found.features.columns], []
    for piece in pieces(source, [*names, *([data.id] if data.id and ids else [])], BATCH_ROWS):
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


@dataclass(frozen=True)
class CheckResult:
    """The resolved experiment, the data and the resources it would take."""

    experiment: Experiment
    data: Look
    resources: dict[str, Any]
    resource_lines: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "experiment": to_dict(self.experiment),
            "data": self.data.as_dict(),
            "resources": self.resources,
        }


def check(
    experiment: Experiment | str | Path, out: str | None = None, *, reporter: Reporter | None = None
) -> CheckResult:
    """Validate an experiment against its data, its storage and the cluster; run nothing, leave nothing.

    Parameters
    ----------
    experiment
        What would be done, or the path of its file.
    out
        The run folder that is meant; by default one under `cluster.storage_path`, which is needed anyway.
    reporter
        Hears of progress.

    Raises
    ------
    ShoalError
        For what would stop the run before it starts.
    """
    from shoal.cluster.components import load_imported
    from shoal.cluster.resources import plan
    from shoal.evaluation.metrics import resolve_scoring
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.ensembles.members import member_seed, member_training
    from shoal.training.rehearsal import labels_alone, rehearse
    from shoal.training.scikit.unused import refuse_estimator
    from shoal.verbs.decisions import costs_of, plan_of, steering, training_of
    from shoal.verbs.fit import capped
    from shoal.verbs.writable import require_cache, require_writable

    experiment, _ = given(experiment)
    load_imported(experiment, experiment.training)
    shape, demand = plan(experiment.cluster, needs_group(experiment.training))
    refuse(experiment.training, shape)
    refuse_estimator(experiment.model, experiment.training, shape)
    require_cache(experiment.cluster, shape)
    for place in (experiment.cluster.storage_path, *([out] if out else [])):
        require_writable(place, experiment.cluster.storage)
    if out:
        RunFolder.open(out, experiment.cluster.storage).is_of(to_dict(experiment))
    has_costs = experiment.evaluation.costs is not None
    # Folds that nobody asked for need not fit.
    folds = None if experiment.evaluation.cv == AutoConfig() else Recorder(experiment)
    found = look(
        experiment.data,
        experiment.seed,
        experiment.cluster.storage,
        reporter,
        experiment.cost_columns,
        ids=has_costs,  # by which rows are drawn, and named
        resplit=folds,
    )
    if folds is not None:
        found = replace(found, notices=(*found.notices, folds.folds.reason))
    scored = resolve_scoring(experiment.evaluation.scoring, found.target.task, costs=has_costs)[0]
    decisions = plan_of(experiment, found.schema, found.known)
    monitor = steering(scored, decisions, experiment, found.schema, found.known).monitor
    found = replace(found, notices=(*found.notices, *decisions.start.notices))
    wanted, shape = shape, shape.within(found.n_shards)
    if shape != wanted:
        found = replace(found, notices=(*found.notices, capped(found.n_shards)))
    asked, rows = experiment.training.batch_size, found.parts["train"]
    notices = list(found.notices)
    if isinstance(asked, int) and asked > rows:
        notices.append(
            f"training.batch_size is {asked:,}, but there are {rows:,} training rows: every step takes them all"
        )
    dataset = labels_alone(found.schema, found.labels, found.n_shards, found.costs, found.row_ids)
    training, several = training_of(experiment, found.schema), experiment.training.ensemble is not None
    said = rehearse(
        experiment.model,
        member_training(training),
        member_seed(experiment.seed, 1) if several else experiment.seed,
        dataset,
        monitor,
        shape,
        costs_of(experiment, found.schema),
    )
    notices += [f"member 1: {text}" for text in said] if several else said
    found = replace(found, notices=tuple(notices))
    workers = f"{shape.workers}, placed {shape.placement}"
    return CheckResult(experiment, found, asdict(shape), (workers, str(demand)))
