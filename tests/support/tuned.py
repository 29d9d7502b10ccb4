"""Small fits that start from another one, for tests; some run in processes of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import StoppedError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import Keeper
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset
from shoal.training.models import Model, build_model
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.transfer.config import TransferConfig
from shoal.transfer.fine_tune import FineTune, fine_tune
from support.prepared import make_dataset
from support.resuming import SharedKeeper

MLP = MLPConfig(hidden=(8, 6))
ROWS, EPOCHS, STEPS = 203, 7, 5
GRADUAL = {"unfreeze": {"gradual": {"epochs": 2}}, "rate_decay": 0.5, "l2_sp": {"start": 0.3, "head": 0.2}}


def other_classes(schema: Schema) -> Schema:
    """The same columns and another question."""
    names = tuple(f"other {name}" for name in schema.target.classes)
    return schema.model_copy(update={"target": schema.target.model_copy(update={"classes": names})})


def random_weights(model: Model, seed: int) -> Model:
    """Give a model weights that no initialisation would give, statistics included."""
    draw = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=draw).abs() - 0.1)
    return model


def write_start(
    folder: Path,
    schema: Schema | None = None,
    config: Config = MLP,
    factory: Callable[..., nn.Module] | None = None,
    seed: int = 17,
) -> str:
    """Write the model of a run that answers another question than `make_dataset`."""
    schema = schema or other_classes(make_dataset("multiclass", ROWS).schema)
    model = random_weights(build_model(config, schema, 0, factory=factory), seed)
    TrainedModel(model, schema, config).save(Storage.open(str(folder)))
    return str(folder)


def tuner(transfer: dict[str, Any]) -> FineTune:
    return fine_tune(TransferConfig.model_validate(transfer), StorageConfig())[0]


class Doubt:
    """One minus the probability of the right class, on average; a monitor."""

    name, greater_is_better = "doubt", False

    def value(self, y: np.ndarray, scores: np.ndarray, amounts: object = None) -> float:
        return float(1 - np.take_along_axis(scores, y[:, None], 1).mean())


class Hears(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


def make_loop(
    transfer: dict[str, Any],
    strategy: Strategy | None = None,
    factory: Callable[..., nn.Module] | None = None,
    config: Config = MLP,
    dataset: ArrayDataset | None = None,
    keeper: Keeper | None = None,
    hears: Silent | None = None,
    **training: Any,
) -> Loop:
    dataset = dataset or make_dataset("multiclass", ROWS)
    config = config if factory is None else Imported.model_validate({"import": "a:b"})
    model = build_model(config, dataset.schema, 3, factory=factory)
    values = {"epochs": EPOCHS, "batch_size": 50, "precision": "fp64", "early_stopping": None, **training}
    section = TrainingConfig.model_validate(values)
    tuning = tuner(transfer)(model, dataset.schema, section, 3)
    return Loop(
        model,
        dataset,
        section,
        strategy or Strategy(torch.device("cpu")),
        Doubt(),  # type: ignore[arg-type]
        3,
        hears or Silent(),
        keeper or Keeper(),
        {"other input files": "k"},
        tuning=tuning,
    )


def flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([t.detach().double().numpy().ravel() for t in model.state_dict().values()])


def together(places: dict[str, str], folder: str) -> dict[str, Any]:
    """Fits of several workers: whole ones, and one that is stopped in its second stage and resumed."""
    lookout.LOOK_SECONDS = 0.0
    found: dict[str, Any] = {}
    for name, transfer in scenarios(places).items():
        loop = make_loop(transfer, DDP(torch.device("cpu")))
        outcome = loop.run()
        loop.stepper.tuning.finish()
        found[name] = flat(loop.model)
        found[f"{name}: error"] = outcome.gradient_error
    for stop, what in ((13, "stopped"), (None, "resumed")):
        left = iter(range((stop or 10**9) - 1))
        keeper = SharedKeeper(
            Storage.open(folder),
            0.0 if stop else 1e9,
            2,
            lambda left=left, stop=stop: "" if next(left, None) is not None or stop is None else "stop",
        )
        loop = make_loop(scenarios(places)["gradual"], DDP(torch.device("cpu")), keeper=keeper)
        try:
            found[f"{what} at"] = loop.run().resumed_from
            found[what] = flat(loop.model)
        except StoppedError:
            loop.strategy.sum(torch.zeros(1))  # all have written their parts
    return found


def scenarios(places: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        "gradual": {"start": places["mlp"], **GRADUAL},
        "probe": {"start": places["mlp"], "unfreeze": {"probe": {"epochs": 2, "learning_rate": 0.05}}},
        "frozen": {"start": places["mlp"], "freeze": "all_but_head"},
    }
