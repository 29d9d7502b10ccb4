"""Explanations of plain models, against scikit-learn, brute force, closed forms and the authors' packages."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import get_scorer, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from shoal.cluster.errors import ConfigError
from shoal.evaluation.explain.coalitions import coalitions
from shoal.evaluation.explain.dependence import crossed, dependence, numeric_grid
from shoal.evaluation.explain.gradients import Differentiable, attributions
from shoal.evaluation.explain.lime import fitted, kinds, lime, neighbours
from shoal.evaluation.explain.permutation import permutation
from shoal.evaluation.explain.shapley import shapley
from shoal.evaluation.explain.subject import of_estimator, of_frame, of_function, of_module
from shoal.evaluation.explain.together import groups, rank_correlation

SEED = np.random.SeedSequence(0)


def single(n):
    return [(i,) for i in range(n)]


# permutation -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 4])
def test_permutation_is_bit_for_bit_scikit_learns(repeats):
    x, y = load_breast_cancer(return_X_y=True)
    model = RandomForestClassifier(20, random_state=0).fit(x[:300], y[:300])
    held, label = x[300:], y[300:]
    own = permutation(
        of_estimator(model), held, lambda p: roc_auc_score(label, p[:, 0]), repeats=repeats, random_state=7, block=100
    )  # fmt: skip
    theirs = permutation_importance(model, held, label, scoring="roc_auc", n_repeats=repeats, random_state=7)
    np.testing.assert_array_equal(np.stack([one.falls for one in own]), theirs.importances)
    np.testing.assert_array_equal([one.mean for one in own], theirs.importances_mean)
    np.testing.assert_array_equal([one.std for one in own], theirs.importances_std)


def test_permutation_of_a_regressor_follows_a_shared_random_state():
    x, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(x, y)
    own = permutation(
        of_estimator(model), x, lambda p: r2_score(y, p[:, 0]), random_state=np.random.RandomState(3)
    )
    theirs = permutation_importance(model, x, y, random_state=np.random.RandomState(3))
    np.testing.assert_array_equal(np.stack([one.falls for one in own]), theirs.importances)


def test_a_group_is_permuted_as_one():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3))
    x[:, 1] = x[:, 0]  # a copy: either alone can be read from the other's weight
    subject = of_function(lambda rows: rows[:, 0] + rows[:, 1], ["a", "b", "c"])
    y = x[:, 0] + x[:, 1]
    names = {"a": ["a"], "both": ["a", "b"], "c": ["c"]}
    alone, both, noise = permutation(subject, x, lambda p: r2_score(y, p[:, 0]), groups=names, random_state=0)
    assert both.mean == pytest.approx(2.0, abs=0.2)  # 1 - R2 of an independent copy of the target
    assert alone.mean == pytest.approx(0.5, abs=0.1)
    assert (noise.falls == 0).all()
    assert both.low < both.mean < both.high


def test_a_column_that_is_not_there_is_named():
    subject = of_function(lambda rows: rows[:, 0], ["a", "b"])
    with pytest.raises(ConfigError, match="'z' is none of the columns a, b"):
        permutation(subject, np.zeros((3, 2)), lambda p: 0.0, groups={"z": ["z"]})


def test_permutation_leaves_the_rows_alone():
    x = np.arange(12.0).reshape(6, 2)
    before = x.copy()
    permutation(of_function(lambda rows: rows[:, 0], ["a", "b"]), x, lambda p: p.sum(), random_state=0)
    np.testing.assert_array_equal(x, before)


# Shapley values --------------------------------------------------------------------------------------------------------------


def brute(predict, row, background, d):
    """Shapley's formula, coalition by coalition."""

    def worth(known):
        mixed = background.copy()
        mixed[:, list(known)] = row[list(known)]
        return predict(mixed).mean(axis=0)

    found = []
    for i in range(d):
        others = [j for j in range(d) if j != i]
        total = 0.0
        for size in range(d):
            factor = math.factorial(size) * math.factorial(d - size - 1) / math.factorial(d)
            for known in itertools.combinations(others, size):
                total = total + factor * (worth((*known, i)) - worth(known))
        found.append(total)
    return np.stack(found)


