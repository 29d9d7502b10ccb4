"""CPU of sharding a Parquet file, against reading it with pyarrow and writing it back.

    python benchmarks/sharding.py DATA.parquet TARGET [--split-column NAME] [--repeats 5]

Both sides run in one process, in turn, after one run each that is not counted; medians of process time, threads
included.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and the wall time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path")
    parser.add_argument("target")
    parser.add_argument("--split-column")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    split = {"column": given.split_column} if given.split_column else {}
    data = DataConfig.model_validate({"path": given.path, "target": given.target, "split": split})
    with tempfile.TemporaryDirectory() as folder:
        count = 0

        def copy() -> None:
            pq.write_table(pq.read_table(given.path), Path(folder) / "copy.parquet")

        def ours() -> None:
            nonlocal count
            count += 1  # a new folder each time: in the old one the shards would be reused
            shard(data, 0, Storage.open(f"{folder}/{count}"))

        runs = [(seconds(copy), seconds(ours)) for _ in range(given.repeats + 1)][1:]
    rows = pq.read_metadata(given.path).num_rows
    for i, clock in enumerate(("CPU", "wall")):
        base, sharding = (statistics.median(run[side][i] for run in runs) for side in (0, 1))
        print(
            f"{clock}: read and write {base:.3f} s, shard {sharding:.3f} s ({rows / sharding:,.0f} rows/s), "
            f"ratio {sharding / base:.2f}"
        )


if __name__ == "__main__":
    main()
