"""Loss against passes over the data and against seconds, of optimisers on two convex problems.

    python benchmarks/convergence.py DATA.parquet TARGET [--split-column NAME] [--plot FILE.png]

The first is logistic regression with an L2 penalty on the training rows of a Parquet file, by Shoal's loop in fp64 with one
thread, its optimum by scikit-learn's Newton-CG; the second a quadratic of 200 unknowns with condition number 1e4. A pass is
one evaluation of loss and gradient over all rows, at once, in batches or inside a line search. First-order optimisers run at
several learning rates; AdamW also with a cosine to 0 over several budgets of passes, and for each gap the best run counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from shoal.cluster.progress import EpochRecord, Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.training.config import LinearConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import InputEncoder, build_model
from shoal.training.optimizers.lbfgs import LBFGS
from shoal.training.optimizers.nonlinear_cg import NonlinearCG
from shoal.training.strategies.base import Strategy

L2 = 1e-4
GAPS = (
    1e-2,
    3e-3,
    1e-3,
    1e-4,
    1e-5,
    1e-6,
)  # of the objective above its optimum, relative: where a fit counts as there
PASSES = 100
POINTS = 50  # of a curve, at most
BUDGETS = {
    1024: (30, 100, 300, 1000),
    "full": (100, 300, 1000, 3000),
}  # passes of AdamW's schedule, by batch size
RATES: dict[int | str, tuple[float, ...]] = {1024: (1e-3, 3e-3, 1e-2), "full": (1e-2, 3e-2, 1e-1)}


@dataclass
class Curve:
    """Objective after so many passes and seconds."""

    passes: list[float]
    seconds: list[float]
    values: list[float]

    def passes_to(self, target: float) -> float:
        """Return the passes after which the objective stays below a target."""
        above = [i for i, value in enumerate(self.values) if value > target]
        first = above[-1] + 1 if above else 0
        return self.passes[first] if first < len(self.passes) else float("inf")


class Watch(Silent):
    """Computes the objective over all training rows after every few epochs; its time is not the fit's."""

    def __init__(self, every: int) -> None:
        self.curve, self.every = Curve([], [], []), every
        self.loop: Loop | None = None

    def epoch(self, record: EpochRecord) -> None:
        """Note where the fit is."""
        assert self.loop is not None
        if record.epoch % self.every and not self.loop.stepper.searched:
            return
        evaluations = sum(row[4] for row in self.loop.history.rows if row[3] == "evaluations")
        self.curve.passes.append(evaluations or float(record.epoch))
        self.curve.seconds.append(self.loop.train_seconds)
        self.curve.values.append(objective(self.loop))


@torch.no_grad()
def objective(loop: Loop) -> float:
    """Return the mean loss of the training rows and the penalty."""
    total, rows, loss = 0.0, 0, loop.stepper.loss.values
    for v in range(loop.dataset.n_shards):
        part = loop.dataset.shard("train", v)
        numeric, codes = torch.tensor(part.numeric).double(), torch.tensor(part.categorical)
        total += float(loss(loop.model(numeric, codes), torch.tensor(part.label)).sum())
        rows += len(part.label)
    weights = [p for n, p in loop.model.named_parameters() if not n.endswith("bias")]
    return total / rows + L2 / 2 * sum(float(p.square().sum()) for p in weights)


def optimum_of(dataset: ShardedDataset) -> float:
    """Return the least objective, by scikit-learn's Newton-CG on one-hot columns."""
    encoder = InputEncoder(dataset.schema, embedding=None)
    parts = [dataset.shard("train", v) for v in range(dataset.n_shards)]
    numeric = encoder.fill(torch.tensor(np.concatenate([p.numeric for p in parts])).double()).numpy()
    codes, columns = np.concatenate([p.categorical for p in parts]), [csr_matrix(numeric)]
    n = len(codes)
    for i, column in enumerate(dataset.schema.categorical):
        ones = (np.ones(n), (np.arange(n), codes[:, i]))
        columns.append(csr_matrix(ones, shape=(n, column.cardinality)))
    x, y = hstack(columns).tocsr(), np.concatenate([p.label for p in parts])
    found = LogisticRegression(C=1 / (L2 * n), solver="newton-cg", tol=1e-9, max_iter=1000).fit(x, y)
    margins = (2 * y - 1) * found.decision_function(x)
    return float(np.logaddexp(0, -margins).mean() + L2 / 2 * (found.coef_**2).sum())


