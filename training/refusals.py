"""What is refused, or advised against, when the model and the data are there; `allowed` needs neither.

Every worker decides alike: none may go on alone.
"""

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import nn

from shoal.cluster.components import Choice, Imported
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.manifest import SPLITS
from shoal.training.batches import Dataset
from shoal.training.config import OPTIMIZERS, EarlyStoppingConfig, SearchConfig, TrainingConfig
from shoal.training.costs import Costs, by_name
from shoal.training.draws import CounterDropout
from shoal.training.losses.config import PoissonConfig
from shoal.training.models import Model, can_recompute
from shoal.training.plan import EpochPlan
from shoal.training.reasonable import refusal, shown, unreasonable
from shoal.training.sampling.config import BootstrapConfig, CostRejectionConfig, ShuffleConfig
from shoal.training.schedules.config import PlateauConfig
from shoal.training.schedules.schedule import Schedule
from shoal.training.strategies.base import Strategy

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def refuse_model(model: Model, config: TrainingConfig, workers: int, still: Collection[str] = ()) -> None:
    """Refuse a model that cannot be trained in this way.

    Parameters
    ----------
    still
        Names of modules that are never in training mode.

    Raises
    ------
    ConfigError
        With the layer, and what to use in its place.
    """
    if config.mixup is not None and model.by_type:
        raise ConfigError(
            "training.mixup blends encoded rows, and this model takes numbers and categories apart: use one that gets one "
            "tensor, such as mlp, or leave mixup out"
        )
    if config.activation_checkpointing and not can_recompute(model):
        raise ConfigError(
            "training.activation_checkpointing: this model has no torch.nn.Sequential of more than 2 layers and no "
            "ModuleList of blocks, so there is nothing to compute again; leave it out"
        )
    for name, module in model.named_modules():
        if not isinstance(module, _BATCH_NORM) or name in still:
            continue
        moves = module.track_running_stats or any(p.requires_grad for p in module.parameters())
        if workers > 1 and moves and not isinstance(module, torch.nn.SyncBatchNorm):
            raise ConfigError(
                f"model: {name} is a {type(module).__name__}, whose statistics differ between {workers} workers: use LayerNorm "
                "or GroupNorm, torch.nn.SyncBatchNorm on GPUs, or cluster.num_workers: 1"
            )
        if config.averaging is not None and module.track_running_stats:
            raise ConfigError(
                f"training.averaging: the statistics of {name}, a {type(module).__name__}, are not those of averaged weights; "
                "use LayerNorm or GroupNorm, or leave averaging out"
            )


def refuse_costs(dataset: Dataset, costs: Costs, strategy: Strategy) -> None:
    """Refuse rows of any part for which a mistake costs no more than deciding right, or next to nothing beside the opposite one.

    Raises
    ------
    DataError
        With how many rows there are, and one of them.
    """
    schema = dataset.schema
    if not costs.columns:
        return
    wrong, examples = 0, []
    for split in SPLITS:
        for v in range(strategy.rank, len(dataset.shard_rows(split)), strategy.world_size):
            shard = dataset.shard(split, v)
            real = np.flatnonzero(np.isfinite(shard.cost).all(axis=1))  # without those that resampling made
            own = unreasonable(costs, by_name(shard.cost[real], schema.costs), schema)
            if own is not None:
                rows, first, why = own
                wrong += rows
                examples.append((shown(int(real[first]), shard.row_id, schema), why))
    total = int(strategy.sum(torch.tensor(float(wrong), dtype=torch.float64, device=strategy.device)))
    if not total:
        return
    found = strategy.gather_objects(examples)
    text = None
    if found is not None:
        text = refusal(costs, total, *next(one for of_worker in found for one in of_worker))
    raise DataError(strategy.broadcast(text))


