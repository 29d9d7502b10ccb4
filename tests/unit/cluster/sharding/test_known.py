"""Datasets whose columns and statistics are those of an earlier fit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.service import shard, sharding_key
from shoal.cluster.storage import Storage


def test_statistics_of_an_earlier_fit_are_taken_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def write(name: str, shift: float, rows: int, colors: list[str]) -> DataConfig:
        x = rng.normal(shift, 2.0, rows)
        columns = {
            "x": x,
            "same": np.full(rows, shift),
            "color": rng.choice(colors, rows),
            "y": x * 3 + shift,
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        return DataConfig(path=(str(tmp_path / f"{name}.parquet"),), target=("y",), shards=2)

    varied = write("first", 0.0, 400, ["red", "green"])
    table = pq.read_table(tmp_path / "first.parquet")
    pq.write_table(table.set_column(1, "same", pa.array(rng.normal(size=400))), tmp_path / "first.parquet")
    first = shard(varied, 0, Storage.open(str(tmp_path / "a"))).schema_
    data = write("second", 5.0, 40, ["blue", "red"])
    alone = shard(data, 0, Storage.open(str(tmp_path / "b")))
    assert alone.dropped["same"] == "constant in the training rows"
    known = shard(data, 0, Storage.open(str(tmp_path / "c")), known=first)
    assert known.schema_.columns == first.columns
    assert (known.schema_.target.center, known.schema_.target.scale) == (
        first.target.center,
        first.target.scale,
    )
    assert known.key == sharding_key(data, 0, known=first) != alone.key == sharding_key(data, 0)
    dataset = ShardedDataset.open(Storage.open(str(tmp_path / "c")))
    numeric = np.concatenate([dataset.shard("train", v).numeric for v in range(2)])
    rows = pq.read_table(tmp_path / "second.parquet")
    wanted = (rows["x"].to_numpy() - first.columns[0].center[0]) / first.columns[0].scale[0]
    assert set(np.round(numeric[:, 0], 4)) <= set(np.round(wanted.astype(np.float32), 4))
    codes = np.concatenate([dataset.shard("train", v).categorical for v in range(2)])
    assert set(codes.ravel()) == {1, 2 + first.columns[2].categories.index("red")}, "blue is unknown"
    again = shard(data, 0, Storage.open(str(tmp_path / "c")), known=first)
    assert again == known
    missing = data.model_copy(update={"drop": ("x",)})
    with pytest.raises(
        DataError, match=r"column 'x' is no feature here .*, and the model to start from reads it"
    ):
        shard(missing, 0, Storage.open(str(tmp_path / "d")), known=first)
