"""Losses by task, one value a row; the loop takes the mean over the global batch."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from shoal.cluster.sharding.manifest import Target

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits ``[B, K]``, labels) -> loss ``[B]``."""


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of a Bernoulli; labels ``[B]`` in {0, 1}."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of a categorical; labels ``[B]`` int64 class indices."""
    return F.cross_entropy(logits, labels, reduction="none")


def multilabel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the K labels of the binary cross-entropy; labels ``[B, K]`` in {0, 1}."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(1)


def squared_error(target: Target) -> RowLoss:
    """Squared error in units of the training labels' standard deviation."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        standardised = ((labels - target.center) / target.scale).to(logits.dtype)
        return (logits[:, 0] - standardised) ** 2

    return loss


def row_loss(target: Target) -> RowLoss:
    """Return the loss that fits the task."""
    if target.task == "regression":
        return squared_error(target)
    return {
        "binary": binary_cross_entropy,
        "multiclass": cross_entropy,
        "multilabel": multilabel_cross_entropy,
    }[target.task]
