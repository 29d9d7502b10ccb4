"""L1 and L2 penalties on the weights, for any torch optimiser whose groups carry their strengths ``l1`` and ``l2``.

The objective is the mean loss + l1 * sum |w| + l2 / 2 * sum w^2. Both are the same on every worker, so that they are
added after gradients became one, and after clipping, as torch's optimisers add their ``weight_decay``. For SGD, l2 and
``weight_decay`` are the same thing; for Adam the penalty's gradient is scaled as the loss's is, while AdamW's decay
shrinks all weights by the same share a step, whatever their gradients (Loshchilov and Hutter 2019, section 2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.training.config import L1Config


def add_to_gradients(optimizer: torch.optim.Optimizer, config: L1Config | None) -> None:
    """Let every step of an optimiser add the gradient of its groups' L2 penalty first, and the subgradient of their L1.

    At zero the subgradient is taken as 0. A proximal L1 is left to `shrink`.
    """
    l1 = config is not None and config.subgradient is not None
    if not any(group["l2"] or (l1 and group["l1"]) for group in optimizer.param_groups):
        return

    def add(stepping: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in stepping.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                with torch.no_grad():
                    if group["l2"]:
                        p.grad.add_(p, alpha=group["l2"])
                    if l1 and group["l1"]:
                        p.grad.add_(p.sign(), alpha=group["l1"])

    optimizer.register_step_pre_hook(add)


def pull_to_start(
    optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[Tensor, Tensor]], strength: float
) -> None:
    """Let every step of an optimiser add the gradient of strength / 2 x the squared distance of parameters from their start.

    Parameters
    ----------
    pairs
        Parameters and, in the same shape and type, where they started.

    References
    ----------
    Li, Grandvalet and Davoine (2018), "Explicit inductive bias for transfer learning with convolutional networks", section 3
    (L2-SP).
    """

    def add(_stepping: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        with torch.no_grad():
            for p, start in pairs:
                if p.grad is not None:
                    p.grad.add_(p - start, alpha=strength)

    optimizer.register_step_pre_hook(add)


@torch.no_grad()
def add_l2(groups: Sequence[dict[str, Any]]) -> float:
    """Add the gradient of the groups' L2 penalty and return its value, for optimisers that look at the objective."""
    value = 0.0
    for group in groups:
        for p in group["params"] if group.get("l2") else ():
            value += float(group["l2"]) / 2 * float(p.double().square().sum())
            p.grad = p * group["l2"] if p.grad is None else p.grad.add_(p, alpha=group["l2"])
    return value


@torch.no_grad()
def shrink(optimizer: torch.optim.Optimizer) -> None:
    """Take the proximal step of the L1 penalty after a step of the optimiser: small weights become exactly zero.

    ``w <- sign(w) max(|w| - t l1, 0)``, where t is the step that the optimiser takes along each coordinate: with it, a
    weight that no longer moves is where the penalised objective has its optimum, for adaptive optimisers too.

    References
    ----------
    Parikh and Boyd (2014), "Proximal algorithms", section 4.2 (the proximal gradient method) and equation 6.9 (soft
    thresholding); Yun, Lozano and Yang (2021), "Adaptive proximal gradient methods for structured neural networks",
    algorithm 1 (the metric of adaptive ones).
    """
    for group in optimizer.param_groups:
        if not group["l1"]:
            continue
        for p in group["params"]:
            if p.grad is not None:
                threshold = _step_size(optimizer, group, p) * group["l1"]
                p.copy_(p.sign() * (p.abs() - threshold).clamp_(min=0.0))


def _step_size(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> Tensor | float:
    """Return how far a step goes along a constant unit gradient, per coordinate, once momentum has built up."""
    state: dict[str, Tensor] = optimizer.state[p]
    rate = float(group["lr"])
    second: Tensor
    match optimizer:
        case torch.optim.SGD():
            momentum = float(group["momentum"])
            return rate * (1 - float(group["dampening"])) / (1 - momentum) if momentum else rate
        case torch.optim.Adam():  # AdamW too, which is a kind of it in torch
            correction = 1 - float(group["betas"][1]) ** float(state["step"])
            second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"] / correction
        case torch.optim.RMSprop():
            second = state["square_avg"]
            if group["centered"]:
                second = second - state["grad_avg"] ** 2
            rate /= 1 - float(group["momentum"])
        case torch.optim.Adagrad():
            second = state["sum"]
            rate /= 1 + (float(state["step"]) - 1) * float(group["lr_decay"])
        case _:
            raise TypeError(f"{type(optimizer).__name__} has no step size that is known by coordinate")
    return rate / (second.sqrt() + float(group["eps"]))
