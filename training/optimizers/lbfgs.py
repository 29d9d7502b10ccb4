"""Limited-memory BFGS: torch's, which says what a step did and knows what rounding hides."""

import math

import torch
from torch import Tensor

from shoal.training.optimizers.searching import Closure, Searched, bounded, change


class LBFGS(torch.optim.LBFGS):
    """`torch.optim.LBFGS` with its strong-Wolfe line search.

    Takes one parameter group. ``searched`` tells of the last step. Where the objective changes by less than its rounding
    error, its change is told by slopes (`change`); otherwise every number is torch's.

    References
    ----------
    Liu and Nocedal (1989), "On the limited memory BFGS method for large scale optimization", algorithm 2.1; the strong
    Wolfe conditions are Nocedal and Wright (2006), "Numerical optimization", equation 3.7.
    """

    searched = Searched(0, 0, "max_iter")

    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Minimise the closure's objective and return its value at the start; nothing changes where that is no number."""
        start = closure()
        group, state = self.param_groups[0], self.state[self._params[0]]
        done = state.get("n_iter", 0)
        loss, gradient = float(start.detach()), self._gather_flat_grad()  # type: ignore[no-untyped-call]
        self._seen = {0.0: (loss, gradient)}  # of the current search, by the length of the trial
        self._moved, self._from = 0.0, list[Tensor]()
        self._evaluations, self._known = 1, True
        if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
            self.searched = Searched(0, 1, "non_finite")
            return start

        def counted() -> Tensor:
            if self._known:  # torch begins with what was just computed
                self._known = False
                return start
            self._evaluations += 1
            return closure()

        super().step(counted)  # type: ignore[no-untyped-call]
        iterations = state["n_iter"] - done
        _, reached = self._seen[self._moved]
        if float(reached.abs().max()) <= group["tolerance_grad"]:
            reason = "gradient"
        elif iterations >= group["max_iter"]:
            reason = "max_iter"
        else:
            reason = "max_eval" if self._evaluations >= group["max_eval"] else "change"
        self.searched = Searched(iterations, self._evaluations, reason)
        return start

    def _add_grad(self, step_size: float | Tensor, direction: Tensor) -> None:
        self._moved = float(step_size)  # after a search, torch moves by the trial that it accepted
        super()._add_grad(step_size, direction)

    def _directional_evaluate(
        self, closure: Closure, x: list[Tensor], t: float | Tensor, d: Tensor
    ) -> tuple[float, Tensor]:
        if x is not self._from:  # a search begins, where the last one ended
            self._from, here = x, self._seen[self._moved]
            self._level, self._slope, self._seen = here[0], float(here[1].dot(d)), {0.0: here}
        loss, gradient = super()._directional_evaluate(closure, x, t, d)  # type: ignore[no-untyped-call]
        loss, gradient = bounded(loss, gradient, self._level)
        loss = self._level + change(loss, self._level, float(t), self._slope, float(gradient.dot(d)))
        self._seen[float(t)] = (loss, gradient)
        return loss, gradient
