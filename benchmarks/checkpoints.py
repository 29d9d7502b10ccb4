"""What checkpoints cost: training with one every so often against training without, same data.

Run ``python benchmarks/checkpoints.py [--million-parameters 50] [--every 30] [--workers 2]``; prints the share of the time
that training waited for checkpoints, and steps/s of both sides; for one process, or for a worker group on Ray.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from shoal.cluster.progress import Silent
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.storage import Storage
from shoal.experiment import from_dict
from shoal.training.checkpoints.keeper import Keeper, RunKeeper
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.verbs import train

ROWS, WIDTH, BATCH = 4096, 64, 64


def dataset() -> ArrayDataset:
    """Numbers and a label, made up: only the weights' size matters here."""
    rng = np.random.default_rng(0)
    columns = tuple(
        Column(
            name=f"x{i}", type="numeric", arrow_type="double", parts=(f"x{i}",), center=(0.0,), scale=(1.0,)
        )
        for i in range(WIDTH)
    )
    schema = Schema(columns=columns, target=Target(columns=("y",), task="binary", classes=("no", "yes")))
    numeric = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    label = (numeric[:, 0] > 0).astype(np.int64)
    return ArrayDataset(schema, {"train": ArrayPart(numeric, np.zeros((ROWS, 0), np.int32), label)}, 16)


def fit(keeper: Keeper, hidden: int, epochs: int) -> tuple[Loop, float]:
    """Fit and return the loop and its seconds."""
    data = dataset()
    model = build_model(MLPConfig(hidden=(hidden, hidden)), data.schema, 0)
    config = TrainingConfig.model_validate(
        {"epochs": epochs, "batch_size": BATCH, "early_stopping": None, "optimizer": "adam"}
    )
    loop = Loop(model, data, config, Strategy(torch.device("cpu")), None, 0, Silent(), keeper)
    started = time.perf_counter()
    loop.run()
    return loop, time.perf_counter() - started


def group_fit(
    folder: str, every: float | None, hidden: int, epochs: int, workers: int
) -> tuple[float, float]:
    """Fit in a worker group; return the seconds that worker 0 waited for checkpoints, and those of the training."""
    part = dataset().parts["train"]
    columns = {f"x{i}": part.numeric[:, i] for i in range(WIDTH)}
    pq.write_table(pa.table(columns | {"y": part.label}), f"{folder}/rows.parquet")
    experiment = {
        "data": {"path": f"{folder}/rows.parquet", "target": "y"},
        "model": {"mlp": {"hidden": [hidden, hidden]}},
        "training": {
            "epochs": epochs,
            "batch_size": BATCH,
            "early_stopping": None,
            "optimizer": "adam",
            "checkpoint": every and {"every": every, "keep": 2},
        },
        "cluster": {"num_workers": workers, "placement": "group", "storage_path": f"{folder}/runs"},
    }
    run = f"{folder}/run-{every}"
    train(from_dict(experiment), run)
    history = pq.read_table(f"{run}/history.parquet").to_pandas()
    own = history[(history.split == "worker 0") & (history.metric == "checkpoint_seconds")]
    return float(own.value.max()), float(history.seconds.max())


def group_pair(given: argparse.Namespace, hidden: int) -> tuple[float, float, float, str]:
    """Return seconds without and with checkpoints, those waited for them, and what else to say."""
    with tempfile.TemporaryDirectory() as folder:
        _, plain = group_fit(folder, None, hidden, given.epochs, given.workers)
        waited, kept = group_fit(folder, given.every, hidden, given.epochs, given.workers)
    return plain, kept, waited, ""


def inline_pair(given: argparse.Namespace, hidden: int) -> tuple[float, float, float, str]:
    """The same in this process."""
    _, plain = fit(Keeper(), hidden, given.epochs)
    with tempfile.TemporaryDirectory() as folder:
        loop, kept = fit(RunKeeper(Storage.open(folder), given.every, 2), hidden, given.epochs)
        size = max(
            (sum(f.stat().st_size for f in p.iterdir()) for p in Path(folder).glob("*/*/step-*")), default=0
        )
    return plain, kept, loop.account.seconds["checkpoint"], f"; each has {size / 2**20:,.0f} MiB"


def main() -> None:
    """Measure both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million-parameters", type=float, default=50)
    parser.add_argument("--every", type=float, default=30, help="seconds between checkpoints")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workers", type=int, help="a worker group of so many, on Ray; one process without")
    given = parser.parse_args()
    hidden = int((given.million_parameters * 1e6) ** 0.5)
    shares, ratios = [], []
    measure = group_pair if given.workers else inline_pair
    for _ in range(given.repeats):
        plain, kept, waited, note = measure(given, hidden)
        shares.append(waited / kept)
        ratios.append(plain / kept)
        print(
            f"without {plain:.1f} s, with {kept:.1f} s; training waited {waited:.2f} s of it, {shares[-1]:.1%}{note}"
        )
    print(f"median share of the time {np.median(shares):.1%}; throughput ratio {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