def nonlinear(rows):
    return np.stack([rows[:, 0] * rows[:, 1] + np.sin(rows[:, 2]), (rows**2).sum(1) * rows[:, 3]], axis=1)


@pytest.mark.parametrize("d", [4, 7])
def test_exact_values_are_brute_forces(d):
    generator = np.random.default_rng(1)
    background, x = generator.normal(size=(9, d)), generator.normal(size=(3, d))
    plan = coalitions(d, 2**d, SEED)
    assert plan.exact
    found = shapley(nonlinear, x, background, single(d), plan)
    for row, values in zip(x, found.values, strict=True):
        np.testing.assert_allclose(values, brute(nonlinear, row, background, d), atol=1e-12)
    assert np.abs(found.additivity).max() < 1e-12


def test_the_kernel_over_all_coalitions_is_exact(monkeypatch):
    from shoal.evaluation.explain import coalitions as module

    generator = np.random.default_rng(2)
    background, x = generator.normal(size=(5, 10)), generator.normal(size=(1, 10))
    monkeypatch.setattr(module, "_MOST_EXACT", 0)  # all of them, by least squares
    plan = coalitions(10, 2**10, SEED)
    assert len(plan.masks) == 2**10 - 1
    found = shapley(nonlinear, x, background, single(10), plan)
    np.testing.assert_allclose(found.values[0], brute(nonlinear, x[0], background, 10), atol=1e-9)


def test_a_linear_model_has_its_closed_form():
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(20, 2))
    background, x = generator.normal(size=(30, 20)), generator.normal(size=(4, 20))
    plan = coalitions(20, 300, SEED)
    assert not plan.exact
    found = shapley(lambda rows: rows @ weight, x, background, single(20), plan)
    np.testing.assert_allclose(found.values, (x - background.mean(0))[:, :, None] * weight, atol=1e-9)
    assert found.sampling.max() < 1e-9  # whatever is drawn, a linear model gives the same


def test_the_sampling_error_is_that_of_other_draws():
    generator = np.random.default_rng(4)
    background, x = generator.normal(size=(20, 16)), generator.normal(size=(2, 16))

    def predict(rows):
        return np.tanh(
            rows[:, :1] * rows[:, 1:2] + rows[:, 2:].prod(1, keepdims=True) + rows.sum(1, keepdims=True)
        )

    truth = shapley(predict, x, background, single(16), coalitions(16, 2**16, SEED))
    found = [shapley(predict, x, background, single(16), coalitions(16, 400, s)) for s in SEED.spawn(20)]
    off = np.sqrt(np.mean([(one.values - truth.values) ** 2 for one in found]))
    said = np.sqrt(np.mean([one.sampling**2 for one in found]))
    assert 0.6 < said / off < 1.7
    more = shapley(predict, x, background, single(16), coalitions(16, 6400, SEED))
    assert np.sqrt(np.mean((more.values - truth.values) ** 2)) < 0.6 * off
    assert max(np.abs(one.additivity).max() for one in found) < 1e-10


def test_values_agree_with_shap():
    shap = pytest.importorskip("shap")
    x, y = load_diabetes(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(x, y > 140)
    predict = of_estimator(model).predict
    background = x[:15]
    theirs = shap.KernelExplainer(lambda rows: predict(rows)[:, 0], background).shap_values(
        x[20:23], nsamples=2**10, silent=True
    )
    own = shapley(predict, x[20:23], background, single(10), coalitions(10, 2**10, SEED))
    np.testing.assert_allclose(own.values[:, :, 0], theirs, atol=1e-8)


def test_cells_of_no_player_stay_the_rows():
    x, background = np.array([[1.0, 5.0]]), np.zeros((3, 2))
    found = shapley(lambda rows: rows[:, :1] * rows[:, 1:], x, background, [(0,)], coalitions(1, 2, SEED))
    assert found.base.tolist() == [[0.0]]
    assert found.values.tolist() == [[[5.0]]]


def test_too_few_coalitions_are_refused():
    with pytest.raises(ConfigError, match="10 coalitions are too few for 20 columns; ask for at least 40"):
        coalitions(20, 10, SEED)


# LIME ------------------------------------------------------------------------------------------------------------------------


def test_lime_fits_what_its_package_fits_to_the_same_neighbours():
    base = pytest.importorskip("lime.lime_base")
    x, y = load_iris(return_X_y=True)
    model = RandomForestClassifier(20, random_state=0).fit(x, y)
    predict = of_estimator(model).predict
    found = [kinds(c, c[:1], (c[:, 0], c[:1, 0])) for c in np.split(x, 4, axis=1)]
    of_background, of_row = (np.stack(codes, axis=1) for codes in zip(*found, strict=True))
    around = neighbours(x[0], of_row[0], x, of_background, single(4), 500, SEED)
    answers = predict(around.cells)
    own = fitted(around, answers)
    width = 0.75 * np.sqrt(4)
    package = base.LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / width**2)), random_state=0)
    distances = np.sqrt(((around.alike - 1) ** 2).sum(1))
    for k in range(3):
        intercept, pairs, score, local = package.explain_instance_with_data(
            around.alike, answers, distances, k, 4, feature_selection="none"
        )
        coefficients = np.array([value for _, value in sorted(pairs)])
        np.testing.assert_allclose(own.coefficients[:, k], coefficients, atol=1e-10)
        assert own.intercept[k] == pytest.approx(intercept, abs=1e-10)
        assert own.fidelity[k] == pytest.approx(score, abs=1e-10)
        assert own.prediction[k] == pytest.approx(local[0], abs=1e-10)


