"""Arrays in memory that look like a sharded dataset, for scikit-learn estimators and for tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.files import class_counts
from shoal.cluster.sharding.manifest import Schema


@dataclass(frozen=True)
class ArrayPart:
    """Prepared rows of one part.

    Parameters
    ----------
    numeric, categorical
        float32 ``[n, D]``, int32 ``[n, C]``.
    label
        ``[n]`` or ``[n, K]``.
    cost
        float64 ``[n, C']``, the columns of `Schema.costs`, and with `Schema.domains` the number of the row's domain; None where
        there are none.
    row_id
        ``[n]``; None for the rows' numbers.
    """

    numeric: NDArray[np.float32]
    categorical: NDArray[np.int32]
    label: NDArray[np.generic]
    cost: NDArray[np.float64] | None = None
    row_id: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class ArrayDataset:
    """Prepared rows dealt over V logical shards in their order: row i lies in shard ``i mod V``."""

    schema: Schema
    parts: Mapping[str, ArrayPart]
    n_shards: int = 1
    _shards: dict[tuple[str, int], ShardRows] = field(default_factory=dict, repr=False, compare=False)

    def shard_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each shard of a part, empty where there is no such part."""
        if split not in self.parts:
            return ()
        rows = len(self.parts[split])
        return tuple(rows // self.n_shards + (v < rows % self.n_shards) for v in range(self.n_shards))

    def class_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each class of a part, or with each of several labels; empty for numbers."""
        return class_counts(self.parts[split].label, self.schema.target)

    def shard_class_rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of each class in each shard of a part, int64 ``[V, classes]``."""
        labels = [self.shard(split, v).label for v in range(self.n_shards)]
        return np.array([class_counts(label, self.schema.target) for label in labels], np.int64)

    def shard(self, split: str, v: int) -> ShardRows:
        """Return one shard's rows, laid out row after row: of several shards copies, of one the arrays themselves."""
        if (split, v) not in self._shards:
            part, own = self.parts[split], slice(v, None, self.n_shards)
            places = np.arange(len(part))[own]
            cost = np.empty((len(part), 0)) if part.cost is None else part.cost
            self._shards[split, v] = ShardRows(
                _together(part.numeric[own]),
                _together(part.categorical[own]),
                _together(part.label[own]),
                pa.array(places) if part.row_id is None else part.row_id.take(pa.array(places)),
                np.ascontiguousarray(cost[own]),
            )
        return self._shards[split, v]


def _together(rows: NDArray[Any]) -> NDArray[Any]:
    """Lay rows one after the other, but for repetitions of one that take no memory: `take` would copy all of them each time."""
    return np.ascontiguousarray(rows) if rows.strides[0] else rows
