"""The figures of the page on costs: thresholds and calibrations against one another on scikit-learn's data, over splits.

    python benchmarks/costs.py

A false alarm costs 1, a missed event 25. Each of 20 splits gives 40 % of the rows to training, 30 % to validation and 30 % to
test. A line is the mean cost of a test row over the splits, and the paired difference to the first line with its 95 % interval
(the corrected t interval of repeated splits: Nadeau and Bengio 2003, Machine Learning 52, section 3, since splits share rows).
"""

import math
import statistics

import numpy as np
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from techniques import Arrays, rare_cancer

from shoal.cluster.sharding.manifest import Schema, Target
from shoal.evaluation.config import EvaluationConfig
from shoal.evaluation.deciding.plan import Known, plan
from shoal.evaluation.metrics import METRICS
from shoal.training import TorchClassifier

SPLITS, TRAIN, VALIDATION, TEST = 20, 0.4, 0.3, 0.3
COSTS = {"false_positive": 1, "false_negative": 25}
BY_COST = (2 / 26, 50 / 26)  # weights of the classes, with mean 1
WAYS: dict[str, tuple[bool, dict[str, object]]] = {
    "threshold .5": (False, {"threshold": 0.5, "calibration": "none"}),
    "optimal, not calibrated": (False, {"threshold": "optimal", "calibration": "none"}),
    "optimal, temperature": (False, {"threshold": "optimal", "calibration": "temperature"}),
    "optimal, isotonic": (False, {"threshold": "optimal", "calibration": "isotonic"}),
    "empirical": (False, {"threshold": "empirical", "calibration": "none"}),
    "weights by cost, optimal, temperature": (True, {"threshold": "optimal", "calibration": "temperature"}),
    "weights by cost, empirical": (True, {"threshold": "empirical", "calibration": "none"}),
}
SCHEMA = Schema(columns=(), target=Target(columns=("y",), task="binary", classes=(0, 1)))


def eights() -> Arrays:
    """Handwritten digits; an eight is the event, 9.7 %."""
    x, y = load_digits(return_X_y=True)
    return x, (y == 8).astype(int)


def cost_of(seed: int, data: Arrays, model: object) -> dict[str, float]:
    """Fit with and without weights on one split, and return the cost of a test row by way of deciding."""
    x, rest, y, rest_y = train_test_split(*data, train_size=TRAIN, random_state=seed, stratify=data[1])
    held, test, held_y, test_y = train_test_split(
        rest, rest_y, test_size=TEST / (1 - TRAIN), random_state=seed, stratify=rest_y
    )
    fits = {
        weighted: TorchClassifier(
            model,
            epochs=30,
            batch_size=32,
            loss={"cross_entropy": {"class_weights": dict(enumerate(BY_COST))}} if weighted else "auto",
            random_state=seed,
        ).fit(x, y)
        for weighted in (False, True)
    }
    found = {}
    for way, (weighted, config) in WAYS.items():
        scores = [fits[weighted].predict_proba(part)[:, 1] for part in (held, test)]
        settled = plan(
            EvaluationConfig.model_validate({"costs": COSTS, **config}),
            SCHEMA,
            Known(np.bincount(y).tolist(), np.bincount(held_y).tolist()),
            BY_COST if weighted else (),
        )
        judging = settled.fit(held_y, scores[0])
        found[way] = METRICS["expected_cost"].value(test_y, judging.calibration(scores[1]), judging.rule)
    constant = judging.rule.constant
    found["the best without a model"] = float(np.where(test_y == 1, 25 * (constant == 0), constant).mean())
    return found


def compare(title: str, data: Arrays, model: object) -> None:
    """Print the cost of each way of deciding."""
    print(f"\n{title}")
    found = [cost_of(seed, data, model) for seed in range(SPLITS)]
    first = next(iter(WAYS))
    for way in found[0]:
        gaps = [costs[way] - costs[first] for costs in found]
        spread = math.sqrt(statistics.variance(gaps) * (1 / SPLITS + TEST / TRAIN)) * student.ppf(
            0.975, SPLITS - 1
        )
        middle = statistics.mean(gaps)
        said = "" if way == first else f"  {middle:+.3f} ({middle - spread:+.3f} to {middle + spread:+.3f})"
        print(f"  {way:38} {statistics.mean(costs[way] for costs in found):.3f}{said}")


if __name__ == "__main__":
    small = {"mlp": {"hidden": [64, 64]}}
    compare("digits, eights against the rest, mlp 64-64", eights(), small)
    compare("breast cancer with 5.6 % events, mlp 64-64", rare_cancer(), small)
