"""Fits that start from another one in plain torch, written by hand: what Shoal's must equal."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shoal.training.memory import ArrayDataset
from shoal.training.models import Model, build_model
from shoal.training.plan import EpochPlan
from support.by_hand import loss_of
from support.prepared import make_dataset
from support.tuned import EPOCHS, MLP, ROWS


def plain_model(start: str, head: str = "body.4.") -> Model:
    """The model of a fit that starts there, by hand: a new head, and all else from the file."""
    model = build_model(MLP, make_dataset("multiclass", ROWS).schema, 3)
    given = load_file(f"{start}/model/model.safetensors")
    own = model.state_dict()
    model.load_state_dict({n: own[n] if n.startswith(head) else given[n] for n in own})
    return model.double()


def steps(dataset: ArrayDataset, epoch: int) -> Any:
    """The batches of an epoch by the plan: numbers, codes, labels."""
    part = dataset.parts["train"]
    plan = EpochPlan(dataset.shard_rows("train"), 50, 3)
    for step in range(plan.steps_per_epoch):
        rows = [
            plan.permutation(epoch, p % plan.n_shards)[p // plan.n_shards] * plan.n_shards + p % plan.n_shards
            for p in range(*plan.bounds(step))
        ]
        yield (
            torch.from_numpy(part.numeric)[rows].double(),
            torch.from_numpy(part.categorical)[rows],
            torch.from_numpy(part.label)[rows],
        )


def train_by_hand(
    model: Model,
    optimizers: dict[int, Callable[[], torch.optim.Optimizer]],
    penalty: Callable[[], Tensor] | None = None,
    mode: Callable[[], None] | None = None,
    epochs: int = EPOCHS,
) -> None:
    """Train in place; a new optimiser from some epochs on."""
    dataset = make_dataset("multiclass", ROWS)
    for epoch in range(epochs):
        if epoch in optimizers:
            optimizer = optimizers[epoch]()
        model.train()
        if mode is not None:
            mode()
        for numeric, codes, label in steps(dataset, epoch):
            model.zero_grad(set_to_none=True)
            loss = loss_of("multiclass", model(numeric, codes), label)
            if penalty is not None:
                loss = loss + penalty()
            loss.backward()
            optimizer.step()


def named(model: nn.Module, *prefixes: str) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.startswith(prefixes)]


def assert_same(model: nn.Module, oracle: nn.Module, atol: float = 1e-12) -> None:
    theirs = oracle.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=atol, msg=name)
