"""What of a model is trained when, and with which values; the loop only follows it.

The room `transfer` makes stages of a fit that starts from another one, and `training.changes` makes more of them.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from shoal.cluster.sharding.manifest import Schema
from shoal.training.config import ChangeConfig, ParameterGroupConfig, TrainingConfig
from shoal.training.models import Model


@dataclass(frozen=True)
class Stage:
    """Some epochs of a fit, in which some of the parameters are trained.

    Attributes
    ----------
    first_epoch
        From 0; the stage lasts until the next one, or to the end.
    trained
        Names of the parameters.
    groups
        What `training.parameter_groups` is in the stage.
    still
        Names of modules that stay in evaluation mode: normalisations whose running statistics are left as they are.
    label
        What begins, in a few words.
    changes
        Entries of `training.changes` that have come so far.
    """

    first_epoch: int
    trained: frozenset[str]
    groups: tuple[ParameterGroupConfig, ...] = ()
    still: frozenset[str] = frozenset()
    label: str = ""
    changes: tuple[ChangeConfig, ...] = ()

    def begin(self, module: nn.Module, config: TrainingConfig) -> TrainingConfig:
        """Freeze and thaw the parameters of a module, which forget their gradients; return the stage's own settings."""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad != (name in self.trained):
                parameter.requires_grad_(name in self.trained)
            parameter.grad = None
        found = config.model_copy(update={"parameter_groups": self.groups})
        for change in self.changes:
            found = _changed(found, change)
        return found

    def train_mode(self, module: nn.Module) -> None:
        """Put a module into training mode, but for what stays still."""
        module.train()
        for name in self.still:
            module.get_submodule(name).eval()


def _nothing() -> None:
    """Leave the model as it is."""


@dataclass(frozen=True)
class FineTuning:
    """The stages of a fit, and where it starts from.

    Attributes
    ----------
    stages
        In order; the first one begins with epoch 0.
    start
        Values by parameter name, to which a penalty pulls parameters.
    pull
        The strength of that penalty.
    notices
        What to say aloud before the fit.
    finish
        Called after the fit, when the model has the weights that are kept: gives it the layers that its config builds.
    """

    stages: tuple[Stage, ...]
    start: Mapping[str, Tensor] = field(default_factory=dict)
    pull: float = 0.0
    notices: tuple[str, ...] = ()
    finish: Callable[[], None] = _nothing

    @classmethod
    def whole(cls, module: nn.Module, config: TrainingConfig) -> "FineTuning":
        """Return one stage in which everything is trained that the module has for that."""
        trained = frozenset(name for name, p in module.named_parameters() if p.requires_grad)
        return cls((Stage(0, trained, config.parameter_groups),))

    def also(self, names: Set[str], still: Set[str] = frozenset()) -> "FineTuning":
        """Return the same, with parameters that are trained in all stages, and modules that stay still."""
        stages = tuple(
            replace(stage, trained=stage.trained | names, still=stage.still | still) for stage in self.stages
        )
        return replace(self, stages=stages)

    def changing(self, changes: Sequence[ChangeConfig]) -> "FineTuning":
        """Return the same, with a stage that begins at every entry of `training.changes`, too."""
        begins = {stage.first_epoch: stage.label for stage in self.stages}
        for change in changes:
            said = ", ".join(f"{key} {value:g}" for key, value in change.values.items())
            begins[change.epoch - 1] = ", ".join(filter(None, (begins.get(change.epoch - 1, ""), said)))
        return replace(
            self,
            stages=tuple(
                replace(
                    self.stages[self.at(first)],
                    first_epoch=first,
                    label=label,
                    changes=tuple(change for change in changes if change.epoch - 1 <= first),
                )
                for first, label in sorted(begins.items())
            ),
        )

    def at(self, epoch: int) -> int:
        """Return the number of the stage that an epoch lies in."""
        return sum(stage.first_epoch <= epoch for stage in self.stages) - 1

    @property
    def always_still(self) -> frozenset[str]:
        """The modules that stay in evaluation mode throughout."""
        return frozenset.intersection(*(stage.still for stage in self.stages))


class Reuse(Protocol):
    """Makes a fit start from another one; travels to other processes."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that determine what it does, with the model, the data and the `training` section."""

    def __call__(self, model: Model, schema: Schema, training: TrainingConfig, seed: int) -> FineTuning:
        """Give a new model the weights to start from, and say how it is trained; the same on every worker."""


def _changed(config: TrainingConfig, change: ChangeConfig) -> TrainingConfig:
    """Return the settings with other values; the rates of parameter groups keep their ratio to the learning rate."""
    values = change.values
    update: dict[str, Any] = {"l2": values["l2"]} if "l2" in values else {}
    own: dict[str, Any] = {key: values[key] for key in ("learning_rate", "weight_decay") if key in values}
    if own:
        update["optimizer"] = config.optimizer.model_copy(update=own)
    if "learning_rate" in values:
        # `TrainingConfig` lets only an optimiser change it that has one.
        times = values["learning_rate"] / float(config.optimizer.learning_rate)  # type: ignore[attr-defined]
        update["parameter_groups"] = tuple(
            group
            if group.learning_rate is None
            else group.model_copy(update={"learning_rate": group.learning_rate * times})
            for group in config.parameter_groups
        )
    if "l1" in values and config.l1 is not None:
        kind = "subgradient" if config.l1.proximal is None else "proximal"
        update["l1"] = config.l1.model_copy(update={kind: values["l1"]})
    return config.model_copy(update=update)
