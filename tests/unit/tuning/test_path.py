"""The regularisation path, against other solvers of scikit-learn's and the conditions of an optimum."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge, lasso_path
from torch import nn

from shoal.cluster.errors import DataError
from shoal.experiment import from_dict
from shoal.tuning.path import choose, fit, highest, loss_of, strengths

RATIOS = (1.0, 0.4, 0.0)


def standardised(load):
    x, y = load(return_X_y=True)
    return (x - x.mean(axis=0)) / x.std(axis=0), y.astype(float)


DIABETES, CANCER = standardised(load_diabetes), standardised(load_breast_cancer)


def test_l1_of_numbers_is_lasso_path():
    x, y = DIABETES
    alphas, weights, _ = lasso_path(x, y - y.mean(), alphas=30, eps=1e-3, tol=1e-9)
    top = highest(x, y, 1.0)
    assert top == pytest.approx(alphas[0], rel=1e-12)
    found = fit(x, y, strengths(top, 30, 1e-3), 1.0, False)
    np.testing.assert_allclose(found.strengths, alphas, rtol=1e-9)
    np.testing.assert_allclose(found.weights, weights.T, atol=1e-4)


@pytest.mark.parametrize("ratio", RATIOS)
def test_numbers_equal_single_fits(ratio):
    x, y = DIABETES
    found = fit(x, y, strengths(highest(x, y, ratio), 12, 1e-3), ratio, False)
    for i in (0, 4, 11):
        alone = (
            ElasticNet(alpha=found.strengths[i], l1_ratio=ratio, tol=1e-10, max_iter=100_000)
            if ratio
            else Ridge(alpha=found.strengths[i] * len(y))
        ).fit(x, y)
        np.testing.assert_allclose(found.weights[i], alone.coef_, atol=1e-4)
        assert found.intercepts[i] == pytest.approx(alone.intercept_)


@pytest.mark.parametrize("ratio", RATIOS)
def test_classes_equal_logistic_regression_over_c(ratio):
    x, y = CANCER
    found = fit(x, y, strengths(highest(x, y, ratio), 12, 3e-2), ratio, True)
    for i in (0, 5, 11):
        c = 1 / (len(y) * found.strengths[i])
        solver = {"solver": "saga", "l1_ratio": ratio} if ratio else {"solver": "lbfgs"}
        alone = LogisticRegression(C=c, tol=1e-7, max_iter=100_000, **solver).fit(x, y)
        np.testing.assert_allclose(found.weights[i], alone.coef_[0], atol=2e-4)
        assert found.intercepts[i] == pytest.approx(alone.intercept_[0], abs=2e-4)


@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_each_fit_is_an_optimum(ratio):
    """Of a weight that is 0, the loss's gradient is at most the strength of L1; of others, it is equal to it."""
    x, y = CANCER
    found = fit(x, y, strengths(highest(x, y, ratio), 40, 1e-3), ratio, True)
    slope = x.T @ (y[:, None] - expit(found.scores(x))) / len(y)
    slope = slope.T - (1 - ratio) * found.strengths[:, None] * found.weights
    l1 = (ratio * found.strengths)[:, None]
    zero = found.weights == 0
    assert (np.abs(slope) <= l1 + 1e-7)[zero].all()
    np.testing.assert_allclose(slope[~zero], (l1 * np.sign(found.weights))[~zero], atol=1e-6)
    np.testing.assert_allclose((y[:, None] - expit(found.scores(x))).mean(axis=0), 0, atol=1e-7)


