"""The sharding service: raw Parquet in, a sharded dataset out.

Pass 1 (`scan`) reads every row once: its content key, its roles, and facts of each column. From these the
plan
gives every row its part, its logical shard and its place. Pass 2 (`blocks`) brings raw rows into that order,
in
memory where they fit in the budget, through temporary files otherwise. Then the statistics are fitted on the
training shards, and every shard is prepared and written alone; the manifest comes last.

Memory: the budget (`BUDGET`), plus the plan, which is small beside the rows but grows with them: measured, about 80
bytes a row at the peak while it is made and 24 from then on; plus the distinct values of the categorical columns.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import StorageError
from shoal.cluster.filesystems import explained
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.arrays import one_chunk
from shoal.cluster.sharding.blocks import Blocks, InMemory, Spilled
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.decide import Decided, decide
from shoal.cluster.sharding.features import candidates, drop_constant
from shoal.cluster.sharding.files import FOLDER, class_counts, identifiers, shard_path, write_shard
from shoal.cluster.sharding.imbalance.resample import foreseen, wanted
from shoal.cluster.sharding.imbalance.store import Collected, corrected, write_resampled
from shoal.cluster.sharding.leakage import Leakage
from shoal.cluster.sharding.listing import find, fingerprint, partition_notice
from shoal.cluster.sharding.manifest import MANIFEST, SPLITS, Manifest, Schema, ShardFile, Split
from shoal.cluster.sharding.names import listed
from shoal.cluster.sharding.plan import Plan
from shoal.cluster.sharding.prepare import Prepared, prepare
from shoal.cluster.sharding.scan import Roles, merge_away, pieces, scan_piece
from shoal.cluster.sharding.source import Source, open_source
from shoal.cluster.sharding.statistics import Statistics
from shoal.cluster.storage import Storage

BUDGET = 512 << 20
_NO_STORAGE_CONFIG = StorageConfig()
_SILENT = Silent()
_SPILL = ".tmp-sharding-"


def sharding_key(data: DataConfig, seed: int, storage_config: StorageConfig = _NO_STORAGE_CONFIG) -> str:
    """Return what a sharded dataset is known and reused by.

    Parameters
    ----------
    data, seed
        What determines the shards.
    storage_config
        How to reach the input.

    Returns
    -------
    32 hexadecimal digits: a hash of the input files' places, sizes and modification times, the section and
    the seed.

    Raises
    ------
    DataError
        If there are no input files.
    """
    return _key(find(data.path, storage_config), data, seed)


def shard(
    data: DataConfig,
    seed: int,
    destination: Storage,
    *,
    storage_config: StorageConfig = _NO_STORAGE_CONFIG,
    reporter: Reporter = _SILENT,
    budget: int = BUDGET,
) -> Manifest:
    """Shard the data, or return the manifest of an earlier run with the same key.

    Parameters
    ----------
    data
        The rows and what their columns mean.
    seed
        Root of the split and of the order within shards.
    destination
        Folder of the sharded dataset.
    storage_config
        How to reach the input.
    reporter
        Hears the stages and everything that was inferred.
    budget
        Bytes of raw rows held at a time. No result depends on it.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    StorageError
        If the destination cannot be written.
    """
    inputs = find(data.path, storage_config)
    key = _key(inputs, data, seed)
    if (earlier := _earlier(destination, key)) is not None:
        reporter.notice(f"sharded dataset reused: {destination.uri}")
        return earlier
    source = open_source(inputs)
    chosen, excluded, notices = candidates(source.schema, data)
    reporter.stage("reading")
    names = list(source.schema.names)
    # Read, ordered and prepared rows are in memory together.
    fits = 3 * source.row_bytes(names) * source.n_rows <= budget
    batch_rows = None if fits else max(1024, budget // 8 // source.row_bytes(names))
    roles = roles_of(data)
    scans, tables, done = [], [], 0
    keep = [*chosen, *([data.id] if data.id else [])]
    for piece in pieces(source, names, batch_rows):
        scans.append(scan_piece(piece, roles))
        if fits:
            tables.append(piece.select(keep))
        done += len(piece)
        reporter.advance(done, source.n_rows, "rows")
    decided = decide(merge_away(scans), source.schema, data, seed, chosen)
    foresee(data, decided)
    notices = [
        *source.notices,
        *partition_notice(inputs),
        *decided.notices,
        *notices,
        *decided.features.notices,
    ]
    kept = [column.name for column in decided.features.columns] + ([data.id] if data.id else [])
    reporter.stage("ordering")
    with _scratch(destination, fits) as scratch:
        blocks = _blocks(tables, source, decided.plan, kept, batch_rows, budget, scratch)
        tables.clear()
        schema, said = _fit(blocks, decided, data)
        notices += said
        for notice in notices:
            reporter.notice(notice)
        # An earlier dataset of other data stays whole until this one is.
        folder = f"{FOLDER}-{key[:8]}" if destination.exists(MANIFEST) else FOLDER
        destination.delete(folder)
        reporter.stage("writing shards")
        leakage = Leakage(schema)
        collected = None
        if data.imbalance is not None:
            collected = Collected(training_counts(decided), decided.plan.n_shards, schema, scratch)
        files = _write(blocks, decided, schema, destination, folder, reporter, leakage, collected)
        for notice in leakage.notices():
            reporter.notice(notice)
            notices.append(notice)
        resampling = None
        if data.imbalance is not None and collected is not None:
            resampling, said = write_resampled(
                data.imbalance, collected, seed, destination, folder, reporter, files
            )
            notices += said
            schema = corrected(schema, resampling, [files[slot] for slot in range(decided.plan.n_shards)])
    splits = _splits(files, decided.plan.n_shards, schema)
    manifest = Manifest(
        key=key,
        seed=seed,
        schema=schema,
        splits=splits,
        n_shards=decided.plan.n_shards,
        sources=tuple(file.uri for file in inputs),
        rows_read=source.n_rows,
        left_out=decided.left_out,
        dropped={**excluded, **decided.features.dropped},
        split_kind=decided.split_kind,
        resampling=resampling,
        notices=tuple(notices),
    )
    destination.write_json(MANIFEST, manifest.model_dump(mode="json", by_alias=True))
    for name in destination.list():
        if name.split("-")[0] == FOLDER and name != folder:
            destination.delete(name)
    return manifest


def _key(files: list[Any], data: DataConfig, seed: int) -> str:
    return fingerprint(files, data.model_dump(mode="json"), seed, "format 4")


def _earlier(destination: Storage, key: str) -> Manifest | None:
    """Return the manifest that is there, if it has this key and its shards are there too."""
    if not destination.exists(MANIFEST):
        return None
    try:
        found = destination.read_json(MANIFEST)
        if not isinstance(found, dict) or found.get("key") != key:
            return None
        manifest = Manifest.model_validate(found)
    except (StorageError, ValueError):
        return None  # damaged: it is made anew
    return manifest if has_shards(destination, manifest) else None


def has_shards(folder: Storage, manifest: Manifest) -> bool:
    """Whether all shards of a dataset are there; their bytes are verified when they are opened."""
    shards = [shard.path for split in manifest.splits.values() for shard in split.shards]
    if manifest.resampling is not None and manifest.resampling.parents:
        shards.append(manifest.resampling.parents)
    parents = {path.rpartition("/")[0] for path in shards}
    there = {f"{parent}/{name}" for parent in parents for name in folder.list(parent)}
    return there.issuperset(shards)


def roles_of(data: DataConfig) -> Roles:
    """Return the columns that the plan pass reads: values of the target, time and split, hashes of group and id."""
    values = [*data.target, data.time, data.split.column]
    hashes = [data.group, data.id, data.split.column]
    return Roles(
        tuple(dict.fromkeys(name for name in values if name)),
        tuple(dict.fromkeys(name for name in hashes if name)),
    )


@contextmanager
def _scratch(destination: Storage, fits: bool) -> Iterator[Path | None]:
    """Make a temporary folder where the rows do not fit in memory; beside the shards where those are local."""
    if fits:
        yield None
        return
    # That is the disk that has room for the data.
    parent = None
    if destination.is_local:
        parent = destination.local()
        with explained("write", str(parent)):
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.glob(f"{_SPILL}*"):  # of a run that was killed
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_SPILL, dir=parent) as folder:
        yield Path(folder)


def _blocks(
    tables: list[pa.Table],
    source: Source,
    plan: Plan,
    names: list[str],
    batch_rows: int | None,
    budget: int,
    scratch: Path | None,
) -> Blocks:
    if scratch is None:
        return InMemory(pa.concat_tables([table.select(names) for table in tables]), plan)
    block_rows = max(1, budget // 4 // source.row_bytes(names))
    return Spilled(pieces(source, names, batch_rows), plan, scratch, block_rows)


def _fit(blocks: Blocks, decided: Decided, data: DataConfig) -> tuple[Schema, list[str]]:
    """Fit the statistics on the training rows, and complete the schema."""
    plan = decided.plan
    statistics = Statistics(decided.features.columns)
    for index, block in enumerate(blocks.blocks):
        last = min(block.last, plan.n_shards)
        if block.first >= last:
            continue
        base = plan.offsets[block.first]
        statistics.add(blocks.load(index), [int(o - base) for o in plan.offsets[block.first : last + 1]])
    return complete(statistics, decided, data)


def complete(statistics: Statistics, decided: Decided, data: DataConfig) -> tuple[Schema, list[str]]:
    """Return the schema with the statistics of the training rows, and what to say aloud.

    Raises
    ------
    DataError
        If no column is left, or one's numbers cannot be standardised.
    """
    features = decided.features
    said_before = len(features.notices)
    columns = []
    notices: list[str] = []
    for column in drop_constant(features.columns, statistics.constant, features):
        complete, said = statistics.finish(column, data.max_categories)
        columns.append(complete)
        notices += said
    target = decided.target
    if target.task == "regression":
        of_train = decided.labels[decided.plan.part(0)]
        target = target.model_copy(
            update={"center": float(of_train.mean()), "scale": float(of_train.std()) or 1.0}
        )
    schema = Schema(columns=tuple(columns), target=target, id=data.id, private=data.private)
    return schema, features.notices[said_before:] + notices


def foresee(data: DataConfig, decided: Decided) -> str | None:
    """Refuse resampling that does not fit the data; say what it will make of the training rows, where that is known.

    Raises
    ------
    ConfigError
        If the method does not fit the task, the columns or the classes.
    """
    if data.imbalance is None:
        return None
    schema = Schema(columns=tuple(decided.features.columns), target=decided.target, private=data.private)
    counts = training_counts(decided)
    after = foreseen(data.imbalance, counts, wanted(data.imbalance, counts, schema))
    if after is None or set(data.target) & set(data.private):
        return None
    changed = [
        f"{name} {before:,} to {now:,}"
        for name, before, now in zip(decided.target.classes, counts, after, strict=True)
        if before != now
    ]
    return f"data.imbalance: training rows of {listed(changed)}" if changed else None


def training_counts(decided: Decided) -> npt.NDArray[np.int64]:
    """Return the training rows of each class; empty where the task has none."""
    return np.array(class_counts(decided.labels[decided.plan.part(0)], decided.target), np.int64)


def _write(
    blocks: Blocks,
    decided: Decided,
    schema: Schema,
    destination: Storage,
    folder: str,
    reporter: Reporter,
    leakage: Leakage,
    collected: Collected | None,
) -> dict[int, ShardFile]:
    """Write every slot, but collect the training rows instead where they are to be resampled."""
    plan, labels = decided.plan, decided.labels
    files: dict[int, ShardFile] = {}
    for index, block in enumerate(blocks.blocks):
        table = blocks.load(index)
        base = int(plan.offsets[block.first])
        rows = prepare(table, schema)
        ids = (
            identifiers(one_chunk(table.column(schema.id)), schema.id)
            if schema.id
            else pa.array(plan.row_id[base : int(plan.offsets[block.last])])
        )
        for slot in range(block.first, block.last):
            start, stop = int(plan.offsets[slot]) - base, int(plan.offsets[slot + 1]) - base
            own = Prepared(rows.numeric[start:stop], rows.categorical[start:stop])
            label = labels[base + start : base + stop]
            if slot < plan.n_shards:
                leakage.add(own, label)
            if slot < plan.n_shards and collected is not None:
                collected.add(slot, own, label, ids.slice(start, stop - start))
                continue
            path = shard_path(folder, *divmod(slot, plan.n_shards))
            files[slot] = write_shard(
                destination, path, own, label, ids.slice(start, stop - start), schema.target
            )
            reporter.advance(len(files), plan.n_slots, "shards")
    return files


def _splits(files: dict[int, ShardFile], n_shards: int, schema: Schema) -> dict[Any, Split]:
    splits = {}
    for part, name in enumerate(SPLITS):
        shards = tuple(files[slot] for slot in range(part * n_shards, (part + 1) * n_shards))
        splits[name] = Split(
            rows=sum(file.rows for file in shards),
            class_counts=tuple(np.sum([file.class_counts for file in shards], axis=0).tolist())
            if schema.target.task != "regression"
            else (),
            shards=shards,
        )
    return splits
