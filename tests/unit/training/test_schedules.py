"""Every schedule against torch's scheduler turned by hand, or a closed form."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.prepared import make_dataset
from support.scenarios import Error
from torch.optim import lr_scheduler

from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.progress import Silent
from shoal.cluster.resources import Shape
from shoal.training.allowed import refuse
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset
from shoal.training.models import build_model
from shoal.training.schedules.config import SCHEDULES
from shoal.training.schedules.schedule import Schedule
from shoal.training.strategies.base import Strategy

PER_EPOCH, EPOCHS = 5, 12
TOTAL = PER_EPOCH * EPOCHS
RATE = 0.04


def schedule(value: Any, per_epoch: int = PER_EPOCH, epochs: int = EPOCHS, **options: Any) -> Schedule:
    config = TrainingConfig.model_validate({"schedule": value}).schedule
    return Schedule(config, per_epoch, epochs, **options)


def factors(value: Any, **options: Any) -> np.ndarray:
    made = schedule(value, **options)
    return np.array([made.factor(p) for p in range(made._per_epoch * EPOCHS)])


def turned(build: Callable[[Any], Any], turns: int) -> np.ndarray:
    """The rates of torch's own scheduler, over its optimiser's rate."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE, momentum=0.9)
    scheduler, seen = build(optimizer), []
    for _ in range(turns):
        seen.append(optimizer.param_groups[0]["lr"] / RATE)
        optimizer.step()
        scheduler.step()
    return np.array(seen)


TORCHS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "step": ({"step": {"step_size": 3, "gamma": 0.5}}, lambda o: lr_scheduler.StepLR(o, 3, 0.5)),
    "multi_step": (
        {"multi_step": {"milestones": [2, 7], "gamma": 0.3}},
        lambda o: lr_scheduler.MultiStepLR(o, [2, 7], 0.3),
    ),
    "exponential": ({"exponential": {"gamma": 0.8}}, lambda o: lr_scheduler.ExponentialLR(o, 0.8)),
    "cosine_warm_restarts": (
        {"cosine_warm_restarts": {"t_0": 2, "t_mult": 2, "min_factor": 0.1}},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2, 0.1 * RATE),
    ),
    "polynomial": (
        {"polynomial": {"power": 2.0}},
        lambda o: lr_scheduler.PolynomialLR(o, TOTAL, 2.0),
    ),
    "cosine": (
        {"cosine": {"min_factor": 0.2}},
        lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, 0.2 * RATE),
    ),
    **{
        f"cyclic {mode}": (
            {
                "cyclic": {
                    "base_factor": 0.2,
                    "step_size_up": 7,
                    "step_size_down": 4,
                    "mode": mode,
                    **({"gamma": 0.9} if mode == "exp_range" else {}),
                }
            },
            lambda o, mode=mode: lr_scheduler.CyclicLR(
                o, 0.2 * RATE, RATE, 7, 4, mode, 0.9, cycle_momentum=False
            ),
        )
        for mode in ("triangular", "triangular2", "exp_range")
    },
    "one_cycle": (
        {"one_cycle": {"pct_start": 0.4, "div_factor": 10.0}},
        lambda o: lr_scheduler.OneCycleLR(o, RATE, TOTAL, pct_start=0.4, div_factor=10.0),
    ),
    "one_cycle in three phases": (
        {"one_cycle": {"three_phase": True, "anneal_strategy": "linear"}},
        lambda o: lr_scheduler.OneCycleLR(o, RATE, TOTAL, three_phase=True, anneal_strategy="linear"),
    ),
    "inverse_square_root": (
        {"inverse_square_root": {"timescale": 9}},
        lambda o: lr_scheduler.LambdaLR(o, lambda t: (1 + t / 9) ** -0.5),
    ),
}
BY_EPOCH = ("step", "multi_step", "exponential", "cosine_warm_restarts")


@pytest.mark.parametrize("name", TORCHS)
def test_equals_torchs_scheduler(name: str) -> None:
    value, build = TORCHS[name]
    expected = np.repeat(turned(build, EPOCHS), PER_EPOCH) if name in BY_EPOCH else turned(build, TOTAL)
    np.testing.assert_allclose(factors(value), expected, rtol=1e-12, atol=1e-15)
    assert len(np.unique(expected.round(9))) > 2


def test_every_schedule_is_among_them() -> None:
    assert {name.split()[0] for name in TORCHS} | {"constant", "reduce_on_plateau"} == set(SCHEDULES)