def refuse_data(
    dataset: Dataset,
    config: TrainingConfig,
    strategy: Strategy,
    own: Iterable[ShardRows],
    validates: bool,
) -> None:
    """Refuse data that the loss or the schedule has no use for.

    Raises
    ------
    ConfigError
        With the value, and what to use in its place.
    """
    if isinstance(config.schedule, PlateauConfig) and not validates:
        raise ConfigError(
            "training.schedule: reduce_on_plateau looks at the validation rows, and there are none; set data.split.validation, "
            "or use another schedule"
        )
    target = dataset.schema.target
    if isinstance(config.loss, PoissonConfig) and target.task == "regression":
        least = min((float(shard.label.min()) for shard in own if len(shard.label)), default=0.0)
        least = -strategy.maximum(-least)
        if least < 0 or target.center <= 0:
            raise ConfigError(
                f"training.loss: poisson needs counts of at least 0, some above it; the least training label is {least:g}. Use "
                "squared_error, huber or quantile"
            )


def what_draws(model: Model, config: TrainingConfig) -> str:
    """Say what makes the objective another one in each step of the same rows; empty where nothing does."""
    found = ["mixup"] if config.mixup is not None else []
    if any(isinstance(m, CounterDropout) and m.p > 0 for m in model.modules()):
        found.append("dropout")
    if config.augment is not None:
        found.append("augment")
    if not isinstance(
        config.sampling, ShuffleConfig | CostRejectionConfig | BootstrapConfig
    ):  # those keep the rows of a whole step
        found.append("training.sampling")
    return " and ".join(found)


def unfitting(config: TrainingConfig, plan: EpochPlan, draws: str) -> list[str]:
    """Say what is allowed and seldom meant.

    Parameters
    ----------
    draws
        What `what_draws` says.
    """
    notices = []
    stopping = config.early_stopping
    if stopping is not None and stopping.patience != EarlyStoppingConfig().patience:
        left = config.epochs - stopping.warmup
        if stopping.patience >= left:
            notices.append(
                f"training.early_stopping.patience: {stopping.patience} epochs without improvement are not fewer than the {left} "
                "in which patience runs, so nothing stops early; use a smaller one, or more epochs"
            )
    if config.gradient_accumulation > plan.batch_size:
        notices.append(
            f"training.gradient_accumulation: {config.gradient_accumulation} parts of a step of {plan.batch_size} rows: some are "
            "empty; use a smaller number"
        )
    if isinstance(config.optimizer, SearchConfig):
        name = Choice(OPTIMIZERS).name_of(config.optimizer)
        if plan.steps_per_epoch > 1:
            notices.append(
                f"training.optimizer: {name} searches for the optimum of each batch in turn, which is seldom that of all rows; "
                "set training.batch_size: full"
            )
        elif draws:
            notices.append(
                f"training.optimizer: {name} searches for the optimum of one draw at a time ({draws}), so that no step is the "
                "last one; leave that out, or use an optimiser such as adamw"
            )
    if config.averaging is not None and config.l1 is not None and config.l1.proximal is not None:
        notices.append(
            "training.averaging: a mean of weights is seldom exactly zero, so l1: proximal leaves hardly any feature out; leave "
            "one of them out"
        )
    return notices


def idle(config: TrainingConfig, schedule: Schedule, unchanged: bool) -> list[str]:
    """Say of an optimiser, a schedule and a loss of the user's own, after the fit, that they did nothing.

    Parameters
    ----------
    unchanged
        Whether all weights are as they were.
    """
    notices = []
    if unchanged:
        own = [p.path for p in (config.optimizer, config.schedule, config.loss) if isinstance(p, Imported)]
        notices.append(
            f"every weight was left as it was: the model is not trained. Look at {' and '.join(own)}: the optimiser's step, the "
            "learning rate, the loss's gradient"
        )
    if isinstance(config.schedule, Imported) and not schedule.moved:
        notices.append(
            f"training.schedule.import: {config.schedule.path} left the learning rate as it was at first in every step; it turns "
            "once a step, not once an epoch"
        )
    return notices
