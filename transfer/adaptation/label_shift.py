"""How common classes are in the target, and what source rows of each should weigh: black-box shift estimation.

Shape legend: n labelled source rows that the model did not learn from, m target rows, K classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from shoal.cluster.errors import DataError

Floats = NDArray[np.float64]
WORST_CONDITION = 1e4  # of the confusion matrix, beyond which nothing is estimated
_STREAM = 73  # of the draws


@dataclass(frozen=True)
class LabelShift:
    """Estimated shares of the classes in the target.

    Attributes
    ----------
    weights
        What source rows of each class weigh: its share in the target over that in the source; mean 1 over source rows, ``[K]``.
    source, target
        Shares of the classes, ``[K]``.
    low, high
        Of an interval of the target's, ``[K]``.
    condition
        Of the confusion matrix.
    """

    weights: tuple[float, ...]
    source: tuple[float, ...]
    target: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    condition: float


def label_shift(
    labels: NDArray[np.int64],
    known: Floats,
    new: Floats,
    shares: Floats,
    *,
    soft: bool = True,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> LabelShift:
    """Estimate class shares in the target, where each class looks the same in both domains and is only more or less common.

    Solves C w = mu for w >= 0, where C[i, j] is the mean, over source rows, of the prediction of class i times being of class j,
    and mu[i] that prediction's mean over target rows (Lipton, Wang and Smola 2018, "Detecting and correcting for label shift with
    black box predictors", equations 5 and 6 and section 3).

    Parameters
    ----------
    labels, known
        Classes ``[n]`` and the model's probabilities ``[n, K]`` of source rows.
    new
        Its probabilities of target rows, ``[m, K]``.
    shares
        Of the classes among the source's training rows, ``[K]``.
    soft
        Whether predictions are probabilities; otherwise decisions.
    confidence, replicates, seed
        Of the percentile bootstrap over both.

    Raises
    ------
    DataError
        If the model hardly tells classes apart, so that nothing can be estimated.
    """
    k = known.shape[1]
    if not soft:
        known, new = (np.eye(k)[p.argmax(1)] for p in (known, new))
    onehot = np.eye(k)[labels]

    def solved(rows: NDArray[np.int64], others: NDArray[np.int64]) -> tuple[Floats, float]:
        confusion = known[rows].T @ onehot[rows] / len(rows)
        own = onehot[rows].mean(0)
        conditional = confusion / np.maximum(
            own, 1e-12
        )  # of the prediction, given the class: columns sum to 1
        condition = float(np.linalg.cond(conditional))
        target, _ = nnls(conditional, new[others].mean(0))
        return (target / target.sum() if target.sum() > 0 else own), condition

    everyone, all_new = np.arange(len(labels)), np.arange(len(new))
    target, condition = solved(everyone, all_new)
    if (onehot.sum(0) == 0).any() or not condition < WORST_CONDITION:
        raise DataError(
            f"class shares of the target cannot be estimated: the source's model tells classes apart too badly on held-out rows "
            f"(condition number {condition:.2g}, at most {WORST_CONDITION:g}), or one has no such row; train a better model, or "
            "hold more rows out"
        )
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAM,))))
    strata = [np.flatnonzero(labels == j) for j in range(k)]
    drawn = []
    for _ in range(replicates):
        rows = np.concatenate([draws.choice(s, len(s)) for s in strata])
        drawn.append(solved(rows, draws.integers(len(new), size=len(new)))[0])
    low, high = np.percentile(drawn, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)
    weights = target / np.maximum(shares, 1e-12)
    return LabelShift(
        tuple(weights.tolist()),
        tuple(shares.tolist()),
        tuple(target.tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
        condition,
    )
