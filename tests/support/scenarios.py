"""What the workers of one group do in the tests of training together; runs in processes of their own."""

import importlib.util
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.errors import ShoalError
from shoal.cluster.progress import Silent
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.costs import Costs
from shoal.training.loop import Loop
from shoal.training.models import build_model
from shoal.training.plan import EpochPlan
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.training.strategies.diagnosis import stuck_workers_named
from support.prepared import dealt_by_class, make_dataset, with_costs

CPU = torch.device("cpu")


BY_ROW = Costs.of_cells(((0.0, 1.0), ("amount", 0.0)))
BY_COSTS = {"cross_entropy": {"class_weights": "costs"}}
REGULARISED: dict[str, Any] = {
    "optimizer": {"adam": {"learning_rate": 0.01}},
    "l1": {"proximal": 0.01},
    "l2": 0.1,
    "parameter_groups": [{"match": "body.0.*", "learning_rate": 0.02, "l2": 0.3}],
    "mixup": {"alpha": 0.4},
    "averaging": {"ema": {"decay": 0.9}},
}

CHANGED: dict[str, Any] = {
    "epochs": 3,
    "optimizer": {"adamw": {"learning_rate": 0.01}},
    "l1": {"proximal": 0.001},
    "schedule": "cosine",
    "parameter_groups": [{"match": "body.0.*", "learning_rate": 0.02}],
    "changes": [
        {"epoch": 2, "learning_rate": 0.03, "l2": 0.1},
        {"epoch": 3, "l1": 0.02, "weight_decay": 0.2},
    ],
}


class Unreduced(DDP):
    """DDP with the reduction switched off."""

    def wrap(self, module: nn.Module, config: TrainingConfig, unused_parameters: bool) -> nn.Module:
        return Strategy.wrap(self, module, config, unused_parameters)


