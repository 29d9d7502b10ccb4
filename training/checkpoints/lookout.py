"""When the workers look up from their work together, to see what is asked of them.

A collective operation in each step would cost more than small steps do, so worker 0 sets the step at which everyone
looks up next, about half a second away. What is decided then is the same on every worker.
"""

import math
import time
from dataclasses import dataclass, field

import torch

from shoal.training.checkpoints.keeper import Keeper
from shoal.training.strategies.base import Strategy

LOOK_SECONDS = 0.5
END_SECONDS = 5.0  # of training without a checkpoint that are worth one when it has ended
_GROWTH = 4  # a first guess from slow first steps corrects itself


@dataclass(frozen=True)
class Orders:
    """What to do now: write a checkpoint, and stop after it."""

    checkpoint: bool
    stop: bool


@dataclass
class Lookout:
    """Knows at which position to look up, and what was asked.

    Parameters
    ----------
    strategy
        Carries the agreement.
    keeper
        Says what is asked of this worker.
    """

    strategy: Strategy
    keeper: Keeper
    due_at: float = math.inf
    _at: int = 0
    _looked: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def start(self, position: int) -> None:
        """Begin to count at a position."""
        if not self.keeper.idle:
            self.due_at, self._at = position + 1, position
        self._looked = self._saved = time.monotonic()

    def look(self, position: int) -> Orders:
        """Agree with all workers; called by each of them at the same position."""
        now = time.monotonic()
        done = max(1, position - self._at)
        rate = done / max(now - self._looked, 1e-9)
        distance = int(min(max(1.0, rate * LOOK_SECONDS), _GROWTH * done))
        asked = self.keeper.asked()
        own = torch.tensor(
            [now - self._saved >= self.keeper.every, asked == "checkpoint", asked == "stop", distance],
            dtype=torch.float64,
            device=self.strategy.device,
        )
        all_of_them = torch.stack(self.strategy.all_gather(own)).cpu()
        self._at, self._looked = position, now
        self.due_at = position + int(all_of_them[0, 3])
        stop = bool(all_of_them[:, 2].any())
        return Orders(stop or bool(all_of_them[0, 0]) or bool(all_of_them[:, 1].any()), stop)

    def deserves_one(self) -> bool:
        """Whether so much was done since the last checkpoint that the end of training deserves one; the same on all workers."""
        if self.keeper.idle:
            return False
        return bool(self.strategy.broadcast(time.monotonic() - self._saved > END_SECONDS))

    def saved(self) -> None:
        """Hear that a checkpoint was written."""
        self._saved = time.monotonic()