def test_quarters_are_those_of_the_limes_package():
    lime_tabular = pytest.importorskip("lime.lime_tabular")
    x = load_breast_cancer().data[:, :3]
    theirs = lime_tabular.QuartileDiscretizer(x, [], ["a", "b", "c"]).discretize(x)
    own = np.stack([kinds(c, c[:0], (c[:, 0], c[:0, 0]))[0] for c in np.split(x, 3, axis=1)], axis=1)
    np.testing.assert_array_equal(own, theirs)


def test_an_explanation_does_not_depend_on_the_other_rows():
    x, y = load_iris(return_X_y=True)
    subject = of_estimator(LogisticRegression(max_iter=500).fit(x, y))
    seeds = SEED.spawn(3)
    together = lime(subject, x[:3], x, seeds, count=200)
    alone = lime(subject, x[2:3], x, seeds[2:], count=200)
    np.testing.assert_array_equal(together[2].coefficients, alone[0].coefficients)
    assert not np.array_equal(together[0].coefficients, together[1].coefficients)


# dependence ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [20, 400])
def test_partial_dependence_and_ice_are_scikit_learns(points):
    x, y = load_diabetes(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(x, y > 140)
    subject = of_estimator(model, [f"c{i}" for i in range(10)])
    for column in (1, 2):  # sex has two values, bmi many
        theirs = partial_dependence(
            model, x, [column], kind="both", grid_resolution=points, method="brute", response_method="predict_proba"
        )  # fmt: skip
        grid = numeric_grid(x[:, column], points)
        np.testing.assert_allclose(grid, theirs["grid_values"][0])
        own = dependence(
            subject.predict, x, (column,), subject.encode(f"c{column}", grid), range(len(x)), block=100
        )
        np.testing.assert_allclose(own.mean[:, 0], theirs["average"][0], atol=1e-6)
        np.testing.assert_allclose(own.individual[:, :, 0], theirs["individual"][0], atol=1e-6)


def test_partial_dependence_of_two_columns_is_scikit_learns():
    x, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(np.column_stack([x, x[:, 2] * x[:, 8]])[:, :10], y)
    theirs = partial_dependence(model, x, [(2, 1)], grid_resolution=8, method="brute")
    first, second = (numeric_grid(x[:, c], 8)[:, None] for c in (2, 1))
    own = dependence(of_estimator(model).predict, x, (2, 1), crossed(first, second))
    shape = theirs["average"][0].shape
    np.testing.assert_allclose(own.mean[:, 0].reshape(shape), theirs["average"][0], atol=1e-6)


def test_partial_dependence_of_a_category_in_a_pipeline_is_scikit_learns():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"kind": generator.choice(["a", "b", "c"], 200), "x": generator.normal(size=200)})
    y = (frame["kind"] == "a") + frame["x"] > 0.5
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), (StandardScaler(), ["x"]))
    model = make_pipeline(encode, LogisticRegression()).fit(frame, y)
    subject, cells = of_frame(model, frame)
    theirs = partial_dependence(
        model, frame, ["kind"], categorical_features=["kind"], response_method="predict_proba", method="brute"
    )
    own = dependence(
        subject.predict, cells, subject.positions("kind"), subject.encode("kind", ["a", "b", "c"])
    )
    np.testing.assert_allclose(own.mean[:, 0], theirs["average"][0], atol=1e-6)
    scorer = get_scorer("roc_auc")
    known = permutation(subject, cells, lambda p: roc_auc_score(y, p[:, 0]), random_state=0)
    expected = permutation_importance(model, frame, y, scoring=scorer, random_state=0)
    np.testing.assert_allclose(np.stack([one.falls for one in known]), expected.importances, atol=1e-12)


