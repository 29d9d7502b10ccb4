"""Limited-memory BFGS: torch's, which says what a step did."""

import math

import torch
from torch import Tensor

from shoal.training.optimizers.searching import Closure, Searched, bounded


class LBFGS(torch.optim.LBFGS):
    """`torch.optim.LBFGS` with its strong-Wolfe line search.

    Takes one parameter group. ``searched`` tells of the last step.

    References
    ----------
    Liu and Nocedal (1989), "On the limited memory BFGS method for large scale optimization", algorithm 2.1; the strong
    Wolfe conditions are Nocedal and Wright (2006), "Numerical optimization", equation 3.7.
    """

    searched = Searched(0, 0, "max_iter")

    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Minimise the closure's objective and return its value at the start; nothing changes where that is no number."""
        self._start = closure()
        group, state = self.param_groups[0], self.state[self._params[0]]
        done = state.get("n_iter", 0)
        gradient = self._gather_flat_grad()  # type: ignore[no-untyped-call]
        self._gradients = {0.0: float(gradient.abs().max())}
        self._evaluations, self._known = 1, True
        if not (math.isfinite(float(self._start.detach())) and bool(torch.isfinite(gradient).all())):
            self.searched = Searched(0, 1, "non_finite")
            return self._start

        def counted() -> Tensor:
            if self._known:  # torch begins with what was just computed
                self._known = False
                return self._start
            self._evaluations += 1
            return closure()

        super().step(counted)  # type: ignore[no-untyped-call]
        iterations = state["n_iter"] - done
        reached = (
            self._gradients.get(float(state.get("t", 0.0)), math.inf) if iterations else self._gradients[0.0]
        )
        if reached <= group["tolerance_grad"]:
            reason = "gradient"
        elif iterations >= group["max_iter"]:
            reason = "max_iter"
        else:
            reason = "max_eval" if self._evaluations >= group["max_eval"] else "change"
        self.searched = Searched(iterations, self._evaluations, reason)
        return self._start

    def _directional_evaluate(
        self, closure: Closure, x: list[Tensor], t: float, d: Tensor
    ) -> tuple[float, Tensor]:
        loss, gradient = super()._directional_evaluate(closure, x, t, d)  # type: ignore[no-untyped-call]
        self._gradients[float(t)] = float(gradient.abs().max())
        return bounded(loss, gradient, float(self._start.detach()))
