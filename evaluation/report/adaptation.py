"""The page of an adaptation: the plain and the adapted model beside each other, how it was chosen, and the shift."""

from collections.abc import Mapping
from typing import Any

from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Manifest, Target
from shoal.cluster.sharding.names import plural
from shoal.evaluation.metrics import METRICS
from shoal.evaluation.report.fold_figures import dots, forest
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
)
from shoal.evaluation.report.overview import subtitle
from shoal.evaluation.report.page import REPORT, document
from shoal.evaluation.unlabelled import ASSUMES

NAMES = {"source_only": "source only", "in_domain": "in domain (upper bound)"}
SCORES = {
    "importance_weighted": "importance-weighted validation: loss of held-out source rows, weighted as the target has them",
    "dev": "DEV: the same with a control variate",
    "entropy": "sureness of answers on the target (negative mean entropy)",
    "snd": "soft neighbourhood density",
    "bnm": "nuclear norm of the answers: sure and diverse",
    "corr_c": "correlation of a class's answers with other classes', against its own",
    "leave_one_domain_out": "mean score on each source domain, with the others as source and it in the target's place",
}


def write_adaptation_report(
    run: RunFolder,
    found: Mapping[str, Any],
    provenance: dict[str, Any],
    source: Manifest,
    target: Manifest,
    shift: Html,
) -> None:
    """Write `report.html` of an adaptation.

    Parameters
    ----------
    found
        What will be in `metrics.json`.
    provenance
        What is in `provenance.json`.
    source, target
        Of the rows of both domains.
    shift
        The section on how they differ.
    """
    task = source.schema_.target
    body = "\n".join(
        block
        for block in (
            _headline(found),
            _scores(found),
            _selection(found),
            _rows(source, target),
            shift,
            _method(found),
            _provenance(run, task, provenance, set(source.schema_.private)),
        )
        if block
    )
    title = f"Adapting {', '.join(map(str, task.columns))} to another domain"
    run.write_text(
        REPORT, document(title, subtitle(run.uri.rstrip("/").rpartition("/")[2], provenance), body)
    )


def _provenance(run: RunFolder, target: Target, provenance: dict[str, Any], private: set[str]) -> Html:
    if set(target.columns) & private:  # the experiment may name classes
        hidden = paragraph("The target is private; the resolved experiment is in config.yaml.", css="soft")
        return provenance_of(provenance, "", hidden)
    return provenance_of(provenance, run.read_bytes("config.yaml").decode())


def _headline(found: Mapping[str, Any]) -> Html:
    selection = found["selection"]
    said = [paragraph(_sentence(found["sentence"]), css="lead"), paragraph(_sentence(selection["sentence"]))]
    if found.get("label_plan"):
        said.append(paragraph(f"Labels: {found['label_plan']['message']}", css="soft"))
    if found.get("oracle"):
        said.insert(
            0,
            paragraph(
                "Oracle: the method was chosen by labels of the target (transfer.target_data.oracle).",
                css="warning",
            ),
        )
    return section("answer", "What adaptation did", *said)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _named(kind: str, found: Mapping[str, Any]) -> str:
    if kind == found["selection"]["chosen"]:
        return f"{kind} (chosen)"
    return NAMES.get(kind, kind)


