"""What a person writes by hand: pandas, tensors, index batches. One process, or several under torchrun with DDP.

Usage: python benchmarks/handwritten.py FILE.parquet        (a 0/1 `label`, a `split` column with train and test)
       torchrun --nproc-per-node 2 benchmarks/handwritten.py FILE.parquet
Prints one JSON line: rows per second of training, ROC AUC on the test rows.
"""

import json
import os
import sys
import time

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import nn

EPOCHS, BATCH = 3, 1024


class Net(nn.Module):
    def __init__(self, n_numbers: int, cardinalities: list[int]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, min(50, (n + 1) // 2)) for n in cardinalities)
        width = n_numbers + sum(e.embedding_dim for e in self.embeddings)
        self.body = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
        )

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        embedded = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        return self.body(torch.cat([numbers, *embedded], 1)).squeeze(1)


class Encoder:
    """Numbers standardised, categories as codes; 0 for those that were not there."""

    def __init__(self, train: pd.DataFrame) -> None:
        self.numeric = [c for c in train.columns if pd.api.types.is_numeric_dtype(train[c])]
        self.mean, self.std = train[self.numeric].mean(), train[self.numeric].std().replace(0, 1)
        self.categories = {c: pd.Index(train[c].unique()) for c in train.columns if c not in self.numeric}

    @property
    def cardinalities(self) -> list[int]:
        return [len(index) + 1 for index in self.categories.values()]

    def __call__(self, part: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.tensor(((part[self.numeric] - self.mean) / self.std).to_numpy(np.float32))
        codes = np.stack([index.get_indexer(part[c]) + 1 for c, index in self.categories.items()], 1)
        return numbers, torch.tensor(codes)


def fit(
    model: nn.Module,
    numbers: torch.Tensor,
    codes: torch.Tensor,
    labels: torch.Tensor,
    rank: int = 0,
    workers: int = 1,
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of = nn.BCEWithLogitsLoss()
    n, share = len(labels), BATCH // workers
    for _ in range(EPOCHS):
        order = torch.randperm(n)
        for low in range(0, n, BATCH):
            index = order[low + rank * share : min(low + (rank + 1) * share, n)]
            if len(index) == 0:
                index = order[:1]
            loss = loss_of(model(numbers[index], codes[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def scores_of(model: nn.Module, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(
            [model(numbers[i : i + 8192], codes[i : i + 8192]) for i in range(0, len(numbers), 8192)]
        )


def main() -> None:
    workers, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if workers > 1:
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
    torch.manual_seed(0)
    frame = pd.read_parquet(sys.argv[1])
    train, test = frame[frame["split"] == "train"], frame[frame["split"] == "test"]
    encoder = Encoder(train.drop(columns=["label", "split"]))
    numbers, codes = encoder(train)
    labels = torch.tensor(train["label"].to_numpy(np.float32))
    model: nn.Module = Net(len(encoder.numeric), encoder.cardinalities)
    if workers > 1:
        model = nn.parallel.DistributedDataParallel(model)
    started = time.perf_counter()
    fit(model, numbers, codes, labels, rank, workers)
    seconds, n = time.perf_counter() - started, len(labels)
    if rank == 0:
        result = {
            "rows_per_second": n * EPOCHS / seconds,
            "roc_auc": roc_auc_score(test["label"], scores_of(model, *encoder(test))),
        }
        print(json.dumps(result))
    if workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
