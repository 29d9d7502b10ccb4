"""Metrics by name: what each needs, which way is better, what it means, and its arithmetic.

Scores are probabilities (binary: of the event, ``[n]``; otherwise ``[n, K]``) or regression
predictions ``[n]``. Multi-class values are macro averages over the classes that occur, multi-label
values over the labels that occur; ROC AUC and average precision take each class against the rest.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.errors import ConfigError
from shoal.evaluation import formulas
from shoal.evaluation.deciding.costs import USUAL, Rule
from shoal.evaluation.tallies import (
    Array,
    Floats,
    Rows,
    area_under_roc,
    average_precision,
    decision_tally,
    rank_tally,
)
from shoal.training.costs import NO_AMOUNTS, Amounts

CLASSIFICATION = ("binary", "multiclass", "multilabel")
ONE_CLASS = ("binary", "multiclass")
REGRESSION = ("regression",)

Finish = Callable[[Floats, str], Floats]


@dataclass(frozen=True)
class Metric:
    """One way to judge predictions.

    A metric is either a function of sums over rows (`tally`, then `finish`), or one of ranks
    (`ranks`); either form takes one data set or all bootstrap replicates at once.

    Parameters
    ----------
    tasks
        Tasks that it judges.
    needs
        ``score``: probabilities; ``decision``: the predicted class; ``cost``: that, and costs; ``value``: a regression
        prediction.
    meaning
        One sentence for a reader who does not know the metric.
    limits
        Lowest and highest possible value.
    tally
        Rows -> sums ``[G, q]``.
    finish
        (sums ``[..., q]``, form) -> values ``[...]``; form is binary, multiclass, multilabel or regression.
    in_units
        Whether its values are in the target's units.
    ranks
        (events, others), each ``[..., m]`` by score level -> values ``[...]``.
    """

    name: str
    label: str
    tasks: tuple[str, ...]
    greater_is_better: bool
    needs: Literal["score", "decision", "cost", "value"]
    meaning: str
    limits: tuple[float, float]
    tally: Callable[[Rows], Floats] | None = None
    finish: Finish | None = None
    ranks: Callable[[Floats, Floats], Floats] | None = None
    in_units: bool = False

    def value(
        self,
        y: Array,
        scores: Array,
        rule: Rule = USUAL,
        weights: Array | None = None,
        amounts: Amounts = NO_AMOUNTS,
    ) -> float:
        """Compute the metric; NaN where it is undefined (`undefined` says why), never an exception.

        Parameters
        ----------
        y
            int64 ``[n]`` class index (binary: 1 is the event), ``[n, K]`` of 0 and 1 for multi-label, or
            float64 ``[n]`` in raw units for regression.
        scores
            Binary: P(event) ``[n]``. Multi-class (of two classes too) and multi-label: probabilities
            ``[n, K]``. Regression: predictions ``[n]``.
        rule
            Which class is decided, and what that costs.
        weights
            Weight of each row ``[n]``; None for 1 each.
        amounts
            The rows' cost columns, where the rule needs some.
        """
        rows = as_rows(y, scores, rule, weights, amounts)
        if not len(rows.y) or not np.isfinite(rows.scores).all():
            return float("nan")
        if self.ranks is None:
            assert self.tally is not None
            assert self.finish is not None
            return float(self.finish(self.tally(rows)[0], self.form(rows)))
        per_class = [
            float(self.ranks(*rank_tally(events, column, rows.weights)))
            for events, column in one_against_rest(rows)
        ]
        return float(np.mean(per_class)) if per_class else float("nan")

    def form(self, rows: Rows) -> str:
        """Say which of the four tasks the rows are of, by their shapes."""
        if "regression" in self.tasks:
            return "regression"
        if rows.multilabel:
            return "multilabel"
        return "multiclass" if rows.scores.ndim == 2 else "binary"

    def undefined(self, y: Array, scores: Array, rule: Rule = USUAL, amounts: Amounts = NO_AMOUNTS) -> str:
        """Say why the value is NaN; an empty text where it is not."""
        value = self.value(y, scores, rule, amounts=amounts)
        if np.isfinite(value):
            return ""
        if not len(y):
            return "there are no rows"
        if not np.isfinite(scores).all():
            return f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite"
        if "regression" in self.tasks:
            return "the labels are constant" if np.ptp(y) == 0 else "the errors overflow"
        if self.needs == "cost":
            return "the best decision without a model costs nothing on these rows: there is nothing to save"
        if y.ndim == 2:
            return "no label occurs among the rows, or every label does in every row"
        if len(np.unique(y)) == 1:
            return "the rows hold one class only"
        return "no class has both events and others among the rows"


def as_rows(
    y: Array,
    scores: Array,
    rule: Rule = USUAL,
    weights: Array | None = None,
    amounts: Amounts = NO_AMOUNTS,
) -> Rows:
    """Bring labels and scores to the types of `Rows`."""
    y, scores = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if y.ndim == 1 and y.dtype == bool:
        y = y.astype(np.int64)
    weights = None if weights is None else np.asarray(weights, dtype=np.float64)
    return Rows(y, scores, rule, weights, amounts=amounts)


def one_against_rest(rows: Rows) -> Iterable[tuple[NDArray[np.bool_], Floats]]:
    """Yield (is event ``[n]``, score ``[n]``) of each class or label that has both events and others."""
    if rows.scores.ndim == 1:
        problems = [(rows.y == 1, rows.scores)]
    else:
        events = rows.y > 0.5 if rows.multilabel else rows.y[:, None] == np.arange(rows.n_classes)
        problems = [(events[:, k], np.ascontiguousarray(rows.scores[:, k])) for k in range(rows.n_classes)]
    return [problem for problem in problems if problem[0].any() and not problem[0].all()]


_INF = float("inf")
_ALL = (
    Metric(
        "average_precision", "Average precision", CLASSIFICATION, True, "score",
        "Mean precision as the threshold falls through all events; a random ranking gives the base rate.",
        (0, 1), ranks=average_precision,
    ),
    Metric(
        "roc_auc", "ROC AUC", CLASSIFICATION, True, "score",
        "Chance that a random event scores above a random non-event; 0.5 is guessing, 1 a perfect ranking.",
        (0, 1), ranks=area_under_roc,
    ),
    Metric(
        "log_loss", "Log loss", CLASSIFICATION, False, "score",
        "Mean surprise at the true class in nats; punishes confident errors hard, 0 is perfect.",
        (0, _INF), tally=formulas.log_loss_sums, finish=formulas.mean_of_rows,
    ),
    Metric(
        "brier", "Brier score", CLASSIFICATION, False, "score",
        "Mean squared distance between probabilities and outcomes; 0 is perfect.",
        (0, 2), tally=formulas.brier_sums, finish=formulas.mean_of_rows,
    ),
    Metric(
        "accuracy", "Accuracy", CLASSIFICATION, True, "decision",
        "Share of rows predicted right; compare it with always predicting the commonest class.",
        (0, 1), tally=decision_tally, finish=formulas.accuracy,
    ),
    Metric(
        "balanced_accuracy", "Balanced accuracy", CLASSIFICATION, True, "decision",
        "Mean over classes of the share predicted right: a rare class counts as much as a common one.",
        (0, 1), tally=decision_tally, finish=formulas.balanced_accuracy,
    ),
    Metric(
        "f1", "F1", CLASSIFICATION, True, "decision",
        "Harmonic mean of precision and recall: high only where both are.",
        (0, 1), tally=decision_tally, finish=formulas.f1,
    ),
    Metric(
        "precision", "Precision", CLASSIFICATION, True, "decision",
        "Of the rows predicted as events, the share that are.",
        (0, 1), tally=decision_tally, finish=formulas.precision,
    ),
    Metric(
        "recall", "Recall", CLASSIFICATION, True, "decision",
        "Of the events, the share that was found.",
        (0, 1), tally=decision_tally, finish=formulas.recall,
    ),
    Metric(
        "mcc", "Matthews correlation", CLASSIFICATION, True, "decision",
        "Correlation of predicted and true classes: 0 is guessing, 1 perfect; no class can be neglected.",
        (-1, 1), tally=decision_tally, finish=formulas.mcc,
    ),
    Metric(
        "expected_cost", "Expected cost", ONE_CLASS, False, "cost",
        "Mean cost of what is decided for a row, by evaluation.costs.",
        (-_INF, _INF), tally=formulas.cost_sums, finish=formulas.expected_cost,
    ),
    Metric(
        "savings", "Savings", ONE_CLASS, True, "cost",
        "Share of the cost of the best decision without a model (the same for every row, cheapest for the "
        "training rows) that is saved; 0 saves nothing, 1 costs nothing.",
        (-_INF, _INF), tally=formulas.cost_sums, finish=formulas.savings,
    ),
    Metric(
        "rmse", "Root mean squared error", REGRESSION, False, "value",
        "Typical size of an error in the target's units, large errors weighing more.",
        (0, _INF), tally=formulas.residual_sums, finish=formulas.rmse, in_units=True,
    ),
    Metric(
        "mae", "Mean absolute error", REGRESSION, False, "value",
        "Average size of an error in the target's units.",
        (0, _INF), tally=formulas.residual_sums, finish=formulas.mae, in_units=True,
    ),
    Metric(
        "r2", "R²", REGRESSION, True, "value",
        "Share of the target's variance that is explained: 0 is as good as always predicting the mean.",
        (-_INF, 1), tally=formulas.residual_sums, finish=formulas.r2,
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}

FIRST = {
    "binary": "average_precision",
    "multiclass": "log_loss",
    "multilabel": "average_precision",
    "regression": "rmse",
}

# scikit-learn's scorer names. Macro names stay off binary tasks, where they are another quantity.
ALIASES: dict[str, str] = {
    "neg_log_loss": "log_loss",
    "neg_brier_score": "brier",
    "matthews_corrcoef": "mcc",
    "neg_mean_absolute_error": "mae",
    "neg_root_mean_squared_error": "rmse",
}
MACRO_ALIASES: dict[str, str] = {
    "f1_macro": "f1",
    "precision_macro": "precision",
    "recall_macro": "recall",
    "roc_auc_ovr": "roc_auc",
}


def resolve_scoring(scoring: str | Iterable[str], task: str, *, costs: bool = False) -> list[Metric]:
    """Turn `evaluation.scoring` into metrics, the one that drives choices first.

    Parameters
    ----------
    scoring
        ``"auto"`` for the task's usual first metric and all others behind it, a name, or names;
        scikit-learn's scorer names are understood (``neg_log_loss`` is ``log_loss``).
    task
        binary, multiclass, multilabel or regression.
    costs
        Whether there are costs, by which some metrics judge.

    Raises
    ------
    ConfigError
        For a name that does not exist, or one that does not judge this task.
    """
    available = [metric for metric in _ALL if task in metric.tasks and (costs or metric.needs != "cost")]
    if not available:
        raise ConfigError(f"task {task!r} is none of {', '.join(FIRST)}")
    if scoring == "auto":
        first = METRICS[FIRST[task]]
        return [first, *(metric for metric in available if metric is not first)]
    names = (scoring,) if isinstance(scoring, str) else tuple(scoring)
    if not names:
        raise ConfigError(f"evaluation.scoring is empty; name at least one of {_names(available)}, or auto")
    return list({metric.name: metric for metric in (_find(name, task, available) for name in names)}.values())


def _find(name: str, task: str, available: list[Metric]) -> Metric:
    if name in MACRO_ALIASES and task == "binary":
        raise ConfigError(
            f"evaluation.scoring {name!r} averages over classes, and this task is binary; "
            f"write {MACRO_ALIASES[name]} (of the event)"
        )
    metric = METRICS.get(ALIASES.get(name, MACRO_ALIASES.get(name, name)))
    if metric is None:
        known = [*(m.name for m in available), *ALIASES, *MACRO_ALIASES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", nearest is {near[0]}" if near else ""
        raise ConfigError(
            f"evaluation.scoring {name!r} is no metric{hint}; allowed for {task}: {_names(available)}"
        )
    if metric.needs == "cost" and task in metric.tasks and metric not in available:
        raise ConfigError(
            f"evaluation.scoring {name!r} needs evaluation.costs, such as {{false_positive: 1, false_negative: 25}}"
        )
    if metric not in available:
        raise ConfigError(
            f"evaluation.scoring {name!r} judges {' and '.join(metric.tasks)}, and this task is {task}; "
            f"use one of {_names(available)}"
        )
    return metric


def _names(metrics: list[Metric]) -> str:
    return ", ".join(metric.name for metric in metrics)
