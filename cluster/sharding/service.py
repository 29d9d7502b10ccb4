"""The sharding service: raw Parquet in, a sharded dataset out.

Pass 1 (`scan`) reads every row once: its content key, its roles, and facts of each column. From these the plan
gives every row its part, its logical shard and its place. Pass 2 (`blocks`) brings raw rows into that order, in
memory where they fit in the budget, through temporary files otherwise. Then the statistics are fitted on the
training shards, and every shard is prepared and written alone; the manifest comes last.

Both passes, the statistics and the shards are pieces of work that know nothing of each other (`units`), done one after
the other here or at once wherever a `spread.Spread` has room. What was written is noted (`earlier`): the same call
again writes what is missing, after an interruption as after the loss of a shard.

Memory: the budget (`BUDGET`) for each piece of work, plus the plan, which is small beside the rows but grows with them:
measured, about 80 bytes a row at the peak while it is made and 24 from then on; plus the distinct values of the categorical
columns.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import StorageError
from shoal.cluster.filesystems import explained
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.assign import Resplit
from shoal.cluster.sharding.blocks import blocks_of, in_memory, spill
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.costs import Judge, refuse_costs, require_costs
from shoal.cluster.sharding.decide import Decided, decide
from shoal.cluster.sharding.earlier import (
    Earlier,
    Fitted,
    broken,
    clear_work,
    manifest_of,
    note_fitted,
    of_manifest,
    of_work,
    tidy,
    work_folder,
)
from shoal.cluster.sharding.features import candidates
from shoal.cluster.sharding.files import FOLDER
from shoal.cluster.sharding.fitting import complete, cost_sums, foresee, training_counts
from shoal.cluster.sharding.images import rooted
from shoal.cluster.sharding.imbalance.store import Collected, corrected, write_resampled
from shoal.cluster.sharding.leakage import Leakage
from shoal.cluster.sharding.listing import find, fingerprint, partition_notice
from shoal.cluster.sharding.manifest import MANIFEST, SPLITS, Manifest, Schema, ShardFile, Split
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.reading import Reading, fits, identity_of, roles_of
from shoal.cluster.sharding.scan import Scan, Span, merge_away, scan_span, spans
from shoal.cluster.sharding.source import Source, open_source
from shoal.cluster.sharding.spread import Here, Spread
from shoal.cluster.sharding.statistics import Statistics
from shoal.cluster.sharding.texts import tokenizers
from shoal.cluster.sharding.units import Unit, Writing, fit_unit, prepared, units_of
from shoal.cluster.storage import Storage

BUDGET = 512 << 20
_BLOCK_ROWS = 1 << 18  # of a block that is in memory anyway
_LEAST_ROWS = 1 << 14  # of a piece of work that is spread, unless the budget is for less
_NO_STORAGE_CONFIG = StorageConfig()
_SILENT = Silent()
_HERE = Here()


def sharding_key(
    data: DataConfig,
    seed: int,
    storage_config: StorageConfig = _NO_STORAGE_CONFIG,
    costs: Sequence[str] = (),
    known: Schema | None = None,
    resplit: Resplit | None = None,
) -> str:
    """Return what a sharded dataset is known and reused by.

    Parameters
    ----------
    data, seed
        What determines the shards.
    storage_config
        How to reach the input.
    costs
        The cost columns.
    known, resplit
        As for `shard`.

    Returns
    -------
    32 hexadecimal digits: a hash of the input files' places, sizes and modification times, the section, the cost columns, the
    seed and the statistics of an earlier fit.

    Raises
    ------
    DataError
        If there are no input files.
    """
    return _key(find(data.path, storage_config), data, seed, costs, resplit, known)


def shard(
    data: DataConfig,
    seed: int,
    destination: Storage,
    *,
    storage_config: StorageConfig = _NO_STORAGE_CONFIG,
    reporter: Reporter = _SILENT,
    budget: int = BUDGET,
    verify: bool = False,
    spread: Spread = _HERE,
    costs: Sequence[str] = (),
    resplit: Resplit | None = None,
    reading: Reading | None = None,
    known: Schema | None = None,
    judge: Judge | None = None,
) -> Manifest:
    """Shard the data, or return the manifest of an earlier run with the same key.

    A dataset of the same key that lost shards gets those back, and no other file is touched. An interrupted run is
    gone on with: the shards that it wrote are kept where their bytes are as they were written.

    Parameters
    ----------
    data
        The rows and what their columns mean.
    seed
        Root of the split and of the order within shards.
    destination
        Folder of the sharded dataset; all who take part write into it.
    storage_config
        How to reach the input.
    reporter
        Hears the stages and everything that was inferred.
    budget
        Bytes of raw rows held at a time, by each piece of work. No result depends on it.
    verify
        Whether to read the shards of an earlier run, and to rebuild the damaged ones too.
    spread
        Where the pieces of work are done. No result depends on it.
    costs
        Columns of numbers that are carried beside the rows as they are, sorted.
    resplit
        Gives the rows the parts of a fold.
    reading
        The input, read before; heeded if it is still as it was, and with a spread of one.
    known
        The schema of an earlier fit, whose columns and statistics are those of this dataset. Where the section names no target,
        labels are not read: all rows are training rows, and what stands for their labels means nothing.
    judge
        Refuses rows by their costs, before any is written.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    StorageError
        If the destination cannot be written, or what others wrote there is not seen here.
    """
    inputs = find(data.path, storage_config)
    key = _key(inputs, data, seed, costs, resplit, known)
    manifest, lost = manifest_of(destination, key), []
    if manifest is not None:
        if not broken(destination, manifest, verify, spread):
            reporter.notice(f"sharded dataset reused: {destination.uri}")
            return manifest
        reporter.stage("verifying shards")
        lost = broken(destination, manifest, True, spread)
        reporter.notice(f"{plural(len(lost), 'file')} to rebuild, missing or damaged: {_some(lost)}")
        folder, earlier = lost[0].rpartition("/")[0], of_manifest(manifest, lost)
    else:
        # An earlier dataset of other data stays whole until this one is.
        folder = f"{FOLDER}-{key[:8]}" if destination.exists(MANIFEST) else FOLDER
        earlier = of_work(destination, work_folder(key), folder, spread)
        if earlier.files:
            reporter.notice(f"{plural(len(earlier.files), 'shard')} of an interrupted run are kept")
    clear_work(destination, but=work_folder(key))
    if reading is not None and reading.identity != identity_of(inputs, roles_of(data, costs, resplit)):
        reading = None
    source = open_source(inputs)
    if known is not None and not data.target:
        source = source.without(known.target.columns)
    made = _make(
        _Job(
            data,
            seed,
            key,
            destination,
            folder,
            reporter,
            budget,
            spread,
            tuple(costs),
            resplit,
            reading,
            known,
            judge,
            storage_config,
        ),
        source,
        partition_notice(inputs),
        earlier,
        resample=data.imbalance is not None and (manifest is None or _training_lost(manifest, lost)),
    )
    if manifest is not None:
        if made.splits != manifest.splits:
            raise StorageError(
                f"the rebuilt shards of {destination.uri} are not as {MANIFEST} recorded them: another version of Shoal or "
                "of its libraries wrote it. Delete that folder, and shard again"
            )
        made = manifest
    else:
        if spread.count > 1 and (lost := broken(destination, made, False)):
            raise StorageError(
                f"{plural(len(lost), 'shard')} that were written are not to be seen here ({_some(lost)}): {destination.uri} "
                "must be a place that all nodes share; set cluster.storage_path, or --out"
            )
        destination.write_json(MANIFEST, made.model_dump(mode="json", by_alias=True))
    tidy(destination, folder, made)
    return made


@dataclass(frozen=True)
class _Job:
    """What is to be done, and where."""

    data: DataConfig
    seed: int
    key: str
    destination: Storage
    folder: str
    reporter: Reporter
    budget: int
    spread: Spread
    costs: tuple[str, ...]
    resplit: Resplit | None
    reading: Reading | None
    known: Schema | None
    judge: Judge | None
    storage_config: StorageConfig

    @property
    def work(self) -> str:
        return work_folder(self.key)


def _make(job: _Job, source: Source, said: list[str], earlier: Earlier, resample: bool) -> Manifest:
    """Do what is missing, and return what the whole is."""
    data, reporter, destination, spread = job.data, job.reporter, job.destination, job.spread
    chosen, excluded, notices = candidates(source.schema, data)
    notices += require_costs(source.schema, data, job.costs, chosen)
    names = list(source.schema.names)
    here = spread.count == 1 and fits(source, job.budget)
    batch_rows = None if here else max(1024, job.budget // 8 // source.row_bytes(names))
    keep = [*chosen, *([data.id] if data.id else [])]
    scan, tables, parts = _read(job, source, batch_rows, keep if here else None)
    scans = [scan]
    del scan
    decided = decide(scans.pop(), source.schema, data, job.seed, chosen, job.costs, job.resplit, job.known)
    refuse_costs(decided.costs, job.costs, decided.plan, source, decided.target, data, job.judge)
    foresee(data, decided)
    plan, v = decided.plan, decided.plan.n_shards
    notices = [*source.notices, *said, *decided.notices, *notices, *decided.features.notices]
    kept = [column.name for column in decided.features.columns] + ([data.id] if data.id else [])
    reporter.stage("ordering")
    most = _BLOCK_ROWS if here else _rows_at_a_time(job, source, kept)
    media = 4 * sum(column.block for column in decided.features.columns)
    blocks = blocks_of(plan, min(most, max(1, job.budget // 2 // media)) if media else most)
    needed = [
        any(slot not in earlier.files for slot in range(block.first, block.last))
        or (block.last <= v and (resample or earlier.fitted is None))
        for block in blocks
    ]
    with _scratch(job, here) as (scratch, own):
        if scratch is None:
            rows = in_memory(tables, kept, plan, blocks)
            tables.clear()
        else:
            rows = spill(source, kept, batch_rows, parts, plan, blocks, needed, scratch, spread, reporter)
        units = partial(units_of, decided, blocks, rows)
        fitted = earlier.fitted or _fit(job, units(), decided)
        notices += fitted.notices
        for notice in notices:
            reporter.notice(notice)
        reporter.stage("writing shards")
        schema = rooted(fitted.schema_, [file.uri for file in source.files], job.storage_config)
        leakage = Leakage(schema)
        collected = None
        if resample:
            collected = Collected(training_counts(decided), v, schema, own)
            for unit in units():
                if unit.is_training:
                    _collect(unit, collected, leakage)
        files: dict[int, ShardFile] = {}
        writing = Writing(destination, job.folder, schema, earlier.files, job.work)
        todo = (unit for unit in units() if not (resample and unit.is_training))
        for written in spread.map(writing, todo):
            files |= written.files
            leakage.merge(written.leakage)
            reporter.advance(len(files), plan.n_slots, "shards")
        for notice in leakage.notices():
            reporter.notice(notice)
            notices.append(notice)
        resampling = None
        if data.imbalance is not None and collected is not None:
            files |= {slot: file for slot, file in earlier.files.items() if slot < v}
            resampling, told = write_resampled(
                data.imbalance, collected, job.seed, destination, job.folder, reporter, files
            )
            notices += told
            schema = corrected(schema, resampling, [files[slot] for slot in range(v)])
    return Manifest(
        key=job.key,
        seed=job.seed,
        schema=schema,
        splits=_splits(files, v, schema),
        n_shards=v,
        sources=tuple(file.uri for file in source.files),
        rows_read=source.n_rows,
        left_out=decided.left_out,
        dropped={**excluded, **fitted.dropped},
        split_kind=decided.split_kind,
        resampling=resampling,
        cost_sums=cost_sums(decided, job.costs),
        notices=tuple(notices),
    )


def _read(
    job: _Job, source: Source, batch_rows: int | None, keep: list[str] | None
) -> tuple[Scan, list[pa.Table], list[tuple[Span, int]]]:
    """Look at all rows; return the columns to ``keep`` too, and which rows were read together."""
    if job.reading is not None and keep is not None:
        return job.reading.scan, [table.select(keep) for table in job.reading.tables], []
    job.reporter.stage("reading")
    names, roles = list(source.schema.names), roles_of(job.data, job.costs, job.resplit)
    shares = _share(job, source.n_rows)
    cut = spans(source, batch_rows if batch_rows is None or shares is None else min(batch_rows, shares))
    scans, tables, parts, done = [], [], [], 0
    for span, (scan, kept) in zip(
        cut,
        job.spread.map(partial(scan_span, source, names, batch_rows, roles, keep), cut),
        strict=True,
    ):
        scans.append(scan)
        tables += kept
        parts.append((span, len(scan.keys)))
        done += len(scan.keys)
        job.reporter.advance(done, source.n_rows, "rows")
    del scan, kept  # long arrays
    return merge_away(scans), tables, parts


def _share(job: _Job, rows: int) -> int | None:
    """Return how many rows a piece of work may have so that all who take part have some; None for one alone."""
    return None if job.spread.count == 1 else max(_LEAST_ROWS, math.ceil(rows / (2 * job.spread.count)))


def _rows_at_a_time(job: _Job, source: Source, names: list[str]) -> int:
    rows = max(1, job.budget // 4 // source.row_bytes(names))
    share = _share(job, source.n_rows)
    return rows if share is None else min(rows, share)


@contextmanager
def _scratch(job: _Job, fits: bool) -> Iterator[tuple[Storage | None, Path | None]]:
    """Make a temporary folder where the rows do not fit in memory, for all who take part, and one of this process.

    They are beside the shards where that is a disk, or where others take part: that is the place that has room.
    """
    if fits:
        yield None, None
        return
    beside = job.destination.child(f"{job.work}/rows")
    with ExitStack() as stack:
        own = (
            beside.local()
            if beside.is_local
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-sharding-")))
        )
        beside.delete()  # of a run that was killed
        with explained("write", str(own)):
            own.mkdir(parents=True, exist_ok=True)
        stack.callback(beside.delete)
        shared = beside.is_local or job.spread.count > 1
        yield beside if shared else Storage.open(str(own)), own


def _fit(job: _Job, units: Iterator[Unit], decided: Decided) -> Fitted:
    """Fit the statistics on the training rows, and complete the schema."""
    columns = decided.features.columns if decided.known is None else []
    statistics = Statistics(columns)
    training = (u for u in units if u.is_training) if columns else ()
    for gathered in job.spread.map(partial(fit_unit, columns), training):
        statistics.merge(gathered)
    schema, said = complete(statistics, decided, job.data, job.costs)
    fitted = Fitted(schema_=schema, notices=tuple(said), dropped=decided.features.dropped)
    note_fitted(job.destination, job.work, fitted)
    return fitted


def _collect(unit: Unit, collected: Collected, leakage: Leakage) -> None:
    of_slots = prepared(unit, leakage.schema, unit.slots)
    for slot, (rows, label, ids, costs) in zip(unit.slots, of_slots, strict=True):
        leakage.add(rows, label)
        collected.add(slot, rows, label, ids, costs)


def _training_lost(manifest: Manifest, lost: list[str]) -> bool:
    """Whether a training shard is lost, or what names the parents of the rows that were made."""
    known = {shard.path for shard in manifest.splits["train"].shards}
    if manifest.resampling is not None:
        known.add(manifest.resampling.parents)
    return not known.isdisjoint(lost)


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")


def _key(
    files: list[Any],
    data: DataConfig,
    seed: int,
    costs: Sequence[str],
    resplit: Resplit | None = None,
    known: Schema | None = None,
) -> str:
    carried: dict[str, Any] = {"costs": list(costs)} if costs else {}
    if texts := tokenizers(data):
        carried |= {"tokenizers": texts}
    more: tuple[Any, ...] = () if resplit is None else (resplit.identity,)
    if known is not None:
        fitted = known.model_dump(mode="json", include={"columns": True, "target": {"center", "scale"}})
        more += (fitted,)
    return fingerprint(files, data.model_dump(mode="json") | carried, seed, "format 4", *more)


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
