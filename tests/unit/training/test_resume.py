"""A fit that was stopped anywhere and resumed ends as the uninterrupted one, bit for bit."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.modules import DrawsByItself, Tied
from support.prepared import make_dataset
from support.resuming import whole_stopped_and_resumed
from support.scenarios import CHANGED, REGULARISED, Error
from support.together import run_together

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError, RunError, StoppedError
from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.files import latest, written
from shoal.training.checkpoints.keeper import REACHED, Keeper, RunKeeper, prune
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.losses.build import Loss
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, _settings

CPU = torch.device("cpu")
STEPS = 5  # an epoch: 203 rows in batches of 50


@pytest.fixture(autouse=True)
def look_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 0.0)


class Hears(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


def loop(
    keeper: Keeper, hears: Silent | None = None, own: Any = None, key: str = "k", **training: Any
) -> Loop:
    dataset = make_dataset("binary", 203)
    config = (
        MLPConfig(hidden=(8,), dropout=0.3) if own is None else Imported.model_validate({"import": "a:b"})
    )
    model = build_model(config, dataset.schema, 3, factory=own)
    values = {"epochs": 4, "batch_size": 50, "early_stopping": {"patience": 2}, **training}
    settings = TrainingConfig.model_validate(values)
    of = {"other input files": key}
    return Loop(model, dataset, settings, Strategy(CPU), Error(), 3, hears or Silent(), keeper, of)  # type: ignore[arg-type]


def stops_after(run: Storage, looks: int, keep: int = 2) -> RunKeeper:
    left = iter(range(looks - 1))
    return RunKeeper(run, 0.0, keep, lambda: "" if next(left, None) is not None else "stop")


def weights(fitted: Loop) -> dict[str, torch.Tensor]:
    return fitted.model.state_dict()


def values(fitted: Loop) -> list[tuple[Any, ...]]:
    """The history without its times."""
    return [row[:5] for row in fitted.history.rows if not row[3].endswith("_seconds")]


CASES = [
    ({"optimizer": {"sgd": {"learning_rate": 0.05}}}, None),
    ({"optimizer": "adam", "precision": "fp64", "gradient_accumulation": 3, "clip_norm": 0.1}, None),
    ({"optimizer": "adamw"}, None),
    ({"optimizer": {"sgd": {"momentum": 0.0}}, "precision": "bf16"}, None),
    ({"optimizer": "adam"}, DrawsByItself),
    ({"optimizer": {"sgd": {"learning_rate": 0.01}}}, Tied),
    *(({"optimizer": name}, None) for name in ("adagrad", "rmsprop", "nadam", "radam", "adadelta")),
    (REGULARISED, None),
    ({**CHANGED, "epochs": 4}, None),
    ({"schedule": "one_cycle", "optimizer": {"sgd": {"learning_rate": 0.01}}}, None),
    ({"schedule": {"cyclic": {"step_size_up": 3, "mode": "exp_range", "gamma": 0.9, "warmup": 4}}}, None),
    ({"schedule": {"reduce_on_plateau": {"patience": 0, "min_delta": 0.01}}, "early_stopping": None}, None),
    ({"optimizer": {"lbfgs": {"max_iter": 3, "history_size": 2}}, "l2": 0.1}, None),
    ({"optimizer": {"nonlinear_cg": {"max_iter": 3}}, "l2": 0.1}, None),
    ({"averaging": {"swa": {"start": 0.25}}}, None),
]


@pytest.mark.parametrize(("training", "own"), CASES)
@pytest.mark.parametrize("stop", [2, STEPS, 13])
def test_resumed_equals_uninterrupted(tmp_path: Path, training: dict[str, Any], own: Any, stop: int) -> None:
    torch.manual_seed(11)
    whole = loop(Keeper(), own=own, **training)
    wanted = whole.run()
    run = Storage.open(str(tmp_path))
    torch.manual_seed(11)
    with pytest.raises(StoppedError, match=f"after step {stop} of 20, with a checkpoint"):
        loop(stops_after(run, stop), own=own, **training).run()
    torch.manual_seed(99)
    hears = Hears()
    again = loop(RunKeeper(run, 1e9, 2), hears, own=own, **training)
    outcome = again.run()
    assert outcome.resumed_from == (stop,)
    assert any(f"resuming from step {stop} of 20" in said for said in hears.said)
    assert weights(again).keys() == weights(whole).keys()
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name
    assert (outcome.best, outcome.best_epoch, outcome.stopped) == (
        wanted.best,
        wanted.best_epoch,
        wanted.stopped,
    )
    assert values(again) == values(whole)


def test_a_fit_may_be_stopped_again_and_again(tmp_path: Path) -> None:
    whole = loop(Keeper())
    whole.run()
    run = Storage.open(str(tmp_path))
    for _ in range(6):
        with pytest.raises(StoppedError):
            loop(stops_after(run, 3), optimizer="adamw").run()
    again = loop(RunKeeper(run, 1e9, 2))
    outcome = again.run()
    assert outcome.resumed_from == (3, 6, 9, 12, 15, 18)
    assert outcome.repeated == 0, "each stop wrote a checkpoint"
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name


class Killed(BaseException):
    """What a SIGKILL is to a loop: nothing after it is done."""


def killed_after(run: Storage, looks: int, saved: int) -> RunKeeper:
    """Asks for a checkpoint at one look, which there is one of after each step, and dies in a later one."""
    counted = iter(range(1, looks + 1))

    def asked() -> Any:
        look = next(counted)
        if look == looks:
            raise Killed
        return "checkpoint" if look == saved else ""

    return RunKeeper(run, 1e9, 2, asked)


def test_steps_that_are_done_again_are_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.training.loop.ADVANCE_SECONDS", -1.0)  # after every step
    run = Storage.open(str(tmp_path))
    for looks, saved in ((12, 7), (5, 0), (3, 0)):  # to step 12, then twice from step 7: to 12 and to 10
        with pytest.raises(Killed):
            loop(killed_after(run, looks, saved)).run()
    last = loop(RunKeeper(run, 1e9, 2))
    outcome = last.run()
    assert outcome.resumed_from == (7,)
    assert outcome.repeated == 5 + 5 + 3
    assert outcome.time.endswith("; at least 13 steps done again after a restart")
    assert loop(RunKeeper(Storage.open(str(tmp_path / "other")), 1e9, 2)).run().repeated == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"position": "x", "repeated": 0}'])
def test_a_damaged_count_of_steps_stops_nothing(tmp_path: Path, text: str) -> None:
    run = Storage.open(str(tmp_path))
    run.write_text(REACHED, text)
    assert loop(RunKeeper(run, 1e9, 2)).run().repeated == 0


def test_a_damaged_checkpoint_is_left_out_for_the_one_before(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    with pytest.raises(StoppedError):
        loop(stops_after(run, 7)).run()
    newest = tmp_path / written(run)[0][1]
    data = bytearray((newest / "rank-00000.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "rank-00000.safetensors").write_bytes(data)
    hears = Hears()
    assert loop(RunKeeper(run, 1e9, 2), hears).run().resumed_from == (6,)
    assert any("is left out" in said and "damaged" in said for said in hears.said)


@pytest.mark.parametrize("lost", ["rank-00000.safetensors", "rank-00000.json"])
def test_half_a_checkpoint_is_none(tmp_path: Path, lost: str) -> None:
    run = Storage.open(str(tmp_path))
    with pytest.raises(StoppedError):
        loop(stops_after(run, 4)).run()
    for _, path in written(run):
        (tmp_path / path / lost).unlink()
    found, problems = latest(run)
    assert found is None
    assert len(problems) == 2
    assert loop(RunKeeper(run, 1e9, 2)).run().resumed_from == ()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    with pytest.raises(StoppedError):
        loop(stops_after(run, 9, keep=3)).run()
    assert [position for position, _ in written(run)] == [9, 8, 7]
    prune(run)
    assert [position for position, _ in written(run)] == [9]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    with pytest.raises(StoppedError):
        loop(stops_after(run, 4)).run()
    with pytest.raises(ConfigError, match="is not of this run: it is of other input files"):
        loop(RunKeeper(run, 1e9, 2), key="other").run()


def test_the_end_of_a_long_fit_is_kept_so_that_only_judging_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage.open(str(tmp_path))
    short = loop(RunKeeper(run, 1e9, 2))
    short.run()
    assert written(run) == []  # a short fit is done again as soon
    monkeypatch.setattr(lookout, "END_SECONDS", 0.0)
    first = loop(RunKeeper(run, 1e9, 2))
    outcome = first.run()
    ((position, _),) = written(run)
    assert position == outcome.steps
    again = loop(RunKeeper(run, 1e9, 2))
    assert again.run().resumed_from == (position,)
    assert values(again) == values(first) == values(short)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, weights(short)[name])


def test_seconds_of_the_history_never_run_backwards(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    slow = loop(stops_after(run, 7), optimizer="adam")
    take = slow.stepper.step

    def step(*arguments: Any) -> Any:
        if slow.position == 2:
            time.sleep(0.3)  # an uneven fit
        return take(*arguments)

    slow.stepper.step = step  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        slow.run()
    resumed = loop(RunKeeper(run, 1e9, 2), optimizer="adam")
    resumed.run()
    losses = [(row[0], row[5]) for row in resumed.history.rows if row[3] == "loss"]
    assert [step for step, _ in losses] == sorted(step for step, _ in losses)
    seconds = [s for _, s in losses]
    assert seconds == sorted(seconds)
    assert seconds[1] < 0.3 < seconds[2]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_resume_bitwise_and_one_goes_on_where_they_were(tmp_path: Path, workers: int) -> None:
    run = Storage.open(str(tmp_path / "run"))
    for whole, stopped, resumed in run_together(
        tmp_path / "results", workers, whole_stopped_and_resumed, str(tmp_path / "run")
    ):
        assert stopped is None
        assert resumed["resumed_from"] == (7,)
        np.testing.assert_array_equal(resumed["weights"], whole["weights"])
    newest, _ = latest(run)
    assert newest is not None
    assert newest.world_size == workers
    alone = loop(RunKeeper(run, 1e9, 2), precision="fp64")
    assert alone.run().resumed_from == (7,)
    flat = np.concatenate([p.detach().numpy().ravel() for p in alone.model.parameters()])
    np.testing.assert_allclose(flat, whole["weights"], rtol=0, atol=1e-10)


def test_a_gradient_that_is_no_number_names_the_rows(tmp_path: Path) -> None:
    with pytest.raises(
        RunError,
        match=r"at step 1 \(epoch 1, batch 1\): its norm is nan.*1 of its 203 rows have such a loss \(id 17\):",
    ):
        poisoned().run()


def poisoned(**training: Any) -> Loop:
    fitted = loop(Keeper(), batch_size="full", **training)
    plain = fitted.stepper.loss.values

    def with_nan(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = plain(logits, labels)
        rows = fitted.stepper.draws.rows
        shard, place = (17 % 8), (17 // 8)
        epoch = fitted.position // fitted.plan.steps_per_epoch
        position = int(np.flatnonzero(fitted.plan.permutation(epoch, shard) == place)[0]) * 8 + shard
        return torch.where(rows == position, losses * float("nan"), losses) if epoch == 0 else losses

    fitted.stepper.loss = Loss(with_nan)
    return fitted


def test_such_steps_are_skipped_and_counted_where_asked() -> None:
    fitted = poisoned(non_finite="skip")
    outcome = fitted.run()
    assert outcome.skipped == 1
    assert any("1 of 4 steps were left out" in notice for notice in outcome.notices)
    assert all(torch.isfinite(p).all() for p in fitted.model.parameters())


def test_what_is_fitted_how_is_known_by_a_hash() -> None:
    def settings(**changes: Any) -> str:
        values: dict[str, Any] = {"hidden": (8,), "seed": 3, "every": "10m", "rate": 1e-3, **changes}
        training = {
            "optimizer": {"adam": {"learning_rate": values["rate"]}},
            "checkpoint": {"every": values["every"]},
        }
        job = FitJob(
            model=MLPConfig(hidden=values["hidden"]),
            training=TrainingConfig.model_validate(training),
            seed=values["seed"],
            data_uri="",
            run_uri="",
            monitor=None,
        )
        return _settings(job)

    others = [settings(hidden=(16,)), settings(seed=4), settings(rate=2e-3)]
    assert len({settings(), *others}) == 4
    assert settings(every="1s") == settings()
