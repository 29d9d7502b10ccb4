"""The loop against a plain torch loop that reads the same plan, written here by hand."""

import math
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from support.by_hand import OPTIMIZERS, by_hand
from support.prepared import make_dataset
from torch import nn

from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.progress import EpochRecord, Silent
from shoal.training.batches import BatchReader
from shoal.training.config import (
    SEARCHING,
    EarlyStoppingConfig,
    LinearConfig,
    MLPConfig,
    TrainingConfig,
)
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset
from shoal.training.models import Model, build_model
from shoal.training.plan import EpochPlan
from shoal.training.scores import predictions_table
from shoal.training.strategies.base import Strategy


class SquaredDistance:
    """A stand-in for a metric: what the loop needs of one."""

    name, greater_is_better = "error", False

    def value(self, y: np.ndarray, scores: np.ndarray, amounts: object = None) -> float:
        return float(np.mean((y - scores) ** 2))


class Listener(Silent):
    def __init__(self) -> None:
        self.epochs: list[EpochRecord] = []

    def epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)


def fit(
    dataset: ArrayDataset,
    model_config: MLPConfig | LinearConfig | None = None,
    listener: Silent | None = None,
    monitor: Any = None,
    device: str = "cpu",
    **training: object,
) -> tuple[Loop, Model]:
    model = build_model(model_config or MLPConfig(hidden=(8,)), dataset.schema, 3)
    config = TrainingConfig.model_validate({"epochs": 3, "batch_size": 50, "precision": "fp64", **training})
    loop = Loop(model, dataset, config, Strategy(torch.device(device)), monitor, 3, listener or Silent())
    return loop, model


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_a_plain_torch_loop(task: str, name: str) -> None:
    dataset = make_dataset(task, rows=203)
    config, build = OPTIMIZERS[name]
    clip, batch_size = (None, "full") if name in SEARCHING else (0.5, 50)
    loop, model = fit(dataset, optimizer={name: config.model_dump()}, clip_norm=clip, batch_size=batch_size)
    oracle = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3).double()
    loop.run()
    by_hand(dataset, build(oracle), oracle, 3, clip=clip)
    for ours, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        atol = 1e-10 if name in SEARCHING else 1e-12  # a search amplifies rounding
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in SEARCHING])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_low_precision_equals_a_plain_torch_loop_under_autocast(
    name: str, precision: str, device: str
) -> None:
    # fp16 on a CPU is refused before the loop: too slow to be of use, but its numbers and its scaling are the same.
    dataset = make_dataset("binary", rows=203)
    config, build = OPTIMIZERS[name]
    loop, model = fit(dataset, device=device, optimizer={name: config.model_dump()}, precision=precision)
    oracle = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3).to(device)
    loop.run()
    by_hand(dataset, build(oracle), oracle, 3, precision=precision, device=device)
    exact, _ = fit(dataset, device=device, optimizer={name: config.model_dump()}, precision="fp32")
    exact.run()
    difference = 0.0
    for ours, theirs, fp32 in zip(
        model.parameters(), oracle.parameters(), exact.model.parameters(), strict=True
    ):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        difference = max(difference, float((ours - fp32).detach().abs().max()))
    assert difference > (1e-4 if precision == "bf16" else 1e-5)  # it did compute in less


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_that_overflow_fp16_are_left_out_until_the_scale_fits(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**26))
    dataset = make_dataset("binary", rows=203)
    config, build = OPTIMIZERS["adam"]
    loop, model = fit(
        dataset, device=device, optimizer={"adam": config.model_dump()}, precision="fp16", clip_norm=0.5
    )
    oracle = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3).to(device)
    outcome = loop.run()
    by_hand(dataset, build(oracle), oracle, 3, clip=0.5, precision="fp16", device=device)
    assert 0 < outcome.skipped < outcome.steps
    assert loop.stepper.skipped == list(range(outcome.skipped))
    for ours, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_accumulation_changes_nothing_but_memory() -> None:
    dataset = make_dataset(rows=203)
    states = []
    for parts in (1, 3, 1000):
        loop, model = fit(dataset, MLPConfig(hidden=(8,), dropout=0.4), gradient_accumulation=parts)
        loop.run()
        states.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(states[2], states[0], rtol=0, atol=1e-12)


