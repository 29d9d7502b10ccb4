"""Optimisers: torch's own classes, with Shoal's word for the learning rate."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from shoal.cluster.components import Choice
from shoal.cluster.config import Config
from shoal.training.config import OPTIMIZERS

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser that a config names, in torch's fused form."""
    name = str(Choice(OPTIMIZERS).name_of(config))
    arguments = config.model_dump()
    learning_rate = arguments.pop("learning_rate")
    return _CLASSES[name](
        [p for p in parameters if p.requires_grad], lr=learning_rate, fused=True, **arguments
    )
