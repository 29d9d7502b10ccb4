"""Columns that go together: their attributions and importances say little about each alone.

Shape legend: n rows, M columns.
"""

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from shoal.evaluation.explain.subject import Floats

STRONG = 0.8  # absolute rank correlation


def rank_correlation(numbers: Floats) -> Floats:
    """Return Spearman's correlation ``[M, M]`` of numbers ``[n, M]``.

    Missing ones (NaN) take the mean rank; a constant column has correlation 0.
    """
    ranks = np.empty_like(numbers, dtype=np.float64)
    for i, column in enumerate(numbers.T):
        there = ~np.isnan(column)
        ranks[~there, i] = (there.sum() + 1) / 2
        ranks[there, i] = rankdata(column[there])
    ranks -= ranks.mean(axis=0)
    size = np.sqrt((ranks**2).sum(axis=0))
    scaled = ranks / np.where(size > 0, size, 1.0)
    return np.asarray(np.clip(scaled.T @ scaled, -1, 1))


def groups(names: Sequence[str], correlation: Floats, strong: float = STRONG) -> list[tuple[str, ...]]:
    """Return groups of columns whose absolute correlations are strong, all with all (complete linkage); none alone."""
    if len(names) < 2:
        return []
    distance = 1.0 - np.abs(correlation)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="complete")
    labels = fcluster(tree, 1.0 - strong, criterion="distance")
    found = [
        tuple(n for n, label in zip(names, labels, strict=True) if label == one) for one in np.unique(labels)
    ]
    return [group for group in found if len(group) > 1]
