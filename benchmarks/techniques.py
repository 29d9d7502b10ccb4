"""The figures of the pages on techniques: one against another on scikit-learn's data, over seeds.

    python benchmarks/techniques.py

Each line is the mean over 10 seeds (of the split, the weights and the order) with the standard deviation of one fit; the
last column is the paired difference to the first line, with twice its standard error over seeds.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import average_precision_score, log_loss, recall_score
from sklearn.model_selection import train_test_split

from shoal.training import TorchClassifier

SEEDS = range(10)
MLP = {"mlp": {"hidden": [64, 64]}}
Arrays = tuple[np.ndarray, np.ndarray]
Score = Callable[[TorchClassifier, np.ndarray, np.ndarray], float]


def rare_cancer() -> Arrays:
    """Breast cancer with one malignant row in ten kept: 357 benign, 21 malignant (the event)."""
    x, y = load_breast_cancer(return_X_y=True)
    kept = np.flatnonzero((y == 1) | (np.cumsum(y == 0) % 10 == 1))
    return x[kept], (y[kept] == 0).astype(int)


def digits() -> Arrays:
    """Handwritten digits, 10 classes."""
    x, y = load_digits(return_X_y=True)
    return x, y


def compare(title: str, data: Arrays, scores: dict[str, Score], ways: dict[str, dict[str, Any]]) -> None:
    """Fit each way with each seed on half of the rows, and print its scores on the other half."""
    print(f"\n{title}")
    found: dict[str, dict[str, list[float]]] = {way: {s: [] for s in scores} for way in ways}
    for seed in SEEDS:
        x, test_x, y, test_y = train_test_split(*data, test_size=0.5, random_state=seed, stratify=data[1])
        for way, options in ways.items():
            fitted = TorchClassifier(**{"model": MLP, "random_state": seed, **options}).fit(x, y)
            for name, score in scores.items():
                found[way][name].append(score(fitted, test_x, test_y))
    first = next(iter(ways))
    for way in ways:
        for name in scores:
            values = found[way][name]
            differences = [a - b for a, b in zip(values, found[first][name], strict=True)]
            error = 2 * statistics.stdev(differences) / len(differences) ** 0.5
            gap = "" if way == first else f"  {statistics.mean(differences):+.4f} +- {error:.4f}"
            print(f"  {way:34} {name:18} {statistics.mean(values):.4f} ({statistics.stdev(values):.4f}){gap}")


def nll(fitted: TorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Log loss."""
    return float(log_loss(y, fitted.predict_proba(x), labels=fitted.classes_))


def accuracy(fitted: TorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers."""
    return float(fitted.score(x, y))


def recall(fitted: TorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Recall of the event at a threshold of one half."""
    return float(recall_score(y, fitted.predict(x)))


def precision(fitted: TorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Average precision."""
    return float(average_precision_score(y, fitted.predict_proba(x)[:, 1]))


def weights_kept(fitted: TorchClassifier, _x: np.ndarray, _y: np.ndarray) -> float:
    """Share of a linear model's weights that are not zero."""
    weights = fitted.trained_model_.module.body.numbers.weight.detach().numpy()
    return float((weights != 0).mean())


def epochs_done(fitted: TorchClassifier, _x: np.ndarray, _y: np.ndarray) -> float:
    """Epochs until it stopped."""
    return float(fitted.n_iter_)


def main() -> None:
    cancer = load_breast_cancer(return_X_y=True)
    linear = {
        "model": "linear",
        "batch_size": "full",
        "epochs": 500,
        "optimizer": {"sgd": {"learning_rate": 0.3}},
    }
    compare(
        "penalties: breast cancer, linear model",
        cancer,
        {"log loss": nll, "weights kept": weights_kept},
        {
            "none": linear,
            "l2 .01": {**linear, "l2": 0.01},
            "l1 proximal .01": {**linear, "l1": {"proximal": 0.01}},
            "l1 subgradient .01": {**linear, "l1": {"subgradient": 0.01}},
        },
    )
    small = {"epochs": 30, "batch_size": 32, "optimizer": {"adam": {"learning_rate": 3e-3}}}
    compare(
        "regularisation: digits, mlp 64-64, adam .003, 30 epochs",
        digits(),
        {"log loss": nll, "accuracy": accuracy},
        {
            "none": small,
            "dropout .3": {**small, "model": {"mlp": {"hidden": [64, 64], "dropout": 0.3}}},
            "mixup .2": {**small, "mixup": {"alpha": 0.2}},
            "label smoothing .1": {**small, "loss": {"cross_entropy": {"label_smoothing": 0.1}}},
            "ema .99": {**small, "averaging": {"ema": {"decay": 0.99}}},
            "swa from .5": {**small, "averaging": {"swa": {"start": 0.5}}},
        },
    )
    long = {"epochs": 200, "batch_size": 32}
    compare(
        "early stopping: breast cancer, mlp 64-64, 200 epochs",
        cancer,
        {"log loss": nll, "accuracy": accuracy, "epochs": epochs_done},
        {"none": long, "early stopping, patience 5": {**long, "early_stopping": {"patience": 5}}},
    )
    brief = {"epochs": 8, "batch_size": 32, "optimizer": {"sgd": {"learning_rate": 0.1}}}
    compare(
        "schedules: digits, mlp 64-64, sgd .1, 8 epochs",
        digits(),
        {"log loss": nll, "accuracy": accuracy},
        {
            "constant": brief,
            "one_cycle": {**brief, "schedule": "one_cycle"},
            "cosine, warm-up 20": {**brief, "schedule": {"cosine": {"warmup": 20}}},
            "step, every 3": {**brief, "schedule": {"step": {"step_size": 3}}},
            "exponential .7": {**brief, "schedule": {"exponential": {"gamma": 0.7}}},
        },
    )
    rare = {"epochs": 40, "batch_size": 32}
    compare(
        "losses: breast cancer with 5.6 % events, mlp 64-64",
        rare_cancer(),
        {"average precision": precision, "recall at .5": recall, "log loss": nll},
        {
            "cross_entropy": rare,
            "balanced weights": {**rare, "loss": {"cross_entropy": {"class_weights": "balanced"}}},
            "focal 2": {**rare, "loss": "focal"},
            "ldam": {**rare, "loss": "ldam"},
            "logit_adjusted": {**rare, "loss": "logit_adjusted"},
        },
    )


if __name__ == "__main__":
    main()
