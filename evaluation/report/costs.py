"""What is decided, by which rule, and what it costs."""

import numpy as np

from shoal.evaluation.curves import confusion_matrix
from shoal.evaluation.formulas import cost_sums
from shoal.evaluation.metrics import METRICS, as_rows
from shoal.evaluation.report import cost_figures
from shoal.evaluation.report.facts import Part, ReportFacts
from shoal.evaluation.report.markup import (
    Html,
    count,
    figure,
    grid,
    interval,
    number,
    paragraph,
    section,
    share,
    table,
)
from shoal.evaluation.tallies import Rows
from shoal.training.costs import Costs

LISTED = 12  # mistakes whose costs are shown


def rule(facts: ReportFacts) -> list[str]:
    """Say which class is decided, and what of that was chosen on validation rows."""
    judging = facts.judging
    if judging.threshold == "optimal" and judging.rule.decision.columns:
        return [*_by_row(facts), *_calibration(facts)]
    if judging.threshold == "own":
        return [
            "The class with the highest probability is predicted. The model learned decisions: its training rows carried the "
            "class of least expected cost (MetaCost, Domingos 1999). So its probabilities are of decisions, not of classes: do "
            "not read log loss, Brier score and calibration as if they were, and choose no other threshold."
        ]
    threshold = judging.rule.decision.threshold
    which = facts.class_names[1] if facts.target.task == "binary" else "A label"
    at_least = f"{which} is predicted where its probability is at least {threshold:.4g}"
    by_threshold = {
        "usual": f"{at_least}.",
        "given": f"{at_least}, as evaluation.threshold says.",
        "optimal": f"{at_least}: there, both decisions are expected to cost the same (Elkan 2001).",
        "empirical": f"{at_least}: the threshold of lowest cost on the validation rows.",
    }
    if facts.target.task == "multiclass":
        by_cost = "The class of lowest expected cost is predicted."
        said = by_cost if judging.rule.costs else "The class with the highest probability is predicted."
    elif judging.threshold in by_threshold:
        said = by_threshold[judging.threshold]
    else:
        said = (
            f"{at_least}: the threshold of highest {METRICS[judging.threshold].label} on the validation rows."
        )
    return [said, *_calibration(facts)]


def _by_row(facts: ReportFacts) -> list[str]:
    """Say what is decided where costs are by row."""
    decision, part = facts.judging.rule.decision, facts.parts.get(facts.judged)
    said = [
        "What is predicted for a row has its lowest expected cost, by its own costs in "
        f"{', '.join(decision.columns)} (Elkan 2001)."
    ]
    if facts.target.task == "binary" and part is not None and not facts.hides_costs:
        low, middle, high = np.quantile(decision.thresholds(part.amounts), [0.05, 0.5, 0.95])
        said.append(
            f"The probability from which {facts.class_names[1]} is predicted differs from row to row: {middle:.3g} in the "
            f"middle, {low:.3g} to {high:.3g} for nine of ten {facts.judged} rows."
        )
    return said


def _calibration(facts: ReportFacts) -> list[str]:
    done, said = facts.judging.calibration, []
    if done.class_weights:
        said.append("What the classes weighed in the fit was divided out of the probabilities.")
    if done.cost_weights:
        said.append("What each row weighed in the fit by its costs was divided out of the probabilities.")
    if done.temperature is not None:
        said.append(
            f"Logits were divided by a temperature of {done.temperature:.4g}, fitted on the validation rows."
        )
    if done.isotonic:
        said.append("Probabilities were calibrated by isotonic regression on the validation rows.")
    if done.is_fitted or facts.judging.chosen_on_validation:
        said.append(
            "What was fitted on them is no result of theirs: the table of metrics leaves those values out."
        )
    return said


def costs(facts: ReportFacts) -> Html:
    """Say what decisions cost and save, where the cost comes from, and for two classes how it depends on the threshold."""
    part, known = facts.parts.get(facts.judged), facts.judging.rule.costs
    if part is None or known is None:
        return Html("")
    if not np.isfinite(part.scores).all():
        return section("costs", "Costs", paragraph(f"Scores of the {facts.judged} rows are NaN or infinite."))
    rows = as_rows(part.y, part.scores, facts.judging.rule, amounts=part.amounts)
    total, without, n = cost_sums(rows)[0]
    drawn = []
    if facts.target.task == "binary" and 0 < part.y.sum() < len(part.y):
        drawn = _figures(facts, part, known, float(without / n))
    sources = Html("") if facts.hides_costs else _sources(facts, known, rows, float(total))
    withheld = facts.judged == "validation" and "expected_cost" in facts.judging.withheld
    return section(
        "costs",
        "Costs",
        _summary(facts, known, float(without / n)),
        grid(*drawn),
        "" if withheld else sources,
    )


