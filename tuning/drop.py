"""How much of a score is owed to having been chosen by it."""

import math
from collections.abc import Mapping
from typing import Any

from shoal.cluster.sharding.names import plural
from shoal.tuning.trials import Trial


def score_drop(
    metric: str, greater_is_better: bool, best: Trial, scores: Mapping[str, Any], confidence: float
) -> dict[str, Any] | None:
    """Return how much worse the test rows find the chosen trial than the score that it was chosen by.

    Parameters
    ----------
    metric, greater_is_better
        What trials were compared by.
    best
        The trial that was chosen.
    scores
        Of its model, as in `metrics.json`: by part and metric, ``{value, low, high}``.
    confidence
        Of the intervals.

    Returns
    -------
    dict or None
        ``chosen_by``, ``test``, ``value`` (above 0 where the test rows are worse), ``low`` and ``high``; None without a test
        score.

    Notes
    -----
    The interval of the difference d = a - b of two independent estimates is recovered from their own intervals:
    ``d - sqrt((a - a_low)^2 + (b_high - b)^2)`` to ``d + sqrt((a_high - a)^2 + (b - b_low)^2)``. Where the score that chose has
    no interval (a mean over folds), it counts as exact.

    References
    ----------
    Zou and Donner (2008), Construction of confidence limits about effect measures: a general approach, Statistics in Medicine 27,
    equation 4.
    """
    test = scores.get("test", {}).get(metric)
    if test is None or test["value"] is None or best.score is None:
        return None
    chosen = scores.get("validation", {}).get(metric) or {}
    value, low, high = (chosen.get(key) for key in ("value", "low", "high"))
    low, high = (best.score if bound is None else bound for bound in (low, high))
    # The validation rows are those that chose only where they gave the same score again.
    if value is None or not math.isclose(value, best.score, rel_tol=1e-6, abs_tol=1e-9):
        low = high = best.score
    a, b = (best.score, low, high), (test["value"], test["low"], test["high"])
    if b[1] is None:
        b = (b[0], b[0], b[0])
    if not greater_is_better:
        a, b = b, a
    difference = a[0] - b[0]
    return {
        "chosen_by": best.score,
        "test": test["value"],
        "value": difference,
        "low": difference - math.hypot(a[0] - a[1], b[2] - b[0]),
        "high": difference + math.hypot(a[2] - a[0], b[0] - b[1]),
        "confidence": confidence,
        "method": "from the intervals of both (Zou and Donner 2008)",
    }


def sentence(metric: str, chosen_by: float | None, drop: Mapping[str, Any] | None, trials: int) -> str:
    """Say what the chosen trial came to on rows that no trial saw."""
    if drop is None:
        return (
            f"the best of {plural(trials, 'trial')} has {metric} {chosen_by:.4f} by the rows that chose it, which flatter it: "
            "judge it on rows that no trial saw"
        )
    is_worse, spread = drop["value"] >= 0, (drop["low"], drop["high"])
    low, high = spread if is_worse else (-spread[1], -spread[0])
    moral = (
        "the best of several looks better than it is"
        if is_worse
        else "by chance, for the best of several looks better than it is, as a rule"
    )
    return (
        f"{metric} {drop['test']:.4f} on the test rows, which no trial saw, is {abs(drop['value']):.4f} "
        f"{'worse' if is_worse else 'better'} than the {drop['chosen_by']:.4f} by which it was chosen among "
        f"{plural(trials, 'trial')} ({100 * drop['confidence']:g} % interval {low:+.4f} to {high:+.4f}): {moral}"
    )