@pytest.mark.parametrize("name", BY_EPOCH)
def test_the_unit_may_be_chosen(name: str) -> None:
    value, build = TORCHS[name]
    (inner,) = value.values()
    np.testing.assert_allclose(
        factors({name: {**inner, "unit": "step"}}), turned(build, TOTAL), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(("unit", "steps"), [("step", 3), ("epoch", 3 * PER_EPOCH)])
def test_warm_up_rises_at_every_step_and_then_the_schedule_begins(unit: str, steps: int) -> None:
    found = factors({"cosine": {"warmup": 3, "unit": unit}})
    np.testing.assert_allclose(found[:steps], (np.arange(steps) + 1) / (steps + 1), rtol=1e-15)
    assert found[steps] == 1.0
    rest = (TOTAL - steps) // (1 if unit == "step" else PER_EPOCH)
    t = np.arange(TOTAL - steps) // (1 if unit == "step" else PER_EPOCH)
    np.testing.assert_allclose(found[steps:], (1 + np.cos(np.pi * t / rest)) / 2, rtol=1e-9, atol=1e-12)


def test_warm_up_rises_to_where_the_schedule_begins() -> None:
    value = {"cyclic": {"base_factor": 0.2, "step_size_up": 4, "warmup": 3}}
    np.testing.assert_allclose(factors(value)[:5], [0.05, 0.1, 0.15, 0.2, 0.4], rtol=1e-12)


def test_the_warm_up_may_have_a_unit_of_its_own() -> None:
    value = {"exponential": {"gamma": 0.5, "warmup": 3, "warmup_unit": "step"}}
    found = factors(value)
    np.testing.assert_allclose(found[:3], [0.25, 0.5, 0.75], rtol=1e-12)
    np.testing.assert_allclose(found[3:], 0.5 ** (np.arange(TOTAL - 3) // PER_EPOCH), rtol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "polynomial"])
@pytest.mark.parametrize("warmup", [1, TOTAL - 1])
def test_the_last_steps_after_a_warm_up_in_steps_still_learn(name: str, warmup: int) -> None:
    found = factors({name: {"unit": "epoch", "warmup": warmup, "warmup_unit": "step"}})
    assert (found > 0).all()


def test_without_a_timescale_the_warm_up_is_it() -> None:
    found = factors({"inverse_square_root": {"warmup": 10}})
    step = np.arange(1, TOTAL + 1)
    noam = np.minimum(step / 11, np.sqrt(10 / np.maximum(10, step - 1)))
    np.testing.assert_allclose(found, noam, rtol=1e-12)


def test_the_position_alone_decides() -> None:
    for value, _ in TORCHS.values():
        whole = factors(value)
        later = schedule(value)
        assert [later.factor(p) for p in range(23, TOTAL)] == whole[23:].tolist()


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_a_plateau_equals_torchs(greater_is_better: bool) -> None:
    scores = [0.1, 0.2, 0.2, 0.15, 0.2, 0.21, 0.2, math.nan, 0.2, 0.2, 0.2, 0.2]
    scores = scores if greater_is_better else [-s for s in scores]
    value = {"reduce_on_plateau": {"factor": 0.5, "patience": 1, "cooldown": 1, "min_factor": 0.2}}
    made, found = schedule(value, greater_is_better=greater_is_better), []
    for epoch in range(EPOCHS):
        found.append(made.factor(epoch * PER_EPOCH))
        made.hear(scores[: epoch + 1])
        made.hear(scores[: epoch + 1])  # twice is once
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, "max" if greater_is_better else "min", 0.5, 1, 1e-4, "abs", 1, 0.2
    )
    expected = []
    for score in scores:
        expected.append(optimizer.param_groups[0]["lr"])
        if not math.isnan(score):
            theirs.step(score)
    assert found == expected
    assert len(set(found)) > 2


@pytest.mark.parametrize(
    ("optimizer", "where"),
    [("adam", "betas"), ({"sgd": {"momentum": 0.9}}, "momentum"), ("nadam", "betas")],
)
def test_one_cycle_moves_the_momentum_the_other_way(optimizer: Any, where: str) -> None:
    loop = make(optimizer=optimizer, schedule="one_cycle", epochs=EPOCHS)
    group, seen = {}, []
    step = loop.stepper.step

    def watched(*args: Any) -> torch.Tensor:
        group.update(loop.strategy.optimizer.param_groups[0])
        momentum = group[where][0] if where == "betas" else group[where]
        seen.append((group["lr"] / loop.strategy.rates[0], momentum))
        return step(*args)

    loop.stepper.step = watched  # type: ignore[method-assign]
    loop.run()
    dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    theirs, expected = lr_scheduler.OneCycleLR(dummy, 1.0, len(seen)), []
    for _ in seen:
        expected.append((dummy.param_groups[0]["lr"], dummy.param_groups[0]["momentum"]))
        dummy.step()
        theirs.step() if len(expected) < len(seen) else None
    np.testing.assert_allclose(seen, expected, rtol=1e-12)


def make(**training: Any) -> Loop:
    dataset = make_dataset("binary", 203)
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3)
    values = {"batch_size": 50, "precision": "fp64", "early_stopping": None, **training}
    config = TrainingConfig.model_validate(values)
    return Loop(model, dataset, config, Strategy(torch.device("cpu")), Error(), 3, Silent())  # type: ignore[arg-type]


def test_the_history_holds_the_rate_as_it_was() -> None:
    value = {"step": {"step_size": 2, "gamma": 0.5, "warmup": 1}}
    loop = make(optimizer={"sgd": {"learning_rate": RATE}}, schedule=value, epochs=EPOCHS)
    loop.run()
    rates = [row[4] for row in loop.history.rows if row[3] == "learning_rate"]
    np.testing.assert_allclose(rates, RATE * factors(value), rtol=1e-12)


def test_each_group_keeps_its_own_rate() -> None:
    groups = [{"match": "body.0.*", "learning_rate": 0.5}]
    loop = make(schedule={"exponential": {"gamma": 0.5}}, parameter_groups=groups, epochs=3)
    loop.run()
    rates = sorted({group["lr"] for group in loop.strategy.optimizer.param_groups})
    np.testing.assert_allclose(rates, [1e-3 * 0.25, 0.5 * 0.25], rtol=1e-12)


def halving(optimizer: torch.optim.Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    assert optimizer.param_groups[0]["lr"] == RATE
    return lr_scheduler.StepLR(optimizer, total_steps // 2, 0.5)


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps)


@pytest.mark.parametrize("optimizer", [{"sgd": {"learning_rate": 0.1}}, "adam"])
def test_a_scheduler_of_ones_own_moves_the_momentum_too(optimizer: Any) -> None:
    weights = []
    for value in ("one_cycle", {"import": f"{__name__}:one_cycle"}):
        loop = make(optimizer=optimizer, schedule=value, epochs=EPOCHS)
        loop.run()
        weights.append(torch.cat([p.detach().ravel() for p in loop.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-12)


def test_a_scheduler_that_moves_a_momentum_which_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="moves a momentum, and this optimiser has none"):
        make(optimizer="adagrad", schedule={"import": f"{__name__}:one_cycle"})


def breaks(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (3 - t))


def test_a_scheduler_that_fails_is_named_with_its_line() -> None:
    loop = make(schedule={"import": f"{__name__}:breaks"}, epochs=2)
    with pytest.raises(
        RunError, match=r"training.schedule.import failed at .*test_schedules.py, line \d+: ZeroDiv"
    ):
        loop.run()


def vanishing(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda t: math.nan if t == 2 else 1.0)


def test_a_scheduler_whose_rate_is_no_number_is_named_with_its_step() -> None:
    loop = make(schedule={"import": f"{__name__}:vanishing"}, epochs=2)
    with pytest.raises(RunError, match="vanishing gave step 3 the learning rate nan"):
        loop.run()


def constant(optimizer: torch.optim.Optimizer, factor: float) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda t: factor)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_first_rate_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="constant gave step 1 the learning rate (-|nan|inf)"):
        make(schedule={"import": f"{__name__}:constant", "factor": factor})


def test_a_schedule_that_leaves_the_weights_as_they_were_is_said() -> None:
    loop = make(schedule={"import": f"{__name__}:constant", "factor": 0.0}, optimizer="sgd", epochs=2)
    notices = loop.run().notices
    assert any("every weight was left as it was" in n and ":constant" in n for n in notices)


def idle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, 1000)


