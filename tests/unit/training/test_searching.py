"""L-BFGS and nonlinear conjugate gradient against SciPy, closed forms and torch; what a step says of itself."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, rosen, rosen_der
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from shoal.training import TorchClassifier
from shoal.training.optimizers.lbfgs import LBFGS
from shoal.training.optimizers.nonlinear_cg import METHODS, NonlinearCG

BUILD: dict[str, Callable[..., Any]] = {
    "lbfgs": partial(LBFGS, line_search_fn="strong_wolfe"),
    **{method: partial(NonlinearCG, method=method) for method in METHODS},
}
Objective = Callable[[Tensor], Tensor]


def closure_of(optimizer: Any, w: Tensor, objective: Objective, seen: list[float] | None = None) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(w)
        loss.backward()
        if seen is not None:
            seen.append(float(loss.detach()))
        return loss

    return closure


def minimised(name: str, objective: Objective, start: np.ndarray, **options: Any) -> tuple[np.ndarray, Any]:
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    wanted = {"max_iter": 3000, "max_eval": 9000, "tolerance_grad": 1e-9, "tolerance_change": 0.0, **options}
    optimizer = BUILD[name]([w], **wanted)
    optimizer.step(closure_of(optimizer, w, objective))
    return w.detach().numpy(), optimizer


def rosenbrock(w: Tensor) -> Tensor:
    return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock_equals_scipys(name: str, n: int) -> None:
    start = np.full(n, -1.2)
    start[1::2] = 1.0
    ours, _ = minimised(name, rosenbrock, start)
    theirs = minimize(
        rosen, start, jac=rosen_der, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-10, "maxiter": 9999}
    )
    assert rosen(ours) < 1e-12
    np.testing.assert_allclose(ours, theirs.x, rtol=0, atol=1e-6)


def ill_conditioned(n: int = 30, condition: float = 1e4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return basis @ np.diag(np.geomspace(1, condition, n)) @ basis.T, rng.normal(size=n)


@pytest.mark.parametrize("name", BUILD)
def test_an_ill_conditioned_quadratic_is_solved(name: str) -> None:
    matrix, b = ill_conditioned()
    a, c = torch.from_numpy(matrix), torch.from_numpy(b)
    ours, optimizer = minimised(name, lambda w: w @ a @ w / 2 - c @ w, np.zeros(30), tolerance_grad=1e-8)
    np.testing.assert_allclose(ours, np.linalg.solve(matrix, b), rtol=0, atol=1e-6)
    assert optimizer.searched.has_converged


@pytest.mark.parametrize("name", METHODS)
def test_a_quadratic_of_n_distinct_curvatures_takes_about_n_iterations(name: str) -> None:
    # Exact searches would take 4; these stop at a slope of a tenth.
    diagonal = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    _, optimizer = minimised(name, lambda w: (diagonal * w * w).sum() / 2 - w.sum(), np.zeros(4))
    assert optimizer.searched.reason == "gradient"
    assert optimizer.searched.iterations <= 12


X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)
L2 = 0.01


def scipys(method: str) -> np.ndarray:
    signs = 2.0 * Y - 1

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (X @ w[:-1] + w[-1])
        slope = -signs / (1 + np.exp(margins)) / len(X)
        penalty = np.append(w[:-1], 0.0)
        value = np.logaddexp(0, -margins).mean() + L2 / 2 * penalty @ penalty
        return float(value), np.append(X.T @ slope, slope.sum()) + L2 * penalty

    options = {"gtol": 1e-11, "maxiter": 9999} | ({"ftol": 0} if method == "L-BFGS-B" else {})
    found = minimize(objective, np.zeros(X.shape[1] + 1), jac=True, method=method, options=options)
    return found.x  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "optimizer",
    [{"lbfgs": {}}, *({"nonlinear_cg": {"method": m}} for m in METHODS)],
    ids=["lbfgs", *METHODS],
)
def test_logistic_regression_equals_scipys(optimizer: dict[str, Any]) -> None:
    values = {"max_iter": 200, "tolerance_grad": 1e-10, "tolerance_change": 1e-15}
    fitted = TorchClassifier(
        "linear",
        {name: own | values for name, own in optimizer.items()},
        l2=L2,
        epochs=20,
        batch_size="full",
        precision="fp64",
    ).fit(X, Y)
    numbers = fitted.trained_model_.module.body.numbers
    ours = np.append(numbers.weight.detach().numpy().ravel(), numbers.bias.detach().numpy())
    for method in ("L-BFGS-B", "CG"):
        np.testing.assert_allclose(ours, scipys(method), rtol=0, atol=1e-6)
    assert fitted.outcome_.stopped.startswith("converged: ")
    assert fitted.outcome_.epochs < 20


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "nonlinear_cg"])
def test_the_defaults_come_near_the_optimum_in_each_precision(optimizer: str, precision: str) -> None:
    fitted = TorchClassifier(
        "linear", optimizer, l2=L2, epochs=20, batch_size="full", precision=precision
    ).fit(X, Y)
    theirs = scipys("L-BFGS-B")
    expected = 1 / (1 + np.exp(-(X @ theirs[:-1] + theirs[-1])))
    np.testing.assert_allclose(fitted.predict_proba(X)[:, 1], expected, rtol=0, atol=1e-5)
    assert fitted.outcome_.stopped == "converged: no element of the gradient is above tolerance_grad"


@given(st.integers(0, 10**6), st.sampled_from(METHODS))
def test_accepted_steps_satisfy_the_strong_wolfe_conditions(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.normal(size=(12, 5)))
    b = torch.from_numpy(rng.normal(size=12))

    def objective(w: Tensor) -> Tensor:  # smooth, convex, not quadratic
        return torch.logaddexp(matrix @ w - b, torch.zeros(12, dtype=torch.float64)).sum() + 0.05 * (w @ w)

    w = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = NonlinearCG([w], method=name, max_iter=1, max_eval=50)
    for _ in range(6):
        before = w.detach().clone()
        optimizer.step(closure_of(optimizer, w, objective))
        if optimizer.searched.iterations == 0:
            break
        (first,) = torch.autograd.grad(objective(before.requires_grad_()), before)
        there = w.detach().clone().requires_grad_()
        (second,) = torch.autograd.grad(objective(there), there)
        moved = (there - before).detach()
        slope = float(first @ moved)
        assert slope < 0
        with torch.no_grad():
            assert float(objective(there)) <= float(objective(before)) + 1e-4 * slope + 1e-12
        assert abs(float(second @ moved)) <= -0.1 * slope + 1e-12


def test_lbfgs_takes_torchs_steps_bitwise() -> None:
    ours = torch.full((6,), -1.2, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    one = LBFGS([ours], max_iter=7, history_size=4, line_search_fn="strong_wolfe")
    two = torch.optim.LBFGS([theirs], max_iter=7, history_size=4, line_search_fn="strong_wolfe")
    for _ in range(5):
        seen: list[float] = []
        one.step(closure_of(one, ours, rosenbrock, seen))
        two.step(closure_of(two, theirs, rosenbrock))
        assert torch.equal(ours, theirs)
        assert one.searched.evaluations == len(seen)


@pytest.mark.parametrize("name", BUILD)
def test_a_step_says_why_it_ended(name: str) -> None:
    quadratic = lambda w: (w * w).sum()  # noqa: E731
    start = np.full(4, -1.2)
    reasons = {
        "max_iter": minimised(name, rosenbrock, start, max_iter=3),
        "max_eval": minimised(name, rosenbrock, start, max_eval=5),
        "gradient": minimised(name, quadratic, start),
        "change": minimised(name, rosenbrock, start, tolerance_grad=0.0, tolerance_change=1e-3),
        "non_finite": minimised(name, lambda w: (w * torch.nan).sum(), start),
    }
    assert {reason: o.searched.reason for reason, (_, o) in reasons.items()} == {r: r for r in reasons}
    assert reasons["max_iter"][1].searched.iterations == 3
    assert reasons["non_finite"][1].searched.evaluations == 1
    np.testing.assert_array_equal(reasons["non_finite"][0], start)
    _, there = minimised(name, quadratic, np.zeros(4))
    assert (there.searched.iterations, there.searched.evaluations) == (0, 1)
    assert there.searched.reason == "gradient"


@pytest.mark.parametrize("name", BUILD)
def test_where_the_objective_is_no_number_the_step_is_shortened(name: str) -> None:
    # The first trial goes beyond the domain of the logarithm.
    ours, optimizer = minimised(name, lambda w: (w - torch.log(w)).sum(), np.full(3, 3.0), lr=1e3)
    np.testing.assert_allclose(ours, 1.0, rtol=0, atol=1e-6)
    assert optimizer.searched.has_converged


@pytest.mark.parametrize("name", BUILD)
def test_a_search_that_is_cut_short_has_not_converged(name: str) -> None:
    options = {"lr": 1e3, "max_eval": 2}  # the first trial is beyond the domain of the logarithm
    ours, optimizer = minimised(name, lambda w: (w - torch.log(w)).sum(), np.full(3, 3.0), **options)
    assert optimizer.searched.reason == "max_eval"
    assert not optimizer.searched.has_converged
    np.testing.assert_allclose(ours, 3.0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("max_eval", "converged"), [(3, False), (99, True)])
def test_where_no_trial_is_lower_only_a_whole_search_tells(name: str, max_eval: int, converged: bool) -> None:
    start = torch.full((3,), 3.0, dtype=torch.float64)
    alone = lambda w: w.sum() * (1.0 if torch.equal(w.detach(), start) else torch.nan)  # noqa: E731
    options = {"max_eval": max_eval, "tolerance_change": 1e-9}
    ours, optimizer = minimised(name, alone, start.numpy().copy(), **options)
    assert optimizer.searched.has_converged == converged, optimizer.searched
    np.testing.assert_array_equal(ours, 3.0)


@pytest.mark.parametrize("name", METHODS)
def test_several_groups_are_one_vector(name: str) -> None:
    one = torch.tensor([-1.2, 1.0, -1.2], dtype=torch.float64, requires_grad=True)
    parts = [one.detach()[:2].clone().requires_grad_(), one.detach()[2:].clone().requires_grad_()]
    whole = NonlinearCG([one], method=name, max_iter=9)
    split = NonlinearCG([{"params": [p]} for p in parts], method=name, max_iter=9)
    whole.step(closure_of(whole, one, rosenbrock))
    split.step(closure_of(split, parts[0], lambda _: rosenbrock(torch.cat(parts))))
    assert torch.equal(torch.cat([p.detach() for p in parts]), one.detach())


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of polak_ribiere_plus, hager_zhang, fletcher_reeves"):
        NonlinearCG([torch.zeros(1, requires_grad=True)], method="newton")
