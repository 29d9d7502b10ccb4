"""Units of work: some consecutive shards, fitted or written without any of the others, by whoever has room."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import StorageError
from shoal.cluster.sharding.arrays import one_chunk
from shoal.cluster.sharding.blocks import Block, Rows
from shoal.cluster.sharding.dataset import shard_rows
from shoal.cluster.sharding.decide import Decided
from shoal.cluster.sharding.files import identifiers, shard_path, write_shard
from shoal.cluster.sharding.leakage import Leakage
from shoal.cluster.sharding.manifest import Column, Schema, ShardFile
from shoal.cluster.sharding.prepare import Prepared, prepare
from shoal.cluster.sharding.statistics import Gathered, gather
from shoal.cluster.storage import Storage


@dataclass(frozen=True)
class Unit:
    """Consecutive slots and all that is known of their rows; it can be pickled and sent to a worker.

    Parameters
    ----------
    block
        The slots.
    n_shards
        V.
    offsets
        First row of each slot within the unit, and the end; int64.
    labels, row_id, costs
        Of the unit's rows, in final order.
    rows
        How to get at them.
    """

    block: Block
    n_shards: int
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[Any]
    row_id: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    rows: Rows

    @property
    def slots(self) -> range:
        """The slots."""
        return range(self.block.first, self.block.last)

    @property
    def is_training(self) -> bool:
        """Whether its rows are training rows; a unit has no others then."""
        return self.block.last <= self.n_shards


@dataclass(frozen=True)
class Written:
    """What `Writing` did for a unit: the shards by slot, and what their columns tell of the target."""

    files: dict[int, ShardFile]
    leakage: Leakage


@dataclass(frozen=True)
class Writing:
    """Writes the shards of a unit; done again, it gives the same bytes.

    Parameters
    ----------
    destination, folder
        Of the dataset, and of the shards within it.
    schema
        With the statistics.
    kept
        Shards that are there already, by slot; verified.
    notes
        Folder within the destination that notes what was written, so that it need not be written again.
    """

    destination: Storage
    folder: str
    schema: Schema
    kept: Mapping[int, ShardFile]
    notes: str

    def __call__(self, unit: Unit) -> Written:
        """Write what is missing.

        Raises
        ------
        DataError
            If a column cannot be prepared.
        StorageError
            If the destination cannot be written.
        """
        leakage, files = Leakage(self.schema), {}
        missing = [slot for slot in unit.slots if slot not in self.kept]
        rows = iter(prepared(unit, self.schema, missing) if missing else ())
        for slot in unit.slots:
            if slot in self.kept:
                files[slot] = self.kept[slot]
                if unit.is_training:
                    there = shard_rows(pa.py_buffer(self.destination.read_bytes(files[slot].path)))
                    leakage.add(Prepared(there.numeric, there.categorical), there.label)
                continue
            own, label, ids, costs = next(rows)
            if unit.is_training:
                leakage.add(own, label)
            path = shard_path(self.folder, *divmod(slot, unit.n_shards))
            files[slot] = write_shard(self.destination, path, own, label, ids, self.schema.target, costs)
        if missing:
            noted = {str(slot): file.model_dump(mode="json") for slot, file in files.items()}
            self.destination.write_json(
                f"{self.notes}/{unit.block.first:06d}-{unit.block.last:06d}.json", noted
            )
        return Written(files, leakage)


def units_of(decided: Decided, blocks: Sequence[Block], rows: Sequence[Rows]) -> Iterator[Unit]:
    """Yield the units one by one, so that only those at work need to be sent anywhere."""
    plan = decided.plan
    for block, own in zip(blocks, rows, strict=True):
        offsets = plan.offsets[block.first : block.last + 1]
        places = slice(int(offsets[0]), int(offsets[-1]))
        yield Unit(
            block,
            plan.n_shards,
            offsets - offsets[0],
            decided.labels[places],
            plan.row_id[places],
            decided.costs[places],
            own,
        )


def fit_unit(columns: Sequence[Column], unit: Unit) -> Gathered:
    """Gather the statistics of a unit of training rows."""
    return gather(columns, unit.rows.load(), unit.offsets.tolist())


def prepared(
    unit: Unit, schema: Schema, slots: Sequence[int]
) -> Iterator[tuple[Prepared, npt.NDArray[Any], pa.Array, npt.NDArray[np.float64]]]:
    """Yield the prepared rows, labels, ids and costs of some of a unit's slots, in their order."""
    table = unit.rows.load()
    rows = prepare(table, schema)
    ids = identifiers(one_chunk(table.column(schema.id)), schema.id) if schema.id else pa.array(unit.row_id)
    for slot in slots:
        start, stop = unit.offsets[slot - unit.block.first : slot - unit.block.first + 2].tolist()
        own = Prepared(rows.numeric[start:stop], rows.categorical[start:stop])
        yield own, unit.labels[start:stop], ids.slice(start, stop - start), unit.costs[start:stop]


def is_intact(folder: Storage, file: ShardFile) -> bool:
    """Whether a shard is there as it was written, to the last bit."""
    try:
        data = folder.read_bytes(file.path) if folder.exists(file.path) else b""
    except StorageError:
        return False
    return len(data) == file.bytes and hashlib.sha256(data).hexdigest() == file.sha256
