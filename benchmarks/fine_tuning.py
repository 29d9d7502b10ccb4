"""Accuracy after a model was moved to another question, by how much of it is trained and on how many labelled rows.

    python benchmarks/fine_tuning.py [DATA.parquet] [--target NAME] [--seeds N] [--rows N …] [--plot FILE.png]

Two moves, without a file on scikit-learn's digits. *Other classes*: a network is trained on the lower half of the classes, digits
0 to 4, and moved to the upper half. *A coarser question*: it is trained on all classes with half of the rows, and on the others
asked whether the class is odd or even. A seed draws the test rows, the first model and the labelled rows, as many of each
class; every way sees the same ones, takes the same number of steps at the same learning rate, and has no validation rows to
choose by.
Intervals are Student's, 95 %, over the seeds; differences are paired.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import t as student
from sklearn.datasets import load_digits

from shoal.cluster.resources import plan
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, from_dict
from shoal.training.trainer import fit
from shoal.verbs.dataset import shard
from shoal.verbs.fit import job_of

FIRST_STEPS, STEPS, BATCH = 1000, 200, 32
MODEL = {"mlp": {"hidden": [128, 64]}}
OPTIMIZER = {"adam": {"learning_rate": 3e-3}}
SCRATCH = "from scratch"
WAYS: dict[str, dict[str, Any] | None] = {
    SCRATCH: None,
    "frozen features": {"freeze": "all_but_head"},
    "gradual, rates by depth": {"unfreeze": {"gradual": {"epochs": 0}}, "rate_decay": 1 / 2.6},
    "probe, then all": {"unfreeze": {"probe": {"epochs": 0}}},
    "all": {},
    "all, L2-SP": {"l2_sp": {}},
}
SHARE = {"gradual": 0.25, "probe": 0.5}  # of the epochs, in a stage before the last


def table_of(path: str | None, target: str) -> pa.Table:
    """Read rows whose columns are numbers, and a label, as text."""
    if path is not None:
        table = pq.read_table(path)
        label = [f"class {value}" for value in table[target].to_pylist()]
        return table.drop_columns([target]).append_column("label", pa.array(label))
    data = load_digits()
    columns = {f"pixel_{i // 8}_{i % 8}": data.data[:, i] for i in range(64)}
    return pa.table(columns | {"label": [f"class {value}" for value in data.target]})


def experiment(
    folder: Path, name: str, table: pa.Table, part: np.ndarray, rows: int, seed: int, transfer: Any
) -> Experiment:
    """Describe a fit of some rows; the number of its steps does not depend on how many they are."""
    pq.write_table(table.append_column("part", pa.array(part)), folder / f"{name}.parquet")
    epochs = math.ceil((FIRST_STEPS if name == "first" else STEPS) / math.ceil(rows / BATCH))
    if transfer is not None:
        for kind, share in SHARE.items():
            if kind in transfer.get("unfreeze", {}):
                transfer = transfer | {"unfreeze": {kind: {"epochs": int(share * epochs)}}}
        transfer = transfer | {"start": str(folder / "first")}
    return from_dict(
        {
            "data": {
                "path": str(folder / f"{name}.parquet"),
                "target": "label",
                "task": "multiclass",
                "shards": 1,
                "split": {"column": "part", "validation": 0},
            },
            "model": MODEL,
            "training": {
                "epochs": epochs,
                "batch_size": BATCH,
                "optimizer": OPTIMIZER,
                "early_stopping": None,
                "checkpoint": None,
            },
            "transfer": transfer,
            "cluster": {"storage_path": str(folder / "runs")},
            "seed": seed,
        }
    )


def accuracy(experiment: Experiment, run: Path) -> float:
    """Shard and fit, as `shoal train` does, and return the share of the test rows that come out right."""
    shape, _ = plan(experiment.cluster)
    data = shard(experiment, name=run.name)
    folder = Storage.open(str(run))
    folder.write_text("config.yaml", "")
    fit(job_of(experiment, data, shape, folder, monitor=None), shape, experiment.cluster)
    rows = pq.read_table(run / "predictions.parquet").filter(pc.field("split") == "test")
    names = [name for name in rows.column_names if name.startswith("score_")]
    best = np.stack([rows[name].to_numpy() for name in names], 1).argmax(1)
    return float(
        np.mean(
            [f"score_{label}" == names[i] for label, i in zip(rows["label"].to_pylist(), best, strict=True)]
        )
    )


def other_classes(table: pa.Table, _: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Return the rows of the lower half of the classes, and those of the upper half."""
    label = np.array(table["label"].to_pylist())
    names = sorted(set(label))
    low = np.isin(label, names[: len(names) // 2])
    return table.filter(pa.array(low)), table.filter(pa.array(~low))


def coarser(table: pa.Table, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Return half of the rows, and the other half with the labels odd and even."""
    first, second = np.array_split(rng.permutation(len(table)), 2)
    names = sorted(set(table["label"].to_pylist()))
    asked = table.take(pa.array(second))
    parity = ["odd" if names.index(name) % 2 else "even" for name in asked["label"].to_pylist()]
    place = asked.column_names.index("label")
    return table.take(pa.array(first)), asked.set_column(place, "label", pa.array(parity))


MOVES = {"other classes": other_classes, "a coarser question": coarser}


def one_seed(table: pa.Table, move: str, sizes: list[int], seed: int) -> dict[tuple[str, int], float]:
    """Return the accuracy on the test rows of the second question, of every way and number of labelled rows."""
    rng = np.random.default_rng(seed)
    first, second = MOVES[move](table, rng)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        part = np.where(rng.random(len(first)) < 0.2, "test", "train")
        rows = int((part == "train").sum())
        accuracy(experiment(folder, "first", first, part, rows, seed, None), folder / "first")
        label = np.array(second["label"].to_pylist())
        names = sorted(set(label))
        test, pool = np.array_split(rng.permutation(len(second)), [int(0.4 * len(second))])
        for n in sizes:
            chosen = np.concatenate([pool[label[pool] == name][: n // len(names)] for name in names])
            part = np.full(len(second), "none", dtype=object)
            part[test], part[chosen] = "test", "train"
            kept = part != "none"
            few = second.filter(pa.array(kept))
            for way, transfer in WAYS.items():
                name = f"{n} {way}".replace(" ", "-").replace(",", "")
                made = experiment(folder, name, few, part[kept], len(chosen), seed, transfer)
                found[way, n] = accuracy(made, folder / name)
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return a mean and half the width of its 95 % interval."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(half)


Results = dict[tuple[str, int], np.ndarray]


def plot(results: dict[str, Results], sizes: list[int], path: str) -> None:
    """Draw a curve with intervals for each way, a panel for each move."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (move, found) in zip(
        figure.subplots(1, len(results), sharey=True), results.items(), strict=True
    ):
        for i, way in enumerate(WAYS):
            means, halves = zip(*(interval(found[way, n]) for n in sizes), strict=True)
            x = np.array(sizes) * 1.03 ** (i - len(WAYS) / 2)  # side by side
            axes.errorbar(x, means, yerr=halves, marker="o", ms=4, capsize=3, lw=1.5, label=way)
        axes.set(xscale="log", xlabel="labelled rows", xticks=sizes, title=move)
        axes.set_xticklabels([str(n) for n in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on test rows")
    figure.axes[-1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def show(move: str, results: Results, sizes: list[int], seeds: int) -> None:
    """Print a table."""
    print(f"\n{move}: accuracy, and its paired difference to {SCRATCH}; {seeds} seeds\n")
    print("| | " + " | ".join(f"{n} rows | difference" for n in sizes) + " |")
    print("|---" * (1 + 2 * len(sizes)) + "|")
    for way in WAYS:
        cells = []
        for n in sizes:
            mean, half = interval(results[way, n])
            more, width = interval(results[way, n] - results[SCRATCH, n])
            cells += [f"{mean:.3f} ± {half:.3f}", "" if way == SCRATCH else f"{more:+.3f} ± {width:.3f}"]
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--target", default="label")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--plot")
    given = parser.parse_args()
    table, results = table_of(given.data, given.target), {}
    for move in MOVES:
        by_seed = [one_seed(table, move, given.rows, seed) for seed in range(given.seeds)]
        results[move] = {key: np.array([found[key] for found in by_seed]) for key in by_seed[0]}
        show(move, results[move], given.rows, given.seeds)
    if given.plot:
        plot(results, given.rows, given.plot)


if __name__ == "__main__":
    main()