class Sometimes(nn.Module):
    """A module that never uses one of its parameters."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(n_inputs, n_outputs), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def normed(n_inputs: int, n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, n_outputs))


class Error:
    """Mean squared error, as a monitor."""

    name, greater_is_better = "error", False

    def value(self, y: np.ndarray, scores: np.ndarray, amounts: object = None) -> float:
        return float(np.mean((y - scores) ** 2))


def make_loop(
    strategy: Strategy,
    factory: Callable[..., nn.Module] | None = None,
    task: str = "binary",
    rows: int = 203,
    seed: int = 3,
    costs: Costs | None = None,
    **training: object,
) -> Loop:
    dataset = make_dataset(task, rows) if costs is None else with_costs(make_dataset(task, rows))
    if training.get("sampling", "cost_rejection") != "cost_rejection":
        dataset = dealt_by_class(dataset)
    config = (
        MLPConfig(hidden=(8,), dropout=0.3) if factory is None else Imported.model_validate({"import": "a:b"})
    )
    model = build_model(config, dataset.schema, seed, factory=factory)
    values = {"epochs": 2, "batch_size": 50, "precision": "fp64", **training}
    section = TrainingConfig.model_validate(values)
    return Loop(model, dataset, section, strategy, Error(), 3, Silent(), costs=costs)  # type: ignore[arg-type]


def weights(loop: Loop) -> np.ndarray:
    return np.concatenate([p.detach().double().numpy().ravel() for p in loop.model.parameters()])


def fits(strategy: Strategy) -> dict[str, np.ndarray]:
    """Fits whose results must not depend on the number of workers."""
    made = {
        "plain": make_loop(strategy),
        "accumulated and clipped": make_loop(strategy, gradient_accumulation=3, clip_norm=0.1),
        "fewer rows in a step than workers": make_loop(strategy, rows=40, batch_size=1, epochs=1),
        "regression": make_loop(strategy, task="regression"),
        "unused parameter": make_loop(strategy, factory=Sometimes, optimizer="sgd"),
        "regularised": make_loop(strategy, **REGULARISED),
        "changed on the way": make_loop(strategy, **CHANGED),
        "blended with few rows": make_loop(strategy, rows=40, batch_size=1, epochs=1, mixup={"alpha": 1.0}),
        "weighted": make_loop(
            strategy, loss={"focal": {"class_weights": "balanced"}}, gradient_accumulation=2, mixup={}
        ),
        "weighted, fewer rows in a step than workers": make_loop(
            strategy,
            loss={"ldam": {"class_weights": {"yes": 7}, "reweight_from": 0.5}},
            rows=40,
            batch_size=1,
        ),
        "weighted labels": make_loop(
            strategy, task="multilabel", loss={"bce": {"class_weights": "balanced"}}
        ),
        "weighted by row": make_loop(strategy, costs=BY_ROW, loss=BY_COSTS, gradient_accumulation=2),
        "weighted by row, fewer rows in a step than workers": make_loop(
            strategy, costs=BY_ROW, loss=BY_COSTS, rows=40, batch_size=1
        ),
        "cost rejection": make_loop(strategy, costs=BY_ROW, sampling="cost_rejection", batch_size=10),
        "scheduled": make_loop(strategy, schedule="one_cycle", optimizer={"sgd": {"learning_rate": 0.1}}),
        "plateau": make_loop(
            strategy, schedule={"reduce_on_plateau": {"patience": 0, "min_delta": 0.05}}, epochs=4
        ),
        "lbfgs": make_loop(strategy, optimizer={"lbfgs": {"max_iter": 5}}, batch_size="full", l2=0.1),
        "nonlinear_cg": make_loop(strategy, optimizer={"nonlinear_cg": {"max_iter": 3}}, batch_size=100),
        "class balanced": make_loop(strategy, sampling="class_balanced", gradient_accumulation=2),
        "quotas": make_loop(strategy, sampling={"quotas": {"rows": {"yes": 5}}}, batch_size=20),
        "swa": make_loop(strategy, averaging={"swa": {"start": 0.0}}, mixup={}, gradient_accumulation=3),
    }
    results = {}
    for name, loop in made.items():
        outcome = loop.run()
        results[name] = weights(loop)
        results[f"{name}: best"] = np.array([outcome.best, outcome.best_epoch, outcome.steps])
    judged = made["plain"].judge(made["plain"].model, "test")
    if judged is not None:
        results["scores"], results["labels"] = judged.score, np.array(judged.label)
        results["row ids"] = np.array(judged.row_id.to_pylist())
    return results


def failure(make: Callable[[], object]) -> str:
    try:
        make()
    except ShoalError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing failed"


def failures() -> dict[str, str]:
    """What each worker says of a run that must stop."""
    return {
        "reduction off": failure(lambda: make_loop(Unreduced(CPU)).run()),
        "other weights": failure(lambda: make_loop(Unreduced(CPU), seed=DDP(CPU).rank).run()),
        "batch norm": failure(lambda: make_loop(DDP(CPU), factory=normed)),
    }


def torn() -> dict[str, str]:
    """A model that one worker changes by itself, and a plan whose slots overlap."""
    loop = make_loop(DDP(CPU))
    original = loop._train_epoch

    def drift(epoch: int) -> float:
        loss = original(epoch)
        if DDP(CPU).rank == 1:
            next(loop.model.parameters()).data.view(-1)[0] += 1e-12
        return loss

    loop._train_epoch = drift  # type: ignore[method-assign]
    found = {"one worker drifts": failure(loop.run)}
    positions = EpochPlan.positions
    EpochPlan.positions = lambda self, epoch, step, stop, worker, workers: positions(
        self, epoch, step, stop, 0, workers
    )  # type: ignore[method-assign]
    overlapping = make_loop(DDP(CPU))
    overlapping.reader.shards = {v: overlapping.dataset.shard("train", v) for v in range(8)}
    found["slots overlap"] = failure(overlapping.run)
    EpochPlan.positions = positions  # type: ignore[method-assign]
    return found


def all_of_it() -> dict[str, object]:
    torch.set_num_threads(1)
    strategy = DDP(CPU)
    return {"fits": fits(strategy), "failures": failures(), "torn": torn()}


def only_fits() -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    return fits(DDP(CPU))


def one_worker_sleeps(timeout: float) -> str:
    """Worker 1 never comes to the operation that worker 0 waits in."""

    def work() -> None:
        with stuck_workers_named(timeout):
            strategy = DDP(CPU)
            strategy.sum(torch.ones(1))
            if strategy.rank == 1:
                time.sleep(3 * timeout)
            else:
                strategy.sum(torch.ones(1))

    return failure(work)


def load_reference(path: str) -> ModuleType:
    """Load benchmarks/reference.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(path: str) -> list[np.ndarray]:
    """The reference problem: fp32 for 50 steps, fp64 for 1,000."""
    module = load_reference(path)
    torch.set_num_threads(1)
    return [module.train_reference(DDP(CPU), p, steps) for p, steps in (("fp32", 50), ("fp64", 1000))]
