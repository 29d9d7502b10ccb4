"""Fine-tuning: a new model takes the weights of an earlier one, and is trained in stages; a `Reuse` of `training.stages`."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.training.config import OPTIMIZERS, DeepSpeedConfig, SearchConfig, TrainingConfig
from shoal.training.models import Model
from shoal.training.optimizers.parameters import refuse_idle, unpenalised
from shoal.training.stages import FineTuning, Stage
from shoal.transfer.config import NO_START, TransferConfig
from shoal.transfer.layers import Layer, from_head_down, frozen_batch_norms, head_of
from shoal.transfer.lora import add_updates, require_peft
from shoal.transfer.plans import frozen, groups, plans
from shoal.transfer.start import Start, read_start
from shoal.transfer.taking import Taken, take


@dataclass(frozen=True)
class FineTune:
    """Makes a fit start from a run or a file of weights.

    Parameters
    ----------
    config
        The `transfer` section, with a start.
    storage
        How to reach it.
    sha256
        Of the weights, as they were when the fit was asked for.
    said
        What else to say aloud before the fit.
    """

    config: TransferConfig
    storage: StorageConfig
    sha256: str
    said: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that determine what it does, with the model, the data and the `training` section."""
        return {"sha256": self.sha256, **self.config.model_dump(mode="json", exclude=NO_START)}

    def __call__(self, model: Model, schema: Schema, training: TrainingConfig, seed: int) -> FineTuning:
        """Give a new model the weights to start from, and say how it is trained; the same on every worker.

        Raises
        ------
        ConfigError
            If the model or the plan does not fit the start.
        DataError
            If the weights are others than they were.
        """
        start = read_start(str(self.config.start), self.storage)
        if start.sha256 != self.sha256:
            raise DataError(
                f"transfer.start: the weights in {start.place} are others than when this run began; leave them while it runs"
            )
        config, head = self.config, head_of(model, self.config.head)
        taken = take(model, start, schema, head, config)
        if config.lora is not None:
            return self._low_rank(model, training, head, seed, start, taken)
        layers = from_head_down(model, head)
        own = set(taken.names)
        never = frozen(layers, own, config)
        planned = plans(layers, never, config, training.epochs)
        refuse_idle(training, [n for n, _ in model.named_parameters() if n in planned[-1].trained])
        penalised_not = set(unpenalised(model))
        stages = tuple(
            Stage(
                plan.first_epoch,
                plan.trained,
                groups(plan, plan is planned[-1], layers, own, penalised_not, config, training),
                self._still(model, plan.trained),
                f"{plan.label} is trained{' too' if i else ''}",
            )
            for i, plan in enumerate(planned)
        )
        pulled = {}
        if config.l2_sp is not None:
            pulled = {n: p.detach().clone() for n, p in model.named_parameters() if n in own}
        return FineTuning(
            stages,
            pulled,
            config.l2_sp.start if config.l2_sp is not None else 0.0,
            (*self._said(start, taken), *_table(model, layers, stages)),
        )

    def _low_rank(
        self, model: Model, training: TrainingConfig, head: str, seed: int, start: Start, taken: Taken
    ) -> FineTuning:
        assert self.config.lora is not None
        new = {n for n, _ in model.named_parameters()} - set(taken.names)
        trained, merge = add_updates(model, self.config.lora, head, new, seed)
        refuse_idle(training, [n for n, _ in model.named_parameters() if n in trained])
        stage = Stage(0, trained, training.parameter_groups, self._still(model, trained))
        size = _size(model, trained)
        total = sum(p.numel() for p in model.parameters()) - _size(
            model, {n for n in trained if ".lora_" in n}
        )
        said = (
            f"fine-tuning: {plural(size, 'parameter')} are trained, those that are new and updates of rank "
            f"{self.config.lora.rank} beside "
            f"{plural(sum('.lora_A.' in n for n in trained), 'layer')}; all else of the model's {total:,} is frozen"
        )
        return FineTuning((stage,), notices=(*self._said(start, taken), said), finish=merge)

    def _still(self, model: nn.Module, trained: Set[str]) -> frozenset[str]:
        return frozen_batch_norms(model, trained) if self.config.batch_norm == "keep" else frozenset()

    def _said(self, start: Start, taken: Taken) -> tuple[str, ...]:
        if start.schema is None:
            statistics = (
                "means, scales and categories are those of the training rows: a file of weights has none"
            )
        elif self.config.statistics == "start":
            statistics = "columns, means, scales and categories are the start's, as its weights expect (statistics: start)"
        else:
            statistics = (
                "means, scales and categories are fitted anew on the training rows (statistics: data)"
            )
        return taken.said(start.place), f"start: {statistics}", *self.said


