"""Metrics against scikit-learn: ties, weights, every task; names; what is undefined."""

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.preprocessing import label_binarize

from shoal.cluster.errors import ConfigError
from shoal.evaluation.deciding.costs import Rule
from shoal.evaluation.metrics import ALIASES, METRICS, resolve_scoring
from shoal.training.decision import Decision

N, K = 400, 4


def _binary(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    y = (rng.random(N) < 0.3).astype(np.int64)
    scores = 1 / (1 + np.exp(-rng.normal(size=N) - 1.5 * y + 1))
    return y, np.round(scores, 1) if ties else scores


def _many(n_classes: int = K) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    y = rng.choice(n_classes, size=N, p=np.arange(1, n_classes + 1) / np.arange(1, n_classes + 1).sum())
    logits = rng.normal(size=(N, n_classes)) + 1.2 * np.eye(n_classes)[y]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y.astype(np.int64), scores


def _labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    y = (rng.random((N, K)) < [0.1, 0.3, 0.5, 0.7]).astype(np.float32)
    return y, np.round(1 / (1 + np.exp(-rng.normal(size=(N, K)) - 1.5 * y + 1)), 2)


def _weights(weighted: bool) -> np.ndarray | None:
    return np.random.default_rng(4).integers(0, 4, N).astype(float) if weighted else None


BINARY = {
    "average_precision": lambda y, s, d, w: sk.average_precision_score(y, s, sample_weight=w),
    "roc_auc": lambda y, s, d, w: sk.roc_auc_score(y, s, sample_weight=w),
    "log_loss": lambda y, s, d, w: sk.log_loss(y, s, sample_weight=w, labels=[0, 1]),
    "brier": lambda y, s, d, w: sk.brier_score_loss(y, s, sample_weight=w),
    "accuracy": lambda y, s, d, w: sk.accuracy_score(y, d, sample_weight=w),
    "balanced_accuracy": lambda y, s, d, w: sk.balanced_accuracy_score(y, d, sample_weight=w),
    "f1": lambda y, s, d, w: sk.f1_score(y, d, sample_weight=w),
    "precision": lambda y, s, d, w: sk.precision_score(y, d, sample_weight=w),
    "recall": lambda y, s, d, w: sk.recall_score(y, d, sample_weight=w),
    "mcc": lambda y, s, d, w: sk.matthews_corrcoef(y, d, sample_weight=w),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", BINARY)
def test_binary_equals_scikit_learn(name: str, ties: bool, weighted: bool) -> None:
    y, scores = _binary(ties)
    w = _weights(weighted)
    expected = BINARY[name](y, scores, (scores >= 0.4).astype(int), w)
    assert METRICS[name].value(y, scores, Rule(Decision(threshold=0.4)), w) == pytest.approx(
        expected, abs=1e-12
    )


MANY = {
    "average_precision": lambda y, s, d, w: sk.average_precision_score(
        label_binarize(y, classes=range(s.shape[1])), s, sample_weight=w
    ),
    "roc_auc": lambda y, s, d, w: sk.roc_auc_score(y, s, multi_class="ovr", sample_weight=w),
    "log_loss": lambda y, s, d, w: sk.log_loss(y, s, sample_weight=w),
    "brier": lambda y, s, d, w: sk.brier_score_loss(y, s, sample_weight=w),
    "accuracy": BINARY["accuracy"],
    "balanced_accuracy": BINARY["balanced_accuracy"],
    "f1": lambda y, s, d, w: sk.f1_score(y, d, average="macro", sample_weight=w),
    "precision": lambda y, s, d, w: sk.precision_score(y, d, average="macro", sample_weight=w),
    "recall": lambda y, s, d, w: sk.recall_score(y, d, average="macro", sample_weight=w),
    "mcc": BINARY["mcc"],
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "n_classes"), [*((name, K) for name in MANY), ("f1", 2), ("recall", 2), ("mcc", 2)]
)
def test_multiclass_equals_scikit_learn(name: str, n_classes: int, weighted: bool) -> None:
    y, scores = _many(n_classes)
    w = _weights(weighted)
    expected = MANY[name](y, scores, scores.argmax(axis=1), w)
    assert METRICS[name].value(y, scores, weights=w) == pytest.approx(expected, abs=1e-12)


LABELS = {
    "average_precision": lambda y, s, d, w: sk.average_precision_score(y, s, sample_weight=w),
    "roc_auc": lambda y, s, d, w: sk.roc_auc_score(y, s, sample_weight=w),
    "accuracy": BINARY["accuracy"],
    "f1": MANY["f1"],
    "precision": MANY["precision"],
    "recall": MANY["recall"],
    "log_loss": lambda y, s, d, w: _over_labels(BINARY["log_loss"], y, s, d, w),
    "brier": lambda y, s, d, w: _over_labels(BINARY["brier"], y, s, d, w),
    "balanced_accuracy": lambda y, s, d, w: _over_labels(BINARY["balanced_accuracy"], y, s, d, w),
    "mcc": lambda y, s, d, w: _over_labels(BINARY["mcc"], y, s, d, w),
}


def _over_labels(metric, y, s, d, w) -> float:  # type: ignore[no-untyped-def]
    return float(np.mean([metric(y[:, k], s[:, k], d[:, k], w) for k in range(y.shape[1])]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LABELS)
def test_multilabel_equals_scikit_learn(name: str, weighted: bool) -> None:
    y, scores = _labels()
    w = _weights(weighted)
    expected = LABELS[name](y.astype(int), scores, (scores >= 0.5).astype(int), w)
    assert METRICS[name].value(y, scores, weights=w) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [("r2", sk.r2_score), ("mae", sk.mean_absolute_error), ("rmse", sk.root_mean_squared_error)],
)
def test_regression_equals_scikit_learn(name: str, oracle, weighted: bool) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(5)
    y = rng.normal(1e6, 3.0, N)
    prediction = y + rng.normal(size=N)
    w = _weights(weighted)
    assert METRICS[name].value(y, prediction, weights=w) == pytest.approx(
        oracle(y, prediction, sample_weight=w), rel=1e-9
    )


def test_classes_that_never_occur_are_left_out_of_macro_averages() -> None:
    y, scores = _many(3)
    wide = np.column_stack([scores, np.zeros(N)])
    for name in ("roc_auc", "average_precision", "f1", "balanced_accuracy", "mcc"):
        assert METRICS[name].value(y, wide) == pytest.approx(METRICS[name].value(y, scores))


def test_undefined_values_are_nan_with_a_reason() -> None:
    ones, scores = np.ones(5, dtype=np.int64), np.linspace(0, 1, 5)
    for name in ("roc_auc", "average_precision", "mcc", "balanced_accuracy"):
        assert np.isnan(METRICS[name].value(ones, scores))
        assert "one class only" in METRICS[name].undefined(ones, scores)
    for name in ("f1", "recall", "precision"):
        assert np.isnan(METRICS[name].value(ones * 0, scores))
    assert METRICS["log_loss"].undefined(ones, scores) == ""
    broken = np.array([0.1, np.nan, 0.3, np.inf, 0.2])
    assert "2 scores" in METRICS["log_loss"].undefined(ones, broken)
    assert METRICS["accuracy"].undefined(ones[:0], scores[:0]) == "there are no rows"
    assert "constant" in METRICS["r2"].undefined(np.full(4, 2.5), np.arange(4.0))
    assert METRICS["rmse"].undefined(np.full(4, 2.5), np.arange(4.0)) == ""
    assert "no label" in METRICS["roc_auc"].undefined(
        np.zeros((4, 2), dtype=np.float32), np.full((4, 2), 0.5)
    )


def test_certain_and_wrong_is_finite() -> None:
    assert np.isfinite(METRICS["log_loss"].value(np.array([1, 0]), np.array([0.0, 1.0])))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_auto_scoring_starts_with_the_documented_metric(task: str) -> None:
    first = {"binary": "average_precision", "multiclass": "log_loss", "multilabel": "average_precision"}
    chosen = resolve_scoring("auto", task)
    assert chosen[0].name == first.get(task, "rmse")
    with_costs = resolve_scoring("auto", task, costs=True)
    assert {m.name for m in with_costs} == {m.name for m in METRICS.values() if task in m.tasks}
    assert {m.name for m in with_costs} - {m.name for m in chosen} <= {"expected_cost", "savings"}


def test_scikit_learn_names_are_understood() -> None:
    assert [m.name for m in resolve_scoring(["neg_log_loss", "log_loss", "roc_auc"], "binary")] == [
        "log_loss",
        "roc_auc",
    ]
    assert resolve_scoring("f1_macro", "multiclass")[0].name == "f1"
    scorers = set(sk.get_scorer_names())
    assert set(ALIASES) <= scorers


def test_a_wrong_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="'rocauc' is no metric, nearest is roc_auc; allowed for binary: average"
    ):
        resolve_scoring(["rocauc"], "binary")
    with pytest.raises(ConfigError, match="judges regression, and this task is binary"):
        resolve_scoring(["rmse"], "binary")
    with pytest.raises(ConfigError, match="write f1"):
        resolve_scoring(["f1_macro"], "binary")
    with pytest.raises(ConfigError, match="empty"):
        resolve_scoring([], "binary")
