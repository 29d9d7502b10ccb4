"""Curves of folds on one grid: their heights are scikit-learn's, and so are the areas below them."""

import numpy as np
import pytest
from sklearn import metrics

from shoal.evaluation.report.facts import Part
from shoal.evaluation.report.fold_figures import GRID, precision_heights, roc_heights


@pytest.fixture(params=[0, 1, 2])
def part(request):
    rng = np.random.default_rng(request.param)
    y = rng.integers(0, 2, 90)
    return Part(y, np.round(1 / (1 + np.exp(-y - rng.normal(size=90))), 2))


def test_heights_of_the_roc_curve(part):
    false, true, _ = metrics.roc_curve(part.y, part.scores)
    inside = ~np.isin(GRID, false)  # at a step both ends are right
    np.testing.assert_allclose(roc_heights(part)[inside], np.interp(GRID, false, true)[inside], atol=1e-12)
    area = np.trapezoid(roc_heights(part), GRID)
    assert area == pytest.approx(metrics.roc_auc_score(part.y, part.scores), abs=0.005)


def test_heights_of_the_precision_recall_steps(part):
    precision, recall, _ = metrics.precision_recall_curve(part.y, part.scores)
    # Recall falls: of those that find enough, the last has the highest threshold.
    theirs = [precision[:-1][recall[:-1] >= r - 1e-12][-1] for r in GRID[1:]]
    np.testing.assert_allclose(precision_heights(part)[1:], theirs, atol=1e-12)
    area = float(np.mean(precision_heights(part)[1:]))
    assert area == pytest.approx(metrics.average_precision_score(part.y, part.scores), abs=0.01)
