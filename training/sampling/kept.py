"""The plan of an epoch over some of the rows, however many of them each shard has.

Positions go to the shards in proportion to their rows: the j-th of a shard's n rows lies at the share (j + 1/2) / n of the epoch.
So a step has its part of every shard, and which shard has a position depends on the shards' sizes alone.

Shape legend: V shards, N rows that are kept.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.dataset import ShardRows
from shoal.training.plan import EpochPlan, Group, Index


class KeptPlan(EpochPlan):
    """Batches of every epoch over the rows that are kept.

    Parameters
    ----------
    kept
        Rows in each of this worker's shards that take part, by shard.
    shard_rows
        How many take part in each shard, ``[V]``.
    batch_size, seed
        As for `EpochPlan`.

    Raises
    ------
    DataError
        If no row takes part.
    """

    kept: Mapping[int, Index]
    shard: Index  # of each position, [N]
    place: Index  # among the shard's rows, [N]

    def __init__(
        self, kept: Mapping[int, Index], shard_rows: tuple[int, ...], batch_size: int, seed: int
    ) -> None:
        super().__init__(shard_rows, batch_size, seed)
        sizes = np.array(shard_rows)
        shard = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(shard)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = np.lexsort((shard, (place + 0.5) / sizes[shard]))
        for name, value in {"kept": kept, "shard": shard[order], "place": place[order]}.items():
            object.__setattr__(self, name, value)  # a frozen dataclass

    def __post_init__(self) -> None:
        """Take shards of any size."""
        if not self.rows:
            raise DataError("there are no training rows to plan for")

    def shard_of(self, epoch: int, positions: Index) -> Index:  # noqa: ARG002 the same in every epoch
        """Return the shard in which each position of an epoch lies, int64."""
        found: Index = self.shard[positions]
        return found

    def places(self, epoch: int, shards: Mapping[int, ShardRows]) -> "KeptPlaces":
        """Return where the rows of positions of an epoch lie, for some of the shards."""
        return KeptPlaces(self, {v: self.kept[v][self.permutation(epoch, v)] for v in shards})


class KeptPlaces:
    """Where positions of an epoch lie; see `plan.Places`. ``rows`` are those of some shards, in the epoch's order."""

    def __init__(self, plan: KeptPlan, rows: Mapping[int, Index]) -> None:
        self.plan, self.rows = plan, rows

    def groups(self, positions: Index) -> Iterator[Group]:
        """Return the rows of positions, shard by shard."""
        shard, place = self.plan.shard[positions], self.plan.place[positions]
        for v in np.unique(shard).tolist():
            here = np.flatnonzero(shard == v)
            yield v, here, self.rows[v][place[here]]

    def of(self, positions: Index) -> tuple[Index, Index]:
        """Return shard and row in it of each position, int64."""
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for v, here, rows in self.groups(positions):
            shard[here], row[here] = v, rows
        return shard, row
