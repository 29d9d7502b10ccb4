"""The plan of an epoch: which rows make up which global batch, whoever reads them.

The V logical shards are dealt like cards: global position p of an epoch lies in shard ``p mod V``, at place
``p div V`` of that shard's permutation for the epoch. A step is a contiguous range of positions, so all batches
are even to one row, every row is read once an epoch, and worker w of W takes the positions whose shard v has
``v mod W = w``. Nothing here depends on W but that last choice.

Shape legend: V shards, W workers, S steps an epoch, N rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.errors import DataError
from shoal.cluster.resources import refuse_idle
from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.hashing import generator

Index = NDArray[np.int64]

_EPOCH_STREAM = 1  # first word of the spawn key: what the draw is for


def resolve_batch_size(batch_size: int | Literal["auto", "full"], rows: int) -> int:
    """Return the rows of a global batch.

    ``auto`` is the power of two at or above rows / 64, kept between 32 and 1024: small data get enough
    steps to learn from, large data get batches that keep the processor busy.
    """
    if batch_size == "full":
        return rows
    if batch_size == "auto":
        return min(rows, int(np.clip(2 ** int(np.ceil(np.log2(max(rows, 64) / 64))), 32, 1024)))
    return min(rows, batch_size)


# A shard, the positions of it among some, and their rows in it.
Group = tuple[int, slice | Index, Index]


class Places(Protocol):
    """Where the rows of an epoch's positions lie."""

    def groups(self, positions: Index) -> Iterator[Group]:
        """Return the rows of a worker's positions, all of a range of steps, shard by shard."""

    def of(self, positions: Index) -> tuple[Index, Index]:
        """Return shard and row in it of each position, int64."""


@dataclass(frozen=True)
class EpochPlan:
    """Batches of every epoch over N rows in V shards, as a function of the seed alone.

    Parameters
    ----------
    shard_rows
        Rows of each shard; the first ``N mod V`` hold one row more than the others.
    batch_size
        Largest number of rows in a global batch.
    seed
        Root of the permutations.

    Raises
    ------
    DataError
        If the shards are not dealt evenly, or there are no rows.
    """

    shard_rows: tuple[int, ...]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        rows, n_shards = sum(self.shard_rows), len(self.shard_rows)
        if rows == 0:
            raise DataError(
                "there are no training rows; check data.split and the left-out rows of the manifest"
            )
        even = tuple(rows // n_shards + (v < rows % n_shards) for v in range(n_shards))
        if self.shard_rows != even:
            raise DataError(
                f"shards hold {min(self.shard_rows)} to {max(self.shard_rows)} rows; a plan needs them dealt evenly: "
                "shard the data again"
            )

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.shard_rows)

    @property
    def n_shards(self) -> int:
        """V."""
        return len(self.shard_rows)

    @property
    def steps_per_epoch(self) -> int:
        """S, the fewest steps whose batches stay within `batch_size`."""
        return -(-self.rows // self.batch_size)

    def bounds(self, step: int) -> tuple[int, int]:
        """Return the half-open range of positions of a step of an epoch."""
        return step * self.rows // self.steps_per_epoch, (step + 1) * self.rows // self.steps_per_epoch

    def permutation(self, epoch: int, shard: int) -> Index:
        """Return the order in which a shard's rows are read in an epoch, int64 ``[shard rows]``."""
        draw = generator(self.seed, _EPOCH_STREAM, epoch, shard)
        order: Index = draw.permutation(self.shard_rows[shard])
        return order

    def shards_of(self, worker: int, workers: int) -> range:
        """Return the shards that a worker reads.

        Raises
        ------
        ConfigError
            If there are more workers than shards.
        """
        refuse_idle(workers, self.n_shards)
        return range(worker, self.n_shards, workers)

    def positions(self, epoch: int, step: int, stop: int, worker: int, workers: int) -> Index:
        """Return a worker's positions in steps ``step`` to ``stop - 1`` of an epoch, ascending, int64."""
        self.shards_of(worker, workers)
        everyone = np.arange(self.bounds(step)[0], self.bounds(stop - 1)[1], dtype=np.int64)
        own: Index = everyone[self.shard_of(epoch, everyone) % workers == worker]
        return own

    def shard_of(self, epoch: int, positions: Index) -> Index:  # noqa: ARG002 other plans need the epoch
        """Return the shard in which each position of an epoch lies, int64."""
        return positions % self.n_shards

    def places(self, epoch: int, shards: Mapping[int, ShardRows]) -> Places:
        """Return where the rows of positions of an epoch lie, for some of the shards."""
        return EpochPlaces(self, {v: self.permutation(epoch, v) for v in shards})


@dataclass(frozen=True)
class EpochPlaces:
    """Where positions of an epoch lie.

    Parameters
    ----------
    plan
        Of the epoch.
    permutations
        The order of the rows of some shards.
    """

    plan: EpochPlan
    permutations: Mapping[int, Index]

    def of(self, positions: Index) -> tuple[Index, Index]:
        """Return shard and row in it of each position, int64."""
        shard, place = positions % self.plan.n_shards, positions // self.plan.n_shards
        row = np.empty_like(place)
        for v, order in self.permutations.items():
            here = np.flatnonzero(shard == v)
            row[here] = order[place[here]]
        return shard, row

    def groups(self, positions: Index, ahead: int = 0) -> Iterator[Group]:
        """Return the rows of a worker's positions in a range of steps; or those that come so much later in their shards."""
        own, n = len(self.permutations), len(positions)
        for i in range(min(own, n)):  # positions go round the worker's shards, one place further each time
            place, v = divmod(int(positions[i]), self.plan.n_shards)
            places = np.arange(place + ahead, place + ahead + len(range(i, n, own)))
            yield v, slice(i, None, own), np.take(self.permutations[v], places, mode="wrap")
