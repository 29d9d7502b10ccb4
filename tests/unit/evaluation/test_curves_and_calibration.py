"""Curves, confusion matrix and calibration against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from shoal.evaluation.calibration import reliability, wilson
from shoal.evaluation.curves import confusion_matrix, precision_recall_curve, roc_curve


def _data(n: int, decimals: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.random(n) < 0.2
    return y, (1 / (1 + np.exp(-rng.normal(size=n) - 1.5 * y + 1))).round(decimals)


@pytest.mark.parametrize("decimals", [1, 12])
def test_curves_equal_scikit_learn(decimals: int) -> None:
    y, scores = _data(300, decimals)
    false, true, _ = sk.roc_curve(y, scores, drop_intermediate=False)
    assert np.allclose(roc_curve(y, scores), (false, true))
    precision, recall, _ = sk.precision_recall_curve(y, scores)
    kept = slice(None, -1)  # scikit-learn adds a point at recall 0
    assert np.allclose(precision_recall_curve(y, scores), (recall[kept][::-1], precision[kept][::-1]))


def test_thinned_curves_are_the_same_to_the_eye() -> None:
    y, scores = _data(50_000)
    false, true = roc_curve(y, scores)
    assert len(false) <= 500
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert sk.auc(false, true) == pytest.approx(sk.roc_auc_score(y, scores), abs=1e-3)
    recall, precision = precision_recall_curve(y, scores)
    assert len(recall) <= 500
    assert (np.diff(recall, prepend=0) * precision).sum() == pytest.approx(
        sk.average_precision_score(y, scores), abs=5e-3
    )


def test_confusion_matrix_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    y, decided = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
    assert (confusion_matrix(y, decided, 4) == sk.confusion_matrix(y, decided)).all()


def test_reliability_equals_scikit_learn() -> None:
    y, scores = _data(1003)
    found = reliability(y, scores)
    observed, predicted = calibration_curve(y, scores, n_bins=10, strategy="quantile")
    # Bins may differ by the row that sits on an edge.
    assert np.allclose(found.observed, observed, atol=0.011)
    assert np.allclose(found.predicted, predicted, atol=0.01)
    assert found.rows.sum() == 1003
    assert found.rows.min() >= 99
    assert found.error == pytest.approx((found.rows * abs(found.observed - found.predicted)).sum() / 1003)


def test_calibrated_probabilities_have_no_error_and_ties_stay_together() -> None:
    rng = np.random.default_rng(2)
    p = rng.choice([0.1, 0.5, 0.9], 60_000)
    found = reliability(rng.random(60_000) < p, p)
    assert np.allclose(found.predicted, [0.1, 0.5, 0.9])
    assert found.error < 0.01
    assert ((found.low < found.predicted) & (found.predicted < found.high)).all()


def test_wilson_equals_scipy() -> None:
    for k in (0, 3, 20):
        low, high = wilson(np.array(k / 20), np.array(20.0))
        expected = stats.binomtest(k, 20).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
