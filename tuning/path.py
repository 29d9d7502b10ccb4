"""The regularisation path of a linear model: from the strength that zeroes every weight downward, each fit from the one before.

The objective is scikit-learn's ``Lasso`` and ``ElasticNet``'s, with the mean log loss in the place of half the mean squared error
where classes are predicted: ``loss + strength x (l1_ratio x |w|_1 + (1 - l1_ratio) / 2 x |w|^2)``; the intercept is free.

Shape legend: n rows, E columns, S strengths, F folds.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, enet_path

from shoal.cluster.errors import DataError

Floats = NDArray[np.float64]
_LEAST_RATIO = 1e-3  # in the place of 0, for the strength at which a path of L2 alone begins (as glmnet)
_STEPS, _TOLERANCE, _GAIN = 50, 1e-9, 1e-12
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Path:
    """Fits along strengths.

    Attributes
    ----------
    strengths
        ``[S]``, falling.
    weights
        ``[S, E]``.
    intercepts
        ``[S]``.
    """

    strengths: Floats
    weights: Floats
    intercepts: Floats

    def scores(self, x: Floats) -> Floats:
        """Return the answers of each fit for rows ``[n, E]``, ``[n, S]``: log odds, or values."""
        return np.asarray(x @ self.weights.T + self.intercepts)

    @property
    def nonzero(self) -> NDArray[np.int64]:
        """Count the weights that are not 0, ``[S]``."""
        return np.asarray(np.count_nonzero(self.weights, axis=1), np.int64)


@dataclass(frozen=True)
class Choice:
    """The losses of held-out rows over folds, and the strengths that they choose.

    Attributes
    ----------
    mean, error
        ``[S]``: mean over folds, and its standard error.
    best
        Place of the lowest mean.
    one_standard_error
        Place of the highest strength whose mean is within a standard error of the lowest.
    """

    mean: Floats
    error: Floats
    best: int
    one_standard_error: int


def highest(x: Floats, y: Floats, l1_ratio: float) -> float:
    """Return the lowest strength at which all weights are 0: the largest gradient of the loss there, over ``l1_ratio``.

    Both losses have the same gradient there, that of the mean alone: ``|x^T (y - mean(y))| / n``.

    References
    ----------
    Friedman, Hastie and Tibshirani (2010), Regularization paths for generalized linear models via coordinate descent, Journal of
    Statistical Software 33, section 2.5.

    Raises
    ------
    DataError
        If no column goes with the target.
    """
    found = float(np.abs(x.T @ (y - y.mean())).max()) / (len(y) * max(l1_ratio, _LEAST_RATIO))
    if not found > 0:
        raise DataError("tuning.path: no column goes with the target, so every weight is 0 at any strength")
    return found


def strengths(top: float, count: int, ratio: float) -> Floats:
    """Return strengths from the highest to ``ratio`` times it, evenly in the logarithm, ``[count]``."""
    return np.asarray(top * np.logspace(0, np.log10(ratio), count))


def fit(x: Floats, y: Floats, along: Floats, l1_ratio: float, classes: bool) -> Path:
    """Fit along strengths, each from the weights of the one before.

    Parameters
    ----------
    x
        ``[n, E]``.
    y
        ``[n]``: values, or 0 and 1 with ``classes``.
    along
        ``[S]``, falling.
    l1_ratio
        1 for L1, 0 for L2, between for both.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not classes:
            return _ridge(x, y, along) if l1_ratio == 0 else _least_squares(x, y, along, l1_ratio)
        return _logistic_l2(x, y, along) if l1_ratio == 0 else _logistic(x, y, along, l1_ratio)


def _least_squares(x: Floats, y: Floats, along: Floats, l1_ratio: float) -> Path:
    """Coordinate descent of scikit-learn's, on centred rows."""
    mean, level = x.mean(axis=0), y.mean()
    _, weights, _ = enet_path(
        x - mean, y - level, l1_ratio=l1_ratio, alphas=along, tol=_TOLERANCE, max_iter=100_000
    )
    return Path(along, weights.T, level - weights.T @ mean)


def _ridge(x: Floats, y: Floats, along: Floats) -> Path:
    """All strengths from one singular value decomposition."""
    mean, level = x.mean(axis=0), y.mean()
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    shrunk = s / (s**2 + len(y) * along[:, None]) * (u.T @ (y - level))
    weights = shrunk @ vt
    return Path(along, weights, level - weights @ mean)


def _logistic_l2(x: Floats, y: Floats, along: Floats) -> Path:
    """Newton's method of scikit-learn's, from strength to strength."""
    model = LogisticRegression(solver="newton-cholesky", warm_start=True, tol=_TOLERANCE, max_iter=_STEPS)
    weights, intercepts = [], []
    for strength in along:
        model.set_params(C=1.0 / (len(y) * strength)).fit(x, y)
        weights.append(model.coef_[0].copy())
        intercepts.append(float(model.intercept_[0]))
    return Path(along, np.array(weights), np.array(intercepts))


