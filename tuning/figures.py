"""The figures of a search: data in, SVG text out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shoal.evaluation.report.plots import FAINT, INK, MAIN, SECOND, canvas, label_axes, plain, svg
from shoal.tuning.config import DimensionConfig
from shoal.tuning.space import at, share_of
from shoal.tuning.trials import shown

Row = Mapping[str, Any]


def by_trial(rows: Sequence[Row], label: str, greater_is_better: bool) -> str:
    """Draw the score of each trial as a dot, the best so far as steps, and trials without a score at the lower edge."""
    known = [row for row in rows if row["score"] is not None]
    number, score = [row["trial"] for row in known], np.array([row["score"] for row in known])
    best = (np.maximum if greater_is_better else np.minimum).accumulate(score)
    with canvas() as figure:
        axes = figure.subplots()
        for status, marker in (("finished", "o"), ("stopped", "v"), ("continued", ".")):
            of = [i for i, row in enumerate(known) if row["status"] == status]
            names = {
                "finished": "a trial",
                "stopped": "stopped early",
                "continued": "before the last generation",
            }
            if of:
                axes.plot(
                    [number[i] for i in of],
                    score[of],
                    marker,
                    ms=5,
                    color=MAIN,
                    alpha=0.65,
                    mew=0,
                    label=names[status],
                )
        axes.plot(number, best, color=SECOND, drawstyle="steps-post", label="best so far")
        lost = [row["trial"] for row in rows if row["score"] is None]
        low, high = _limits(score)
        axes.set_ylim(low, high)
        if lost:
            axes.plot(lost, [low] * len(lost), "x", ms=6, color=INK, clip_on=False, label="no score")
        label_axes(axes, "trial", label)
        figure.legend(loc="outside upper right", ncols=2)
        return svg(figure, "by-trial", f"{label} of {len(known)} trials; the best is {best[-1]:.4g}.")


def learning(
    curves: Mapping[int, Sequence[tuple[int, float | None]]], chosen: Sequence[int], label: str
) -> str:
    """Draw the score of each trial over its epochs, those of the chosen model in another colour."""
    with canvas() as figure:
        axes = figure.subplots()
        for trial, curve in sorted(curves.items(), key=lambda item: item[0] in chosen):
            values = [math.nan if value is None else value for _, value in curve]
            style: dict[str, Any] = {"color": MAIN, "lw": 0.8, "alpha": 0.45}
            if trial in chosen:
                style = {"color": SECOND, "lw": 2.2}
            if trial == chosen[-1]:
                style["label"] = f"trial {trial}, chosen"
            marker = "o" if len(values) == 1 else ""
            axes.plot([epoch for epoch, _ in curve], values, marker=marker, ms=4, **style)
        axes.set_ylim(*_limits(np.array([v for c in curves.values() for _, v in c if v is not None])))
        label_axes(axes, "epoch", label)
        if chosen[-1] in curves:
            figure.legend(loc="outside upper right")
        return svg(figure, "learning", f"{label} by epoch, of {len(curves)} trials.")


def schedules(turns: Sequence[Row], path: str, chosen: Sequence[int]) -> str:
    """Draw the value of a key over the epochs of each member, those of the chosen model in another colour."""
    with canvas() as figure:
        axes = figure.subplots()
        for turn in turns:
            own = turn["trial"] in chosen
            label = "the chosen model" if turn["trial"] == chosen[-1] else None
            style: dict[str, Any] = (
                {"color": SECOND, "lw": 2.4, "zorder": 3} if own else {"color": MAIN, "lw": 1.2, "alpha": 0.5}
            )
            axes.plot([turn["first_epoch"] - 1, turn["last_epoch"]], [turn[path]] * 2, label=label, **style)
        values = [turn[path] for turn in turns]
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        label_axes(axes, "epochs done", path.rpartition(".")[2])
        figure.legend(loc="outside upper right")
        known = [turn[path] for turn in turns if turn["trial"] in chosen]
        said = ", ".join(f"{value:.3g}" for value in known)
        return svg(
            figure,
            "schedule-" + path.replace(".", "-"),
            f"{path} of the chosen model, by generation: {said}.",
        )


def parallel(
    rows: Sequence[Row], space: Mapping[str, DimensionConfig], best: int, label: str, greater_is_better: bool
) -> str:
    """Draw each trial as a line over its values and its score, the better the stronger."""
    known = [row for row in rows if row["score"] is not None]
    order = np.argsort([row["score"] if greater_is_better else -row["score"] for row in known], kind="stable")
    score = np.array([row["score"] for row in known])
    low, high = float(score.min()), float(score.max())
    high = high if high > low else low + 1.0
    with canvas(height=3.9, width=10.2) as figure:
        axes = figure.subplots()
        columns = [*space, None]
        for place, i in enumerate(order):
            row = known[i]
            y = [share_of(space[p], row["values"][p]) if p in row["values"] else math.nan for p in space]
            y.append((row["score"] - low) / (high - low))
            rank = (place + 1) / len(known)
            chosen = row["trial"] == best
            style: dict[str, Any] = {"color": MAIN, "lw": 0.7 + rank, "alpha": 0.08 + 0.6 * rank**3}
            if chosen:
                style = {"color": SECOND, "lw": 2.4, "zorder": 5, "label": f"trial {best}, chosen"}
            axes.plot(range(len(columns)), y, **style)
        for x, path in enumerate(columns):
            axes.axvline(x, color=FAINT, lw=1)
            marks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if path is None else _marks(space[path])
            for y_, text in marks:
                ends = x == len(columns) - 1
                axes.annotate(
                    plain(text, 14),
                    (x, y_),
                    xytext=(-4 if ends else 4, 0),
                    textcoords="offset points",
                    fontsize=8,
                    va="center",
                    ha="right" if ends else "left",
                )
        names = [label if p is None else p.rpartition(".")[2] for p in columns]
        axes.set_xticks(range(len(columns)), [plain(name, 20) for name in names])
        axes.set_yticks([])
        axes.set_ylim(-0.06, 1.06)
        axes.set_xlim(-0.12, len(columns) - 0.88)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        if any(row["trial"] == best for row in known):
            figure.legend(loc="outside upper right")
        return svg(figure, "parallel", f"Values and {label} of {len(known)} trials, a line each.")


def importances(keys: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the importance of each key as a bar, with the spread over shuffles."""
    names = [path.rpartition(".")[2] for path in keys]
    means = [entry["mean"] for entry in keys.values()]
    with canvas(height=1.1 + 0.45 * len(names)) as figure:
        axes = figure.subplots()
        spread = [entry["std"] for entry in keys.values()]
        axes.barh(range(len(names)), means, xerr=spread, color=MAIN, alpha=0.75, ecolor=INK, height=0.6)
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        label_axes(axes, "fall of R squared when shuffled", "")
        said = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(names, means, strict=True))
        return svg(figure, "importance", f"Importance: {said}.")


def _marks(dimension: DimensionConfig) -> list[tuple[float, str]]:
    if dimension.choice is not None:
        return [(share_of(dimension, value), shown(value)) for value in dimension.choice]
    return [(share, shown(at(dimension, share))) for share in (0.0, 1.0)]


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits that show most values well: a few that are far off do not squeeze the others."""
    low, high = float(values.min()), float(values.max())
    if len(values) >= 8:
        first, third = np.quantile(values, [0.25, 0.75])
        reach = 3 * (third - first)
        low, high = max(low, float(first - reach)), min(high, float(third + reach))
    margin = 0.05 * (high - low) or 0.05 * (abs(high) or 1.0)
    return low - margin, high + margin
