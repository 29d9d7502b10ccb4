"""The judgement: how it learned, how it ranks, what it decides, how far off it is, and all the numbers."""

import numpy as np

from shoal.evaluation.calibration import reliability
from shoal.evaluation.curves import confusion_matrix
from shoal.evaluation.intervals import EXACT, JACKKNIFE
from shoal.evaluation.metrics import METRICS, as_rows
from shoal.evaluation.report import costs, figures
from shoal.evaluation.report.baseline import baselines
from shoal.evaluation.report.classes import class_table, confusion_table, mix_ups
from shoal.evaluation.report.facts import STANDARD, Part, ReportFacts
from shoal.evaluation.report.markup import (
    Html,
    figure,
    grid,
    interval,
    number,
    paragraph,
    section,
    table,
    text,
)

_AVERAGED = {
    "multiclass": "Macro: each class against the rest, then the plain average over the classes that occur.",
    "multilabel": "Macro: the plain average over labels. Accuracy counts rows with every label right.",
}
MATRIX = 20  # classes up to which the confusion matrix is shown whole


def learning(facts: ReportFacts) -> Html:
    """Learning curves, and which epoch the model is from."""
    if facts.history is None or not facts.history.num_rows:
        return Html("")
    rows = facts.history.to_pylist()
    train = [row for row in rows if row["split"] == "train" and row["metric"] == "loss"]
    held = [row for row in rows if row["split"] == "validation" and row["metric"] == facts.steered.name]
    steps = max(row["step"] for row in rows) / max(row["epoch"] for row in rows)
    best, shown = facts.best, []
    if train:
        epochs = np.array([row["step"] / steps for row in train])
        values = np.array([row["value"] for row in train])
        shown.append(figure(Html(figures.loss_curve(epochs, values, best)), "Training loss"))
    rates = [row for row in rows if row["split"] == "train" and row["metric"] == "learning_rate"]
    if len({row["value"] for row in rates}) > 1:
        epochs = np.array([row["step"] / steps for row in rates])
        drawn = figures.rate_curve(epochs, np.array([row["value"] for row in rates]))
        shown.append(figure(Html(drawn), "Learning rate"))
    if held:
        epochs = np.array([float(row["epoch"]) for row in held])
        values = np.array([row["value"] for row in held])
        better = "higher" if facts.steered.greater_is_better else "lower"
        drawn = figures.validation_curve(epochs, values, facts.steered, best)
        name = facts.steered.label
        shown.append(figure(Html(drawn), f"{name} on validation rows", f"{better.capitalize()} is better."))
    last = max(row["epoch"] for row in rows)
    if best is None:
        said = f"The model is the one after epoch {last}; there were no validation scores to choose by."
    elif best.restored:
        said = f"The model is the one after epoch {best.epoch} of {last}, the best on the validation rows."
    else:
        said = f"The model is the one after epoch {last}; the best on the validation rows was {best.epoch}."
    return section("learning", "Learning", paragraph(said, "The test rows took no part."), grid(*shown))


def ranking(facts: ReportFacts) -> Html:
    """ROC, precision-recall and calibration curves."""
    part = facts.parts.get(facts.judged)
    if part is None or facts.target.task == "regression":
        return Html("")
    if not np.isfinite(part.scores).all():
        return section(
            "ranking",
            "Ranking and probabilities",
            paragraph(f"Scores of the {facts.judged} rows are NaN or infinite: there are no curves to draw."),
        )
    if facts.target.task != "binary":
        return section("ranking", "Ranking and probabilities", grid(*_many_curves(facts, part)))
    sound = {
        name: p for name, p in facts.parts.items() if 0 < p.y.sum() < len(p.y) and np.isfinite(p.scores).all()
    }
    if facts.judged not in sound:
        return section(
            "ranking",
            "Ranking and probabilities",
            paragraph(f"The {facts.judged} rows hold one class only: there are no curves to draw."),
        )
    decided = facts.judging.rule.decision.classes(part.scores, part.amounts) == 1
    events = part.y == 1
    recall, false = float(decided[events].mean()), float(decided[~events].mean())
    precision = float(events[decided].mean()) if decided.any() else None
    base, name = float(events.mean()), facts.class_names[1]
    found = reliability(events, part.scores)
    return section(
        "ranking",
        "Ranking and probabilities",
        grid(
            figure(
                Html(figures.roc(sound, (false, recall))),
                "ROC curve",
                "Events found against false alarms, as the threshold falls; the numbers are areas under the curve.",
            ),
            figure(
                Html(
                    figures.precision_recall(sound, base, None if precision is None else (recall, precision))
                ),
                "Precision and recall",
                f"How many of the alarms are right, against how many events are found. "
                f"Guessing stays at the base rate, {100 * base:.1f} %.",
            ),
            figure(
                Html(figures.calibration(events, part.scores, f"of {name}", facts.confidence)),
                "Calibration",
                f"Of rows given a probability, the share that are {name}; on the diagonal, probabilities mean what "
                f"they say. Expected calibration error {found.error:.3f} ({facts.judged} rows, bins of equal size).",
            ),
        ),
    )


def decisions(facts: ReportFacts) -> Html:
    """Confusion matrix and classes at the decision threshold."""
    part = facts.parts.get(facts.judged)
    if part is None or facts.target.task == "regression":
        return Html("")
    names, blocks = facts.class_names, []
    rows = as_rows(part.y, part.scores, facts.judging.rule, amounts=part.amounts)
    blocks.append(paragraph(*costs.rule(facts)))
    if not rows.multilabel:
        matrix = confusion_matrix(rows.y, rows.decisions, rows.n_classes)
        if len(names) <= MATRIX:
            blocks.append(confusion_table(matrix, names, facts.judged))
        else:
            blocks.append(mix_ups(matrix, names, facts.judged))
    if facts.target.task != "binary":
        blocks.append(class_table(rows, names, facts.judged))
    return section("decisions", "Decisions", *blocks)


