"""A training loop in plain torch, written by hand, that reads the same plan: what Shoal's must equal."""

from typing import Any

import torch
from torch.nn import functional as F

from shoal.training.config import (
    AdadeltaConfig,
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    NAdamConfig,
    RAdamConfig,
    RMSpropConfig,
    SGDConfig,
)
from shoal.training.memory import ArrayDataset
from shoal.training.models import Model
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
    """Train ``model`` in place, on the rows of the epoch plan, in the order of its batches; it is on the device."""
    part, task = dataset.parts["train"], dataset.schema.target.task
    plan = EpochPlan(dataset.shard_rows("train"), 50, 3)
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
            with torch.autocast(device, lower, enabled=lower is not None):
                logits = model(numeric[rows], categorical[rows])
            logits = logits.to(dtype)
            label = torch.from_numpy(part.label)[rows].to(device)
            if task == "binary":
                loss = F.binary_cross_entropy_with_logits(logits[:, 0], label.to(dtype))
            elif task == "multiclass":
                loss = F.cross_entropy(logits, label)
            elif task == "multilabel":
                loss = F.binary_cross_entropy_with_logits(logits, label.to(dtype))
            else:
                loss = F.mse_loss(logits[:, 0], (label - 2.0) / 3.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()


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
        RMSpropConfig(learning_rate=0.01, momentum=0.5),
        lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5),
    ),
    "nadam": (
        NAdamConfig(learning_rate=0.01, weight_decay=0.1, decoupled_weight_decay=True),
        lambda m: torch.optim.NAdam(groups(m), lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "radam": (
        RAdamConfig(learning_rate=0.1, weight_decay=0.1),
        lambda m: torch.optim.RAdam(groups(m), lr=0.1, weight_decay=0.1),
    ),
    "adadelta": (AdadeltaConfig(eps=1e-4), lambda m: torch.optim.Adadelta(m.parameters(), eps=1e-4)),
}
