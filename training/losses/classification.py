"""Losses of classes, one value a row or a label; ``[B, 1]`` logits are of the event, ``[B, K]`` of K classes.

Shape legend: B rows, K classes or labels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Negative log likelihood ``[B]`` of class indices ``[B]``; K = 1 is the event against the rest."""
    if logits.shape[1] == 1:
        return bce(logits[:, 0], labels, smoothing)
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def bce(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Negative log likelihood of a Bernoulli, element by element; labels in {0, 1}, of the logits' shape."""
    wanted = labels.to(logits.dtype)
    if smoothing:
        wanted = wanted * (1.0 - smoothing) + smoothing / 2.0
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def focal(unweighted: Tensor, gamma: float) -> Tensor:
    """Turn cross-entropies into focal losses ``(1 - p_t) ** gamma * ce``, with p_t = exp(-ce).

    ``1 - p_t`` is kept above zero, where its power has no slope for gamma below 1.
    """
    missed = (-torch.expm1(-unweighted)).clamp(min=torch.finfo(unweighted.dtype).tiny)
    return missed**gamma * unweighted


def with_margins(logits: Tensor, labels: Tensor, margins: Tensor, scale: float) -> Tensor:
    """Take each class's margin ``[K]`` off the logit of the label, times a scale; ``[B, 1]`` logits have two margins."""
    if logits.shape[1] == 1:
        event = labels.bool()[:, None]
        return scale * torch.where(event, logits - margins[1], logits + margins[0])
    own = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return scale * (logits - own * margins)


def adjusted(logits: Tensor, log_shares: Tensor, tau: float) -> Tensor:
    """Add tau times the log of each class's share ``[K]``; ``[B, 1]`` logits get the difference of two."""
    if logits.shape[1] == 1:
        return logits + tau * (log_shares[1] - log_shares[0])
    return logits + tau * log_shares


def ldam_margins(rows: Tensor, max_margin: float) -> Tensor:
    """Return margins ``[K]`` proportional to ``n ** -1/4``, the widest being ``max_margin``; of class sizes n > 0."""
    margins = rows.double() ** -0.25
    return margins * (max_margin / float(margins.max()))


def log_shares(rows: Tensor) -> Tensor:
    """Return the log of each class's share ``[K]`` of the rows; sizes > 0."""
    return rows.double().log() - math.log(float(rows.sum()))
