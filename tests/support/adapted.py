"""Small fits that adapt to another domain, for tests; some run in processes of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import StoppedError
from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import Keeper
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.transfer.adaptation.config import AdaptationChoice
from shoal.transfer.adaptation.service import at_work
from shoal.transfer.adaptation.weights import Weights
from support.prepared import make_dataset, make_part
from support.resuming import SharedKeeper

ROWS, TARGET, EPOCHS, STEPS, SIZE, SEED = 203, 131, 4, 5, 50, 3
MLP = MLPConfig(hidden=(8, 6), dropout=0.3)
METHODS: dict[str, Any] = {
    "dann": {"dann": {"hidden": [6]}},
    "cdan": {"cdan": {"hidden": [6]}},
    "deep_coral": {"deep_coral": {"weight": 3.0}},
    "mmd": {"mmd": {}},
    "mcc": {"mcc": {}},
    "self_training": {"self_training": {"teacher": 0.9, "start": 0.25}},
    "co_training": {"co_training": {"start": 0.25, "confidence": 0.4}},
    "tri_training": {"tri_training": {"start": 0.25, "confidence": 0.4}},
}


def adaptation(method: Any) -> Config:
    found: Config = TypeAdapter(AdaptationChoice).validate_python(method)
    return found


def moved(task: str, rows: int = TARGET) -> ArrayDataset:
    """Rows of a target domain: moved, and without labels."""
    source = make_dataset(task, ROWS)
    part = make_part(source.schema, rows, 99)
    numeric = (part.numeric * 1.5 + 0.7).astype(np.float32)
    label = np.zeros_like(part.label)
    return ArrayDataset(source.schema, {"train": type(part)(numeric, part.categorical, label)}, 4)


def make_loop(
    method: Any,
    strategy: Strategy | None = None,
    task: str = "multiclass",
    keeper: Keeper | None = None,
    weights: Weights | None = None,
    model: Config = MLP,
    factory: Callable[..., nn.Module] | None = None,
    dataset: Any = None,
    **training: Any,
) -> Loop:
    dataset = dataset or make_dataset(task, ROWS)
    model = model if factory is None else Imported.model_validate({"import": "a:b"})
    values = {"epochs": EPOCHS, "batch_size": SIZE, "precision": "fp64", "early_stopping": None, **training}
    section = TrainingConfig.model_validate(values)
    net, at, rows = at_work(
        adaptation(method),
        lambda number: build_model(model, dataset.schema, SEED + number, factory=factory),
        dataset,
        moved(task),
        weights,
        SEED,
        section.epochs,
    )
    return Loop(
        net,
        rows,
        section,
        strategy or Strategy(torch.device("cpu")),
        None,
        SEED,
        Silent(),
        keeper or Keeper(),
        {"other input files": "k"},
        adaptation=at,
    )


def flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([t.detach().double().numpy().ravel() for t in model.state_dict().values()])


def run(loop: Loop) -> np.ndarray:
    """Fit, and return the weights that are kept."""
    loop.run()
    assert loop.adaptation is not None
    loop.adaptation.finish()
    return flat(loop.model)


def together(folder: str) -> dict[str, Any]:
    """Fits of several workers: whole ones of every method, and one that is stopped and resumed."""
    lookout.LOOK_SECONDS = 0.0
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        loop = make_loop(method, DDP(torch.device("cpu")))
        found[name] = run(loop)
        found[f"{name}: error"] = loop.stepper.gradient_error
    found["few rows"] = run(
        make_loop(METHODS["deep_coral"], DDP(torch.device("cpu")), batch_size=3, epochs=1)
    )
    for stop, what in ((13, "stopped"), (None, "resumed")):
        left = iter(range((stop or 10**9) - 1))
        keeper = SharedKeeper(
            Storage.open(folder),
            0.0 if stop else 1e9,
            2,
            lambda left=left, stop=stop: "" if next(left, None) is not None or stop is None else "stop",
        )
        loop = make_loop(METHODS["dann"], DDP(torch.device("cpu")), keeper=keeper)
        try:
            found[what] = run(loop)
            found[f"{what} at"] = tuple(loop.resumed_from)
        except StoppedError:
            loop.strategy.sum(torch.zeros(1))  # all have written their parts
    return found
