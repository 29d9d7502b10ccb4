"""The plan of an epoch with a fixed share of each class in every step.

A step's rows of a class are the next ones of that class's *stream*: its rows in a random order, then in another one, and so
on through the whole fit. So a class with fewer rows than the plan takes comes round more than once an epoch, each of its rows
equally often to one, and a class with more needs several epochs to come round.

Nothing here depends on the number of workers but which of the rows are whose.

Shape legend: V shards, K classes, S steps an epoch, N rows.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.hashing import generator
from shoal.training.plan import EpochPlan, Group, Index

_STEPS, _SHARDS, _ROWS = 3, 4, 5  # first words of spawn keys: what a draw is for


class ClassPlan(EpochPlan):
    """Batches of every epoch with given shares of the classes.

    Parameters
    ----------
    class_rows
        Rows of each class in each shard, ``[V, K]``; of a class, they differ by at most one between shards.
    shares
        Of each class in every step, ``[K]``, adding up to 1.
    batch_size, seed
        As for `EpochPlan`.

    Raises
    ------
    DataError
        If the rows of a class are not dealt evenly.
    """

    class_rows: NDArray[np.int64]
    totals: Index  # rows of each class in an epoch
    quotas: Callable[[int], tuple[Index, Index]]
    order: Callable[[int, int], tuple[Index, Index]]

    def __init__(
        self, class_rows: NDArray[np.int64], shares: NDArray[np.float64], batch_size: int, seed: int
    ) -> None:
        super().__init__(tuple(class_rows.sum(axis=1).tolist()), batch_size, seed)
        if (class_rows.max(axis=0) - class_rows.min(axis=0) > 1).any():
            raise DataError("the rows of a class are not dealt evenly over the shards: shard the data again")
        found = {
            "class_rows": class_rows,
            "totals": _whole(shares * self.rows, self.rows),
            "quotas": lru_cache(2)(self._quotas),
            "order": lru_cache(64)(self._shard_order),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)  # a frozen dataclass

    def _quotas(self, epoch: int) -> tuple[Index, Index]:
        """Return the rows of each class in each step of an epoch ``[S, K]``, and in the steps before it.

        Every step gets the whole part of a class's mean, and some steps one row more. These rows are dealt like cards, class
        after class, over the steps in a random order that begins with the longer ones, so that every step has its size.
        """
        steps, mean = self.steps_per_epoch, self.totals // self.steps_per_epoch
        extra = self.totals - mean * steps
        bounds = np.array([self.bounds(step)[0] for step in range(steps)] + [self.rows])
        draw = generator(self.seed, _STEPS, epoch)
        longer = np.diff(bounds) - mean.sum() > extra.sum() // steps
        order = draw.permutation(steps)
        order = order[np.argsort(~longer[order], kind="stable")]
        quotas = np.tile(mean, (steps, 1))
        first = 0
        for code, count in enumerate(extra.tolist()):
            quotas[order[(first + np.arange(count)) % steps], code] += 1
            first += count
        before = np.concatenate([np.zeros((1, len(mean)), np.int64), np.cumsum(quotas, axis=0)[:-1]])
        return quotas, before

    def _shard_order(self, code: int, cycle: int) -> tuple[Index, Index]:
        """Return the order in which a class's rows come from the shards, and that of its last rows, which not all have."""
        rows = self.class_rows[:, code]
        draw = generator(self.seed, _SHARDS, code, cycle)
        return draw.permutation(self.n_shards), draw.permutation(np.flatnonzero(rows > rows.min()))

    def streams(self, epoch: int, positions: Index) -> tuple[Index, Index, Index, Index]:
        """Return class, round of its stream, shard, and place among the class's rows there, of each position."""
        quotas, before = self.quotas(epoch)
        step = ((positions + 1) * self.steps_per_epoch - 1) // self.rows
        within = positions - step * self.rows // self.steps_per_epoch
        upto = np.cumsum(quotas[step], axis=1)
        code = (within[:, None] >= upto).sum(axis=1)
        each = np.arange(len(positions))
        nth = within - (upto[each, code] - quotas[step, code])
        stream = epoch * self.totals[code] + before[step, code] + nth
        rows = self.class_rows.sum(axis=0)[code]
        cycle, place = stream // rows, stream % rows
        shard, depth = np.empty_like(place), place // self.n_shards
        for (c, k), here in _together(code, cycle):
            order, last = self.order(c, k)
            whole = int(self.class_rows[:, c].min()) * self.n_shards
            at = place[here]
            early = at < whole
            shard[here[early]] = order[at[early] % self.n_shards]
            shard[here[~early]] = last[at[~early] - whole]
            depth[here[~early]] = whole // self.n_shards
        return code, cycle, shard, depth

    def shard_of(self, epoch: int, positions: Index) -> Index:
        """Return the shard in which each position of an epoch lies, int64."""
        return self.streams(epoch, positions)[2]

    def places(self, epoch: int, shards: Mapping[int, ShardRows]) -> "ClassPlaces":
        """Return where the rows of positions of an epoch lie, for some of the shards."""
        return ClassPlaces(self, epoch, shards)


class ClassPlaces:
    """Where positions of an epoch lie; see `plan.Places`."""

    def __init__(self, plan: ClassPlan, epoch: int, shards: Mapping[int, ShardRows]) -> None:
        self.plan, self.epoch = plan, epoch
        classes = range(len(plan.totals))
        self._rows = {(v, c): np.flatnonzero(s.label == c) for v, s in shards.items() for c in classes}

    def groups(self, positions: Index) -> Iterator[Group]:
        """Return the rows of positions, shard by shard."""
        code, cycle, shard, depth = self.plan.streams(self.epoch, positions)
        for (v, c, k), here in _together(shard, code, cycle):
            rows = self._rows[v, c]
            if len(rows) > 1:  # a rare class comes round thousands of times, and one row has one order
                rows = rows[generator(self.plan.seed, _ROWS, c, k, v).permutation(len(rows))]
            yield v, here, rows[depth[here]]

    def of(self, positions: Index) -> tuple[Index, Index]:
        """Return shard and row in it of each position, int64."""
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for v, here, rows in self.groups(positions):
            shard[here], row[here] = v, rows
        return shard, row


def _together(*keys: Index) -> Iterator[tuple[list[int], Index]]:
    """Yield each combination of keys ``[n]`` that there is, in order, and where it is, rising; one sort for all of them."""
    order = np.lexsort(keys[::-1])
    found = np.stack([key[order] for key in keys], axis=1)
    changes = np.flatnonzero((found[1:] != found[:-1]).any(axis=1)) + 1
    for start, stop in pairwise([0, *changes.tolist(), len(order)] if len(order) else []):
        yield found[start].tolist(), order[start:stop]


def _whole(wanted: NDArray[np.float64], total: int) -> Index:
    """Round to whole numbers of the same sum: the largest remainders are rounded up."""
    down = np.floor(wanted + 1e-9).astype(np.int64)
    up = np.argsort(down - wanted, kind="stable")[: total - int(down.sum())]
    down[up] += 1
    return down