def test_a_grid_leaves_out_what_is_missing():
    assert numeric_grid(np.array([2.0, np.nan, 1.0, 2.0])).tolist() == [1.0, 2.0]


# gradients -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).double()


@pytest.fixture(scope="module")
def points():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 6, dtype=torch.float64, generator=generator), torch.randn(
        20, 6, dtype=torch.float64, generator=generator
    )


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift"])
def test_attributions_are_complete(network, points, method):
    subject = Differentiable(network, np.arange(6))
    found = attributions(method, subject, *points, outputs=(0, 1))
    with torch.no_grad():
        gap = (network(points[0]) - network(points[1].mean(0, keepdim=True))).numpy()
    np.testing.assert_allclose(found.values.sum(1), gap, atol=5e-3)
    np.testing.assert_allclose(found.additivity, gap - found.values.sum(1), atol=1e-12)
    if method == "deep_lift":
        assert np.abs(found.additivity).max() < 1e-10


def test_gradients_of_a_linear_network_have_their_closed_form(points):
    torch.manual_seed(1)
    line = nn.Linear(6, 1).double()
    weight = line.weight.detach().numpy()[0]
    x, background = points
    owner = np.array([0, 0, 1, 2, 2, 2])  # as embeddings of three columns
    expected = np.zeros((5, 3))
    np.add.at(expected.T, owner, ((x - background.mean(0)).numpy() * weight).T)
    subject = Differentiable(line, owner)
    for method in ("integrated_gradients", "deep_lift"):
        found = attributions(method, subject, x, background, (0,))
        np.testing.assert_allclose(found.values[:, :, 0], expected, atol=1e-9)
    saliency = attributions("saliency", subject, x, background, (0,)).values
    sizes = np.bincount(owner, np.abs(weight))
    np.testing.assert_allclose(saliency[:, :, 0], np.tile(sizes, (5, 1)), atol=1e-12)


def test_gradient_shap_nears_expected_gradients_and_leaves_random_states(network, points):
    x, background = points
    subject = Differentiable(network, np.arange(6))
    np.random.seed(5)
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    found = attributions("gradient_shap", subject, x, background, (0,), seeds=range(5))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    path = np.mean(
        [attributions("integrated_gradients", subject, x, b[None], (0,)).values for b in background], axis=0
    )
    off = np.abs(found.values - path)
    assert off.max() < 6 * found.sampling.mean() + 0.1
    alone = attributions("gradient_shap", subject, x[3:4], background, (0,), seeds=[3])
    np.testing.assert_allclose(alone.values[0], found.values[3], atol=1e-12)


def test_shapley_values_of_a_module(network, points):
    x, background = (part.numpy() for part in points)
    subject = of_module(network, [f"c{i}" for i in range(6)], ("a", "b"))
    found = shapley(subject.predict, x[:2], background, single(6), coalitions(6, 64, SEED))
    np.testing.assert_allclose(found.values[0], brute(subject.predict, x[0], background, 6), atol=1e-10)


# columns that go together ----------------------------------------------------------------------------------------------------


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    x = load_breast_cancer().data[:, :6]
    np.testing.assert_allclose(rank_correlation(x), spearmanr(x).statistic, atol=1e-12)


def test_groups_are_of_columns_that_all_go_together():
    generator = np.random.default_rng(0)
    a = generator.normal(size=500)
    x = np.column_stack([a, a**3, -a, generator.normal(size=500), np.ones(500)])
    assert groups(list("abcde"), rank_correlation(x)) == [("a", "b", "c")]
