"""Partial dependence and individual conditional expectation: answers with a column's cells set to one value after another.

Shape legend: n rows, P cells of a row, m values, K outputs.

References
----------
Friedman (2001), Greedy function approximation, Annals of Statistics 29, equation 53; Goldstein et al. (2015), Peeking inside the
black box, JCGS 24, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats.mstats import mquantiles

from shoal.evaluation.explain.permutation import BLOCK
from shoal.evaluation.explain.subject import Cells, Floats, Positions, Predict

PERCENTILES = (0.05, 0.95)


@dataclass(frozen=True)
class Dependence:
    """Answers by value.

    Parameters
    ----------
    mean
        float64 ``[m, K]``, the partial dependence.
    individual
        float64 ``[n', m, K]``, of the rows that were asked for.
    """

    mean: Floats
    individual: Floats


def numeric_grid(values: Floats, points: int = 100) -> Floats:
    """Return the values at which a number is tried: scikit-learn's.

    All that occur where they are fewer than `points`; otherwise evenly spaced ones from the 5th to the 95th percentile. Missing
    ones (NaN) are none.
    """
    there = np.asarray(values, np.float64)
    there = there[~np.isnan(there)]
    unique = np.unique(there)
    if len(unique) < points:
        return unique
    low, high = mquantiles(there, prob=PERCENTILES)
    if np.allclose(low, high):  # most rows have one value: the range of all shows more
        low, high = unique[0], unique[-1]
    return np.linspace(low, high, points)


def dependence(
    predict: Predict,
    cells: Cells,
    positions: Positions,
    values: Cells,
    individual: Sequence[int] = (),
    block: int = BLOCK,
) -> Dependence:
    """Set a column's cells, or those of several columns, to one value after another.

    Parameters
    ----------
    cells
        ``[n, P]``: over these rows answers are averaged.
    values
        Cells ``[m, w]`` of the values, in the order of `positions`.
    individual
        Rows whose own answers are returned too.
    """
    kept, means = list(individual), []
    alone: list[Floats] = []
    at = list(positions)
    for value in values:
        answers = []
        for start in range(0, len(cells), block):
            work = cells[start : start + block].copy()
            work[:, at] = value
            answers.append(predict(work))
        every = np.concatenate(answers)
        means.append(every.mean(axis=0))
        alone.append(every[kept])
    return Dependence(np.stack(means), np.stack(alone, axis=1))


def crossed(first: Cells, second: Cells) -> Cells:
    """Return all pairs of values ``[m1, w1]`` and ``[m2, w2]`` as ``[m1 m2, w1 + w2]``, the second running faster."""
    pairs = product(range(len(first)), range(len(second)))
    one, other = (list(numbers) for numbers in zip(*pairs, strict=True))
    return np.concatenate([first[one], second[other]], axis=1)
