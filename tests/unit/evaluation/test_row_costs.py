"""Metrics, thresholds, intervals and the report's numbers with costs by row, against matrices a row in plain numpy."""

import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.evaluation.config import EvaluationConfig
from shoal.evaluation.cost_curves import cost_by_threshold
from shoal.evaluation.deciding.costs import Rule, resolve_costs
from shoal.evaluation.deciding.plan import Known, judging_again, plan
from shoal.evaluation.deciding.threshold import cheapest_threshold
from shoal.evaluation.evaluate import evaluate
from shoal.evaluation.intervals import estimate
from shoal.evaluation.metrics import METRICS
from shoal.training.costs import Costs
from shoal.training.decision import Decision

CELLS = {2: ((-0.5, 3.0), ("amount", 0.0)), 3: ((0.0, 1.0, 2.0), ("amount", 0.0, "fee"), ("fee", 1.0, 0.0))}
METRIC = [METRICS["expected_cost"], METRICS["savings"]]


def rows(k=2, n=500, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=np.arange(k, 0, -1) / np.arange(k, 0, -1).sum())
    z = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[y]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    amounts = {"amount": rng.lognormal(1.5, 0.8, n), "fee": rng.uniform(0.5, 4, n)}
    return y, p[:, 1] if k == 2 else p, amounts


def rule_of(k, constant=0):
    return Rule(Decision(costs=CELLS[k]), Costs.of_cells(CELLS[k]), constant)


def paid(k, y, decided, amounts):
    """What each row's own matrix says, by a loop."""
    out = []
    for i, (a, d) in enumerate(zip(y, decided, strict=True)):
        cell = CELLS[k][a][d]
        out.append(amounts[cell][i] if isinstance(cell, str) else cell)
    return np.array(out)


@pytest.mark.parametrize("k", [2, 3])
def test_cost_and_savings_are_those_of_a_loop_over_the_rows(k):
    """Savings as of Bahnsen, Aouada and Ottersten (2014), Example-dependent cost-sensitive logistic regression, ICMLA."""
    y, p, amounts = rows(k)
    decided = []
    for i in range(len(y)):
        m = np.array([[amounts[c][i] if isinstance(c, str) else c for c in line] for line in CELLS[k]])
        share = np.array([1 - p[i], p[i]]) if k == 2 else p[i]
        expected = share @ m
        decided.append(int(np.argmin(expected)) if k > 2 else int(expected[1] <= expected[0]))
    cost = paid(k, y, decided, amounts)
    for constant in range(k):
        rule, base = rule_of(k, constant), paid(k, y, np.full(len(y), constant), amounts)
        found = {m.name: m.value(y, p, rule, amounts=amounts) for m in METRIC}
        assert found["expected_cost"] == pytest.approx(cost.mean())
        assert found["savings"] == pytest.approx(1 - cost.sum() / base.sum())
        accuracy = METRICS["accuracy"].value(y, p, rule, amounts=amounts)
        assert accuracy == pytest.approx((y == np.array(decided)).mean())
    weights = np.random.default_rng(3).integers(0, 3, len(y)).astype(float)
    weighted = METRICS["expected_cost"].value(y, p, rule_of(k), weights, amounts)
    assert weighted == pytest.approx((cost * weights).sum() / weights.sum())


def test_intervals_draw_rows_with_their_costs():
    y, p, amounts = rows(n=900)
    rule = rule_of(2, 0)
    found = estimate(y, p, METRIC, replicates=3000, rule=rule, amounts=amounts)
    cost = paid(2, y, rule.decision.classes(p, amounts), amounts)
    base = paid(2, y, np.zeros(len(y), int), amounts)
    rng = np.random.default_rng(9)
    strata = [np.flatnonzero(y == c) for c in (0, 1)]
    means, saved = [], []
    for _ in range(3000):
        drawn = np.concatenate([rng.choice(s, len(s)) for s in strata])
        means.append(cost[drawn].mean())
        saved.append(1 - cost[drawn].sum() / base[drawn].sum())
    for name, values in (("expected_cost", means), ("savings", saved)):
        entry, width = found[name], np.ptp(np.quantile(values, [0.025, 0.975]))
        assert [entry.low, entry.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.06 * width)
    # Costs that are shuffled among the rows of a class give another interval: the rows do keep theirs.
    other = {**amounts, "amount": np.sort(amounts["amount"])}
    assert (
        estimate(y, p, METRIC, replicates=200, rule=rule, amounts=other)["savings"].value
        != found["savings"].value
    )


def test_without_an_error_the_interval_has_each_rows_dearest_mistake():
    y, _, amounts = rows(n=60)
    p = np.where(y == 1, 1 - 1e-9, 1e-9)
    found = estimate(y, p, METRIC, replicates=100, rule=rule_of(2, 1), amounts=amounts)
    rate = {c: 1 - 0.025 ** (1 / (y == c).sum()) for c in (0, 1)}
    right = paid(2, y, y, amounts).mean()
    worst = np.mean(
        [rate[1] * a if c else -0.5 + rate[0] * 3.5 for c, a in zip(y, amounts["amount"], strict=True)]
    )
    assert found["expected_cost"].low == pytest.approx(right)
    assert found["expected_cost"].high == pytest.approx(worst)


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_single_threshold_is_the_best_of_all(seed, decimals):
    y, p, amounts = rows(n=150, seed=seed)
    p = p.round(decimals)
    costs = Costs.of_cells(CELLS[2])
    found = cheapest_threshold(y, p, costs, amounts)
    assert 0 < found <= 1

    def total(threshold):
        return paid(2, y, (p >= threshold).astype(int), amounts).sum()

    candidates = [*np.unique(p), 1.5] if p.max() < 1 else np.unique(p)
    assert total(found) == pytest.approx(min(total(t) for t in candidates if t > 0))
    thresholds = np.linspace(0.01, 1, 50)
    expected = [total(t) / len(y) for t in thresholds]
    assert cost_by_threshold(y, p, costs, thresholds, amounts) == pytest.approx(expected)


