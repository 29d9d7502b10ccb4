"""The part of a report of folds that looks at rows: curves of each fold, calibration, decisions, errors."""

import numpy as np

from shoal.evaluation.calibration import reliability
from shoal.evaluation.curves import confusion_matrix
from shoal.evaluation.metrics import as_rows
from shoal.evaluation.report import figures, fold_figures
from shoal.evaluation.report.classes import confusion_table, mix_ups
from shoal.evaluation.report.facts import Part
from shoal.evaluation.report.fold_facts import FoldFacts
from shoal.evaluation.report.judgement import MATRIX
from shoal.evaluation.report.markup import Html, figure, grid, paragraph, section

_MEAN = "Each fold is a model of its own, with its own scale of scores: folds are drawn apart, and their heights averaged"


def predictions(facts: FoldFacts) -> Html:
    """Show the rows that folds judged, by models that had not seen them."""
    finite = [one for one in facts.judged if np.isfinite(one.part.scores).all()]
    left = len(facts.judged) - len(finite)
    whose = "the choices" if facts.nested else facts.names[0] if len(facts.names) > 1 else "the folds' models"
    said = [f"Predictions of {whose}, each of a row that the model had not seen."]
    said += (
        [f"{left} of {len(facts.judged)} folds have NaN or infinite scores and are left out."] if left else []
    )
    if not finite:
        return section("predictions", "Predictions", paragraph(*said))
    parts = [one.part for one in finite]
    pooled = Part(np.concatenate([p.y for p in parts]), np.concatenate([p.scores for p in parts]))
    blocks: list[Html] = []
    task = facts.target.task
    if task == "regression":
        name = ", ".join(facts.target.columns)
        drawn = [figure(Html(figures.predicted_against_actual(pooled, name)), "Actual against predicted")]
        drawn.append(figure(Html(figures.residuals(pooled, name)), "Errors"))
        return section("predictions", "Predictions", paragraph(*said), grid(*drawn))
    if task == "binary":
        drawn, more = _curves(parts)
        said += more
    else:
        drawn = []
    drawn.append(_calibration(facts, pooled))
    blocks.append(grid(*drawn))
    if task != "multilabel":
        names = facts.class_names
        matrix = confusion_matrix(pooled.y, np.concatenate([one.decided for one in finite]), len(names))
        show = confusion_table if len(names) <= MATRIX else mix_ups
        blocks.append(show(matrix, names, "judged"))
    return section("predictions", "Predictions", paragraph(*said), *blocks)


def _curves(parts: list[Part]) -> tuple[list[Html], list[str]]:
    """Draw the curves of the folds that have both classes, and name how many have not."""
    both = [part for part in parts if 0 < part.y.sum() < len(part.y)]
    said = [] if len(both) == len(parts) else [
        f"{len(parts) - len(both)} of {len(parts)} folds judge rows of one class only, which have no curves."
    ]  # fmt: skip
    if not both:
        return [], said
    return [
        figure(Html(fold_figures.rocs(both)), "ROC curves", f"{_MEAN} at each false positive rate."),
        figure(
            Html(fold_figures.precision_recalls(both)), "Precision and recall", f"{_MEAN} at each recall."
        ),
    ], said


def _calibration(facts: FoldFacts, pooled: Part) -> Html:
    """Draw the calibration of all folds together: probabilities, unlike scores, mean the same in each."""
    if facts.target.task == "binary":
        events, probabilities, what = pooled.y == 1, pooled.scores, f"of {facts.class_names[1]}"
        says = f"Of rows given a probability, the share that are {facts.class_names[1]}"
    else:
        rows = as_rows(pooled.y, pooled.scores)
        if rows.multilabel:
            events, probabilities, what = rows.y.ravel() > 0.5, rows.scores.ravel(), "of a label"
            says = "Of the labels given a probability, the share that hold"
        else:
            chosen = rows.decisions
            events, probabilities = chosen == rows.y, rows.scores[np.arange(len(chosen)), chosen]
            what, says = "of the predicted class", "Of rows predicted with a probability, the share that are right"  # fmt: skip
    drawn = figures.calibration(events, probabilities, what, facts.confidence)
    error = reliability(events, probabilities).error
    return figure(
        Html(drawn),
        "Calibration",
        f"{says}, over all folds together: the calibration of their average. Expected calibration error {error:.3f}.",
    )
