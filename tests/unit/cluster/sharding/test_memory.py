import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Private writable memory is limited to what the process has after its imports plus a part of the data's size.
CHILD = """
import resource, sys
import pyarrow as pa, pyarrow.parquet as pq, pandas
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage

pa.set_cpu_count(1)
pa.set_io_thread_count(1)
pa.set_memory_pool(pa.system_memory_pool())
path, out, allowed, budget = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
data = DataConfig(path=path, target="label")
pq.write_table(pa.table({"x": [i * i for i in range(99)], "label": [0, 1, 1] * 33}), path + ".small")
shard(DataConfig(path=path + ".small", target="label"), 0, Storage.open(out + "-small"), budget=1000)  # starts the threads
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
used = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed,) * 2)
manifest = shard(data, 0, Storage.open(out), budget=budget)
print(sum(split.rows for split in manifest.splits.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_sharding_needs_less_memory_than_the_data(tmp_path: Path) -> None:
    rows, width = 250_000, 40
    draw = np.random.default_rng(0)
    path = tmp_path / "data.parquet"
    schema = pa.schema([*((f"x{i}", pa.float64()) for i in range(width)), ("label", pa.int8())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for _ in range(10):
            columns = [draw.random(rows // 10) for _ in range(width)]
            writer.write_table(
                pa.table([*columns, draw.integers(0, 2, rows // 10).astype(np.int8)], schema=schema)
            )
    size = path.stat().st_size
    assert size > 75e6

    def child(name: str, budget: int) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            CHILD,
            str(path),
            str(tmp_path / name),
            str(int(0.75 * size)),
            str(budget),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    bounded = child("bounded", 16 << 20)
    assert bounded.returncode == 0, bounded.stderr[-2000:]
    assert bounded.stdout.strip() == str(rows)
    # The limit means something: without the budget the same work does not fit.
    assert child("unbounded", 1 << 40).returncode != 0
