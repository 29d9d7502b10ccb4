"""Intervals of metrics: what a value would be on other rows of the same kind.

Percentile bootstrap, stratified by the true class: percentiles stay inside the metric's range and do not
depend on its scale, which the basic bootstrap does not offer. The share of each class is held as it is
among the rows. Rows are taken as independent.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.deciding.costs import USUAL, Rule
from shoal.evaluation.formulas import decisions
from shoal.evaluation.influence import average_precision_influence, roc_auc_influence, standard_error
from shoal.evaluation.metrics import Metric, as_rows, one_against_rest
from shoal.evaluation.resampling import (
    deal,
    replicate_columns,
    replicate_ranks,
    replicate_sums,
    strata_of,
)
from shoal.evaluation.tallies import Array, Floats, Rows, decision_tally, rank_tally
from shoal.training.costs import NO_AMOUNTS, Amounts

PERCENTILE = "percentile bootstrap"
STRATIFIED = "percentile bootstrap, stratified by class"
JACKKNIFE = "infinitesimal jackknife, logit scale"
EXACT = "Clopper-Pearson bound of an error-free result"

# n x K x R up to which rows are drawn for the ranks of several classes; more takes too long.
ROW_DRAWS = 1e7
_INFLUENCE = {"roc_auc": roc_auc_influence, "average_precision": average_precision_influence}
_SUMS, _RANKS = 1, 2


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; NaN with a reason where there is none."""

    value: float
    low: float
    high: float
    method: str
    replicates: int
    n: int
    reason: str = ""


def estimate(
    y: Array,
    scores: Array,
    metrics: list[Metric],
    *,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    spawn_key: tuple[int, ...] = (),
    rule: Rule = USUAL,
    amounts: Amounts = NO_AMOUNTS,
) -> dict[str, Estimate]:
    """Compute metrics with their intervals.

    Parameters
    ----------
    y, scores, rule, amounts
        As in `Metric.value`; n rows.
    confidence
        Nominal coverage, such as 0.95.
    replicates
        Bootstrap replicates.
    seed, spawn_key
        The draws are a function of these and the rows, of nothing else.

    Returns
    -------
    dict
        Metric name to estimate, in the order of `metrics`.
    """
    rows = as_rows(y, scores, rule, amounts=amounts)
    exact = {m.name: m.value(rows.y, rows.scores, rule, amounts=amounts) for m in metrics}
    sound = [m for m in metrics if np.isfinite(exact[m.name])]
    spread = _Spread(rows, replicates, seed, spawn_key)
    found: dict[str, tuple[float, float, str]] = {}
    for metric, values in spread.of_sums([m for m in sound if m.ranks is None]):
        found[metric.name] = (*_percentiles(values, confidence, metric), spread.method)
    ranked = [m for m in sound if m.ranks is not None]
    if ranked and spread.draws_ranks:
        for metric, values in spread.of_ranks(ranked):
            found[metric.name] = (*_percentiles(values, confidence, metric), spread.method)
    elif ranked:
        for metric in ranked:
            found[metric.name] = (*spread.jackknife(metric, exact[metric.name], confidence), JACKKNIFE)
    result = {}
    for metric in metrics:
        value = exact[metric.name]
        if metric.name not in found:
            reason = metric.undefined(rows.y, rows.scores, rule, amounts)
            result[metric.name] = Estimate(value, np.nan, np.nan, "", 0, len(rows.y), reason)
            continue
        low, high, method = found[metric.name]
        if low == high == value == 1 and metric.needs in ("score", "decision"):
            low, method = _error_free(metric, rows, confidence), EXACT
        elif low == high and metric.needs == "cost" and (rows.decisions == rows.y).all():
            low, high, method = *_error_free_cost(metric, rows, confidence), EXACT
        used = 0 if method in (JACKKNIFE, EXACT) else replicates
        result[metric.name] = Estimate(value, low, high, method, used, len(rows.y))
    return result