def _logistic(x: Floats, y: Floats, along: Floats, l1_ratio: float) -> Path:
    """Proximal Newton: each step solves a weighted least-squares path of one strength over the columns that may matter.

    References
    ----------
    Friedman, Hastie and Tibshirani (2010), section 3; Tibshirani et al. (2012), Strong rules for discarding predictors in
    lasso-type problems, Journal of the Royal Statistical Society B 74, section 7, for the columns.
    """
    w, b = np.zeros(x.shape[1]), float(np.log(y.mean() / (1 - y.mean())))
    weights, intercepts = [], []
    for strength in along:
        active = w != 0
        while True:
            w, b = _newton(x, y, w, b, active, strength, l1_ratio)
            slope = np.abs(x.T @ (y - expit(x @ w + b))) / len(y)
            missing = (slope > strength * l1_ratio + _ROUNDING) & ~active
            if not missing.any():
                break
            active |= missing
        weights.append(w)
        intercepts.append(b)
    return Path(along, np.array(weights), np.array(intercepts))


def _newton(
    x: Floats, y: Floats, w: Floats, b: float, active: NDArray[np.bool_], strength: float, l1_ratio: float
) -> tuple[Floats, float]:
    """Minimise over the active columns and the intercept."""
    columns, n = x[:, active], len(y)
    own = w[active]

    def loss(own: Floats, b: float) -> float:
        z = columns @ own + b
        penalty = l1_ratio * np.abs(own).sum() + (1 - l1_ratio) / 2 * (own**2).sum()
        return float(np.mean(np.logaddexp(0, z) - y * z) + strength * penalty)

    now = loss(own, b)
    for _ in range(_STEPS):
        z = columns @ own + b
        p = expit(z)
        weight = np.maximum(p * (1 - p), 1e-9)
        working = z + (y - p) / weight
        total = weight.sum()
        mean, level = weight @ columns / total, weight @ working / total
        if active.any():
            centred = columns - mean
            gram = centred.T @ (centred * weight[:, None]) / total
            target = centred.T @ (weight * (working - level)) / total
            scaled = strength * n / total
            new = _quadratic(gram, target, own, scaled * l1_ratio, scaled * (1 - l1_ratio))
        else:
            new = own
        free = float(level - mean @ new)
        step, to = 1.0, loss(new, free)
        while to > now + 1e-14 and step > 1e-6:  # Newton may go too far from far away
            step /= 2
            to = loss(own + step * (new - own), b + step * (free - b))
        moved = max(float(np.abs(step * (new - own)).max(initial=0.0)), abs(step * (free - b)))
        gained = now - to
        own, b, now = own + step * (new - own), b + step * (free - b), to
        # Of columns that say the same, weights wander without an end.
        if moved < _TOLERANCE or gained < _GAIN * now:
            break
    found = np.zeros_like(w)
    found[active] = own
    return found, b


def _quadratic(gram: Floats, target: Floats, w: Floats, l1: float, l2: float) -> Floats:
    """Minimise ``w^T G w / 2 - t^T w + l1 |w|_1 + l2 / 2 |w|^2`` by coordinate descent of scikit-learn's, from ``w``."""
    n = len(target)
    # enet_path wants rows, and looks at them through their products alone: those of a square root of the Gram matrix.
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, values.max(initial=0.0) * 1e-14))
    rows = (vectors * root) @ vectors.T * np.sqrt(n)
    answer = (vectors / root) @ vectors.T @ target * np.sqrt(n)
    alpha = l1 + l2
    _, found, _ = enet_path(
        np.asfortranarray(rows),
        answer,
        l1_ratio=l1 / alpha,
        alphas=[alpha],
        coef_init=w.copy(),
        tol=1e-12,
        max_iter=10_000,
    )
    return np.asarray(found[:, 0])


def loss_of(classes: bool) -> Callable[[Floats, Floats], Floats]:
    """Return the mean loss of answers ``[n, S]`` for ``y`` ``[n]``, ``[S]``: log loss, or squared error."""
    if classes:
        return lambda y, z: np.mean(np.logaddexp(0, z) - y[:, None] * z, axis=0)
    return lambda y, z: np.mean((y[:, None] - z) ** 2, axis=0)


def choose(losses: Floats) -> Choice:
    """Choose by the losses of held-out rows ``[F, S]``, over falling strengths.

    References
    ----------
    Breiman, Friedman, Olshen and Stone (1984), Classification and regression trees, section 3.4.3: one standard error.
    """
    mean, error = losses.mean(axis=0), losses.std(axis=0, ddof=1) / np.sqrt(len(losses))
    best = int(np.argmin(mean))
    within = np.flatnonzero(mean <= mean[best] + error[best])
    return Choice(mean, error, best, int(within[0]))
