"""Figures of explanations: importance, attributions by row, and dependence; data in, SVG text out.

Shape legend: n rows, M columns, m values, K outputs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from shoal.evaluation.explain.permutation import Importance
from shoal.evaluation.explain.subject import Floats
from shoal.evaluation.explain.work import Dependences
from shoal.evaluation.report.plots import HEIGHT, INK, MAIN, SECOND, THIRD, canvas, label_axes, plain, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS, LINES, RUG = 15, 40, 80  # columns, rows and values that are drawn
_LEVELS = ((MAIN, "low value"), (THIRD, "middle"), (SECOND, "high"))
_STYLES = ((MAIN, "-"), (SECOND, (0, (4, 2))), (THIRD, (0, (1, 1.5))))
MOST_OUTPUTS = len(_STYLES)


def importance_bars(found: Sequence[Importance], what: str, name: str = "importance") -> str:
    """Draw how much the score falls without each column, with the interval over repeats."""
    shown = list(found[:BARS])[::-1]
    with canvas(height=_height(len(shown))) as figure:
        axes = figure.subplots()
        place = np.arange(len(shown))
        axes.barh(place, [one.mean for one in shown], color=MAIN, height=0.68, alpha=0.8)
        axes.hlines(place, [one.low for one in shown], [one.high for one in shown], color=INK, lw=1.6)
        axes.axvline(0, color=INK, lw=1)
        _names(axes, [one.name for one in shown])
        axes.set_xlabel(what)
        listed = ", ".join(f"{one.name} {one.mean:.3g}" for one in found[:3])
        return svg(figure, name, f"{what}, by column; the largest: {listed}.")


def beeswarm(
    values: Floats, columns: Sequence[str], numbers: Sequence[Floats | None], what: str, name: str
) -> str:
    """Draw every row's contribution ``[n, M]`` of the columns with the largest ones, coloured by the column's value."""
    size = np.abs(values).mean(axis=0)
    order = np.argsort(-size, kind="stable")[:BARS]
    with canvas(height=_height(len(order), 0.3)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=INK, lw=1)
        span = float(np.ptp(values[:, order])) or 1.0
        for place, i in enumerate(order[::-1]):
            x = values[:, i]
            y = place + 0.32 * _spread(x, span)
            for level, (color, _) in enumerate(_LEVELS):
                here = _levels(numbers[i], len(x)) == level
                axes.plot(x[here], y[here], "o", ms=2.6, color=color, alpha=0.75, mew=0)
            rest = _levels(numbers[i], len(x)) < 0
            axes.plot(x[rest], y[rest], "o", ms=2.6, color=INK, alpha=0.45, mew=0)
        _names(axes, [columns[i] for i in order[::-1]])
        axes.set_xlabel(what)
        for color, label in (*_LEVELS, (INK, "no order")):
            axes.plot([], [], "o", ms=4, color=color, label=label)
        figure.legend(loc="outside lower center", ncols=4, handletextpad=0.1, columnspacing=1.0)
        listed = ", ".join(f"{columns[i]} {size[i]:.3g}" for i in order[:3])
        return svg(
            figure, name, f"{what} of {len(values)} rows, by column; the largest mean sizes: {listed}."
        )


def _levels(numbers: Floats | None, n: int) -> np.ndarray:
    """Return 0, 1, 2 for the low, middle and high third of a column's values, -1 for those without order."""
    if numbers is None:
        return np.full(n, -1)
    found = np.full(n, -1)
    there = ~np.isnan(numbers)
    if not there.any():
        return found
    low, high = np.quantile(numbers[there], [1 / 3, 2 / 3])
    found[there] = np.where(numbers[there] > high, 2, np.where(numbers[there] > low, 1, 0))
    if low == high:  # few values: the smallest, and those above
        found[there] = np.where(numbers[there] > low, 2, np.where(numbers[there] < low, 0, 1))
    return found


def _spread(x: Floats, span: float) -> Floats:
    """Move points that would lie on one another up and down by turns, ``[n]`` from -1 to 1."""
    cell = np.floor(x / span * 80).astype(int)
    found = np.zeros(len(x))
    for one in np.unique(cell):
        here = np.flatnonzero(cell == one)
        steps = (np.arange(len(here)) + 1) // 2 * np.where(np.arange(len(here)) % 2, 1, -1)
        found[here] = steps / max(12, np.abs(steps).max())
    return found


def waterfall(
    contributions: Floats, base: float, columns: Sequence[str], texts: Sequence[str], what: str, name: str
) -> str:
    """Draw how one prediction comes about, from the base ``contributions [M]`` by contribution; the small ones together."""
    order = np.argsort(-np.abs(contributions), kind="stable")
    top, rest = order[:9], order[9:]
    steps = [contributions[i] for i in top]
    labels = [f"{columns[i]} = {texts[i]}" if texts[i] else columns[i] for i in top]
    if len(rest):
        steps.append(contributions[rest].sum())
        labels.append(f"{len(rest)} others")
    ends = base + np.cumsum([0.0, *steps])
    with canvas(height=_height(len(steps), 0.3)) as figure:
        axes = figure.subplots()
        place = np.arange(len(steps))[::-1]
        colors = [SECOND if step >= 0 else MAIN for step in steps]
        axes.barh(place, steps, left=ends[:-1], color=colors, height=0.62, alpha=0.85)
        for p, (start, _) in zip(place, pairwise(ends), strict=True):
            axes.plot([start, start], [p - 0.31, min(p + 1.0, place[0] + 0.31)], color=INK, lw=0.8)
        margin = 0.02 * float(np.ptp(ends) or 1)
        for p, end, step in zip(place, np.maximum(ends[:-1], ends[1:]), steps, strict=True):
            axes.text(end + margin, p, f"{step:+.3g}", va="center", fontsize=8.5)
        axes.set_xlim(float(ends.min()) - 2 * margin, float(ends.max()) + 10 * margin)
        _names(axes, labels[::-1], 30)
        axes.set_xlabel(what)
        listed = ", ".join(f"{columns[i]} {contributions[i]:+.3g}" for i in top[:3])
        return svg(figure, name, f"{what}: from {base:.4g} to {ends[-1]:.4g}; the largest steps: {listed}.")


