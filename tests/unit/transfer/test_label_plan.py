"""A plan for labels: sample sizes by enumeration, draws that do not depend on order, tests and intervals that cover."""

from math import comb

import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.errors import ConfigError, DataError
from shoal.transfer.adaptation.label_plan import (
    count_bounds,
    critical,
    detectable_effect,
    difference_bounds,
    judge_labels,
    plan_labels,
    sample_size,
    sign_power,
    sign_test,
)

N = 5000


def tail(k: int, n: int, p: float) -> float:
    """P(X <= k) of n trials, term by term."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def models(n: int = N, differing: int = 600, classes: int = 2) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    rng = np.random.default_rng(0)
    first = rng.integers(0, classes, n)
    second = first.copy()
    rows = rng.choice(n, differing, replace=False)
    second[rows] = (first[rows] + rng.integers(1, classes, differing)) % classes
    return first, second, pa.array(rng.permutation(10 * n)[:n])


@pytest.mark.parametrize("n", [1, 5, 6, 17, 40, 121])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_critical_count_by_enumeration(n: int, level: float) -> None:
    allowed = [c for c in range(n // 2) if 2 * tail(c, n, 0.5) <= level]
    assert critical(np.array(n), level) == (allowed[-1] if allowed else -1)


@pytest.mark.parametrize(("effect", "power"), [(0.4, 0.8), (0.3, 0.9), (0.8, 0.8), (1.0, 0.9)])
def test_the_sample_size_is_the_least_after_which_power_stays(effect: float, power: float) -> None:
    def reached(n: int) -> float:
        allowed = [c for c in range(n // 2) if 2 * tail(c, n, 0.5) <= 0.05]
        return tail(allowed[-1], n, (1 - effect) / 2) if allowed else 0.0

    found = sample_size(effect, power, 0.05)
    assert found is not None
    assert reached(found - 1) < power
    assert all(reached(n) >= power for n in range(found, found + 120))


def test_the_power_is_that_of_simulated_labels() -> None:
    rng = np.random.default_rng(1)
    b = rng.binomial(200, 0.6, 4000)
    told = np.mean([sign_test(x, 200 - x) <= 0.05 and x > 100 for x in b])
    assert sign_power(np.array(200), 0.2, 0.05) == pytest.approx(told, abs=0.025)


def test_labels_that_are_neither_decision_give_more_power_not_less() -> None:
    rng = np.random.default_rng(2)
    n = sample_size(0.2, 0.8, 0.05)
    assert n is not None
    told = 0
    for _ in range(600):  # half of the labels are neither; the difference is the same
        b, c, _ = rng.multinomial(n, [0.35, 0.15, 0.5])
        told += sign_test(b, c) <= 0.05 and b > c
    assert told / 600 > 0.9


def test_the_detectable_effect_needs_these_labels() -> None:
    effect = detectable_effect(150, 0.8, 0.05)
    assert sign_power(np.array(150), effect, 0.05) == pytest.approx(0.8)
    assert np.isnan(detectable_effect(5, 0.8, 0.05))  # five labels are never significant


def test_a_plan_draws_only_where_the_models_differ_whatever_the_order() -> None:
    first, second, ids = models()
    plan = plan_labels(first, second, ids, difference=0.03, seed=4)
    assert plan.differing == 600
    assert plan.needed == len(plan.row_ids) == sample_size(0.03 * N / 600, 0.8, 0.05)
    where = {i: k for k, i in enumerate(ids.to_pylist())}
    assert all(first[where[i]] != second[where[i]] for i in plan.row_ids)
    order = np.random.default_rng(5).permutation(N)
    again = plan_labels(first[order], second[order], ids.take(pa.array(order)), difference=0.03, seed=4)
    assert again.row_ids == plan.row_ids
    other = plan_labels(first, second, ids, difference=0.03, seed=5)
    assert set(other.row_ids) != set(plan.row_ids)
    assert "3.00% with a power of 8" in plan.message


def test_ids_may_be_text() -> None:
    first, second, ids = models(200, 50)
    text = pa.array([f"row {i}" for i in ids.to_pylist()])
    assert set(plan_labels(first, second, text, difference=0.1).row_ids) <= set(text.to_pylist())


def test_what_no_plan_can_settle_is_said() -> None:
    first, second, ids = models()
    alike = plan_labels(first, first, ids)
    assert (alike.row_ids, alike.needed) == ((), None)
    assert "alike on all 5,000 rows" in alike.message
    close = plan_labels(first, second, ids, difference=0.2)  # 600 of 5,000 are .12
    assert close.row_ids == ()
    assert "at most 12.00%" in close.message
    faint = plan_labels(first, second, ids, difference=0.005)
    assert (faint.needed, len(faint.row_ids)) == (None, 600)
    assert faint.power < 0.3
    assert "no plan can settle" in faint.message
    scarce = plan_labels(first, second, ids, difference=0.03, budget=40)
    assert len(scarce.row_ids) == 40
    assert scarce.power < 0.8 < scarce.needed
    assert scarce.detectable > 0.03
    assert "the 40 of the budget" in scarce.message


def test_requests_that_cannot_be_are_refused() -> None:
    first, second, ids = models(100, 20)
    for wrong in ({"difference": 0.0}, {"power": 1.0}, {"level": -1.0}, {"budget": 0}, {"power": 0.04}):
        with pytest.raises(ConfigError):
            plan_labels(first, second, ids, **wrong)
    with pytest.raises(DataError, match="give one of each"):
        plan_labels(first[:-1], second, ids)
    with pytest.raises(DataError, match="more than once"):
        plan_labels(first, second, pa.array([1] * 100))


def judged(share: float, several: bool, seed: int, budget: int | None = 150):
    """Plan and judge models of which the adapted one is alone right on `share` of the rows that differ."""
    first, second, ids = models(N, 600, 4 if several else 2)
    rng, names = np.random.default_rng(seed), ids.to_pylist()
    labels = first.copy()
    differ = np.flatnonzero(first != second)
    right = rng.random(600) < share
    labels[differ[right]] = second[differ[right]]
    if several:
        lost = differ[rng.random(600) < 0.3]
        labels[lost] = 9
    truth = ((labels == second).mean() - (labels == first).mean()).item()
    plan = plan_labels(first, second, ids, difference=0.005, budget=budget, seed=seed)
    maps = [dict(zip(names, values.tolist(), strict=True)) for values in (labels, first, second)]
    return judge_labels(plan, *maps, several=several), truth


def test_labels_tell_the_better_model() -> None:
    found, truth = judged(0.7, False, 0)
    assert found.better == "adapted"
    assert found.adapted_alone + found.source_alone == 150
    assert found.low < truth < found.high
    assert judged(0.3, False, 1)[0].better == "source_only"
    assert judged(0.5, False, 2)[0].better == ""


def test_all_labels_give_the_difference_itself() -> None:
    for several in (False, True):
        found, truth = judged(0.6, several, 3, budget=None)
        assert found.low == found.high == pytest.approx(truth)
        assert found.difference == pytest.approx(truth)


@pytest.mark.parametrize("several", [False, True])
def test_intervals_cover_the_difference_on_these_rows(several: bool) -> None:
    covered = 0
    for seed in range(60):
        found, truth = judged(0.55, several, seed)
        covered += found.low - 1e-12 <= truth <= found.high + 1e-12
    assert covered >= 54  # of 60 at 95 % or more: fewer than one in 3,000 times by chance


def test_the_interval_of_a_count_by_enumeration() -> None:
    hits, k, d, alpha = 7, 20, 50, 0.05
    inside = []
    for total in range(d + 1):
        chance = [comb(total, i) * comb(d - total, k - i) / comb(d, k) for i in range(k + 1)]
        if sum(chance[: hits + 1]) > alpha / 2 and sum(chance[hits:]) > alpha / 2:
            inside.append(total)
    assert count_bounds(hits, k, d, alpha) == (inside[0], inside[-1])
    assert difference_bounds(hits, k - hits, k, d, False, alpha) == (2 * inside[0] - d, 2 * inside[-1] - d)


def test_several_classes_have_the_wider_interval() -> None:
    low, high = difference_bounds(30, 20, 50, 400, True, 0.05)
    least, most = difference_bounds(30, 20, 50, 400, False, 0.05)
    assert low <= least < most <= high


def test_the_sign_test_is_mcnemars_exact_one() -> None:
    for b, c in ((10, 2), (2, 10), (7, 7), (0, 6), (0, 0)):
        assert sign_test(b, c) == pytest.approx(min(1.0, 2 * tail(min(b, c), b + c, 0.5)))


def test_labels_that_are_not_those_of_the_plan_are_refused() -> None:
    first, second, ids = models(300, 60)
    plan = plan_labels(first, second, ids, difference=0.1)
    names = ids.to_pylist()
    a, b = (dict(zip(names, values.tolist(), strict=True)) for values in (first, second))
    short = {i: a[i] for i in plan.row_ids[1:]}
    with pytest.raises(DataError, match="1 row of the plan"):
        judge_labels(plan, short, a, b)
    with pytest.raises(DataError, match="other models"):
        judge_labels(plan, a, a, a)
    with pytest.raises(DataError, match="neither model decides"):
        judge_labels(plan, {**a, plan.row_ids[0]: 9}, a, b, several=False)
    with pytest.raises(DataError, match="labels such as '.', decisions such as"):
        judge_labels(plan, {i: str(label) for i, label in a.items()}, a, b)
