"""Costs: names to numbers against Elkan's and brute force; metrics and intervals against loops; curves against counts."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from sklearn.metrics import confusion_matrix, roc_curve

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.evaluation.config import EvaluationConfig
from shoal.evaluation.cost_curves import (
    cost_by_threshold,
    lower_envelope,
    normalised_cost,
    probability_cost,
    rates,
)
from shoal.evaluation.deciding.config import CostsConfig
from shoal.evaluation.deciding.costs import Costs, Rule, resolve_costs
from shoal.evaluation.intervals import estimate
from shoal.evaluation.metrics import METRICS, resolve_scoring
from shoal.training.decision import Decision


def schema_of(*classes, task="", private=()):
    task = task or ("binary" if len(classes) == 2 else "multiclass")
    return Schema(
        columns=(), target=Target(columns=("y",), task=task, classes=classes or ("a",)), private=private
    )


def costs_of(schema, **config):
    return resolve_costs(CostsConfig(**config), schema)


def test_binary_names_make_the_matrix_and_elkans_threshold():
    found = costs_of(schema_of("no", "yes"), false_positive=1, false_negative=25)
    assert found.matrix.tolist() == [[0, 1], [25, 0]]  # actual down, decided across
    assert found.thresholds() == pytest.approx(1 / 26)
    benefits = costs_of(
        schema_of("no", "yes"),
        false_positive=3,
        false_negative=10,
        true_positive=-5,
        true_negative=-1,
        unit="EUR",
    )
    # (c10 - c00) / (c10 - c00 + c01 - c11) of Elkan (2001), where c10 is a false positive.
    assert benefits.thresholds() == pytest.approx((3 + 1) / (3 + 1 + 10 + 5))
    assert benefits.unit == "EUR"


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_where_the_cheaper_decision_changes(seed):
    c = np.random.default_rng(seed).uniform(-3, 9, 4)
    fp, tn, fn, tp = max(c[:2]), min(c[:2]), max(c[2:]), min(c[2:])
    found = costs_of(
        schema_of(0, 1), false_positive=fp, true_negative=tn, false_negative=fn, true_positive=tp
    )
    p = np.linspace(0.0005, 0.9995, 1000)
    cheaper = p * tp + (1 - p) * fp <= p * fn + (1 - p) * tn
    assert (Decision(threshold=float(found.thresholds())).classes(p) == cheaper).all()
    assert cheaper.any()
    assert not cheaper.all()


def test_costs_by_class_say_actual_first():
    by_class = {"actual": {"malignant": {"benign": 25, "other": 5}}, "otherwise": 1}
    found = costs_of(schema_of("benign", "malignant", "other"), **by_class)
    assert found.matrix.tolist() == [[0, 1, 1], [25, 0, 5], [1, 1, 0]]
    two = costs_of(schema_of("well", "ill"), actual={"ill": {"well": 25}, "well": {"ill": 1}})
    assert (
        two.matrix == costs_of(schema_of("well", "ill"), false_positive=1, false_negative=25).matrix
    ).all()
    alike = costs_of(schema_of("benign", "malignant", "other"), otherwise=3).matrix
    assert alike.tolist() == [[0, 3, 3], [3, 0, 3], [3, 3, 0]]
    kinds = costs_of(schema_of(False, True), actual={"true": {"false": 4}}, otherwise=1)
    assert kinds.matrix.tolist() == [[0, 1], [4, 0]]
    assert costs_of(schema_of(0.0, 1.0), actual={"1": {"0": 4}}, otherwise=1).matrix[1, 0] == 4


@pytest.mark.parametrize("seed", range(3))
def test_the_class_of_lowest_expected_cost_is_decided(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(1, 9, (4, 4)) * (1 - np.eye(4))
    p = rng.dirichlet(np.ones(4), 200)
    expected = [min(range(4), key=lambda j: sum(row[i] * matrix[i][j] for i in range(4))) for row in p]
    decided = Decision(costs=tuple(map(tuple, matrix.tolist()))).classes(p)
    assert decided.tolist() == expected
    assert (decided != p.argmax(axis=1)).any()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([[0, 1], [25, 0]], "does not say whether its rows are actual or decided"),
        ({"false_positive": 1}, "give false_positive and false_negative"),
        ({"false_positive": 0, "false_negative": 25}, "each mistake must cost more than deciding right"),
        ({"false_positive": 1, "false_negative": 2, "true_positive": 2}, "true_positive (2)"),
        (
            {"false_positive": 1, "false_negative": 2, "otherwise": 1},
            "give either otherwise or false_negative and",
        ),
        ({"false_positive": 1, "actual": {"a": {"b": 1}}}, "either actual or false_positive"),
        ({"false_positive": float("nan"), "false_negative": 1}, "finite"),
    ],
)
def test_what_no_costs_are_is_refused_where_it_is_written(config, said):
    with pytest.raises(ValidationError) as refused:
        EvaluationConfig(costs=config)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "config", "said"),
    [
        (schema_of(task="regression"), {"false_positive": 1, "false_negative": 2}, "the task is regression"),
        (schema_of("a", "b", task="multilabel"), {"false_positive": 1, "false_negative": 2}, "multilabel"),
        (schema_of("a", "b", "c"), {"false_positive": 1, "false_negative": 2}, "there are 3; write {actual"),
        (schema_of("ill", "well", "?"), {"actual": {"il": {"well": 1}}}, "'il', which is no class; did you mean 'ill'?"),
        (schema_of("ill", "well", "?"), {"actual": {"ill": {"well": 1}}}, "5 mistakes without a cost, such as deciding"),
        (schema_of("a", "b", "c"), {"actual": {"a": {"b": 0}}, "otherwise": 1}, "deciding 'b' where 'a' is actual costs 0, and"),
        (schema_of("a", "b", "c"), {"actual": {"a": {"a": 2}}, "otherwise": 1}, "deciding right 2"),
        (schema_of("a", "b"), {"false_positive": 1e-17, "false_negative": 1e3}, "not be nothing beside"),
        (schema_of("a", "b", "c", private=("y",)), {"actual": {"x": {"a": 2}}, "otherwise": 1}, "target, which is private"),
    ],
)  # fmt: skip
def test_costs_that_do_not_go_with_the_target_are_refused(schema, config, said):
    with pytest.raises(ConfigError) as refused:
        costs_of(schema, **config)
    assert said in str(refused.value)
    if schema.private:
        assert "'a'" not in str(refused.value)


def data(n=600, k=2, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=np.arange(k, 0, -1) / np.arange(k, 0, -1).sum())
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, p[:, 1] if k == 2 else p


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_cost_and_savings_equal_a_loop(k, weighted):
    y, scores = data(k=k)
    w = np.random.default_rng(1).integers(0, 4, len(y)).astype(float) if weighted else np.ones(len(y))
    matrix = np.random.default_rng(2).uniform(1, 9, (k, k)) * (1 - np.eye(k)) - np.eye(k)
    decision = Decision(threshold=0.2) if k == 2 else Decision(costs=tuple(map(tuple, matrix.tolist())))
    rule = Rule(decision, Costs(matrix), constant=1)
    decided = (scores >= 0.2).astype(int) if k == 2 else (scores @ matrix).argmin(axis=1)
    cost = sum(wi * matrix[a, d] for wi, a, d in zip(w, y, decided, strict=True))
    without = sum(wi * matrix[a, 1] for wi, a in zip(w, y, strict=True))
    assert METRICS["expected_cost"].value(y, scores, rule, w) == pytest.approx(cost / w.sum())
    assert METRICS["savings"].value(y, scores, rule, w) == pytest.approx(1 - cost / without)
    assert (matrix * confusion_matrix(y, decided, sample_weight=w)).sum() == pytest.approx(cost)


def test_the_constant_decision_is_the_cheapest_for_the_training_shares():
    costs = Costs(np.array([[0.0, 1.0], [25.0, 0.0]]))
    assert costs.constant([970, 30]) == 0 if 30 * 25 < 970 else 1
    assert costs.constant([960, 40]) == 1  # 40 x 25 > 960
    assert costs.constant([965, 35]) == 0  # 35 x 25 < 965
    assert Costs(np.array([[0.0, 4, 4], [1, 0, 1], [1, 1, 0]])).constant([1, 1, 1]) == 0


def test_intervals_of_costs_equal_the_plain_bootstrap():
    y, scores = data(n=500)
    rule = Rule(Decision(threshold=0.1), Costs(np.array([[0.0, 1.0], [25.0, 0.0]])), constant=1)
    metrics = [METRICS["expected_cost"], METRICS["savings"]]
    found = estimate(y, scores, metrics, replicates=4000, rule=rule)
    rng, drawn = np.random.default_rng(9), []
    each = rule.costs.matrix[y, (scores >= 0.1).astype(int)]
    strata = [np.flatnonzero(y == c) for c in (0, 1)]
    for _ in range(4000):
        rows = np.concatenate([rng.choice(s, len(s)) for s in strata])
        drawn.append(each[rows].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    cost = found["expected_cost"]
    assert (cost.low, cost.high) == (
        pytest.approx(low, abs=0.08 * width),
        pytest.approx(high, abs=0.08 * width),
    )
    without = rule.costs.matrix[y, 1].mean()
    saved = found["savings"]
    assert (saved.low, saved.high) == pytest.approx((1 - cost.high / without, 1 - cost.low / without))
    assert cost.low < cost.value < cost.high


def test_savings_of_nothing_are_undefined():
    y, costs = np.array([0] * 20), Costs(np.array([[0.0, 1.0], [25.0, 0.0]]))
    nothing = estimate(y, np.full(20, 0.9), [METRICS["savings"]], rule=Rule(Decision(), costs, 0))["savings"]
    assert np.isnan(nothing.value)
    assert "costs nothing on these rows" in nothing.reason
    y = np.array([0, 1] * 20)


def test_without_an_error_the_interval_has_the_errors_that_none_does_not_exclude():
    y = np.array([0] * 30 + [1] * 10)
    rule = Rule(Decision(), Costs(np.array([[0.0, 1.0], [25.0, -2.0]])), constant=1)
    found = estimate(y, y * 0.8 + 0.1, [METRICS["expected_cost"], METRICS["savings"]], rule=rule)
    missed, false = (stats.binomtest(0, n).proportion_ci(0.95, "exact").high for n in (10, 30))
    worst = (30 * false * 1 + 10 * (-2 + missed * 27)) / 40
    cost, saved = found["expected_cost"], found["savings"]
    assert (cost.low, cost.value, cost.high) == pytest.approx((-0.5, -0.5, worst))
    without = (30 - 20) / 40
    assert (saved.low, saved.value, saved.high) == pytest.approx((1 - worst / without, 3, 3))
    assert "error-free" in cost.method


def test_costs_may_be_scored_by_only_where_there_are_costs():
    assert resolve_scoring(["savings", "f1"], "binary", costs=True)[0].name == "savings"
    with pytest.raises(ConfigError, match="'savings' needs evaluation.costs"):
        resolve_scoring("savings", "binary")
    with pytest.raises(ConfigError, match="judges binary and multiclass, and this task is multilabel"):
        resolve_scoring("expected_cost", "multilabel", costs=True)


def test_the_cost_curve_equals_counts_and_scikit_learns_roc():
    y, scores = data(n=400)
    costs = Costs(np.array([[-1.0, 2.0], [9.0, 0.5]]))
    decided = scores >= 0.3
    missed, false = rates(y == 1, decided)
    pc = probability_cost(y.mean(), costs)
    best, worst = costs.matrix[y, y].mean(), costs.matrix[y, 1 - y].mean()
    cost = costs.matrix[y, decided.astype(int)].mean()
    assert normalised_cost(missed, false, pc) == pytest.approx((cost - best) / (worst - best))
    grid, envelope = lower_envelope(y == 1, scores)
    fpr, tpr, _ = roc_curve(y, scores, drop_intermediate=False)
    assert envelope == pytest.approx([((1 - tpr) * x + fpr * (1 - x)).min() for x in grid])
    assert (envelope <= np.minimum(grid, 1 - grid) + 1e-12).all()
    thresholds = np.array([0.001, 0.3, scores[7], 0.99])
    expected = [costs.matrix[y, (scores >= t).astype(int)].mean() for t in thresholds]
    assert cost_by_threshold(y, scores, costs, thresholds) == pytest.approx(expected)


def test_class_weights_are_what_the_mistakes_on_a_class_cost():
    binary = Costs(np.array([[-1.0, 2.0], [9.0, 0.5]])).class_weights
    assert binary[1] / binary[0] == pytest.approx((9 - 0.5) / (2 + 1))
    many = Costs(np.array([[0.0, 1, 1], [25, 0, 5], [1, 1, 0]])).class_weights
    assert many == pytest.approx(np.array([2, 30, 2]) / (34 / 3))
