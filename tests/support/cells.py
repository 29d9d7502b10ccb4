"""A fit for each allowed cell of the table, by Shoal's loop and by hand; runs in processes of their own."""

from collections.abc import Iterator

import numpy as np
import torch

from shoal.cluster.progress import Silent
from shoal.training.allowed import cells, refusal
from shoal.training.config import SEARCHING, DeepSpeedConfig, MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import Model, build_model
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.training.strategies.deepspeed import DeepSpeed
from support.by_hand import OPTIMIZERS, by_hand
from support.prepared import make_dataset

CPU = torch.device("cpu")
EPOCHS = 2


def allowed(placement: str) -> Iterator[tuple[str, str, str]]:
    """Yield (strategy, optimizer, precision) of the cells that are allowed on CPUs; L1 and one's own have other tests."""
    for cell in cells():
        on_cpus = cell["placement"] == placement and cell["device"] == "cpu"
        if cell["optimizer"] == "import" or cell["l1"] != "none":
            continue
        if on_cpus and refusal(cell) is None:
            yield cell["strategy"], cell["optimizer"], cell["precision"]


def strategies(name: str, placement: str) -> Iterator[Strategy]:
    """Yield what a strategy's name stands for in a placement."""
    if placement != "group":
        yield Strategy(CPU)
    elif name == "ddp":
        yield DDP(CPU)
    else:
        yield from (DeepSpeed(CPU, DeepSpeedConfig(zero_stage=stage)) for stage in range(4))


def flat(model: Model) -> np.ndarray:
    return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])


def fits(placement: str) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """Fit every allowed cell of a placement."""
    torch.set_num_threads(1)
    return {
        (name, optimizer, precision): [fit(s, optimizer, precision) for s in strategies(name, placement)]
        for name, optimizer, precision in allowed(placement)
    }


def fit(strategy: Strategy, optimizer: str, precision: str) -> np.ndarray:
    dataset = make_dataset("binary", 203)
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3)
    config = TrainingConfig.model_validate(
        {
            "epochs": EPOCHS,
            "batch_size": "full" if optimizer in SEARCHING else 50,
            "precision": precision,
            "optimizer": {optimizer: OPTIMIZERS[optimizer][0].model_dump()},
        }
    )
    Loop(model, dataset, config, strategy, None, 3, Silent()).run()
    return flat(model)


def plain(optimizer: str, precision: str) -> np.ndarray:
    dataset = make_dataset("binary", 203)
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3)
    model.to(torch.float64 if precision == "fp64" else torch.float32)
    by_hand(dataset, OPTIMIZERS[optimizer][1](model), model, EPOCHS, precision=precision)
    return flat(model)
