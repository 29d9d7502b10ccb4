"""The page of a cross-validation: what was estimated, the folds' scores, their fits, and how."""

from collections.abc import Mapping
from typing import Any

from shoal.cluster.sharding.names import plural
from shoal.evaluation.report import fold_figures
from shoal.evaluation.report.facts import STANDARD
from shoal.evaluation.report.fold_choices import choices, comparison
from shoal.evaluation.report.fold_facts import FoldFacts
from shoal.evaluation.report.fold_rows import predictions
from shoal.evaluation.report.inputs import provenance_of
from shoal.evaluation.report.markup import (
    Html,
    count,
    details,
    figure,
    grid,
    interval,
    number,
    paragraph,
    section,
    table,
    text,
)
from shoal.evaluation.report.overview import lower, subtitle, title
from shoal.evaluation.report.page import document

_CHOICE = "the choice"
Entry = Mapping[str, Any]


def render_folds(facts: FoldFacts) -> str:
    """Write a cross-validation as one self-contained HTML page: no script, nothing fetched.

    Returns
    -------
    str
        A whole HTML document, the same for the same facts.
    """
    blocks = (
        _estimated(facts),
        _headline(facts),
        _warnings(facts),
        _by_fold(facts),
        comparison(facts),
        choices(facts),
        predictions(facts),
        _fits(facts),
        _method(facts),
        _provenance(facts),
    )
    body = "\n".join(block for block in blocks if block)
    name = f"{title(facts.target)}, cross-validated"
    return document(name, subtitle(facts.name, facts.provenance), body)


def _subject(facts: FoldFacts) -> str:
    if facts.nested:
        return f"the choice among {len(facts.names)} alternatives, made anew inside each fold"
    if others := len(facts.names) - 1:
        are = "is" if others == 1 else "are"
        return f"the alternative {facts.names[0]!r}, with which {plural(others, 'other')} {are} compared"
    return "a model made as the experiment says"


def _estimated(facts: FoldFacts) -> Html:
    """Say what was estimated, by which folds and why, on how many rows."""
    folds = len(facts.judged)
    rows = sum(len(one.part.y) for one in facts.judged)
    split = facts.config.get("data", {}).get("split") or {}
    untouched = (
        "data.split keeps no test rows back."
        if split.get("test") == 0
        else "The test rows of data.split are in no fold and untouched."
    )
    return paragraph(
        f"Estimated: how good {_subject(facts)} is on rows that it has not seen.",
        f"{plural(folds, 'fold')} ({facts.found['cv']}) judged {plural(rows, 'row')} of {count(facts.manifest.rows_read)} read,",
        "each by a model that had not seen it.",
        untouched,
        f"The target is private: its numbers, and errors, are given in {STANDARD} from its mean, both of the first fold's "
        "training rows."
        if facts.hides_units
        else "",
    )


def _headline(facts: FoldFacts) -> Html:
    metric, entry = facts.metrics[0], facts.headline[facts.metrics[0].name]
    value = number(entry["value"], metric.limits)
    known = sum(v is not None for v in entry["by_fold"])
    says = (
        Html(
            f"Over {plural(known, 'fold')}, the mean of {text(lower(metric))} is <strong>{value}</strong>, for "
            f"{text(_subject(facts))}."
        )
        if entry["value"] is not None
        else f"{metric.label} is {entry.get('reason', 'undefined')}."
    )
    spread = interval(entry, metric.limits)
    kind = f"{100 * facts.confidence:g} % interval, {entry['method']}" if spread else "no interval"
    shown = [
        other for i, other in enumerate(facts.metrics) if 1 <= i < 4 or (i and other.name == "expected_cost")
    ]
    cards = "".join(
        f'<div class="card"><span>{text(other.label)}</span><b>{number(found["value"], other.limits)}</b>'
        f"<span>{text(interval(found, other.limits) or found.get('reason', ''))}</span></div>"
        for other in shown
        for found in (facts.headline[other.name],)
    )
    return Html(
        f'<div class="headline"><div><div class="soft">{text(metric.label)} (mean over folds)</div>'
        f'<div class="value">{value}</div><div class="range">{text(spread)}<small>{text(kind)}</small></div></div>'
        f'<div class="words">{paragraph(says)}{paragraph(metric.meaning)}</div></div>'
        + (f'<div class="cards">{cards}</div>' if cards else "")
    )


def _warnings(facts: FoldFacts) -> Html:
    found = []
    if len(facts.names) > 1 and not facts.nested:
        found.append(
            "The best of several looks better here than it is, because it would be chosen by these scores: judge the one "
            "that you choose on the test rows (shoal train), or nest the choice (evaluation.cv: nested)."
        )
    by_reason: dict[str, list[str]] = {}
    for metric in facts.metrics:
        if reason := facts.headline[metric.name].get("reason"):
            by_reason.setdefault(reason, []).append(metric.label)
    found += [
        f"{', '.join(labels)} {'is' if len(labels) == 1 else 'are'} {reason}: what is shown is the mean over the others alone."
        for reason, labels in by_reason.items()
    ]
    return Html("".join(paragraph(warning, css="warning") for warning in found))


