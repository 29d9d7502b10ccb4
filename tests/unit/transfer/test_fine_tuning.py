"""Fits that start from another one, against loops in plain torch that read the same plan, written here by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.together import run_together
from support.tuned import (
    GRADUAL,
    STEPS,
    Hears,
    flat,
    make_loop,
    scenarios,
    together,
    write_start,
)
from support.tuned_by_hand import assert_same, named, plain_model, train_by_hand
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError, StoppedError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import RunKeeper

HEAD, MIDDLE, LOW = ("body.4.",), ("body.2.",), ("body.0.", "encoder.")


@pytest.fixture
def start(tmp_path: Path) -> str:
    return write_start(tmp_path / "start")


SGD = {"sgd": {"learning_rate": 0.05, "momentum": 0.9}}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def test_frozen_layers_stay_as_they_are_to_the_bit_and_the_others_are_trained_as_alone(start: str) -> None:
    loop = make_loop({"start": start, "freeze": ["body.0.*", "encoder"]}, optimizer="adamw")
    oracle = plain_model(start)
    before = {n: t.clone() for n, t in oracle.state_dict().items()}
    biases = [p for p in named(oracle, *HEAD, *MIDDLE) if p.ndim == 1]
    weights = [p for p in named(oracle, *HEAD, *MIDDLE) if p.ndim == 2]
    train_by_hand(
        oracle,
        {
            0: lambda: torch.optim.AdamW(
                [{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=1e-3, weight_decay=0.01
            )
        },
    )
    loop.run()
    assert_same(loop.model, oracle)
    frozen = [n for n in before if n.startswith(LOW)]
    assert len(frozen) == 4
    for name in before:
        assert torch.equal(loop.model.state_dict()[name], before[name]) == (name in frozen), name
    optimized = {id(p) for group in loop.strategy.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in named(loop.model, *HEAD, *MIDDLE)}
    assert {id(p) for p in loop.strategy.optimizer.state} == optimized
    assert all(p.grad is None for p in named(loop.model, *LOW))


def test_all_but_the_head_can_be_frozen(start: str) -> None:
    loop = make_loop({"start": start, "freeze": "all_but_head"}, optimizer=SGD)
    oracle = plain_model(start)
    train_by_hand(oracle, {0: lambda: sgd(named(oracle, *HEAD))})
    loop.run()
    assert_same(loop.model, oracle)


def test_rates_fall_from_the_head_down(start: str) -> None:
    hears = Hears()
    loop = make_loop({"start": start, "rate_decay": 0.4}, optimizer=SGD, hears=hears)
    oracle = plain_model(start)
    rates = {HEAD: 0.05, MIDDLE: 0.05 * 0.4, ("body.0.",): 0.05 * 0.4**2, ("encoder.",): 0.05 * 0.4**3}
    train_by_hand(
        oracle,
        {
            0: lambda: torch.optim.SGD(
                [{"params": named(oracle, *names), "lr": lr} for names, lr in rates.items()], momentum=0.9
            )
        },
    )
    loop.run()
    assert_same(loop.model, oracle)
    assert any("body.0: " in said and "learning rate 0.008" in said for said in hears.said)


def test_the_users_own_groups_come_first(start: str) -> None:
    own = [{"match": "body.0.weight", "learning_rate": 0.001}, {"match": "body.*", "l2": 0.1}]
    loop = make_loop({"start": start, "rate_decay": 0.4}, optimizer=SGD, parameter_groups=own)
    values = {g.match: g for g in loop.stepper.stage.groups}
    assert values["body.0.weight"].learning_rate == 0.001
    assert values["body.0.weight"].l2 is None
    assert values["body.0.bias"].learning_rate == pytest.approx(0.05 * 0.4**2)
    assert values["body.0.bias"].l2 == values["body.4.weight"].l2 == 0.1


def test_a_group_of_what_is_never_trained_is_refused(start: str) -> None:
    own = [{"match": "body.0.weight", "learning_rate": 0.001}]
    with pytest.raises(ConfigError, match=r"training.parameter_groups.0.match: 'body.0.weight'"):
        make_loop({"start": start, "freeze": ["body.0"]}, optimizer=SGD, parameter_groups=own)
    later = make_loop({"start": start, "unfreeze": "gradual"}, optimizer=SGD, parameter_groups=own)
    later.run()  # it is not trained at first, and is at last


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_pull_to_the_start(start: str, optimizer: str) -> None:
    loop = make_loop(
        {"start": start, "l2_sp": {"start": 0.3, "head": 0.2}}, optimizer={optimizer: {"learning_rate": 0.01}}
    )
    oracle = plain_model(start)
    shared = named(oracle, *MIDDLE, *LOW)
    first = [p.detach().clone() for p in shared]
    new = [p for p in named(oracle, *HEAD) if p.ndim == 2]

    def penalty() -> Tensor:
        pull = sum((p - p0).square().sum() for p, p0 in zip(shared, first, strict=True))
        return 0.3 / 2 * pull + 0.2 / 2 * sum(p.square().sum() for p in new)  # type: ignore[return-value]

    build = {
        "sgd": lambda: torch.optim.SGD(oracle.parameters(), lr=0.01, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(oracle.parameters(), lr=0.01, weight_decay=0.0),
    }[optimizer]
    train_by_hand(oracle, {0: build}, penalty)
    loop.run()
    assert_same(loop.model, oracle)
    bare = make_loop({"start": start}, optimizer={optimizer: {"learning_rate": 0.01, "weight_decay": 0.0}})
    bare.run()
    assert float((flat(bare.model) - flat(loop.model)).std()) > 1e-3, "the pull does something"


def test_layers_thaw_from_the_head_down_and_keep_their_momentum(start: str) -> None:
    hears = Hears()
    transfer = {"start": start, "unfreeze": {"gradual": {"epochs": 1}}}
    loop = make_loop(transfer, optimizer=SGD, hears=hears)
    oracle = plain_model(start)
    optimizer = sgd(named(oracle, *HEAD))

    def thaw(*names: str) -> Callable[[], torch.optim.Optimizer]:
        def more() -> torch.optim.Optimizer:
            optimizer.add_param_group({"params": named(oracle, *names)})
            return optimizer

        return more

    stages = {0: lambda: optimizer, 1: thaw(*MIDDLE), 2: thaw("body.0."), 3: thaw("encoder.")}
    train_by_hand(oracle, stages)
    loop.run()
    assert_same(loop.model, oracle)
    assert [s for s in hears.said if s.startswith("stage")] == [
        "stage 2 of 4: body.2 is trained too",
        "stage 3 of 4: body.0 is trained too",
        "stage 4 of 4: encoder is trained too",
    ]


def test_a_probe_and_then_everything(start: str) -> None:
    transfer = {"start": start, "unfreeze": {"probe": {"epochs": 2, "learning_rate": 0.2}}}
    loop = make_loop(transfer, optimizer={"adam": {"learning_rate": 0.01}})
    oracle = plain_model(start)
    optimizer = torch.optim.Adam(named(oracle, *HEAD), lr=0.2)

    def everything() -> torch.optim.Optimizer:
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.add_param_group({"params": named(oracle, *MIDDLE, *LOW), "lr": 0.01})
        return optimizer

    train_by_hand(oracle, {0: lambda: optimizer, 2: everything})
    loop.run()
    assert_same(loop.model, oracle)


def normalised(n_inputs: int, n_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n_inputs, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, n_outputs),
    )


@pytest.mark.parametrize("statistics", ["keep", "update"])
def test_running_statistics_of_frozen_normalisations(tmp_path: Path, statistics: str) -> None:
    from shoal.cluster.components import Imported

    own = Imported.model_validate({"import": "a:b"})
    start = write_start(tmp_path / "start", config=own, factory=normalised)
    transfer = {"start": start, "freeze": ["body.0", "body.1"], "batch_norm": statistics}
    loop = make_loop(transfer, factory=normalised, optimizer=SGD)
    before = {n: b.clone() for n, b in loop.model.named_buffers()}
    loop.run()
    after = dict(loop.model.named_buffers())
    for name in ("body.1", "body.3"):  # body.3 has no parameters: it belongs to what it normalises
        for kind in ("running_mean", "running_var"):
            same = torch.equal(after[f"{name}.{kind}"], before[f"{name}.{kind}"])
            assert same == (statistics == "keep"), (name, kind)
    whole = make_loop({"start": start}, factory=normalised, optimizer=SGD)
    whole.run()
    assert not torch.equal(
        dict(whole.model.named_buffers())["body.1.running_mean"], before["body.1.running_mean"]
    )


def test_two_workers_may_have_frozen_normalisations_and_no_others(tmp_path: Path) -> None:
    from shoal.cluster.components import Imported
    from shoal.training.refusals import refuse_model

    own = Imported.model_validate({"import": "a:b"})
    start = write_start(tmp_path / "start", config=own, factory=normalised)
    frozen = make_loop({"start": start, "freeze": "all_but_head"}, factory=normalised)
    refuse_model(frozen.model, frozen.config, 2, frozen.stepper.tuning.always_still)
    later = make_loop({"start": start, "unfreeze": "gradual"}, factory=normalised)
    with pytest.raises(
        ConfigError, match=r"body.1 is a BatchNorm1d, whose statistics differ between 2 workers"
    ):
        refuse_model(later.model, later.config, 2, later.stepper.tuning.always_still)


def test_no_stage_ends_for_want_of_patience(start: str) -> None:
    transfer = {"start": start, "unfreeze": {"gradual": {"epochs": 2}}}
    loop = make_loop(
        transfer,
        optimizer={"sgd": {"learning_rate": 1e-9}},
        early_stopping={"patience": 1, "min_delta": 1.0},
        epochs=12,
    )
    assert loop.run().epochs == 7, "one of the last stage, in which nothing improved"


@pytest.fixture
def look_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("look_at_every_step")
@pytest.mark.parametrize("stop", [2, 2 * STEPS, 2 * STEPS + 1, 4 * STEPS, 4 * STEPS + 3])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_in_any_stage_equals_uninterrupted(
    start: str, tmp_path: Path, stop: int, optimizer: str
) -> None:
    transfer = {"start": start, **GRADUAL}
    more: dict[str, Any] = {"optimizer": optimizer, "schedule": "cosine", "averaging": "ema", "epochs": 7}
    whole = make_loop(transfer, **more)
    whole.run()
    run = Storage.open(str(tmp_path / "run"))
    left = iter(range(stop - 1))
    keeper = RunKeeper(run, 0.0, 2, lambda: "" if next(left, None) is not None else "stop")
    with pytest.raises(StoppedError, match=f"after step {stop} of 35"):
        make_loop(transfer, keeper=keeper, **more).run()
    again = make_loop(transfer, keeper=RunKeeper(run, 1e9, 2), **more)
    assert again.run().resumed_from == (stop,)
    np.testing.assert_array_equal(flat(again.model), flat(whole.model))


def test_workers_agree_with_one_in_every_stage_and_resume(start: str, tmp_path: Path) -> None:
    places = {"mlp": start}
    results = run_together(tmp_path / "results", 2, together, places, str(tmp_path / "run"))
    for found in results:
        for name, transfer in scenarios(places).items():
            alone = make_loop(transfer)
            alone.run()
            np.testing.assert_allclose(found[name], flat(alone.model), rtol=0, atol=1e-10, err_msg=name)
            assert found[f"{name}: error"] < 1e-9
        assert found["resumed at"] == (13,)
        np.testing.assert_array_equal(found["resumed"], found["gradual"])


def test_a_reduction_that_is_switched_off_in_a_later_stage_is_found(start: str, tmp_path: Path) -> None:
    for said in run_together(tmp_path, 2, _cheating, start):
        assert "reduced gradient is not the gradient of the global batch" in said
        assert said.endswith("stage 1")


def _cheating(start: str) -> str:
    from shoal.cluster.errors import ContractError
    from shoal.training.strategies.ddp import DDP

    class Silenced(DDP):
        def wrap(self, module: Any, config: Any, unused_parameters: bool) -> Any:
            wrapped = super().wrap(module, config, unused_parameters)
            count = getattr(self, "count", -1)
            self.count = count + 1
            if self.count:
                wrapped._remove_autograd_hooks()
                return module
            return wrapped

    strategy = Silenced(torch.device("cpu"))
    loop = make_loop({"start": start, "unfreeze": "gradual"}, strategy)
    try:
        loop.run()
    except ContractError as error:
        return f"{error} stage {loop.stepper.at}"
    return "nothing"
