"""Intervals against DeLong, closed forms, SciPy's bootstrap and brute-force resampling with scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from shoal.evaluation.influence import average_precision_influence, roc_auc_influence, standard_error
from shoal.evaluation.intervals import EXACT, JACKKNIFE, STRATIFIED, estimate
from shoal.evaluation.metrics import METRICS, resolve_scoring
from shoal.evaluation.resampling import BINS, GROUPS


def _binary(n: int, rate: float = 0.2, shift: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (np.arange(n) < rate * n).astype(np.int64)
    return y, 1 / (1 + np.exp(-rng.normal(size=n) - shift * y + shift / 2))


def _delong(y: np.ndarray, scores: np.ndarray) -> float:
    """Standard error of the AUC by the definition: the placement of every row among the other class."""
    pairs = (scores[y == 1][:, None] > scores[y == 0]) + 0.5 * (scores[y == 1][:, None] == scores[y == 0])
    return float(
        np.sqrt(pairs.mean(1).var(ddof=1) / pairs.shape[0] + pairs.mean(0).var(ddof=1) / pairs.shape[1])
    )


def _half(result) -> float:  # type: ignore[no-untyped-def]
    return (result.high - result.low) / 2


@pytest.mark.parametrize("decimals", [1, 8])
def test_the_influence_of_auc_is_delong(decimals: int) -> None:
    y, scores = _binary(500)
    scores = scores.round(decimals)
    assert standard_error(roc_auc_influence(y == 1, scores), y) == pytest.approx(
        _delong(y, scores), rel=1e-12
    )


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize(
    ("influence", "oracle"),
    [
        (roc_auc_influence, sk.roc_auc_score),
        (average_precision_influence, sk.average_precision_score),
    ],
)
def test_influence_is_the_derivative_by_a_rows_weight(influence, oracle, decimals: int) -> None:  # type: ignore[no-untyped-def]
    y, scores = _binary(60)
    scores = scores.round(decimals)
    found = influence(y == 1, scores)
    for i in range(60):
        up, down = np.ones(60), np.ones(60)
        up[i] += 1e-5
        down[i] -= 1e-5
        slope = oracle(y, scores, sample_weight=up) - oracle(y, scores, sample_weight=down)
        assert found[i] == pytest.approx(slope / 2e-5, abs=1e-7)


@pytest.mark.parametrize("n", [400, 8_000])
def test_auc_agrees_with_delong(n: int) -> None:
    y, scores = _binary(n)
    assert n < BINS or len(np.unique(scores)) > BINS  # the larger one is binned
    found = estimate(y, scores, [METRICS["roc_auc"]], replicates=2000)["roc_auc"]
    error = _delong(y, scores)
    assert found.value == pytest.approx(sk.roc_auc_score(y, scores), abs=1e-12)
    assert _half(found) == pytest.approx(1.96 * error, rel=0.08)
    assert found.low < found.value < found.high


ORACLES = {
    "average_precision": lambda y, s: sk.average_precision_score(y, s),
    "log_loss": lambda y, s: sk.log_loss(y, s),
    "f1": lambda y, s: sk.f1_score(y, s >= 0.5),
    "mcc": lambda y, s: sk.matthews_corrcoef(y, s >= 0.5),
}


def test_binary_intervals_agree_with_brute_force_resampling() -> None:  # ROC AUC's agree with DeLong's
    y, scores = _binary(300)
    rng = np.random.default_rng(7)
    events, others = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    drawn: dict[str, list[float]] = {name: [] for name in ORACLES}
    for _ in range(150):
        rows = np.concatenate([rng.choice(events, len(events)), rng.choice(others, len(others))])
        for name, oracle in ORACLES.items():
            drawn[name].append(oracle(y[rows], scores[rows]))
    found = estimate(y, scores, [METRICS[name] for name in ORACLES], replicates=2000)
    for name, values in drawn.items():
        noise = 0.6 * np.std(values)  # nearly three times that of a 2.5 % point of 150 draws
        assert [found[name].low, found[name].high] == pytest.approx(
            np.quantile(values, [0.025, 0.975]), abs=noise
        ), name
        assert found[name].method == STRATIFIED


def test_multiclass_intervals_agree_with_brute_force_resampling() -> None:
    rng = np.random.default_rng(3)
    y = np.repeat(np.arange(3), [30, 60, 110])
    logits = rng.normal(size=(200, 3)).round(1) + np.eye(3)[y]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn: dict[str, list[float]] = {"roc_auc": [], "average_precision": [], "f1": []}
    for _ in range(100):
        rows = np.concatenate([rng.choice(np.flatnonzero(y == k), (y == k).sum()) for k in range(3)])
        drawn["roc_auc"].append(sk.roc_auc_score(y[rows], scores[rows], multi_class="ovr"))
        drawn["average_precision"].append(sk.average_precision_score(np.eye(3)[y[rows]], scores[rows]))
        drawn["f1"].append(sk.f1_score(y[rows], scores[rows].argmax(1), average="macro"))
    found = estimate(y, scores, [METRICS[name] for name in drawn], replicates=2000)
    for name, values in drawn.items():
        assert [found[name].low, found[name].high] == pytest.approx(
            np.quantile(values, [0.025, 0.975]), abs=0.7 * np.std(values)
        ), name


def test_many_rows_of_many_classes_use_the_jackknife_and_agree_with_drawing_rows() -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 4, 6000)
    scores = rng.normal(size=(6000, 4)) + np.eye(4)[y]
    chosen = [METRICS["roc_auc"], METRICS["average_precision"]]
    linear = estimate(y, scores, chosen, replicates=1000)
    drawn = estimate(y, scores, chosen, replicates=400)
    for name in linear:
        assert linear[name].method == JACKKNIFE
        assert drawn[name].method == STRATIFIED
        assert _half(linear[name]) == pytest.approx(_half(drawn[name]), rel=0.12)


def test_many_rows_are_grouped_without_losing_variance() -> None:
    n = 20 * GROUPS + 77
    y, scores = _binary(n)
    found = estimate(y, scores, resolve_scoring("auto", "binary"), replicates=2000)
    right = (scores >= 0.5) == y
    variance = sum((y == k).sum() * right[y == k].var() for k in (0, 1)) / n**2
    assert _half(found["accuracy"]) == pytest.approx(1.96 * np.sqrt(variance), rel=0.08)
    recall = right[y == 1].mean()
    assert _half(found["recall"]) == pytest.approx(
        1.96 * np.sqrt(recall * (1 - recall) / (y == 1).sum()), rel=0.08
    )
    influence = average_precision_influence(y == 1, scores)
    assert _half(found["average_precision"]) == pytest.approx(1.96 * standard_error(influence, y), rel=0.08)


@pytest.mark.parametrize("n", [150, 3 * GROUPS + 5])
def test_regression_agrees_with_scipy(n: int) -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(50, 5, n)
    prediction = y + rng.standard_t(5, n)
    found = estimate(y, prediction, resolve_scoring("auto", "regression"), replicates=2000)
    error = np.abs(y - prediction)
    oracle = stats.bootstrap(
        (error,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(1), batch=100
    )
    spread = oracle.standard_error
    assert [found["mae"].low, found["mae"].high] == pytest.approx(
        list(oracle.confidence_interval), abs=0.2 * spread
    )
    rms = np.sqrt((error**2).mean())
    assert _half(found["rmse"]) == pytest.approx(1.96 * (error**2).std() / (2 * rms * np.sqrt(n)), rel=0.12)
    assert found["r2"].low < found["r2"].value < found["r2"].high
    assert found["r2"].value == pytest.approx(sk.r2_score(y, prediction))


def test_intervals_cover_the_truth() -> None:
    truth, hits = stats.norm.cdf(1.5 / np.sqrt(2)), np.zeros(2)
    right = 0.2 * stats.norm.cdf(0.75) + 0.8 * stats.norm.cdf(0.75)
    for seed in range(150):
        y, scores = _binary(300, seed=seed)
        found = estimate(y, scores, [METRICS["roc_auc"], METRICS["accuracy"]], replicates=300, seed=seed)
        hits += [
            found["roc_auc"].low <= truth <= found["roc_auc"].high,
            found["accuracy"].low <= right <= found["accuracy"].high,
        ]
    # 95 % nominal; 150 trials have a standard error of 1.8 points, small samples cost a little.
    assert (hits / 150 > 0.90).all()
    assert (hits / 150 < 0.995).all()


def test_accuracy_is_near_wilson_where_classes_are_equally_hard() -> None:
    y, scores = _binary(1000, rate=0.5)
    found = estimate(y, scores, [METRICS["accuracy"]], replicates=2000)["accuracy"]
    right = round(found.value * 1000)
    wilson = stats.binomtest(right, 1000).proportion_ci(method="wilson")
    assert [found.low, found.high] == pytest.approx([wilson.low, wilson.high], abs=0.006)


def test_draws_depend_on_seed_and_key_only() -> None:
    y, scores = _binary(300)
    everything = resolve_scoring("auto", "binary")
    one = estimate(y, scores, everything, replicates=200, seed=4, spawn_key=(1,))
    assert one == estimate(y, scores, everything, replicates=200, seed=4, spawn_key=(1,))
    alone = estimate(y, scores, [METRICS["f1"]], replicates=200, seed=4, spawn_key=(1,))
    assert alone["f1"] == one["f1"]
    other = estimate(y, scores, everything, replicates=200, seed=4, spawn_key=(2,))
    assert other["roc_auc"].low != one["roc_auc"].low


def test_an_error_free_result_has_an_interval_too() -> None:
    y, _ = _binary(200)
    found = estimate(y, y * 0.8 + 0.1, resolve_scoring("auto", "binary"), replicates=100)
    exact = stats.binomtest(200, 200).proportion_ci(method="exact")
    assert found["accuracy"].low == pytest.approx(exact.low)
    assert found["accuracy"].method == EXACT
    assert found["roc_auc"].low == pytest.approx(stats.binomtest(40, 40).proportion_ci(method="exact").low)
    assert found["roc_auc"].high == 1


def test_precision_and_recall_without_an_error_have_trials_of_their_own() -> None:
    def low(trials: int) -> float:
        return float(stats.binomtest(trials, trials).proportion_ci(method="exact").low)

    metrics = [METRICS["precision"], METRICS["recall"]]
    y = np.array([1] * 50 + [0] * 100)
    cautious = np.where(np.arange(150) < 10, 0.9, 0.1)  # 10 hits, 40 misses, no false alarm
    found = estimate(y, cautious, metrics, replicates=100)
    assert found["precision"].low == pytest.approx(low(10))
    assert found["precision"].method == EXACT
    assert found["recall"].method != EXACT
    eager = np.where(np.arange(150) < 60, 0.9, 0.1)  # 50 hits, no miss, 10 false alarms
    assert estimate(y, eager, metrics, replicates=100)["recall"].low == pytest.approx(low(50))
    many = np.array([1] * 120 + [0] * 30)  # more events than others
    assert estimate(many, many * 0.8 + 0.1, metrics, replicates=100)["recall"].low == pytest.approx(low(120))

    classes = np.repeat([0, 1, 2], [20, 7, 40])
    right = np.full((67, 3), 0.1)
    right[np.arange(67), classes] = 0.8
    for estimated in estimate(classes, right, metrics, replicates=100).values():
        assert estimated.low == pytest.approx(low(7))


def test_perfect_predictions_of_numbers_are_no_trials() -> None:
    y = np.linspace(0, 5, 50)
    found = estimate(y, y, [METRICS["r2"]], replicates=100)["r2"]
    assert (found.low, found.value, found.high) == (1, 1, 1)
    assert found.method == "percentile bootstrap"


def test_undefined_metrics_say_why() -> None:
    found = estimate(np.zeros(10, dtype=np.int64), np.linspace(0, 1, 10), resolve_scoring("auto", "binary"))
    assert np.isnan(found["roc_auc"].value)
    assert "one class" in found["roc_auc"].reason
    assert np.isfinite(found["log_loss"].low)
    nothing = estimate(np.zeros(0), np.zeros(0), resolve_scoring("auto", "regression"))
    assert nothing["rmse"].reason == "there are no rows"


def test_multilabel_rows_are_drawn_whole() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random((150, 3)) < 0.3).astype(np.float32)
    scores = 1 / (1 + np.exp(-rng.normal(size=(150, 3)) - y))
    for name, found in estimate(y, scores, resolve_scoring("auto", "multilabel"), replicates=300).items():
        assert found.low < found.value < found.high, name
        assert found.method == "percentile bootstrap"
