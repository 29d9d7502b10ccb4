"""Target leakage: a column that alone tells the target of every training row is rarely known when one predicts.

Kaufman, Rosset, Perlich and Stitelman (2012), Leakage in data mining: formulation, detection, and avoidance. Only what no
honest column does is looked for, so that it may be said aloud: every value, or every range of values, belongs to one
class; or the column is the target up to scale.
"""

from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.prepare import Prepared

# Of each class, and of each category on average: fewer rows may be told apart by chance.
_LEAST_ROWS = 5
_SURE = 1 - 1e-6  # a correlation with float32 columns


class Leakage:
    """Looks for columns that tell the target. Feed it every training shard; columns that do not are forgotten at once.

    Parameters
    ----------
    schema
        What the prepared rows are.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema, self.rows = schema, 0
        target, width = schema.target, schema.numeric_width
        self._k = len(target.classes) if target.task in ("binary", "multiclass") else 0
        self._of_class = np.zeros(self._k, np.int64)
        codes = [np.zeros((c.cardinality, self._k), np.int64) for c in schema.categorical]
        self._codes = dict(enumerate(codes)) if self._k else {}
        # By class: the lowest value, the highest, and the rows that miss it.
        empty = np.array([[np.inf, -np.inf, 0.0]] * self._k)
        self._ranges = {i: empty.copy() for i in range(width)} if self._k else {}
        # Of each shard: sums over the rows that have the value v, with the label y: 1, v, v^2, y, y^2, v y.
        self._sums = [np.zeros((width, 6))]

    def add(self, rows: Prepared, label: npt.NDArray[Any]) -> None:
        """Add a training shard: prepared rows and labels ``[n]``, class indices or values."""
        self.rows += len(label)
        if self.schema.target.task == "regression":
            self._correlate(rows.numeric, label)
        if not self._k or not len(label):
            return
        self._of_class += np.bincount(label, minlength=self._k)
        for i, table in list(self._codes.items()):
            table += np.bincount(rows.categorical[:, i] * self._k + label, minlength=table.size).reshape(
                table.shape
            )
            if (np.count_nonzero(table, axis=1) > 1).any():
                del self._codes[i]
        for i, ranges in list(self._ranges.items()):
            self._widen(ranges, rows.numeric[:, i], label)
            if not _apart(ranges):
                del self._ranges[i]

    def merge(self, other: "Leakage") -> None:
        """Add what was seen in the shards that follow."""
        self.rows += other.rows
        self._of_class += other._of_class
        for i, table in list(self._codes.items()):
            if i in other._codes:
                table += other._codes[i]
            if i not in other._codes or (np.count_nonzero(table, axis=1) > 1).any():
                del self._codes[i]
        for i, ranges in list(self._ranges.items()):
            if i in other._ranges:
                ranges[:, 0] = np.minimum(ranges[:, 0], other._ranges[i][:, 0])
                ranges[:, 1] = np.maximum(ranges[:, 1], other._ranges[i][:, 1])
                ranges[:, 2] += other._ranges[i][:, 2]
            if i not in other._ranges or not _apart(ranges):
                del self._ranges[i]
        # One after the other: the sum does not depend on how many shards were seen together.
        self._sums = [reduce(np.add, other._sums, reduce(np.add, self._sums))]

    def _widen(
        self, ranges: npt.NDArray[np.float64], values: npt.NDArray[np.float32], label: npt.NDArray[Any]
    ) -> None:
        missing = np.isnan(values)
        for k in range(self._k):
            own = values[(label == k) & ~missing]
            if len(own):
                ranges[k, :2] = min(ranges[k, 0], own.min()), max(ranges[k, 1], own.max())
            ranges[k, 2] += np.count_nonzero(missing & (label == k))

    def _correlate(self, numeric: npt.NDArray[np.float32], label: npt.NDArray[Any]) -> None:
        y = ((label - self.schema.target.center) / self.schema.target.scale)[:, None]
        known = ~np.isnan(numeric)
        v, y = np.where(known, numeric, 0.0).astype(np.float64), np.where(known, y, 0.0)
        terms = (known, v, v * v, y, y * y, v * y)
        self._sums.append(np.stack([term.sum(axis=0, dtype=np.float64) for term in terms], axis=1))

    def columns(self) -> list[str]:
        """Return the names of the columns that tell the target."""
        if self._k and (self._of_class < _LEAST_ROWS).any():
            return []
        names = [c.name for c in self.schema.numeric for _ in c.parts]
        codes = [
            self.schema.categorical[i].name
            for i, table in self._codes.items()
            if self.rows >= _LEAST_ROWS * np.count_nonzero(table.any(axis=1))
        ]
        found = {*codes, *(names[i] for i in self._ranges), *(names[i] for i in self._correlated())}
        return [c.name for c in self.schema.columns if c.name in found]

    def _correlated(self) -> npt.NDArray[np.intp]:
        n, v, vv, y, yy, vy = reduce(np.add, self._sums).T
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = (n * vy - v * y) / np.sqrt((n * vv - v * v) * (n * yy - y * y))
        return np.flatnonzero((np.abs(correlation) > _SURE) & (n == self.rows) & (n >= _LEAST_ROWS))

    def notices(self) -> list[str]:
        """Return what to say aloud."""
        return [
            f"column {name!r} alone tells the target of every training row: where it is not known at the time of predicting, "
            f"leave it out with data.drop: [{name}]"
            for name in self.columns()
        ]


def _apart(ranges: npt.NDArray[np.float64]) -> bool:
    """Whether the classes' ranges do not meet; missing values, if there are any, are all of one class's rows."""
    known, missing = np.isfinite(ranges[:, 0]), ranges[:, 2] > 0
    there = ranges[known][np.argsort(ranges[known, 0])]
    if (there[1:, 0] <= there[:-1, 1]).any():
        return False
    return not missing.any() or (missing.sum() == 1 and not (missing & known).any())
