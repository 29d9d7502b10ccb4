"""Losses of numbers, one value a row; the target comes standardised, but for counts."""

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_error(answers: Tensor, wanted: Tensor) -> Tensor:
    """Return ``(a - y) ** 2``."""
    return (answers - wanted) ** 2


def huber(answers: Tensor, wanted: Tensor, delta: float) -> Tensor:
    """Return half the squared error up to delta, and ``delta (|a - y| - delta / 2)`` beyond."""
    return F.huber_loss(answers, wanted, reduction="none", delta=delta)


def quantile(answers: Tensor, wanted: Tensor, q: float) -> Tensor:
    """Return ``q (y - a)`` where the answer is too low and ``(1 - q) (a - y)`` where it is too high."""
    away = wanted - answers
    return torch.maximum(q * away, (q - 1.0) * away)


def poisson(answers: Tensor, counts: Tensor) -> Tensor:
    """Return ``exp(a) - y a``, the negative log likelihood of counts but for ``log y!``; a is the log of the mean."""
    return F.poisson_nll_loss(answers, counts, log_input=True, reduction="none")