@pytest.mark.parametrize(("name", "said"), [("idle", True), ("halving", False), ("one_cycle", False)])
def test_a_scheduler_of_ones_own_that_does_nothing_is_said(name: str, said: bool) -> None:
    loop = make(
        schedule={"import": f"{__name__}:{name}"}, optimizer={"sgd": {"learning_rate": RATE}}, epochs=2
    )
    assert any("left the learning rate as it was" in n for n in loop.run().notices) == said


def nothing(optimizer: torch.optim.Optimizer, wrong: int = 0) -> None:
    del optimizer, wrong


def test_a_scheduler_of_ones_own_turns_once_a_step() -> None:
    found = factors({"import": f"{__name__}:halving"}, learning_rate=RATE)
    np.testing.assert_allclose(found, np.repeat([1.0, 0.5], TOTAL // 2))


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        ({"import": f"{__name__}:nothing"}, {}, "returned NoneType; it must return"),
        ({"import": f"{__name__}:nothing", "rihgt": 1}, {}, "could not be called.*rihgt"),
        ({"cosine": {"warmup": TOTAL}}, {}, "warm-up of 60 steps leaves nothing .* 60 steps"),
        ({"step": {"warmup": EPOCHS}}, {}, "warm-up of 12 epochs leaves nothing"),
        ({"one_cycle": {"cycle_momentum": True}}, {"momentum": False}, "no momentum and no betas"),
        (
            {"multi_step": {"milestones": [3, 11, 12, 40]}},
            {},
            "milestones: 12, 40 would never be reached: this fit lasts 12 epochs",
        ),
        (
            {"multi_step": {"milestones": [55], "unit": "step", "warmup": 5}},
            {},
            "55 would never .* lasts 55 steps",
        ),
    ],
)
def test_what_cannot_be_is_refused(value: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schedule(value, **options)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"one_cycle": {"warmup": 5}}, "one_cycle rises by itself"),
        ({"multi_step": {"milestones": [5, 2]}}, r"milestones must rise, got \[5, 2\]"),
        ({"multi_step": {}}, "milestones"),
        ({"reduce_on_plateau": {"unit": "step"}}, "epoch"),
        (
            {"one_cycle": {"base_momentum": 0.95, "max_momentum": 0.9}},
            "base_momentum: 0.95 is above max_momentum: 0.9",
        ),
        ({"cyclic": {"mode": "exp_range"}}, "exp_range needs a gamma below 1"),
        ({"cyclic": {"gamma": 0.9}}, "mode triangular with gamma 0.9"),
        ({"step": {"gamma": 1}}, "less than 1"),
        ({"cosine": {"min_factor": 1}}, "less than 1"),
        ({"cosine_warm_restarts": {"t_0": 1}}, "t_0: 1 epoch begins anew before the rate has fallen"),
    ],
)
def test_what_says_nothing_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate({"schedule": value})


