"""Where the numbers come from: the rows and their split, the columns, and the provenance."""

from typing import Any

import numpy as np

from shoal.cluster.sharding.manifest import SPLITS
from shoal.cluster.sharding.names import plural
from shoal.evaluation.report.facts import STANDARD, ReportFacts
from shoal.evaluation.report.markup import (
    Html,
    count,
    definitions,
    details,
    number,
    paragraph,
    pre,
    section,
    share,
    table,
    text,
)

CLASSES = 20  # classes that get a column each
SHOWN = 6  # notices that are shown unfolded


def data(facts: ReportFacts) -> Html:
    """Rows and classes of each part, what was left out, what was inferred, and the columns."""
    manifest = facts.manifest
    return section(
        "data",
        "Data and split",
        _rows_sentence(facts),
        _parts_table(facts),
        _resampled(facts),
        _left_out(facts),
        details(
            f"What was inferred and noticed ({len(manifest.notices)})",
            _list(manifest.notices),
            opened=len(manifest.notices) <= SHOWN,
        )
        if manifest.notices
        else "",
        details(f"Columns used ({len(manifest.schema_.columns)})", _columns(facts)),
    )


def provenance(facts: ReportFacts) -> Html:
    """Show what is needed to make the result again."""
    manifest = facts.manifest
    known = dict(facts.provenance) or {"seed": facts.config.get("seed", manifest.seed)}
    shown = known if "data" in known else {"data fingerprint": manifest.key, **known}
    missing = "" if facts.provenance else paragraph("No provenance was recorded yet.", css="soft")
    return provenance_of(shown, facts.config_text, missing)


def provenance_of(known: dict[str, Any], config_text: str, *first: object) -> Html:
    """Show plain values of how a result was made, and the experiment."""
    experiment = details("The resolved experiment", pre(config_text)) if config_text else ""
    return section("provenance", "Provenance", *first, definitions(known), experiment)


def _rows_sentence(facts: ReportFacts) -> Html:
    manifest, target = facts.manifest, facts.target
    kept = sum(split.rows for split in manifest.splits.values())
    if manifest.resampling is not None:
        kept += sum(manifest.resampling.class_counts_before) - manifest.splits["train"].rows
    files = len(manifest.sources)
    source = f" from {plural(files, 'file')}" if files else ""
    kind = manifest.split_kind
    parts = [f"{plural(manifest.rows_read, 'row')} read{source}, {count(kept)} used."]
    if kind:
        parts.append(f"Split: {kind}.")
    if target.reason:
        parts.append(f"Task: {target.task} ({target.reason}).")
    if target.task == "binary":
        parts.append(f"The event is {facts.class_names[1]}.")
    if facts.hides_units:
        parts.append(
            f"The target is private: its numbers, and errors, are given in {STANDARD} from its mean, both of the training rows."
        )
    return paragraph(*parts)


def _parts_table(facts: ReportFacts) -> Html:
    splits = facts.manifest.splits
    present = [(name, splits[name]) for name in SPLITS if name in splits]
    total = sum(split.rows for _, split in present)
    names = facts.class_names
    if facts.target.task == "regression":
        headers = ["part", "rows", "share", "mean of the target", "standard deviation"]
        rows = []
        for name, split in present:
            part = facts.parts.get(name)
            mean, spread = (
                (facts.target.center, facts.target.scale)
                if part is None
                else (float(part.y.mean()), float(np.std(part.y)))
            )
            rows.append([name, count(split.rows), share(split.rows, total), number(mean), number(spread)])
        return table("Rows of each part", headers, rows)
    if len(names) > CLASSES:
        headers = ["part", "rows", "share", "classes present", "rarest", "commonest"]
        rows = [
            [
                name,
                count(split.rows),
                share(split.rows, total),
                f"{sum(c > 0 for c in split.class_counts)} of {len(names)}",
                count(min(split.class_counts, default=0)),
                count(max(split.class_counts, default=0)),
            ]
            for name, split in present
        ]
        return table("Rows of each part", headers, rows)
    rows = [
        [
            name,
            count(split.rows),
            share(split.rows, total),
            *(Html(f"{count(c)}<small>{share(c, split.rows)}</small>") for c in split.class_counts),
        ]
        for name, split in present
    ]
    kind = "label" if facts.target.task == "multilabel" else "class"
    headers = ["part", "rows", "share", *names]
    return table(f"Rows of each part, and of each {kind} in it", headers, rows)


def _resampled(facts: ReportFacts) -> Html | str:
    """Say how the training rows were resampled, and that nothing else was."""
    manifest = facts.manifest
    found = manifest.resampling
    if found is None:
        return ""
    after, names = manifest.splits["train"].class_counts, facts.class_names
    before = found.class_counts_before
    shown = [code for code in range(len(before)) if before[code] != after[code]][:CLASSES]
    changed = ", ".join(f"{names[c]}: {count(before[c])} to {count(after[c])}" for c in shown)
    made = f"; {count(found.synthetic)} of them are synthetic" if found.synthetic else ""
    sentences = [
        f"The training rows were resampled by {next(iter(found.method))} ({changed or 'no class changed its size'}){made}.",
        "Validation and test rows are all real.",
    ]
    if facts.target.prior_correction:
        sentences.append("Probabilities are corrected back to the shares of the classes before that.")
    return paragraph(*sentences)


def _left_out(facts: ReportFacts) -> Html:
    manifest = facts.manifest
    lines = [Html(f"{plural(rows, 'row')}: {text(why)}") for why, rows in manifest.left_out.items()]
    lines += [
        Html(f"column <code>{text(name)}</code>: {text(why)}")
        for name, why in manifest.dropped.items()
        if name not in facts.target.columns
    ]
    lines += [
        Html(f"column <code>{text(name)}</code> is private: its values appear nowhere in this report")
        for name in manifest.schema_.private
    ]
    if not lines:
        return paragraph("No row and no column was left out.")
    return Html(f"<p>Left out:</p>{_list(lines)}")


def _columns(facts: ReportFacts) -> Html:
    rows = []
    for column in facts.manifest.schema_.columns:
        missing = "yes" if column.has_missing else "no"
        rows.append([column.name, column.type, column.arrow_type, column.gives, missing, column.reason])
    return table(
        "Features, as fitted on the training rows",
        ["column", "type", "stored as", "gives", "missing values", "why this type"],
        rows,
    )


def _list(lines: "list[Html] | tuple[str, ...]") -> Html:
    return Html("<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>")
