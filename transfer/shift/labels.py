"""How common each class is in the target, from a model's predictions there: black box shift estimation.

It rests on one assumption, label shift: the classes differ in how common they are, and not in what their rows look like. Then the
mean prediction in the target is that of each class in the source, mixed by the target's shares; the shares follow by solving
for them. `LabelShift.misfit` says how far the target's scores are from what the assumption would make of them.

Shapes: m source validation rows, n target rows, K classes.

References
----------
Lipton, Wang and Smola (2018), "Detecting and correcting for label shift with black box predictors": w = C^-1 mu of the joint
confusion matrix C and the target's mean prediction mu (BBSE), and the test that predictions are distributed alike (BBSD).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstwobign

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.hashing import generator
from shoal.cluster.sharding.names import listed, plural
from shoal.transfer.content import Ints, content_keys, draw
from shoal.transfer.shift.columns import categories_differ, holm, numbers_differ
from shoal.transfer.shift.domains import Floats

MOST_CONDITION = 50.0  # errors of the mean prediction grow up to that much
_STREAM = 89  # of the draws
_GROUPS = 2048  # of rows, that are drawn one by one


@dataclass(frozen=True)
class LabelShift:
    """The target's classes, estimated.

    Attributes
    ----------
    source, target
        Shares of the classes, ``[K]``; the target's are NaN where `reason` is not empty.
    low, high
        Percentile bootstrap interval of each target share, ``[K]``.
    weights
        target / source, ``[K]``: the weight of a source row of each class.
    condition
        Condition number of the confusion matrix whose columns are P(prediction | class).
    p_value
        Of the test that predictions are distributed alike in both domains (Holm over classes where they are soft); what makes it
        small is a shift of some kind.
    distance, distance_low, distance_high
        Total variation distance of the two shares, with its interval; it is above 0 by chance, too.
    misfit, misfit_p
        The largest Kolmogorov-Smirnov distance, over classes, between the target's scores and the source's weighted by `weights`,
        and an approximate p-value: small means that label shift alone does not explain the target.
    soft
        Whether probabilities were averaged, rather than decisions.
    reason
        Why there is no estimate.
    """

    source: Floats
    target: Floats
    low: Floats
    high: Floats
    weights: Floats
    condition: float
    p_value: float
    distance: float
    distance_low: float
    distance_high: float
    misfit: float
    misfit_p: float
    soft: bool
    reason: str = ""

    @property
    def seen(self) -> bool:
        """Whether some class's interval leaves out its share in the source, at 5 % for all classes together by the test."""
        outside = (self.low > self.source) | (self.high < self.source)
        return not self.reason and self.p_value < 0.05 and bool(outside.any())


def confusion(predicted: NDArray[np.generic], labels: Ints, n_classes: int, *, soft: bool) -> Floats:
    """Return P(prediction i | class j) of labelled rows, float64 ``[K, K]``; the column of a class without rows is NaN.

    Parameters
    ----------
    predicted
        Probabilities ``[m, K]``; with ``soft=False`` the likelier class counts as 1.
    """
    columns = _indicators(predicted, soft)
    with np.errstate(invalid="ignore"):
        return np.stack(
            [columns[labels == j].sum(axis=0) / (labels == j).sum() for j in range(n_classes)], axis=1
        )


def class_weights(
    confusion: Floats, source: Floats, predicted: Floats, *, most_condition: float = MOST_CONDITION
) -> Floats:
    """Solve for how common each class is in the target, over how common it is in the source.

    With C = P(prediction | class), p the source's shares and mu the target's mean prediction, C diag(p) w = mu; w is clipped at 0
    and scaled so that p w sums to 1.

    Parameters
    ----------
    confusion
        float64 ``[K, K]``, columns sum to 1.
    source, predicted
        Shares of the classes in the source, and mean prediction of the target, ``[K]``.

    Returns
    -------
    float64 ``[K]``

    Raises
    ------
    DataError
        If a class has no source rows, or the matrix is close to singular.
    """
    if reason := _unusable(confusion, source, most_condition):
        raise DataError(reason)
    return np.asarray(_shares(confusion[None], predicted[None])[0] / source)


def estimate_label_shift(
    source_probabilities: Floats,
    source_labels: Ints,
    target_probabilities: Floats,
    *,
    soft: bool = True,
    classes: Sequence[object] | None = None,
    most_condition: float = MOST_CONDITION,
    confidence: float = 0.95,
    replicates: int = 500,
    seed: int = 0,
) -> LabelShift:
    """Estimate the target's class shares.

    Parameters
    ----------
    source_probabilities, source_labels
        Of source rows that the model was not fitted to, ``[m, K]`` and ``[m]``.
    target_probabilities
        ``[n, K]``
    soft
        Average probabilities (less noise) or decisions.
    classes
        Names, for messages.
    most_condition
        Of the confusion matrix; beyond it there is a reason in the place of an estimate.
    confidence, replicates, seed
        Of the bootstrap over both sets of rows, by class in the source.

    Raises
    ------
    ValueError
        If shapes do not go together, or there are no rows.
    """
    k = _require(source_probabilities, source_labels, target_probabilities)
    order = draw(content_keys(source_probabilities, source_labels, seed=seed))
    known, labels = _indicators(source_probabilities[order], soft), source_labels[order]
    new_scores = target_probabilities[draw(content_keys(target_probabilities, seed=seed))]
    new = _indicators(new_scores, soft)
    counts = np.bincount(labels, minlength=k)
    source = counts / counts.sum()
    c = confusion(source_probabilities[order], labels, k, soft=soft)
    reason = _unusable(c, source, most_condition, classes)
    condition = float(np.linalg.cond(c)) if np.isfinite(c).all() else np.inf
    p_value = _differ(source_probabilities[order], new_scores, soft)
    if reason:
        nan = np.full(k, np.nan)
        return LabelShift(
            source,
            nan,
            nan,
            nan,
            nan,
            condition,
            p_value,
            np.nan,
            np.nan,
            np.nan,
            np.nan,
            np.nan,
            soft,
            reason,
        )
    target = _shares(c[None], new.mean(axis=0)[None])[0]
    rng = generator(seed, _STREAM)
    by_class = [_means(known[labels == j], replicates, rng) for j in range(k)]
    drawn = _shares(np.stack(by_class, axis=2), _means(new, replicates, rng))
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(drawn, ends, axis=0)
    far = np.quantile(np.abs(drawn - source).sum(axis=1) / 2, ends)
    misfit, misfit_p = _misfit(source_probabilities[order], (target / source)[labels], new_scores)
    distance = float(np.abs(target - source).sum() / 2)
    return LabelShift(
        source, target, low, high, target / source, condition, p_value, distance, float(far[0]), float(far[1]),
        misfit, misfit_p, soft,
    )  # fmt: skip


