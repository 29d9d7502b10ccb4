"""A training loop in plain torch, written by hand, that reads the same plan: what Shoal's must equal."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from shoal.training.config import (
    AdadeltaConfig,
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    LBFGSConfig,
    NAdamConfig,
    NonlinearCGConfig,
    RAdamConfig,
    RMSpropConfig,
    SGDConfig,
)
from shoal.training.memory import ArrayDataset
from shoal.training.models import Model
from shoal.training.optimizers.nonlinear_cg import NonlinearCG
from shoal.training.plan import EpochPlan


def by_hand(
    dataset: ArrayDataset,
    optimizer: torch.optim.Optimizer,
    model: Model,
    epochs: int,
    clip: float | None = None,
    precision: str = "fp64",
    device: str = "cpu",
) -> None:
    """Train ``model`` in place, on the rows of the epoch plan, in the order of its batches; it is on the device.

    Optimisers that search along lines get all rows in each step: on rows that change they amplify rounding.
    """
    part, task = dataset.parts["train"], dataset.schema.target.task
    batch_size = len(part) if isinstance(optimizer, torch.optim.LBFGS | NonlinearCG) else 50
    plan = EpochPlan(dataset.shard_rows("train"), batch_size, 3)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    numeric = torch.from_numpy(part.numeric).to(device, dtype)
    categorical = torch.from_numpy(part.categorical).to(device)
    for epoch in range(epochs):
        for step in range(plan.steps_per_epoch):
            rows = [
                plan.permutation(epoch, p % plan.n_shards)[p // plan.n_shards] * plan.n_shards
                + p % plan.n_shards
                for p in range(*plan.bounds(step))
            ]
            label = torch.from_numpy(part.label)[rows].to(device)

            def objective(rows: list[int] = rows, label: torch.Tensor = label) -> torch.Tensor:
                with torch.autocast(device, lower, enabled=lower is not None):
                    logits = model(numeric[rows], categorical[rows])
                return loss_of(task, logits.to(dtype), label)

            def closure(objective: Callable[[], torch.Tensor] = objective) -> torch.Tensor:
                optimizer.zero_grad()
                loss = objective()
                loss.backward()
                return loss

            if isinstance(optimizer, torch.optim.LBFGS | NonlinearCG):
                optimizer.step(closure)
                continue
            optimizer.zero_grad()
            scaler.scale(objective()).backward()
            if clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()


def loss_of(task: str, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    if task == "binary":
        return F.binary_cross_entropy_with_logits(logits[:, 0], label.to(logits.dtype))
    if task == "multiclass":
        return F.cross_entropy(logits, label)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype))
    return F.mse_loss(logits[:, 0], ((label - 2.0) / 3.0).to(logits.dtype))


def groups(model: Model) -> list[dict[str, Any]]:
    """All but the weights of the body's layers go without decay."""
    named = dict(model.named_parameters())
    weights = {n for n, p in named.items() if n.startswith("body.") and p.ndim == 2}
    return [
        {"params": [named[n] for n in named if n in weights]},
        {"params": [named[n] for n in named if n not in weights], "weight_decay": 0.0},
    ]


OPTIMIZERS = {
    "sgd": (SGDConfig(learning_rate=0.05), lambda m: torch.optim.SGD(groups(m), lr=0.05, momentum=0.9)),
    "adam": (
        AdamConfig(learning_rate=0.01, weight_decay=0.1),
        lambda m: torch.optim.Adam(groups(m), lr=0.01, weight_decay=0.1),
    ),
    "adamw": (
        AdamWConfig(learning_rate=0.01),
        lambda m: torch.optim.AdamW(groups(m), lr=0.01, weight_decay=0.01),
    ),
    "adagrad": (
        AdagradConfig(learning_rate=0.05, initial_accumulator_value=0.1),
        lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05, initial_accumulator_value=0.1),
    ),
    "rmsprop": (
        RMSpropConfig(learning_rate=0.01, momentum=0.5, eps=0.1),
        lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5, eps=0.1),
    ),
    "nadam": (
        NAdamConfig(learning_rate=0.01, weight_decay=0.1, decoupled_weight_decay=True),
        lambda m: torch.optim.NAdam(groups(m), lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "radam": (
        RAdamConfig(learning_rate=0.1, weight_decay=0.1),
        lambda m: torch.optim.RAdam(groups(m), lr=0.1, weight_decay=0.1),
    ),
    "lbfgs": (
        LBFGSConfig(max_iter=4, history_size=3),
        lambda m: torch.optim.LBFGS(
            m.parameters(), max_iter=4, history_size=3, line_search_fn="strong_wolfe"
        ),
    ),
    "nonlinear_cg": (  # its own oracles are in test_searching
        NonlinearCGConfig(max_iter=4),
        lambda m: NonlinearCG(m.parameters(), max_iter=4),
    ),
    "adadelta": (AdadeltaConfig(eps=1e-4), lambda m: torch.optim.Adadelta(m.parameters(), eps=1e-4)),
}
