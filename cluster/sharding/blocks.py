"""Pass 2: raw rows in their final order, some shards at a time, from memory or from spilled files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.filesystems import explained
from shoal.cluster.sharding.arrays import normalise, one_chunk
from shoal.cluster.sharding.plan import Plan

_PLACE = "__place__"


@dataclass(frozen=True)
class Block:
    """Consecutive slots: ``first`` to ``last - 1``."""

    first: int
    last: int


class Blocks(Protocol):
    """All rows, a block at a time."""

    blocks: Sequence[Block]

    def load(self, index: int) -> pa.Table:
        """Return a block's rows in final order, each column in one chunk."""


class InMemory:
    """One block, held in memory.

    Parameters
    ----------
    table
        All rows in the order of reading, with the columns to keep.
    plan
        Where they go.
    """

    def __init__(self, table: pa.Table, plan: Plan) -> None:
        self.blocks: Sequence[Block] = [Block(0, plan.n_slots)]
        order = pa.array(plan.arrange(np.arange(len(plan.position))))
        self._table = pa.table(
            {name: one_chunk(table.column(name)).take(order) for name in table.column_names}
        )

    def load(self, index: int) -> pa.Table:
        """Return all rows."""
        if index != 0:
            raise IndexError(index)
        return self._table


class Spilled:
    """Blocks in temporary local files, one each, that fit in memory one at a time.

    Parameters
    ----------
    pieces
        All rows in the order of reading, with the columns to keep.
    plan
        Where they go.
    folder
        An empty local folder.
    block_rows
        Rows of a block, unless a single shard is larger.

    Raises
    ------
    StorageError
        If the folder's disk is full.
    DataError
        If the input has changed since the plan was made.
    """

    def __init__(self, pieces: Iterable[pa.Table], plan: Plan, folder: Path, block_rows: int) -> None:
        self.blocks: Sequence[Block] = group_slots(plan.offsets, block_rows)
        self._plan, self._folder = plan, folder
        bounds = plan.offsets[[block.first for block in self.blocks[1:]]]
        start = 0
        with explained("write", str(folder)), ExitStack() as stack:
            writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
            for piece in pieces:
                places = plan.position[start : start + len(piece)]
                start += len(piece)
                if len(places) < len(piece):
                    break
                for index, rows in _route(piece, places, bounds):
                    if index not in writers:
                        sink = stack.enter_context(pa.OSFile(str(self._file(index)), "wb"))
                        writers[index] = stack.enter_context(pa.ipc.new_stream(sink, rows.schema))
                    writers[index].write_table(rows)
        if start != len(plan.position):
            raise DataError(
                f"data.path changed while it was read ({len(plan.position):,} rows, then at least {start:,}); start "
                "again when nothing writes there"
            )

    def load(self, index: int) -> pa.Table:
        """Read a block's file and bring its rows into order."""
        block = self.blocks[index]
        with pa.OSFile(str(self._file(index)), "rb") as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        places = table.column(_PLACE).to_numpy() - self._plan.offsets[block.first]
        order = np.empty(len(places), np.int64)
        order[places] = np.arange(len(places))
        taken = pa.array(order)
        table = table.drop_columns([_PLACE])
        return pa.table({name: one_chunk(table.column(name)).take(taken) for name in table.column_names})

    def _file(self, index: int) -> Path:
        return self._folder / f"block-{index:05d}.arrows"


def group_slots(offsets: npt.NDArray[np.int64], block_rows: int) -> list[Block]:
    """Group consecutive slots into blocks of at most ``block_rows`` rows; one slot alone may have more.

    The first slot has rows. Empty slots join the block before them, so that every block has rows.
    """
    blocks, first, n_slots = [], 0, len(offsets) - 1
    for slot in range(1, n_slots):
        if offsets[slot + 1] - offsets[first] > block_rows and offsets[slot + 1] > offsets[slot]:
            blocks.append(Block(first, slot))
            first = slot
    blocks.append(Block(first, n_slots))
    return blocks


def _route(
    piece: pa.Table, places: npt.NDArray[np.int64], bounds: npt.NDArray[np.int64]
) -> Iterator[tuple[int, pa.Table]]:
    """Cut a piece into the rows of each block, their places beside them."""
    kept = np.flatnonzero(places >= 0)
    target = np.searchsorted(bounds, places[kept], side="right")
    order = np.argsort(target, kind="stable")
    kept, target = kept[order], target[order]
    starts = np.flatnonzero(np.diff(target, prepend=-1))
    for start, stop in pairwise([*starts, len(kept)]):
        rows = kept[start:stop]
        taken = piece.take(pa.array(rows)).append_column(_PLACE, pa.array(places[rows]))
        yield int(target[start]), _trimmed(taken)


def _trimmed(table: pa.Table) -> pa.Table:
    """Shrink dictionaries that are longer than the rows which use them."""
    arrays = []
    for column in table.columns:
        array = one_chunk(column)
        if pa.types.is_dictionary(array.type) and len(array.dictionary) > len(array):
            array = normalise(array.dictionary_decode())
        arrays.append(array)
    return pa.table(arrays, names=table.column_names)
