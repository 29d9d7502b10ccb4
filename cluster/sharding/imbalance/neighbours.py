"""Nearest neighbours among training rows: exact up to a limit, approximate above it.

One thread, so that equal distances come out in the same order on any machine with the same versions.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from shoal.cluster.sharding.hashing import generator
from shoal.cluster.sharding.imbalance.rows import Index
from shoal.cluster.sharding.prepare import Prepared

Points = Any  # float32 [n, F]: an array, or a sparse matrix of scipy, which mypy cannot see

_PIVOTS, _TIES = 11, 12  # first words of spawn keys: what the draws are for
_PROBES = 32  # cells searched for each row: those whose pivots are nearest to its own cell's


def points(rows: Prepared, nominal: list[int]) -> Points:
    """Return where rows lie for distances.

    Missing numbers count as the training mean, which is 0. A nominal column that differs adds the square of the median of
    the numbers' standard deviations to the squared distance (Chawla et al. 2002, section 6.1).

    Parameters
    ----------
    rows
        ``[n, D]`` and ``[n, C]``.
    nominal
        Those of the D numbers that are nominal too.

    Returns
    -------
    float32 ``[n, D]``, or a sparse matrix where there are nominal columns.
    """
    numbers = np.delete(rows.numeric, nominal, axis=1)  # a copy: the rows may be mapped read-only
    np.nan_to_num(numbers, copy=False, nan=0.0)
    codes = [rows.categorical[:, i] for i in range(rows.categorical.shape[1])]
    codes += [np.nan_to_num(rows.numeric[:, i], nan=2.0).astype(np.int32) for i in nominal]
    if not codes:
        return numbers
    n = len(numbers)
    # In float64, and before the division: a constant column has no spread, not one of rounding.
    spread = float(np.median(numbers.std(axis=0, dtype=np.float64))) if numbers.shape[1] else 1.0
    weight = np.float32((spread or 1.0) / np.sqrt(2.0))  # two entries differ where a category does
    first = np.cumsum([0, *(int(code.max(initial=0)) + 1 for code in codes)])
    columns = np.stack([code + start for code, start in zip(codes, first, strict=False)], axis=1)
    one_hot = sparse.csr_matrix(
        (
            np.full(columns.size, weight, np.float32),
            columns.reshape(-1),
            np.arange(0, columns.size + 1, len(codes)),
        ),
        shape=(n, int(first[-1])),
    )
    return sparse.hstack([sparse.csr_matrix(numbers), one_hot], format="csr", dtype=np.float32)


@dataclass(frozen=True)
class Neighbourhood:
    """Rows among which neighbours are looked for.

    Parameters
    ----------
    points
        ``[n, F]``.
    whose
        What the rows are, in words.
    exact_up_to
        The neighbours of all rows are exact up to this many; those of some rows, up to as many distances.
    seed
        Of the draw of the pivots.
    notices
        Gets a sentence where neighbours are approximate.
    mixed
        Whether the rows are of several classes, one after the other: equal distances, as of duplicates, are then settled by a
        draw and not by that order, which would favour a class.
    """

    points: Points
    whose: str
    exact_up_to: int
    seed: int
    notices: list[str]
    mixed: bool = False

    def __len__(self) -> int:
        """Return n."""
        return int(self.points.shape[0])

    def of_members(self, members: Index, k: int) -> Index:
        """Return the k nearest other rows of some of the rows, nearest first; int64 ``[len(members), k]``.

        A row is left out by its identity, so that its duplicates may be its neighbours. k is below n.
        """
        from threadpoolctl import threadpool_limits

        enough = math.ceil(math.sqrt(len(members) * len(self)))
        with threadpool_limits(1):
            if enough <= self.exact_up_to:
                order = self._order()
                found = order[_exact(self.points[order], self.points[members], k + 1)]
            else:
                found = self._approximate(members, k + 1)
                self.notices.append(
                    f"neighbours among the {len(self):,} rows of {self.whose} are approximate; exact_up_to: {enough} makes them "
                    "exact"
                )
        itself = found == members[:, None]
        itself[~itself.any(axis=1), -1] = True  # among more than k duplicates: as near as any
        return np.asarray(found[~itself].reshape(len(members), k), np.int64)

    def _order(self) -> Index:
        """Return the order in which rows of equal distance come: all of them as they are, or a permutation ``[n]``."""
        n = len(self)
        return generator(self.seed, _TIES).permutation(n) if self.mixed else np.arange(n)

    def _approximate(self, members: Index, k: int) -> Index:
        """Search the cells near a row's own: those of the nearest of √n pivots drawn from the rows."""
        from sklearn.metrics import pairwise_distances_argmin

        n = len(self)
        draw = generator(self.seed, _PIVOTS)
        pivots = self.points[np.sort(draw.choice(n, int(np.sqrt(n)), replace=False))]
        cell = np.asarray(pairwise_distances_argmin(self.points, pivots), np.int64)
        order = np.argsort(cell, kind="stable")
        starts = np.searchsorted(cell[order], np.arange(pivots.shape[0] + 1))
        near, rank = _exact(pivots, pivots, pivots.shape[0]), np.empty(n, np.int64)
        rank[self._order()] = np.arange(n)
        found = np.empty((len(members), k), np.int64)
        of_members = cell[members]
        for c in np.unique(of_members):
            asking = np.flatnonzero(of_members == c)
            cells, rows = 0, 0
            while (
                cells < min(_PROBES, len(near)) or rows < k
            ):  # as many more as it takes to have k rows at all
                rows += int(starts[near[c, cells] + 1] - starts[near[c, cells]])
                cells += 1
            candidates = np.concatenate([order[starts[j] : starts[j + 1]] for j in near[c, :cells]])
            candidates = candidates[np.argsort(rank[candidates])]
            found[asking] = candidates[_exact(self.points[candidates], self.points[members[asking]], k)]
        return found


def _exact(among: Points, of: Points, k: int) -> Index:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k).fit(among)
    return np.asarray(search.kneighbors(of, return_distance=False), np.int64)
