"""Helpers of the tests of sharding."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from shoal.cluster.sharding.dataset import ShardedDataset

Run = Callable[..., ShardedDataset]
Files = Callable[[ShardedDataset], dict[str, bytes]]
Gather = Callable[[ShardedDataset, str], dict[str, Any]]
PARTS = ("train", "validation", "test")


def replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def notices(dataset: ShardedDataset) -> str:
    return "\n".join(dataset.manifest.notices)
