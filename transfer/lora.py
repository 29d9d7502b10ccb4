"""Low-rank updates beside frozen linear layers, by peft.

A layer with weights W answers W x + b + (alpha / rank) B A x; A and B alone are trained, and at the end their product is added
to W, so that a trained model is the same layers as before.

References
----------
Hu et al. (2022), "LoRA: Low-rank adaptation of large language models", equation 3.
"""

import importlib.util
import re
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import nn

from shoal.cluster.errors import ConfigError
from shoal.training.models import Model
from shoal.transfer.config import LoRAConfig
from shoal.transfer.layers import matched, matches

_STREAM = 7  # of the draw of A, apart from that of the model's own weights


def require_peft() -> None:
    """Refuse LoRA where peft is missing.

    Raises
    ------
    ConfigError
        With the command that installs it.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            'transfer.lora needs the package peft: pip install "shoal[transfer]", or pip install peft'
        )


def add_updates(
    model: Model, config: LoRAConfig, head: str, new: Set[str], seed: int
) -> tuple[frozenset[str], Callable[[], None]]:
    """Put updates beside the linear layers of a model, in place.

    Parameters
    ----------
    model
        With the weights to start from.
    config
        Rank and layers.
    head
        Name of the module that answers.
    new
        Names of the parameters that were not taken from a start; they are trained whole, as those of the head are.
    seed
        Of the draw of A; B starts as zeros.

    Returns
    -------
    The names of the parameters that are trained, and what merges the updates into the weights again.

    Raises
    ------
    ConfigError
        If a pattern matches no linear layer below the head.
    """
    require_peft()
    from peft import LoraConfig, LoraModel

    whole = {id(p) for n, p in model.named_parameters() if n in new or matches(n, head)}
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m.weight) not in whole]
    if not linear:
        raise ConfigError(
            "transfer.lora: the model has no linear layer below its head that starts from another model; use transfer.freeze in "
            "its place"
        )
    chosen = matched(linear, config.layers, "transfer.lora.layers") if config.layers else frozenset(linear)
    settings: Any = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules="|".join(map(re.escape, sorted(chosen))),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed ^ _STREAM)
        around = LoraModel(model, {"default": settings}, "default")
    trained = {n for n, p in model.named_parameters() if ".lora_" in n or id(p) in whole}

    def merge() -> None:
        around.merge_and_unload()

    return frozenset(trained), merge
