"""Rows read once for several datasets of them, such as the folds of a cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shoal.cluster.config import StorageConfig
from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.assign import Resplit
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.listing import find, fingerprint
from shoal.cluster.sharding.scan import Roles, Scan, merge_away, pieces, scan_piece
from shoal.cluster.sharding.source import Source, open_source


@dataclass(frozen=True)
class Reading:
    """An input that fits in memory: what pass 1 found, and the rows.

    Parameters
    ----------
    identity
        Of the files and of what pass 1 looked for.
    scan
        Of all rows; nobody changes it.
    tables
        All columns, in the order of reading.
    """

    identity: str
    scan: Scan
    tables: tuple[pa.Table, ...]


def read_once(
    data: DataConfig,
    storage_config: StorageConfig,
    reporter: Reporter,
    costs: Sequence[str],
    resplit: Resplit,
    budget: int,
) -> Reading | None:
    """Read an input for all datasets that share its roles; None where it is too large for a memory of ``budget`` bytes.

    Parameters
    ----------
    data, storage_config, reporter, costs, resplit
        As `service.shard` takes them.

    Raises
    ------
    DataError
        If there is no such input, or it is damaged.
    """
    files = find(data.path, storage_config)
    source = open_source(files)
    if not fits(source, budget):
        return None
    reporter.stage("reading")
    names, roles = list(source.schema.names), roles_of(data, costs, resplit)
    scans, tables, done = [], [], 0
    for piece in pieces(source, names, None):
        scans.append(scan_piece(piece, roles))
        tables.append(piece)
        done += len(piece)
        reporter.advance(done, source.n_rows, "rows")
    reporter.done()
    return Reading(identity_of(files, roles), merge_away(scans), tuple(tables))


def fits(source: Source, budget: int) -> bool:
    """Whether the rows as they were read, in order and prepared are in memory together within the budget."""
    return 3 * source.row_bytes(list(source.schema.names)) * source.n_rows <= budget


def identity_of(files: Sequence[Any], roles: Roles) -> str:
    """Return what a reading of these files is known by."""
    return fingerprint(list(files), {"values": roles.values, "hashes": roles.hashes}, 0, "reading")


def roles_of(data: DataConfig, costs: Sequence[str] = (), resplit: Resplit | None = None) -> Roles:
    """Return what the plan pass reads: values of the target, time, split, domain and costs, hashes of group and id."""
    more = () if resplit is None else resplit.columns
    values = [*data.target, data.time, data.split.column, data.domain, *costs, *more]
    hashes = [data.group, data.id, data.split.column]
    return Roles(
        tuple(dict.fromkeys(name for name in values if name)),
        tuple(dict.fromkeys(name for name in hashes if name)),
    )
