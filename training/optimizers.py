"""Optimisers: torch's own classes, with Shoal's word for the learning rate."""

import sys
from collections.abc import Callable, Iterable

import torch
from torch import nn

from shoal.cluster.config import Config
from shoal.training.config import OPTIMIZERS

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def _spare_the_compiler() -> None:
    """Keep torch's optimisers from importing its compiler, which takes a second and is not used.

    Some of their methods are to be left alone by the compiler, and import it on the first call to be told
    how. A method that already carries the mark is called as it is.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            setattr(method, "__dynamo_disable", method)


def build_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser that a config names, in torch's fused form."""
    name = next(name for name, cls in OPTIMIZERS.items() if cls is type(config))
    arguments = config.model_dump()
    learning_rate = arguments.pop("learning_rate")
    _spare_the_compiler()
    return _CLASSES[name](
        [p for p in parameters if p.requires_grad], lr=learning_rate, fused=True, **arguments
    )
