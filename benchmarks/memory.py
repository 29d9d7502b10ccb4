"""Anonymous memory of a worker against its share of the data.

Usage: python benchmarks/memory.py SHARDS   (the folder of a sharded dataset, as `shoal shard` writes it)

A worker maps its shards, so their pages are the page cache's. Printed are the anonymous memory after the bare
imports, after torch has built a first optimiser (which imports torch._dynamo: any training process holds it), at its
peak during one epoch with validation and test scoring, and the growth over the data on disk; the goal is a ratio of
at most 1.5.
"""

import sys
import tempfile
import threading
from pathlib import Path

import torch

from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.evaluation.metrics import resolve_scoring
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.device import pick_device
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, run_worker


def anonymous() -> int:
    """Return this process's anonymous resident memory in bytes (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Fit one epoch and watch."""
    shards = Path(sys.argv[1]).resolve()
    on_disk = sum(p.stat().st_size for p in shards.rglob("*.arrow"))
    imported = anonymous()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    bare, peak, stop = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as run:
        Storage.open(run).write_text("config.yaml", "benchmark: true\n")
        job = FitJob(
            model=MLPConfig(),
            training=TrainingConfig(epochs=1, batch_size=1024),
            seed=0,
            data_uri=str(shards),
            run_uri=run,
            monitor=resolve_scoring("auto", "binary")[0],
        )
        run_worker(job, Strategy(pick_device(0)), Silent())
    stop.set()
    watcher.join()
    mib = 2**20
    print(
        f"data on disk {on_disk / mib:.0f} MiB; anonymous after imports {imported / mib:.0f}, with a first optimiser "
        f"{bare / mib:.0f}, peak {peak[0] / mib:.0f} MiB"
    )
    print(
        f"growth over the data: {(peak[0] - bare) / on_disk:.2f}; from the imports on {(peak[0] - imported) / on_disk:.2f}"
    )


if __name__ == "__main__":
    main()
