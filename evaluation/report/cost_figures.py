"""The report's figures of costs: data in, SVG text out."""

import numpy as np

from shoal.evaluation.cost_curves import (
    cost_by_threshold,
    lower_envelope,
    normalised_cost,
    probability_cost,
    rates,
)
from shoal.evaluation.deciding.costs import Rule
from shoal.evaluation.report.facts import Part
from shoal.evaluation.report.plots import INK, MAIN, PAGE, SECOND, canvas, label_axes, svg
from shoal.training.costs import Costs

TICKS = (1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def cost_curve(part: Part, rule: Rule, costs: Costs) -> str:
    """Draw normalised expected cost over PC(+): the chosen threshold, the best ones, and deciding always or never."""
    events = part.y == 1
    missed, false = rates(events, rule.decision.classes(part.scores) == 1)
    here = probability_cost(float(events.mean()), costs)
    with canvas() as figure:
        axes = figure.subplots()
        axes.plot([0, 0.5, 1], [0, 0.5, 0], color=INK, lw=1, ls=":", label="deciding always or never")
        axes.plot(*lower_envelope(events, part.scores), color=MAIN, label="best threshold at each")
        axes.plot([0, 1], [false, missed], color=SECOND, ls=(0, (4, 2)), label="chosen threshold")
        cost = float(normalised_cost(missed, false, here))
        axes.plot(
            [here], [cost], "o", ms=7, color=SECOND, mec=PAGE, mew=1.5, label="these rows and costs", zorder=5
        )
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(0, max(0.7, 1.3 * cost))
        label_axes(axes, "probability cost of the event, PC(+)", "normalised expected cost")
        axes.legend(loc="upper center", ncols=2)
        text = f"Cost curve: at a probability cost of {here:.3f}, the chosen threshold's normalised expected cost is {cost:.3f}"
        return svg(figure, "cost-curve", f"{text}; deciding always or never has {min(here, 1 - here):.3f}.")


def cost_over_threshold(parts: dict[str, Part], rule: Rule, costs: Costs, constant: float) -> str:
    """Draw the mean cost of a row over the threshold, with the chosen one or what is decided row by row."""
    first, by_row = next(iter(parts.values())), bool(rule.decision.columns)
    decided = rule.decision.classes(first.scores, first.amounts)
    cost = float(np.mean(costs.of(first.y, decided, first.amounts)))
    chosen = float(np.median(rule.decision.thresholds(first.amounts)))
    near = min(max(chosen, 1e-6), 1 - 1e-6)
    low, high = min(0.001, near / 4), max(0.99, 1 - (1 - near) / 4)
    place = np.linspace(_logit(low), _logit(high), 600)
    thresholds = 1 / (1 + np.exp(-place))
    with canvas() as figure:
        axes = figure.subplots()
        highest = []
        for (name, part), (color, style) in zip(
            parts.items(), ((MAIN, "-"), (SECOND, (0, (4, 2)))), strict=False
        ):
            values = cost_by_threshold(part.y, part.scores, costs, thresholds, part.amounts)
            highest.append(float(np.quantile(values, 0.8)))
            axes.plot(place, values, color=color, ls=style, label=f"{name} rows")
        axes.axhline(constant, color=INK, lw=1, ls=":", label="best without a model")
        if by_row:
            name = next(iter(parts))
            axes.axhline(cost, color=MAIN, lw=1.2, ls=(0, (4, 3)), label=f"each row's threshold, {name} rows")
        else:
            axes.axvline(_logit(near), color=INK, lw=1.2, ls=(0, (4, 3)), label=f"chosen: {chosen:.4g}")
            axes.plot([_logit(near)], [cost], "o", ms=7, color=MAIN, mec=PAGE, mew=1.5, zorder=5)
        shown = [t for t in TICKS if low <= t <= high]
        axes.set_xticks([_logit(t) for t in shown], [f"{t:g}" for t in shown])
        axes.set_xlim(place[0], place[-1])
        top = max(1.25 * constant, *highest, 1.1 * cost) * (
            1.25 if by_row else 1.0
        )  # room for a longer legend
        axes.set_ylim(top=top) if np.isfinite(top) else None
        label_axes(
            axes, "threshold (scale of logits)", f"cost a row{f' ({costs.unit})' if costs.unit else ''}"
        )
        axes.legend(loc="best")
        where = "with a threshold a row" if by_row else f"at the chosen one, {chosen:.4g}"
        text = f"Cost of a row over the threshold; {cost:.4g} {where}"
        return svg(figure, "cost-threshold", f"{text}; {constant:.4g} without a model.")


def _logit(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))
