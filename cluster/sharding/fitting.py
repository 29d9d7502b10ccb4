"""From what the rows tell to the whole schema, and what resampling will make of the training rows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.decide import Decided
from shoal.cluster.sharding.features import drop_constant
from shoal.cluster.sharding.files import class_counts
from shoal.cluster.sharding.imbalance.resample import foreseen, wanted
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import listed
from shoal.cluster.sharding.statistics import Statistics


def complete(
    statistics: Statistics, decided: Decided, data: DataConfig, costs: Sequence[str] = ()
) -> tuple[Schema, list[str]]:
    """Return the schema with the statistics of the training rows and the cost columns, and what to say aloud.

    Columns that have their statistics from an earlier fit stay as they are.

    Raises
    ------
    DataError
        If no column is left, or one's numbers cannot be standardised.
    """
    features, known = decided.features, decided.known
    said_before = len(features.notices)
    columns = [] if known is None else list(known.columns)
    notices: list[str] = []
    for column in drop_constant(features.columns, statistics.constant, features) if known is None else ():
        complete, said = statistics.finish(column, data.max_categories, data.scaling.get(column.name, "each"))
        columns.append(complete)
        notices += said
    target = decided.target
    if known is not None and target.task == "regression" and known.target.columns == target.columns:
        target = target.model_copy(update={"center": known.target.center, "scale": known.target.scale})
    elif target.task == "regression":
        of_train = decided.labels[decided.plan.part(0)]
        target = target.model_copy(
            update={"center": float(of_train.mean()), "scale": float(of_train.std()) or 1.0}
        )
    schema = Schema(
        columns=tuple(columns),
        target=target,
        id=data.id,
        private=data.private,
        costs=tuple(costs),
        domains=decided.domains,
    )
    return schema, features.notices[said_before:] + notices


def foresee(data: DataConfig, decided: Decided) -> str | None:
    """Refuse resampling that does not fit the data; say what it will make of the training rows, where that is known.

    Raises
    ------
    ConfigError
        If the method does not fit the task, the columns or the classes.
    """
    if data.imbalance is None:
        return None
    schema = Schema(columns=tuple(decided.features.columns), target=decided.target, private=data.private)
    counts = training_counts(decided)
    after = foreseen(data.imbalance, counts, wanted(data.imbalance, counts, schema))
    if after is None or set(data.target) & set(data.private):
        return None
    changed = [
        f"{name} {before:,} to {now:,}"
        for name, before, now in zip(decided.target.classes, counts, after, strict=True)
        if before != now
    ]
    return f"data.imbalance: training rows of {listed(changed)}" if changed else None


def cost_sums(decided: Decided, costs: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return each cost column summed over the training rows of each class."""
    train, classes = decided.plan.part(0), len(decided.target.classes)
    if not costs or decided.target.task not in ("binary", "multiclass"):
        return {}
    labels = decided.labels[train]
    return {
        name: tuple(np.bincount(labels, weights=decided.costs[train, i], minlength=classes).tolist())
        for i, name in enumerate(costs)
    }


def training_counts(decided: Decided) -> npt.NDArray[np.int64]:
    """Return the training rows of each class; empty where the task has none."""
    return np.array(class_counts(decided.labels[decided.plan.part(0)], decided.target), np.int64)
