"""CPU time and memory of resampling against imbalanced-learn, on made rows of 30 numbers with 1 % of events.

    python benchmarks/resampling.py [--rows 100000 1000000] [--methods smote near_miss] [--repeats 3]

Each run is a process of its own with one thread, both sides in turn: the growth of its peak memory over that with the rows
loaded, and the CPU time. Shoal's side makes every new row, in blocks, as the shards are written.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, SHARE = 30, 0.01
THEIRS = {
    "smote": ("over_sampling", "SMOTE", {"random_state": 0}),
    "borderline_smote": ("over_sampling", "BorderlineSMOTE", {"random_state": 0}),
    "adasyn": ("over_sampling", "ADASYN", {"random_state": 0}),
    "near_miss": ("under_sampling", "NearMiss", {}),
    "tomek_links": ("under_sampling", "TomekLinks", {}),
    "edited_nearest_neighbours": ("under_sampling", "EditedNearestNeighbours", {}),
    "random_under_sampler": ("under_sampling", "RandomUnderSampler", {"random_state": 0}),
    "random_over_sampler": ("over_sampling", "RandomOverSampler", {"random_state": 0}),
}


def write_rows(folder: Path, rows: int) -> None:
    """Write numbers and labels, by class; the events are 10 clusters beside the others' middle."""
    generator = np.random.default_rng(0)
    events = int(rows * SHARE)
    x = generator.standard_normal((rows, WIDTH), np.float32)
    centres = generator.standard_normal((10, WIDTH), np.float32)
    x[rows - events :] = x[rows - events :] * 0.7 + centres[generator.integers(0, 10, events)]
    np.save(folder / f"x{rows}.npy", x)


def measure(side: str, method: str, file: str) -> dict[str, float]:
    """Run one side in this process."""
    x = np.load(file)
    events = int(len(x) * SHARE)
    offsets = np.array([0, len(x) - events, len(x)])
    work = _ours(method, x, offsets) if side == "shoal" else _theirs(method, x, offsets)
    before, cpu, wall = _peak(), time.process_time(), time.perf_counter()
    rows = work()
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "mib": (_peak() - before) / 2**20,
        "rows": rows,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ours(method: str, x: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> Any:
    import imblearn.utils  # noqa: F401 both sides have it imported before the clock starts
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401 the same

    from shoal.cluster.sharding.imbalance.config import IMBALANCE
    from shoal.cluster.sharding.imbalance.resample import resample
    from shoal.cluster.sharding.imbalance.rows import BLOCK, TrainingRows
    from shoal.cluster.sharding.manifest import Column, Schema, Target
    from shoal.cluster.sharding.prepare import Prepared

    columns = tuple(
        Column(name=f"x{i}", type="numeric", arrow_type="float", parts=(f"x{i}",)) for i in range(WIDTH)
    )
    target = Target(columns=("y",), task="binary", classes=("no", "yes"))
    schema = Schema(columns=columns, target=target)
    rows = TrainingRows(Prepared(x, np.empty((len(x), 0), np.int32)), offsets, schema)

    def work() -> int:
        found = resample(IMBALANCE[method](), rows, 0)
        for start in range(0, len(found.made), BLOCK):
            found.made.rows(np.arange(start, min(start + BLOCK, len(found.made))))
        return len(found.kept) + len(found.made)

    return work


def _theirs(method: str, x: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> Any:
    import importlib

    module, name, arguments = THEIRS[method]
    sampler = getattr(importlib.import_module(f"imblearn.{module}"), name)(**arguments)
    y = np.repeat([0, 1], np.diff(offsets))
    return lambda: len(sampler.fit_resample(x, y)[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--methods", nargs="+", choices=THEIRS, default=["smote", "near_miss"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=("shoal", "theirs"), default=["theirs", "shoal"])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    one = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
    with tempfile.TemporaryDirectory() as folder:
        for rows in given.rows:
            write_rows(Path(folder), rows)
            for method in given.methods:
                runs: dict[str, list[dict[str, float]]] = {side: [] for side in given.sides}
                for _ in range(given.repeats):
                    for side in given.sides:
                        command = [
                            sys.executable,
                            __file__,
                            "--measure",
                            side,
                            method,
                            f"{folder}/x{rows}.npy",
                        ]
                        runs[side].append(
                            json.loads(
                                subprocess.run(command, env=one, check=True, capture_output=True).stdout
                            )
                        )
                said = []
                for side, found in runs.items():
                    cpu, mib = (statistics.median(run[key] for run in found) for key in ("cpu", "mib"))
                    said.append(f"{side} {cpu:.2f} s CPU, {mib:,.0f} MiB, {found[0]['rows']:,.0f} rows")
                if len(runs) == 2:
                    cpu, mib = (
                        statistics.median(r[key] for r in runs["shoal"])
                        / statistics.median(r[key] for r in runs["theirs"])
                        for key in ("cpu", "mib")
                    )
                    said.append(f"ratio {cpu:.2f} CPU, {mib:.2f} memory")
                print(f"{rows:,} rows, {method}: {'; '.join(said)}", flush=True)
            (Path(folder) / f"x{rows}.npy").unlink()


if __name__ == "__main__":
    main()
