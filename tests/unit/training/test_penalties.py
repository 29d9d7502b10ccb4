"""L1 and L2 against scikit-learn's solvers and the optimality conditions; which parameters they are for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, make_regression
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression
from sklearn.preprocessing import StandardScaler
from support.prepared import make_dataset, make_schema
from torch import nn

from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Silent
from shoal.training import TorchClassifier, TorchRegressor
from shoal.training.allowed import PROXIMAL
from shoal.training.config import L1Config, LinearConfig, MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import build_model
from shoal.training.optimizers.parameters import parameter_groups, unpenalised
from shoal.training.optimizers.penalties import add_to_gradients, shrink
from shoal.training.strategies.base import Strategy

X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)


def coefficients(fitted: Any) -> np.ndarray:
    body = fitted.trained_model_.module.body
    return body.numbers.weight.detach().double().numpy().ravel()  # type: ignore[no-any-return]


def fit(l1: dict[str, float] | None, l2: float, optimizer: dict[str, Any], epochs: int = 4000) -> np.ndarray:
    options: dict[str, Any] = {"l1": l1, "l2": l2, "epochs": epochs}
    return coefficients(
        TorchClassifier("linear", optimizer, batch_size="full", precision="fp64", **options).fit(X, Y)
    )


@pytest.mark.parametrize(("l1", "l2"), [(0.05, 0.0), (0.02, 0.02)])
def test_proximal_l1_and_elastic_net_equal_saga(l1: float, l2: float) -> None:
    n, total = len(X), l1 + l2  # scikit-learn sums the loss and mixes the two by a ratio
    saga = LogisticRegression(
        C=1 / (n * total), l1_ratio=l1 / total, solver="saga", max_iter=20_000, tol=1e-9, random_state=0
    ).fit(X, Y)
    ours = fit({"proximal": l1}, l2, {"sgd": {"learning_rate": 0.3}}, epochs=2500)
    assert 0 < (saga.coef_ != 0).sum() < X.shape[1]
    np.testing.assert_array_equal(ours != 0, saga.coef_[0] != 0)
    np.testing.assert_allclose(ours, saga.coef_[0], rtol=0, atol=1e-4)


LASSO_X, LASSO_Y = make_regression(200, 12, n_informative=5, noise=5.0, random_state=0)
LASSO_X, LASSO_Y = StandardScaler().fit_transform(LASSO_X), LASSO_Y / LASSO_Y.std()


def lasso(build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], steps: int, l1: bool) -> np.ndarray:
    """Minimise half the mean squared error + .1 |w| by a torch optimiser, with the subgradient or the proximal step."""
    x, y = torch.from_numpy(LASSO_X), torch.from_numpy(LASSO_Y)
    w = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    optimizer = build([{"params": [w], "l1": 0.1, "l2": 0.0}])
    add_to_gradients(optimizer, L1Config(subgradient=0.1) if l1 else L1Config(proximal=0.1))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        (((x @ w - y) ** 2).mean() / 2).backward()
        optimizer.step()
        if not l1:
            shrink(optimizer)
        schedule.step()
    return w.detach().numpy()


OPTIMISERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "sgd dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, lr=0.002, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.5),
    "adagrad decayed": lambda p: torch.optim.Adagrad(p, lr=0.5, lr_decay=1e-3),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_proximal_step_of_every_optimiser_finds_the_lasso(name: str) -> None:
    exact = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(LASSO_X, LASSO_Y).coef_
    assert 0 < (exact != 0).sum() < 12
    ours = lasso(OPTIMISERS[name], 3000, l1=False)
    np.testing.assert_array_equal(ours != 0, exact != 0)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-4)
    assert name.split()[0] in PROXIMAL


def test_the_subgradient_comes_near_the_lasso_without_zeros() -> None:
    exact = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(LASSO_X, LASSO_Y).coef_
    near = lasso(OPTIMISERS["sgd"], 3000, l1=True)
    np.testing.assert_allclose(near, exact, rtol=0, atol=2e-3)
    assert (near != 0).all()


def test_an_optimiser_whose_step_is_unknown_is_refused() -> None:
    with pytest.raises(TypeError, match="Rprop has no step size"):
        lasso(lambda p: torch.optim.Rprop(p), 2, l1=False)


def test_elastic_net_regression_equals_scikit_learns() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    z = (y - y.mean()) / y.std()
    # Ours is the mean squared error, scikit-learn's half of it.
    theirs = ElasticNet(alpha=0.1, l1_ratio=0.5, tol=1e-12, max_iter=100_000).fit(X, z)
    ours = TorchRegressor(
        "linear",
        {"sgd": {"learning_rate": 0.05}},
        epochs=1000,
        batch_size="full",
        precision="fp64",
        l1={"proximal": 0.1},
        l2=0.1,
    ).fit(X, y)
    assert 0 < (theirs.coef_ != 0).sum() < len(theirs.coef_)
    np.testing.assert_allclose(coefficients(ours), theirs.coef_, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(coefficients(ours) != 0, theirs.coef_ != 0)


def test_l2_is_what_torch_calls_weight_decay_in_sgd() -> None:
    options: dict[str, Any] = {"learning_rate": 0.1}
    penalised = fit(None, 0.1, {"sgd": options}, epochs=50)
    decayed = fit(None, 0.0, {"sgd": {**options, "weight_decay": 0.1}}, epochs=50)
    plain = fit(None, 0.0, {"sgd": options}, epochs=50)
    np.testing.assert_allclose(penalised, decayed, rtol=0, atol=1e-14)
    assert np.abs(plain - decayed).max() > 1e-2


def own(groups: list[dict[str, Any]], lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adamax(groups, lr=lr, weight_decay=weight_decay)


def none(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return groups


def test_an_optimiser_of_ones_own_gets_groups() -> None:
    made = groups(optimizer={"import": f"{__name__}:own", "lr": 0.1, "weight_decay": 0.2}, l2=0.3)
    assert [{k: v for k, v in g.items() if k != "params"} for g in made] == [
        {"l1": 0.0, "l2": 0.0, "weight_decay": 0.0},
        {"l1": 0.0, "l2": 0.3, "weight_decay": 0.2},
    ]
    fitted = TorchClassifier("linear", {"import": f"{__name__}:own", "lr": 0.1}, epochs=20).fit(X, Y)
    assert fitted.score(X, Y) > 0.95


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            {"import": f"{__name__}:own"},
            "could not be called: .*missing 1 required positional argument: 'lr'",
        ),
        (
            {"import": f"{__name__}:own", "lr": -1.0},
            "failed at .*test_penalties.py, line .*ValueError: Invalid learning rate",
        ),
        ({"import": f"{__name__}:none"}, "returned list; it must return a torch.optim.Optimizer"),
        ({"import": f"{__name__}:nothing"}, "cannot import"),
    ],
)
def test_what_is_no_optimiser_is_refused(optimizer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TorchClassifier("linear", optimizer, epochs=1).fit(X, Y)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(3, 2), nn.LayerNorm(2)
        self.cell, self.last = nn.GRU(2, 2), nn.Linear(2, 1)


def test_biases_norms_and_embeddings_are_free_but_not_one_hot_weights() -> None:
    free = {"table.weight", "scale.weight", "scale.bias", "cell.bias_ih_l0", "cell.bias_hh_l0", "last.bias"}
    assert set(unpenalised(Normed())) == free
    linear = build_model(LinearConfig(), make_schema(), 0)
    assert set(unpenalised(linear)) == {"body.numbers.bias"}


def groups(**training: Any) -> list[dict[str, Any]]:
    model = build_model(MLPConfig(hidden=(4,)), make_schema(), 0)
    names = {id(p): n for n, p in model.named_parameters()}
    found = parameter_groups(model, TrainingConfig.model_validate(training))
    return [{**g, "params": [names[id(p)] for p in g["params"]]} for g in found]


def test_the_first_entry_that_matches_counts() -> None:
    found = groups(
        optimizer={"adamw": {"learning_rate": 0.1, "weight_decay": 0.2}},
        l1={"subgradient": 0.3},
        parameter_groups=[
            {"match": "body.0.*", "learning_rate": 0.5},
            {"match": "*.bias", "weight_decay": 0.7},
            {"match": "encoder.embeddings.*", "l1": 0.9},
        ],
    )
    by_name = {n: {k: v for k, v in g.items() if k != "params"} for g in found for n in g["params"]}
    weight, free = {"lr": 0.1, "l1": 0.3, "l2": 0.0, "weight_decay": 0.2}, {"l1": 0.0, "weight_decay": 0.0}
    assert by_name == {
        "encoder.embeddings.0.weight": {**weight, **free, "l1": 0.9},
        "encoder.embeddings.1.weight": {**weight, **free, "l1": 0.9},
        "body.0.weight": {**weight, "lr": 0.5},
        "body.0.bias": {**weight, **free, "lr": 0.5},
        "body.2.weight": weight,
        "body.2.bias": {**weight, **free, "weight_decay": 0.7},
    }


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            [{"match": "body.1.weigth", "l2": 0.1}],
            "first entry that matches for no trainable parameter.*body.0.weight",
        ),
        ([{"match": "*", "l2": 0.1}, {"match": "*.bias", "l2": 0.2}], r"parameter_groups.1.match: '\*.bias'"),
    ],
)
def test_an_entry_that_changes_nothing_is_refused(entries: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        groups(parameter_groups=entries)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"l1": {}}, "either subgradient or proximal"),
        ({"l1": {"subgradient": 1.0, "proximal": 1.0}}, "either subgradient or proximal"),
        ({"parameter_groups": [{"match": "*", "l1": 1.0}]}, "training.l1 does not say how"),
        ({"l1": {"proximal": 0.0}}, "greater than 0"),
    ],
)
def test_what_says_nothing_is_refused(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate(training)


def test_penalties_of_a_parameter_without_gradient_leave_it_alone() -> None:
    dataset = make_dataset("regression", rows=60)
    model = build_model(LinearConfig(), dataset.schema, 0)
    values = {"epochs": 2, "batch_size": 20, "l1": {"proximal": 1e3}, "optimizer": "sgd", "l2": 0.5}
    config = TrainingConfig.model_validate(values)
    assert model.body.categories is not None
    model.body.categories.weight.data.fill_(1.0)
    model.body.categories.requires_grad_(False)
    Loop(model, dataset, config, Strategy(torch.device("cpu")), None, 0, Silent()).run()
    assert torch.equal(model.body.categories.weight, torch.ones_like(model.body.categories.weight))
    assert torch.equal(model.body.numbers.weight, torch.zeros_like(model.body.numbers.weight))
