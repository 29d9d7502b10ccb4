"""Alignment of several source domains, and batch statistics of each domain, against loops in plain torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.adapted import (
    BARE,
    EPOCHS,
    METHODS,
    ROWS,
    SEED,
    SGD,
    SIZE,
    STEPS,
    by_hand,
    flat,
    make_loop,
    model_by_hand,
    of_domains,
    run,
)
from support.prepared import make_dataset
from support.scenarios import normed
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError
from shoal.training.memory import ArrayDataset
from shoal.training.models import build_model
from shoal.training.plan import EpochPlan
from shoal.transfer.adaptation.alignment import discriminator, squared_mmd

SOURCES = 3


def sourced() -> ArrayDataset:
    return of_domains(make_dataset("multiclass", ROWS), SOURCES)


def domains_by_step(dataset: ArrayDataset) -> Iterator[Tensor]:
    """Whose row each one of a step is, step after step."""
    cost, plan = dataset.parts["train"].cost, EpochPlan(dataset.shard_rows("train"), SIZE, SEED)
    assert cost is not None
    for position in range(EPOCHS * STEPS):
        epoch, step = divmod(position, plan.steps_per_epoch)
        orders = {v: plan.permutation(epoch, v) for v in range(plan.n_shards)}
        places = range(*plan.bounds(step))
        rows = [
            orders[p % plan.n_shards][p // plan.n_shards] * plan.n_shards + p % plan.n_shards for p in places
        ]
        yield torch.from_numpy(cost[rows, 0]).long()


@pytest.mark.parametrize("name", ["deep_coral", "mmd"])
def test_distances_are_means_over_the_rows_of_all_sources(name: str) -> None:
    of = domains_by_step(sourced())

    def term(fs: Tensor, ft: Tensor, *_: Any) -> Tensor:
        domain, total = next(of), fs.new_zeros(())
        for d in range(SOURCES):
            own = fs[domain == d]
            if name == "mmd":
                total = total + len(own) / len(fs) * squared_mmd(own, ft, torch.ones(len(own)).double(), 5)
            else:
                gap = (torch.cov(own.T) - torch.cov(ft.T)).square().sum() / (4 * 6**2)
                total = total + 3.0 * len(own) / len(fs) * gap
        return total

    ours = run(make_loop(METHODS[name], model=BARE, optimizer=SGD, dataset=sourced()))
    np.testing.assert_allclose(ours, by_hand(term), rtol=0, atol=1e-12)
    pooled = run(make_loop(METHODS[name], model=BARE, optimizer=SGD))
    assert np.abs(ours - pooled).max() > 1e-6, "sources that are told apart are aligned in another way"


def test_a_discriminator_tells_all_sources_apart() -> None:
    torch.manual_seed(SEED)
    beside, of = discriminator(6, (6,), SOURCES).double(), domains_by_step(sourced())

    def term(fs: Tensor, ft: Tensor, _: Tensor, __: Tensor, p: float) -> Tensor:
        strength = 2 / (1 + np.exp(-10 * p)) - 1
        both, domain = torch.cat([fs, ft]), torch.cat([next(of), torch.full((len(ft),), SOURCES)])
        logits = beside(-strength * both + ((1 + strength) * both).detach())
        each = cross_entropy(logits, domain, reduction="none")
        return torch.stack([each[domain == d].mean() for d in range(SOURCES + 1)]).mean()

    ours = run(make_loop({"dann": {"hidden": [6]}}, model=BARE, optimizer=SGD, dataset=sourced()))
    np.testing.assert_allclose(ours, by_hand(term, beside), rtol=0, atol=1e-12)


def model_of(factory: Any) -> Any:
    return build_model(
        Imported.model_validate({"import": "a:b"}), make_dataset("multiclass").schema, SEED, factory=factory
    )


def test_each_domain_is_normalised_by_its_own_rows() -> None:
    model, seen = model_of(normed), list[Tensor]()
    model.body[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))

    def term(fs: Tensor, ft: Tensor, *_: Any) -> Tensor:
        return squared_mmd(fs, ft, torch.ones(len(fs)).double(), 5)

    expected = model_by_hand(model, term)  # in two passes a step, one for each domain
    loop = make_loop({"mmd": {"batch_norm": "per_domain"}}, factory=normed, optimizer=SGD)
    run(loop)
    for (name, ours), theirs in zip(loop.model.named_parameters(), expected.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=0, atol=1e-12, err_msg=name)
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    for rows in seen[1::2]:  # the target's
        mean, variance = 0.9 * mean + 0.1 * rows.mean(0), 0.9 * variance + 0.1 * rows.var(0)
    norm = loop.model.body[1]
    np.testing.assert_allclose(norm.running_mean, mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(norm.running_var, variance, rtol=0, atol=1e-12)
    assert "forward" not in vars(norm), "the model is left as it was"
    shared = make_loop({"mmd": {}}, factory=normed, optimizer=SGD)
    assert np.abs(run(shared) - flat(loop.model)).max() > 1e-3


def test_frozen_statistics_stay() -> None:
    loop = make_loop({"mmd": {"batch_norm": "frozen"}}, factory=normed)
    assert loop.adaptation is not None
    assert loop.adaptation.still == {"body.1"}


def test_a_model_without_batch_normalisation_has_nothing_to_choose() -> None:
    with pytest.raises(ConfigError, match="the model has none"):
        make_loop({"mmd": {"batch_norm": "per_domain"}})
