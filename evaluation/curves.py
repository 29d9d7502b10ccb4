"""Points of the ROC and precision-recall curves, thinned for plotting, and the confusion matrix."""

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.tallies import Array, Floats, rank_tally

POINTS = 500


def roc_curve(events: NDArray[np.bool_], scores: Floats, points: int = POINTS) -> tuple[Floats, Floats]:
    """Return false and true positive rates, both rising from 0 to 1: two float64 ``[<= points]``.

    Both classes must be there. Thinned evenly along the curve's length (the city-block one, 2 in all), so
    that no kept point is further than 2 / points from its neighbour unless a tie makes it so.
    """
    hits, misses = (tally[::-1] for tally in rank_tally(events, scores))
    true = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
    false = np.concatenate([[0.0], np.cumsum(misses) / misses.sum()])
    kept = _thin(true + false, points)
    return false[kept], true[kept]


def precision_recall_curve(
    events: NDArray[np.bool_], scores: Floats, points: int = POINTS
) -> tuple[Floats, Floats]:
    """Return recall, rising, and precision at each threshold: two float64 ``[<= points]``.

    Events must be there. Drawn as steps that fall after each point; thinned evenly along its length.
    """
    hits, misses = (tally[::-1] for tally in rank_tally(events, scores))
    true = np.cumsum(hits)
    recall, precision = true / true[-1], true / (true + np.cumsum(misses))
    length = np.cumsum(np.abs(np.diff(recall, prepend=0.0)) + np.abs(np.diff(precision, prepend=1.0)))
    kept = _thin(length, points)
    return recall[kept], precision[kept]


def confusion_matrix(y: Array, decisions: Array, n_classes: int) -> NDArray[np.int64]:
    """Count rows by true class (rows) and predicted class (columns): int64 ``[K, K]``."""
    cells = np.bincount(y * n_classes + decisions, minlength=n_classes**2)
    return cells.astype(np.int64).reshape(n_classes, n_classes)


def _thin(length: Floats, points: int) -> NDArray[np.int64]:
    """Choose at most `points` indices, evenly by a rising length, with the first and the last."""
    if len(length) <= points:
        return np.arange(len(length))
    wanted = np.linspace(length[0], length[-1], points)
    kept = np.unique(np.searchsorted(length, wanted))
    kept[0], kept[-1] = 0, len(length) - 1
    return kept