def _scores(found: Mapping[str, Any]) -> Html:
    kinds, rows = found["methods"], []
    first = next(iter(kinds["source_only"]))
    metric = METRICS[first]
    labels = found["judged_on"] == "target"
    for name in kinds["source_only"]:
        of = METRICS[name]
        for kind, entries in kinds.items():
            entry = entries[name]
            difference = entry.get("difference")
            shown = "–" if difference is None else f"{_signed(difference['value'])} ({_span(difference)})"
            rows.append(
                [
                    f"{of.label}: {_named(kind, found)}",
                    number(entry["value"], of.limits),
                    interval(entry, of.limits) or "–",
                    shown,
                ]
            )
        upper = (found["in_domain"] or {}).get(name)
        if upper is not None:
            rows.append(
                [
                    f"{of.label}: {NAMES['in_domain']}",
                    number(upper["value"], of.limits),
                    interval(upper, of.limits) or "–",
                    "–",
                ]
            )
    on = f"{count(found['rows'])} {'labelled target' if labels else 'source'} rows"
    each = len(kinds) + bool(found["in_domain"])
    level = f"{100 * found['confidence']:g} % interval"
    over, headers = f"Over {plural(found['seeds'], 'seed')}", ["metric", "mean", level, "less source only"]
    plots = [
        figure(
            dots({_named(k, found): e[first] for k, e in kinds.items()}, metric, "seed"),
            f"{metric.label} by seed",
        )
    ]
    compared = {
        _named(k, found): e[first]["difference"] for k, e in kinds.items() if "difference" in e[first]
    }
    plots.append(figure(forest(compared, metric, "source only"), "Difference to source only"))
    return section(
        "scores",
        f"Scores on {on}",
        grid(*plots),
        table(over, headers, rows[:each], css="metrics"),
        details("Other metrics", table(over, headers, rows[each:], css="metrics")) if rows[each:] else "",
        ""
        if labels
        else paragraph("These rows are the source's: the scores say nothing of the target. Give labelled target rows for a final "
                       "test: transfer.target_data.test.", css="warning"),
    )  # fmt: skip


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _span(entry: Mapping[str, Any]) -> str:
    return "–" if entry["low"] is None else f"{entry['low']:+.4f} to {entry['high']:+.4f}"


def _selection(found: Mapping[str, Any]) -> Html:
    selection = found["selection"]
    names = list(next(iter(selection["scores"].values())))
    rows = [
        [_named(kind, found), f"{selection['ranks'][kind]:.2f}",
         *("–" if of[name] is None else number(of[name]) for name in names)]
        for kind, of in selection["scores"].items()
    ]  # fmt: skip
    meanings = Html("<ul>" + "".join(f"<li><b>{name}</b>: {SCORES[name]}</li>" for name in names) + "</ul>")
    guessed = [
        [_named(kind, found), number(e["by_threshold"]["value"], (0, 1)), interval(e["by_threshold"], (0, 1)),
         number(e["by_difference"]["value"], (0, 1)), interval(e["by_difference"], (0, 1)), number(e["held_out"], (0, 1))]
        for kind, e in selection["estimates"].items()
        if e is not None
    ]  # fmt: skip
    return section(
        "selection",
        "Choosing without target labels",
        paragraph(
            f"Higher is better for every score. The choice goes by the {selection['by']}; a single one can be badly wrong, since "
            "some methods make models sure whether they are right or not."
        ),
        table(
            "Scores without target labels, means over seeds",
            ["model", "mean rank", *names],
            rows,
            css="metrics",
        ),
        meanings,
        _left_out(selection["left_out"], found),
        table(
            "Estimated accuracy on the target, by thresholded confidence and by the difference of confidences",
            [
                "model",
                "by threshold",
                "interval",
                "by difference",
                "interval",
                "on source",
            ],
            guessed,
            css="metrics",
        )
        if guessed
        else "",
        paragraph(f"Each is {ASSUMES}.", css="soft") if guessed else "",
    )


def _left_out(judged: Mapping[str, Any] | None, found: Mapping[str, Any]) -> Html:
    if judged is None:
        return Html("")
    metric = METRICS[judged["metric"]]
    return table(
        f"{metric.label} on each source domain in the target's place, one seed",
        ["model", *judged["domains"]],
        [
            [_named(kind, found), *("–" if v is None else number(v, metric.limits) for v in values)]
            for kind, values in judged["scores"].items()
        ],
        css="metrics",
    )


def _rows(source: Manifest, target: Manifest) -> Html:
    rows = [
        ["source: training rows, with labels", count(source.splits["train"].rows)],
        ["target: rows without labels", count(target.splits["train"].rows)],
    ]
    return section("rows", "Rows", table("What was learned from", ["domain", "rows"], rows))


def _method(found: Mapping[str, Any]) -> Html:
    upper = (
        " In domain: one model of labelled target rows, judged on the part of them that it did not see."
        if found["in_domain"]
        else ""
    )
    return section(
        "method",
        "How the numbers were made",
        paragraph(
            f"Each model was fitted with {found['seeds']} seeds, which change first weights and batches, not the rows, "
            f"for all epochs. Intervals: {found['method']}. Differences are of the same rows and seeds. No label of the "
            f"target was read before all was fitted and chosen.{upper}"
        ),
    )
