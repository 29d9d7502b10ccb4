"""The figures of a report of folds: data in, SVG text out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.evaluation.curves import precision_recall_curve, roc_curve
from shoal.evaluation.metrics import Metric
from shoal.evaluation.report.facts import Part
from shoal.evaluation.report.plots import INK, MAIN, PAGE, SECOND, canvas, label_axes, plain, svg
from shoal.evaluation.tallies import Floats

GRID = np.linspace(0, 1, 201)
_ROW = 0.5  # inches


def dots(rows: Mapping[str, Mapping[str, Any]], metric: Metric, each: str = "fold") -> str:
    """Draw each fold's value (or each seed's) as a dot, the mean as a diamond on its interval, a row each."""
    with canvas(height=1.15 + _ROW * len(rows)) as figure:
        axes = figure.subplots()
        texts = []
        for at, (name, entry) in enumerate(rows.items()):
            known = [value for value in entry[f"by_{each}"] if value is not None]
            above = [at - 0.17] * len(known)
            axes.plot(known, above, "o", ms=6, color=MAIN, alpha=0.6, mew=0, label=_once(f"a {each}", at))
            _estimate(axes, at + 0.13, entry, _once("mean and interval", at))
            shown = "undefined" if entry["value"] is None else f"mean {entry['value']:.4g}"
            texts.append(f"{name}: {shown} of {len(known)} {each}s")
        _rows(axes, list(rows))
        label_axes(axes, metric.label, "")
        figure.legend(loc="outside upper right", ncols=2)
        return svg(figure, "dots", f"{metric.label} by {each}. {'; '.join(texts)}.")


def forest(rows: Mapping[str, Mapping[str, Any]], metric: Metric, first: str) -> str:
    """Draw differences to the first alternative with their intervals over a line at 0."""
    with canvas(height=0.85 + _ROW * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=INK, lw=1, ls=":")
        texts = []
        for at, (name, entry) in enumerate(rows.items()):
            _estimate(axes, at, entry)
            texts.append(f"{name}: " + ("undefined" if entry["value"] is None else f"{entry['value']:+.4g}"))
        _rows(axes, list(rows))
        label_axes(axes, f"difference in {metric.label}", "")
        return svg(figure, "forest", f"{metric.label} less that of {first}. {'; '.join(texts)}.")


def rocs(parts: list[Part]) -> str:
    """Draw the ROC curve of each fold thin, over their range, and the mean of their heights."""
    curves = [(*roc_curve(part.y == 1, part.scores), roc_heights(part)) for part in parts]
    return _folds("roc", curves, "false positive rate", "true positive rate (recall)", [0, 1], "guessing")


def precision_recalls(parts: list[Part]) -> str:
    """Draw the precision-recall steps of each fold thin, over their range, and the mean of their heights."""
    curves = []
    for part in parts:
        recall, precision = _steps(part)
        curves.append((np.r_[0.0, recall], np.r_[precision[:1], precision], precision_heights(part)))
    base = float(np.mean([np.mean(part.y == 1) for part in parts]))
    return _folds("pr", curves, "recall", "precision", [base, base], f"base rate: {base:.3f}", steps=True)


def roc_heights(part: Part) -> Floats:
    """Return the true positive rate at each false positive rate of `GRID`, between points along straight lines."""
    return np.interp(GRID, *roc_curve(part.y == 1, part.scores))


def precision_heights(part: Part) -> Floats:
    """Return the precision at the highest threshold that finds at least each share of `GRID`."""
    recall, precision = _steps(part)
    return precision[np.minimum(np.searchsorted(recall, GRID - 1e-12), len(recall) - 1)]


def _steps(part: Part) -> tuple[Floats, Floats]:
    """Return recall and precision where recall rises: the area below those steps is the average precision."""
    recall, precision = precision_recall_curve(part.y == 1, part.scores)
    rises = np.diff(recall, prepend=0.0) > 0
    return recall[rises], precision[rises]


def _folds(
    name: str,
    curves: list[tuple[Floats, Floats, Floats]],
    x: str,
    y: str,
    ends: list[float],
    reference: str,
    steps: bool = False,
) -> str:
    with canvas() as figure:
        axes = figure.subplots()
        style = "steps-pre" if steps else "default"
        heights = np.stack([height for _, _, height in curves])
        axes.fill_between(GRID, heights.min(axis=0), heights.max(axis=0), step="pre" if steps else None,
                          color=MAIN, alpha=0.15, lw=0, label="lowest to highest")  # fmt: skip
        for at, (across, up, _) in enumerate(curves):
            axes.plot(across, up, color=MAIN, lw=0.8, alpha=0.5, drawstyle=style, label=_once("a fold", at))
        axes.plot(GRID, heights.mean(axis=0), color=SECOND, drawstyle=style, label="mean of the folds")
        axes.plot([0, 1], ends, color=INK, lw=1, ls=":", label=reference)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)
        label_axes(axes, x, y)
        axes.legend(loc="lower right" if name == "roc" else "best")
        return svg(figure, name, f"{y} against {x}: {len(curves)} folds, their range and their mean.")


def _once(label: str, at: int) -> str | None:
    return None if at else label


def _estimate(axes, at: float, entry: Mapping[str, Any], label: str | None = None) -> None:  # type: ignore[no-untyped-def]
    if entry["value"] is None:
        axes.annotate("undefined", (0.5, at), xycoords=("axes fraction", "data"), ha="center", va="center")
        return
    low, high = (entry["value"] if entry[key] is None else entry[key] for key in ("low", "high"))
    bars = [[max(0.0, entry["value"] - low)], [max(0.0, high - entry["value"])]]
    axes.errorbar([entry["value"]], [at], xerr=bars, fmt="D", ms=7, color=SECOND, mec=PAGE, lw=1.8, capsize=4,
                  label=label, zorder=4)  # fmt: skip


def _rows(axes, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.06)
