"""Scores of adapted models without target labels; the larger, the better, for each of them.

None is right for all models: a model that decides the same class everywhere has the best entropy and the best neighbourhood
density. So several are computed, and `ensemble_rank` puts them together. They compare models on the same rows; their values mean
nothing from one dataset to another.

Shapes: n target rows, m source validation rows, K classes, d features (what the last layer reads).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, xlogy
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shoal.transfer.content import content_keys, draw
from shoal.transfer.shift.domains import Floats, cross_fit

LIMIT = 20_000  # target rows of SND, whose time grows with their square
BY_SOURCE_LABELS = ("importance_weighted", "dev")
LEFT_OUT = "leave_one_domain_out"  # of methods rather than models: the mean score on source domains in the target's place
_BLOCK = 2**22  # similarities held at once


def entropy(target_probabilities: Floats) -> float:
    """Negative mean entropy of the predictions, in nats: 0 is best, -log K worst.

    It rewards being sure, not being right: a model that collapsed to one class scores 0.

    References
    ----------
    Morerio, Cavazza and Murino (2018), "Minimal-entropy correlation alignment for unsupervised deep domain adaptation": the
    entropy of target predictions, -mean_i sum_k p_ik log p_ik, as the criterion of choice (there to be small).
    """
    p = _probabilities(target_probabilities)
    return float(xlogy(p, p).sum(axis=1).mean())


def snd(
    target_probabilities: Floats, *, temperature: float = 0.05, limit: int | None = LIMIT, seed: int = 0
) -> float:
    """Soft neighbourhood density: mean entropy of each row's similarities to the others, between 0 and log(n - 1).

    Parameters
    ----------
    temperature
        tau.
    limit, seed
        Rows that are looked at, drawn by their content.

    References
    ----------
    Saito et al. (2021), "Tune it the right way: unsupervised validation of domain adaptation via soft neighborhood density":
    P_ij = exp(S_ij / tau) / sum_{j' != i} exp(S_ij' / tau), S the cosine similarities of outputs;
    mean of -sum_j P_ij log P_ij.

    Raises
    ------
    ValueError
        If there are fewer than two rows, or they are no probabilities.
    """
    p = _probabilities(target_probabilities)
    if len(p) < 2:
        raise ValueError("soft neighbourhood density needs at least 2 rows")
    p = p[draw(content_keys(p, seed=seed), limit)]
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    total, step = 0.0, max(1, _BLOCK // len(p))
    for start in range(0, len(p), step):
        similar = unit[start : start + step] @ unit.T / temperature
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        log_share = similar - logsumexp(similar, axis=1, keepdims=True)
        share = np.exp(log_share)
        log_share[rows, start + rows] = 0.0  # 0 log 0
        total -= float((share * log_share).sum())
    return total / len(p)


def bnm(target_probabilities: Floats) -> float:
    """Nuclear norm of the prediction matrix, over its rows: large where predictions are sure and all classes are used.

    It is between 1 / sqrt(n K) and sqrt(K / n), so it falls with n: compare on the same rows.

    References
    ----------
    Cui et al. (2020), "Towards discriminability and diversity: batch nuclear-norm maximization under label insufficient
    situations": the sum of singular values of the n x K matrix of predictions, over n; of all rows rather than a batch.
    """
    p = _probabilities(target_probabilities)
    return float(np.linalg.svd(p, compute_uv=False).sum() / len(p))


def corr_c(target_probabilities: Floats) -> float:
    """Cosine similarity of the classes' correlation matrix and the identity: 1 where rows are sure, and classes equally common.

    It takes equally common classes for right: where the target's are skewed, it prefers models that are wrong about that.

    References
    ----------
    Tu, Deng, Gedeon and Zheng (2023), "Assessing model out-of-distribution generalization with softmax prediction probability
    baselines and a correlation method": C = P'P / n, and trace(C) / (|C| sqrt(K)).
    """
    p = _probabilities(target_probabilities)
    c = p.T @ p
    return float(np.trace(c) / (np.linalg.norm(c) * np.sqrt(p.shape[1])))


def density_ratio(
    source_validation_features: Floats,
    target_features: Floats,
    *,
    clip: float | None = None,
    n_folds: int = 5,
    seed: int = 0,
    make: Callable[[], Any] | None = None,
) -> Floats:
    """Estimate how much denser the target is than the source at each source row, by a classifier of the domain.

    Each row's ratio, (m / n) times the odds of the target, comes from a classifier that was fitted to other folds.

    Parameters
    ----------
    clip
        The largest ratio; by default sqrt(m) times their mean (Ionides 2008, "Truncated importance sampling").
    make
        Makes one of scikit-learn's classifiers; a logistic regression of standardised numbers by default.

    Returns
    -------
    float64 ``[m]``

    References
    ----------
    Bickel, Brückner and Scheffer (2007), "Discriminative learning for differing training and test distributions": p_t(x) / p_s(x)
    = (m / n) P(target | x) / P(source | x).

    Raises
    ------
    ValueError
        If features do not go together, are not finite, or there are fewer rows than folds.
    """
    source, target = (
        np.asarray(source_validation_features, np.float64),
        np.asarray(target_features, np.float64),
    )
    m, n = len(source), len(target)
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            f"features are [rows, d] with one d for both domains; got {source.shape} and {target.shape}"
        )
    if min(m, n) < n_folds:
        raise ValueError(f"{m} source rows and {n} target rows are too few for {n_folds} folds")
    if make is None and not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("features must be finite numbers")
    keys = [content_keys(rows, seed=seed) for rows in (source, target)]
    orders = [draw(of) for of in keys]
    x = np.concatenate([rows[order] for rows, order in zip((source, target), orders, strict=True)])
    fold = np.concatenate([np.arange(size) % n_folds for size in (m, n)])
    odds = cross_fit(x, np.repeat([False, True], [m, n]), fold, make or _linear)[:m]
    ratio = np.empty(m)
    ratio[orders[0]] = np.exp(np.minimum(odds, 700)) * m / n
    _, same = np.unique(keys[0], return_inverse=True)  # equal rows in several folds have one ratio
    ratio = (np.bincount(same, weights=ratio) / np.bincount(same))[same]
    most = np.sqrt(m) * ratio.mean() if clip is None else clip
    return np.minimum(ratio, most)


def _linear() -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def importance_weighted(source_validation_losses: Floats, weights: Floats) -> float:
    """Negative mean of weighted source losses: an estimate of the target's risk under covariate shift.

    Parameters
    ----------
    source_validation_losses
        Of the model, such as 0 or 1 or a log loss, ``[m]``.
    weights
        From `density_ratio`, ``[m]``.

    References
    ----------
    Sugiyama, Krauledat and Müller (2007), "Covariate shift adaptation by importance weighted cross validation":
    the mean of w(x_i) l_i.
    """
    losses, weights = _losses(source_validation_losses, weights)
    return -float((weights * losses).mean())


def dev(source_validation_losses: Floats, weights: Floats) -> float:
    """Deep embedded validation: the importance-weighted risk with the weights as its control variate, negated.

    eta = -Cov(w l, w) / Var(w); risk = mean(w l) + eta mean(w) - eta. Features must be those of the model that is judged.

    References
    ----------
    You et al. (2019), "Towards accurate model selection in deep unsupervised domain adaptation", algorithm 1.
    """
    losses, weights = _losses(source_validation_losses, weights)
    weighted, spread = weights * losses, float(weights.var())
    eta = (
        -float(((weighted - weighted.mean()) * (weights - weights.mean())).mean()) / spread if spread else 0.0
    )
    return -float(weighted.mean() + eta * weights.mean() - eta)


def ensemble_rank(scores_by_name: Mapping[str, NDArray[np.float64]]) -> Floats:
    """Average the ranks that each score gives the models: 1 is best, so here the smaller, the better.

    Equal scores share their ranks; a model without a finite score has the last ones.

    Parameters
    ----------
    scores_by_name
        For each score, its value of each model, ``[models]``, the larger the better.

    Returns
    -------
    float64 ``[models]``

    Raises
    ------
    ValueError
        If there are no scores, or they are of different numbers of models.
    """
    rows = [np.asarray(scores, np.float64) for scores in scores_by_name.values()]
    if not rows or any(row.shape != rows[0].shape or row.ndim != 1 for row in rows):
        shapes = {name: np.shape(scores) for name, scores in scores_by_name.items()}
        raise ValueError(f"each score needs one value a model; got {shapes}")
    table = np.stack(rows)
    return np.asarray(rankdata(-np.where(np.isfinite(table), table, -np.inf), axis=1).mean(axis=0))


def mean_ranks(scores: Mapping[str, Sequence[float]]) -> list[float]:
    """Return each model's mean rank, 1 for the best: over the scores of each family, then over the families.

    One family looks at labels of the source, one at how sure answers are on the target, which some methods train for. Where there
    are several source domains, a third one is the score with each of them in the target's place (Gulrajani and Lopez-Paz 2021,
    "In search of lost domain generalization", section 3).

    Parameters
    ----------
    scores
        Score to a value a model.
    """
    families: dict[str, dict[str, Floats]] = {}
    for name, values in scores.items():
        family = name if name == LEFT_OUT else "source" if name in BY_SOURCE_LABELS else "target"
        families.setdefault(family, {})[name] = np.asarray(values, np.float64)
    return [float(r) for r in np.mean([ensemble_rank(of) for of in families.values()], axis=0)]


def selection_scores(
    target_probabilities: Floats | None,
    target_features: Floats,
    source_validation_losses: Floats,
    source_validation_features: Floats,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Return all scores of a model.

    Parameters
    ----------
    target_probabilities
        ``[n, K]``; None where the task has no classes, for importance weighting and DEV alone.
    target_features, source_validation_features
        What its last layer reads, ``[n, d]`` and ``[m, d]``; by them the domains are told apart.
    source_validation_losses
        1 for a wrong decision, where there are classes, ``[m]``.
    """
    weights = density_ratio(source_validation_features, target_features, seed=seed)
    found = {
        "importance_weighted": importance_weighted(source_validation_losses, weights / weights.mean()),
        "dev": dev(source_validation_losses, weights),
    }
    if target_probabilities is not None:
        for score in (entropy, bnm, corr_c):
            found[score.__name__] = score(target_probabilities)
        found["snd"] = snd(target_probabilities, seed=seed)
    return found


def _probabilities(values: Floats) -> Floats:
    p = np.asarray(values, np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or not len(p):
        raise ValueError(f"probabilities are [n, K] with K of at least 2 and at least one row; got {p.shape}")
    if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities are at least 0 and sum to 1 in each row")
    return p


def _losses(losses: Floats, weights: Floats) -> tuple[Floats, Floats]:
    losses, weights = np.asarray(losses, np.float64), np.asarray(weights, np.float64)
    if losses.shape != weights.shape or losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses and weights are one of each a row; got {losses.shape} and {weights.shape}")
    return losses, weights
