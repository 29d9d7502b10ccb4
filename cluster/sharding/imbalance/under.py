"""Rows of the larger classes that stay: the under-samplers and the cleaning ones."""

import numpy as np
import numpy.typing as npt

from shoal.cluster.sharding.hashing import generator
from shoal.cluster.sharding.imbalance.config import (
    ClusterCentroidsConfig,
    NearMissConfig,
)
from shoal.cluster.sharding.imbalance.neighbours import Neighbourhood, Points, points
from shoal.cluster.sharding.imbalance.rows import BLOCK, Given, Index, TrainingRows, nominal_parts, take
from shoal.cluster.sharding.prepare import Prepared

_CELLS = 1 << 22  # distances held at a time
_TILE = 512  # rows of a tile of distances, which stays in the processor's cache
_DRAWS = 13  # first word of the spawn key: what the draw is for


def at_random(rows: TrainingRows, wanted: dict[int, int], seed: int, *, copies: bool) -> Index:
    """Keep a random part of each class.

    Parameters
    ----------
    rows
        Training rows.
    wanted
        Class code to rows that stay; other classes stay whole.
    seed
        Root of the draws.
    copies
        Whether a row may stay more than once.
    """
    kept = []
    for code, count in enumerate(rows.counts):
        own = np.arange(rows.of_class(code).start, rows.of_class(code).stop)
        if code in wanted:
            own = np.sort(
                generator(seed, _DRAWS, code).choice(
                    own, wanted[code], replace=copies or wanted[code] > count
                )
            )
        kept.append(own)
    return np.concatenate(kept)


def copied(rows: TrainingRows, more: dict[int, int], seed: int) -> Index:
    """Add copies of random rows of each class to all rows; class code to copies."""
    drawn = [
        generator(seed, _DRAWS, code).integers(rows.of_class(code).start, rows.of_class(code).stop, n)
        for code, n in more.items()
    ]
    return np.sort(np.concatenate([np.arange(len(rows)), *drawn]))


def near_miss(rows: TrainingRows, config: NearMissConfig, wanted: dict[int, int]) -> Index:
    """Keep the rows of the larger classes that are near the smallest class.

    1: least mean distance to the nearest rows of the smallest class. 2: to its farthest rows. 3: of the rows that are among the
    nearest of any row of the smallest class, those with the greatest mean distance to it. Equal distances: the earlier row.

    References
    ----------
    Mani and Zhang (2003), kNN approach to unbalanced data distributions.
    """
    everything = points(rows.rows, nominal_parts(rows.schema))
    there = np.where(rows.counts > 0, rows.counts, np.iinfo(np.int64).max)
    smallest = everything[rows.of_class(int(np.argmin(there)))]
    kept = []
    for code in range(len(rows.counts)):
        own = rows.of_class(code)
        index = np.arange(own.start, own.stop)
        if code in wanted:
            lie, n = everything[own], wanted[code]
            if config.version == 1:
                chosen = nearest_on_average(lie, smallest, config.n_neighbors, n)
            elif config.version == 2:
                chosen = np.argsort(_farthest(lie, smallest, config.n_neighbors), kind="stable")[:n]
            else:
                near = np.unique(_nearest(lie, smallest, config.n_neighbors_ver3)[1])
                far = _nearest(smallest, lie[near], config.n_neighbors)[0].sum(axis=1)
                chosen = near[np.argsort(-far, kind="stable")[:n]]
            index = index[np.sort(chosen)]
        kept.append(index)
    return np.concatenate(kept)


def nearest_on_average(of: Points, among: Points, k: int, n: int) -> Index:
    """Find the n rows with the least sum of distances to their k nearest others.

    Exact, but most rows are never searched: k times the distance to the nearest is at most that sum. So rows are searched in the
    order of that bound, until it is above the n-th least sum found.

    Parameters
    ----------
    of
        ``[m, F]``.
    among
        Where their neighbours are, ``[s, F]``.
    k, n
        Neighbours; rows wanted.

    Returns
    -------
    int64 ``[n]`` in the order of their sums, earlier rows first among equal ones.
    """
    m = of.shape[0]
    bound = min(k, among.shape[0]) * _at_least(of, among) if isinstance(of, np.ndarray) else np.zeros(m)
    order = np.argsort(bound, kind="stable")
    sums = np.empty(0)
    while len(sums) < m:
        if len(sums) >= n and bound[order[len(sums)]] > np.partition(sums, n - 1)[n - 1]:
            break
        batch = order[len(sums) : len(sums) + max(n, BLOCK)]
        sums = np.concatenate([sums, _nearest(among, of[batch], k)[0].sum(axis=1)])
    searched = order[: len(sums)]
    return searched[np.lexsort((searched, sums))[:n]]