class _Spread:
    """Replicates of metrics on one set of rows; metrics with the same sums or ranks share draws."""

    def __init__(self, rows: Rows, replicates: int, seed: int, spawn_key: tuple[int, ...]) -> None:
        self.rows, self.replicates = rows, replicates
        self.seed, self.spawn_key = seed, spawn_key
        self.strata = strata_of(rows.y)
        self.method = STRATIFIED if rows.y.ndim == 1 and rows.y.dtype.kind in "iub" else PERCENTILE

    def rng(self, what: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(*self.spawn_key, what)))

    @property
    def draws_ranks(self) -> bool:
        """Whether drawing for ranks is affordable; one score always is, by binning it."""
        return self.rows.scores.ndim == 1 or self.rows.scores.size * self.replicates <= ROW_DRAWS

    def of_sums(self, metrics: list[Metric]) -> list[tuple[Metric, Floats]]:
        if not metrics:
            return []
        rng = self.rng(_SUMS)
        groups, counts, sizes = deal(self.strata, rng)
        dealt = replace(self.rows, groups=groups, n_groups=len(sizes))
        tallies = list({id(m.tally): m.tally for m in metrics if m.tally is not None}.values())
        drawn = replicate_sums([tally(dealt) for tally in tallies], counts, sizes, self.replicates, rng)
        by_tally = dict(zip(map(id, tallies), drawn, strict=True))
        return [
            (m, m.finish(by_tally[id(m.tally)], m.form(self.rows))) for m in metrics if m.finish is not None
        ]

    def of_ranks(self, metrics: list[Metric]) -> list[tuple[Metric, Floats]]:
        rng, functions = self.rng(_RANKS), [m.ranks for m in metrics if m.ranks is not None]
        problems = list(one_against_rest(self.rows))
        if self.rows.scores.ndim == 1:
            drawn = replicate_ranks(*rank_tally(*problems[0]), functions, self.replicates, rng)
        else:
            drawn = replicate_columns(problems, self.strata, functions, self.replicates, rng)
        return list(zip(metrics, drawn, strict=True))

    def jackknife(self, metric: Metric, value: float, confidence: float) -> tuple[float, float]:
        """Interval by the rows' summed influence over classes, on the logit scale."""
        problems = list(one_against_rest(self.rows))
        influence = np.zeros(len(self.rows.y))
        for events, scores in problems:
            influence += _INFLUENCE[metric.name](events, scores) / len(problems)
        if not 0 < value < 1:
            return value, value
        error = standard_error(influence, self.strata) / (value * (1 - value))
        half = NormalDist().inv_cdf((1 + confidence) / 2) * error
        low, high = 1 / (1 + np.exp(-np.log(value / (1 - value)) + np.array([half, -half])))
        return float(low), float(high)


def _percentiles(values: Floats, confidence: float, metric: Metric) -> tuple[float, float]:
    known: NDArray[np.float64] = values[np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.clip(np.quantile(known, [tail, 1 - tail]), *metric.limits)
    return float(low), float(high)


def _error_free(metric: Metric, rows: Rows, confidence: float) -> float:
    """Lowest success rate under which no error among n rows has probability (1 - confidence) / 2.

    n is all rows for accuracy, the predicted events for precision and the true ones for recall (the fewest of any class where
    these are averages). Otherwise it is the rarest class, as if each of its rows were one trial.

    References
    ----------
    Clopper and Pearson (1934), Biometrika 26.
    """
    if metric.name == "accuracy":
        n = float(len(rows.y))
    elif metric.name in ("precision", "recall"):
        counted = decisions(decision_tally(rows))
        of_class = (counted.predicted if metric.name == "precision" else counted.actual)[0]
        n = float(of_class[1] if metric.form(rows) == "binary" else of_class[of_class > 0].min())
    else:
        events = [float(min(e.sum(), (~e).sum())) for e, _ in one_against_rest(rows)]
        n = min(events, default=1.0)
    return float(((1 - confidence) / 2) ** (1 / n))


def _error_free_cost(metric: Metric, rows: Rows, confidence: float) -> tuple[float, float]:
    """Return the interval of a cost or of savings without an error, as if each class had as many errors as fit none in its rows.

    Each of these errors is the dearest of its row; the rates are those of Clopper and Pearson (1934).
    """
    costs, y = rows.rule.costs, rows.y
    assert costs is not None
    rates = 1 - ((1 - confidence) / 2) ** (1 / np.maximum(np.bincount(y, minlength=rows.n_classes), 1))
    each = [np.broadcast_to(costs.of(y, k, rows.amounts), y.shape) for k in range(rows.n_classes)]
    own = costs.of(y, y, rows.amounts)
    right = float(own.mean())
    worst = right + float((rates[y] * (np.max(each, axis=0) - own)).mean())
    if metric.name == "expected_cost":
        return right, worst
    without = float(each[rows.rule.constant].mean())
    return 1 - worst / without, 1 - right / without
