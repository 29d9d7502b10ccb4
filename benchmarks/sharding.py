"""CPU of sharding a Parquet file, against reading it with pyarrow and writing it back.

    python benchmarks/sharding.py DATA.parquet TARGET [--split-column NAME] [--repeats 5] [--tasks 2]
    python benchmarks/sharding.py --made 100000 1000000 10000000

Both sides run in one process, in turn, after one run each that is not counted; medians of process time, threads
included. `--made` shards rows of 30 numbers with 1 % of events instead. `--tasks` adds the wall time of sharding as that many
Ray tasks, Ray's start not counted.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.cluster.config import ClusterConfig
from shoal.cluster.progress import Silent
from shoal.cluster.resources import SHARDING, Part
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.service import BUDGET, shard
from shoal.cluster.sharding.spread import Here, Spread
from shoal.cluster.storage import Storage


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and the wall time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def made(path: Path, rows: int) -> None:
    """Write rows of 30 float32 numbers and a label of 1 % events."""
    generator, writer = np.random.default_rng(0), None
    for start in range(0, rows, 1_000_000):
        n = min(1_000_000, rows - start)
        columns = {f"x{i:02d}": generator.normal(size=n).astype(np.float32) for i in range(30)}
        table = pa.table(columns | {"label": (generator.random(n) < 0.01).astype(np.int64)})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=125_000)
    assert writer is not None
    writer.close()


def compare(data: DataConfig, repeats: int, count: int) -> None:
    """Print the medians of one file."""
    (path,), runs = data.path, 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def copy() -> None:
            pq.write_table(pq.read_table(path), Path(folder) / "copy.parquet")

        def ours(spread: Spread) -> None:
            nonlocal runs
            runs += 1  # a new folder each time: in the old one the shards would be reused
            place = Storage.open(f"{folder}/{runs}")
            shard(data, 0, place, spread=spread)
            place.delete()

        sides: list[Callable[[], None]] = [copy, lambda: ours(Here())]
        if count:
            from shoal.cluster.tasks import tasks

            part = Part(SHARDING, count, 1.0, memory=float(BUDGET))
            several = stack.enter_context(tasks(ClusterConfig(num_workers=count), part, Silent()))
            sides.append(lambda: ours(several))
        found = [[seconds(side) for side in sides] for _ in range(repeats + 1)][1:]
    rows = pq.read_metadata(path).num_rows
    for i, clock in enumerate(("CPU", "wall")):
        base, sharding = (statistics.median(run[side][i] for run in found) for side in (0, 1))
        print(
            f"{rows:,} rows, {clock}: read and write {base:.3f} s, shard {sharding:.3f} s "
            f"({rows / sharding / 1e6:.2f} M rows/s), "
            f"ratio {sharding / base:.2f}"
        )
    if count:
        print(f"  as {count} tasks: wall {statistics.median(run[2][1] for run in found):.3f} s")


def main() -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="?")
    parser.add_argument("target", nargs="?", default="label")
    parser.add_argument("--split-column")
    parser.add_argument("--made", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=0)
    given = parser.parse_args()
    split = {"column": given.split_column} if given.split_column else {}
    if given.path:
        data = DataConfig.model_validate({"path": given.path, "target": given.target, "split": split})
        compare(data, given.repeats, given.tasks)
    for rows in given.made:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made.parquet"
            made(path, rows)
            data = DataConfig.model_validate({"path": str(path), "target": "label"})
            compare(data, given.repeats, given.tasks)


if __name__ == "__main__":
    main()
