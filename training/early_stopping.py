"""Early stopping: the same decision on every worker, from one broadcast score."""

import math
from dataclasses import dataclass

from shoal.training.config import EarlyStoppingConfig


@dataclass
class EarlyStopping:
    """Remembers the best epoch and says when to stop (Prechelt 1998, "Early stopping - but when?").

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

    def update(self, epoch: int, score: float) -> bool:
        """Take an epoch's score and return whether it is the best so far; NaN never is."""
        margin, warmup = (self.config.min_delta, self.config.warmup) if self.config else (0.0, 0)
        gain = (score - self.best) if self.greater_is_better else (self.best - score)
        improved = not math.isnan(score) and (math.isnan(self.best) or gain > margin)
        if improved:
            self.best, self.best_epoch, self.epochs_since = score, epoch, 0
        elif (
            self.best_epoch >= 0 and epoch >= warmup
        ):  # a score that was never a number says nothing of when to stop
            self.epochs_since += 1
        return improved

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.config is not None and self.epochs_since >= self.config.patience