def _at_least(of: npt.NDArray[np.float32], among: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return a lower bound of each row's distance to the nearest of some others: float32 products less their rounding."""
    from threadpoolctl import threadpool_limits

    square = np.einsum("ij,ij->i", among, among)
    # |y|^2 - 2 x y as one product: the least of it over y, plus |x|^2, is the squared distance.
    product = np.concatenate([-2.0 * among, square[:, None]], axis=1).T.astype(np.float32)
    found = np.empty(len(of))
    with threadpool_limits(1):
        for start in range(0, len(of), _TILE):
            x = of[start : start + _TILE]
            one = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
            least = np.full(len(x), np.inf, np.float32)
            for first in range(0, len(among), _TILE):
                np.minimum(least, (one @ product[:, first : first + _TILE]).min(axis=1), out=least)
            own = np.einsum("ij,ij->i", x, x, dtype=np.float64)
            # Higham (2002), section 3.1: a product of F terms is off by F units of rounding of the sum of their sizes.
            error = 2.0 * (one.shape[1] + 2) * np.finfo(np.float32).eps * (own + float(square.max()))
            found[start : start + _TILE] = np.sqrt(np.maximum(own + least - error, 0.0))
    return found


def _nearest(among: Points, of: Points, k: int) -> tuple[npt.NDArray[np.float64], Index]:
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        distance, index = NearestNeighbors(n_neighbors=min(k, among.shape[0])).fit(among).kneighbors(of)
    return np.asarray(distance, np.float64), np.asarray(index, np.int64)


def _farthest(of: Points, among: Points, k: int) -> npt.NDArray[np.float64]:
    """Return the sum of each row's distances to the k rows that are farthest from it, a block at a time; float64 ``[n]``."""
    from sklearn.metrics.pairwise import euclidean_distances
    from threadpoolctl import threadpool_limits

    k, others = min(k, among.shape[0]), among.astype(np.float64)
    rows = max(1, _CELLS // among.shape[0])
    sums = np.empty(of.shape[0])
    with threadpool_limits(1):
        for start in range(0, len(sums), rows):
            block = euclidean_distances(of[start : start + rows].astype(np.float64), others)
            sums[start : start + rows] = np.partition(block, -k, axis=1)[:, -k:].sum(axis=1)
    return sums


def without_disagreeing(
    among: Neighbourhood, labels: Index, classes: set[int], n_neighbors: int, kind_sel: str
) -> npt.NDArray[np.bool_]:
    """Find the rows that agree with their neighbours (Wilson 1972).

    Parameters
    ----------
    among
        All rows, ``n``.
    labels
        int64 ``[n]``.
    classes
        Whose rows may go.
    n_neighbors, kind_sel
        How many neighbours, and whether ``all`` of them or their commonest class (``mode``) must agree.

    Returns
    -------
    bool ``[n]``: which rows stay.
    """
    from scipy.stats import mode

    stay = np.ones(len(labels), np.bool_)
    members = np.flatnonzero(np.isin(labels, list(classes)))
    around = labels[among.of_members(members, min(n_neighbors, len(labels) - 1))]
    own = labels[members]
    stay[members] = (
        (around == own[:, None]).all(axis=1)
        if kind_sel == "all"
        else mode(around, axis=1, keepdims=False)[0] == own
    )
    return stay


def without_tomek_links(among: Neighbourhood, labels: Index, classes: set[int]) -> npt.NDArray[np.bool_]:
    """Find the rows that are in no Tomek link, or of a class that stays whole (Tomek 1976); bool ``[n]``."""
    first = among.of_members(np.arange(len(labels)), 1)[:, 0]
    link = (first[first] == np.arange(len(labels))) & (labels[first] != labels)
    return np.asarray(~(link & np.isin(labels, list(classes))), np.bool_)


def cluster_centroids(
    rows: TrainingRows, config: ClusterCentroidsConfig, wanted: dict[int, int], seed: int
) -> tuple[Index, Given, Index]:
    """Put the centres of k-means clusters, or the rows nearest to them, in the place of each class asked for.

    Returns
    -------
    Rows that stay, rows that are made, and the class of each of these.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    kept, centres, labels = [], [], []
    for code in range(len(rows.counts)):
        own = rows.of_class(code)
        index = np.arange(own.start, own.stop)
        if code in wanted and wanted[code] < len(index):
            lie = points(take(rows.rows, own), [])
            state = int(np.random.SeedSequence(seed, spawn_key=(_DRAWS, code)).generate_state(1)[0])
            with threadpool_limits(1):
                found = KMeans(wanted[code], n_init=1, random_state=state).fit(lie).cluster_centers_
            if config.voting == "hard":
                index = own.start + np.unique(_nearest(lie, found, 1)[1][:, 0])
            else:
                index = index[:0]
                centres.append(found.astype(np.float32))
                labels.append(np.full(len(found), code, np.int64))
        kept.append(index)
    width = rows.rows.numeric.shape[1]
    numeric = np.concatenate([np.empty((0, width), np.float32), *centres])
    made = Prepared(numeric, np.empty((len(numeric), 0), np.int32))
    return (
        np.concatenate(kept),
        Given(made, np.full((len(numeric), 2), -1, np.int64)),
        np.concatenate([np.empty(0, np.int64), *labels]),
    )