def errors(facts: ReportFacts) -> Html:
    """Regression: predictions against labels, and the errors."""
    part = facts.parts.get(facts.judged)
    if part is None or facts.target.task != "regression":
        return Html("")
    if not np.isfinite(part.scores).all():
        return section(
            "errors", "Errors", paragraph("Some predictions are NaN or infinite: nothing to draw.")
        )
    name = facts.target.columns[0]
    wide = np.quantile(np.abs(part.y - part.scores), [0.5, 0.9])
    units = " standard deviations" if facts.hides_units else ""
    return section(
        "errors",
        "Errors",
        paragraph(
            f"Half of the {facts.judged} predictions are within {number(wide[0])}{units} of the truth, "
            f"nine in ten within {number(wide[1])}.",
            f"The target is private: both axes of both plots are in {STANDARD}." if units else "",
        ),
        grid(
            figure(
                Html(figures.predicted_against_actual(part, name)),
                "Predicted and actual",
                f"Each dot a {facts.judged} row (darker cells hold more); the closer to the dotted line, the better.",
            ),
            figure(
                Html(figures.residuals(part, name)),
                "Residuals",
                "A median off the line is a systematic error; a widening band, errors that grow with the prediction.",
            ),
        ),
    )


def scores(facts: ReportFacts) -> Html:
    """All metrics of both parts, with a sentence each."""
    parts = [name for name in ("test", "validation") if name in facts.metrics]
    if not parts:
        return Html("")
    part = facts.parts.get(facts.judged)
    without = {} if part is None else baselines(facts.chosen, facts.manifest, part, facts.judging.rule)
    rows = []
    for metric in facts.chosen:
        better = "Higher is better." if metric.greater_is_better else "Lower is better."
        cells: list[object] = [Html(f"{text(metric.label)}<small>{text(metric.meaning)} {better}</small>")]
        for name in parts:
            entry = facts.metrics[name].get(metric.name, {})
            shown = interval(entry, metric.limits) or entry.get("reason", "")
            cells.append(Html(f"{number(entry.get('value'), metric.limits)}<small>{text(shown)}</small>"))
        cells.append(number(without.get(metric.name), metric.limits))
        rows.append(cells)
    headers = ["metric", *parts, "without a model"]
    return section(
        "metrics",
        "All metrics",
        paragraph(
            f"Below each value is its {100 * facts.confidence:g} % interval.",
            "Test rows were judged once, after all choices; validation rows steered them, so theirs are optimistic."
            if len(parts) == 2
            else "",
            f"The first metric, {facts.chosen[0].label}, drove the choices."
            if facts.steered == facts.chosen[0]
            else f"{facts.steered.label} drove the choices of the model, {facts.chosen[0].label} those of MetaCost's members.",
            _AVERAGED.get(facts.target.task, ""),
        ),
        table("Metrics by part", headers, rows, css="metrics"),
    )


def method(facts: ReportFacts) -> Html:
    """Say what kind the intervals are."""
    used: dict[str, list[str]] = {}
    for name, entry in facts.metrics.get(facts.judged, {}).items():
        if entry.get("method"):
            used.setdefault(entry["method"], []).append(METRICS[name].label)
    lines = []
    for kind, labels in used.items():
        entry = next(e for e in facts.metrics[facts.judged].values() if e.get("method") == kind)
        draws = f", {entry['replicates']:,} replicates" if entry.get("replicates") else ""
        lines.append(
            f"<li>{text(kind)}{draws}: {text(', '.join(labels)) if len(used) > 1 else 'all metrics'}{_explained(kind)}</li>"
        )
    if not lines:
        return Html("")
    return section(
        "intervals",
        "How the intervals were made",
        paragraph(
            "An interval says what the value might have been on other rows drawn from the same source, with this "
            "very model: rows are taken as independent, and luck in training (the seed) is not part of it."
        ),
        Html(f"<ul>{''.join(lines)}</ul>"),
    )


def _explained(kind: str) -> str:
    if kind == JACKKNIFE:
        return " (each row's first-order effect on the value, as DeLong's method for the area under the ROC curve)"
    if kind == EXACT:
        return (
            " (no error was seen, so drawing rows again shows none; this is the worst value that fits that)"
        )
    if "stratified" in kind:
        return " (the share of each class is held as it is among the rows)"
    return ""


def _many_curves(facts: ReportFacts, part: Part) -> list[Html]:
    """One-against-rest curves, and the calibration of the chosen class (or of all labels together)."""
    rows = as_rows(part.y, part.scores)
    if rows.multilabel:
        events, probabilities, what = rows.y.ravel() > 0.5, rows.scores.ravel(), "of a label"
        says = "Of the labels given a probability, the share that hold"
    else:
        chosen = rows.decisions
        events, probabilities = chosen == rows.y, rows.scores[np.arange(len(chosen)), chosen]
        what, says = (
            "of the predicted class",
            "Of rows predicted with a probability, the share that are right",
        )
    found = reliability(events, probabilities)
    drawn = figures.calibration(events, probabilities, what, facts.confidence)
    kind = "label" if rows.multilabel else "class"
    return [
        figure(
            Html(figures.one_vs_rest(part, facts.class_names)),
            "ROC curves, one against the rest",
            f"Each {kind} as the event ({facts.judged} rows).",
        ),
        figure(Html(drawn), "Calibration", f"{says}. Expected calibration error {found.error:.3f}."),
    ]
