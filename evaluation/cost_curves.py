"""What decisions cost over all thresholds, and over all class shares and costs.

Shapes: n rows, m distinct scores, P points.
"""

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.deciding.threshold import costs_of
from shoal.evaluation.tallies import Array, Floats, rank_tally
from shoal.training.costs import NO_AMOUNTS, Amounts, Costs

POINTS = 201


def rates(events: NDArray[np.bool_], decided: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the shares of events that are missed and of others that are taken for events; both must be there."""
    return float((~decided[events]).mean()), float(decided[~events].mean())


def probability_cost(share: float, costs: Costs) -> float:
    """Return PC(+): the share of missed events in the cost of deciding everything wrong, where `share` of rows are events.

    The costs are numbers.

    References
    ----------
    Drummond and Holte (2006), Cost curves: an improved method for visualizing classifier performance, Machine Learning
    65, equation 4.
    """
    excess = costs.excess.matrix
    missed, false = share * excess[1, 0], (1 - share) * excess[0, 1]
    return float(missed / (missed + false))


def normalised_cost(missed: float | Floats, false: float | Floats, pc: float | Floats) -> Floats:
    """Return the cost above that of deciding all right, in units of deciding all wrong (their equation 5)."""
    return np.asarray(missed * np.asarray(pc) + false * (1 - np.asarray(pc)))


def lower_envelope(events: NDArray[np.bool_], scores: Floats, points: int = POINTS) -> tuple[Floats, Floats]:
    """Return PC(+) from 0 to 1 and the least normalised cost over all thresholds there: two float64 ``[P]``."""
    hits, others = rank_tally(events, scores)
    missed = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
    false = 1 - np.concatenate([[0.0], np.cumsum(others) / others.sum()])
    grid = np.linspace(0, 1, points)
    return grid, np.array([normalised_cost(missed, false, pc).min() for pc in grid])


def cost_by_threshold(
    y: Array, scores: Floats, costs: Costs, thresholds: Floats, amounts: Amounts = NO_AMOUNTS
) -> Floats:
    """Return the mean cost of a row ``[P]`` at each threshold ``[P]``, above 0 and at most 1."""
    stretch = np.searchsorted(np.unique(scores), thresholds, side="left")
    return np.asarray(costs_of(y, scores, costs, amounts)[stretch] / len(y))
