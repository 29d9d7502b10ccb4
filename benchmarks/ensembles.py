"""The figures of the page on costs for rejection, costing and MetaCost: the cost of a test row, over splits of a table.

    python benchmarks/ensembles.py ROWS.parquet TARGET ID [SEEDS]

A false alarm costs 1, a missed event 25. Each seed is another split: 40 % of the rows to training, 20 % to validation and 40 % to
test. A line is the mean cost of a test row over the splits, the paired difference to the first line with its 95 % interval (the
corrected t interval of repeated splits: Nadeau and Bengio 2003, Machine Learning 52, section 3), and the median seconds of a run.
"""

import math
import statistics
import sys
import tempfile
import time

from scipy.stats import t as student

import shoal

TEST, TRAIN = 0.4, 0.4
WAYS: dict[str, dict[str, object]] = {
    "threshold: optimal": {},
    "sampling: cost_rejection": {"sampling": "cost_rejection"},
    "ensemble: costing, 10 members": {"ensemble": {"costing": {"members": 10}}},
    "ensemble: metacost, 10 members": {"ensemble": {"metacost": {"members": 10}}},
}


def cost_of(
    rows: str, target: str, name: str, seed: int, training: dict[str, object], folder: str
) -> tuple[float, float]:
    """Train once; return the cost of a test row, and the seconds of the fit."""
    experiment = shoal.Experiment.model_validate(
        {
            "data": {
                "path": rows,
                "target": target,
                "id": name,
                "split": {"test": TEST, "validation": 1 - TEST - TRAIN},
            },
            "model": {"mlp": {"hidden": [64]}},
            "training": {"epochs": 20, "batch_size": 128, "optimizer": "adam", **training},
            "evaluation": {"costs": {"false_positive": 1, "false_negative": 25}, "replicates": 100},
            "cluster": {"storage_path": folder, "placement": "inline"},
            "seed": seed,
        }
    )
    started = time.perf_counter()
    result = shoal.train(experiment)
    return result.scores["test"]["expected_cost"]["value"], time.perf_counter() - started


def main(rows: str, target: str, name: str, seeds: int = 5) -> None:
    """Print a line a way."""
    first: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for way, training in WAYS.items():
            found = [cost_of(rows, target, name, seed, training, folder) for seed in range(seeds)]
            costs, seconds = (list(values) for values in zip(*found, strict=True))
            first = first or costs
            gaps = [one - other for one, other in zip(costs, first, strict=True)]
            spread = math.sqrt(statistics.variance(gaps) * (1 / seeds + TEST / TRAIN))
            spread *= student.ppf(0.975, seeds - 1)
            middle = statistics.mean(gaps)
            said = f"{middle:+.3f} ({middle - spread:+.3f} to {middle + spread:+.3f})" if any(gaps) else ""
            print(f"{way:32} {statistics.mean(costs):.3f}  {said:28} {statistics.median(seconds):6.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
