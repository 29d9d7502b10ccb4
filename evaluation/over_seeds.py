"""Scores of models that differ in their seed, on the same rows, with an interval that counts rows and seeds.

Shape legend: n rows, S seeds, R replicates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from shoal.evaluation.deciding.costs import Rule
from shoal.evaluation.metrics import Metric
from shoal.evaluation.resampling import strata_of
from shoal.evaluation.tallies import Array, Floats
from shoal.training.costs import NO_AMOUNTS, Amounts

METHOD = "mean over seeds; bootstrap of rows within classes and variance over seeds, added (Welch and Satterthwaite)"
_STREAM = 89  # of the draws


def over_seeds(
    y: Array,
    models: Mapping[str, Sequence[tuple[Floats, Rule]]],
    metrics: Sequence[Metric],
    *,
    first: str,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
    amounts: Amounts = NO_AMOUNTS,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Judge several kinds of models, and how each differs from the first kind on the same rows and seeds.

    The variance of a mean over seeds is that over bootstrapped rows, the same for all, plus that over seeds divided by S; the
    degrees of freedom of Student's t follow Satterthwaite (1946), "An approximate distribution of estimates of variance
    components", where the rows' part has infinitely many.

    Parameters
    ----------
    y
        Labels, ``[n]`` or ``[n, K]``.
    models
        Of each kind, a model's scores and how it decides, a seed.
    metrics
        What is computed.
    first
        The kind that others are compared with.
    confidence, replicates, seed
        Of the intervals.
    amounts
        The rows' costs, as `Metric.value` takes them.

    Returns
    -------
    dict
        Kind to metric to ``{"value", "low", "high", "by_seed", "difference": {"value", "low", "high"}}``; None where undefined.
    """
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAM,))))
    strata = strata_of(y)
    groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    chosen = [np.concatenate([draws.choice(g, len(g)) for g in groups]) for _ in range(replicates)]

    def value(metric: Metric, one: tuple[Floats, Rule], rows: Any = slice(None)) -> float:
        own = {name: amount[rows] for name, amount in amounts.items()}
        return float(metric.value(y[rows], one[0][rows], one[1], amounts=own))

    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in models}
    for metric in metrics:
        exact = {kind: np.array([value(metric, one) for one in ones]) for kind, ones in models.items()}
        drawn = {
            kind: np.array([[value(metric, one, rows) for one in ones] for rows in chosen])
            for kind, ones in models.items()
        }
        for kind in models:
            entry = _entry(exact[kind], drawn[kind], confidence, metric.limits)
            if kind != first:
                entry["difference"] = _entry(
                    exact[kind] - exact[first], drawn[kind] - drawn[first], confidence, (-math.inf, math.inf)
                )
            found[kind][metric.name] = entry
    return found


def _entry(exact: Floats, drawn: Floats, confidence: float, limits: tuple[float, float]) -> dict[str, Any]:
    """Return the mean over seeds ``[S]`` and its interval, by replicates ``[R, S]``."""
    mean = float(exact.mean())
    if not math.isfinite(mean):
        return {
            "value": None,
            "low": None,
            "high": None,
            "by_seed": [None if math.isnan(v) else v for v in exact],
        }
    with np.errstate(invalid="ignore"):
        of_rows = float(np.nanvar(drawn.mean(1), ddof=1))
    seeds = len(exact)
    of_seeds = float(exact.var(ddof=1)) / seeds if seeds > 1 else 0.0
    total = of_rows + of_seeds
    freedom = math.inf if not of_seeds else total**2 / (of_seeds**2 / (seeds - 1))
    half = float(stats.t.ppf(0.5 + confidence / 2, min(freedom, 1e9))) * math.sqrt(total)
    low, high = np.clip((mean - half, mean + half), *limits).tolist()
    return {"value": mean, "low": low, "high": high, "by_seed": exact.tolist()}
