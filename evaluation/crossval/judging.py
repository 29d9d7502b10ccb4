"""What the scores of folds say together: a mean with an interval, and a paired comparison.

Shapes: J folds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from shoal.evaluation.tallies import Floats

METHOD = "corrected resampled t over folds"


@dataclass(frozen=True)
class FoldEstimate:
    """A mean over folds with its interval; NaN bounds where one fold alone has a value."""

    value: float
    low: float
    high: float
    folds: int
    p_value: float = math.nan


def over_folds(values: Sequence[float] | Floats, ratio: float, confidence: float = 0.95) -> FoldEstimate:
    """Return the mean of the folds' values, with an interval that knows that folds share training rows.

    Parameters
    ----------
    values
        Of each fold ``[J]``; those that are NaN are left out.
    ratio
        Test rows over training rows of a fold.
    confidence
        Of the interval.

    Returns
    -------
    FoldEstimate
        With the p-value of a mean of 0, for differences.

    References
    ----------
    Nadeau and Bengio (2003), "Inference for the generalization error", Machine Learning 52, equation 9 and section 6.2: the
    variance of the mean is (1/J + ratio) times that of the values.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    folds = len(known)
    mean = float(known.mean()) if folds else math.nan
    if folds < 2:
        return FoldEstimate(mean, math.nan, math.nan, folds)
    spread = math.sqrt((1 / folds + ratio) * float(known.var(ddof=1)))
    width = float(stats.t.ppf(0.5 + confidence / 2, folds - 1)) * spread
    if spread == 0:
        return FoldEstimate(mean, mean, mean, folds, 1.0 if mean == 0 else 0.0)
    p_value = float(2 * stats.t.sf(abs(mean) / spread, folds - 1))
    return FoldEstimate(mean, mean - width, mean + width, folds, p_value)
