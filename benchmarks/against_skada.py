"""Processor seconds an epoch and target accuracy, beside skada's deep methods on the same network, rows, batches and rate.

    python benchmarks/against_skada.py SOURCE.parquet TARGET.parquet TEST.parquet [--target label] [--list words] [--epochs N]

Needs skada and skorch. DANN gets a discriminator with one logit and binary cross-entropy, since skada 0.6's own is a softmax
over one logit, which learns nothing. Both sides run in one process, one thread, in turns; each takes the last epoch's weights,
which is the same rule of selection. Figures are medians. The rows are in memory on both sides.
"""

import argparse
import time
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from shoal.cluster.progress import Silent
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.transfer.adaptation.config import DANNConfig, DeepCORALConfig
from shoal.transfer.adaptation.service import at_work

HIDDEN, RATE, BATCH, WEIGHT = 100, 1e-3, 128, 1.0


class Net(nn.Module):
    """The same network for skada, which names the aligned layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU())
        self.head = nn.Linear(HIDDEN, classes)

    def forward(self, x: torch.Tensor, sample_weight: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return logits."""
        out: torch.Tensor = self.head(self.features(x))
        return out


def ours(
    method: str, source: tuple, target: np.ndarray, test: tuple, classes: int, epochs: int
) -> tuple[float, float]:
    """Return processor seconds an epoch, and accuracy."""
    width = target.shape[1]
    column = Column(
        name="x",
        type="tensor",
        arrow_type="",
        parts=tuple(map(str, range(width))),
        center=(0.0,) * width,
        scale=(1.0,) * width,
    )
    schema = Schema(
        columns=(column,), target=Target(columns=("y",), task="multiclass", classes=tuple(range(classes)))
    )

    def rows(x: np.ndarray, y: np.ndarray) -> ArrayDataset:
        return ArrayDataset(schema, {"train": ArrayPart(x, np.zeros((len(x), 0), np.int32), y)}, 8)

    config = TrainingConfig.model_validate(
        {
            "epochs": epochs,
            "batch_size": BATCH,
            "early_stopping": None,
            "optimizer": {"adam": {"learning_rate": RATE}},
        }
    )
    chosen = DANNConfig(hidden=(64,), weight=WEIGHT) if method == "dann" else DeepCORALConfig(weight=WEIGHT)
    dataset, unlabelled = rows(*source), rows(target, np.zeros(len(target), np.int64))
    model, adaptation, dataset = at_work(
        chosen,
        lambda seed: build_model(MLPConfig(hidden=(HIDDEN,)), schema, seed),
        dataset,
        unlabelled,
        None,
        0,
        epochs,
    )
    start = time.process_time()
    Loop(
        model, dataset, config, Strategy(torch.device("cpu")), None, 0, Silent(), adaptation=adaptation
    ).run()
    seconds = (time.process_time() - start) / epochs
    adaptation.finish()
    with torch.no_grad():
        answers = model(torch.from_numpy(test[0]), torch.zeros(len(test[0]), 0, dtype=torch.int32)).argmax(1)
    return seconds, float((answers.numpy() == test[1]).mean())


def theirs(
    method: str, source: tuple, target: np.ndarray, test: tuple, classes: int, epochs: int
) -> tuple[float, float]:
    """Return processor seconds an epoch, and accuracy."""
    from skada.deep import DANN, DeepCoral

    torch.manual_seed(0)
    settings = {
        "layer_name": "features",
        "batch_size": BATCH,
        "max_epochs": epochs,
        "optimizer": torch.optim.Adam,
        "lr": RATE,
        "train_split": None,
        "verbose": 0,
    }
    net = Net(target.shape[1], classes)
    if method == "dann":
        discriminator = nn.Sequential(nn.Linear(HIDDEN, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
        made = DANN(
            net,
            reg=WEIGHT,
            domain_classifier=discriminator,
            domain_criterion=nn.BCEWithLogitsLoss(),
            **settings,
        )
    else:
        made = DeepCoral(net, reg=WEIGHT, **settings)
    x = np.concatenate([source[0], target])
    y = np.concatenate([source[1], np.full(len(target), -1)])
    domain = np.repeat([1, -2], [len(source[0]), len(target)])
    start = time.process_time()
    made.fit(x, y, sample_domain=domain)
    seconds = (time.process_time() - start) / epochs
    answers = made.predict(test[0], sample_domain=np.full(len(test[0]), -2))
    return seconds, float((np.asarray(answers).ravel() == test[1]).mean())


def main() -> None:
    """Measure both sides in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs=3)
    parser.add_argument("--target", default="label")
    parser.add_argument("--list", default="words", help="the column of lists")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tables = [pq.read_table(path) for path in args.files]
    names = sorted(set(tables[0][args.target].to_pylist()))
    x = [np.stack(t[args.list].to_numpy()).astype(np.float32) for t in tables]
    y = [np.array([names.index(v) for v in t[args.target].to_pylist()]) for t in tables]
    print("| | Shoal: CPU s an epoch | accuracy | skada | accuracy | ratio |\n|---|---|---|---|---|---|")
    for method in ("deep_coral", "dann"):
        found = []
        for _ in range(args.repeats):
            found.append(
                [
                    side(method, (x[0], y[0]), x[1], (x[2], y[2]), len(names), args.epochs)
                    for side in (ours, theirs)
                ]
            )
        own, other = (median(one[i][0] for one in found) for i in (0, 1))
        right, theirs_right = (median(one[i][1] for one in found) for i in (0, 1))
        print(
            f"| {method} | {own:.3f} | {right:.3f} | {other:.3f} | {theirs_right:.3f} | {own / other:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
