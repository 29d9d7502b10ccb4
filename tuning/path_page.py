"""The page of a regularisation path: the chosen strength, the loss along the path, and the weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.cluster.run_folder import CONFIG, RunFolder
from shoal.evaluation.report.inputs import provenance_of
from shoal.evaluation.report.markup import Html, figure, grid, number, paragraph, section, table
from shoal.evaluation.report.overview import subtitle
from shoal.evaluation.report.page import REPORT, document
from shoal.evaluation.report.plots import INK, MAIN, SECOND, canvas, label_axes, plain, svg

_NAMED, _LISTED = 6, 40


def write_path_report(run: RunFolder, found: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write `report.html` into the run folder of a path.

    Parameters
    ----------
    found, provenance
        What will be, or is, in `metrics.json` and `provenance.json`.

    Raises
    ------
    StorageError
        If its tables are not there any more.
    """
    config = run.config() or {}
    data = config.get("data", {})
    targets = data.get("target", "")
    target = targets if isinstance(targets, str) else ", ".join(targets)
    hidden = bool({target, *([] if isinstance(targets, str) else targets)} & set(data.get("private") or ()))
    path, weights = run.read_table("path.parquet").to_pydict(), run.read_table("weights.parquet").to_pydict()
    facts = found["tuning"]["path"]
    in_units = hidden and found["task"] == "regression"
    blocks = (
        _said(facts, in_units),
        _drawn(path, weights, facts, in_units),
        _listed(weights, facts, in_units),
        provenance_of(
            dict(provenance), "" if hidden or not run.exists(CONFIG) else run.read_bytes(CONFIG).decode()
        ),
    )
    name = run.uri.rstrip("/").rpartition("/")[2]
    body = "\n".join(block for block in blocks if block)
    page = document(f"{target}: a regularisation path", subtitle(name, provenance), body)
    run.write_text(REPORT, page)


def _said(facts: Mapping[str, Any], in_units: bool) -> Html:
    chosen = facts["chosen"]
    loss = (
        ""
        if in_units
        else f", where the {facts['loss']} of held-out rows is {chosen['loss']:.4g} ± {chosen['error']:.2g}"
    )
    why = {
        "best": "the lowest mean loss over folds",
        "one_standard_error": "the highest strength within a standard error of the lowest mean loss",
    }[facts["choose"]]
    made = paragraph(
        f"The penalty {facts['penalty']} (share of L1: {facts['l1_ratio']:g}) was lowered over {facts['strengths']} strengths, "
        f"from the one that zeroes every weight. Chosen: strength {'' if in_units else format(chosen['strength'], '.4g')}{loss}: "
        f"{why} ({facts['folds']}). {chosen['nonzero']:,} of {facts['columns']:,} weights are not 0.",
        Html('<a href="best/report.html">The report of its run</a> has the scores of the test rows.'),
    )
    if not facts["at_the_end"]:
        return made
    return Html(
        made
        + paragraph(
            "The lowest loss is at the lowest strength: the path ends too early. Lower tuning.path.ratio.",
            css="warning",
        )
    )


def _drawn(path: dict[str, Any], weights: dict[str, Any], facts: Mapping[str, Any], in_units: bool) -> Html:
    along = np.array(path["strength"])
    x = along / along[0]
    places = {float(s): i for i, s in enumerate(along)}
    by_column: dict[str, np.ndarray] = {}
    for strength, column, weight in zip(
        weights["strength"], weights["column"], weights["weight"], strict=True
    ):
        by_column.setdefault(column, np.zeros(len(along)))[places[strength]] = weight
    at = places[facts["chosen"]["strength"]]
    order = sorted(by_column, key=lambda name: -abs(by_column[name][at]))
    scale = max((float(np.abs(v).max()) for v in by_column.values()), default=1.0) if in_units else 1.0
    with canvas() as drawing:
        axes = drawing.subplots()
        for i, name in enumerate(order):
            style: dict[str, Any] = {
                "color": MAIN if i >= _NAMED else SECOND,
                "lw": 0.8 if i >= _NAMED else 1.6,
                "alpha": 0.7,
            }
            axes.plot(x, by_column[name] / scale, **style)
            if i < _NAMED:
                axes.annotate(plain(name, 18), (x[-1], by_column[name][-1] / scale), fontsize=8, va="center")
        _marks(axes, x, path, facts)
        label_axes(axes, "strength / the one that zeroes all", "weight")
        first = svg(drawing, "weights", f"Weights of {len(order)} columns along the path.")
    loss, error = np.array(path["loss"]), np.array(path["error"])
    if in_units:
        loss, error = loss / loss[0], error / loss[0]
    with canvas() as drawing:
        axes = drawing.subplots()
        axes.fill_between(
            x, loss - error, loss + error, color=MAIN, alpha=0.18, lw=0, label="a standard error"
        )
        axes.plot(x, loss, color=MAIN, label="mean over folds")
        _marks(axes, x, path, facts)
        label_axes(axes, "strength / the one that zeroes all", f"{facts['loss']} of held-out rows")
        drawing.legend(loc="outside upper right", ncols=2)
        second = svg(drawing, "loss", f"Mean {facts['loss']} of held-out rows along the path.")
    lines = "The lines: lowest loss, and the highest strength within a standard error of it (dotted)."
    return section(
        "path",
        "Along the path",
        grid(
            figure(Html(second), "Loss of held-out rows", lines),
            figure(
                Html(first),
                "Weights",
                "Of standardised columns; the largest at the chosen strength are named.",
            ),
        ),
    )


def _marks(axes: Any, x: np.ndarray, path: dict[str, Any], facts: Mapping[str, Any]) -> None:
    for key, style in (("best", "-"), ("one_standard_error", ":")):
        axes.axvline(x[path["strength"].index(facts[key]["strength"])], color=INK, lw=1, ls=style)
    axes.set_xscale("log")
    axes.invert_xaxis()


def _listed(weights: dict[str, Any], facts: Mapping[str, Any], in_units: bool) -> Html:
    chosen = facts["chosen"]["strength"]
    rows = [
        (column, weight)
        for strength, column, weight in zip(
            weights["strength"], weights["column"], weights["weight"], strict=True
        )
        if strength == chosen
    ]
    if not rows or in_units:
        return Html("")
    rows.sort(key=lambda row: -abs(row[1]))
    listed = [[column, number(weight, (-np.inf, np.inf))] for column, weight in rows[:_LISTED]]
    said = "Weights at the chosen strength" + (f", the largest {_LISTED}" if len(rows) > _LISTED else "")
    return section("listed", "What is left", table(said, ["column", "weight"], listed))
