"""Tables about classes: the confusion matrix, the commonest mix-ups, and each class by itself."""

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.formulas import decisions
from shoal.evaluation.metrics import METRICS
from shoal.evaluation.report.markup import Html, cell, count, number, share, table, text
from shoal.evaluation.tallies import Rows, decision_tally

LISTED = 60
UNIT = (0.0, 1.0)


def confusion_table(matrix: NDArray[np.int64], names: list[str], part: str) -> Html:
    """Return counts with row percentages, shaded by them."""
    dense = len(names) > 6
    rows = []
    for i, name in enumerate(names):
        total = int(matrix[i].sum())
        cells: list[object] = [f"true {name}"]
        for j in range(len(names)):
            n = int(matrix[i, j])
            color = "main" if i == j else "second"
            strength = round(48 * n / total) if total else 0
            style = f"background:color-mix(in srgb, var(--{color}) {strength}%, var(--card))"
            percent = "" if dense and not n else f"<small>{share(n, total)}</small>"
            cells.append(cell(Html(f"{count(n)}{percent}"), style=style))
        rows.append([*cells, count(total)])
    headers = ["", *(f"predicted {name}" if not dense else name for name in names), "rows"]
    caption = f"Confusion matrix, {part} rows: true class down, predicted class across, percent of the row"
    return table(caption, headers, rows, css="confusion dense" if dense else "confusion")


def mix_ups(matrix: NDArray[np.int64], names: list[str], part: str, listed: int = 20) -> Html:
    """List the commonest mistakes where a whole matrix would not be read."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:listed]
    rows = []
    for flat in order:
        i, j = divmod(int(flat), len(names))
        if wrong[i, j]:
            rows.append([names[i], names[j], count(wrong[i, j]), share(wrong[i, j], matrix[i].sum())])
    caption = f"The commonest mistakes among {len(names)} classes, {part} rows"
    return table(caption, ["true class", "predicted", "rows", "of the true class"], rows)


def class_table(rows: Rows, names: list[str], part: str) -> Html:
    """Precision, recall, F1 and ranking of each class or label; the weakest first where there are many."""
    found = decisions(decision_tally(rows)[0])
    lines = []
    for k, name in enumerate(names):
        events = rows.y[:, k] > 0.5 if rows.multilabel else rows.y == k
        hits, predicted, actual = (float(values[k]) for values in (found.hits, found.predicted, found.actual))
        f1 = 2 * hits / (predicted + actual) if predicted + actual else float("nan")
        ranks = [
            METRICS[metric].value(events.astype(np.int64), rows.scores[:, k])
            for metric in ("roc_auc", "average_precision")
        ]
        values = [
            number(hits / predicted if predicted else None, UNIT),
            number(hits / actual if actual else None, UNIT),
            number(f1, UNIT),
            *(number(rank, UNIT) for rank in ranks),
        ]
        lines.append((f1, [name, count(actual), share(actual, len(rows.y)), *values]))
    kind = "label" if rows.multilabel else "class"
    caption = f"Each {kind} against the rest, {part} rows"
    if len(lines) > LISTED:
        lines = sorted(lines, key=lambda line: (np.isnan(line[0]), line[0]))[:LISTED]
        caption += f"; the {LISTED} with the lowest F1 of {len(names)}"
    headers = [kind, "rows", "share", "precision", "recall", "F1", "ROC AUC", "average precision"]
    return table(text(caption), headers, [line for _, line in lines])
