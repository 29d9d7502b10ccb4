"""A training loop in plain torch, written by hand, that reads the same plan: what Shoal's must equal."""

import torch
from torch.nn import functional as F

from shoal.training.config import AdamConfig, AdamWConfig, SGDConfig
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


OPTIMIZERS = {
    "sgd": (SGDConfig(learning_rate=0.05), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": (
        AdamConfig(learning_rate=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
    "adamw": (AdamWConfig(learning_rate=0.01), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01)),
}
