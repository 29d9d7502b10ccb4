"""From the facts of fits to scores over folds, and to a sentence for each alternative.

Facts of a fit are what its `metrics.json` holds: ``{"fold", "rows", "scores": {metric: value}, "seconds": {stage: s}, …}``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from shoal.evaluation.crossval.judging import METHOD, FoldEstimate, over_folds
from shoal.evaluation.metrics import METRICS

Facts = Mapping[str, Any]
_SIGNIFICANT = 0.05
_SLOWER = 1.5  # times the seconds, from which it is said


def summed_up(fits: Sequence[Facts], ratio: float, confidence: float) -> dict[str, dict[str, Any]]:
    """Return each metric over the folds of one alternative, ready for JSON."""
    found = {}
    for name in fits[0]["scores"]:
        values = _values(fits, name)
        entry = _plain(over_folds(values, ratio, confidence))
        if entry["low"] is not None:  # a t interval knows nothing of what a metric can be
            bounds = np.clip((entry["low"], entry["high"]), *METRICS[name].limits).tolist()
            entry |= {"low": bounds[0], "high": bounds[1]}
        del entry["p_value"]  # of a mean of 0, which nobody asks for
        entry |= {"method": METHOD, "by_fold": [fit["scores"][name] for fit in fits]}
        if undefined := int(np.isnan(values).sum()):
            entry["reason"] = f"undefined in {undefined} of {len(fits)} folds"
        found[name] = entry
    seconds = [sum(fit["seconds"].values()) for fit in fits]
    found["seconds"] = {"value": _seconds(fits), "low": None, "high": None, "by_fold": seconds}
    return found


def compared(
    first: Sequence[Facts],
    other: Sequence[Facts],
    first_name: str,
    name: str,
    ratio: float,
    confidence: float,
) -> dict[str, Any]:
    """Compare an alternative with the first one, fold by fold, and say it in a sentence."""
    differences = {
        metric: _plain(over_folds(_values(other, metric) - _values(first, metric), ratio, confidence))
        for metric in first[0]["scores"]
        if metric in other[0]["scores"]
    }
    slower = _seconds(other) / _seconds(first)
    return {
        "differences": differences,
        "slower": slower,
        "sentence": sentences(name, first_name, differences, slower),
    }


def sentences(name: str, first: str, differences: Mapping[str, Mapping[str, Any]], slower: float) -> str:
    """Say how an alternative compares in the first metric that can tell it from the first one, and in cost."""
    metric = next(iter(differences))
    if (
        differences[metric]["value"] == 0 and differences[metric]["low"] == 0
    ):  # such as ranks, where the threshold differs
        metric = next(
            (m for m in ("expected_cost", *differences) if differences.get(m, {}).get("value")), metric
        )
    said = sentence(name, first, metric, differences[metric], slower)
    cost = differences.get("expected_cost")
    if metric != "expected_cost" and cost is not None and cost["low"] is not None:
        said += f"; expected_cost {cost['value']:+.4f} [{cost['low']:+.4f}, {cost['high']:+.4f}]"
    return said


def sentence(name: str, first: str, metric: str, difference: Mapping[str, Any], slower: float) -> str:
    """Say how an alternative compares with the first one in a metric."""
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if value is None or low is None:
        return f"{name}: {metric} cannot be compared, it is undefined in too many folds"
    speed = ""
    if slower >= _SLOWER or slower <= 1 / _SLOWER:
        speed = f", {slower:.1f} times slower" if slower > 1 else f", {1 / slower:.1f} times faster"
    better = value > 0 if METRICS[metric].greater_is_better else value < 0
    if difference["p_value"] >= _SIGNIFICANT:
        verdict = (
            f"no difference that these folds can show: keep {first}"
            if slower > 1 / _SLOWER
            else ("no difference that these folds can show, and faster")
        )
    else:
        verdict = "better" if better else "worse: leave it out"
    return f"{name}: {metric} {value:+.4f} [{low:+.4f}, {high:+.4f}]{speed}; {verdict}"


def _values(fits: Sequence[Facts], metric: str) -> np.ndarray:
    return np.array([math.nan if fit["scores"][metric] is None else fit["scores"][metric] for fit in fits])


def _seconds(fits: Sequence[Facts]) -> float:
    """Return the median of the fits: a process's first one imports much that the others find."""
    return float(np.median([sum(fit["seconds"].values()) for fit in fits]))


def _plain(found: FoldEstimate) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(found).items()}
