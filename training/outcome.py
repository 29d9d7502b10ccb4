"""What a fit is steered by, and what it comes to."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shoal.training.costs import NO_AMOUNTS, Amounts
from shoal.training.scores import Scores


class Monitor(Protocol):
    """A metric that drives early stopping."""

    @property
    def name(self) -> str:
        """The metric's name."""

    @property
    def greater_is_better(self) -> bool:
        """The metric's direction."""

    def value(self, y: np.ndarray, scores: Scores, amounts: Amounts = NO_AMOUNTS) -> float:
        """Score labels ``[n]`` or ``[n, K]`` against scores as `scores_from_logits` gives them, with the rows' cost columns."""


@dataclass(frozen=True)
class FitOutcome:
    """How a fit went.

    Attributes
    ----------
    steps, epochs
        What was done; ``best_epoch``, whose weights were kept, counts from 1, 0 where the last ones were.
    best
        The monitored score of the kept weights, NaN without one.
    stopped
        Why it ended, in a few words.
    rows_per_second
        Training rows over all workers per second of training, validation left out.
    seconds
        Training alone.
    gradient_error
        Largest relative difference found by the proof of the first step; 0 for one worker.
    skipped
        Steps left out because their gradient was no finite number.
    resumed_from
        Step at which each restart went on, in order.
    repeated
        Steps that are known to have been done again after restarts: all but those of the last moment before each.
    time
        One line on where the time went.
    rows
        Training rows of an epoch.
    """

    steps: int
    epochs: int
    best_epoch: int
    best: float
    stopped: str
    rows_per_second: float
    seconds: float
    batch_size: int
    gradient_error: float
    skipped: int = 0
    resumed_from: tuple[int, ...] = ()
    repeated: int = 0
    time: str = ""
    notices: tuple[str, ...] = ()
    rows: int = 0
