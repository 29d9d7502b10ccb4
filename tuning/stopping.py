"""Which trials end early: rules over scores, as plain arithmetic.

Scores are signed here: higher is better, and what is no number is the worst. A trial ends only where it is worse by more than
`NOISE`, so that float noise decides nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shoal.cluster.config import Config
from shoal.training.early_stopping import NOISE
from shoal.tuning.config import ASHAConfig, MedianConfig


class Rule(Protocol):
    """Decides after each epoch of a trial whether it goes on."""

    def ends(self, trial: int, epoch: int, score: float) -> bool:
        """Take the signed score of a trial's epoch (from 1), and say whether the trial is to end there."""


def signed(score: float, greater_is_better: bool) -> float:
    """Return a score of which higher is better; the worst for one that is no number."""
    return -math.inf if math.isnan(score) else score if greater_is_better else -score


@dataclass
class Halving:
    """Asynchronous successive halving in its stopping form.

    At the rungs ``grace x reduction^k`` a trial goes on where it is among the best ``1 / reduction`` of all that came there
    before it. The first to come goes on.

    Parameters
    ----------
    epochs
        Of a whole trial, for a ``grace`` that is not given.

    References
    ----------
    Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht and Talwalkar (2020), A system for massively parallel
    hyperparameter tuning, MLSys, algorithm 2; in the form of Ray Tune's `AsyncHyperBandScheduler`, which stops and never pauses.
    """

    config: ASHAConfig
    epochs: int = 1
    rungs: dict[int, dict[int, float]] = field(default_factory=dict)

    @property
    def grace(self) -> int:
        """Epochs of the first rung."""
        given = self.config.grace
        return max(1, 2 * self.epochs // (3 * self.config.reduction**2)) if given == "auto" else given

    def ends(self, trial: int, epoch: int, score: float) -> bool:
        """Note the score where the epoch is a rung, and compare it with those that came before."""
        rung = self.grace
        while rung < epoch:
            rung *= self.config.reduction
        if rung != epoch:
            return False
        before = list(self.rungs.setdefault(rung, {}).values())
        self.rungs[rung][trial] = score
        if not before:
            return False
        cutoff = _quantile(before, 1 - 1 / self.config.reduction)
        return score < cutoff - NOISE


@dataclass
class Median:
    """The median stopping rule: a trial ends where its best score is below the median of the others' means up to that epoch.

    References
    ----------
    Golovin, Solnik, Moitra, Kochanski, Karro and Sculley (2017), Google Vizier: a service for black-box optimization, KDD,
    section 3.2.2.
    """

    config: MedianConfig
    curves: dict[int, list[float]] = field(default_factory=dict)

    def ends(self, trial: int, epoch: int, score: float) -> bool:
        """Note the score, and compare the trial with the others that came as far."""
        own = self.curves.setdefault(trial, [])
        own.append(score)
        others = [curve for other, curve in self.curves.items() if other != trial and len(curve) >= epoch]
        if epoch < self.config.grace or len(others) < self.config.least_trials:
            return False
        median = _quantile([_mean(curve[:epoch]) for curve in others], 0.5)
        return max(own) < median - NOISE


def rule_of(config: Config, epochs: int) -> Rule | None:
    """Return the rule of `tuning.scheduler` for trials of so many epochs; None where all are trained to their end."""
    if isinstance(config, ASHAConfig):
        return Halving(config, epochs)
    return Median(config) if isinstance(config, MedianConfig) else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _quantile(values: list[float], q: float) -> float:
    """Return a quantile between order statistics as numpy's; -inf where it touches one."""
    ordered, at = np.sort(np.asarray(values, dtype=np.float64)), q * (len(values) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return float(low if not math.isfinite(low) else low + (at - math.floor(at)) * (high - low))
