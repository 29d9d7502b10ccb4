"""Pass 2: raw rows in their final order, some shards at a time, from memory or from spilled files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.filesystems import explained
from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.arrays import normalise, one_chunk
from shoal.cluster.sharding.plan import Plan
from shoal.cluster.sharding.scan import Span
from shoal.cluster.sharding.source import Source, read
from shoal.cluster.sharding.spread import Spread
from shoal.cluster.storage import Storage

_PLACE = "__place__"


@dataclass(frozen=True)
class Block:
    """Consecutive slots: ``first`` to ``last - 1``."""

    first: int
    last: int


class Rows(Protocol):
    """The rows of a block."""

    def load(self) -> pa.Table:
        """Return them in final order, each column in one chunk."""


@dataclass(frozen=True)
class InMemory:
    """Rows that are in memory, in final order."""

    table: pa.Table

    def load(self) -> pa.Table:
        """Return them."""
        return self.table


@dataclass(frozen=True)
class Spilled:
    """Rows in the files of `spill`; it can be pickled and sent to a worker.

    Parameters
    ----------
    scratch
        Where the files are.
    parts
        File, first byte and end of each piece of the block, in the order of reading.
    first
        Place of the block's first row.
    schema
        The columns.
    """

    scratch: Storage
    parts: tuple[tuple[str, int, int], ...]
    first: int
    schema: pa.Schema

    def load(self) -> pa.Table:
        """Read the pieces and bring their rows into order."""
        if not self.parts:
            return self.schema.empty_table()
        table = pa.concat_tables([self._read(*part) for part in self.parts])
        places = table.column(_PLACE).to_numpy() - self.first
        order = np.empty(len(places), np.int64)
        order[places] = np.arange(len(places))
        taken = pa.array(order)
        table = table.drop_columns([_PLACE])
        return pa.table({name: one_chunk(table.column(name)).take(taken) for name in table.column_names})

    def _read(self, name: str, start: int, stop: int) -> pa.Table:
        with explained("read", f"{self.scratch.uri}/{name}"), self.scratch.open_input(name) as source:
            data = source.read_at(stop - start, start)
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            return reader.read_all()


def in_memory(
    tables: Sequence[pa.Table], names: Sequence[str], plan: Plan, blocks: Sequence[Block]
) -> list[Rows]:
    """Return the rows of each block from tables in the order of reading."""
    table = pa.concat_tables([table.select(list(names)) for table in tables])
    order = pa.array(plan.arrange(np.arange(len(plan.position))))
    table = pa.table({name: one_chunk(table.column(name)).take(order) for name in names})
    starts = [int(plan.offsets[block.first]) for block in blocks] + [int(plan.offsets[-1])]
    return [InMemory(table.slice(start, stop - start)) for start, stop in pairwise(starts)]


def spill(
    source: Source,
    names: Sequence[str],
    batch_rows: int | None,
    spans: Sequence[tuple[Span, int]],
    plan: Plan,
    blocks: Sequence[Block],
    wanted: Sequence[bool],
    scratch: Storage,
    spread: Spread,
    reporter: Reporter,
) -> list[Rows]:
    """Write the rows into files in which each block's are together; read them back a block at a time.

    Parameters
    ----------
    source, names, batch_rows
        As `source.read`.
    spans
        All rows in the order of reading, and how many each span had.
    plan, blocks
        Where they go.
    wanted
        Which blocks are needed; the rows of the others are left out.
    scratch
        An empty folder that all who take part reach.
    spread, reporter
        Who does it, and who hears how far it is.

    Raises
    ------
    StorageError
        If the folder's disk is full.
    DataError
        If the input has changed since the plan was made.
    """
    bounds = plan.offsets[[block.first for block in blocks[1:]]]
    work = partial(_spill_span, source, list(names), batch_rows, bounds, np.array(wanted), scratch)
    starts = np.cumsum([0, *(rows for _, rows in spans)])
    items = (
        (number, span, plan.position[starts[number] : starts[number] + rows])
        for number, (span, rows) in enumerate(spans if any(wanted) else ())
    )
    parts: list[list[tuple[str, int, int]]] = [[] for _ in blocks]
    for number, found in enumerate(spread.map(work, items)):
        for index, part in found:
            parts[index].append(part)
        reporter.advance(int(starts[number + 1]), int(starts[-1]), "rows")
    schema = pa.schema([source.schema.field(name) for name in names])
    return [
        Spilled(scratch, tuple(own), int(plan.offsets[block.first]), schema)
        for block, own in zip(blocks, parts, strict=True)
    ]


def _spill_span(
    source: Source,
    names: list[str],
    batch_rows: int | None,
    bounds: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.bool_],
    scratch: Storage,
    item: tuple[int, Span, npt.NDArray[np.int64]],
) -> list[tuple[int, tuple[str, int, int]]]:
    """Write a file a piece: one Arrow stream a block, end to end; return the block and the place of each stream."""
    number, span, places = item
    found: list[tuple[int, tuple[str, int, int]]] = []
    start = 0
    for count, piece in enumerate(read(source, span.file, names, batch_rows, span.groups)):
        own = places[start : start + len(piece)]
        start += len(piece)
        if len(own) < len(piece):
            break
        name = f"{number:06d}-{count:06d}.arrows"
        with scratch.write_stream(name) as sink:
            for index, rows in _route(piece, own, bounds, wanted):
                first = sink.tell()
                with pa.ipc.new_stream(sink, rows.schema) as writer:
                    writer.write_table(rows)
                found.append((index, (name, first, sink.tell())))
    if start != len(places):
        raise DataError(
            f"data.path changed while it was read ({source.files[span.file].uri}: {len(places):,} rows, then "
            f"{start:,}); start again when nothing writes there"
        )
    return found


def group_slots(offsets: npt.NDArray[np.int64], block_rows: int) -> list[Block]:
    """Group consecutive slots into blocks of at most ``block_rows`` rows; one slot alone may have more.

    Empty slots join the block before them, so that every block has rows if the first slot has.
    """
    blocks, first, n_slots = [], 0, len(offsets) - 1
    for slot in range(1, n_slots):
        if offsets[slot + 1] - offsets[first] > block_rows and offsets[slot + 1] > offsets[slot]:
            blocks.append(Block(first, slot))
            first = slot
    blocks.append(Block(first, n_slots))
    return blocks


def blocks_of(plan: Plan, block_rows: int) -> list[Block]:
    """Group the slots of the training rows, and those of the others."""
    v = plan.n_shards
    others = [Block(b.first + v, b.last + v) for b in group_slots(plan.offsets[v:], block_rows)]
    return [*group_slots(plan.offsets[: v + 1], block_rows), *others]


def _route(
    piece: pa.Table,
    places: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.bool_],
) -> Iterator[tuple[int, pa.Table]]:
    """Cut a piece into the rows of each block, their places beside them."""
    kept = np.flatnonzero(places >= 0)
    target = np.searchsorted(bounds, places[kept], side="right")
    needed = wanted[target]
    kept, target = kept[needed], target[needed]
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
