"""Rows of a target domain: prepared as the source's are, and their labels never read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.manifest import Manifest
from shoal.cluster.sharding.prepare import prepare
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage

NO_TARGET = {"target": ()}


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    pq.write_table(rows(300), tmp_path / "source.parquet")
    data = DataConfig(path=str(tmp_path / "source.parquet"), target="y", id="key")
    return shard(data, 0, Storage.open(str(tmp_path / "source")))


def target(folder: Path, table: pa.Table, source: Manifest, name: str = "target", **more: object) -> Storage:
    pq.write_table(table, folder / f"{name}.parquet")
    data = DataConfig(path=str(folder / f"{name}.parquet"), target="-", id="key", **more)
    out = Storage.open(str(folder / name))
    shard(data.model_copy(update=NO_TARGET), 0, out, known=source.schema_)
    return out


def test_rows_have_the_statistics_of_the_source(tmp_path: Path, source: Manifest) -> None:
    table = rows(120, seed=5)
    dataset = ShardedDataset.open(target(tmp_path, table, source))
    assert dataset.rows("train") == 120
    assert dataset.rows("validation") == dataset.rows("test") == 0
    assert dataset.schema.columns == source.schema_.columns
    expected = prepare(table, source.schema_)
    place = {key: i for i, key in enumerate(table["key"].to_pylist())}
    for v in range(dataset.n_shards):
        found = dataset.shard("train", v)
        at = [place[key] for key in found.row_id.to_pylist()]
        np.testing.assert_array_equal(found.numeric, expected.numeric[at])
        np.testing.assert_array_equal(found.categorical, expected.categorical[at])
        assert not found.label.any()


def test_labels_are_not_read(tmp_path: Path, source: Manifest) -> None:
    table = rows(120, seed=5)
    without = table.drop_columns(["y"])
    odd = without.append_column("y", pa.array(range(120)))  # of another type, even
    first, *others = (target(tmp_path, t, source, f"t{i}") for i, t in enumerate((table, without, odd)))
    for other in others:
        for v in range(ShardedDataset.open(first).n_shards):
            path = f"shards/train-{v:05d}.arrow"
            assert first.read_bytes(path) == other.read_bytes(path)


def test_a_column_that_is_not_there_is_refused(tmp_path: Path, source: Manifest) -> None:
    with pytest.raises(
        DataError, match=r"transfer.target_data: column 'z' is not in the data, and it is a feature"
    ):
        target(tmp_path, rows(50).drop_columns(["z"]), source)
