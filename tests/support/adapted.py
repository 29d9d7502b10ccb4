"""Small fits that adapt to another domain, for tests; some run in processes of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import StoppedError
from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import Keeper
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.draws import combine
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import build_model
from shoal.training.plan import EpochPlan
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.transfer.adaptation.config import AdaptationChoice
from shoal.transfer.adaptation.service import at_work
from shoal.transfer.adaptation.weights import Weights
from support.prepared import make_dataset, make_part
from support.resuming import SharedKeeper

ROWS, TARGET, EPOCHS, STEPS, SIZE, SEED = 203, 131, 4, 5, 50, 3
MLP = MLPConfig(hidden=(8, 6), dropout=0.3)
BARE = MLPConfig(hidden=(8, 6))
SGD = {"sgd": {"learning_rate": 0.05, "momentum": 0.0}}
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


def batches(dataset: ArrayDataset, size: int, seed: int, steps: int) -> Any:
    """The steps of a plan, epoch after epoch: numbers, codes, labels."""
    part, plan = dataset.parts["train"], EpochPlan(dataset.shard_rows("train"), size, seed)
    for position in range(steps):
        epoch, step = divmod(position, plan.steps_per_epoch)
        orders = {v: plan.permutation(epoch, v) for v in range(plan.n_shards)}
        rows = [
            orders[p % plan.n_shards][p // plan.n_shards] * plan.n_shards + p % plan.n_shards
            for p in range(*plan.bounds(step))
        ]
        yield (
            torch.from_numpy(part.numeric)[rows].double(),
            torch.from_numpy(part.categorical)[rows],
            torch.from_numpy(part.label)[rows],
        )


Term = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def by_hand(term: Term, beside: nn.Module | None = None) -> np.ndarray:
    """The weights of `model_by_hand`."""
    return flat(model_by_hand(build_model(BARE, make_dataset("multiclass").schema, SEED), term, beside))


def model_by_hand(model: Any, term: Term, beside: nn.Module | None = None) -> Any:
    """A fit in plain torch; the term gets features and logits of source and target, and the progress."""
    source, target = make_dataset("multiclass", ROWS), moved("multiclass")
    model = model.double()
    parameters = [*model.parameters(), *(beside.parameters() if beside else [])]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    total = EPOCHS * STEPS
    others = batches(target, SIZE, combine(SEED, 11), total)
    for position, (own, other) in enumerate(zip(batches(source, SIZE, SEED, total), others, strict=True)):
        optimizer.zero_grad()
        encoded = [model.encoder(side[0], side[1]) for side in (own, other)]
        features = [model.body[:-1](e) for e in encoded]
        logits = [model.body[-1](f) for f in features]
        loss = cross_entropy(logits[0], own[2]) + term(*features, *logits, position / total)
        loss.backward()
        optimizer.step()
    return model


def of_domains(dataset: ArrayDataset, domains: int = 3) -> ArrayDataset:
    """The same rows, of several source domains."""
    rng = np.random.default_rng(8)
    parts = {
        split: ArrayPart(
            part.numeric, part.categorical, part.label, rng.integers(0, domains, (len(part), 1)) * 1.0
        )
        for split, part in dataset.parts.items()
    }
    schema = dataset.schema.model_copy(update={"domains": tuple(f"domain {d}" for d in range(domains))})
    return ArrayDataset(schema, parts, dataset.n_shards)


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
    for name in ("dann", "cdan", "deep_coral", "mmd"):
        sources = of_domains(make_dataset("multiclass", ROWS))
        found[f"several {name}"] = run(make_loop(METHODS[name], DDP(torch.device("cpu")), dataset=sources))
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