def dependence_line(
    one: Dependences, outputs: Sequence[str], drawn: Sequence[int], rug: Floats | None, what: str, name: str
) -> str:
    """Draw partial dependence on one column over the lines of single rows, with a rug of the column's values."""
    grid, mean = one.grids[0], one.found.mean
    individual = one.found.individual
    lines = individual[:: max(1, len(individual) // LINES)][:LINES]
    few = grid.numbers is None and len(grid.names) < 8
    with canvas(height=_height(len(grid.names), 0.3) if few else HEIGHT) as figure:
        axes = figure.subplots()
        if grid.numbers is None:
            _categories(axes, grid.names, mean, individual, outputs, drawn)
            axes.set_xlabel(what)
        else:
            x = grid.numbers
            if len(drawn) == 1:
                axes.plot(x, lines[:, :, drawn[0]].T, color=INK, lw=0.6, alpha=0.18)
            for k, (color, style) in zip(drawn, _STYLES, strict=False):
                mark = "o" if len(x) < 8 else None
                axes.plot(x, mean[:, k], color=color, ls=style, lw=2.4, marker=mark, ms=4, label=outputs[k])
            if rug is not None and len(rug):
                here = np.quantile(rug[~np.isnan(rug)], np.linspace(0.02, 0.98, RUG))
                here = np.unique(here[(here >= x.min()) & (here <= x.max())])
                across = axes.get_xaxis_transform()
                axes.plot(here, np.full(len(here), 0.02), "|", color=INK, ms=9, alpha=0.55, transform=across)
            if len(grid.names) and "-" in grid.names[0][1:]:  # dates
                at = np.unique(np.linspace(0, len(x) - 1, 4).astype(int))
                axes.set_xticks(x[at], [grid.names[i] for i in at])
            label_axes(axes, plain(one.columns[0]), what)
        if len(drawn) > 1:
            axes.legend(loc="best")
        ends = (
            f"from {mean[0, drawn[0]]:.4g} at {grid.names[0]} to {mean[-1, drawn[0]]:.4g} at {grid.names[-1]}"
        )
        return svg(figure, name, f"Partial dependence of {what} on {one.columns[0]}: {ends}.")


def _categories(
    axes: "Axes",
    names: Sequence[str],
    mean: Floats,
    individual: Floats,
    outputs: Sequence[str],
    drawn: Sequence[int],
) -> None:
    place = np.arange(len(names))[::-1].astype(float)
    for turn, (k, (color, _)) in enumerate(zip(drawn, _STYLES, strict=False)):
        y = place + 0.22 * (turn - (len(drawn) - 1) / 2)
        low, high = np.quantile(individual[:, :, k], [0.1, 0.9], axis=0)
        axes.hlines(y, low, high, color=color, lw=1.2, alpha=0.5)
        axes.plot(mean[:, k], y, "o", color=color, ms=6, label=outputs[k])
    _names(axes, list(names)[::-1], 18)


def dependence_map(one: Dependences, output: int, what: str, name: str) -> str:
    """Draw partial dependence on two columns as cells: the darker, the higher."""
    from matplotlib.patches import Rectangle

    first, second = one.grids
    mean = one.found.mean[:, output].reshape(len(first.names), len(second.names))
    low, span = float(mean.min()), float(np.ptp(mean)) or 1.0
    with canvas(height=4.1) as figure:
        axes = figure.subplots()
        for i in range(mean.shape[0]):
            for j in range(mean.shape[1]):
                alpha = 0.06 + 0.9 * (mean[i, j] - low) / span
                axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, color=MAIN, alpha=alpha, lw=0))
        axes.set_xlim(-0.5, mean.shape[0] - 0.5)
        axes.set_ylim(-0.5, mean.shape[1] - 0.5)
        for ticks, grid in ((axes.set_xticks, first), (axes.set_yticks, second)):
            at = np.unique(np.linspace(0, len(grid.names) - 1, 5).astype(int))
            ticks(at, [plain(grid.names[i], 12) for i in at])
        axes.grid(visible=False)
        label_axes(axes, plain(one.columns[0]), plain(one.columns[1]))
        axes.set_title(f"{what}: {low:.3g} (pale) to {low + float(np.ptp(mean)):.3g}", fontsize=10)
        row, column = divmod(int(mean.argmax()), mean.shape[1])
        where = f"{one.columns[0]} {first.names[row]}, {one.columns[1]} {second.names[column]}"
        return svg(figure, name, f"Partial dependence on both; highest, {mean.max():.4g}, at {where}.")


def _height(rows: int, each: float = 0.27) -> float:
    return max(2.0, 0.9 + each * rows)


def _names(axes: "Axes", names: Sequence[str], limit: int = 24) -> None:
    axes.set_yticks(range(len(names)), [plain(name, limit) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
