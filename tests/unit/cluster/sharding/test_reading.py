"""Rows read once for several datasets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.config import StorageConfig
from shoal.cluster.progress import Silent
from shoal.cluster.sharding import reading as module
from shoal.cluster.sharding import service
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.reading import Reading, read_once
from shoal.cluster.sharding.service import BUDGET, shard
from shoal.cluster.storage import Storage
from shoal.evaluation.crossval.config import StratifiedConfig
from shoal.evaluation.crossval.folds import OneFold

CV_3 = StratifiedConfig(n_splits=3)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    generator = np.random.default_rng(0)
    for part in range(2):
        table = pa.table(
            {
                "x": generator.normal(size=90),
                "kind": generator.choice(["a", "b", "c"], 90),
                "amount": generator.uniform(1, 5, 90),
                "y": generator.integers(0, 2, 90),
            }
        )
        pq.write_table(table, tmp_path / f"rows-{part}.parquet", row_group_size=40)
    return DataConfig.model_validate(
        {"path": [f"{tmp_path}/rows-*.parquet"], "target": ["y"], "split": {"test": 0.2}}
    )


def read(data: DataConfig, budget: int = BUDGET) -> Reading | None:
    return read_once(data, StorageConfig(), Silent(), ("amount",), OneFold(CV_3, 0), budget)


def made(data: DataConfig, folder: Path, number: int, reading: Reading | None) -> dict[str, Any]:
    shard(
        data, 3, Storage.open(str(folder)), costs=("amount",), resplit=OneFold(CV_3, number), reading=reading
    )
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_folds_of_rows_read_once_are_those_of_rows_read_each_time(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = read(data)
    assert reading is not None
    apart = [made(data, tmp_path / f"apart-{i}", i, None) for i in range(3)]

    def unread(*_: object) -> None:
        pytest.fail("the input was read again")

    monkeypatch.setattr(service, "scan_span", unread)
    assert [made(data, tmp_path / f"once-{i}", i, reading) for i in range(3)] == apart
    monkeypatch.undo()
    assert apart[0] != apart[1]


def test_rows_that_changed_since_are_read_again(data: DataConfig, tmp_path: Path) -> None:
    reading = read(data)
    (first, *_) = tmp_path.glob("rows-0.parquet")
    pq.write_table(pq.read_table(first).slice(0, 60), first)
    files = made(data, tmp_path / "fold", 0, reading)
    assert json.loads(files["manifest.json"])["rows_read"] == 150


def test_rows_beyond_the_budget_are_not_kept(data: DataConfig) -> None:
    assert read(data, budget=1000) is None
    assert module.fits(module.open_source(module.find(data.path, StorageConfig())), BUDGET)
