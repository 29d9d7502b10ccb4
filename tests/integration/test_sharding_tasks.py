"""Sharding as Ray tasks: the same bytes as in one process, also when tasks are killed; nothing is left behind."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from support.killing import KilledFrom, KilledOnce

from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import DataError, ResourceError, RunError
from shoal.cluster.progress import Silent
from shoal.cluster.resources import SHARDING, Part
from shoal.cluster.session import leftovers
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.manifest import MANIFEST
from shoal.cluster.sharding.service import BUDGET, shard
from shoal.cluster.sharding.spread import Here
from shoal.cluster.storage import Storage
from shoal.cluster.tasks import Tasks, reserved, tasks
from shoal.experiment import Experiment
from shoal.verbs.check import check
from shoal.verbs.dataset import shard as shard_verb

pytestmark = pytest.mark.usefixtures("ray_cluster")
MEMORY = 1 << 20
PART = Part(SHARDING, 1, 1.0, memory=MEMORY)
SPILLED = 100_000  # bytes: many pieces of work
NONE = {"actors": 0, "placement_groups": 0}


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    n, draw = 4000, np.random.default_rng(0)
    label = draw.random(n) < 0.2
    return pa.table(
        {
            "amount": pa.array(
                np.where(draw.random(n) < 0.1, np.nan, draw.normal(100, 20, n)), from_pandas=True
            ),
            "city": pa.array(draw.choice(["Bergen", "Oslo", "Tromsø"], n)),
            "name": [f"n{i % 977}" for i in range(n)],
            "told": pa.array(np.where(label, "Y", "N")),
            "same": ["x"] * n,
            "label": pa.array(np.where(label, "yes", "no")),
        }
    )


@contextmanager
def spread(count: int, failures: int = 3) -> Iterator[Tasks]:
    config = ClusterConfig(max_failures=failures, wait=timedelta(seconds=60))
    part = Part(SHARDING, count, 0.2, memory=MEMORY)
    with reserved(config, part) as group:
        yield Tasks(group, part, config)


def write(rows: pa.Table, folder: Path, **data: Any) -> DataConfig:
    pq.write_table(rows, folder / "in.parquet", row_group_size=333)
    return DataConfig.model_validate({"path": str(folder / "in.parquet"), "target": "label"} | data)


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def all_free(within: float = 30) -> bool:
    """Wait for what was just given back."""
    deadline = time.monotonic() + within
    while (free := ray.available_resources().get("CPU", 0)) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(free == 4)


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        ({}, (1, 2, 5, 15)),
        ({"target": "amount", "drop": ["told"]}, (3,)),
        ({"imbalance": {"random_over_sampler": {}}}, (3,)),
    ],
    ids=["binary", "regression", "resampled"],
)
def test_any_number_of_tasks_gives_the_same_bytes(
    rows: pa.Table, tmp_path: Path, data: dict[str, Any], counts: tuple[int, ...]
) -> None:
    config = write(rows, tmp_path, **data)
    shard(config, 0, Storage.open(str(tmp_path / "one")))
    expected = contents(tmp_path / "one")
    assert len(expected) >= 3 * 16 + 1
    for count in counts:
        with spread(count) as several:
            assert several.count == count
            shard(config, 0, Storage.open(str(tmp_path / f"{count}")), budget=SPILLED, spread=several)
        assert contents(tmp_path / f"{count}") == expected
    assert leftovers() == NONE


class Killing:
    """Tasks of which one a pass is killed after it did its work."""

    def __init__(self, tasks: Tasks, folder: Path) -> None:
        self.tasks, self.folder, self.count, self.passes = tasks, folder, tasks.count, 0

    def map(self, work: Callable[[Any], Any], items: Any) -> Iterator[Any]:
        self.passes += 1
        mark = self.folder / f"killed-{self.passes}"
        return self.tasks.map(KilledOnce(work, mark, 1), enumerate(items))


def test_a_killed_task_is_done_again(rows: pa.Table, tmp_path: Path) -> None:
    config = write(rows, tmp_path)
    shard(config, 0, Storage.open(str(tmp_path / "one")))
    with spread(2) as several:
        shard(
            config,
            0,
            Storage.open(str(tmp_path / "killed")),
            budget=SPILLED,
            spread=Killing(several, tmp_path),
        )
    assert contents(tmp_path / "killed") == contents(tmp_path / "one")
    assert (
        len(list(tmp_path.glob("killed-*"))) >= 4
    )  # in the scan, the ordering, the statistics and the shards


def test_a_task_that_is_always_killed_ends_the_run_which_can_go_on(rows: pa.Table, tmp_path: Path) -> None:
    config, out = write(rows, tmp_path), Storage.open(str(tmp_path / "out"))

    class Always:
        count = 2

        def map(self, work: Callable[[Any], Any], items: Any) -> Iterator[Any]:
            if type(work).__name__ != "Writing":
                return several.map(work, items)
            return several.map(KilledFrom(work, 2), enumerate(items))

    with spread(2, failures=0) as several:
        with pytest.raises(RunError, match=r"a task was lost 1 time:.*the same command goes on"):
            shard(config, 0, out, budget=SPILLED, spread=Always())
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrow")}
        assert before
        assert not out.exists(MANIFEST)
        shard(config, 0, out, budget=SPILLED, spread=several)
    shard(config, 0, Storage.open(str(tmp_path / "one")))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in before.items()) >= 1
    assert leftovers() == NONE


def test_a_column_that_fails_in_a_task_is_named_as_in_one_process(rows: pa.Table, tmp_path: Path) -> None:
    huge = rows["amount"].to_numpy().copy()
    huge[[7, 1500, 3900]] = np.inf
    config = write(rows.set_column(0, "amount", pa.array(huge)), tmp_path)
    said = []
    for count in (0, 3):
        out = Storage.open(str(tmp_path / f"{count}"))
        with spread(count) if count else nullcontext(Here()) as where, pytest.raises(DataError) as error:
            shard(config, 0, out, budget=SPILLED if count else BUDGET, spread=where)
        said.append(str(error.value))
    assert "'amount'" in said[0]
    assert said[1] == said[0]
    assert leftovers() == NONE


def test_a_lost_shard_is_rebuilt_alone_by_tasks(rows: pa.Table, tmp_path: Path) -> None:
    config, out = write(rows, tmp_path), Storage.open(str(tmp_path / "out"))
    shard(config, 0, out)
    expected = contents(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrow")}
    lost = tmp_path / "out/shards/train-00005.arrow"
    lost.write_bytes(lost.read_bytes()[:-1] + b"?")
    with spread(2) as several:
        shard(config, 0, out, budget=SPILLED, verify=True, spread=several)
    assert contents(tmp_path / "out") == expected
    assert [path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp] == [lost]


def test_the_tasks_are_in_the_resource_sum() -> None:
    few = ClusterConfig(num_workers=9, wait=timedelta(seconds=1))
    too_many = pytest.raises(ResourceError, match=r"9 sharding tasks x 1 CPU = 9 CPUs; this machine has 4")
    with too_many, tasks(few, PART, Silent()):
        pass
    assert all_free()
    with tasks(ClusterConfig(), PART, Silent()) as several:
        assert several.count == 4  # the CPUs that are free
        more = ClusterConfig(num_workers=2, wait=timedelta(seconds=1))
        busy = pytest.raises(ResourceError, match=r"waited 1s for 2 CPUs")
        with busy, tasks(more, PART, Silent()):
            pass
    assert leftovers() == NONE


def test_a_cancelled_job_leaves_no_task(tmp_path: Path) -> None:
    def sleep(number: int) -> int:
        (tmp_path / f"begun-{number}").write_text(str(os.getpid()))
        time.sleep(600 if number else 0)
        return number

    with spread(3) as several:
        results = several.map(sleep, range(100))
        assert next(results) == 0
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("begun-[1-9]*")) and time.monotonic() < deadline:
            time.sleep(0.05)
    results.close()
    begun = [int(path.read_text()) for path in tmp_path.glob("begun-[1-9]*")]
    assert begun
    assert all_free()
    assert leftovers() == NONE


def test_an_address_makes_the_difference(
    rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(rows, tmp_path)
    used: list[int] = []
    real = Tasks.map

    def counted(self: Tasks, work: Any, items: Any) -> Any:
        used.append(self.count)
        return real(self, work, items)

    monkeypatch.setattr(Tasks, "map", counted)
    address = ray.get_runtime_context().gcs_address
    for name, cluster, expected in (
        ("here", {"num_workers": 2}, set()),
        ("inline", {"address": address, "placement": "inline"}, set()),
        ("there", {"address": address, "num_workers": 2}, {2}),
    ):
        used.clear()
        experiment = Experiment.model_validate(
            {
                "data": data.model_dump(mode="json"),
                "cluster": {"storage_path": str(tmp_path / name)} | cluster,
            }
        )
        result = shard_verb(experiment, name="x")
        assert not result.reused
        assert set(used) == expected
        assert shard_verb(experiment, name="x").reused
        assert set(used) == expected
        said = any(
            "for sharding: 2 tasks of 1 CPU and 512 MiB" in line for line in check(experiment).resource_lines
        )
        assert said is bool(expected)
    assert leftovers() == NONE
