"""Nonlinear conjugate gradient, which torch has not."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.lbfgs import _strong_wolfe

from shoal.training.optimizers.searching import Closure, Searched, bounded, change

METHODS = ("polak_ribiere_plus", "hager_zhang", "fletcher_reeves")
_SUFFICIENT, _CURVATURE = 1e-4, 0.1  # c1 and c2 of the Wolfe conditions; Nocedal and Wright, section 5.2
_SEARCH = 20  # evaluations of one search
_ORTHOGONAL = 0.1  # share of the last gradient in this one from which conjugacy is lost; their equation 5.52
_LONGEST = 10.0  # times the last step: the first trial of a search
_ETA = 0.01  # Hager and Zhang, equation 1.6


class NonlinearCG(torch.optim.Optimizer):
    """Nonlinear conjugate gradient with a strong-Wolfe line search.

    Each direction is ``d = -g + beta d'``, where ``d'`` is the last one. Parameters are one vector, whatever their groups.
    ``searched`` tells of the last step.

    Parameters
    ----------
    params
        Trainable parameters.
    lr
        Length of the very first trial step along the steepest descent, times ``min(1, 1 / sum |g|)``.
    method
        ``polak_ribiere_plus``, ``hager_zhang`` or ``fletcher_reeves``: how beta is found.
    max_iter, max_eval
        Line searches, and evaluations of the closure, in a call of `step`; max_eval None for 2.5 max_iter, since searches
        near a quadratic take two.
    tolerance_grad
        Ends the step where no element of the gradient is above it.
    tolerance_change
        Ends the step where neither a weight nor the objective changed by more.
    restart
        Iterations after which the direction is the steepest descent again; None for the number of parameters.

    References
    ----------
    Nocedal and Wright (2006), "Numerical optimization", algorithm 5.4, equations 5.41a (Fletcher and Reeves), 5.44 and 5.45
    (Polak and Ribiere, plus), 5.52 (Powell's restart) and 3.60 (the first trial of a search); Hager and Zhang (2005), "A
    new conjugate gradient method with guaranteed descent and an efficient line search", equations 1.3 to 1.6. The search is
    the one of torch's L-BFGS, with a tighter curvature condition.
    """

    searched = Searched(0, 0, "max_iter")

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        method: str = "polak_ribiere_plus",
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-14,
        restart: int | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        super().__init__(
            params,
            {
                "lr": lr,
                "method": method,
                "max_iter": max_iter,
                "max_eval": max_eval if max_eval is not None else 5 * max_iter // 2 + 1,
                "tolerance_grad": tolerance_grad,
                "tolerance_change": tolerance_change,
                "restart": restart,
            },
        )

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Minimise the closure's objective and return its value at the start; nothing changes where that is no number."""
        evaluate = torch.enable_grad()(closure)
        group, state = self.param_groups[0], self.state[self._all()[0]]
        start = evaluate()
        loss, gradient = float(start.detach()), self._gradient()
        evaluations, iterations, reason = 1, 0, "max_iter"
        if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
            self.searched = Searched(0, 1, "non_finite")
            return start
        if float(gradient.abs().max()) <= group["tolerance_grad"]:
            self.searched = Searched(0, 1, "gradient")
            return start
        while iterations < group["max_iter"]:
            if evaluations >= group["max_eval"]:
                reason = "max_eval"
                break
            direction, slope = self._direction(gradient, state)
            trial = self._trial(gradient, slope, state)
            here = parameters_to_vector(self._all())

            found = _strong_wolfe(  # type: ignore[no-untyped-call]
                partial(self._along, evaluate, loss, slope),
                here,
                trial,
                direction,
                0.0,
                gradient,
                slope,
                c1=_SUFFICIENT,
                c2=_CURVATURE,
                tolerance_change=group["tolerance_change"],
                max_ls=min(_SEARCH, group["max_eval"] - evaluations),
            )
            change, new_gradient, t, spent = float(found[0]), found[1], float(found[2]), found[3]
            evaluations += spent
            if not change < 0:
                vector_to_parameters(here, self._all())
                if (
                    evaluations >= group["max_eval"]
                ):  # the search was cut short, which says nothing of the optimum
                    reason = "max_eval"
                    break
                if state["since_restart"]:  # try once more along the steepest descent
                    self._forget(state)
                    continue
                reason = "line_search"
                break
            vector_to_parameters(here + t * direction, self._all())
            iterations += 1
            moved = max(t * float(direction.abs().max()), abs(change))
            state |= {"direction": direction, "gradient": gradient, "step": t, "slope": float(slope)}
            state["since_restart"] += 1
            loss, gradient = loss + change, new_gradient
            if float(gradient.abs().max()) <= group["tolerance_grad"]:
                reason = "gradient"
                break
            if moved <= group["tolerance_change"]:
                reason = "change"
                break
        self.searched = Searched(iterations, evaluations, reason)
        return start

    def _along(
        self, evaluate: Closure, level: float, slope: Tensor, x: Tensor, t: float, d: Tensor
    ) -> tuple[float, Tensor]:
        """Return how the objective changes from x, where it is ``level`` with ``slope``, to ``x + t d``; its gradient there."""
        vector_to_parameters(x + t * d, self._all())
        loss, gradient = bounded(float(evaluate().detach()), self._gradient(), level)
        return change(loss, level, float(t), float(slope), float(gradient.dot(d))), gradient

    def _direction(self, gradient: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the next direction and the objective's slope along it; the steepest descent where conjugacy is lost."""
        last, before = state.get("direction"), state.get("gradient")
        size, method = gradient.dot(gradient), self.param_groups[0]["method"]
        if last is not None and before is not None and state["since_restart"] < self._restart(gradient):
            lost = method != "hager_zhang" and float(gradient.dot(before).abs()) >= _ORTHOGONAL * float(size)
            direction = last * self._beta(gradient, before, last) - gradient
            slope = gradient.dot(direction)
            if not lost and float(slope) < 0:
                return direction, slope
        self._forget(state)
        return -gradient, -size

    def _beta(self, gradient: Tensor, before: Tensor, last: Tensor) -> Tensor:
        change = gradient - before
        match self.param_groups[0]["method"]:
            case "fletcher_reeves":
                return gradient.dot(gradient) / before.dot(before)
            case "polak_ribiere_plus":
                return (gradient.dot(change) / before.dot(before)).clamp(min=0.0)
        curvature = last.dot(change)
        beta = (change - 2 * last * (change.dot(change) / curvature)).dot(gradient) / curvature
        least = -1 / (last.norm() * before.norm().clamp(max=_ETA))
        return torch.maximum(beta, least)

    def _trial(self, gradient: Tensor, slope: Tensor, state: dict[str, Any]) -> float:
        """Return the first length that a search tries: one by which the objective would change as it did last time."""
        if "step" not in state:
            return float(self.param_groups[0]["lr"]) * min(1.0, 1.0 / float(gradient.abs().sum()))
        return float(state["step"]) * min(_LONGEST, float(state["slope"]) / float(slope))

    def _restart(self, gradient: Tensor) -> int:
        return int(self.param_groups[0]["restart"] or gradient.numel())

    @staticmethod
    def _forget(state: dict[str, Any]) -> None:
        state.pop("direction", None)
        state.pop("gradient", None)
        state["since_restart"] = 0

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _gradient(self) -> Tensor:
        return torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self._all()]
        )