def _require(source: Floats, labels: Ints, target: Floats) -> int:
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1] or source.shape[1] < 2:
        raise ValueError(
            f"probabilities are [rows, K] with K of at least 2 in both domains; got {source.shape}, {target.shape}"
        )
    if len(labels) != len(source) or not len(source) or not len(target):
        raise ValueError(
            f"{len(source)} source rows with {len(labels)} labels, {len(target)} target rows; each needs some"
        )
    if labels.min() < 0 or labels.max() >= source.shape[1]:
        raise ValueError(f"labels are 0 to {source.shape[1] - 1}; got {labels.min()} to {labels.max()}")
    return int(source.shape[1])


def _unusable(c: Floats, source: Floats, most: float, classes: Sequence[object] | None = None) -> str:
    """Return why the target's shares cannot be solved for; empty where they can."""
    if absent := np.flatnonzero(source == 0).tolist():
        names = listed(repr(classes[j]) if classes is not None else j for j in absent)
        what = plural(len(absent), "class")
        return f"{what} without validation rows of the source ({names}): how a model takes these is not known"
    condition = float(np.linalg.cond(c))
    if not condition <= most:
        return (
            f"the confusion matrix is close to singular (condition number {condition:,.3g}; at most {most:g} is taken): the "
            "model hardly tells some classes apart on source rows, so their shares in the target cannot be told either"
        )
    return ""


def _indicators(probabilities: NDArray[np.generic], soft: bool) -> Floats:
    values = np.asarray(probabilities, np.float64)
    return values if soft else np.eye(values.shape[1])[values.argmax(axis=1)]


def _shares(c: Floats, mean: Floats) -> Floats:
    """Solve C q = mu for each of R replicates, clip at 0 and scale to sum 1: ``[R, K, K]``, ``[R, K]`` to ``[R, K]``."""
    with np.errstate(all="ignore"):
        solved = (np.linalg.pinv(c) @ mean[..., None])[..., 0]  # a draw may be singular
    clipped = np.maximum(solved, 0)
    return np.asarray(clipped / clipped.sum(axis=1, keepdims=True))


def _means(rows: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    """Bootstrap the mean of rows ``[n, K]``, which are in an order at random: ``[R, K]``.

    Of many rows, groups of consecutive ones are drawn: their mean has the same expected variance.
    """
    starts = np.arange(0, len(rows), -(-len(rows) // _GROUPS))
    sums, sizes = np.add.reduceat(rows, starts), np.diff(starts, append=len(rows))
    weights = rng.multinomial(len(starts), np.full(len(starts), 1 / len(starts)), size=replicates)
    return np.asarray(weights @ sums / (weights @ sizes)[:, None])


def _differ(source: Floats, target: Floats, soft: bool) -> float:
    """Test whether predictions are distributed alike: decisions by chi-square, each class's scores by KS."""
    if not soft:
        return categories_differ(source.argmax(axis=1), target.argmax(axis=1))[1]
    scores = range(1 if source.shape[1] == 2 else source.shape[1])  # of two classes, one says all
    return float(holm([numbers_differ(source[:, j], target[:, j])[1] for j in scores]).min())


def _misfit(source: Floats, weights: Floats, target: Floats) -> tuple[float, float]:
    """Compare weighted source scores with target scores, class by class; of weighted rows, the effective number counts."""
    m = float(weights.sum() ** 2 / (weights**2).sum())
    effective = np.sqrt(m * len(target) / (m + len(target)))
    scores = range(1 if source.shape[1] == 2 else source.shape[1])
    distances = [weighted_distance(source[:, j], weights, target[:, j]) for j in scores]
    return max(distances), float(holm([kstwobign.sf(effective * d) for d in distances]).min())


def weighted_distance(source: Floats, weights: Floats, target: Floats) -> float:
    """Return the largest distance between two distribution functions, the first of weighted rows."""
    order, ordered = np.argsort(source, kind="stable"), np.sort(target)
    sums = np.concatenate([[0.0], np.cumsum(weights[order]) / weights.sum()])
    at = np.concatenate([source, target])
    ours = sums[np.searchsorted(source[order], at, side="right")]
    theirs = np.searchsorted(ordered, at, side="right") / len(ordered)
    return float(np.abs(ours - theirs).max())
