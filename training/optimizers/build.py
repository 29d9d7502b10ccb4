"""Optimisers by name: torch's own classes, with Shoal's word for the learning rate."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shoal.cluster.components import Choice, Imported
from shoal.cluster.errors import ConfigError
from shoal.training.config import OPTIMIZERS, TrainingConfig
from shoal.training.optimizers.lbfgs import LBFGS
from shoal.training.optimizers.nonlinear_cg import NonlinearCG
from shoal.training.optimizers.parameters import parameter_groups
from shoal.training.users_code import users

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adadelta": torch.optim.Adadelta,
    "nonlinear_cg": NonlinearCG,
}
_FUSED = (
    "sgd",
    "adagrad",
    "adam",
    "adamw",
)  # on CPUs too; of the others torch takes its foreach version on GPUs


def build_optimizer(training: TrainingConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of a module's trainable parameters, fused where torch has that.

    Raises
    ------
    ConfigError
        If `training.parameter_groups` does not fit the module or the optimiser, or the user's own cannot be built.
    """
    if isinstance(training.optimizer, Imported):
        return _users(training.optimizer, parameter_groups(module, training))
    name = str(Choice(OPTIMIZERS).name_of(training.optimizer))
    arguments = training.optimizer.model_dump()
    learning_rate = arguments.pop("learning_rate")
    groups = parameter_groups(module, training)
    if name == "lbfgs":  # takes no groups; what differs between them is in the objective
        parameters = [p for group in groups for p in group["params"]]
        return LBFGS(parameters, lr=learning_rate, line_search_fn="strong_wolfe", **arguments)
    if name in _FUSED:
        arguments["fused"] = True
    return _CLASSES[name](groups, lr=learning_rate, **arguments)


def _users(config: Imported, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    factory = config.load()
    try:
        with users(f"training.optimizer.import: {config.path}", ConfigError):
            found = factory(groups, **config.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.optimizer.import: {config.path} could not be called: {error}; it gets groups of parameters, as torch's "
            "optimisers do, and the keys written beside import"
        ) from error
    if not isinstance(found, torch.optim.Optimizer):
        raise ConfigError(
            f"training.optimizer.import: {config.path} returned {type(found).__name__}; it must return a torch.optim.Optimizer"
        )
    if isinstance(found, torch.optim.LBFGS):
        raise ConfigError(
            f"training.optimizer.import: {config.path} returned an L-BFGS, which looks at the objective several times a step, as "
            "optimisers by name alone may; use training.optimizer: lbfgs"
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"training.optimizer.import: {config.path} has a step that needs a closure, as optimisers by name alone may; use "
            "lbfgs or nonlinear_cg, or give closure a default of None"
        )
    wanted = {id(p) for group in groups for p in group["params"]}
    if [set(group) - set(theirs) for group, theirs in zip(groups, found.param_groups, strict=False)] != [
        set() for _ in groups
    ] or wanted != {id(p) for group in found.param_groups for p in group["params"]}:
        raise ConfigError(
            f"training.optimizer.import: {config.path} does not keep the groups of parameters that it gets; hand them to "
            "torch.optim.Optimizer as they are"
        )
    return found
