"""check: read the data once and say what would be done; nothing is written and nothing runs."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shoal.cluster.config import StorageConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.decide import decide
from shoal.cluster.sharding.features import candidates
from shoal.cluster.sharding.listing import find
from shoal.cluster.sharding.manifest import SPLITS, Column, Schema, Target
from shoal.cluster.sharding.scan import merge_away, pieces, scan_piece
from shoal.cluster.sharding.service import roles_of
from shoal.cluster.sharding.source import open_source
from shoal.experiment import Experiment, given, to_dict

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
    roles = roles_of(data)
    reporter.stage("reading")
    scans, done = [], 0
    for piece in pieces(source, list(source.schema.names), BATCH_ROWS):
        scans.append(scan_piece(piece, roles))
        done += len(piece)
        reporter.advance(done, source.n_rows, "rows")
    reporter.done()
    found = decide(merge_away(scans), source.schema, data, seed, chosen)
    private = bool(set(data.target) & set(data.private))
    return Look(
        len(files),
        source.n_rows,
        found.target,
        tuple(found.features.columns),
        {**excluded, **found.features.dropped},
        {name: found.plan.part(i).stop - found.plan.part(i).start for i, name in enumerate(SPLITS)},
        found.split_kind,
        {} if private else _class_rows(found.labels, found.target),
        (*source.notices, *found.notices, *notices, *found.features.notices),
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
    from shoal.cluster.components import Imported
    from shoal.cluster.resources import plan
    from shoal.evaluation.metrics import resolve_scoring
    from shoal.training.allowed import needs_group, refuse
    from shoal.verbs.decisions import plan_of
    from shoal.verbs.writable import require_cache, require_writable

    experiment, _ = given(experiment)
    if isinstance(experiment.model, Imported):
        experiment.model.load()
    shape, demand = plan(experiment.cluster, needs_group(experiment.training))
    refuse(experiment.training, shape)
    require_cache(experiment.cluster, shape)
    for place in (experiment.cluster.storage_path, *([out] if out else [])):
        require_writable(place, experiment.cluster.storage)
    if out:
        RunFolder.open(out, experiment.cluster.storage).is_of(to_dict(experiment))
    found = look(experiment.data, experiment.seed, experiment.cluster.storage, reporter)
    has_costs = experiment.evaluation.costs is not None
    resolve_scoring(experiment.evaluation.scoring, found.target.task, costs=has_costs)
    schema = Schema(columns=found.columns, target=found.target, private=experiment.data.private)
    train, held_out = ([found.parts[part]] * len(found.target.classes) for part in ("train", "validation"))
    said = plan_of(experiment, schema, train, held_out).start.notices
    found = replace(found, notices=(*found.notices, *said))
    asked, rows = experiment.training.batch_size, found.parts["train"]
    if isinstance(asked, int) and asked > rows:
        large = f"training.batch_size is {asked:,}, but there are {rows:,} training rows: every step takes them all"
        found = replace(found, notices=(*found.notices, large))
    workers = f"{shape.workers}, placed {shape.placement}"
    return CheckResult(experiment, found, asdict(shape), (workers, str(demand)))
