"""From `predictions.parquet` to `metrics.json`: every part's metrics with their intervals."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import Target
from shoal.evaluation.deciding.costs import USUAL, Rule
from shoal.evaluation.intervals import Estimate, estimate
from shoal.evaluation.metrics import Metric
from shoal.evaluation.tallies import Array, Floats
from shoal.training.costs import COST, Amounts

# Test draws stay the same when a part is added, so parts have fixed numbers.
PARTS = {"test": 0, "validation": 1}

Scores = dict[str, dict[str, dict[str, Any]]]


def labels_and_scores(predictions: pa.Table, target: Target) -> tuple[Array, Floats]:
    """Read labels and scores from a table of predictions, as `Metric.value` takes them.

    Parameters
    ----------
    predictions
        Binary and multi-class: ``label`` (the class as text) and ``score_<class>``; multi-label:
        ``label_<name>`` and ``score_<name>``; regression: ``label`` and ``prediction``.

    Raises
    ------
    DataError
        If a column is missing, or a label is none of the classes.
    """
    names = [str(c) for c in target.classes]
    if target.task == "regression":
        return _column(predictions, "label"), _column(predictions, "prediction")
    scores = np.column_stack([_column(predictions, f"score_{name}") for name in names])
    if target.task == "multilabel":
        labels = np.column_stack([_column(predictions, f"label_{name}") for name in names])
        return labels.astype(np.float32), scores
    _require(predictions, "label")
    text = pc.cast(predictions.column("label"), pa.string())
    codes = pc.index_in(text, value_set=pa.array(names))
    if codes.null_count:
        strange = pc.unique(text.filter(pc.is_null(codes)))[0].as_py()
        raise DataError(
            f"label {strange!r} is none of the classes {', '.join(names)}; predict with this model again"
        )
    y = codes.to_numpy().astype(np.int64)
    return y, np.ascontiguousarray(scores[:, 1]) if target.task == "binary" else scores


def amounts_of(predictions: pa.Table, names: Iterable[str]) -> Amounts:
    """Read the rows' cost columns from a table of predictions.

    Raises
    ------
    DataError
        If they are not there.
    """
    for name in names:
        if f"{COST}{name}" not in predictions.column_names:
            known = [n.removeprefix(COST) for n in predictions.column_names if n.startswith(COST)]
            there = f"only of {', '.join(known)}" if known else "of none"
            raise DataError(
                f"evaluation.costs: the predictions have no costs of column {name!r}, {there}: rows are sharded with the cost "
                "columns that the experiment names, so train with it"
            )
    return {name: _column(predictions, f"{COST}{name}") for name in names}


def part_of(predictions: pa.Table, split: str) -> pa.Table:
    """Keep the rows of one part."""
    return predictions.filter(pc.equal(pc.cast(predictions.column("split"), pa.string()), split))


def evaluate(
    predictions: pa.Table,
    target: Target,
    metrics: Iterable[Metric],
    *,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    rule: Rule = USUAL,
    withheld: Mapping[str, str] | None = None,
) -> Scores:
    """Judge each part of a run.

    Parameters
    ----------
    withheld
        Metrics of the validation rows that are not given, since something was fitted to them there; with the reason.

    Returns
    -------
    dict
        ``{"test": {name: {"value", "low", "high", "method", "replicates", "n"}}, "validation": …}``, ready
        for JSON; where a value is undefined or withheld it is None and ``"reason"`` says why. An expected cost has
        its ``"unit"``, where there is one.

    Raises
    ------
    DataError
        If the predictions do not belong to the target.
    """
    _require(predictions, "split")
    chosen, scores = list(metrics), {}
    for split, number in PARTS.items():
        rows = part_of(predictions, split)
        if not rows.num_rows:
            continue
        y, predicted = labels_and_scores(rows, target)
        known = withheld or {} if split == "validation" else {}
        kept_back = {metric.name: known[metric.name] for metric in chosen if metric.name in known}
        found = estimate(
            y,
            predicted,
            [metric for metric in chosen if metric.name not in kept_back],
            confidence=confidence,
            replicates=replicates,
            seed=seed,
            spawn_key=(number,),
            rule=rule,
            amounts=amounts_of(rows, rule.columns),
        )
        for name, reason in kept_back.items():
            found[name] = Estimate(math.nan, math.nan, math.nan, "", 0, len(y), reason)
        scores[split] = {metric.name: _plain(found[metric.name]) for metric in chosen}
        if rule.costs is not None and rule.costs.unit and "expected_cost" in scores[split]:
            scores[split]["expected_cost"]["unit"] = rule.costs.unit
    return scores


def _plain(result: Estimate) -> dict[str, Any]:
    entry: dict[str, Any] = {
        key: value if math.isfinite(value) else None
        for key, value in (("value", result.value), ("low", result.low), ("high", result.high))
    }
    entry |= {"method": result.method, "replicates": result.replicates, "n": result.n}
    return entry | ({"reason": result.reason} if result.reason else {})


def _require(predictions: pa.Table, name: str) -> None:
    if name not in predictions.column_names:
        raise DataError(
            f"predictions have no column {name!r}, only {', '.join(predictions.column_names)}; "
            "they belong to another target or are not predictions"
        )


def _column(predictions: pa.Table, name: str) -> Floats:
    _require(predictions, name)
    return np.asarray(predictions.column(name).to_numpy(), dtype=np.float64)
