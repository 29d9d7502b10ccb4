"""The learning-rate range test: a short fit whose rate grows from tiny to huge, and what its losses say.

Smith (2017), "Cyclical learning rates for training neural networks", section 3.3; the growth is exponential, so that each
decade gets as many steps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.config import Config

LOWEST, HIGHEST = 1e-7, 10.0
LEAST_STEPS = 100
_MEMORY = 0.9  # of the running mean of the losses
_RISEN = 4.0  # times the lowest: from there on the fit has diverged
_FALL = 0.05  # share of the first loss by which it must fall for its slope to mean anything
_START = 0.1  # share of the steps in which the running mean has seen too little


class RangeTestConfig(Config):
    """The rate grows to the optimiser's by the same factor in every step of the fit."""

    low: float = LOWEST / HIGHEST


@dataclass(frozen=True)
class RangeTest:
    """A range test's losses and what they say.

    Attributes
    ----------
    rates, losses, smoothed
        float64 ``[n]``: the learning rate, the loss and its running mean (bias-corrected) of each step, up to where it has
        risen to four times its lowest or is no number.
    suggestion
        A tenth of the rate at the lowest running mean, which leaves room below divergence, but at least that of its steepest
        fall; None where it does not fall.
    reason
        Why, in a sentence.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None
    reason: str


def read(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> RangeTest:
    """Find where the running mean of the losses is lowest, and where it falls fastest per decade of the rate.

    Parameters
    ----------
    rates, losses
        ``[n]``, of each step, the rates rising.
    """
    end = int(np.argmin(np.isfinite(losses))) if not np.isfinite(losses).all() else len(losses)
    smoothed = _running_mean(losses[:end])
    first = int(_START * len(losses))
    if end > first:
        lowest = np.minimum.accumulate(smoothed)
        risen = np.flatnonzero((smoothed > _RISEN * lowest) & (np.arange(end) > first))
        end = int(risen[0]) if len(risen) else end
    kept = RangeTest(rates[:end], losses[:end], smoothed[:end], None, "")
    if end - first < 5:
        return _with(
            kept,
            None,
            "the loss is no number, or has diverged, at the lowest rates already: look at the data and the model",
        )
    fall = float(smoothed[first] - smoothed[first:end].min())
    if fall < _FALL * abs(float(smoothed[first])):
        return _with(
            kept, None, f"the loss falls by less than {_FALL:.0%} at any rate: no slope to choose by"
        )
    bottom = first + int(np.argmin(smoothed[first:end]))
    if bottom < first + 2:
        return _with(kept, None, "the loss only rises with the rate: no slope to choose by")
    slopes = np.gradient(smoothed[first : bottom + 1], np.log10(rates[first : bottom + 1]))
    steepest = float(rates[first + int(np.argmin(slopes))])
    tenth = float(rates[bottom]) / 10
    end_of_it = ""
    if end < len(rates):
        end_of_it = f", and it diverges from {rates[end]:.1e} on"
    elif bottom == end - 1:
        end_of_it = ", and it still falls where the test ends: a higher rate may be better"
    where = f"the running mean of the loss is lowest at {rates[bottom]:.1e} and falls fastest at {steepest:.1e}{end_of_it}"
    if tenth >= steepest:
        return _with(kept, tenth, f"a tenth of the rate at the lowest loss: {where}")
    return _with(
        kept,
        steepest,
        f"the rate of the steepest fall, for a tenth of that at the lowest loss is below it: {where}",
    )


def _with(kept: RangeTest, suggestion: float | None, reason: str) -> RangeTest:
    rounded = None if suggestion is None else float(f"{suggestion:.1e}")
    return RangeTest(kept.rates, kept.losses, kept.smoothed, rounded, reason)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    mean, found = 0.0, []
    for i, value in enumerate(values, 1):
        mean = _MEMORY * mean + (1 - _MEMORY) * float(value)
        found.append(mean / (1 - _MEMORY**i))
    return np.array(found)
