from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from shoal.cluster.errors import ConfigError
from shoal.training.estimators import TorchClassifier, TorchRegressor


@parametrize_with_checks([TorchClassifier(epochs=20), TorchRegressor(epochs=60)])
def test_scikit_learns_own_checks(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def test_linear_models_reach_the_optimum_that_scikit_learn_finds() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    ours = TorchClassifier(
        "linear", {"sgd": {"learning_rate": 0.5, "weight_decay": 1 / len(X)}}, epochs=400, batch_size="full"
    )
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
    np.testing.assert_allclose(ours.fit(X, y).predict_proba(X), theirs.fit(X, y).predict_proba(X), atol=0.02)
    X, y = load_diabetes(return_X_y=True)
    regressor = TorchRegressor("linear", {"sgd": {"learning_rate": 0.2}}, epochs=800, batch_size="full").fit(
        X, y
    )
    np.testing.assert_allclose(regressor.predict(X), LinearRegression().fit(X, y).predict(X), atol=0.5)


def test_early_stopping_and_grid_search_work_as_in_scikit_learn() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    early = TorchClassifier(epochs=200, early_stopping={"patience": 2}).fit(X, y)
    assert early.n_iter_ < 200
    assert early.outcome_.best_epoch > 0
    search = GridSearchCV(
        TorchClassifier(epochs=5), {"model": ["linear", {"mlp": {"hidden": [16]}}]}, cv=3
    ).fit(X, y)
    assert search.best_score_ > 0.9
    assert cross_val_score(TorchClassifier(epochs=5), X, y, cv=3).min() > 0.9


def test_same_seed_same_model_and_missing_values_are_taken() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X[::7, 3] = np.nan
    a, b = (TorchClassifier({"mlp": {"dropout": 0.2}}, epochs=2).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_wrong_parameters_are_named() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(ConfigError, match="TorchClassifier: epochs is 0"):
        TorchClassifier(epochs=0).fit(X, y)
    with pytest.raises(ConfigError, match="model is 'forest'"):
        TorchClassifier("forest").fit(X, y)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"epochs": "many"}, "epochs is 'many'; it must be a whole number"),
        ({"batch_size": "half"}, "batch_size is 'half'; it must be a whole number, or auto or full"),
        ({"optimizer": "newton"}, "optimizer is 'newton'; allowed: sgd, adagrad, "),
        ({"optimizer": 3}, "optimizer is 3; it takes a component's name, or {name: {…}}"),
        ({"optimizer": {"adamw": {"lr": 1}}}, "optimizer.adamw has no parameter lr; leave it out"),
        ({"optimizer": {"adamw": {"learning_rate": -1}}}, "learning_rate is -1; it must be above 0"),
        ({"early_stopping": 5}, "early_stopping is 5; it must be a section of keys"),
        ({"loss": "x" * 900}, f"loss is '{'x' * 78}…; allowed: auto, "),
    ],
)
def test_wrong_parameters_are_said_in_our_words(parameters: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TorchClassifier(**parameters).fit([[0.0], [1.0]], [0, 1])
    assert f"TorchClassifier: {said}" in str(caught.value) or f".{said}" in str(caught.value)
    assert "Input" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"optimizer": "lbfgs", "schedule": "cosine"}, "nothing to schedule"),
        ({"optimizer": "lbfgs", "l1": {"proximal": 1e-3}}, "lbfgs"),
        ({"optimizer": "nadam", "l1": {"proximal": 1e-3}}, "needs an optimiser"),
        ({"optimizer": {"sgd": {"nesterov": True, "momentum": 0.0}}}, "nesterov needs momentum above 0"),
    ],
)
def test_what_a_fit_refuses_an_estimator_refuses_too(parameters: dict[str, Any], said: str) -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ConfigError, match=said):
        TorchClassifier(**parameters).fit(x, y)
