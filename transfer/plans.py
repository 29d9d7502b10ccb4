"""Which parameters are trained in which epochs, and with which settings: pure functions of names."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from glob import escape
from itertools import accumulate
from typing import Any

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.names import listed, plural
from shoal.training.config import ParameterGroupConfig, TrainingConfig
from shoal.training.optimizers.parameters import own_group
from shoal.transfer.config import ALL_BUT_HEAD, GradualConfig, ProbeConfig, TransferConfig
from shoal.transfer.layers import Layer, matched


@dataclass(frozen=True)
class Plan:
    """A stage before its settings: from which epoch, and which layers begin to be trained in it."""

    first_epoch: int
    trained: frozenset[str]
    label: str


def frozen(layers: Sequence[Layer], taken: Set[str], config: TransferConfig) -> frozenset[str]:
    """Return the names of the parameters that are never trained.

    Parameters
    ----------
    layers
        From the head down.
    taken
        Parameters that start from another model; the others are new, and what is new and frozen would stay random.

    Raises
    ------
    ConfigError
        If a pattern matches nothing, or what is new, or nothing is left to train.
    """
    names = [name for layer in reversed(layers) for name in sorted(layer.parameters)]
    if config.freeze == ALL_BUT_HEAD:
        return (frozenset(names) - layers[0].parameters) & taken
    found = matched(names, config.freeze, "transfer.freeze")
    if found == set(names):
        raise ConfigError(
            f"transfer.freeze: {list(config.freeze)} leaves no parameter to train; leave a layer out of it"
        )
    if new := sorted(found - taken):
        raise ConfigError(
            f"transfer.freeze: {listed(new, 4)} would stay random: not taken from the start, and frozen; leave what is new out "
            "of freeze"
        )
    return found


def plans(layers: Sequence[Layer], never: Set[str], config: TransferConfig, epochs: int) -> list[Plan]:
    """Return the stages of a fit.

    Parameters
    ----------
    layers
        From the head down.
    never
        Parameters that stay frozen.
    epochs
        Of the whole fit.

    Raises
    ------
    ConfigError
        If the fit is too short for them.
    """
    open_layers = [(layer.name, layer.parameters - never) for layer in layers if layer.parameters - never]
    everything = frozenset[str]().union(*(own for _, own in open_layers))
    kind = config.unfreeze
    if kind is None or len(open_layers) == 1:
        return [Plan(0, everything, "all that is not frozen" if never else "all of it")]
    if isinstance(kind, ProbeConfig):
        stages = [(open_layers[0][1], open_layers[0][0]), (everything, "all that is not frozen")]
        each, key = kind.epochs, "probe"
    else:
        assert isinstance(kind, GradualConfig)
        grown = accumulate((own for _, own in open_layers), lambda all_above, own: all_above | own)
        stages = list(zip(grown, (name for name, _ in open_layers), strict=True))
        each, key = kind.epochs, "gradual"
    least = each * (len(stages) - 1) + 1
    if epochs < least:
        raise ConfigError(
            f"transfer.unfreeze.{key}: {len(stages)} stages of {plural(each, 'epoch')}, the last of 1 or more, need "
            f"{least} epochs and training.epochs is {epochs}; give more, shorter stages, or freeze layers"
        )
    return [Plan(i * each, trained, label) for i, (trained, label) in enumerate(stages)]


def groups(
    plan: Plan,
    is_last: bool,
    layers: Sequence[Layer],
    taken: Set[str],
    unpenalised: Set[str],
    config: TransferConfig,
    training: TrainingConfig,
) -> tuple[ParameterGroupConfig, ...]:
    """Return what `training.parameter_groups` is in a stage: an entry for each parameter to which something of its own applies.

    What the user's own entries say of a parameter stays as it is.

    Parameters
    ----------
    is_last
        Whether the stage lasts to the end of the fit.
    taken
        Parameters that start from another model.
    unpenalised
        Parameters that no penalty is for, unless it says so by name.

    References
    ----------
    Howard and Ruder (2018), "Universal language model fine-tuning for text classification", section 3.2: the rate of a layer is
    that of the one above it divided by 2.6.
    """
    usual = rate = getattr(training.optimizer, "learning_rate", None)
    if isinstance(config.unfreeze, ProbeConfig) and not is_last and config.unfreeze.learning_rate is not None:
        rate = config.unfreeze.learning_rate
    depth = {name: i for i, layer in enumerate(layers) for name in layer.parameters}
    decays = isinstance(training.optimizer, Imported) or hasattr(training.optimizer, "weight_decay")
    found = []
    for name in sorted(plan.trained):
        values: dict[str, Any] = {}
        if rate is not None and (own_rate := rate * config.rate_decay ** depth.get(name, 0)) != usual:
            values["learning_rate"] = own_rate
        if config.l2_sp is not None:
            values |= {"weight_decay": 0.0} if decays else {}
            values["l2"] = 0.0 if name in taken or name in unpenalised else config.l2_sp.head
        own = own_group(training, name)
        if own is not None:
            values |= own.model_dump(exclude={"match"}, exclude_none=True)
        if values:
            found.append(ParameterGroupConfig(match=escape(name), **values))
    return tuple(found)