def test_windows_of_any_size_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(rows=203)
    plan = EpochPlan(dataset.shard_rows("train"), 10, 0)
    whole = list(BatchReader(dataset, plan, 0, 1).epoch(1))
    monkeypatch.setattr("shoal.training.batches.WINDOW_ROWS", 30)
    small = list(BatchReader(dataset, plan, 0, 1).epoch(1, first_step=4))
    for a, b in zip(whole[4:], small, strict=True):
        assert (a.position == b.position).all()
        assert torch.equal(a.categorical, b.categorical)
        assert torch.equal(a.label, b.label)


def test_keeps_the_best_epochs_weights_and_says_why_it_stopped() -> None:
    class WorseningScore(SquaredDistance):
        scores = iter([0.5, 0.3, 0.4, 0.4, 0.4])

        def value(self, y: np.ndarray, scores: np.ndarray, amounts: object = None) -> float:
            return next(self.scores)

    listener = Listener()
    dataset = make_dataset(rows=100)
    loop, model = fit(
        dataset, listener=listener, monitor=WorseningScore(), epochs=9, early_stopping={"patience": 2}
    )
    outcome = loop.run()
    assert (outcome.epochs, outcome.best_epoch, outcome.best) == (4, 2, 0.3)
    assert outcome.stopped == "error had not improved for 2 epochs"
    assert [r.best for r in listener.epochs] == [True, True, False, False]
    two, best = fit(dataset, epochs=2)
    two.run()
    for ours, theirs in zip(model.parameters(), best.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_loss_that_is_no_number_stops_the_run_with_its_step() -> None:
    loop, _ = fit(make_dataset("regression", rows=100), optimizer={"sgd": {"learning_rate": 1e200}})
    with pytest.raises(
        RunError,
        match=r"finite number at step \d+ .*all 50 rows of the batch \(id \d+(, \d+){9} and more\).*learning_rate",
    ):
        loop.run()


def test_a_loss_that_is_no_number_with_a_finite_gradient_names_its_rows() -> None:
    loop, model = fit(make_dataset("regression", rows=100))

    def overwrite(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[3:5] = torch.inf  # no gradient comes from these rows
        return changed if torch.is_grad_enabled() or len(output) == 50 else output

    model.register_forward_hook(overwrite)
    with pytest.raises(
        RunError,
        match=r"became inf at step 1 though .*finite: 2 of its 50 rows have such a loss \(id \d+, \d+\)",
    ):
        loop.run()


def test_history_holds_the_losses_and_the_validation_scores() -> None:
    loop, _ = fit(make_dataset(rows=203), monitor=SquaredDistance())
    outcome = loop.run()
    table = loop.history.table()
    train = table.filter(pc.equal(table["metric"], "loss"))
    assert train["step"].to_pylist() == list(range(1, outcome.steps + 1))
    assert train["value"][0].as_py() > train["value"][-1].as_py()
    validation = table.filter(pc.equal(table["split"], "validation"))
    assert validation["epoch"].to_pylist() == [1, 2, 3]
    assert validation["metric"].unique().to_pylist() == ["error"]
    assert min(validation["value"].to_pylist()) == outcome.best


def test_every_row_of_a_part_is_judged_once_in_shard_order(task: str) -> None:
    dataset = make_dataset(task)
    loop, model = fit(dataset)
    loop.run()
    judged = loop.judge(model, "test")
    assert judged is not None
    order = np.concatenate([np.arange(len(dataset.parts["test"]))[v::8] for v in range(8)])
    assert judged.row_id.to_pylist() == order.tolist()
    np.testing.assert_array_equal(judged.label, dataset.parts["test"].label[order])
    table = predictions_table({"test": judged}, dataset.schema.target)
    scores = (
        np.stack([table[c].to_numpy() for c in table.column_names if c.startswith("score_")], 1)
        if task != "regression"
        else None
    )
    if task in ("binary", "multiclass"):
        assert scores is not None
        np.testing.assert_allclose(scores.sum(1), 1)
    logits = model(
        torch.from_numpy(dataset.parts["test"].numeric).double(),
        torch.from_numpy(dataset.parts["test"].categorical),
    ).detach()
    expected = {
        "binary": lambda: logits[:, 0].sigmoid(),
        "multiclass": lambda: logits.softmax(1),
        "multilabel": lambda: logits.sigmoid(),
        "regression": lambda: logits[:, 0] * 3 + 2,
    }[task]()
    np.testing.assert_allclose(judged.score, expected.numpy()[order], atol=1e-12)


def test_without_validation_rows_all_epochs_are_done() -> None:
    dataset = make_dataset(rows=60)
    bare = ArrayDataset(dataset.schema, {"train": dataset.parts["train"]}, 8)
    outcome = fit(bare, monitor=SquaredDistance(), early_stopping=EarlyStoppingConfig(patience=1))[0].run()
    assert outcome.best_epoch == 0
    assert math.isnan(outcome.best)
    assert outcome.stopped == "all 3 epochs done"
    (notice,) = outcome.notices
    assert notice.startswith("early stopping: there are no validation rows")


def test_without_early_stopping_the_last_epoch_counts() -> None:
    listener = Listener()
    loop, _ = fit(make_dataset(rows=60), listener=listener, monitor=SquaredDistance(), early_stopping=None)
    outcome = loop.run()
    assert (outcome.best_epoch, outcome.best) == (0, listener.epochs[-1].value)
    assert not any(record.best for record in listener.epochs)


def test_the_history_has_the_rate_that_an_imported_optimiser_gives_itself() -> None:
    config = {"import": f"{__name__}:Halving", "lr": 0.1}
    loop, _ = fit(make_dataset(rows=100), optimizer=config, epochs=1)
    loop.run()
    rates = [row[4] for row in loop.history.rows if row[3] == "learning_rate"]
    np.testing.assert_allclose(rates, [0.1, 0.05], rtol=1e-12)


class Halving(torch.optim.SGD):
    """Halves its learning rate with every step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            group["lr"] /= 2


def test_a_score_that_is_never_a_number_is_said_and_stops_nothing() -> None:
    class UndefinedScore(SquaredDistance):
        def value(self, y: np.ndarray, scores: np.ndarray, amounts: object = None) -> float:
            return math.nan

    loop, _ = fit(make_dataset(rows=60), monitor=UndefinedScore(), epochs=4, early_stopping={"patience": 1})
    outcome = loop.run()
    assert (outcome.epochs, outcome.best_epoch) == (4, 0)
    assert "error is undefined on the validation rows" in outcome.notices[0]


def test_an_epoch_without_a_step_has_no_loss() -> None:
    listener = Listener()
    loop, _ = fit(
        make_dataset("binary", rows=203),
        listener=listener,
        optimizer={"sgd": {"learning_rate": 1e30}},
        precision="fp32",
        non_finite="skip",
    )
    assert loop.run().skipped == 14  # all but the first
    assert [math.isnan(record.train_loss) for record in listener.epochs] == [False, True, True]


def test_a_fit_whose_every_step_was_left_out_has_failed() -> None:
    dataset = make_dataset("regression", rows=100)
    dataset.parts["train"].label[:] = np.nan
    loop, _ = fit(dataset, non_finite="skip")
    with pytest.raises(RunError, match=r"nothing was trained: each of the \d+ steps was left out"):
        loop.run()


@pytest.mark.parametrize("name", SEARCHING)
def test_the_history_says_what_a_search_did_and_a_converged_fit_ends(name: str) -> None:
    dataset = make_dataset("regression", rows=100)
    values = {"optimizer": {name: {"max_iter": 500}}, "batch_size": "full", "l2": 0.1, "epochs": 9}
    loop, _ = fit(dataset, LinearConfig(), **values)
    outcome = loop.run()
    assert outcome.epochs < 9
    assert outcome.stopped.startswith("converged: ")
    rows = {row[3]: row[4] for row in loop.history.rows if row[2] == "train" and row[1] == 1}
    assert 0 < rows["iterations"] <= 500
    assert rows["evaluations"] > rows["iterations"]
    assert sum(metric.startswith("stopped_by_") for metric in rows) == 1


@pytest.mark.parametrize("name", SEARCHING)
def test_a_search_from_no_number_stops_the_run_or_is_left_out(name: str) -> None:
    dataset = make_dataset("regression", rows=100)
    dataset.parts["train"].label[7] = np.nan
    with pytest.raises(RunError, match=r"at step 1 .*1 of its 100 rows have such a loss \(id 7\)"):
        fit(dataset, optimizer=name, batch_size="full")[0].run()
    outcome = fit(dataset, optimizer=name, batch_size=50, non_finite="skip")[0].run()
    assert outcome.skipped == 3  # one step an epoch has the row


def test_a_fit_of_few_steps_is_said_to_be_hardly_trained() -> None:
    loop, _ = fit(
        make_dataset("binary", rows=203),
        optimizer={"sgd": {"learning_rate": 1e30}},
        precision="fp32",
        non_finite="skip",
    )
    (notice,) = loop.run().notices
    assert notice.startswith("14 of 15 steps were left out")
    assert notice.endswith(
        "the model is hardly trained: lower training.optimizer.sgd.learning_rate or set training.clip_norm"
    )


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"mixup": {"alpha": 0.2}}, "one draw at a time (mixup)"),
        ({"batch_size": 20}, "the optimum of each batch in turn"),
    ],
)
def test_a_search_over_changing_rows_goes_on_and_says_so(training: dict[str, Any], said: str) -> None:
    values = {"optimizer": {"lbfgs": {"max_iter": 500}}, "batch_size": "full", "l2": 0.1, "epochs": 4}
    loop, _ = fit(make_dataset(rows=60), **{**values, "early_stopping": None, **training})
    outcome = loop.run()
    assert outcome.epochs == 4
    assert any(said in notice for notice in outcome.notices)


def test_a_search_waits_for_weights_that_come_later() -> None:
    loss = {"ldam": {"class_weights": "balanced", "reweight_from": 0.5}}
    values = {"optimizer": {"lbfgs": {"max_iter": 500}}, "batch_size": "full", "l2": 0.1, "epochs": 6}
    loop, _ = fit(make_dataset(rows=60), LinearConfig(), loss=loss, early_stopping=None, **values)
    assert loop.run().epochs > 3  # it has long converged by then


def test_an_average_of_exact_zeros_is_said_to_be_none() -> None:
    loop, _ = fit(make_dataset(rows=60), l1={"proximal": 0.1}, averaging="ema", optimizer="sgd")
    assert any("a mean of weights is seldom exactly zero" in notice for notice in loop.run().notices)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"early_stopping": {"patience": 4, "warmup": 1}}, "not fewer than the 4 in which patience runs"),
        ({"early_stopping": {"patience": 3, "warmup": 1}}, None),
        ({"gradient_accumulation": 64}, "64 parts of a step of 50 rows"),
        ({"gradient_accumulation": 50}, None),
    ],
)
def test_numbers_that_do_nothing_are_said(training: dict[str, Any], said: str | None) -> None:
    loop, _ = fit(make_dataset(), epochs=5, batch_size=50, **training)
    assert any(said in notice for notice in loop.notices) if said else not loop.notices


class Lazy(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        """Leave all as it is."""


@pytest.mark.parametrize(("name", "said"), [("Lazy", True), ("Halving", False)])
def test_an_optimiser_of_ones_own_that_does_nothing_is_said(name: str, said: bool) -> None:
    optimizer = {"import": f"{__name__}:{name}", "lr": 0.1}
    loop, _ = fit(make_dataset(rows=60), optimizer=optimizer, epochs=2)
    assert any("every weight was left as it was" in notice for notice in loop.run().notices) == said


class Broken(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise ValueError("bug in step")


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)


def flat(groups: list[dict[str, Any]], **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD([p for group in groups for p in group["params"]], **options)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "Broken",
            RunError,
            r"training.optimizer.import failed at .*test_loop.py, line \d+: ValueError: bug in step",
        ),
        ("NeedsClosure", ConfigError, "has a step that needs a closure"),
        ("flat", ConfigError, "does not keep the groups of parameters"),
    ],
)
def test_faults_of_an_optimiser_of_the_users_own_are_named(
    name: str, error: type[Exception], said: str
) -> None:
    loop, _ = fit(make_dataset(rows=60), l2=0.1, optimizer={"import": f"{__name__}:{name}", "lr": 0.1})
    with pytest.raises(error, match=said):
        loop.run()
