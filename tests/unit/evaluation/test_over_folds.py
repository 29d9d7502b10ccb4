"""Intervals over folds: the formula, and how often the paired test is wrong where nothing differs."""

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.naive_bayes import GaussianNB

from shoal.evaluation.crossval.comparing import compared, summed_up
from shoal.evaluation.crossval.judging import over_folds


def test_equals_the_formula() -> None:
    values, ratio = np.array([0.7, 0.8, 0.75, 0.9, 0.72]), 0.25
    found = over_folds(values, ratio, 0.9)
    t = values.mean() / np.sqrt((1 / 5 + ratio) * values.var(ddof=1))
    assert found.p_value == pytest.approx(2 * stats.t.sf(t, 4))
    low, high = stats.t.interval(0.9, 4, values.mean(), np.sqrt((1 / 5 + ratio) * values.var(ddof=1)))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_without_the_correction_it_is_the_usual_t_test() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 12)
    assert over_folds(values, 0.0).p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_folds_without_a_value_are_left_out() -> None:
    assert over_folds([0.5, np.nan, 0.7], 0.5) == over_folds([0.5, 0.7], 0.5)
    alone = over_folds([0.5], 0.5)
    assert (alone.value, alone.folds) == (0.5, 1)
    assert np.isnan(alone.low)
    assert np.isnan(over_folds([], 0.5).value)
    assert over_folds([0.0, 0.0], 0.5).p_value == 1.0


def test_the_paired_test_is_seldom_wrong_where_nothing_differs() -> None:
    # Two models of equal worth: each sees one half of features that mean the same. Repeated folds share rows.
    naive, corrected, repeats = 0, 0, 150
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        y = rng.integers(0, 2, 80)
        x = rng.normal(size=(80, 4)) + 0.5 * y[:, None]
        folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=3, random_state=repeat)
        differences = []
        for train, test in folds.split(x, y):
            losses = []
            for half in (slice(0, 2), slice(2, 4)):
                chance = GaussianNB().fit(x[train, half], y[train]).predict_proba(x[test, half])[:, 1]
                losses.append(np.mean((chance - y[test]) ** 2))
            differences.append(losses[1] - losses[0])
        corrected += over_folds(differences, 1 / 4).p_value < 0.05
        naive += over_folds(differences, 0.0).p_value < 0.05
    assert corrected / repeats <= 0.07
    assert naive / repeats > 0.1  # what is corrected


def facts(scores: list[float | None], seconds: float) -> list[dict[str, object]]:
    return [{"scores": {"roc_auc": s, "log_loss": 0.1}, "seconds": {"fit": seconds}} for s in scores]


def test_an_alternative_is_summed_up_in_a_sentence() -> None:
    first, better = facts([0.70, 0.71, 0.69, 0.70], 1.0), facts([0.80, 0.805, 0.795, 0.8], 3.0)
    said = compared(first, better, "plain", "smote", 0.25, 0.95)["sentence"]
    assert said.startswith("smote: roc_auc +0.1000 [+0.0")
    assert said.endswith("3.0 times slower; better")
    assert compared(better, first, "smote", "plain", 0.25, 0.95)["sentence"].endswith("worse: leave it out")
    same = compared(first, facts([0.71, 0.70, 0.70, 0.69], 1.0), "plain", "other", 0.25, 0.95)
    assert same["sentence"].endswith("no difference that these folds can show: keep plain")


def test_bounds_stay_within_what_a_metric_can_be_and_undefined_folds_are_said() -> None:
    entry = summed_up(facts([0.99, 0.7, None, 1.0], 1.0), 0.25, 0.95)["roc_auc"]
    assert entry["high"] == 1.0
    assert entry["reason"] == "undefined in 1 of 4 folds"
    assert entry["by_fold"] == [0.99, 0.7, None, 1.0]
