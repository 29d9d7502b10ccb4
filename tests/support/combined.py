"""Optimiser, schedule, penalty and loss together: by Shoal's loop, and by a loop in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import lr_scheduler

from shoal.cluster.progress import Silent
from shoal.training.checkpoints.keeper import Keeper
from shoal.training.config import SEARCHING, MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import Model, build_model
from shoal.training.plan import EpochPlan
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from support.by_hand import OPTIMIZERS
from support.prepared import make_dataset

EPOCHS, ROWS = 3, 203
Scheduler = Callable[[torch.optim.Optimizer, int, int], Any]


@dataclass(frozen=True)
class Combination:
    """One choice on each axis."""

    optimizer: str
    schedule: str
    penalty: str
    loss: str

    @property
    def is_allowed(self) -> bool:
        """Whether Shoal allows it."""
        return self.optimizer not in SEARCHING or (self.schedule == "constant" and "l1" not in self.penalty)


def weighted(losses: Tensor, labels: Tensor, rows: list[int]) -> Tensor:
    """The mean with balanced weights, as torch's weighted mean is."""
    counts = torch.tensor(rows, dtype=losses.dtype)
    weights = (counts.sum() / (len(rows) * counts))[labels]
    return (losses * weights).sum() / weights.sum()


def two_way(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z), z], 1)


def standard(y: Tensor) -> Tensor:
    return (y - 2.0) / 3.0


SCHEDULES: dict[str, tuple[Any, Scheduler | None, str]] = {
    "constant": ("constant", None, "step"),
    "step": (
        {"step": {"step_size": 1, "gamma": 0.5}},
        lambda o, _, __: lr_scheduler.StepLR(o, 1, 0.5),
        "epoch",
    ),
    "cosine": ("cosine", lambda o, total, _: lr_scheduler.CosineAnnealingLR(o, total), "step"),
    "exponential": (
        {"exponential": {"gamma": 0.9, "unit": "step"}},
        lambda o, _, __: lr_scheduler.ExponentialLR(o, 0.9),
        "step",
    ),
    "one_cycle": (
        {"one_cycle": {"cycle_momentum": False}},
        lambda o, total, _: lr_scheduler.OneCycleLR(
            o, [g["lr"] for g in o.param_groups], total, cycle_momentum=False
        ),
        "step",
    ),
}
PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "l2": {"l2": 0.1},
    "l1": {"l1": {"subgradient": 0.01}},
    "l1 and l2": {"l1": {"subgradient": 0.02}, "l2": 0.05},
}
LOSSES: dict[str, tuple[str, Any, Callable[[Tensor, Tensor, list[int]], Tensor]]] = {
    "auto": ("binary", "auto", lambda z, y, _: F.binary_cross_entropy_with_logits(z[:, 0], y.double())),
    "balanced": (
        "multiclass",
        {"cross_entropy": {"class_weights": "balanced"}},
        lambda z, y, rows: weighted(F.cross_entropy(z, y, reduction="none"), y, rows),
    ),
    "focal": (
        "binary",
        {"focal": {"gamma": 1.5, "class_weights": "balanced"}},
        lambda z, y, rows: weighted(
            (1 - torch.exp(-F.cross_entropy(two_way(z), y, reduction="none"))) ** 1.5
            * F.cross_entropy(two_way(z), y, reduction="none"),
            y,
            rows,
        ),
    ),
    "logit_adjusted": (
        "multiclass",
        "logit_adjusted",
        lambda z, y, rows: F.cross_entropy(z + (torch.tensor(rows).double() / sum(rows)).log(), y),
    ),
    "smoothed": (
        "multiclass",
        {"cross_entropy": {"label_smoothing": 0.1}},
        lambda z, y, _: F.cross_entropy(z, y, label_smoothing=0.1),
    ),
    "huber": (
        "regression",
        {"huber": {"delta": 0.5}},
        lambda z, y, _: F.huber_loss(z[:, 0], standard(y), delta=0.5),
    ),
    "quantile": (
        "regression",
        {"quantile": {"quantile": 0.8}},
        lambda z, y, _: torch.maximum(0.8 * (standard(y) - z[:, 0]), -0.2 * (standard(y) - z[:, 0])).mean(),
    ),
}


def loop_of(made: Combination, strategy: Strategy, keeper: Keeper | None = None) -> Loop:
    """Return Shoal's loop of a combination, in fp64."""
    task, loss, _ = LOSSES[made.loss]
    dataset = make_dataset(task, ROWS)
    config = TrainingConfig.model_validate(
        {
            "epochs": EPOCHS,
            "batch_size": "full" if made.optimizer in SEARCHING else 50,
            "precision": "fp64",
            "early_stopping": None,
            "optimizer": {made.optimizer: OPTIMIZERS[made.optimizer][0].model_dump()},
            "schedule": SCHEDULES[made.schedule][0],
            "loss": loss,
            **PENALTIES[made.penalty],
        }
    )
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3)
    return Loop(model, dataset, config, strategy, None, 3, Silent(), keeper or Keeper())


def flat(model: Model) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def fit(made: Combination, strategy: Strategy) -> np.ndarray:
    loop = loop_of(made, strategy)
    loop.run()
    return flat(loop.model)


def fits(combinations: list[Combination]) -> list[np.ndarray]:
    """Fit as a worker of the group that exists."""
    torch.set_num_threads(1)
    return [fit(made, DDP(torch.device("cpu"))) for made in combinations]


def by_hand(made: Combination) -> np.ndarray:
    """Fit in plain torch."""
    task, _, loss = LOSSES[made.loss]
    dataset = make_dataset(task, ROWS)
    part, model = dataset.parts["train"], build_model(MLPConfig(hidden=(8,)), dataset.schema, 3).double()
    plan = EpochPlan(dataset.shard_rows("train"), ROWS if made.optimizer in SEARCHING else 50, 3)
    optimizer = OPTIMIZERS[made.optimizer][1](model)
    _, build, unit = SCHEDULES[made.schedule]
    scheduler = build(optimizer, EPOCHS * plan.steps_per_epoch, EPOCHS) if build else None
    weights = [p for n, p in model.named_parameters() if n.startswith("body.") and p.ndim == 2]
    l1 = PENALTIES[made.penalty].get("l1", {}).get("subgradient", 0.0)
    l2 = PENALTIES[made.penalty].get("l2", 0.0)
    counts = list(dataset.class_rows("train"))
    for epoch in range(EPOCHS):
        for step in range(plan.steps_per_epoch):
            rows = [
                plan.permutation(epoch, p % plan.n_shards)[p // plan.n_shards] * plan.n_shards
                + p % plan.n_shards
                for p in range(*plan.bounds(step))
            ]

            def closure(rows: list[int] = rows) -> Tensor:
                optimizer.zero_grad()
                logits = model(
                    torch.from_numpy(part.numeric)[rows].double(), torch.from_numpy(part.categorical)[rows]
                )
                penalty = l1 * sum(w.abs().sum() for w in weights) + l2 / 2 * sum(
                    (w**2).sum() for w in weights
                )
                total: Tensor = loss(logits, torch.from_numpy(part.label)[rows], counts) + penalty
                total.backward()
                return total

            optimizer.step(closure)
            if scheduler is not None and unit == "step":
                scheduler.step()
        if scheduler is not None and unit == "epoch":
            scheduler.step()
    return flat(model)
