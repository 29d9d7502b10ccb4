"""Collect the prepared training rows, and write what resampling made of them as shards."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import DataError
from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.files import shard_path, write_shard
from shoal.cluster.sharding.hashing import mix, salt
from shoal.cluster.sharding.imbalance.config import named
from shoal.cluster.sharding.imbalance.resample import resample
from shoal.cluster.sharding.imbalance.rows import Index, Resampled, TrainingRows, take
from shoal.cluster.sharding.manifest import Resampling, Schema, ShardFile
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.prepare import Prepared
from shoal.cluster.storage import Storage

SYNTHETIC = "synthetic.parquet"
_ROWS = 1 << 18  # synthetic rows whose parents are written at a time


class Collected:
    """All prepared training rows in dealing order: by class, then by key.

    Parameters
    ----------
    counts
        Training rows of each class, int64 ``[classes]``.
    n_shards
        V.
    schema
        Columns and target.
    scratch
        Folder for files that hold the rows; in memory where None.
    """

    def __init__(self, counts: Index, n_shards: int, schema: Schema, scratch: Path | None) -> None:
        self.n_shards = n_shards
        rows = int(counts.sum())
        self._ids: list[pa.Array] = []
        self.costs = np.empty((rows, len(schema.costs) + bool(schema.domains)))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        numeric = _array((rows, schema.numeric_width), np.float32, scratch, "numeric")
        categorical = _array((rows, schema.codes_width), np.int32, scratch, "categorical")
        self.rows = TrainingRows(Prepared(numeric, categorical), offsets, schema)

    def add(
        self, shard: int, rows: Prepared, label: Index, row_id: pa.Array, costs: npt.NDArray[np.float64]
    ) -> None:
        """Add a shard; shards come in their order.

        Its rows are by key. By class and then by key, the j-th of them was dealt as row ``j V + shard``.
        """
        dealt = np.argsort(label, kind="stable")
        self.rows.rows.numeric[shard :: self.n_shards] = rows.numeric[dealt]
        self.rows.rows.categorical[shard :: self.n_shards] = rows.categorical[dealt]
        self.costs[shard :: self.n_shards] = costs[dealt]
        self._ids.append(row_id.take(pa.array(dealt)))

    def ids(self) -> pa.Array:
        """Return the id of each row, in dealing order."""
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in self._ids])])
        dealt = np.arange(len(self.rows))
        place = starts[dealt % self.n_shards] + dealt // self.n_shards
        return pa.concat_arrays(self._ids).take(pa.array(place))


def _array(shape: tuple[int, int], dtype: Any, scratch: Path | None, name: str) -> npt.NDArray[Any]:
    if scratch is None or 0 in shape:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(scratch / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


def write_resampled(
    config: Config,
    collected: Collected,
    seed: int,
    destination: Storage,
    folder: str,
    reporter: Reporter,
    files: dict[int, ShardFile],
) -> tuple[Resampling, list[str]]:
    """Resample the training rows and write their shards.

    Parameters
    ----------
    config
        `data.imbalance`.
    collected
        The training rows.
    seed
        Root of every draw.
    destination, folder
        Where; `SYNTHETIC` beside the shards names the parents of every row that was made.
    reporter
        Hears what has to be said.
    files
        Those of the other parts by slot, and of the training shards that are there already; gets the rest.

    Returns
    -------
    What the manifest says of it, and what was said.

    Raises
    ------
    ShoalError
        As `resample.resample`; or if fewer rows than shards are left.
    """
    rows, v = collected.rows, collected.n_shards
    reporter.stage("resampling")
    found = resample(config, rows, seed)
    before, after = rows.counts, found.counts(rows)
    if after.sum() < v:
        raise DataError(
            f"data.imbalance leaves {plural(int(after.sum()), 'training row')}, fewer than the {v} shards: set data.shards to at "
            f"most {after.sum()}, or resample less"
        )
    notices = list(found.notices)
    if (before * after.sum() != after * before.sum()).any():
        notices.append(
            "the training rows were resampled; probabilities are corrected back to the shares of the classes before that"
        )
    for notice in notices:
        reporter.notice(notice)
    reporter.stage("writing shards")
    for shard, file in enumerate(_shards(destination, folder, collected, found, seed, files)):
        files[shard] = file
        reporter.advance(2 * v + shard + 1, 3 * v, "shards")
    name = named(config)
    resampling = Resampling(
        method={name: config.kwargs if isinstance(config, Imported) else config.model_dump(mode="json")},
        class_counts_before=tuple(before.tolist()),
        synthetic=len(found.made),
        parents=f"{folder}/{SYNTHETIC}" if len(found.made) else "",
    )
    return resampling, notices


def corrected(schema: Schema, resampling: Resampling, train: list[ShardFile]) -> Schema:
    """Note in the target how resampling changed the odds of the classes."""
    after = np.sum([file.class_counts for file in train], axis=0).tolist()
    target = schema.target.shown(resampling.class_counts_before, after)
    return schema.model_copy(update={"target": target})


def _shards(
    destination: Storage,
    folder: str,
    collected: Collected,
    resampled: Resampled,
    seed: int,
    there: Mapping[int, ShardFile],
) -> Iterator[ShardFile]:
    """Deal the resampled rows over the shards, class after class, and write one by one those that are not there."""
    training, v = collected.rows, collected.n_shards
    ids = collected.ids()
    made_ids = _made_ids(ids, resampled, seed)
    if len(resampled.made):
        _write_parents(destination, f"{folder}/{SYNTHETIC}", training, ids, made_ids, resampled)
    n = len(resampled.kept)
    of_kept = np.searchsorted(training.offsets, resampled.kept, side="right") - 1
    labels = np.concatenate([of_kept, resampled.made_labels])
    order = np.argsort(labels, kind="stable")
    for shard in range(v):
        if shard in there:
            yield there[shard]
            continue
        own = order[shard::v]
        real = own < n
        index, made = resampled.kept[own[real]], own[~real] - n
        old, new = take(training.rows, index), resampled.made.rows(made)
        numeric = np.empty((len(own), old.numeric.shape[1]), np.float32)
        categorical = np.empty((len(own), old.categorical.shape[1]), np.int32)
        numeric[real], numeric[~real] = old.numeric, new.numeric
        categorical[real], categorical[~real] = old.categorical, new.categorical
        costs = np.full((len(own), collected.costs.shape[1]), np.nan)  # nobody said what a made row costs
        costs[real] = collected.costs[index]
        place = np.empty(len(own), np.int64)
        place[real], place[~real] = np.arange(len(index)), len(index) + np.arange(len(made))
        row_id = pa.concat_arrays([ids.take(pa.array(index)), made_ids.take(pa.array(made))])
        yield write_shard(
            destination,
            shard_path(folder, 0, shard),
            Prepared(numeric, categorical),
            labels[own],
            row_id.take(pa.array(place)),
            training.schema.target,
            costs,
        )


def _made_ids(real: pa.Array, resampled: Resampled, seed: int) -> pa.Array:
    number = np.arange(len(resampled.made), dtype=np.uint64)
    ids = mix(number ^ salt(f"synthetic rows of seed {seed}"))
    if pa.types.is_integer(real.type):
        return pa.array(ids.view(np.int64))
    return pa.array([f"synthetic-{n:016x}" for n in ids.tolist()], real.type)


def _write_parents(
    destination: Storage,
    path: str,
    training: TrainingRows,
    ids: pa.Array,
    made_ids: pa.Array,
    resampled: Resampled,
) -> None:
    """Write row_id, label, parent and neighbour of every row that was made; no parents where it has none of its own."""
    names = pa.array([str(name) for name in training.schema.target.classes])
    parents = resampled.made.parents
    with destination.write_stream(path) as sink:
        writer = None
        for start in range(0, len(parents), _ROWS):
            rows = slice(start, start + _ROWS)
            known = [pa.array(parents[rows, i], mask=parents[rows, i] < 0) for i in range(2)]
            table = pa.table(
                {
                    "row_id": made_ids[rows],
                    "label": names.take(pa.array(resampled.made_labels[rows])).dictionary_encode(),
                    "parent": ids.take(known[0]),
                    "neighbour": ids.take(known[1]),
                }
            )
            writer = writer or pq.ParquetWriter(sink, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
