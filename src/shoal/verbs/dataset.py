"""shard: find or make the sharded dataset that an experiment trains on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cluster.config import ClusterConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import SHARDING, Part, address_of, asked_tasks
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.manifest import MANIFEST, Manifest, Schema, read_manifest
from shoal.cluster.storage import Storage, redact
from shoal.experiment import Experiment, given, to_dict
from shoal.verbs.rows import given_as
from shoal.verbs.runs import claimed
from shoal.verbs.starting import starting

if TYPE_CHECKING:
    from shoal.cluster.sharding.assign import Resplit
    from shoal.cluster.sharding.spread import Spread


@dataclass(frozen=True)
class ShardResult:
    """A sharded dataset: where it is, what it says of itself, and whether it was there already."""

    uri: str
    manifest: Manifest
    reused: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "run": self.uri,
            "key": self.manifest.key,
            "reused": self.reused,
            "rows": {name: split.rows for name, split in self.manifest.splits.items()},
            "shards": self.manifest.n_shards,
            "notices": list(self.manifest.notices),
        }


def shard(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
    verify: bool = True,
    resplit: "Resplit | None" = None,
) -> ShardResult:
    """Write the sharded dataset of an experiment, or find it where an earlier run left it.

    Shards that are missing or damaged there are rebuilt, and no other file is touched; an interrupted run is gone on with.
    With `cluster.address` the work is done by Ray tasks there (unless `cluster.placement` is inline), in this process otherwise.

    Parameters
    ----------
    experiment
        Its `data` section, its seed and the columns of `evaluation.costs` matter here; or the path of its file.
    out
        Folder or URI to write to; by default ``<storage_path>/<name>-shard-<key>``, where any dataset of the
        same key is reused.
    name
        What the folder's name begins with; by default the experiment file's stem.
    reporter
        Hears what is inferred and left out.
    verify
        Whether to read the shards that are there already; otherwise it is enough that they are. A fit verifies those
        that it reads.
    resplit
        Gives the rows other parts than `data.split` does.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    ResourceError
        If the cluster has no room for the tasks, now or ever.
    StorageError
        If the folder cannot be written, or is held by another process for longer than `cluster.wait`.
    """
    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    known = starting(experiment).known
    costs = experiment.cost_columns
    return _shard(experiment, experiment.data, costs, known, f"{name}-shard", out, reporter, verify, resplit)


def shard_target(experiment: Experiment, source: Manifest, name: str, reporter: Reporter) -> ShardResult:
    """Write the rows of the target domain as the source's are, or find them; their labels are not read.

    Parameters
    ----------
    experiment
        Has `transfer.target_data`.
    source
        Of the source's rows, whose columns and statistics these have.
    name
        What the folder's name begins with.
    reporter
        Hears of progress.

    Raises
    ------
    DataError
        If there are no such rows, or they lack a column of the source's.
    """
    from shoal.cluster.sharding.listing import find
    from shoal.cluster.sharding.source import open_source

    assert experiment.transfer is not None
    assert experiment.transfer.target_data is not None
    path = experiment.transfer.target_data.path
    with given_as("transfer.target_data.path"):
        there = set(open_source(find(path, experiment.cluster.storage)).schema.names)
    given_columns = experiment.data
    data = DataConfig(
        path=path,
        target="-",
        id=given_columns.id if given_columns.id in there else None,
        private=tuple(n for n in given_columns.private if n in there and n not in given_columns.target),
        shards=given_columns.shards if given_columns.shards == "auto" else source.n_shards,
    ).model_copy(update={"target": ()})
    with given_as("transfer.target_data.path"):
        return _shard(experiment, data, (), source.schema_, f"{name}-target", None, reporter, False)


def _shard(
    experiment: Experiment,
    data: DataConfig,
    costs: tuple[str, ...],
    known: Schema | None,
    name: str,
    out: str | None,
    reporter: Reporter,
    verify: bool,
    resplit: "Resplit | None" = None,
) -> ShardResult:
    from shoal.cluster.sharding.service import shard as write
    from shoal.cluster.sharding.service import sharding_key
    from shoal.verbs.decisions import judge_of

    storage = experiment.cluster.storage
    key = sharding_key(data, experiment.seed, storage, costs, known, resplit)
    if out is None:
        kind = name.rpartition("-")[2]
        for found in _existing(Storage.open(experiment.cluster.storage_path, storage), f"{kind}-{key}"):
            if (reused := _reused(found, key, verify, reporter)) is not None:
                return reused
    target = out or f"{experiment.cluster.storage_path.rstrip('/')}/{name}-{key}"
    folder = RunFolder.open(target, storage)
    wait = experiment.cluster.wait.total_seconds()
    with (
        claimed(folder, _identity(experiment, key, data, resplit), reporter, MANIFEST, wait) as heard,
        ExitStack() as stack,
    ):
        if folder.exists(MANIFEST):  # made by another driver while this one waited, or by an earlier --out
            if (reused := _reused(folder.storage, key, verify, reporter)) is not None:
                return reused
            if _manifest(folder.storage).key != key:
                reporter.notice(f"the input files changed since {folder.uri} was written: it is made anew")
        manifest = write(
            data,
            experiment.seed,
            folder.storage,
            storage_config=storage,
            reporter=heard,
            verify=verify,
            spread=stack.enter_context(_spread(experiment.cluster, heard)),
            costs=costs,
            known=known,
            resplit=resplit,
            judge=judge_of(experiment) if data.target else None,
        )
    return ShardResult(folder.uri, manifest, False)


@contextmanager
def _spread(cluster: ClusterConfig, reporter: Reporter) -> "Iterator[Spread]":
    """Shard as tasks where there is a cluster to do it; Ray is not started for it here, nor used where all is inline."""
    from shoal.cluster.sharding.spread import Here

    part = sharding_part(cluster)
    if part is None:
        yield Here()
        return
    from shoal.cluster.tasks import tasks

    with tasks(cluster, part, reporter) as several:
        yield several


def sharding_part(cluster: ClusterConfig) -> Part | None:
    """Return what a sharding task takes, as many as `cluster.num_workers` has CPUs; None where this process does the work."""
    from shoal.cluster.sharding.service import BUDGET

    if address_of(cluster) is None or cluster.placement == "inline":
        return None
    return Part(SHARDING, asked_tasks(cluster) or 1, 1.0, memory=float(BUDGET))


def _identity(
    experiment: Experiment, key: str, data: DataConfig, resplit: "Resplit | None"
) -> dict[str, Any]:
    chosen = {key: value for key, value in to_dict(experiment).items() if key in ("data", "seed", "cluster")}
    if not data.target:  # the target domain's rows, with the statistics of the source's
        return {**chosen, "target_data": [redact(path) for path in data.path], "key": key}
    if experiment.cost_columns:
        chosen["costs"] = list(experiment.cost_columns)
    if resplit is not None or (experiment.transfer is not None and experiment.transfer.start is not None):
        chosen["key"] = key  # which the parts, or the statistics of the start, are a part of
    return chosen


def _existing(root: Storage, ending: str) -> list[Storage]:
    names = [name for name in root.list() if name.endswith(f"-{ending}")] if root.exists() else []
    return [root.child(name) for name in names if root.exists(f"{name}/{MANIFEST}")]


def _manifest(folder: Storage) -> Manifest:
    return read_manifest(folder, MANIFEST, "delete that folder, and the same command writes it again")


def _reused(folder: Storage, key: str, verify: bool, reporter: Reporter) -> ShardResult | None:
    from shoal.cluster.sharding.earlier import broken

    manifest = _manifest(folder)
    if manifest.key != key or broken(folder, manifest, verify):
        return None
    reporter.notice(f"the sharded dataset of these inputs is there already: {folder.uri}")
    return ShardResult(folder.uri, manifest, True)
