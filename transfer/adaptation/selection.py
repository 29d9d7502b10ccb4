"""Scores of a model for a target domain without its labels, the higher the better; none of them is an accuracy.

Shape legend: n target rows, m held-out source rows with labels, K classes, F numbers a row at the model's last layer.

A single one can be ruinous (for some methods it rewards collapse), so `mean_ranks` joins them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from shoal.transfer.adaptation.density import density_ratio

Floats = NDArray[np.float64]
BY_SOURCE_LABELS = ("importance_weighted", "dev")
BLOCK = 1024  # rows whose similarities to all others are held at once


def entropy(probabilities: Floats) -> float:
    """Return the negative mean entropy of the answers ``[n, K]`` (Morerio et al. 2018, section 3.3)."""
    p = np.clip(probabilities, 1e-12, 1.0)
    return float((p * np.log(p)).sum(1).mean())


def bnm(probabilities: Floats) -> float:
    """Return the nuclear norm of the answers ``[n, K]`` over n: sure and diverse (Cui et al. 2020, equation 9)."""
    return float(np.linalg.svd(probabilities, compute_uv=False).sum() / len(probabilities))


def corr_c(probabilities: Floats) -> float:
    """Return how near the answers ``[n, K]`` are to no correlation between classes: the trace of P'P over its Frobenius norm.

    Tu, Deng, Gedeon and Zheng (2023), "Assessing model out-of-distribution generalization with softmax prediction probability".
    """
    correlation = probabilities.T @ probabilities
    return float(np.trace(correlation) / np.linalg.norm(correlation))


def snd(probabilities: Floats, temperature: float = 0.05) -> float:
    """Return the soft neighbourhood density (Saito et al. 2021, equations 1 and 2): the mean entropy of each row's similarities.

    Similarities are of answers ``[n, K]`` divided by their norms, over a temperature, without the row itself; in blocks, so that
    memory is bounded.
    """
    unit = probabilities / np.linalg.norm(probabilities, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(unit), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(unit)))
        logits = unit[rows] @ unit.T / temperature
        logits[np.arange(len(rows)), rows] = -np.inf
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        total -= float((p * np.log(np.clip(p, 1e-300, None))).sum())
    return total / len(unit)


def importance_weighted(losses: Floats, weights: Floats) -> float:
    """Return the negative mean of held-out source losses ``[m]``, weighted by how common such rows are in the target ``[m]``.

    Sugiyama, Krauledat and Müller (2007), "Covariate shift adaptation by importance weighted cross validation", equation 7.
    """
    return -float((weights * losses).mean())


def dev(losses: Floats, weights: Floats) -> float:
    """Return deep embedded validation (You et al. 2019, equations 8 and 9): the same with a control variate, negative."""
    weighted = weights * losses
    spread = float(weights.var(ddof=1))
    eta = -float(np.cov(weighted, weights, ddof=1)[0, 1]) / spread if spread > 0 else 0.0
    return -(float(weighted.mean()) + eta * (float(weights.mean()) - 1.0))


def selection_scores(
    probabilities: Floats | None,
    features: NDArray[np.floating],
    source_losses: Floats,
    source_features: NDArray[np.floating],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Return all scores of a model.

    Parameters
    ----------
    probabilities
        Of target rows, ``[n, K]``; None where the task has no classes, for importance weighting and DEV alone.
    features, source_features
        What its last layer is given, ``[n, F]`` and ``[m, F]``; by them the domains are told apart.
    source_losses
        Of held-out source rows, ``[m]``: 1 for a wrong decision, where there are classes.
    """
    weights = density_ratio(source_features, features, normalised=False, seed=seed)
    found = {
        "importance_weighted": importance_weighted(source_losses, weights / weights.mean()),
        "dev": dev(source_losses, weights),
    }
    if probabilities is not None:
        found |= {
            "entropy": entropy(probabilities),
            "snd": snd(probabilities),
            "bnm": bnm(probabilities),
            "corr_c": corr_c(probabilities),
        }
    return found


def mean_ranks(scores: Mapping[str, Sequence[float]]) -> list[float]:
    """Return each model's mean rank, 1 for the best: over the scores of either family, then over the families.

    One family looks at labels of the source, the other at how sure answers are on the target, which some methods train for. Equal
    ones share their rank, NaN ranks last.

    Parameters
    ----------
    scores
        Score to a value a model.
    """
    families: dict[bool, list[Floats]] = {}
    for name, values in scores.items():
        ranked = rankdata([np.inf if np.isnan(v) else -v for v in values], method="average")
        families.setdefault(name in BY_SOURCE_LABELS, []).append(ranked)
    return [float(r) for r in np.mean([np.mean(ranks, axis=0) for ranks in families.values()], axis=0)]