def fine_tune(
    config: TransferConfig, storage: StorageConfig, said: tuple[str, ...] = ()
) -> tuple[FineTune, Schema | None]:
    """Look at what a fit starts from.

    Parameters
    ----------
    config
        The `transfer` section, with a start.
    storage
        How to reach it.
    said
        What else to say aloud before the fit.

    Returns
    -------
    What makes the fit start from it, and the schema whose columns and statistics are to be those of the data; None where
    statistics are fitted anew.

    Raises
    ------
    ConfigError, DataError
        As `start.read_start`; and where LoRA is asked for and peft is missing.
    """
    if config.lora is not None:
        require_peft()
    start = read_start(str(config.start), storage)
    if start.schema is not None and config.rename:
        raise ConfigError(
            "transfer.rename is for files of weights: the names in a run are those of the model; leave it out"
        )
    return FineTune(
        config, storage, start.sha256, said
    ), start.schema if config.statistics == "start" else None


def refuse(config: TransferConfig, training: TrainingConfig) -> None:
    """Refuse what cannot be right, before anything starts.

    Raises
    ------
    ConfigError
        With the reason and what to change.
    """
    optimizer = training.optimizer
    name = Choice(OPTIMIZERS).name_of(optimizer)
    if config.unfreeze is not None and isinstance(training.strategy, DeepSpeedConfig):
        raise ConfigError(
            "transfer.unfreeze changes what is trained under way, and training.strategy: deepspeed cuts up what is trained once "
            "and for all; use training.strategy: ddp, or transfer.freeze"
        )
    if config.l2_sp is not None and isinstance(training.strategy, DeepSpeedConfig):
        raise ConfigError(
            "transfer.l2_sp pulls whole parameters to their start, and with training.strategy: deepspeed no worker has them; use "
            "training.strategy: ddp"
        )
    if isinstance(optimizer, SearchConfig):
        for key, given in (
            ("unfreeze", config.unfreeze),
            ("l2_sp", config.l2_sp),
            ("rate_decay", config.rate_decay != 1 or None),
        ):
            if given is not None:
                raise ConfigError(
                    f"transfer.{key}: training.optimizer: {name} searches along one line for all parameters of one objective; "
                    "use an optimiser such as adamw, or leave it out"
                )
    if isinstance(optimizer, Imported) and config.rate_decay != 1:
        raise ConfigError(
            f"transfer.rate_decay: the learning rate of {optimizer.path} is its own; use an optimiser by name, or give rates "
            "with training.parameter_groups"
        )
    if config.l2_sp is not None and training.l2:
        raise ConfigError(
            f"training.l2: {training.l2:g} pulls weights to zero that transfer.l2_sp pulls to their start; leave l2 out, or "
            "l2_sp"
        )


def _size(model: nn.Module, names: Set[str]) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name in names)


def _table(model: nn.Module, layers: Sequence[Layer], stages: Sequence[Stage]) -> list[str]:
    """Say which layers are trained when, at which rate, and which are not: a line each."""
    total, last = _size(model, {n for layer in layers for n in layer.parameters}), stages[-1]
    size = _size(model, last.trained)
    lines = [
        f"fine-tuning: {size:,} of {plural(total, 'parameter')} are trained, {total - size:,} are frozen"
    ]
    for layer in layers:
        own = layer.parameters & last.trained
        first = next((s for s in stages if own & s.trained), None)
        said = "frozen" if first is None else "trained"
        if first is not None and len(stages) > 1:
            said += f" from epoch {first.first_epoch + 1} on"
        if first is not None and own != layer.parameters:
            said += f", but for {plural(_size(model, layer.parameters - own), 'parameter')}"
        rates = sorted(
            {g.learning_rate for g in last.groups if g.learning_rate is not None and g.match in own}
        )
        if rates:
            said += f", learning rate {' and '.join(f'{r:.3g}' for r in rates)}"
        lines.append(f"  {layer.name}: {plural(_size(model, layer.parameters), 'parameter')}, {said}")
    if last.still:
        lines.append(
            f"  {plural(len(last.still), 'frozen batch normalisation')} keep their running statistics (transfer.batch_norm: keep)"
        )
    return lines
