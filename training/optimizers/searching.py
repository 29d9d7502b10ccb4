"""What the optimisers that search along a line have in common.

Each `step` minimises over several iterations, each of which evaluates the objective and its gradient several times. Both
must be those of all rows that the step is of, over all workers: then every worker sees the same numbers, takes the same
decisions, and all end at the same point.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Closure = Callable[[], Tensor]
"""Forgets gradients, computes the objective and its gradient, and returns the objective, 0-d."""

REASONS = {
    "gradient": "no element of the gradient is above tolerance_grad",
    "change": "neither weights nor objective change by more than tolerance_change",
    "line_search": "the search found no lower objective along the steepest descent",
    "max_iter": "max_iter iterations were done",
    "max_eval": "max_eval evaluations were done",
    "non_finite": "the objective or its gradient is no finite number",
}
CONVERGED = ("gradient", "change", "line_search")
_ROUNDING = (
    1e-6  # share of the objective below which its changes are told by slopes; Hager and Zhang's epsilon
)
_FAR = 1e10  # times the objective before: an objective that is no number counts as this much, and is stepped back from


@dataclass(frozen=True)
class Searched:
    """What a step did.

    Attributes
    ----------
    iterations, evaluations
        Line searches, and passes over the step's rows.
    reason
        Why it ended: one of `REASONS`.
    """

    iterations: int
    evaluations: int
    reason: str

    @property
    def has_converged(self) -> bool:
        """Whether more iterations on the same rows would change nothing."""
        return self.reason in CONVERGED


class Searching(Protocol):
    """An optimiser that searches along lines."""

    searched: Searched

    def step(self, closure: Closure) -> Tensor:
        """Minimise the closure's objective and return its value at the start."""


def bounded(loss: float, gradient: Tensor, start: float) -> tuple[float, Tensor]:
    """Replace an objective or a gradient that is no finite number by ones that a line search steps back from."""
    if math.isfinite(loss) and bool(torch.isfinite(gradient).all()):
        return loss, gradient
    return start + _FAR * max(1.0, abs(start)), torch.zeros_like(gradient)


def change(loss: float, level: float, t: float, slope: float, there: float) -> float:
    """Return how much an objective changes along a line, from ``level`` with ``slope`` to ``loss`` with slope ``there`` at t.

    Near an optimum the objective changes by less than its rounding error. There the change is told by the slopes at
    both ends, which is exact for a quadratic and makes a search's test that of Hager and Zhang (2005), "A new conjugate
    gradient method with guaranteed descent and an efficient line search", equation 4.1.
    """
    if abs(loss - level) <= _ROUNDING * abs(level):
        return t * (slope + there) / 2
    return loss - level