def _summary(facts: ReportFacts, known: Costs, without: float) -> Html:
    unit = f" {known.unit}" if known.unit else ""
    limits = METRICS["expected_cost"].limits
    entries = facts.metrics.get(facts.judged, {})
    cost, saved = entries.get("expected_cost", {}), entries.get("savings", {})
    constant = facts.class_names[facts.judging.rule.constant]
    compared = (
        f"Always deciding {constant}, which is the cheapest for the {_shares(known)} of the training rows, would cost "
        f"{number(without, limits)}{unit}."
    )
    if cost.get("value") is None:
        return paragraph(compared, f"What the model costs is left out: {cost.get('reason', 'unknown')}.")
    said = f"What the model decides costs {number(cost['value'], limits)}{unit} a row ({interval(cost, limits)})."
    if saved.get("value") is None:
        return paragraph(said, compared)
    low, high = (f"{100 * saved[key]:.1f}" for key in ("low", "high"))
    return paragraph(
        said, compared, f"The model saves {100 * saved['value']:.1f} % of that ({low} to {high} %)."
    )


def _shares(known: Costs) -> str:
    return "costs" if known.columns else "class shares"


def _figures(facts: ReportFacts, part: Part, known: Costs, without: float) -> list[Html]:
    sound = {name: p for name, p in facts.parts.items() if np.isfinite(p.scores).all()}
    rule = facts.judging.rule
    if facts.judging.threshold == "own":
        return []  # other thresholds on probabilities of decisions are none of the costs
    by_row = (
        " Each row has a threshold of its own here: the dashed line is what that costs, the curves what one for all rows would."
        if rule.decision.columns
        else ""
    )
    over = figure(
        Html(cost_figures.cost_over_threshold(sound, rule, known, without)),
        "Cost over the threshold",
        "The lower the threshold, the more is decided to be the event. A wide, flat bottom means that the exact threshold "
        f"matters little.{by_row}",
    )
    if known.columns:  # a cost curve is of costs that are the same for all rows
        return [] if facts.hides_costs else [over]
    return [
        over,
        figure(
            Html(cost_figures.cost_curve(part, rule, known)),
            "Cost curve",
            "What decisions would cost with other class shares and costs (Drummond and Holte 2006): to the left, false alarms "
            f"are all that costs, to the right, missed events. The best thresholds are those of these {facts.judged} rows, with "
            "hindsight.",
        ),
    ]


def _sources(facts: ReportFacts, known: Costs, rows: Rows, total: float) -> Html:
    """List what the cost is made of, the dearest first."""
    names, decided = facts.class_names, rows.decisions
    matrix = confusion_matrix(rows.y, decided, rows.n_classes)
    cell = rows.y * rows.n_classes + decided
    paid = np.broadcast_to(known.of(rows.y, decided, rows.amounts), cell.shape)
    by_cell = np.bincount(cell, weights=paid, minlength=matrix.size).reshape(matrix.shape)
    lines = []
    for flat in np.argsort(-np.abs(by_cell), axis=None, kind="stable")[:LISTED]:
        i, j = divmod(int(flat), len(names))
        if by_cell[i, j]:
            part = share(by_cell[i, j], total) if total > 0 and (by_cell >= 0).all() else "–"
            each, all_rows = (f"{value:,.6g}" for value in (by_cell[i, j] / matrix[i, j], by_cell[i, j]))
            lines.append([f"{names[i]}, decided {names[j]}", count(matrix[i, j]), each, all_rows, part])
    unit = f", in {known.unit}" if known.unit else ""
    each = "mean cost" if known.columns else "cost of each"
    headers = ["actual and decided class", "rows", each, "cost", "share"]
    return (
        table(f"Where the cost comes from, {facts.judged} rows{unit}", headers, lines) if lines else Html("")
    )
