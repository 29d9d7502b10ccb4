"""Pieces of work depend on nothing but themselves: in any order, done twice, and sent through pickle, the same bytes."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.errors import StorageError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage


class Elsewhere:
    """Does the work in another order than asked, some of it twice, on copies without write access."""

    def __init__(self, count: int) -> None:
        self.count, self.sizes = count, list[int]()

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        sent = [pickle.dumps((work, item), protocol=5) for item in items]
        self.sizes.append(len(sent))
        results: dict[int, bytes] = {}
        for index in (
            np.random.default_rng(self.count).permutation(np.repeat(np.arange(len(sent)), 2)).tolist()
        ):
            own, item = pickle.loads(sent[index])
            results[index] = pickle.dumps(own(item), protocol=5)
        return (pickle.loads(results[index]) for index in range(len(sent)))


class Advanced(Silent):
    def __init__(self) -> None:
        self.heard: dict[str, list[tuple[int, int]]] = {}

    def stage(self, text: str) -> None:
        self.heard[text] = []

    def advance(self, done: int, total: int, what: str) -> None:
        list(self.heard.values())[-1].append((done, total))


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("count", [2, 5, 15])
@pytest.mark.parametrize(
    "data",
    [
        {"id": "order"},
        {"target": "amount", "drop": ["order"]},
        {"imbalance": {"random_over_sampler": {}}, "split": {"validation": 0}},
    ],
    ids=["binary", "regression", "resampled"],
)
def test_who_does_the_work_and_when_changes_nothing(
    table: pa.Table, tmp_path: Path, data: dict[str, Any], count: int
) -> None:
    # A copy of the target up to scale, which the sums over all shards decide to name.
    table = table.append_column("twice", pa.compute.multiply(table["amount"], 2.0))
    pq.write_table(pa.concat_tables([table] * 4), tmp_path / "in.parquet", row_group_size=100)
    config = DataConfig.model_validate({"path": str(tmp_path / "in.parquet"), "target": "label"} | data)
    shard(config, 0, Storage.open(str(tmp_path / "one")))
    there, heard = Elsewhere(count), Advanced()
    shard(config, 0, Storage.open(str(tmp_path / "many")), budget=100_000, spread=there, reporter=heard)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert max(there.sizes) > 5  # of the scan, the ordering, the statistics and the shards
    assert set(heard.heard) >= {"reading", "ordering", "writing shards"}
    for steps in (steps for steps in heard.heard.values() if steps):
        assert steps == sorted(steps)
        assert len(steps) > 2
        assert steps[-1][0] == steps[-1][1]


def test_shards_that_others_wrote_somewhere_else_are_missed(table: pa.Table, tmp_path: Path) -> None:
    """As where a node writes to a disk of its own."""
    pq.write_table(table, tmp_path / "in.parquet")
    config = DataConfig.model_validate({"path": str(tmp_path / "in.parquet"), "target": "label"})
    out = tmp_path / "out"

    class Node(Elsewhere):
        def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            yield from super().map(work, items)
            if type(work).__name__ == "Writing":
                (out / "shards/test-00001.arrow").unlink()

    with pytest.raises(StorageError, match=r"1 shard .*shards/test-00001.arrow.*all nodes share"):
        shard(config, 0, Storage.open(str(out)), spread=Node(2))
    assert not (out / "manifest.json").exists()
