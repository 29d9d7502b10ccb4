"""What domain adaptation gains on target rows, beside a plain fit of the source's, over seeds.

    python benchmarks/adaptation.py [NAME=TRAIN.parquet:TEST.parquet …] [--target COLUMN] [--scaling COLUMN=none …]
        [--methods METHOD … as YAML] [--seeds N] [--epochs N] [--folder FOLDER] [--plot FILE.png]

Every ordered pair of the named domains is a problem: the rows with labels of one, the same many rows without labels of the other,
and that one's test file for the final test alone. Without files there are two made problems: two moons and the same turned by 40
degrees, and two Gaussian classes of which one makes up .9 of the target. Settings are the same for all problems. The method is
chosen without target labels, by the mean rank over all problems (`transfer/adaptation/selection`). Differences to source only are
paired by seed; their interval over problems and seeds is Student's.
"""

import argparse
import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t as student
from sklearn.datasets import make_moons

from shoal.experiment import from_dict
from shoal.verbs.adapt import adapt
from shoal.yaml_file import parse

METHODS = ["dann", "cdan", "{deep_coral: {weight: 10}}", "mmd", "{mmd: {weight: 3}}"]
MADE = [
    "dann",
    "{dann: {label_shift: true}}",
    "cdan",
    "mmd",
    "{mmd: {label_shift: true}}",
    "bbse",
    "self_training",
]


def moons(folder: Path) -> dict[str, tuple[str, str]]:
    """Write two moons, and the same turned by 40 degrees."""
    angle = math.radians(40)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    found = {}
    for name, by, seed in (("moons", np.eye(2), 0), ("turned", turn, 10)):
        files = []
        for part, n in (("train", 600), ("test", 2000)):
            x, y = make_moons(n, noise=0.1, random_state=seed + len(files))
            files.append(write(folder / f"{name}-{part}.parquet", (x - x.mean(0)) @ by.T, y))
        found[name] = (files[0], files[1])
    return found


def gaussians(folder: Path) -> dict[str, tuple[str, str]]:
    """Write two Gaussian classes, half and half, and the same of which one makes up .9."""
    found = {}
    for name, share, seed in (("even", 0.5, 0), ("uneven", 0.9, 10)):
        files = []
        for part, n in (("train", 1000), ("test", 4000)):
            draw = np.random.default_rng(seed + len(files))
            y = (draw.random(n) < share).astype(np.int64)
            x = draw.normal(size=(n, 2)) + np.where(y[:, None] == 1, 2.6, 0.0)
            files.append(write(folder / f"{name}-{part}.parquet", x, y))
        found[name] = (files[0], files[1])
    return found


def write(path: Path, x: np.ndarray, y: np.ndarray) -> str:
    """Write points and their labels."""
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "label": [f"class {k}" for k in y]}), path)
    return str(path)


def solve(
    source: tuple[str, str], target: tuple[str, str], methods: list[Any], args: argparse.Namespace, name: str
) -> dict[str, Any]:
    """Return what a problem's `metrics.json` says."""
    made = from_dict(
        {
            "data": {
                "path": source[0],
                "target": args.target,
                "task": args.task,
                "scaling": dict(one.split("=") for one in args.scaling),
                "split": {"test": 0, "validation": 0.1},
                "drop": args.drop,
            },
            "model": {"mlp": {"hidden": args.hidden}},
            "training": {
                "epochs": args.epochs,
                "batch_size": args.batch_size,
                "optimizer": {"adam": {"learning_rate": args.rate}},
            },
            "evaluation": {"scoring": ["accuracy"]},
            "transfer": {
                "adaptation": methods[0],
                "candidates": methods[1:],
                "target_data": {"path": target[0], "test": target[1]},
                "seeds": args.seeds,
                "in_domain": False,
            },
            "cluster": {"storage_path": str(args.folder / "runs")},
        }
    )
    result = adapt(made, str(args.folder / name), name=name)
    print(f"{name}: {result.found['sentence']}", flush=True)
    return result.found


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return a mean and half the width of its 95 % interval."""
    half = (
        student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        if len(values) > 1
        else math.nan
    )
    return float(values.mean()), float(half)


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print a table: a column a problem, a row a model."""
    kinds = list(next(iter(found.values()))["methods"])
    print("\n| accuracy | " + " | ".join(found) + " | mean | less source only | mean rank |")
    print("|---" * (4 + len(found)) + "|")
    ranks = {kind: np.mean([one["selection"]["ranks"][kind] for one in found.values()]) for kind in kinds}
    for kind in kinds:
        cells = []
        for one in found.values():
            mean, half = interval(np.array(one["methods"][kind]["accuracy"]["by_seed"]))
            cells.append(f"{mean:.3f} ± {half:.3f}")
        whole = np.array([one["methods"][kind]["accuracy"]["by_seed"] for one in found.values()])
        plain = np.array([one["methods"]["source_only"]["accuracy"]["by_seed"] for one in found.values()])
        more, width = interval((whole - plain).mean(0))
        cells += [
            f"{whole.mean():.3f}",
            "" if kind == "source_only" else f"{more:+.4f} ± {width:.4f}",
            f"{ranks[kind]:.2f}",
        ]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    best = min((kind for kind in kinds if kind != "source_only"), key=lambda kind: ranks[kind])
    print(f"\nchosen without target labels: {best}")


def main() -> None:
    """Solve the problems."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("domains", nargs="*")
    parser.add_argument("--target", default="label")
    parser.add_argument("--task", default="auto")
    parser.add_argument("--scaling", nargs="*", default=[])
    parser.add_argument("--drop", nargs="*", default=[])
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--hidden", type=int, nargs="*", default=[100])
    parser.add_argument(
        "--folder", type=Path, required=True, help="where runs are; the same one again goes on"
    )
    parser.add_argument("--pairs", nargs="*", help="source-target …, all where not given")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    methods = [parse(text, "--methods")[0] for text in args.methods or (METHODS if args.domains else MADE)]
    if args.domains:
        files = {
            name: tuple(paths.split(":")) for name, _, paths in (one.partition("=") for one in args.domains)
        }
        problems = [(a, b, files[a], files[b]) for a, b in permutations(files, 2)]
    else:
        problems = [(*made, *made.values()) for made in (moons(args.folder), gaussians(args.folder))]
    found = {}
    for a, b, source, target in problems:
        if not args.pairs or f"{a}-{b}" in args.pairs:
            found[f"{a} to {b}"] = solve(source, target, methods, args, f"{a}-{b}")
    show(found)
    (args.folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
