"""A small table with a column of every kind, and a way to shard it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage


def make_table(n: int = 600, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    amount = draw.normal(100, 20, n)
    amount[draw.random(n) < 0.1] = np.nan
    city = draw.choice(["Bergen", "Oslo", "Tromsø", None], n, p=[0.5, 0.3, 0.1, 0.1])
    start = datetime(2024, 1, 1)
    return pa.table(
        {
            "order": [f"o{i:05d}" for i in range(n)],
            "customer": pa.array(draw.integers(0, n // 10, n)),
            "booked": pa.array([start + timedelta(hours=int(h)) for h in draw.integers(0, 2000, n)]),
            "amount": pa.array(amount, from_pandas=True),
            "items": pa.array(draw.integers(1, 9, n)),
            "gift": pa.array(draw.random(n) < 0.3),
            "city": pa.array(city, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=3 * n)), 3),
            "label": pa.array(np.where(draw.random(n) < 0.2, "yes", "no")),
        }
    )


@pytest.fixture
def table() -> pa.Table:
    return make_table()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., ShardedDataset]:
    """Shard a table (or paths) and open the result."""
    count = 0

    def run(source: Any, *, seed: int = 0, budget: int = 512 << 20, **data: Any) -> ShardedDataset:
        nonlocal count
        count += 1
        if isinstance(source, pa.Table):
            path = tmp_path / f"input-{count}.parquet"
            pq.write_table(source, path)
            source = str(path)
        out = Storage.open(str(tmp_path / f"out-{count}"))
        shard(DataConfig(path=source, **({"target": "label"} | data)), seed, out, budget=budget)
        return ShardedDataset.open(out)

    return run


@pytest.fixture
def gather() -> Callable[..., dict[str, Any]]:
    """Return a part's matrices, all shards joined."""

    def gather(dataset: ShardedDataset, split: str) -> dict[str, Any]:
        shards = [dataset.shard(split, v) for v in range(dataset.n_shards)]
        return {
            "numeric": np.concatenate([s.numeric for s in shards]),
            "categorical": np.concatenate([s.categorical for s in shards]),
            "label": np.concatenate([s.label for s in shards]),
            "row_id": [x for s in shards for x in s.row_id.to_pylist()],
        }

    return gather


@pytest.fixture
def files() -> Callable[[ShardedDataset], dict[str, bytes]]:
    """Return the bytes of every shard file."""

    def files(dataset: ShardedDataset) -> dict[str, bytes]:
        root = dataset.storage.local()
        return {p.name: p.read_bytes() for p in sorted(root.glob("shards/*"))}

    return files
