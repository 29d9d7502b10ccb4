"""Early stopping: the same decision on every worker, from one broadcast score."""

import math
from dataclasses import dataclass
from typing import Any

from shoal.training.config import EarlyStoppingConfig

NOISE = 1e-6  # margin by which an epoch must be better to be the best: above float noise


@dataclass
class EarlyStopping:
    """Remembers the best epoch and says when to stop (Prechelt 1998, "Early stopping - but when?").

    `min_delta` is what patience waits for: from the last score that was better by as much. The best epoch is the best one.

    Attributes
    ----------
    config
        Patience and margin; None never stops but still remembers the best.
    greater_is_better
        Direction of the score.
    """

    config: EarlyStoppingConfig | None
    greater_is_better: bool
    best: float = math.nan
    best_epoch: int = -1
    epochs_since: int = 0
    since: float = math.nan

    @property
    def margin(self) -> float:
        """By how much a score must be better for patience to begin anew."""
        return self.config.min_delta if self.config else 0.0

    @property
    def state(self) -> list[Any]:
        """Plain values, for a checkpoint."""
        return [self.best, self.best_epoch, self.epochs_since, self.since]

    @state.setter
    def state(self, values: list[Any]) -> None:
        self.best, self.best_epoch, self.epochs_since, self.since = values

    def update(self, epoch: int, score: float) -> bool:
        """Take an epoch's score and return whether it is the best so far; NaN never is."""
        warmup = self.config.warmup if self.config else 0
        improved = self._is_better(score, self.best, min(self.margin, NOISE))
        if improved:
            self.best, self.best_epoch = score, epoch
        if self._is_better(score, self.since, self.margin):
            self.since, self.epochs_since = score, 0
        elif (
            self.best_epoch >= 0 and epoch >= warmup
        ):  # one that was never a number says nothing of when to stop
            self.epochs_since += 1
        return improved

    def _is_better(self, score: float, than: float, margin: float) -> bool:
        gain = (score - than) if self.greater_is_better else (than - score)
        return not math.isnan(score) and (math.isnan(than) or gain > margin)

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.config is not None and self.epochs_since >= self.config.patience
