"""The part of a report of folds that is about alternatives: how they compare, and what was chosen inside each fold."""

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.evaluation.report.fold_facts import FoldFacts
from shoal.evaluation.report.markup import Html, number, paragraph, section, table, text

_BESIDE = ("log_loss", "brier", "rmse", "expected_cost")  # beside the first metric


def comparison(facts: FoldFacts) -> Html:
    """Put the alternatives beside each other, and say how each compares with the first."""
    if not facts.found["comparison"]:
        return Html("")
    first, *others = facts.metrics
    beside = [metric for metric in others if metric.name in _BESIDE]
    rows = []
    for name, scores in facts.scores.items():
        found = facts.found["comparison"].get(name, {}).get("differences", {}).get(first.name, {})
        entry, p = scores[first.name], found.get("p_value")
        rows.append(
            [
                name,
                number(entry["value"], first.limits),
                _difference(found),
                "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
                *(number(scores.get(other.name, {}).get("value"), other.limits) for other in beside),
                f"{scores['seconds']['value']:.1f}",
            ]
        )  # fmt: skip
    headers = [
        "alternative", first.label, "difference", "p",
        *(other.label for other in beside), "seconds a fit",
    ]  # fmt: skip
    said = "".join(f"<li>{text(one['sentence'])}</li>" for one in facts.found["comparison"].values())
    caption = f"Means over the same folds; differences to {facts.names[0]}, with {100 * facts.confidence:g} % intervals"
    return section("comparison", "Comparison", table(caption, headers, rows), Html(f"<ul>{said}</ul>"))


def _difference(found: Mapping[str, Any]) -> Html:
    if found.get("low") is None:
        return text(_signed(found.get("value")))
    return Html(
        f"{_signed(found['value'])}<small>{_signed(found['low'])} to {_signed(found['high'])}</small>"
    )


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4g}" if abs(value) >= 100 else f"{value:+.4f}"


def choices(facts: FoldFacts) -> Html:
    """Show what was chosen inside each fold, by which means, and how the fold judged it."""
    if not facts.nested:
        return Html("")
    metric = facts.metrics[0]
    rows: list[Sequence[object]] = []
    for choice, value in zip(facts.nested["choices"], facts.headline[metric.name]["by_fold"], strict=True):
        means = []
        for name in facts.names:
            shown = number(choice["means"].get(name), metric.limits)
            means.append(
                Html(f"<strong>{shown}</strong><small>chosen</small>") if name == choice["chosen"] else shown
            )
        rows.append([f"fold {choice['fold']}", *means, number(value, metric.limits)])
    caption = f"{metric.label}: means over the inner folds, and the chosen one on the outer fold"
    return section(
        "choices",
        "The choice inside each fold",
        paragraph(
            "The outer folds took no part in the choice, so the headline is an estimate for choosing and fitting, without the "
            "optimism of a best of several (Varma and Simon 2006; Cawley and Talbot 2010)."
        ),
        paragraph(f"{facts.nested['sentence'][0].upper()}{facts.nested['sentence'][1:]}."),
        table(caption, ["outer fold", *facts.names, "judged by the outer fold"], rows),
    )
