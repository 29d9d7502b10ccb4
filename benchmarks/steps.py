"""What a step of the loop costs beyond its torch operations: Shoal's loop against a loop written by hand, in one process.

    python benchmarks/steps.py [--repeats 7]

Both sides train the same module (32 numbers, ReLU layers, one logit) by the same fused Adam on the same rows in memory, with
one thread; by hand: index a batch, forward, `BCEWithLogitsLoss`, backward, step. Shoal's side also plans the batches, checks that
each gradient is finite, and keeps its history. They take turns, each of them first in every other one; printed are medians of
the processor's milliseconds a step, which other programs disturb less than the clock's, and the median of the pairs' ratios.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch import nn

from shoal.cluster.progress import Silent
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import Model, build_model
from shoal.training.strategies.base import Strategy

BATCH, FEATURES, SHARDS = 1024, 32, 16
MODELS = {"small": ((128, 128), 200), "larger": ((512, 512, 512), 20)}  # hidden layers, steps of a fit


def dataset(rows: int) -> ArrayDataset:
    """Random numbers and labels."""
    rng = np.random.default_rng(0)
    columns = tuple(
        Column(
            name=f"x{i}", type="numeric", arrow_type="double", parts=(f"x{i}",), center=(0.0,), scale=(1.0,)
        )
        for i in range(FEATURES)
    )
    schema = Schema(columns=columns, target=Target(columns=("y",), task="binary", classes=("no", "yes")))
    numeric = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    part = ArrayPart(numeric, np.zeros((rows, 0), np.int32), rng.integers(0, 2, rows))
    return ArrayDataset(schema, {"train": part}, SHARDS)


def by_hand(model: Model, data: ArrayDataset) -> None:
    """Train an epoch as a person writes it."""
    part = data.parts["train"]
    numeric, codes = torch.from_numpy(part.numeric), torch.from_numpy(part.categorical)
    labels = torch.from_numpy(part.label).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    order = torch.randperm(len(labels))
    for low in range(0, len(labels), BATCH):
        index = order[low : low + BATCH]
        optimizer.zero_grad()
        loss_of(model(numeric[index], codes[index]).squeeze(1), labels[index]).backward()
        optimizer.step()


def by_shoal(model: Model, data: ArrayDataset) -> None:
    """Train an epoch with Shoal's loop."""
    config = TrainingConfig.model_validate(
        {"epochs": 1, "batch_size": BATCH, "optimizer": "adam", "early_stopping": None}
    )
    Loop(model, data, config, Strategy(torch.device("cpu")), None, 0, Silent()).run()


def compare(name: str, repeats: int) -> None:
    """Alternate both sides and print medians and their ratio."""
    hidden, steps = MODELS[name]
    data = dataset(steps * BATCH)
    spent: dict[str, list[float]] = {"by hand": [], "shoal": []}
    sides = {"by hand": by_hand, "shoal": by_shoal}
    for turn in range(-1, repeats):  # the first turn is not counted
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            model = build_model(MLPConfig(hidden=hidden), data.schema, 0)
            started = time.process_time()
            sides[side](model, data)
            if turn >= 0:
                spent[side].append((time.process_time() - started) / steps * 1e3)
    ratios = [s / h for s, h in zip(spent["shoal"], spent["by hand"], strict=True)]
    texts = [
        f"{side} {statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f}) ms" for side, v in spent.items()
    ]
    print(
        f"{name} {hidden}, batch {BATCH}: {', '.join(texts)}, ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


def main() -> None:
    """Compare both models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in MODELS:
        compare(name, options.repeats)


if __name__ == "__main__":
    main()
