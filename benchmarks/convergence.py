"""Loss against passes over the data, of optimisers on two convex problems.

    python benchmarks/convergence.py DATA.parquet TARGET [--split-column NAME] [--plot FILE.png] [--most-passes N]

The first is logistic regression with an L2 penalty on the training rows of a Parquet file, as Shoal encodes them for `linear`, in
one sparse matrix and fp64; its optimum is scikit-learn's, by Newton-CG. The second is a quadratic of 200 unknowns with
condition number 1e4. A pass is one evaluation of loss and gradient over all rows, at once, in batches or inside a line search;
seconds are the processor's. First-order optimisers run at several learning rates, AdamW on the first problem also with a cosine
to 0 over several budgets of passes: for each gap the best of its runs counts, as if it had been known beforehand.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.training.models import InputEncoder
from shoal.training.optimizers.lbfgs import LBFGS
from shoal.training.optimizers.nonlinear_cg import NonlinearCG

L2 = 1e-4
GAPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of the objective above its optimum, relative
POINTS = 100  # of a curve of AdamW, at most
BATCHES: tuple[int | None, ...] = (1024, None)  # rows of a step of AdamW; None for all
RATES = {1024: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), None: (3e-3, 1e-2, 3e-2, 1e-1)}
BUDGETS = {1024: (10, 30, 100, 300, 1000), None: (100, 300, 1000, 3000)}
SEARCHES: dict[str, Callable[..., Any]] = {
    "lbfgs": partial(LBFGS, history_size=10, line_search_fn="strong_wolfe"),
    "lbfgs, history_size 50": partial(LBFGS, history_size=50, line_search_fn="strong_wolfe"),
    **{f"nonlinear_cg {m}": partial(NonlinearCG, method=m) for m in ("polak_ribiere_plus", "hager_zhang")},
}
Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass
class Curve:
    """Objective after so many passes and seconds."""

    passes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, passes: float, seconds: float, value: float) -> None:
        """Note where a descent is."""
        self.passes.append(passes)
        self.seconds.append(seconds)
        self.values.append(value)

    def passes_to(self, target: float) -> float:
        """Return the passes after which the objective stays below a target."""
        above = [i for i, value in enumerate(self.values) if value > target]
        first = above[-1] + 1 if above else 0
        return self.passes[first] if first < len(self.passes) else float("inf")


class Logistic:
    """Mean log loss of a linear model with an intercept, and L2 / 2 x the sum of its other squared weights."""

    def __init__(self, dataset: ShardedDataset) -> None:
        encoder = InputEncoder(dataset.schema, embedding=None)
        parts = [dataset.shard("train", v) for v in range(dataset.n_shards)]
        numeric = encoder.fill(torch.tensor(np.concatenate([p.numeric for p in parts])).double()).numpy()
        codes, columns = np.concatenate([p.categorical for p in parts]), [csr_matrix(numeric)]
        n = len(codes)
        for i, column in enumerate(dataset.schema.categorical):
            ones = (np.ones(n), (np.arange(n), codes[:, i]))
            columns.append(csr_matrix(ones, shape=(n, column.cardinality)))
        self.x = hstack([*columns, np.ones((n, 1))]).tocsr()
        self.y = np.concatenate([p.label for p in parts]).astype(float)
        self.size = self.x.shape[1]

    def evaluate(self, w: np.ndarray, rows: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient ``[size]``, over some rows or all."""
        x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
        margins = x @ w
        penalised = np.append(w[:-1], 0.0)
        value = np.logaddexp(0, margins).mean() - y @ margins / len(y) + L2 / 2 * penalised @ penalised
        return float(value), x.T @ (expit(margins) - y) / len(y) + L2 * penalised

    def optimum(self) -> float:
        """Return the least objective."""
        model = LogisticRegression(C=1 / (L2 * len(self.y)), solver="newton-cg", tol=1e-9, max_iter=1000)
        found = model.fit(self.x[:, :-1], self.y)
        return self.evaluate(np.append(found.coef_[0], found.intercept_))[0]


