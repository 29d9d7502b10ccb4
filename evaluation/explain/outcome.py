"""What an explanation found, as plain values and as Arrow tables.

Shape legend: n rows, M columns, K outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.cluster.sharding.manifest import Schema
from shoal.evaluation.explain.dependence import Dependence
from shoal.evaluation.explain.gradients import METHODS as GRADIENTS
from shoal.evaluation.explain.permutation import Importance
from shoal.evaluation.explain.shapley import Attributions
from shoal.evaluation.explain.subject import Floats
from shoal.evaluation.explain.work import Dependences
from shoal.evaluation.metrics import Metric


@dataclass(frozen=True)
class Rows:
    """The rows that are explained one by one.

    Parameters
    ----------
    ids
        ``[n]``.
    texts
        Each column's values for reading, ``[M][n]``; empty where they are private or have no short form.
    numbers
        Each column's values as numbers ``[n]``; None where they have no order or are private.
    """

    ids: pa.Array
    texts: Sequence[Sequence[str]]
    numbers: Sequence[Floats | None]


@dataclass(frozen=True)
class Outcome:
    """All that was found.

    Parameters
    ----------
    run, schema, outputs
        Of the model; outputs as they may be shown.
    part, n
        ``test``, ``validation`` or ``data``, and its rows that were read.
    background
        How many rows explained ones are compared with.
    metric, baseline
        The score that permutation watches, and its value; None where nothing is permuted.
    importances, groups
        Of single columns, the most important first, and of groups.
    correlated
        Groups of columns that go together.
    attributions
        By method.
    fidelity
        Of LIME ``[n, K]``.
    sample
        Values of the columns in the sample, for the rug: numbers ``[n]`` by name.
    """

    run: str
    schema: Schema
    outputs: tuple[str, ...]
    part: str
    n: int
    background: int
    rows: Rows
    metric: Metric | None = None
    baseline: float | None = None
    importances: tuple[Importance, ...] = ()
    groups: tuple[Importance, ...] = ()
    correlated: tuple[tuple[str, ...], ...] = ()
    attributions: dict[str, Attributions] = field(default_factory=dict)
    fidelity: Floats | None = None
    dependences: tuple[Dependences, ...] = ()
    sample: dict[str, Floats] = field(default_factory=dict)
    confidence: float = 0.95

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns."""
        return tuple(column.name for column in self.schema.columns)

    def standardised(self) -> "Outcome":
        """Return the same with predictions of a number in standard deviations of the target from its mean."""
        target = self.schema.target

        def scaled(values: Floats, center: float = target.center) -> Floats:
            return (values - center) / target.scale

        log = target.link == "log"  # a network's own output is no number of the target
        attributions = {
            name: one
            if log and name in GRADIENTS
            else Attributions(
                one.values / target.scale,
                scaled(one.base),
                scaled(one.predictions),
                None if one.sampling is None else one.sampling / target.scale,
            )
            for name, one in self.attributions.items()
        }
        dependences = tuple(
            replace(one, found=Dependence(scaled(one.found.mean), scaled(one.found.individual)))
            for one in self.dependences
        )
        of_metric = target.scale if self.metric is not None and self.metric.in_units else 1.0
        return replace(
            self,
            attributions=attributions,
            dependences=dependences,
            baseline=None if self.baseline is None else self.baseline / of_metric,
            importances=tuple(_divided(one, of_metric) for one in self.importances),
            groups=tuple(_divided(one, of_metric) for one in self.groups),
        )

    def tables(self) -> dict[str, pa.Table]:
        """Return a table for each method."""
        found = {}
        if self.importances:
            found["permutation"] = _permutation([*self.importances, *self.groups], self.baseline or 0.0)
        for method, one in self.attributions.items():
            fidelity = self.fidelity if method == "lime" else None
            found[method] = _attributions(one, self.columns, self.outputs, self.rows, fidelity)
        if self.dependences:
            found["partial_dependence"] = pa.concat_tables(
                [_dependence(one, self.outputs) for one in self.dependences]
            )
            single = [one for one in self.dependences if len(one.columns) == 1]
            if single:
                found["ice"] = pa.concat_tables([_ice(one, self.outputs, self.rows.ids) for one in single])
        return found

    def summary(self) -> dict[str, Any]:
        """Return the main figures as plain values."""
        largest = {m: _largest(one.additivity) for m, one in self.attributions.items()}
        sampling = {m: _largest(a.sampling) for m, a in self.attributions.items() if a.sampling is not None}
        return {
            "run": self.run,
            "part": self.part,
            "rows": self.n,
            "explained_rows": len(self.rows.ids),
            "background_rows": self.background,
            "metric": None if self.metric is None else self.metric.name,
            "baseline": self.baseline,
            "importance": [_plain(one) for one in self.importances],
            "groups": [_plain(one) | {"columns": list(one.columns)} for one in self.groups],
            "correlated": [list(group) for group in self.correlated],
            "mean_absolute": {
                method: dict(zip(self.columns, np.abs(one.values).mean(axis=(0, 2)).tolist(), strict=True))
                for method, one in self.attributions.items()
            },
            "additivity_error": largest,
            "sampling_error": sampling,
            "fidelity": None if self.fidelity is None else float(np.median(self.fidelity)),
            "dependence": [list(one.columns) for one in self.dependences],
        }


