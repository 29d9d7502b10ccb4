"""Pass 1: read every row once for its identity, its roles and what its columns are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shoal.cluster.sharding.arrays import one_chunk
from shoal.cluster.sharding.facts import Facts, look
from shoal.cluster.sharding.hashing import U64
from shoal.cluster.sharding.source import Source, read


@dataclass(frozen=True)
class Roles:
    """The columns that decide a row's part.

    Parameters
    ----------
    values
        Columns whose values are needed: target, time, the split's column, the domain, costs.
    hashes
        Columns of which a hash is enough: group, id; the split's column, to compare rows without it.
    """

    values: tuple[str, ...]
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """Rows that are read together: some row groups of a file, or all of it."""

    file: int
    groups: tuple[int, ...] | None = None


@dataclass
class Scan:
    """What pass 1 found, in the order of reading.

    Parameters
    ----------
    keys
        Content key of each row, uint64 ``[n]``.
    roles
        `Roles.values`, strings as dictionaries.
    hashes
        `Roles.hashes`, uint64 ``[n]`` each, 0 where missing.
    facts
        Of each column.
    """

    keys: U64
    roles: pa.Table
    hashes: dict[str, U64]
    facts: dict[str, Facts]


def scan_piece(table: pa.Table, roles: Roles) -> Scan:
    """Look at some rows; independent of all others, so that pieces can be read anywhere.

    Parameters
    ----------
    table
        From `source.read`, with every column of the input.
    roles
        Which columns to keep.
    """
    keys = np.zeros(len(table), np.uint64)
    facts, hashes = {}, {}
    for name in table.column_names:
        facts[name], of_column = look(one_chunk(table.column(name)), name)
        if of_column is not None:
            keys += of_column
            if name in roles.hashes:
                hashes[name] = of_column
    return Scan(keys, table.select(list(roles.values)), hashes, facts)


def merge_away(scans: list[Scan]) -> Scan:
    """Join the pieces' scans, in their order; empties the list, so that they do not stay in memory beside the result."""
    if len(scans) == 1:
        return scans.pop()
    facts: dict[str, Facts] = {}
    for scan in scans:
        for name, of_piece in scan.facts.items():
            if name in facts:
                facts[name].merge(of_piece)
            else:
                facts[name] = of_piece
    table = pa.concat_tables([scan.roles for scan in scans])
    table = pa.table({name: one_chunk(table.column(name)) for name in table.column_names})
    hashes = {name: np.concatenate([scan.hashes[name] for scan in scans]) for name in scans[0].hashes}
    keys = np.concatenate([scan.keys for scan in scans])
    scans.clear()
    return Scan(keys, table, hashes, facts)


def pieces(source: Source, names: Sequence[str], batch_rows: int | None) -> Iterator[pa.Table]:
    """Read all files one after the other; see `source.read`."""
    for index in range(len(source.files)):
        yield from read(source, index, names, batch_rows)


def spans(source: Source, rows: int | None) -> list[Span]:
    """Cut the input, between row groups, into spans of about so many rows; None for whole files."""
    found = []
    for file, of_groups in enumerate(source.groups):
        if rows is None:
            found.append(Span(file))
            continue
        groups: list[int] = []
        for group in range(len(of_groups)):
            groups.append(group)
            if sum(of_groups[g] for g in groups) >= rows or group == len(of_groups) - 1:
                found.append(Span(file, tuple(groups)))
                groups = []
    return found


def scan_span(
    source: Source,
    names: Sequence[str],
    batch_rows: int | None,
    roles: Roles,
    keep: Sequence[str] | None,
    span: Span,
) -> tuple[Scan, list[pa.Table]]:
    """Look at the rows of a span; return the columns to ``keep`` too.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    scans, tables = [], []
    for piece in read(source, span.file, names, batch_rows, span.groups):
        scans.append(scan_piece(piece, roles))
        if keep is not None:
            tables.append(piece.select(list(keep)))
    return merge_away(scans), tables
