"""Whether probabilities mean what they say: reliability in bins of equal mass, and the expected error."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.tallies import Floats


@dataclass(frozen=True)
class Reliability:
    """A reliability curve; B bins, all float64 ``[B]``.

    Parameters
    ----------
    predicted
        Mean probability of a bin.
    observed, low, high
        Share of events in it, and its Wilson interval.
    rows
        Rows of a bin.
    error
        Expected calibration error: the mean over rows of |observed - predicted| of their bin.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    rows: Floats
    error: float


def reliability(
    events: NDArray[np.bool_], probabilities: Floats, bins: int = 10, confidence: float = 0.95
) -> Reliability:
    """Compare probabilities with outcomes in at most `bins` bins of about equal numbers of rows.

    Equal probabilities stay in one bin, so ties make bins fewer and uneven.

    References
    ----------
    Nguyen and O'Connor (2015), Posterior calibration and exploratory analysis for natural language
    processing models, EMNLP, section 3 (equal-mass bins).
    """
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    bin_of = np.searchsorted(edges, probabilities, side="left")
    rows = np.bincount(bin_of).astype(np.float64)
    filled = rows > 0
    rows = rows[filled]
    predicted = np.bincount(bin_of, weights=probabilities)[filled] / rows
    observed = np.bincount(bin_of, weights=events.astype(np.float64))[filled] / rows
    low, high = wilson(observed, rows, confidence)
    error = float((rows * np.abs(observed - predicted)).sum() / rows.sum())
    return Reliability(predicted, observed, low, high, rows, error)


def wilson(share: Floats, n: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Return the Wilson score interval of a share of n trials.

    References
    ----------
    Wilson (1927), Journal of the American Statistical Association 22, p. 209.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At a share of 0 or 1 the bound is that share; the difference would leave a rounding error.
    low = np.where(share <= 0, 0.0, middle - half)
    return low, np.where(share >= 1, 1.0, middle + half)
