"""Calibration against scikit-learn's, thresholds against brute force, and what goes with what."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn import metrics as sk
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.evaluation.config import EvaluationConfig
from shoal.evaluation.deciding.calibrate import fit_isotonic, fit_temperature
from shoal.evaluation.deciding.judging import CALIBRATED, CHOSEN
from shoal.evaluation.deciding.plan import Known, judging_again, plan
from shoal.evaluation.deciding.threshold import best_threshold
from shoal.evaluation.formulas import f1
from shoal.training.decision import Calibration, Decision, tempered

COSTS = {"false_positive": 1, "false_negative": 25}


def schema_of(k=2, task="", private=()):
    task = task or ("binary" if k == 2 else "multiclass")
    names = tuple("abcdefg"[:k])
    return Schema(columns=(), target=Target(columns=("y",), task=task, classes=names), private=private)


def fitted(kind, k):
    """An estimator that is too sure of itself, with validation and other rows."""
    X, y = make_classification(
        900, 30, n_informative=6, n_classes=k, n_clusters_per_class=1, class_sep=0.6, random_state=k
    )
    model = LogisticRegression(C=1e4, max_iter=2000) if kind == "temperature" else GaussianNB()
    model.fit(X[:90], y[:90])
    scores = model.predict_proba(X)
    return model, X, y, scores[:, 1] if k == 2 else scores


@pytest.mark.parametrize("k", [2, 4])
def test_a_temperature_equals_scikit_learns(k):
    model, X, y, scores = fitted("temperature", k)
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(X[90:500], y[90:500])
    temperature = fit_temperature(y[90:500], scores[90:500])
    assert temperature > 1.2
    ours, expected = tempered(scores[500:], temperature), theirs.predict_proba(X[500:])
    assert ours == pytest.approx(expected[:, 1] if k == 2 else expected, abs=2e-4)

    def loss(t):
        return sk.log_loss(y[90:500], tempered(scores[90:500], t))

    assert loss(temperature) < min(loss(0.98 * temperature), loss(1.02 * temperature), loss(1.0))


@pytest.mark.parametrize("k", [2, 4])
def test_isotonic_calibration_equals_scikit_learns(k):
    model, X, y, scores = fitted("isotonic", k)
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="isotonic").fit(X[90:500], y[90:500])
    ours = Calibration(isotonic=fit_isotonic(y[90:500], scores[90:500]))
    again = Calibration.model_validate_json(ours.model_dump_json())
    expected = theirs.predict_proba(X[500:])
    found = again(scores[500:])
    assert found == pytest.approx(expected[:, 1] if k == 2 else expected, abs=1e-9)
    assert (found == ours(scores[500:])).all()


def test_rows_that_are_all_right_tell_no_temperature():
    assert fit_temperature(np.array([0, 1, 1]), np.array([0.2, 0.8, 0.6])) is None
    assert fit_temperature(np.array([0, 1]), np.array([[0.6, 0.4, 0.0], [0.3, 0.5, 0.2]])) is None
    assert fit_temperature(np.array([0, 1]), np.array([[0.4, 0.6, 0.0], [0.3, 0.5, 0.2]])) is not None


def cost(y, scores, threshold):
    return np.where(scores >= threshold, np.where(y == 1, 0, 1), np.where(y == 1, 25, 0)).sum()


@pytest.mark.parametrize("decimals", [1, 2, 15])
@pytest.mark.parametrize("seed", range(4))
def test_the_empirical_threshold_is_cheapest_of_all_and_the_middle_of_the_widest(seed, decimals):
    rng = np.random.default_rng(seed)
    y = (rng.random(150) < 0.2).astype(int)
    scores = (1 / (1 + np.exp(-rng.normal(size=150) * 3 - 2 * y + 3))).round(decimals)
    settled = plan(
        EvaluationConfig(costs=COSTS, threshold="empirical", calibration="none"),
        schema_of(),
        Known([8, 2], [120, 30]),
    )
    judging = settled.fit(y, scores)
    found = judging.rule.decision.threshold
    edges = np.unique(np.concatenate([[0.0], scores, [1.0]]))
    tried = np.concatenate([(edges[:-1] + edges[1:]) / 2, edges])
    prices = np.array([cost(y, scores, t) for t in tried])
    assert cost(y, scores, found) == prices.min()
    widths = [b - a for a, b in pairwise(edges) if cost(y, scores, (a + b) / 2) == prices.min()]
    if widths:
        at = np.searchsorted(edges, found)
        assert edges[at] - edges[at - 1] == pytest.approx(max(widths))
        assert found == pytest.approx((edges[at] + edges[at - 1]) / 2)
    assert judging.chosen_on_validation


def test_a_threshold_may_have_the_highest_f1():
    rng = np.random.default_rng(3)
    y = (rng.random(200) < 0.3).astype(int)
    scores = 1 / (1 + np.exp(-rng.normal(size=200) - y + 1))
    found = best_threshold(y, scores, lambda sums: f1(sums, "binary"))
    best = max(sk.f1_score(y, scores >= t) for t in scores)
    assert sk.f1_score(y, scores >= found) == pytest.approx(best)
    asked = EvaluationConfig(threshold={"maximise": "f1"})
    judging = plan(asked, schema_of(), Known([1, 1], [140, 60])).fit(y, scores)
    assert judging.rule.decision.threshold == found
    assert judging.withheld["f1"] == CHOSEN
    assert "log_loss" not in judging.withheld


def test_certain_scores_leave_a_threshold_that_separates_them():
    y, scores = np.array([0, 0, 1, 1]), np.array([0.0, 0.0, 1.0, 1.0])
    assert best_threshold(y, scores, lambda sums: f1(sums, "binary")) == 0.5
    close = np.array([0.5, np.nextafter(0.5, 1)])
    found = best_threshold(np.array([0, 1]), close, lambda sums: f1(sums, "binary"))
    assert (close >= found).tolist() == [False, True]


def test_defaults_change_nothing_and_costs_calibrate_and_say_so():
    usual = plan(EvaluationConfig(), schema_of(), Known([5, 5], [0, 0]))
    assert not usual.changes
    assert not usual.start.withheld
    costly = plan(EvaluationConfig(costs=COSTS), schema_of(), Known([5, 5], [5, 5]))
    assert costly.calibration == "temperature"
    assert costly.start.rule.decision.threshold == pytest.approx(1 / 26)
    assert any("because there are costs" in notice for notice in costly.start.notices)
    assert any("0.03846" in notice for notice in costly.start.notices)
    y, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.7, 0.6, 0.9])
    fitted = costly.fit(y, scores)
    assert fitted.withheld["log_loss"] == fitted.withheld["expected_cost"] == CALIBRATED
    assert "roc_auc" not in fitted.withheld  # a temperature keeps the order of the rows
    isotonic = plan(EvaluationConfig(calibration="isotonic"), schema_of(), Known([5, 5], [5, 5])).fit(
        y, scores
    )
    assert isotonic.withheld["roc_auc"] == CALIBRATED
    many = plan(EvaluationConfig(calibration="temperature"), schema_of(3), Known([1] * 3, [1] * 3))
    p = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    assert many.fit(np.array([0, 2]), p).withheld["roc_auc"] == CALIBRATED
    nan = costly.fit(y, np.array([0.2, np.nan, 0.5, 0.5]))
    assert nan.calibration == costly.start.calibration
    assert "NaN" in nan.notices[0]


def test_weights_are_divided_out_so_that_elkans_threshold_is_one_half_of_the_tilted():
    """Weighted cross-entropy is least at q = w1 p / (w1 p + w0 (1 - p)); with weights by costs, p >= t* is q >= 1/2."""
    p = np.linspace(0.001, 0.999, 999)
    settled = plan(
        EvaluationConfig(costs=COSTS, calibration="none"),
        schema_of(),
        Known([5, 5], [0, 0]),
        (1 / 13, 25 / 13),
    )
    q = 25 * p / (25 * p + (1 - p))
    judging = settled.start
    assert judging.calibration(q) == pytest.approx(p, rel=1e-9)
    assert (judging.rule.decision.classes(judging.calibration(q)) == (q >= 0.5)).all()
    several = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    w = np.array([0.5, 1.0, 4.0])
    tilted = several * w / (several * w).sum(axis=1, keepdims=True)
    assert Calibration(class_weights=tuple(w))(tilted) == pytest.approx(several, rel=1e-9)
    # Without costs or calibration, probabilities stay as the loss made them.
    assert (
        plan(EvaluationConfig(), schema_of(), Known([5, 5], [5, 5]), (1.0, 3.0)).start.calibration
        == Calibration()
    )


@pytest.mark.parametrize(
    ("config", "schema", "validation", "said"),
    [
        ({"costs": COSTS}, schema_of(), [0, 0], "calibration: temperature is fitted on validation rows, and there are none"),
        ({"calibration": "isotonic"}, schema_of(3), [5, 0, 5], "of every class, and there are none of b"),
        ({"calibration": "isotonic"}, schema_of(3, private=("y",)), [5, 0, 5], "there are none of some classes"),
        ({"costs": COSTS, "calibration": "none", "threshold": "empirical"}, schema_of(), [9, 0], "or give a number"),
        ({"threshold": "optimal"}, schema_of(), [5, 5], "optimal needs evaluation.costs"),
        ({"threshold": "empirical"}, schema_of(), [5, 5], "or write {maximise: f1}"),
        ({"threshold": 0.3}, schema_of(3), [5, 5, 5], "for two classes, and the task is multiclass"),
        ({"threshold": 0.3}, schema_of(1, "regression"), [0], "evaluation.threshold is for one class a row"),
        ({"calibration": "temperature"}, schema_of(3, "multilabel"), [1, 1, 1], "evaluation.calibration is for one"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(config, schema, validation, said):
    with pytest.raises(ConfigError) as refused:
        plan(EvaluationConfig(**config), schema, Known([5] * len(validation), validation))
    assert said in str(refused.value)


@pytest.mark.parametrize("wrong", [0, 1, 1.5, True, "0.3", "best", {"maximise": "recall"}, [0.5], None])
def test_what_no_threshold_is_is_refused(wrong):
    with pytest.raises(ValidationError, match="a number above 0 and below 1, auto, optimal, empirical"):
        EvaluationConfig(threshold=wrong)


def test_a_finished_model_may_be_judged_by_other_costs_and_numbers():
    before = EvaluationConfig(costs=COSTS)
    known = plan(before, schema_of(), Known([5, 5], [5, 5])).start

    def again(**change):
        after = {**before.model_dump(), **change}
        return judging_again(before, EvaluationConfig(**after), schema_of(), Known([5, 5]), known)

    assert again().rule.decision == known.rule.decision
    assert again(costs={"false_positive": 1, "false_negative": 3}).rule.decision.threshold == 0.25
    assert again(threshold=0.4).rule.decision == Decision(threshold=0.4)
    assert again(costs=None).rule.decision == Decision()
    with pytest.raises(ConfigError, match="train again"):
        again(calibration="isotonic")
    with pytest.raises(ConfigError, match="empirical is fitted on validation rows"):
        again(threshold="empirical")
