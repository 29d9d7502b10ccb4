"""Counts and sums that metrics are made of, for one data set or for every bootstrap replicate at once.

Shapes: n rows, K classes or labels, G groups of rows, m distinct score levels; ``...`` stands for any
leading axes (none for the exact value, the replicates for an interval).

A decision tally is ``[..., 3 * K + 2]``: hits, predicted and actual weight of each class, then the weight
of rows that are right altogether and of all rows.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.deciding.costs import USUAL, Rule
from shoal.training.costs import Amounts

Floats = NDArray[np.float64]
Array = NDArray[Any]

TINY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Rows:
    """Labels and scores of n rows, dealt into groups whose sums a metric asks for.

    Parameters
    ----------
    y
        int64 ``[n]`` class index (binary: 1 is the event), ``[n, K]`` of 0 and 1 for multi-label, or
        float64 ``[n]`` in raw units for regression.
    scores
        float64 ``[n]`` probability of the event (binary) or prediction (regression), ``[n, K]``
        probabilities otherwise.
    rule
        Which class is decided, and what that costs.
    weights
        float64 ``[n]``, None for 1 each.
    groups
        int64 ``[n]`` in 0 … n_groups - 1, None for one group of all rows.
    amounts
        Cost column -> float64 ``[n]``, of those that the rule needs.
    """

    y: Array
    scores: Floats
    rule: Rule = USUAL
    weights: Floats | None = None
    groups: NDArray[np.int64] | None = None
    n_groups: int = 1
    amounts: Amounts = field(default_factory=dict)

    def total(self, values: Array | None = None) -> Floats:
        """Sum values ``[n]`` (None: 1 each) within each group, weighted: float64 ``[G]``."""
        weighted = self.weights if values is None else values
        if values is not None and self.weights is not None:
            weighted = values * self.weights
        if self.groups is None:
            return np.array([float(len(self.y)) if weighted is None else float(weighted.sum())])
        return np.bincount(self.groups, weights=weighted, minlength=self.n_groups).astype(np.float64)

    def count(self, codes: NDArray[np.int64], size: int, keep: NDArray[np.bool_] | None = None) -> Floats:
        """Weight of each code 0 … size - 1 within each group, of the rows to keep: float64 ``[G, size]``."""
        cell = codes if self.groups is None else self.groups * size + codes
        weights = self.weights
        if keep is not None:
            cell, weights = cell[keep], None if weights is None else weights[keep]
        counts = np.bincount(cell, weights=weights, minlength=self.n_groups * size)
        return counts.astype(np.float64).reshape(self.n_groups, size)

    @property
    def multilabel(self) -> bool:
        """Whether each row has K labels of its own."""
        return self.y.ndim == 2

    @property
    def n_classes(self) -> int:
        """K; 2 for binary."""
        return self.scores.shape[1] if self.scores.ndim == 2 else 2

    @property
    def decisions(self) -> NDArray[np.int64]:
        """The decided class ``[n]``, or 0 and 1 ``[n, K]`` for multi-label."""
        if self.multilabel:
            return np.asarray(self.scores >= self.rule.decision.threshold, dtype=np.int64)
        return self.rule.decision.classes(self.scores, self.amounts)


def decision_tally(rows: Rows) -> Floats:
    """Hits, predicted and actual weight of each class, then right and all rows: ``[G, 3 * K + 2]``."""
    predicted, k = rows.decisions, rows.n_classes
    if rows.multilabel:
        actual = rows.y > 0.5
        chosen = predicted > 0
        parts = [
            np.stack([rows.total((mask[:, j]).astype(np.float64)) for j in range(k)], axis=1)
            for mask in (actual & chosen, chosen, actual)
        ]
        whole = rows.total((actual == chosen).all(axis=1).astype(np.float64))
        return np.concatenate([*parts, whole[:, None], rows.total()[:, None]], axis=1)
    hit = predicted == rows.y
    hits = rows.count(predicted, k, hit)
    both = [rows.count(predicted, k), rows.count(rows.y, k)]
    return np.concatenate([hits, *both, hits.sum(axis=1, keepdims=True), rows.total()[:, None]], axis=1)


def log_losses(y: Array, scores: Floats) -> Floats:
    """Negative log-likelihood of each row, ``[n]`` in nats; the mean over labels for multi-label."""
    clipped = np.clip(scores, TINY, 1 - TINY)
    if y.ndim == 2:
        event = y > 0.5
        return np.asarray(-np.log(np.where(event, clipped, 1 - clipped)).mean(axis=1))
    if scores.ndim == 2:
        return np.asarray(-np.log(clipped[np.arange(len(y)), y]))
    return -np.log(np.where(y == 1, clipped, 1 - clipped))


def squared_distances(y: Array, scores: Floats) -> Floats:
    """Brier score of each row, ``[n]``: (p - y)^2; summed over classes, averaged over labels."""
    if y.ndim == 2:
        return np.asarray(((scores - y) ** 2).mean(axis=1))
    if scores.ndim == 2:
        own = scores[np.arange(len(y)), y]
        return np.asarray(np.einsum("ij,ij->i", scores, scores) + 1 - 2 * own)
    return np.asarray((scores - y) ** 2)


def score_levels(scores: Floats) -> tuple[NDArray[np.int64], int]:
    """Rank of each score among the distinct ones, 0 the lowest: (int64 ``[n]``, m)."""
    order = np.argsort(scores)
    ranked = scores[order]
    step = np.empty(len(scores), dtype=np.int64)
    step[:1] = 0
    np.not_equal(ranked[1:], ranked[:-1], out=step[1:], casting="unsafe")
    rank = np.cumsum(step)
    level = np.empty_like(rank)
    level[order] = rank
    return level, int(rank[-1]) + 1 if len(rank) else 0


def rank_tally(
    events: NDArray[np.bool_], scores: Floats, weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Weight of events and of non-events at each distinct score, lowest first: two float64 ``[m]``."""
    level, m = score_levels(scores)
    w = np.ones(len(scores)) if weights is None else weights
    total = np.bincount(level, weights=w, minlength=m).astype(np.float64)
    hits = np.bincount(level, weights=w * events, minlength=m).astype(np.float64)
    return hits, total - hits


def area_under_roc(events: Floats, others: Floats) -> Floats:
    """Area under the ROC curve of tallies ``[..., m]`` by score level, lowest first: ``[...]``.

    The probability that an event scores above a non-event, ties counted half (Mann-Whitney). NaN
    where there are no events or no others.
    """
    below = np.cumsum(others, axis=-1) - 0.5 * others
    pairs = events.sum(axis=-1) * others.sum(axis=-1)
    return ratio(np.einsum("...m,...m->...", events, below), pairs)


def average_precision(events: Floats, others: Floats) -> Floats:
    """Average precision of tallies ``[..., m]`` by score level, lowest first: ``[...]``.

    The sum over levels of precision times the rise in recall, without interpolation, as in
    `sklearn.metrics.average_precision_score`. NaN where there are no events.
    """
    hits = np.cumsum(events[..., ::-1], axis=-1)[..., ::-1]
    called = hits + np.cumsum(others[..., ::-1], axis=-1)[..., ::-1]
    precision = ratio(hits, called, empty=0.0)
    return ratio(np.einsum("...m,...m->...", events, precision), events.sum(axis=-1))


def ratio(top: Floats, bottom: Floats, empty: float = np.nan) -> Floats:
    """Divide, giving `empty` where the divisor is 0."""
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    blank = np.full(np.broadcast(top, bottom).shape, empty)
    return np.asarray(np.divide(top, bottom, out=blank, where=bottom != 0))
