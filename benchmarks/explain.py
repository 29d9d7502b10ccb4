"""Permutation importance against scikit-learn, and KernelSHAP against `shap`: CPU seconds of both, in one process.

    python benchmarks/explain.py [--rows 100000] [--repeats 3]

Permutation: a table of 50 columns, 2 permutations of each, scored by the log loss of each side's own; `apart` is the largest
difference of importances. KernelSHAP: an MLP of 30 columns, with 100 background rows and with one; Shoal gets the budget at which
its error, against values from many more coalitions, is that of shap with its default. CPU seconds are the process's, of all its
threads; medians of several repeats, both sides in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shap
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from shoal.evaluation.explain.coalitions import coalitions
from shoal.evaluation.explain.permutation import permutation
from shoal.evaluation.explain.shapley import shapley
from shoal.evaluation.explain.subject import of_estimator
from shoal.evaluation.metrics import METRICS

COLUMNS, PERMUTATIONS = 50, 2
Array = NDArray[Any]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def in_turns(sides: Sequence[Callable[[], Any]], repeats: int) -> tuple[list[float], list[Any]]:
    """Return the median CPU seconds of each side, and their last results."""
    taken: list[list[float]] = [[] for _ in sides]
    found: list[Any] = [None] * len(sides)
    for _ in range(repeats):
        for i, side in enumerate(sides):
            spent, found[i] = seconds(side)
            taken[i].append(spent)
    return [statistics.median(t) for t in taken], found


def importance(rows: int, repeats: int) -> None:
    """Time permutation importance; of trees, which take longest to answer on both sides, on a fifth of the rows."""
    x, y = make_classification(rows, COLUMNS, n_informative=20, random_state=0)
    models = {
        "logistic regression": (LogisticRegression(max_iter=200), rows),
        "MLP of 64": (MLPClassifier((64,), max_iter=5), rows),
        "boosted trees, 50": (HistGradientBoostingClassifier(max_iter=50), rows // 5),
    }
    print(f"permutation importance, {COLUMNS} columns, {PERMUTATIONS} permutations of each, log loss")
    for name, (model, n) in models.items():
        model.fit(x[:20_000], y[:20_000])
        times, found = in_turns(_sides(model, x[:n], y[:n]), repeats)
        apart = np.abs(np.stack([one.falls for one in found[0]]) - found[1].importances).max()
        both = f"shoal {times[0]:6.1f} s  scikit-learn {times[1]:6.1f} s  ratio {times[1] / times[0]:.2f}"
        print(f"  {name:20} {n:8,} rows  {both}  apart {apart:.1e}", flush=True)


def _sides(model: Any, x: Array, y: Array) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def score(p: Array) -> float:
        return -METRICS["log_loss"].value(y, p[:, 0])

    def own() -> Any:
        return permutation(of_estimator(model), x, score, repeats=PERMUTATIONS, random_state=0)

    def theirs() -> Any:
        return permutation_importance(
            model, x, y, scoring="neg_log_loss", n_repeats=PERMUTATIONS, random_state=0
        )

    return own, theirs


def kernel(background_rows: int, rows: int, repeats: int) -> None:
    """Time KernelSHAP at equal error."""
    columns = 30
    x, y = make_classification(3000, columns, n_informative=15, random_state=0)
    model = MLPClassifier((32, 32), max_iter=30, random_state=0).fit(x, y)
    predict = of_estimator(model).predict
    background, own_rows = x[:background_rows], x[1000 : 1000 + rows]
    places = [(i,) for i in range(columns)]
    root = np.random.SeedSequence(1)

    def ours(budget: int, seed: int = 0) -> Array:
        plan = coalitions(columns, budget, root.spawn(seed + 1)[-1])
        return shapley(predict, own_rows, background, places, plan).values[:, :, 0]

    explainer = shap.KernelExplainer(lambda z: predict(z)[:, 0], background)

    def theirs(budget: int) -> Array:
        found = explainer.shap_values(own_rows, nsamples=budget, l1_reg=False, silent=True)
        return np.asarray(found)

    truth = ours(60_000, 7)

    def error(values: Array) -> float:
        return float(np.sqrt(np.mean((values - truth) ** 2)))

    def mean_error(budget: int) -> float:  # all rows have the same coalitions: one draw of them says little
        return float(np.sqrt(np.mean([error(ours(budget, seed)) ** 2 for seed in range(3)])))

    asked = 2 * columns + 2048  # shap's own default
    goal = error(theirs(asked))
    budget = asked
    while budget > 200 and mean_error(int(budget * 0.9)) <= goal:
        budget = int(budget * 0.9)
    (own, other), found = in_turns((lambda: ours(budget, 3), lambda: theirs(asked)), repeats)
    errors = [f"{error(one):.1e}" for one in found]
    print(
        f"KernelSHAP, {columns} columns, {rows} rows, {background_rows} background row(s): shoal {own:.1f} s ({budget:,} "
        f"coalitions, error {errors[0]})  shap {other:.1f} s ({asked:,}, {errors[1]})  ratio {other / own:.1f}"
    )
    (same, _), _ = in_turns((lambda: ours(asked, 3), lambda: None), repeats)
    print(
        f"  with as many coalitions as shap: {same:.1f} s, ratio {other / same:.1f}, error {error(ours(asked, 3)):.1e}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with threadpool_limits(1):
        importance(options.rows, options.repeats)
        kernel(100, 8, options.repeats)
        kernel(1, 50, options.repeats)
