"""Metrics as functions of sums over rows, vectorised over any leading axes.

Each ``*_sums`` function turns rows into sums ``[G, q]``; each other one turns sums ``[..., q]`` and the form
of the task (binary, multiclass, multilabel, regression) into values ``[...]``, NaN where it is undefined.
"""

from typing import NamedTuple

import numpy as np

from shoal.evaluation.tallies import Floats, Rows, log_losses, ratio, squared_distances


class Decisions(NamedTuple):
    """The parts of a decision tally: weights ``[..., K]`` by class and ``[...]`` over all rows."""

    hits: Floats
    predicted: Floats
    actual: Floats
    right: Floats
    total: Floats


def decisions(sums: Floats) -> Decisions:
    """Take a decision tally ``[..., 3 * K + 2]`` apart."""
    k = (sums.shape[-1] - 2) // 3
    hits, predicted, actual = (sums[..., i * k : (i + 1) * k] for i in range(3))
    return Decisions(hits, predicted, actual, sums[..., -2], sums[..., -1])


def accuracy(sums: Floats, _form: str) -> Floats:
    """Share of rows that are right; for multi-label, right in every label."""
    d = decisions(sums)
    return ratio(d.right, d.total)


def balanced_accuracy(sums: Floats, form: str) -> Floats:
    """Mean recall of the classes that occur (multi-label: of each label and its absence)."""
    d = decisions(sums)
    if form != "multilabel":
        return np.where((d.actual > 0).sum(axis=-1) > 1, _mean(ratio(d.hits, d.actual)), np.nan)
    others = d.total[..., None] - d.actual
    return _mean((ratio(d.hits, d.actual) + ratio(others - d.predicted + d.hits, others)) / 2)


def f1(sums: Floats, form: str) -> Floats:
    """Harmonic mean of precision and recall."""
    d = decisions(sums)
    return _event_or_macro(d, form, ratio(2 * d.hits, d.predicted + d.actual, empty=0.0))


def precision(sums: Floats, form: str) -> Floats:
    """Share of the predicted events that are events; 0 where none is predicted."""
    d = decisions(sums)
    return _event_or_macro(d, form, ratio(d.hits, d.predicted, empty=0.0))


def recall(sums: Floats, form: str) -> Floats:
    """Share of the events that are predicted."""
    d = decisions(sums)
    return _event_or_macro(d, form, ratio(d.hits, d.actual, empty=0.0))


def mcc(sums: Floats, form: str) -> Floats:
    """Matthews correlation, 0 for constant predictions; multi-class by Gorodkin's R_K.

    References
    ----------
    Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient,
    Computational Biology and Chemistry 28, equation 8.
    """
    d = decisions(sums)
    if form == "multilabel":
        n = d.total[..., None]
        bottom = np.sqrt(d.predicted * (n - d.predicted) * d.actual * (n - d.actual))
        each = ratio(d.hits * n - d.predicted * d.actual, bottom, empty=0.0)
        return _mean(np.where((d.actual > 0) & (d.actual < n), each, np.nan))
    top = d.hits.sum(axis=-1) * d.total - (d.predicted * d.actual).sum(axis=-1)
    spreads = [np.maximum(d.total**2 - (part**2).sum(axis=-1), 0.0) for part in (d.predicted, d.actual)]
    value = ratio(top, np.sqrt(spreads[0] * spreads[1]), empty=0.0)
    return np.where((d.actual > 0).sum(axis=-1) > 1, value, np.nan)


def log_loss_sums(rows: Rows) -> Floats:
    """Sum the losses and the weights: ``[G, 2]``."""
    return np.stack([rows.total(log_losses(rows.y, rows.scores)), rows.total()], axis=1)


def brier_sums(rows: Rows) -> Floats:
    """Sum the squared distances and the weights: ``[G, 2]``."""
    return np.stack([rows.total(squared_distances(rows.y, rows.scores)), rows.total()], axis=1)


def mean_of_rows(sums: Floats, _form: str) -> Floats:
    """Divide the sum by the weight."""
    return ratio(sums[..., 0], sums[..., 1])


def cost_sums(rows: Rows) -> Floats:
    """Sum the costs of the decisions, those of the best constant decision, and the weights: ``[G, 3]``."""
    costs = rows.rule.costs
    assert costs is not None
    parts = [costs.of(rows.y, decided, rows.amounts) for decided in (rows.decisions, rows.rule.constant)]
    return np.stack([*(rows.total(part) for part in parts), rows.total()], axis=1)


def expected_cost(sums: Floats, _form: str) -> Floats:
    """Mean cost of a row's decision."""
    return ratio(sums[..., 0], sums[..., 2])


def savings(sums: Floats, _form: str) -> Floats:
    """Share of the constant decision's cost that is saved; NaN where that costs nothing, or is a benefit."""
    return np.where(sums[..., 1] > 0, 1 - ratio(sums[..., 0], np.maximum(sums[..., 1], 0.0)), np.nan)


def residual_sums(rows: Rows) -> Floats:
    """Sum |e|, e^2, (y - c), (y - c)^2 and weights ``[G, 5]``; c, the mean, keeps the variance exact."""
    error, offset = rows.scores - rows.y, rows.y - float(np.mean(rows.y))
    parts = (np.abs(error), error**2, offset, offset**2)
    return np.stack([*(rows.total(part) for part in parts), rows.total()], axis=1)


def mae(sums: Floats, _form: str) -> Floats:
    """Mean absolute error."""
    return ratio(sums[..., 0], sums[..., 4])


def rmse(sums: Floats, _form: str) -> Floats:
    """Root mean squared error."""
    return np.sqrt(ratio(sums[..., 1], sums[..., 4]))


def r2(sums: Floats, _form: str) -> Floats:
    """Coefficient of determination, against the mean of the same rows; NaN for constant labels."""
    spread = sums[..., 3] - ratio(sums[..., 2] ** 2, sums[..., 4])
    return np.where(spread > 0, 1 - ratio(sums[..., 1], np.maximum(spread, 0.0)), np.nan)


def _event_or_macro(d: Decisions, form: str, values: Floats) -> Floats:
    """Binary: the event's value, NaN without events. Otherwise the mean over classes true or predicted."""
    if form == "binary":
        return np.where(d.actual[..., 1] > 0, values[..., 1], np.nan)
    return _mean(np.where(d.actual + d.predicted > 0, values, np.nan))


def _mean(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))
