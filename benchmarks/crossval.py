"""Five folds by `shoal crossval` and by scikit-learn's `cross_val_score` over the same network, written by hand.

Usage: python benchmarks/crossval.py FILE.parquet [--repeats 3]

FILE has a 0/1 `label` and a `split` column with train and test (census_income has); the test rows are in no fold. Both sides
train the network of `handwritten.py` on the same number of rows, in one process and in two (loky's, and Ray tasks). Cold is a
whole command in a new process, Ray's start included; warm is the same again in a process that has done it once. A fold's
overhead is what its seconds are beyond training and judging; without a file, it is measured on scikit-learn's digits.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = """
data: {{path: {path}, target: label, split: {{{split}, validation: 0}}}}
model: {{mlp: {{hidden: [128, 128]}}}}
training: {{epochs: 3, batch_size: 1024, early_stopping: null, optimizer: {{adam: {{learning_rate: 1e-3}}}}}}
evaluation: {{cv: {{stratified: {{n_splits: 5}}}}, scoring: {scoring}}}
cluster: {{storage_path: {storage}, placement: {placement}}}
"""


def hand(file: str, jobs: int) -> list[dict[str, float]]:
    """Do it twice with scikit-learn; each starts with the file."""
    import pandas as pd
    from handwritten import Encoder, Net, fit, scores_of
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    class ByHand(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, x: pd.DataFrame, y: Any) -> "ByHand":
            import torch

            torch.set_num_threads(1)
            self.classes_ = [0, 1]
            self.encoder_ = Encoder(x)
            numbers, codes = self.encoder_(x)
            self.model_ = Net(len(self.encoder_.numeric), self.encoder_.cardinalities)
            fit(self.model_, numbers, codes, torch.tensor(y.to_numpy(), dtype=torch.float32))
            return self

        def decision_function(self, x: pd.DataFrame) -> Any:
            return scores_of(self.model_, *self.encoder_(x)).numpy()

    found = []
    for _ in range(2):
        started = time.perf_counter()
        frame = pd.read_parquet(file)
        frame = frame[frame["split"] == "train"]
        x, y = frame.drop(columns=["label", "split"]), frame["label"]
        scores = cross_val_score(
            ByHand(),
            x,
            y,
            cv=StratifiedKFold(5, shuffle=True, random_state=0),
            scoring="roc_auc",
            n_jobs=jobs,
        )
        found.append({"seconds": time.perf_counter() - started, "score": float(scores.mean())})
    return found


def shoal(config: str, jobs: int) -> list[dict[str, float]]:
    """Do it twice with Shoal, with a new folder each; the second finds the process warm."""
    from shoal.cluster.config import ClusterConfig
    from shoal.cluster.resources import Demand
    from shoal.cluster.session import session
    from shoal.experiment import load_experiment
    from shoal.verbs.crossval import crossval

    found = []
    with contextlib.ExitStack() as stack:
        for again in range(2):
            started = time.perf_counter()
            if jobs > 1 and not again:  # Ray goes on, as it does on a cluster
                stack.enter_context(session(ClusterConfig(), Demand()))
            result = crossval(load_experiment(config), f"{config}-run-{again}")
            seconds = time.perf_counter() - started
            (scores,) = result.scores.values()
            facts = [
                json.loads(p.read_text()) for p in Path(f"{config}-run-{again}").glob("fits/*/metrics.json")
            ]
            entry = {"seconds": seconds, "score": next(iter(scores.values()))["value"]}
            entry |= {
                stage: statistics.median(f["seconds"][stage] for f in facts) for stage in facts[0]["seconds"]
            }
            found.append(entry)
    return found


def in_a_new_process(*arguments: str) -> tuple[float, list[dict[str, float]]]:
    """Return the wall time of this script as a child, and what it found."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def compare(file: Path, split: str, scoring: str, repeats: int, by_hand: bool) -> None:
    """Run both sides in turns and print medians with the smallest and the largest."""
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for jobs, placement in ((1, "inline"), (2, "task")):
                config = Path(folder) / f"{placement}-{repeat}.yaml"
                values = {"path": file, "split": split, "scoring": scoring, "placement": placement}
                config.write_text(CONFIG.format(**values, storage=f"{folder}/runs"))
                sides = [("shoal", str(config))] + ([("hand", str(file))] if by_hand else [])
                for side, subject in sides:
                    wall, (first, warm) = in_a_new_process(subject, "--side", side, "--jobs", str(jobs))
                    name = f"{side}, {jobs} at a time"
                    cold = wall - warm["seconds"]
                    for what, value in {
                        "cold, s": cold,
                        "warm, s": warm["seconds"],
                        "score": first["score"],
                    }.items():
                        rows.setdefault(f"{name}: {what}", []).append(value)
                    if side == "shoal" and jobs == 1:
                        for stage in ("shard", "fit", "judge"):
                            rows.setdefault(f"{name}: a fold's {stage}, s", []).append(warm[stage])
            shutil.rmtree(f"{folder}/runs", ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in rows.items()}
    for name, values in rows.items():
        print(f"  {name:<44}{medians[name]:>10.3f}   ({min(values):.3f} to {max(values):.3f})")
    for jobs in (1, 2) if by_hand else ():
        for what in ("cold, s", "warm, s"):
            ratio = medians[f"shoal, {jobs} at a time: {what}"] / medians[f"hand, {jobs} at a time: {what}"]
            print(f"  {what[:4]}, {jobs} at a time, shoal / hand: {ratio:.2f}")


def small(repeats: int) -> None:
    """Measure the overhead of a fold on data that take no time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    data = load_digits()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.parquet"
        pixels = {f"p{i}": data.data[:, i] for i in range(64)}
        pq.write_table(pa.table(pixels | {"label": data.target}), path)
        compare(path, "test: 0", "accuracy", repeats, by_hand=False)


def main() -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("hand", "shoal"), help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = hand if options.side == "hand" else shoal
        print(json.dumps(side(str(options.file), options.jobs)))
    elif options.file is None:
        small(options.repeats)
    else:
        compare(options.file.resolve(), "column: split", "roc_auc", options.repeats, by_hand=True)


if __name__ == "__main__":
    main()
