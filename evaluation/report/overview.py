"""The top of the page: what was predicted, the headline number, and what to be careful about."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import plural
from shoal.evaluation.deciding.judging import WITHHELD
from shoal.evaluation.metrics import Metric
from shoal.evaluation.report.baseline import WORDS, baselines
from shoal.evaluation.report.facts import ReportFacts
from shoal.evaluation.report.markup import Html, count, interval, number, paragraph, share, text

TASKS = {
    "binary": "binary classification",
    "multiclass": "multi-class classification",
    "multilabel": "multi-label classification",
    "regression": "regression",
}
FEW = 30  # rows of a class below which any number about it is shaky


def title(target: Target) -> str:
    """Name the page by target and task."""
    columns = target.columns
    named = ", ".join(columns[:3]) + (f" and {len(columns) - 3} more" if len(columns) > 3 else "")
    return f"{named}: {TASKS[target.task]}"


def subtitle(name: str, provenance: Mapping[str, Any]) -> Html:
    """Say which run this is, and when it ended."""
    ended = provenance.get("ended", "")
    return paragraph(
        f"Run {name}",
        f"· finished {ended.replace('T', ' ').replace('+00:00', ' UTC')}" if ended else "",
        css="soft",
    )


def headline(facts: ReportFacts) -> Html:
    """Show the first metric with its interval and in words, beside what it would be without a model."""
    part, metrics = facts.judged, facts.chosen
    if part not in facts.parts or not metrics:
        return paragraph("No rows were held out: there is no score to report.", css="warning")
    without = baselines(metrics, facts.manifest, facts.parts[part], facts.judging.rule)
    first, entry = metrics[0], facts.metrics[part][metrics[0].name]
    n = len(facts.parts[part].y)
    who = (
        f"On {plural(n, 'test row')}, which took no part in training or in any choice,"
        if part == "test"
        else f"On {plural(n, 'validation row')}, which also steered the training (so this flatters the model),"
    )
    value = number(entry["value"], first.limits)
    if entry["value"] is None:
        reason = entry.get("reason", "")
        what = "left out" if reason in WITHHELD else "undefined"
        says = Html(f"{text(who)} {text(first.label)} is {what}: {text(reason)}.")
    else:
        says = Html(f"{text(who)} {text(lower(first))} is <strong>{value}</strong>.")
    ranges = interval(entry, first.limits)
    level = f"{100 * facts.confidence:g} % interval"
    main = (
        f'<div><div class="soft">{text(first.label)} ({part})</div><div class="value">{value}</div>'
        f'<div class="range">{text(ranges)}<small>{level}</small></div></div>'
        f'<div class="words">{paragraph(says)}{paragraph(first.meaning)}'
        f"{_compared(facts, first, without.get(first.name))}</div>"
    )
    cards = "".join(_card(facts, metric, without.get(metric.name)) for metric in metrics[1:4])
    return Html(
        f'<div class="headline">{main}</div>' + (f'<div class="cards">{cards}</div>' if cards else "")
    )


def warnings(facts: ReportFacts) -> Html:
    """Name what makes the numbers weaker than they look."""
    found = []
    if "test" not in facts.parts:
        found.append("There are no test rows: validation scores were used for choices and are optimistic.")
    counts = _class_rows(facts)
    if counts:
        name, rows = min(counts.items(), key=lambda item: item[1])
        if rows < FEW:
            found.append(
                f"Only {plural(rows, f'{facts.judged} row')} of {name}: intervals of so few are rough."
            )
    if facts.config.get("data", {}).get("group"):
        found.append(
            f"Rows share groups ({facts.config['data']['group']}), and the intervals take rows as independent: "
            "they may be too narrow."
        )
    return Html("".join(paragraph(warning, css="warning") for warning in found))


def _class_rows(facts: ReportFacts) -> dict[str, int]:
    """Rows of each class of the judged part; for multi-label, of each label."""
    part = facts.parts.get(facts.judged)
    if part is None or facts.target.task == "regression":
        return {}
    many = part.y.ndim == 2
    counts = (part.y > 0.5).sum(axis=0) if many else np.bincount(part.y, minlength=len(facts.class_names))
    return {name: int(n) for name, n in zip(facts.class_names, counts, strict=True)}


def _compared(facts: ReportFacts, metric: Metric, without: float | None) -> Html:
    if without is None:
        return Html("")
    entry = facts.metrics[facts.judged][metric.name]
    rate = ""
    if facts.target.task == "binary":
        counts = list(_class_rows(facts).values())
        all_rows = sum(counts)
        rate = (
            f"The base rate is {share(counts[1], all_rows)}: "
            f"{count(counts[1])} of {plural(all_rows, 'row')} {'is' if counts[1] == 1 else 'are'} {facts.class_names[1]}."
        )
    low, high = entry["low"], entry["high"]
    reference = f"Without a model, {WORDS[facts.target.task]}, it would be {number(without, metric.limits)}"
    if low is None:
        return paragraph(rate, f"{reference}.", css="soft")
    better = low > without if metric.greater_is_better else high < without
    verdict = "the whole interval is better than that." if better else "the interval does not exclude that."
    return paragraph(rate, f"{reference}; {verdict}", css="soft")


def _card(facts: ReportFacts, metric: Metric, without: float | None) -> str:
    entry = facts.metrics[facts.judged].get(metric.name)
    if entry is None:
        return ""
    ranges = interval(entry, metric.limits) or entry.get("reason", "")
    reference = (
        f"<span>without a model {number(without, metric.limits)}</span>" if without is not None else ""
    )
    return (
        f'<div class="card"><span>{text(metric.label)}</span><b>{number(entry["value"], metric.limits)}</b>'
        f"<span>{text(ranges)}</span>{reference}</div>"
    )


def lower(metric: Metric) -> str:
    """Return the label as it reads inside a sentence."""
    head = metric.label.split()[0]
    return (
        metric.label if head.isupper() or not head.isalpha() else metric.label[0].lower() + metric.label[1:]
    )