def schema_of(*classes, private=()):
    target = Target(columns=("y",), task="binary" if len(classes) == 2 else "multiclass", classes=classes)
    return Schema(columns=(), target=target, private=private)


def test_names_make_the_matrix_with_its_columns():
    config = EvaluationConfig(
        costs={
            "false_positive": 3,
            "false_negative": {"column": "amount"},
            "true_positive": {"column": "gain"},
        }
    )
    found = resolve_costs(config.costs, schema_of("no", "yes"))
    assert found.cells == ((0.0, 3.0), ("amount", "gain"))
    assert config.costs.columns == found.columns == ("amount", "gain")
    by_class = {"actual": {"b": {"a": {"column": "fee"}, "c": 5}}, "otherwise": {"column": "amount"}}
    several = resolve_costs(EvaluationConfig(costs=by_class).costs, schema_of("a", "b", "c"))
    assert several.cells == ((0.0, "amount", "amount"), ("fee", 0.0, 5.0), ("amount", "amount", 0.0))
    # Numbers are still refused where they are written.
    wrong = {"actual": {"a": {"b": 0}, "b": {"a": {"column": "fee"}}}, "otherwise": 1}
    assert resolve_costs(EvaluationConfig(costs=wrong).costs, schema_of("a", "b", "c")).columns == ("fee",)
    wrong = {"actual": {"a": {"b": 0}, "c": {"a": {"column": "fee"}}}, "otherwise": 1}
    with pytest.raises(ConfigError, match="deciding 'b' where 'a' is actual costs 0"):
        resolve_costs(EvaluationConfig(costs=wrong).costs, schema_of("a", "b", "c"))


COSTS = {"false_positive": 3, "false_negative": {"column": "amount"}}


def test_the_plan_decides_by_row_and_an_empirical_threshold_is_one_number():
    y, p, amounts = rows()
    known = Known([80, 20], [40, 10], {"amount": (500.0, 90.0)})
    settled = plan(EvaluationConfig(costs=COSTS, calibration="none"), schema_of("no", "yes"), known)
    assert settled.start.rule.decision.costs == ((0.0, 3.0), ("amount", 0.0))
    assert settled.start.rule.constant == 0  # 90 beside 3 x 80
    dear = Known([80, 20], [40, 10], {"amount": (0.0, 300.0)})
    assert plan(EvaluationConfig(costs=COSTS), schema_of("no", "yes"), dear).start.rule.constant == 1
    assert "by each row's own costs" in settled.start.notices[-1]
    empirical = plan(
        EvaluationConfig(costs=COSTS, calibration="none", threshold="empirical"),
        schema_of("no", "yes"),
        known,
    ).fit(y, p, amounts)
    decision = empirical.rule.decision
    assert decision.costs == ()
    assert decision.threshold == cheapest_threshold(
        y, p, Costs.of_cells(((0.0, 3.0), ("amount", 0.0))), amounts
    )


def test_a_finished_model_is_judged_by_columns_that_its_rows_have():
    before, known = EvaluationConfig(costs=COSTS), Known([80, 20], [40, 10], {"amount": (500.0, 90.0)})
    start = plan(before, schema_of("no", "yes"), known).start

    def again(costs, rows=known):
        return judging_again(before, EvaluationConfig(costs=costs), schema_of("no", "yes"), rows, start).rule

    number = again({"false_positive": 3, "false_negative": 50})
    assert number.decision == Decision(threshold=3 / 53)
    assert number.columns == ()
    other = again({"false_positive": {"column": "amount"}, "false_negative": 2})
    assert other.decision.costs == ((0.0, "amount"), (2.0, 0.0))
    with pytest.raises(ConfigError, match="the rows of this run have no costs of column 'fee'"):
        again({"false_positive": {"column": "fee"}, "false_negative": 2})


def test_predictions_carry_the_costs_that_judge_them():
    y, p, amounts = rows(n=80)
    table = pa.table(
        {
            "row_id": np.arange(80),
            "split": ["test"] * 80,
            "label": np.where(y == 1, "yes", "no"),
            "score_no": 1 - p,
            "score_yes": p,
            "cost_amount": amounts["amount"],
        }
    )
    target = schema_of("no", "yes").target
    rule = Rule(Decision(costs=CELLS[2]), Costs.of_cells(CELLS[2]), 0)
    found = evaluate(table, target, METRIC, replicates=100, rule=rule)["test"]
    assert found["expected_cost"]["value"] == METRIC[0].value(y, p, rule, amounts=amounts)
    with pytest.raises(DataError, match="no costs of column 'amount', of none"):
        evaluate(table.drop_columns("cost_amount"), target, METRIC, rule=rule)