class Quadratic:
    """Half the squared distance to a solution, in a metric of condition number 1e4."""

    size = 200

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        basis, _ = np.linalg.qr(rng.normal(size=(self.size, self.size)))
        self.matrix = basis @ np.diag(np.geomspace(1, 1e4, self.size)) @ basis.T
        self.solution = rng.normal(size=self.size)

    def evaluate(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient."""
        gradient = self.matrix @ (w - self.solution)
        return float((w - self.solution) @ gradient / 2), gradient


def descend(evaluate: Evaluate, size: int, build: Callable[[list[torch.Tensor]], Any], passes: int) -> Curve:
    """Minimise by a torch optimiser that sees all rows, until it has converged or the passes are over."""
    w = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer, curve, started = build([w]), Curve(), time.process_time()

    def closure() -> torch.Tensor:
        value, gradient = evaluate(w.detach().numpy())
        w.grad = torch.from_numpy(gradient)
        curve.add(len(curve.passes) + 1.0, time.process_time() - started, value)
        return torch.tensor(value, dtype=torch.float64)

    while len(curve.passes) < passes:
        optimizer.step(closure)
        if hasattr(optimizer, "searched") and optimizer.searched.has_converged:
            break
    return curve


def adamw(problem: Logistic, rate: float, batch: int | None, budget: int) -> Curve:
    """Minimise by AdamW without weight decay, in batches, with a cosine to 0 over the budget of passes."""
    w = torch.zeros(problem.size, dtype=torch.float64, requires_grad=True)
    n, rng, curve, spent = len(problem.y), np.random.default_rng(0), Curve(), 0.0
    optimizer = torch.optim.AdamW([w], lr=rate, weight_decay=0.0)
    steps = -(-n // (batch or n))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * budget)
    for done in range(1, budget + 1):
        started = time.process_time()
        for rows in np.array_split(rng.permutation(n), steps) if batch else [None]:
            w.grad = torch.from_numpy(problem.evaluate(w.detach().numpy(), rows)[1])
            optimizer.step()
            scheduler.step()
        spent += time.process_time() - started
        if done % max(1, budget // POINTS) == 0 or done == budget:
            curve.add(float(done), spent, problem.evaluate(w.detach().numpy())[0])
    return curve


def runs_of_adamw(problem: Logistic, batch: int | None, most: int) -> Iterator[tuple[str, Curve]]:
    """Yield runs over ever larger budgets; the two rates that came lowest go on to the next one."""
    rates = RATES[batch]
    for budget in [budget for budget in BUDGETS[batch] if budget <= most]:
        ends = {}
        for rate in rates:
            curve = adamw(problem, rate, batch, budget)
            ends[rate] = curve.values[-1]
            yield f"adamw {rate:g}, batch {batch or 'full'}, {budget:,} passes", curve
        rates = tuple(sorted(ends, key=lambda rate: ends[rate])[:2])


def best(curves: Sequence[tuple[str, Curve]], target: float) -> tuple[str, Curve]:
    """Return the run that is there first, or comes nearest."""
    return min(curves, key=lambda named: (named[1].passes_to(target), named[1].values[-1]))


def regressions(problem: Logistic, optimum: float, most: int) -> dict[str, Curve]:
    """Minimise with each optimiser."""
    strict = {"max_iter": 10, "tolerance_grad": 1e-9}
    curves = {
        name: descend(problem.evaluate, problem.size, partial(build, **strict, tolerance_change=1e-14), 1000)
        for name, build in SEARCHES.items()
    }
    show("logistic regression, searches", curves, targets(optimum), optimum)
    for batch in BATCHES:
        found = list(runs_of_adamw(problem, batch, most))
        show("logistic regression, all runs of AdamW", dict(found), targets(optimum), optimum)
        curves |= dict(best(found, target) for target in targets(optimum).values())
    return curves


def targets(optimum: float) -> dict[str, float]:
    """Return the objectives at which a fit counts as there, by what they are called."""
    return {f"{gap:g} above": optimum * (1 + gap) for gap in GAPS}


def quadratics(passes: int = 20_000) -> dict[str, Curve]:
    """Minimise the quadratic with each optimiser."""
    problem = Quadratic()
    target = problem.evaluate(np.zeros(problem.size))[0] * 1e-8
    curves: dict[str, Curve] = {}
    firsts: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
        "adamw": (partial(torch.optim.AdamW, weight_decay=0.0), (1e-3, 1e-2, 1e-1)),
        "sgd, momentum .9": (partial(torch.optim.SGD, momentum=0.9), (3e-5, 1e-4, 3e-4)),
    }
    for name, (build, rates) in firsts.items():
        found = [
            (f"{name}, {rate:g}", descend(problem.evaluate, problem.size, partial(build, lr=rate), passes))
            for rate in rates
        ]
        curves |= [best(found, target)]
    for name, build in SEARCHES.items():
        curves[name] = descend(problem.evaluate, problem.size, build, passes)
    return curves


def show(title: str, curves: dict[str, Curve], targets: dict[str, float], optimum: float) -> None:
    """Print the passes and seconds that each needs, and what it ends at."""
    print(f"{title}: passes (seconds) to {', '.join(targets)}")
    for name, curve in curves.items():
        at = dict(zip(curve.passes, curve.seconds, strict=True))
        needed = [curve.passes_to(target) for target in targets.values()]
        texts = [f"{n:8,.0f} ({at[n]:7.2f})" if n in at else " " * 13 + "never" for n in needed]
        print(f"  {name:38} {'  '.join(texts)}   ends {curve.values[-1] - optimum:.1e} above", flush=True)


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
        row[0].legend(fontsize=7, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path")
    parser.add_argument("target")
    parser.add_argument("--split-column")
    parser.add_argument("--plot")
    parser.add_argument(
        "--most-passes", type=int, default=3000, help="leave larger budgets of AdamW out (hours)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    quadratic = quadratics()
    start = max(curve.values[0] for curve in quadratic.values())
    show("quadratic", quadratic, {f"{g:g} of its start": start * g for g in (1e-4, 1e-8)}, 0.0)
    split = {"column": given.split_column} if given.split_column else {}
    data = DataConfig.model_validate({"path": given.path, "target": given.target, "split": split})
    with tempfile.TemporaryDirectory() as folder:
        shard(data, 0, Storage.open(folder))
        problem = Logistic(ShardedDataset.open(Storage.open(folder)))
    optimum = problem.optimum()
    print(f"logistic regression: {len(problem.y):,} rows, {problem.size} weights, optimum {optimum:.12f}")
    regression = regressions(problem, optimum, given.most_passes)
    show("logistic regression", regression, targets(optimum), optimum)
    if given.plot:
        plot(given.plot, [("logistic regression", regression, optimum), ("quadratic, 1e4", quadratic, 0.0)])


if __name__ == "__main__":
    main()
