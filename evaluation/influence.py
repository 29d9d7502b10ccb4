"""Influence of each row on ROC AUC and average precision: the first-order effect of its weight.

The sum of squared influences is the infinitesimal jackknife's variance (Efron 1982, The Jackknife, the
Bootstrap and Other Resampling Plans, chapter 6). For ROC AUC it is DeLong's up to n / (n - 1) (DeLong,
DeLong and Clarke-Pearson 1988, Biometrics 44, equation 3). It costs one sort, however many rows there are.
"""

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.tallies import Floats, score_levels


def _levels(events: NDArray[np.bool_], scores: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    level, m = score_levels(scores)
    total = np.bincount(level, minlength=m).astype(np.float64)
    hits = np.bincount(level, weights=events.astype(np.float64), minlength=m).astype(np.float64)
    return level, hits, total - hits


def roc_auc_influence(events: NDArray[np.bool_], scores: Floats) -> Floats:
    """Influence on the area under the ROC curve, ``[n]``; both classes must be there."""
    level, hits, misses = _levels(events, scores)
    p, n = hits.sum(), misses.sum()
    below = (np.cumsum(misses) - misses / 2) / n
    above = 1 - (np.cumsum(hits) - hits / 2) / p
    area = float(hits @ below) / p
    return np.asarray(np.where(events, (below[level] - area) / p, (above[level] - area) / n))


def average_precision_influence(events: NDArray[np.bool_], scores: Floats) -> Floats:
    """Influence on average precision, ``[n]``; at least one event must be there.

    With T and F the events and others at a score or above, AP = sum_i e_i T_i / (T_i + F_i) / P over
    levels i. One more event at level j adds its own precision and raises that of every
    level i <= j by F_i / (T_i + F_i)^2; one more other lowers those by T_i / (T_i + F_i)^2.
    """
    level, hits, misses = _levels(events, scores)
    t = np.cumsum(hits[::-1])[::-1]
    f = np.cumsum(misses[::-1])[::-1]
    precision = t / (t + f)
    value = float(hits @ precision) / hits.sum()
    gain = np.cumsum(hits * f / (t + f) ** 2)
    loss = np.cumsum(hits * t / (t + f) ** 2)
    raised = (precision - value + gain)[level]
    return np.asarray(np.where(events, raised, -loss[level]) / hits.sum())


def standard_error(influence: Floats, strata: NDArray[np.int64]) -> float:
    """Root of the summed squared influence, centred within strata, with each stratum's n / (n - 1)."""
    counts = np.bincount(strata).astype(np.float64)
    means = np.bincount(strata, weights=influence) / np.maximum(counts, 1)
    squares = np.bincount(strata, weights=(influence - means[strata]) ** 2)
    return float(np.sqrt((squares * counts / np.maximum(counts - 1, 1)).sum()))
