"""Losses against torch, scikit-learn, closed forms and numbers worked out by hand; weights over the global batch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy.special import huber as scipy_huber
from scipy.stats import poisson as poisson_distribution
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, PoissonRegressor, QuantileRegressor
from sklearn.metrics import mean_pinball_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from support.prepared import make_dataset, make_schema
from support.scenarios import make_loop
from torch import Tensor

from shoal.cluster.errors import ConfigError, RunError
from shoal.training import TorchClassifier, TorchRegressor
from shoal.training.artifact import TrainedModel
from shoal.training.config import TrainingConfig
from shoal.training.losses import classification, regression
from shoal.training.losses.build import NO_COSTS, Loss, build_loss
from shoal.training.losses.config import LOSSES
from shoal.training.losses.weights import class_weights
from shoal.training.strategies.base import Strategy

GENERATOR = torch.Generator().manual_seed(0)
ROWS = {"binary": (900, 100), "multiclass": (800, 150, 50), "multilabel": (300, 20), "regression": ()}


def loss(value: Any, task: str, rows: Sequence[int] | None = None, epochs: int = 10) -> Loss:
    config = TrainingConfig.model_validate({"loss": value}).loss
    return build_loss(config, make_schema(task).target, ROWS[task] if rows is None else rows, 1000, epochs)


def drawn(task: str, n: int = 64) -> tuple[Tensor, Tensor]:
    """Logits and labels in fp64."""
    width = {"binary": 1, "multiclass": 3, "multilabel": 2, "regression": 1}[task]
    logits = 3 * torch.randn(n, width, dtype=torch.float64, generator=GENERATOR)
    labels = {
        "binary": lambda: torch.randint(0, 2, (n,), generator=GENERATOR),
        "multiclass": lambda: torch.randint(0, 3, (n,), generator=GENERATOR),
        "multilabel": lambda: torch.randint(0, 2, (n, 2), generator=GENERATOR).float(),
        "regression": lambda: 3 * torch.randn(n, dtype=torch.float64, generator=GENERATOR) + 2,
    }[task]()
    return logits, labels


def likelihood(task: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy from probabilities, per row or label."""
    if task == "multiclass":
        return -logits.softmax(1).log()[torch.arange(len(labels)), labels]
    p = logits.sigmoid() if task == "multilabel" else logits[:, 0].sigmoid()
    return -(labels * p.log() + (1 - labels) * (1 - p).log())


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("limit", ["auto", "cross_entropy", "bce", "focal", "ldam", "logit_adjusted"])
def test_at_their_limits_all_are_cross_entropy(task: str, limit: str) -> None:
    values = {
        "focal": {"focal": {"gamma": 0}},
        "ldam": {"ldam": {"max_margin": 1e-12}},
        "logit_adjusted": {"logit_adjusted": {"tau": 0}},
    }
    logits, labels = drawn(task)
    if (task, limit) in (
        ("multiclass", "bce"),
        *(("multilabel", x) for x in ("cross_entropy", "ldam", "logit_adjusted")),
    ):
        with pytest.raises(ConfigError, match=f"{limit} is not for {task}; use auto or one of"):
            loss(values.get(limit, limit), task)
        return
    found = loss(values.get(limit, limit), task).values(logits, labels)
    torch.testing.assert_close(found, likelihood(task, logits, labels), rtol=0, atol=1e-9)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_focal_is_the_published_formula(task: str) -> None:
    logits, labels = drawn(task)
    ce = likelihood(task, logits, labels)
    expected = (1 - torch.exp(-ce)) ** 2.5 * ce
    found = loss({"focal": {"gamma": 2.5}}, task).values(logits, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_focal_of_a_sure_answer_by_hand() -> None:
    # Lin et al. 2017, section 3.2: with gamma 2, a row at p_t = .9 has a loss 100 times lower than its cross-entropy.
    logit = torch.tensor([[math.log(9.0)]], dtype=torch.float64)
    found = float(loss({"focal": {}}, "binary").values(logit, torch.tensor([1])))
    assert found == pytest.approx(-math.log(0.9) / 100, rel=1e-12)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_ldam_takes_the_margin_off_the_own_logit(task: str) -> None:
    logits, labels = drawn(task)
    rows = np.array(ROWS[task], float)
    margins = rows**-0.25 * 0.5 / (rows**-0.25).max()
    two = torch.cat([torch.zeros_like(logits), logits], 1) if task == "binary" else logits
    moved = two.clone()
    moved[torch.arange(len(labels)), labels] -= torch.from_numpy(margins)[labels]
    found = loss({"ldam": {"scale": 4.0}}, task).values(logits, labels)
    torch.testing.assert_close(
        found, F.cross_entropy(4.0 * moved, labels, reduction="none"), rtol=0, atol=1e-12
    )
    assert margins.argmax() == rows.argmin()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_logit_adjustment_adds_the_log_of_the_shares(task: str) -> None:
    logits, labels = drawn(task)
    rows = torch.tensor(ROWS[task], dtype=torch.float64)
    two = torch.cat([torch.zeros_like(logits), logits], 1) if task == "binary" else logits
    expected = F.cross_entropy(two + 0.7 * (rows / rows.sum()).log(), labels, reduction="none")
    found = loss({"logit_adjusted": {"tau": 0.7}}, task).values(logits, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_label_smoothing_equals_torchs(task: str) -> None:
    logits, labels = drawn(task)
    name = "bce" if task == "multilabel" else "cross_entropy"
    found = loss({name: {"label_smoothing": 0.2}}, task).values(logits, labels)
    if task == "multilabel":
        expected = F.binary_cross_entropy_with_logits(logits, labels.double() * 0.8 + 0.1, reduction="none")
    else:
        two = torch.cat([torch.zeros_like(logits), logits], 1) if task == "binary" else logits
        expected = F.cross_entropy(two, labels, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_losses_of_numbers_equal_other_libraries() -> None:
    logits, labels = drawn("regression")  # their mean is 2 and their deviation 3
    a, y = logits[:, 0].numpy(), (labels.numpy() - 2.0) / 3.0
    found = {name: loss(name, "regression").values(logits, labels).numpy() for name in ("auto", "huber")}
    np.testing.assert_allclose(found["auto"], (a - y) ** 2, rtol=1e-12)
    np.testing.assert_allclose(found["huber"], scipy_huber(1.0, a - y), rtol=1e-12)
    wide = loss({"huber": {"delta": 1e9}}, "regression").values(logits, labels).numpy()
    np.testing.assert_allclose(2 * wide, found["auto"], rtol=1e-9)
    for q in (0.1, 0.5, 0.9):
        pinball = loss({"quantile": {"quantile": q}}, "regression").values(logits, labels)
        assert float(pinball.mean()) == pytest.approx(mean_pinball_loss(y, a, alpha=q), rel=1e-12)


def test_poisson_is_its_negative_log_likelihood() -> None:
    counts = torch.arange(6, dtype=torch.float64)
    answers = torch.linspace(-2, 2, 6, dtype=torch.float64)
    expected = -poisson_distribution.logpmf(counts.numpy(), np.exp(answers.numpy()))
    log_factorials = np.array([math.lgamma(k + 1) for k in range(6)])
    np.testing.assert_allclose(
        regression.poisson(answers, counts).numpy(), expected - log_factorials, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("auto", "poisson")])
def test_far_logits_have_finite_losses_and_slopes(name: str) -> None:
    task = next(t for t in ROWS if not isinstance(_attempt(name, t), ConfigError))
    values = {"focal": {"focal": {"gamma": 0.5}}}.get(name, name)
    built = loss(values, task)
    _, labels = drawn(task, 4)
    for far in (1e4, -1e4, 0.0):
        width = 1 if task in ("binary", "regression") else 3 if task == "multiclass" else 2
        logits = torch.full((4, width), far)
        logits[:, 0] *= -1
        logits.requires_grad_()
        built.rows(logits, labels, 0).sum().backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def _attempt(name: str, task: str) -> Loss | ConfigError:
    try:
        return loss(name, task)
    except ConfigError as error:
        return error


def test_slopes_are_those_of_finite_differences() -> None:
    for task, value in (
        ("multiclass", {"focal": {"gamma": 1.5}}),
        ("multiclass", {"ldam": {}}),
        ("binary", {"logit_adjusted": {}}),
        ("regression", {"huber": {"delta": 0.5}}),
    ):
        logits, labels = drawn(task, 5)
        built = loss(value, task)
        assert torch.autograd.gradcheck(lambda z: built.rows(z, labels, 0), logits.requires_grad_())  # noqa: B023


def test_balanced_weights_equal_scikit_learns() -> None:
    y = np.repeat([0, 1, 2], ROWS["multiclass"])
    built = loss({"cross_entropy": {"class_weights": "balanced"}}, "multiclass")
    assert built.weights is not None
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(built.weights(torch.arange(3), NO_COSTS).numpy(), theirs, rtol=1e-12)


def test_effective_numbers_by_hand_and_at_their_limits() -> None:
    def weights(beta: float) -> np.ndarray:
        value = {"focal": {"class_weights": {"effective_number": {"beta": beta}}}}
        built = loss(value, "multiclass", (1, 2, 4))
        assert built.weights is not None
        return built.weights(torch.arange(3), NO_COSTS).numpy()

    # beta 1/2: effective numbers 1, 3/2 and 15/8, so 1, 2/3 and 8/15 of a sum of 2.2.
    np.testing.assert_allclose(weights(0.5), np.array([1, 2 / 3, 8 / 15]) * 3 / 2.2, rtol=1e-12)
    np.testing.assert_allclose(weights(0.0), 1.0, rtol=1e-12)
    inverse = np.array([1, 1 / 2, 1 / 4])
    np.testing.assert_allclose(weights(1 - 1e-9), inverse * 3 / inverse.sum(), rtol=1e-6)


def test_weights_of_several_labels_are_of_yes_and_no() -> None:
    labels = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    balanced = loss({"bce": {"class_weights": "balanced"}}, "multilabel")
    named = loss({"bce": {"class_weights": {"q": 5}}}, "multilabel")
    assert balanced.weights is not None
    assert named.weights is not None
    expected = [[1000 / (2 * 700), 1000 / (2 * 980)], [1000 / 600, 1000 / 40]]
    np.testing.assert_allclose(balanced.weights(labels, NO_COSTS).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(named.weights(labels, NO_COSTS).numpy(), [[1, 1], [1, 5]])


def test_deferred_weights_begin_at_their_epoch() -> None:
    value = {"ldam": {"class_weights": "balanced", "reweight_from": 0.75}}
    built = loss(value, "multiclass", epochs=8)
    assert [built.is_weighted(epoch) for epoch in range(8)] == [False] * 6 + [True] * 2
    logits, labels = drawn("multiclass")
    before, after = built.rows(logits, labels, 5), built.rows(logits, labels, 6)
    assert built.weights is not None
    torch.testing.assert_close(after, before * built.weights(labels, NO_COSTS))
    assert built.weight(labels, 5) == 64
    assert built.weight(labels, 6) == pytest.approx(float(built.weights(labels, NO_COSTS).sum()))


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation": 3}, {"mixup": {"alpha": 0.3}}])
def test_a_step_takes_the_weighted_mean_as_torch_does(options: dict[str, Any]) -> None:
    weights = {"loss": {"cross_entropy": {"class_weights": {"yes": 9}}}}
    loop = make_loop(Strategy(torch.device("cpu")), **weights, **options)
    batch = next(loop.reader.epoch(0))
    logits = torch.randn(len(batch), 1, dtype=torch.float64, generator=GENERATOR)
    loop.model.forward = lambda numeric, *_: logits[: len(numeric)]  # type: ignore[method-assign]
    if options.get("gradient_accumulation"):
        loop.model.forward = lambda numeric, *_: numeric[:, 1:2]  # type: ignore[method-assign]
        logits = batch.numeric[:, 1:2].double()
    loop.stepper.wrapped = loop.model.requires_grad_(False)
    found = _mean(loop, batch)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    pull = torch.tensor([1.0, 9.0], dtype=torch.float64)
    if "mixup" not in options:
        assert found == pytest.approx(float(F.cross_entropy(both, batch.label, pull)), rel=1e-6)
        return
    assert batch.partner is not None
    share, ce = loop.stepper._share(0), F.cross_entropy
    top = sum(
        s * ce(both, y, pull, reduction="sum")
        for s, y in ((share, batch.label), (1 - share, batch.partner.label))
    )
    below = sum(s * pull[y].sum() for s, y in ((share, batch.label), (1 - share, batch.partner.label)))
    assert found == pytest.approx(float(top / below), rel=1e-6)


def _mean(loop: Any, batch: Any) -> float:
    """The loss of a step, without its gradient."""
    loop.strategy.backward = lambda _: None
    return float(loop.stepper._backward(loop.model, batch, 0, reduce=True))


X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)


def test_balanced_weights_fit_as_scikit_learns() -> None:
    rare = np.flatnonzero((Y == 1) | (np.arange(len(Y)) % 9 == 0))
    x, y = StandardScaler().fit_transform(X[rare]), Y[rare]
    weights = len(y) / (2 * np.bincount(y))[y]
    # scikit-learn sums the weighted losses; we take their mean, over the sum of the weights.
    theirs = LogisticRegression(
        C=1 / (0.01 * weights.sum()), class_weight="balanced", tol=1e-10, max_iter=9999
    )
    theirs.fit(x, y)
    ours = TorchClassifier(
        "linear",
        {"lbfgs": {"max_iter": 300, "tolerance_grad": 1e-9, "tolerance_change": 1e-15}},
        loss={"cross_entropy": {"class_weights": "balanced"}},
        l2=0.01,
        batch_size="full",
        precision="fp64",
    ).fit(x, y)
    found = ours.trained_model_.module.body.numbers.weight.detach().numpy()
    np.testing.assert_allclose(found, theirs.coef_, rtol=0, atol=1e-4)


D, T = load_diabetes(return_X_y=True)
D = StandardScaler().fit_transform(D)
LBFGS = {"lbfgs": {"max_iter": 500, "tolerance_grad": 1e-9, "tolerance_change": 1e-14}}


def regressor(value: Any, optimizer: Any = None, **options: Any) -> TorchRegressor:
    fixed = {"batch_size": "full", "precision": "fp64", **options}
    return TorchRegressor("linear", optimizer or LBFGS, loss=value, **fixed)


def test_poisson_predicts_the_counts_that_scikit_learns_does(tmp_path: Any) -> None:
    counts = np.round(T / 10)
    ours = regressor("poisson", l2=0.0).fit(D, counts)
    theirs = PoissonRegressor(alpha=0.0, tol=1e-10, max_iter=9999).fit(D, counts)
    np.testing.assert_allclose(ours.predict(D), theirs.predict(D), rtol=1e-5)
    assert ours.predict(D).mean() == pytest.approx(counts.mean(), rel=1e-6)
    from shoal.cluster.storage import Storage

    ours.trained_model_.save(Storage.open(str(tmp_path)))
    again = TrainedModel.load(str(tmp_path))
    np.testing.assert_array_equal(again.scores(D), ours.predict(D))


def test_quantiles_are_those_of_scikit_learn() -> None:
    schedule = {"exponential": {"gamma": 0.998}}
    sgd = {"adam": {"learning_rate": 0.05}}
    for q in (0.2, 0.5):
        ours = regressor({"quantile": {"quantile": q}}, sgd, epochs=3000, schedule=schedule).fit(D, T)
        theirs = QuantileRegressor(quantile=q, alpha=0.0).fit(D, T)
        best, got = (mean_pinball_loss(T, m.predict(D), alpha=q) for m in (theirs, ours))
        assert got <= best * 1.001
        assert abs(float((ours.predict(D) >= T).mean()) - q) < 0.03


@pytest.mark.parametrize("labels", [[-1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
def test_what_are_no_counts_is_refused(labels: list[float]) -> None:
    with pytest.raises(ConfigError, match="poisson needs counts of at least 0"):
        regressor("poisson").fit(np.arange(30.0)[:, None], np.resize(labels, 30))


@pytest.mark.parametrize(
    ("value", "task", "said"),
    [
        ("focal", "regression", "focal is not for regression; use auto or one of squared_error, huber"),
        ("poisson", "binary", "poisson is not for binary; use auto or one of cross_entropy, bce, focal"),
        (
            {"focal": {"class_weights": {"b ": 2}}},
            "multiclass",
            "name 'b ', which is no class; the nearest is 'b'",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_refused(value: Any, task: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loss(value, task)


@pytest.mark.parametrize("value", ["ldam", "logit_adjusted", {"focal": {"class_weights": "balanced"}}])
def test_a_class_without_rows_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"needs training rows of every class.*none for b"):
        loss(value, "multiclass", (5, 0, 5))


def absolute(power: float = 1.0) -> Any:
    return lambda logits, wanted: (logits[:, 0] - wanted).abs() ** power


def reduced() -> Any:
    return lambda logits, wanted: ((logits[:, 0] - wanted) ** 2).mean()


def test_a_loss_of_ones_own() -> None:
    logits, labels = drawn("regression")
    mine = loss({"import": f"{__name__}:absolute", "power": 2.0}, "regression")
    torch.testing.assert_close(
        mine.rows(logits, labels, 0), loss("squared_error", "regression").rows(logits, labels, 0)
    )
    for value, said in (
        ({"import": f"{__name__}:absolute", "pwoer": 2.0}, "could not be called.*pwoer"),
        ({"import": f"{__name__}:ROWS"}, "could not be called"),
    ):
        with pytest.raises(ConfigError, match=said):
            loss(value, "regression")
    with pytest.raises(ConfigError, match=r"gave \(\) for 64 rows; it must give one value a row"):
        loss({"import": f"{__name__}:reduced"}, "regression").rows(logits, labels, 0)


def broken() -> Any:
    return lambda logits, wanted: logits.nosuch + wanted


def detached() -> Any:
    return lambda logits, wanted: (logits.detach()[:, 0] - wanted) ** 2


def unmade() -> Any:
    raise OSError("no table of costs")


def test_errors_of_a_loss_of_ones_own_are_named_with_their_line() -> None:
    logits, labels = drawn("regression")
    with pytest.raises(
        RunError, match=r":broken failed at .*test_losses.py, line \d+: AttributeError: .*nosuch"
    ):
        loss({"import": f"{__name__}:broken"}, "regression").rows(logits, labels, 0)
    with pytest.raises(ConfigError, match="gave values without a gradient"):
        loss({"import": f"{__name__}:detached"}, "regression").rows(logits.requires_grad_(), labels, 0)
    with pytest.raises(ConfigError, match=r":unmade failed at .*, line \d+: OSError: no table of costs"):
        loss({"import": f"{__name__}:unmade"}, "regression")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "it weighs no class"),
        ({"yes": 0}, "yes is 0; a class's weight must be a number above 0"),
        ({"yes": True, "no": "2"}, "yes is True, no is '2'; a class's weight must be"),
        (
            {"effective_number": 0.9},
            r"effective_number is 0.9; it must be .* \{effective_number: \{beta: 0.999\}\}",
        ),
        ({"effective_number": {"beta": 1}}, r"effective_number.beta is 1; it must be below 1.0, such as"),
        ({"effective_number": {"bta": 0.9}}, r"effective_number.bta is not a key; allowed: beta"),
        ({"effective_number": {}, "yes": 2}, "effective_number weighs all classes, and yes is there too"),
    ],
)
def test_class_weights_that_cannot_be_read_are_refused_in_one_sentence(weights: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        TrainingConfig.model_validate({"loss": {"cross_entropy": {"class_weights": weights}}})
    assert caught.value.error_count() == 1


def test_the_effective_number_may_be_named_alone() -> None:
    named, whole = (
        loss({"focal": {"class_weights": value}}, "multiclass", (5, 3, 9)).weights
        for value in ("effective_number", {"effective_number": {"beta": 0.999}})
    )
    labels = torch.arange(3)
    assert named is not None
    assert whole is not None
    assert torch.equal(named(labels, NO_COSTS), whole(labels, NO_COSTS))


def test_deferred_weights_need_weights() -> None:
    with pytest.raises(
        ValidationError, match=r"reweight_from: 0.5 says when class_weights begin, and there are none"
    ):
        TrainingConfig.model_validate({"loss": {"ldam": {"reweight_from": 0.5}}})


def test_unweighted_runs_ask_nobody() -> None:
    loop = make_loop(Strategy(torch.device("cpu")))
    asked = []
    plain = loop.strategy.sum
    loop.strategy.sum = lambda values: (asked.append(values), plain(values))[1]  # type: ignore[method-assign, func-returns-value]
    loop.stepper.prepare(0)
    loop.stepper.step(next(loop.reader.epoch(0)), 0)
    assert asked == []


def test_counts_come_from_the_dataset() -> None:
    dataset = make_dataset("multiclass", 300)
    expected = np.bincount(dataset.parts["train"].label, minlength=3)
    assert dataset.class_rows("train") == tuple(expected)


def test_margins_and_shares_of_known_sizes() -> None:
    margins = classification.ldam_margins(torch.tensor([16, 1]), 0.5)
    torch.testing.assert_close(margins, torch.tensor([0.25, 0.5], dtype=torch.float64))
    shares = classification.log_shares(torch.tensor([3, 1]))
    torch.testing.assert_close(shares.exp(), torch.tensor([0.75, 0.25], dtype=torch.float64))


def test_weights_by_costs_are_turned_into_numbers_by_an_experiment_alone():
    with pytest.raises(ConfigError, match="costs need an experiment with evaluation.costs"):
        class_weights("costs", torch.tensor([5, 5]), (0, 1))