def fit(
    dataset: ShardedDataset,
    optimizer: dict[str, Any],
    batch_size: int | str,
    epochs: int = PASSES,
    schedule: str = "constant",
) -> Curve:
    """Fit logistic regression and return how its objective fell."""
    watch = Watch(max(1, epochs // POINTS))
    config = {
        "optimizer": optimizer,
        "batch_size": batch_size,
        "epochs": epochs,
        "schedule": schedule,
        "l2": L2,
        "precision": "fp64",
    }
    model = build_model(LinearConfig(), dataset.schema, 0)
    strategy = Strategy(torch.device("cpu"))
    watch.loop = Loop(model, dataset, TrainingConfig.model_validate(config), strategy, None, 0, watch)
    watch.loop.run()
    return watch.curve


def best(curves: Sequence[tuple[str, Curve]], target: float) -> tuple[str, Curve]:
    """Return the setting that is there first, or comes nearest."""
    return min(curves, key=lambda named: (named[1].passes_to(target), named[1].values[-1]))


def adamw(dataset: ShardedDataset, batch_size: int | str) -> list[tuple[str, Curve]]:
    """Fit with AdamW and a cosine over ever larger budgets; of the rates, those that came lowest go on to the next one."""
    rates, found = RATES[batch_size], []
    for budget in BUDGETS[batch_size]:
        ends = {}
        for rate in rates:
            values = {"learning_rate": rate, "weight_decay": 0.0}
            curve = fit(dataset, {"adamw": values}, batch_size, budget, "cosine")
            name = f"adamw {rate:g}, batch {batch_size}, cosine over {budget:,}"
            found.append((name, curve))
            ends[rate] = curve.values[-1]
            print(f"  {name}: ends at {curve.values[-1]:.9f} after {curve.seconds[-1]:.0f} s", flush=True)
        rates = tuple(sorted(ends, key=lambda rate: ends[rate]))[: max(1, len(rates) - 1)]
    return found


def regressions(dataset: ShardedDataset) -> tuple[dict[str, Curve], float]:
    """Fit with each optimiser; return the curves and the optimum."""
    search = {"max_iter": 10, "tolerance_grad": 1e-9, "tolerance_change": 1e-14}
    optimum = optimum_of(dataset)
    print(f"optimum {optimum:.12f}", flush=True)
    curves = {
        "lbfgs": fit(dataset, {"lbfgs": search}, "full", 60),
        "lbfgs, history 50": fit(dataset, {"lbfgs": {**search, "history_size": 50}}, "full", 60),
        "nonlinear_cg": fit(dataset, {"nonlinear_cg": search}, "full", 60),
    }
    show("logistic regression", curves, {f"{g:g} above": optimum * (1 + g) for g in GAPS}, optimum)
    for batch_size in BUDGETS:
        found = adamw(dataset, batch_size)
        for gap in GAPS:
            name, curve = best(found, optimum * (1 + gap))
            curves[name] = curve
    return curves, optimum


def descend(build: Callable[[list[torch.Tensor]], Any], passes: int) -> Curve:
    """Minimise the quadratic by a torch optimiser."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=generator))
    matrix = basis @ torch.diag(torch.logspace(0, 4, 200, dtype=torch.float64)) @ basis.T
    solution = torch.randn(200, dtype=torch.float64, generator=generator)
    w = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    optimizer, curve, started = build([w]), Curve([], [], []), time.perf_counter()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        away = w - solution
        loss = away @ matrix @ away / 2
        loss.backward()
        curve.passes.append(len(curve.passes) + 1.0)
        curve.seconds.append(time.perf_counter() - started)
        curve.values.append(float(loss.detach()))
        return loss

    while len(curve.passes) < passes:
        before = len(curve.passes)
        optimizer.step(closure)
        if len(curve.passes) == before + 1 and hasattr(optimizer, "searched"):
            break  # converged
    return curve


def quadratics(passes: int = 20_000) -> dict[str, Curve]:
    """Minimise the quadratic with each optimiser."""
    target = descend(lambda p: torch.optim.SGD(p, lr=0.0), 1).values[0] * 1e-8
    curves: dict[str, Curve] = {}
    firsts: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
        "adamw": (partial(torch.optim.AdamW, weight_decay=0.0), (1e-3, 1e-2, 1e-1)),
        "sgd, momentum .9": (partial(torch.optim.SGD, momentum=0.9), (3e-5, 1e-4, 3e-4)),
    }
    for name, (build, rates) in firsts.items():
        found = [(f"{name}, {rate:g}", descend(partial(build, lr=rate), passes)) for rate in rates]
        curves |= [best(found, target)]
    curves["lbfgs"] = descend(partial(LBFGS, history_size=10, line_search_fn="strong_wolfe"), passes)
    for method in ("polak_ribiere_plus", "hager_zhang", "fletcher_reeves"):
        curves[f"nonlinear_cg {method}"] = descend(partial(NonlinearCG, method=method), passes)
    return curves


def show(title: str, curves: dict[str, Curve], targets: dict[str, float], optimum: float) -> None:
    """Print the passes and seconds that each needs, and what it ends at."""
    print(f"{title}: passes (seconds) to {', '.join(targets)}")
    for name, curve in curves.items():
        at = dict(zip(curve.passes, curve.seconds, strict=True))
        needed = [curve.passes_to(target) for target in targets.values()]
        texts = [f"{n:8,.0f} ({at[n]:7.2f})" if n in at else " " * 13 + "never" for n in needed]
        print(f"  {name:34} {'  '.join(texts)}   ends {curve.values[-1] - optimum:.1e} above")


def plot(file: str, problems: Sequence[tuple[str, dict[str, Curve], float]]) -> None:
    """Draw the gap against passes and seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(len(problems), 2)
    for row, (title, curves, optimum) in zip(axes, problems, strict=True):
        for name, curve in curves.items():
            gap = np.maximum(np.array(curve.values) - optimum, 1e-14)
            for axis, x in zip(row, (curve.passes, curve.seconds), strict=True):
                axis.loglog(x, gap, label=name)
        for axis, label in zip(row, ("passes over the data", "seconds"), strict=True):
            axis.set(xlabel=label, ylabel="objective above its optimum", title=title)
        row[0].legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path")
    parser.add_argument("target")
    parser.add_argument("--split-column")
    parser.add_argument("--plot")
    given = parser.parse_args()
    torch.set_num_threads(1)
    split = {"column": given.split_column} if given.split_column else {}
    data = DataConfig.model_validate({"path": given.path, "target": given.target, "split": split})
    with tempfile.TemporaryDirectory() as folder:
        shard(data, 0, Storage.open(folder))
        regression, optimum = regressions(ShardedDataset.open(Storage.open(folder)))
    quadratic = quadratics()
    start = max(curve.values[0] for curve in quadratic.values())
    show("logistic regression", regression, {f"{g:g} above": optimum * (1 + g) for g in GAPS}, optimum)
    show("quadratic", quadratic, {f"{g:g} of its start": start * g for g in (1e-4, 1e-8)}, 0.0)
    if given.plot:
        plot(given.plot, [("logistic regression", regression, optimum), ("quadratic, 1e4", quadratic, 0.0)])


if __name__ == "__main__":
    main()
