"""Averaged weights and blended rows, against the same arithmetic by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from support.prepared import make_dataset
from support.scenarios import Error, Sometimes, make_loop, normed
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Silent
from shoal.training.batches import BatchReader
from shoal.training.config import LinearConfig, MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import Model, build_model
from shoal.training.plan import EpochPlan
from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")


def make(config: Any = None, monitor: Any = None, rows: int = 203, **training: Any) -> Loop:
    dataset = make_dataset("binary", rows)
    model = build_model(config or MLPConfig(hidden=(8,)), dataset.schema, 3)
    values = {"epochs": 4, "batch_size": 50, "precision": "fp64", "early_stopping": None, **training}
    return Loop(model, dataset, TrainingConfig.model_validate(values), Strategy(CPU), monitor, 3, Silent())


def weights_by_step(**training: Any) -> tuple[Loop, list[dict[str, torch.Tensor]]]:
    """Fit, and keep the weights after every step."""
    loop, seen = make(**training), []
    step = loop.stepper.step

    def watched(*args: Any) -> torch.Tensor:
        loss = step(*args)
        seen.append({n: p.detach().clone() for n, p in loop.model.named_parameters()})
        return loss

    loop.stepper.step = watched  # type: ignore[method-assign]
    loop.run()
    return loop, seen


def test_ema_equals_torchs_averaged_model() -> None:
    loop, seen = weights_by_step(averaging={"ema": {"decay": 0.5}})
    plain, same = weights_by_step()
    torch.testing.assert_close(seen[-1], same[-1], rtol=0, atol=0)  # averaging changes no step
    copy = make().model
    copy.load_state_dict(seen[0])
    averaged = AveragedModel(copy)
    averaged.update_parameters(copy)
    for n, values in enumerate(seen[1:], 1):
        averaged.multi_avg_fn = get_ema_multi_avg_fn(min(0.5, (1 + n) / (10 + n)))
        copy.load_state_dict(values)
        averaged.update_parameters(copy)
    for ours, theirs in zip(loop.model.parameters(), averaged.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert any(
        not torch.equal(a, b) for a, b in zip(loop.model.parameters(), plain.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(("start", "epochs"), [(0.0, [0, 1, 2, 3]), (0.5, [2, 3]), (0.75, [3]), (0.9, [3])])
def test_swa_is_the_mean_of_the_last_epochs_ends(start: float, epochs: list[int]) -> None:
    loop, seen = weights_by_step(averaging={"swa": {"start": start}})
    steps = loop.plan.steps_per_epoch
    ends = [seen[(epoch + 1) * steps - 1] for epoch in epochs]
    for name, p in loop.model.named_parameters():
        torch.testing.assert_close(p, torch.stack([e[name] for e in ends]).mean(0), rtol=0, atol=1e-12)


def test_weights_from_before_the_average_are_said_to_be_none() -> None:
    class WorseningError(Error):
        scores = iter([0.1, 0.2, 0.3, 0.4])

        def value(self, y: np.ndarray, scores: np.ndarray, amounts: object = None) -> float:
            return next(self.scores)

    loop = make(monitor=WorseningError(), averaging={"swa": {"start": 0.5}}, early_stopping={"patience": 9})
    (notice,) = (n for n in loop.run().notices if "averaging" in n)
    assert notice.startswith("training.averaging: the weights that are kept are those of epoch 1")


def test_the_averaged_weights_are_validated_and_kept() -> None:
    loop = make(monitor=Error(), averaging={"ema": {"decay": 0.9}}, early_stopping={"patience": 9})
    outcome = loop.run()
    judged = loop.judge(loop.model, "validation")
    assert judged is not None
    assert Error().value(judged.label, judged.score) == outcome.best


def blended_by_hand(loop: Loop, model: Model, epochs: int) -> None:
    """Mixup of Zhang et al. 2018, equations 1 and 2, on the encoded rows of the same plan."""
    dataset, part = loop.dataset, loop.dataset.parts["train"]  # type: ignore[attr-defined]
    plan = EpochPlan(dataset.shard_rows("train"), 50, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for position in range(epochs * plan.steps_per_epoch):
        epoch, step = divmod(position, plan.steps_per_epoch)
        places = np.arange(*plan.bounds(step))
        shard, place = places % plan.n_shards, places // plan.n_shards
        rows = [[], []]
        for v, p in zip(shard, place, strict=True):
            order = plan.permutation(epoch, int(v))
            for ahead in (0, 1):
                rows[ahead].append(order[(p + ahead) % len(order)] * plan.n_shards + v)
        x, y = [], []
        for chosen in rows:
            numeric, codes = (
                torch.from_numpy(part.numeric)[chosen],
                torch.from_numpy(part.categorical)[chosen],
            )
            x.append(model.encoder(numeric.double(), codes))
            y.append(torch.from_numpy(part.label)[chosen].double())
        share = loop.stepper._share(position)
        logits = model.body(share * x[0] + (1 - share) * x[1])[:, 0]
        loss = share * F.binary_cross_entropy_with_logits(logits, y[0])
        loss = loss + (1 - share) * F.binary_cross_entropy_with_logits(logits, y[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("parts", [1, 3])
def test_mixup_equals_a_loop_by_hand(parts: int) -> None:
    loop = make(
        mixup={"alpha": 0.4},
        optimizer={"sgd": {"learning_rate": 0.05, "momentum": 0.0}},
        gradient_accumulation=parts,
    )
    oracle = build_model(MLPConfig(hidden=(8,)), loop.dataset.schema, 3).double()
    loop.run()
    blended_by_hand(loop, oracle, 4)
    for ours, theirs in zip(loop.model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_shares_are_draws_from_the_beta_distribution() -> None:
    shares = np.array([make(mixup={"alpha": 0.4}).stepper._share(p) for p in range(300)])
    assert np.abs(shares.mean() - 0.5) < 0.08
    # Beta(a, a) has variance 1 / (4 (2a + 1)).
    assert abs(shares.var() - 1 / (4 * 1.8)) < 0.03
    assert len(np.unique(shares)) == 300


def test_partners_are_the_same_for_any_number_of_workers() -> None:
    dataset = make_dataset("binary", 203)
    plan = EpochPlan(dataset.shard_rows("train"), 50, 3)

    def pairs(workers: int) -> dict[int, list[float]]:
        found = {}
        for worker in range(workers):
            for batch in BatchReader(dataset, plan, worker, workers, partners=True).epoch(1):
                assert batch.partner is not None
                for position, row, other in zip(
                    batch.position.tolist(), batch.numeric, batch.partner.numeric, strict=True
                ):
                    found[position] = torch.cat([row, other]).nan_to_num(9.0).tolist()
        return found

    one = pairs(1)
    assert one == pairs(2) == pairs(3)
    assert len(one) == 203
    width = len(one[0]) // 2
    assert sum(values[:width] == values[width:] for values in one.values()) == 0


def test_mixup_of_a_model_that_reads_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.mixup blends encoded rows.*such as mlp"):
        make(LinearConfig(), mixup={})


@pytest.mark.parametrize(
    ("factory", "training", "said"),
    [
        (
            normed,
            {"averaging": "swa"},
            "the statistics of body.1, a BatchNorm1d, are not those of averaged weights",
        ),
        (Sometimes, {"activation_checkpointing": True}, "there is nothing to compute again"),
    ],
)
def test_a_model_that_cannot_be_trained_so_is_refused(
    factory: Any, training: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_loop(Strategy(CPU), factory=factory, **training)


@pytest.mark.parametrize(("start", "said"), [(0.75, False), (0.9, True)])
def test_an_average_of_one_epoch_is_said_to_be_none(start: float, said: bool) -> None:
    loop = make_loop(Strategy(torch.device("cpu")), epochs=8, averaging={"swa": {"start": start}})
    assert (
        any("swa from 0.9 of 8 epochs takes the end of the last one alone" in n for n in loop.notices) == said
    )
