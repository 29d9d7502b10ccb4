"""Which learning rate and which penalties a parameter has: the groups of a torch optimiser.

Biases, the scales of normalisations and embeddings are not penalised unless `training.parameter_groups` says so: a
penalty on a bias shifts predictions instead of making the model simpler, and one on an embedding pulls rare categories,
which are seldom in a batch, to zero however well they predict.
"""

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from shoal.cluster.components import Choice, Imported
from shoal.cluster.errors import ConfigError
from shoal.training.config import OPTIMIZERS, SEARCHING, ParameterGroupConfig, TrainingConfig
from shoal.training.models import OneHotWeights

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(module: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """Sort a module's trainable parameters by what applies to them.

    Returns
    -------
    list of dict
        ``params``, ``l1``, ``l2`` and, where they are known, ``lr`` and ``weight_decay``; as torch's optimisers take
        them, in the order of each group's first parameter.

    Raises
    ------
    ConfigError
        If an entry of `training.parameter_groups` matches no parameter, or asks for what the optimiser has not.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    refuse_idle(training, list(trained))
    free = set(unpenalised(module))
    groups: dict[tuple[tuple[str, float], ...], dict[str, Any]] = {}
    for name, parameter in trained.items():
        values = _values(training, name, name in free)
        group = groups.setdefault(tuple(sorted(values.items())), {"params": [], **values})
        group["params"].append(parameter)
    return list(groups.values()) or [{"params": []}]


def unpenalised(module: nn.Module) -> Iterator[str]:
    """Yield the names of biases, of scales of normalisations, and of embeddings."""
    for prefix, child in module.named_modules():
        embeds = isinstance(child, nn.Embedding | nn.EmbeddingBag) and not isinstance(child, OneHotWeights)
        for name, _ in child.named_parameters(prefix, recurse=False):
            if embeds or isinstance(child, _NORMS) or name.rpartition(".")[2].startswith("bias"):
                yield name


def _values(training: TrainingConfig, name: str, free: bool) -> dict[str, float]:
    """Return a parameter's values by torch's names."""
    optimizer = _defaults(training)
    values = {
        "l1": 0.0 if free or training.l1 is None else training.l1.strength,
        "l2": 0.0 if free else training.l2,
    }
    if "learning_rate" in optimizer:
        values["lr"] = optimizer["learning_rate"]
    if "weight_decay" in optimizer:
        values["weight_decay"] = 0.0 if free else optimizer["weight_decay"]
    own = own_group(training, name)
    if own is not None:
        given = own.model_dump(exclude={"match"}, exclude_none=True)
        values |= {"lr" if key == "learning_rate" else key: value for key, value in given.items()}
    return values


def own_group(training: TrainingConfig, name: str) -> ParameterGroupConfig | None:
    """Return the entry of `training.parameter_groups` that counts for a parameter."""
    return next((g for g in training.parameter_groups if fnmatchcase(name, g.match)), None)


def refuse_idle(training: TrainingConfig, names: list[str]) -> None:
    """Refuse entries of `training.parameter_groups` that change nothing.

    Parameters
    ----------
    names
        Of the parameters that are trained at some time.

    Raises
    ------
    ConfigError
        If one matches no such parameter, or asks for what the optimiser has not.
    """
    has_decay = "weight_decay" in _defaults(training) or isinstance(training.optimizer, Imported)
    for i, group in enumerate(training.parameter_groups):
        where = f"training.parameter_groups.{i}"
        if group.weight_decay is not None and not has_decay:
            optimizer = Choice(OPTIMIZERS).name_of(training.optimizer)
            raise ConfigError(
                f"{where}.weight_decay: {optimizer} has no weight decay; use l2 in its place, or leave it out"
            )
        if group.learning_rate is not None and Choice(OPTIMIZERS).name_of(training.optimizer) in SEARCHING:
            raise ConfigError(
                f"{where}.learning_rate: the optimiser searches for one length of its step over all parameters; leave it out"
            )
        if not _reached(training.parameter_groups, i, names):
            near = difflib.get_close_matches(group.match, names, n=1, cutoff=0.0)
            raise ConfigError(
                f"{where}.match: {group.match!r} is the first entry that matches for no trainable parameter; the nearest "
                f"name is {near[0] if near else 'none'!r}, and all are: {', '.join(names)}"
            )


def _defaults(training: TrainingConfig) -> dict[str, Any]:
    """Return the optimiser's values; one of the user's own keeps its own names, such as lr."""
    if isinstance(training.optimizer, Imported):
        return {k: v for k, v in training.optimizer.kwargs.items() if k == "weight_decay"}
    return training.optimizer.model_dump()


def _reached(groups: tuple[ParameterGroupConfig, ...], i: int, names: list[str]) -> bool:
    earlier = groups[:i]
    return any(
        fnmatchcase(name, groups[i].match) and not any(fnmatchcase(name, g.match) for g in earlier)
        for name in names
    )