def _by_fold(facts: FoldFacts) -> Html:
    """Draw each fold's value of the first metric, and list all metrics."""
    metric = facts.metrics[0]
    of = {name: scores[metric.name] for name, scores in facts.scores.items()}
    if facts.nested:
        of = {_CHOICE: facts.headline[metric.name], **of}
    better = "Higher" if metric.greater_is_better else "Lower"
    drawn = [figure(Html(fold_figures.dots(of, metric)), f"{metric.label}, fold by fold", f"{better} is better.")]  # fmt: skip
    differences = {
        name: one["differences"][metric.name]
        for name, one in facts.found["comparison"].items()
        if metric.name in one["differences"]
    }
    if differences:
        svg = fold_figures.forest(differences, metric, facts.names[0])
        side = "right" if metric.greater_is_better else "left"
        says = f"Paired fold by fold; {side} of the line is better than {facts.names[0]}."
        drawn.append(figure(Html(svg), f"Differences to {facts.names[0]}", says))
    tables: list[Html] = []
    if facts.nested:
        tables.append(_metrics(facts, f"Scores of {_CHOICE}", facts.headline))
    for name, scores in facts.scores.items():
        caption = f"Scores of {name}" if len(facts.names) > 1 else "All metrics over the folds"
        made = _metrics(facts, caption, scores)
        tables.append(details(f"All metrics of {name}", made) if tables else made)
    return section("folds", "Scores by fold", grid(*drawn), *tables)


def _metrics(facts: FoldFacts, caption: str, scores: Mapping[str, Entry]) -> Html:
    rows = []
    for metric in facts.metrics:
        entry = scores.get(metric.name)
        if entry is None:
            continue
        by = [(value, fold) for fold, value in enumerate(entry["by_fold"], 1) if value is not None]
        low, high = (min(by), max(by)) if by else ((None, 0), (None, 0))
        worst, best = (low, high) if metric.greater_is_better else (high, low)
        ends = [
            Html(f"{number(value, metric.limits)}<small>fold {fold}</small>") if fold else "–"
            for value, fold in (worst, best)
        ]
        spread = interval(entry, metric.limits) or "–"
        if entry.get("reason"):
            spread = Html(f"{spread}<small>{text(entry['reason'])}</small>")
        rows.append([metric.label, number(entry["value"], metric.limits), spread, *ends])
    level = f"{100 * facts.confidence:g} % interval"
    return table(caption, ["metric", "mean", level, "worst fold", "best fold"], rows, css="metrics")


def _fits(facts: FoldFacts) -> Html:
    """List every outer fit: its rows, score, epochs and seconds."""
    metric = facts.metrics[0]
    stages = list(facts.fits[0]["seconds"])
    several = len(facts.names) > 1
    decided = any(fit.get("threshold") is not None for fit in facts.fits)
    rows = [
        [
            f"fold {fit['fold'] + 1}" + (f", {fit['alternative']}" if several else ""),
            *(count(fit["rows"].get(part, 0)) for part in ("train", "validation", "test")),
            number(fit["scores"][metric.name], metric.limits),
            *([number(fit.get("threshold"), (0, 1))] if decided else []),
            fit.get("epochs") or "–",
            *(f"{fit['seconds'].get(stage, 0):.1f}" for stage in stages),
        ]
        for fit in facts.fits
    ]
    headers = [
        "fit", "training rows", "validation", "judged", metric.label,
        *(["threshold"] if decided else []), "epochs",
        *(f"{stage}, s" for stage in stages),
    ]  # fmt: skip
    made = table("Each fold's fit; validation rows are cut from its training rows", headers, rows)
    said = dict.fromkeys(notice for fit in facts.fits for notice in fit["notices"])
    notices = Html("<ul>" + "".join(f"<li>{text(notice)}</li>" for notice in said) + "</ul>")
    return section(
        "fits",
        "Rows and time of each fit",
        details(f"{plural(len(rows), 'fit')}", made, opened=len(rows) <= 10),
        details(f"What the fits noticed ({len(said)})", notices) if said and not facts.hides_units else "",
    )


def _method(facts: FoldFacts) -> Html:
    return section(
        "method",
        "How the numbers were made",
        paragraph(
            "Everything that learns from rows (the encoder's statistics, resampling, early stopping, calibration, the "
            "threshold) was fitted inside each fold, on its training rows and on validation rows that were cut from them."
        ),
        paragraph(
            f"Each {100 * facts.confidence:g} % interval is of the mean over J folds: the mean, give or take Student's t with "
            "J - 1 degrees of freedom, times the root of (1/J + judged rows / training rows) times the variance of the J "
            "values. Folds share training rows, and the usual standard error, without the second term, takes them for "
            "independent. Intervals of differences and their p-values are the same, of the differences fold by fold. They are "
            "not corrected for the number of alternatives. Bounds end where the metric does."
        ),
        paragraph(
            "Nadeau and Bengio (2003), Inference for the generalization error, Machine Learning 52, equation 9 and section 6.2.",
            css="soft",
        ),
    )


def _provenance(facts: FoldFacts) -> Html:
    if facts.private:  # the experiment may name classes: data.positive, costs by class
        hidden = paragraph("The target is private; the resolved experiment is in config.yaml.", css="soft")
        return provenance_of(facts.provenance, "", hidden)
    return provenance_of(facts.provenance, facts.config_text)