@pytest.mark.parametrize(("rows", "classes"), [(DIABETES, False), (CANCER, True)])
def test_the_path_begins_where_every_weight_is_zero(rows, classes):
    x, y = rows
    top = highest(x, y, 1.0)
    found = fit(x, y, np.array([top * 1.0001, top * 0.98]), 1.0, classes)
    assert found.nonzero.tolist() == [0, 1]
    with pytest.raises(DataError, match="no column goes with the target"):
        highest(np.ones((5, 1)), np.arange(5.0), 1.0)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_path_of_classes_that_columns_part_ends_at_optima(ratio):
    """More columns than rows, some of them the same: weights are not unique, and grow without an end."""
    x, y = CANCER[0][:80], CANCER[1][:80]
    bins = np.concatenate(
        [np.eye(4)[np.digitize(c, np.quantile(c, [0.25, 0.5, 0.75]))] for c in x.T[:20]], axis=1
    )
    wide = np.concatenate([x, x, bins], axis=1)
    found = fit(wide, y, strengths(highest(wide, y, ratio), 40, 1e-3), ratio, True)
    for w, b, strength in zip(found.weights, found.intercepts, found.strengths, strict=True):
        slope = wide.T @ (y - expit(wide @ w + b)) / len(y) - strength * (1 - ratio) * w
        assert np.abs(slope[w != 0] - strength * ratio * np.sign(w[w != 0])).max(initial=0) < 1e-5 * strength
        assert np.abs(slope).max() < strength * ratio * (1 + 1e-5)


def test_a_network_at_zero_has_no_slope_and_a_linear_model_has():
    """Why there is no path of a network: begun where every weight is zero, it would stay there at any strength."""
    x, y = (torch.from_numpy(part) for part in CANCER)
    intercept = torch.logit(y.mean())
    slopes = {}
    for name, body in {
        "linear": nn.Linear(30, 1),
        "network": nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1)),
    }.items():
        body = body.double()
        weights = [p for n, p in body.named_parameters() if n.endswith("weight")]
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
            [*body.modules()][-1].bias.copy_(intercept)
        nn.functional.binary_cross_entropy_with_logits(body(x)[:, 0], y).backward()
        slopes[name] = max(float(weight.grad.abs().max()) for weight in weights)
    assert slopes["linear"] == pytest.approx(highest(*CANCER, 1.0), rel=1e-9)
    assert slopes["network"] < 1e-12


def test_columns_that_say_the_same_are_no_trouble():
    x, y = CANCER
    twice = np.concatenate([x[:, :5], x[:, :5], np.ones((len(x), 1))], axis=1)
    along = strengths(highest(twice, y, 0.5), 10, 1e-2)
    found, single = (
        fit(twice, y, along, 0.5, True),
        LogisticRegression(
            C=1 / (len(y) * along[-1]), l1_ratio=0.5, solver="saga", tol=1e-8, max_iter=100_000
        ),
    )
    np.testing.assert_allclose(
        found.scores(twice)[:, -1], single.fit(twice, y).decision_function(twice), atol=1e-3
    )
    assert np.isfinite(found.weights).all()


def test_the_choice_is_within_a_standard_error():
    losses = np.array([[5.0, 3.0, 2.1, 2.0, 2.5], [5.0, 3.2, 2.5, 2.2, 2.7], [5.0, 3.1, 2.0, 2.1, 2.2]])
    found = choose(losses)
    mean, error = losses.mean(axis=0), losses.std(axis=0, ddof=1) / np.sqrt(3)
    assert found.best == mean.argmin() == 3
    assert found.one_standard_error == next(i for i in range(5) if mean[i] <= mean[3] + error[3])
    x, y = CANCER
    z = x[:, :2]
    from sklearn.metrics import log_loss, mean_squared_error

    assert loss_of(True)(y, z)[1] == pytest.approx(log_loss(y, expit(z[:, 1])))
    assert loss_of(False)(y, z)[0] == pytest.approx(mean_squared_error(y, z[:, 0]))


def test_a_path_goes_alone():
    data = {"path": "rows.parquet", "target": "y"}
    with pytest.raises(Exception, match="scheduler would change nothing"):
        from_dict({"data": data, "tuning": {"path": {}, "scheduler": "asha"}})
    assert from_dict({"data": data, "tuning": {"path": {"penalty": "l2"}}}).tuning.path.l1 == 0.0
