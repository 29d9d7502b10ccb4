"""A fit of several workers that is stopped, or resumed; runs in processes of their own."""

from typing import Any

import numpy as np
import torch

from shoal.cluster.errors import StoppedError
from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.files import Part, write_part
from shoal.training.checkpoints.keeper import Keeper, RunKeeper
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from support.prepared import make_dataset
from support.scenarios import Error


class SharedKeeper(RunKeeper):
    """All workers write into one folder."""

    def save(self, part: Part, name: str, last: bool) -> None:
        write_part(part, self.run.child(f"checkpoints/shared/{name}"))


def fit(
    folder: str | None, stop: int | None, strategy: Strategy | None = None, **training: object
) -> dict[str, Any] | None:
    strategy = strategy or DDP(torch.device("cpu"))
    keeper = Keeper()
    if folder is not None:
        left = iter(range((stop or 10**9) - 1))
        keeper = SharedKeeper(
            Storage.open(folder),
            0.0 if stop else 1e9,
            2,
            lambda: "" if next(left, None) is not None or stop is None else "stop",
        )
    dataset = make_dataset("binary", 203)
    model = build_model(MLPConfig(hidden=(8,), dropout=0.3), dataset.schema, 3)
    config = TrainingConfig.model_validate(
        {"epochs": 4, "batch_size": 50, "early_stopping": {"patience": 2}, "precision": "fp64", **training}
    )
    of = {"other input files": "k"}
    loop = Loop(model, dataset, config, strategy, Error(), 3, Silent(), keeper, of)  # type: ignore[arg-type]
    try:
        outcome = loop.run()
    except StoppedError:
        strategy.sum(torch.zeros(1))  # all have written their parts
        return None
    flat = np.concatenate([p.detach().numpy().ravel() for p in loop.model.parameters()])
    return {"weights": flat, "resumed_from": outcome.resumed_from}


def whole_stopped_and_resumed(folder: str) -> list[dict[str, Any] | None]:
    lookout.LOOK_SECONDS = 0.0
    return [fit(None, None), fit(folder, 7), fit(folder, None)]
