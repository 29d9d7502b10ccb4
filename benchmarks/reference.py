"""The reference problem of contract 5, and how far one worker and two drift apart on it.

Run ``python benchmarks/reference.py`` for the drift in fp32 and fp64 after 50 and 1,000 steps.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from shoal.cluster.progress import Silent
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy


def reference_dataset() -> ArrayDataset:
    """Handwritten digits (scikit-learn's), digit 8 against the rest, 1,797 x 64, standardised, in 16 shards."""
    data = load_digits()
    center, scale = data.data.mean(0), data.data.std(0)
    numeric = ((data.data - center) / np.where(scale > 0, scale, 1)).astype(np.float32)
    columns = tuple(
        Column(
            name=f"p{i}", type="numeric", arrow_type="double", parts=(f"p{i}",), center=(0.0,), scale=(1.0,)
        )
        for i in range(64)
    )
    schema = Schema(
        columns=columns, target=Target(columns=("eight",), task="binary", classes=("rest", "eight"))
    )
    part = ArrayPart(numeric, np.zeros((len(numeric), 0), np.int32), (data.target == 8).astype(np.int64))
    return ArrayDataset(schema, {"train": part}, 16)


def train_reference(strategy: Strategy, precision: str, steps: int) -> np.ndarray:
    """Train a 64-64 MLP with dropout by AdamW at 1e-3, batch 64, for whole epochs up to ``steps``; return all parameters."""
    dataset = reference_dataset()
    model = build_model(MLPConfig(hidden=(64, 64), dropout=0.1), dataset.schema, 0)
    epochs = max(1, steps // 29)
    config = TrainingConfig.model_validate(
        {"epochs": epochs, "batch_size": 64, "precision": precision, "early_stopping": None}
    )
    Loop(model, dataset, config, strategy, None, 0, Silent()).run()
    return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])


def together(precision: str, steps: int) -> np.ndarray:
    """Train the reference problem as one worker of the process group that exists."""
    from shoal.training.strategies.ddp import DDP

    return train_reference(DDP(torch.device("cpu")), precision, steps)


def main() -> None:
    """Print the drift."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.together import run_together

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "fp64"):
            for steps in (50, 1000):
                alone = train_reference(Strategy(torch.device("cpu")), precision, steps)
                for workers in (2, 3):
                    many = run_together(Path(folder), workers, together, precision, steps)[0]
                    print(
                        f"{precision} {steps:>5} steps, 1 against {workers} workers: {np.abs(alone - many).max():.1e}"
                    )


if __name__ == "__main__":
    main()
