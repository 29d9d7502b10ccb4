"""The threshold that is best on held-out rows of a binary task."""

from collections.abc import Callable

import numpy as np

from shoal.evaluation.tallies import Array, Floats, rank_tally, score_levels
from shoal.training.costs import NO_AMOUNTS, Amounts, Costs

_NOISE = 1e-9  # share of the spread of the values that decides nothing


def tallies(y: Array, scores: Floats) -> tuple[Floats, Floats]:
    """Count decisions for every threshold that makes a difference.

    Returns
    -------
    edges
        ``[m + 2]``: 0, the m distinct scores, 1; the decisions are the same for thresholds above one edge up to the next.
    sums
        A decision tally, as `tallies.decision_tally`, of each of these m + 1 stretches: ``[m + 1, 8]``.
    """
    events, others = rank_tally(y == 1, scores)
    missed = np.concatenate([[0.0], np.cumsum(events)])
    left_alone = np.concatenate([[0.0], np.cumsum(others)])
    hits, false = missed[-1] - missed, left_alone[-1] - left_alone
    columns = [
        left_alone, hits, left_alone + missed, hits + false, np.full_like(hits, others.sum()),
        np.full_like(hits, events.sum()), left_alone + hits, np.full_like(hits, len(y)),
    ]  # fmt: skip
    return _edges(scores), np.stack(columns, axis=1)


def costs_of(y: Array, scores: Floats, costs: Costs, amounts: Amounts = NO_AMOUNTS) -> Floats:
    """Return the cost of all rows for thresholds in each of the stretches of `tallies`, ``[m + 1]``."""
    event, other = (np.broadcast_to(costs.of(y, k, amounts), y.shape) for k in (1, 0))
    level, m = score_levels(scores)
    saved = np.bincount(level, weights=other - event, minlength=m)
    return np.asarray(float(event.sum()) + np.concatenate([[0.0], np.cumsum(saved)]))


def cheapest_threshold(y: Array, scores: Floats, costs: Costs, amounts: Amounts = NO_AMOUNTS) -> float:
    """Return the threshold of lowest cost, as `best_threshold` chooses among several; `amounts` are the rows' cost columns."""
    return _widest(_edges(scores), -costs_of(y, scores, costs, amounts))


def best_threshold(y: Array, scores: Floats, value: Callable[[Floats], Floats]) -> float:
    """Return the threshold of the highest value: the middle of its stretch, of the widest where several tie.

    Parameters
    ----------
    y, scores
        int64 ``[n]``, 1 the event, and its probabilities ``[n]``.
    value
        Decision tallies ``[..., 8]`` -> what is to be high ``[...]``.
    """
    edges, sums = tallies(y, scores)
    return _widest(edges, np.nan_to_num(value(sums), nan=-np.inf))


def _edges(scores: Floats) -> Floats:
    return np.concatenate([[0.0], np.unique(scores), [1.0]])


def _widest(edges: Floats, values: Floats) -> float:
    """Return the middle of the widest stretch of highest value."""
    if edges[-2] == 1.0:  # no threshold is above a score of 1
        values[-1] = -np.inf
    known = values[np.isfinite(values)]
    widths = np.where(values >= known.max() - _NOISE * np.ptp(known), np.diff(edges), -1.0)
    k = int(widths.argmax())
    low, high = float(edges[k]), float(edges[k + 1])
    middle = (low + high) / 2
    return middle if middle > low else high