def _divided(one: Importance, by: float) -> Importance:
    return replace(one, falls=one.falls / by, low=one.low / by, high=one.high / by)


def _largest(values: Floats) -> float | None:
    return float(np.abs(values).max()) if np.isfinite(values).all() else None


def _plain(one: Importance) -> dict[str, Any]:
    known = np.isfinite(one.low)
    return {
        "name": one.name,
        "value": one.mean,
        "low": one.low if known else None,
        "high": one.high if known else None,
    }


def _permutation(found: Sequence[Importance], baseline: float) -> pa.Table:
    repeats = len(found[0].falls)
    return pa.table(
        {
            "name": np.repeat([one.name for one in found], repeats).tolist(),
            "columns": [list(one.columns) for one in found for _ in range(repeats)],
            "repeat": np.tile(np.arange(repeats), len(found)),
            "importance": np.concatenate([one.falls for one in found]),
            "score": np.concatenate([baseline - one.falls for one in found]),
        }
    )


def _attributions(
    found: Attributions, columns: Sequence[str], outputs: Sequence[str], rows: Rows, fidelity: Floats | None
) -> pa.Table:
    """Return a line a row, column and output, in this order."""
    n, m, k = found.values.shape
    row, column, output = (axis.ravel() for axis in np.indices((n, m, k)))
    texts = pa.array([text or None for of_column in rows.texts for text in of_column], pa.string())
    made = {
        "row_id": rows.ids.take(pa.array(row)),
        "column": pa.array(columns).take(pa.array(column)),
        "value": texts.take(pa.array(column * n + row)),
        "output": pa.array(outputs).take(pa.array(output)),
        "contribution": found.values.ravel(),
    }
    if found.sampling is not None:
        made["sampling_error"] = found.sampling.ravel()
    if not np.isnan(found.base).all():
        made["base"] = found.base[row, output]
    made["prediction"] = found.predictions[row, output]
    if fidelity is not None:
        made["fidelity"] = fidelity[row, output]
    return pa.table(made)


def _dependence(one: Dependences, outputs: Sequence[str]) -> pa.Table:
    """Return a line a value (or pair of values) and output."""
    m, k = one.found.mean.shape
    value, output = (axis.ravel() for axis in np.indices((m, k)))
    made: dict[str, Any] = {}
    second = len(one.grids[1].names) if len(one.grids) == 2 else 1
    for grid, at, name in zip(one.grids, (value // second, value % second), ("", "second_"), strict=False):
        texts, column = pa.array(grid.names), one.columns[1 if name else 0]
        numbers = np.full(m * k, np.nan) if grid.numbers is None else grid.numbers[at]
        made[f"{name}column"] = pa.array([column] * (m * k))
        made[f"{name}value"] = texts.take(pa.array(at))
        made[f"{name}number"] = pa.array(numbers, from_pandas=True)
    for name, kind in (
        ("second_column", pa.string()),
        ("second_value", pa.string()),
        ("second_number", pa.float64()),
    ):
        made.setdefault(name, pa.nulls(m * k, kind))
    made["output"] = pa.array(outputs).take(pa.array(output))
    made["mean"] = one.found.mean.ravel()
    return pa.table(made)


def _ice(one: Dependences, outputs: Sequence[str], ids: pa.Array) -> pa.Table:
    """Return a line a row, value and output."""
    n, m, k = one.found.individual.shape
    row, value, output = (axis.ravel() for axis in np.indices((n, m, k)))
    grid = one.grids[0]
    numbers = np.full(m, np.nan) if grid.numbers is None else grid.numbers
    return pa.table(
        {
            "row_id": ids.take(pa.array(row)),
            "column": pa.array([one.columns[0]] * (n * m * k)),
            "value": pa.array(grid.names).take(pa.array(value)),
            "number": pa.array(numbers[value], from_pandas=True),
            "output": pa.array(outputs).take(pa.array(output)),
            "prediction": one.found.individual.ravel(),
        }
    )
