"""Where each row goes: its part, its logical shard, its place in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.cluster.sharding.hashing import U64, mix
from shoal.cluster.sharding.manifest import SPLITS
from shoal.cluster.sharding.splits import by_stratum

ROWS_PER_SHARD = 4096
SHARD_BYTES = 64 << 20  # of texts and images
FEWEST, MOST = 16, 1024
_STEP = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class Plan:
    """The destination of every row.

    The final order is by part, then shard, then key; shards of a part are its *slots*, ``part * n_shards +
    v``.

    Parameters
    ----------
    n_shards
        V, the same for each part.
    position
        Place of each row, in the order of reading, in the final order; -1 where left out. int64 ``[rows
        read]``.
    offsets
        First place of each slot, int64 ``[3 V + 1]``.
    row_id
        Of each place: content key, made unique among equal rows; int64 ``[rows kept]``.
    """

    n_shards: int
    position: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    row_id: npt.NDArray[np.int64]

    @property
    def n_slots(self) -> int:
        """Three times V."""
        return len(self.offsets) - 1

    def part(self, index: int) -> slice:
        """Return the places of one part."""
        v = self.n_shards
        return slice(int(self.offsets[index * v]), int(self.offsets[(index + 1) * v]))

    def arrange(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Bring values ``[rows read, …]`` into the final order ``[rows kept, …]``."""
        kept = self.position >= 0
        out = np.empty((len(self.row_id), *values.shape[1:]), values.dtype)
        out[self.position[kept]] = values[kept]
        return out


def count_shards(train_rows: int, asked: int | str, row_bytes: int = 0) -> int:
    """Choose V: a power of two near a shard for every 4096 training rows, at most one a training row.

    It depends on nothing but the number of training rows, and on how large their texts and images are (``row_bytes``), so that
    it never differs between clusters.
    """
    if isinstance(asked, int):
        return max(1, min(asked, train_rows))
    rows = max(1, min(ROWS_PER_SHARD, SHARD_BYTES // max(1, row_bytes)))
    near = 2 ** round(np.log2(max(1.0, train_rows / rows)))
    return int(max(1, min(max(FEWEST, min(near, MOST)), train_rows)))


def deal(parts: npt.NDArray[np.int8], strata: npt.NDArray[np.int64], n_shards: int) -> npt.NDArray[np.int32]:
    """Deal the rows of each part over the shards like cards, class after class.

    Parameters
    ----------
    parts
        In key order, ``[n]``; -1 where left out.
    strata
        Class of each row, ``[n]``; zeros where there are none.
    n_shards
        V.

    Returns
    -------
    int32 ``[n]``: slot, or -1. Within a part, the rows of a class and the rows of all classes differ by at
    most one
    between two shards, and the longer shards come first.
    """
    slots = np.full(len(parts), -1, np.int32)
    for part in range(len(SPLITS)):
        rows = np.flatnonzero(parts == part)
        rows = rows[by_stratum(strata[rows])]
        slots[rows] = part * n_shards + np.arange(len(rows)) % n_shards
    return slots


def make_plan(
    order: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    parts: npt.NDArray[np.int8],
    strata: npt.NDArray[np.int64],
    n_shards: int,
    rows_read: int,
) -> Plan:
    """Turn parts into a plan.

    Parameters
    ----------
    order
        Index, in the order of reading, of each labelled row in key order, ``[n]``.
    ids, parts, strata
        `row_ids`, part and class of each row in key order, ``[n]``.
    n_shards
        V.
    rows_read
        All rows, unlabelled ones included.
    """
    slots = deal(parts, strata, n_shards)
    kept = np.flatnonzero(slots >= 0)
    offsets = np.zeros(3 * n_shards + 1, np.int64)
    np.cumsum(np.bincount(slots[kept], minlength=3 * n_shards), out=offsets[1:])
    final = kept[by_stratum(slots[kept])]
    del slots, kept
    position = np.full(rows_read, -1, np.int64)
    position[order[final]] = np.arange(len(final))
    return Plan(n_shards, position, offsets, ids[final])


def row_ids(keys: U64) -> npt.NDArray[np.int64]:
    """Return an id for each row: its content key, changed for the second and later of equal rows.

    Equal rows can stand for each other, so which of them is the second does not matter.

    Parameters
    ----------
    keys
        Content keys, equal ones next to each other, ``[n]``.
    """
    ids = keys.copy()
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    if len(again):
        starts = np.flatnonzero(np.diff(again, prepend=-1) != 1)
        nth = np.arange(1, len(again) + 1) - np.repeat(starts, np.diff(starts, append=len(again)))
        ids[again] = mix(keys[again] + nth.astype(np.uint64) * _STEP)
    return ids.view(np.int64)