def test_an_optimiser_that_searches_has_no_schedule() -> None:
    for value in ("cosine", {"constant": {"warmup": 3}}):
        training = TrainingConfig.model_validate({"optimizer": "lbfgs", "schedule": value})
        with pytest.raises(ConfigError, match="there is nothing to schedule"):
            refuse(training, Shape(1, 1.0, 0.0, "inline"))


def test_milestones_that_are_just_reached_pass() -> None:
    assert factors({"multi_step": {"milestones": [11], "gamma": 0.5}})[-1] == 0.5
    last = schedule({"multi_step": {"milestones": [54], "unit": "step", "warmup": 5}})
    assert (last.factor(TOTAL - 2), last.factor(TOTAL - 1)) == (1.0, pytest.approx(0.1))


@pytest.mark.parametrize(("patience", "acts"), [(EPOCHS - 3, True), (EPOCHS - 2, False)])
def test_a_plateau_is_called_too_patient_where_it_can_never_act(patience: int, acts: bool) -> None:
    made, found = schedule({"reduce_on_plateau": {"patience": patience}}), []
    for epoch in range(EPOCHS):
        found.append(made.factor(epoch * PER_EPOCH))
        made.hear([0.5] * (epoch + 1))
    assert (len(set(found)) > 1) == acts
    assert bool(made.notices) != acts


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "multi_step"])
def test_a_fit_of_one_step_goes_through(name: str) -> None:
    loop = make(schedule=name, epochs=1, batch_size="full")
    loop.run()
    assert all(np.isfinite(p.detach().numpy()).all() for p in loop.model.parameters())


def test_a_plateau_needs_validation_rows() -> None:
    dataset = make_dataset("binary", 203)
    bare = ArrayDataset(dataset.schema, {"train": dataset.parts["train"]}, 8)
    config = TrainingConfig.model_validate({"schedule": "reduce_on_plateau"})
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3)
    with pytest.raises(ConfigError, match="looks at the validation rows, and there are none"):
        Loop(model, bare, config, Strategy(torch.device("cpu")), Error(), 3, Silent())  # type: ignore[arg-type]
