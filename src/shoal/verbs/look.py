"""check: read the data once and say what would be done; nothing is written and nothing runs."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.cluster.config import StorageConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.assign import Rows, assign
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.features import candidates, infer_features
from shoal.cluster.sharding.hashing import seeded
from shoal.cluster.sharding.listing import find
from shoal.cluster.sharding.manifest import SPLITS, Column, Target
from shoal.cluster.sharding.scan import Roles, merge, pieces, scan_piece
from shoal.cluster.sharding.source import open_source
from shoal.cluster.sharding.targets import code_labels, infer_target
from shoal.experiment import Experiment, to_dict

BATCH_ROWS = 262_144


@dataclass(frozen=True)
class Look:
    """What one pass over the data found."""

    files: int
    rows: int
    target: Target
    columns: tuple[Column, ...]
    dropped: dict[str, str]
    parts: dict[str, int]
    split_kind: str
    class_rows: dict[str, int]
    notices: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "files": self.files,
            "rows": self.rows,
            "task": self.target.task,
            "classes": {str(name): rows for name, rows in self.class_rows.items()},
            "columns": {c.name: {"type": c.type, "reason": c.reason} for c in self.columns},
            "dropped": self.dropped,
            "split": {"kind": self.split_kind, "rows": self.parts},
            "notices": list(self.notices),
        }


def look(data: DataConfig, seed: int, storage: StorageConfig, reporter: Reporter | None = None) -> Look:
    """Decide from the data what the sharding service would: types, roles, classes, parts.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    """
    reporter = reporter or Silent()
    files = find(data.path, storage)
    source = open_source(files)
    chosen, excluded, notices = candidates(source.schema, data)
    values = [name for name in (*data.target, data.time, data.split.column) if name]
    hashes = [name for name in (data.group, data.id) if name]
    roles = Roles(tuple(dict.fromkeys(values)), tuple(dict.fromkeys(hashes)))
    reporter.stage("reading")
    scans, done = [], 0
    for piece in pieces(source, list(source.schema.names), BATCH_ROWS):
        scans.append(scan_piece(piece, roles))
        done += len(piece)
        reporter.advance(done, source.n_rows, "rows")
    reporter.done()
    scan = merge(scans)
    target, of_target = infer_target(scan.roles, data)
    features = infer_features(source.schema, chosen, scan.facts, data)
    labels, missing = code_labels(scan.roles, target, private=bool(set(data.target) & set(data.private)))
    labelled = np.flatnonzero(~missing)
    order = labelled[np.argsort(seeded(scan.keys[labelled], seed))]
    rows = Rows(
        labels[order],
        scan.roles.take(pa.array(order)),
        scan.keys[order],
        {name: found[order] for name, found in scan.hashes.items()},
    )
    assigned = assign(rows, data, target, seed)
    return Look(
        len(files),
        source.n_rows,
        target,
        tuple(features.columns),
        {**excluded, **features.dropped},
        {name: int((assigned.parts == i).sum()) for i, name in enumerate(SPLITS)},
        assigned.kind,
        {} if set(data.target) & set(data.private) else _class_rows(rows.labels, target),
        (*source.notices, *of_target, *assigned.notices, *notices, *features.notices),
    )


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


def check(experiment: Experiment, reporter: Reporter | None = None) -> CheckResult:
    """Validate an experiment against its data and the cluster; run nothing.

    Raises
    ------
    ShoalError
        For what would stop the run before it starts.
    """
    from shoal.cluster.components import Imported
    from shoal.cluster.resources import plan
    from shoal.evaluation.metrics import resolve_scoring

    if isinstance(experiment.model, Imported):
        experiment.model.load()
    shape, demand = plan(experiment.cluster)
    found = look(experiment.data, experiment.seed, experiment.cluster.storage, reporter)
    resolve_scoring(experiment.evaluation.scoring, found.target.task)
    workers = f"{shape.num_workers} worker{'s' if shape.num_workers > 1 else ''}, placed {shape.placement}"
    return CheckResult(experiment, found, asdict(shape), (workers, str(demand)))
