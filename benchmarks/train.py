"""`shoal train` against a script written by hand, whole commands and training loops, alternating in one run.

Usage: python benchmarks/train.py FILE.parquet [--repeats 5] [--workers 1 2]

FILE has a 0/1 `label` and a `split` column with train and test (census_income has). Both sides train the same
embeddings and 128-128 network, Adam at 1e-3, batch 1024, 3 epochs, on the same rows (no validation rows are cut).
Printed are medians and ratios: rows/s of the loops (Shoal's over the script's) and wall time of the commands
(Shoal's over the script's), once with sharding and once with the shards already there.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

CONFIG = """
data:
  path: {path}
  target: label
  split: {{column: split, validation: 0}}
model:
  mlp: {{hidden: [128, 128]}}
training:
  epochs: 3
  batch_size: 1024
  optimizer: {{adam: {{learning_rate: 1e-3}}}}
evaluation:
  scoring: [roc_auc, average_precision]
cluster:
  num_workers: {workers}
  storage_path: {storage}
"""


def timed(command: list[str], cwd: Path) -> tuple[float, dict[str, Any]]:
    """Run a command and return its wall time and the JSON of its last line of output."""
    started = time.perf_counter()
    out = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    seconds = time.perf_counter() - started
    if out.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{out.stderr}")
    return seconds, json.loads(out.stdout)


def compare(file: Path, workers: int, repeats: int) -> None:
    """Alternate the two sides and print medians and ratios."""
    torchrun = Path(sys.executable).with_name("torchrun")
    script = [str(HERE / "handwritten.py"), str(file)]
    by_hand = (
        [sys.executable, *script] if workers == 1 else [str(torchrun), f"--nproc-per-node={workers}", *script]
    )
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            (here / "bench.yaml").write_text(CONFIG.format(path=file, workers=workers, storage=here / "runs"))
            shoal = [str(Path(sys.executable).with_name("shoal")), "train", "bench.yaml", "--json", "--quiet"]
            seconds, result = timed(by_hand, here)
            note("hand: whole command, s", seconds)
            note("hand: training, rows/s", result["rows_per_second"])
            note("hand: ROC AUC", result["roc_auc"])
            seconds, result = timed(shoal, here)
            note("shoal: whole command with sharding, s", seconds)
            note("shoal: training, rows/s", result["fit"]["rows_per_second"])
            note("shoal: ROC AUC", result["metrics"]["test"]["roc_auc"]["value"])
            for run in (here / "runs").glob("bench-train-*"):
                shutil.rmtree(run)
            seconds, result = timed(shoal, here)
            note("shoal: whole command with shards there, s", seconds)
            note("shoal: training, rows/s", result["fit"]["rows_per_second"])
    print(f"\n{workers} worker{'s' if workers > 1 else ''}, medians of {repeats}")
    medians = {name: statistics.median(values) for name, values in rows.items()}
    for name, value in medians.items():
        print(f"  {name:<44}{value:>12,.3f}   ({min(rows[name]):,.3f} to {max(rows[name]):,.3f})")
    hand = medians["hand: whole command, s"]
    print(
        f"  rows/s, shoal / hand: {medians['shoal: training, rows/s'] / medians['hand: training, rows/s']:.2f}"
    )
    print(
        f"  wall with sharding, shoal / hand: {medians['shoal: whole command with sharding, s'] / hand:.2f}"
    )
    print(
        f"  wall with shards there, shoal / hand: {medians['shoal: whole command with shards there, s'] / hand:.2f}"
    )


def main() -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    for workers in options.workers:
        compare(options.file.resolve(), workers, options.repeats)


if __name__ == "__main__":
    main()
