"""The report's figures: data in, SVG text out."""

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.calibration import reliability
from shoal.evaluation.curves import precision_recall_curve, roc_curve
from shoal.evaluation.metrics import METRICS, Metric, as_rows
from shoal.evaluation.report.facts import Best, Part
from shoal.evaluation.report.plots import (
    INK,
    MAIN,
    PAGE,
    SECOND,
    THIRD,
    canvas,
    label_axes,
    plain,
    svg,
)
from shoal.evaluation.tallies import Array, Floats

SCATTER = 1500  # rows drawn one by one; more are counted in cells
CELLS = 36
MANY = 40  # classes whose curves are drawn


def loss_curve(epochs: Floats, values: Floats, best: Best | None) -> str:
    """Draw the training loss over (fractional) epochs."""
    from matplotlib.ticker import MaxNLocator

    with canvas() as figure:
        axes = figure.subplots()
        axes.plot(epochs, values, color=MAIN, label="training loss")
        if best is not None:
            axes.axvline(best.epoch, color=SECOND, lw=1.2, ls=(0, (4, 3)), label=f"best epoch ({best.epoch})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, float(epochs[-1]) * 1.03)
        label_axes(axes, "epoch", "loss")
        axes.legend(loc="upper right")
        last = f"{values[-1]:.4g}" if len(values) else "unknown"
        text = f"Training loss over {np.ceil(epochs[-1]):.0f} epochs, from {values[0]:.4g} to {last}."
        return svg(figure, "loss", text)


def rate_curve(epochs: Floats, rates: Floats) -> str:
    """Draw the learning rate over (fractional) epochs; logarithmic where it spans more than a hundredfold."""
    from matplotlib.ticker import MaxNLocator

    with canvas() as figure:
        axes = figure.subplots()
        axes.plot(epochs, rates, color=MAIN, drawstyle="steps-pre")
        positive = rates[rates > 0]
        if len(positive) and positive.max() > 100 * positive.min():
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, float(epochs[-1]) * 1.03)
        label_axes(axes, "epoch", "learning rate")
        text = f"Learning rate over {np.ceil(epochs[-1]):.0f} epochs, from {rates[0]:.3g} to {rates[-1]:.3g}"
        return svg(figure, "rate", f"{text}, at most {rates.max():.3g}.")


def validation_curve(epochs: Floats, values: Floats, metric: Metric, best: Best | None) -> str:
    """Draw the validation score after each epoch, the best one marked."""
    from matplotlib.ticker import MaxNLocator

    with canvas() as figure:
        axes = figure.subplots()
        axes.plot(epochs, values, color=MAIN, marker="o", ms=3.5, label="validation")
        text = f"Validation {metric.label} after each of {len(epochs)} epochs"
        if best is not None:
            axes.plot([best.epoch], [best.value], "o", ms=9, mfc="none", mec=SECOND, mew=2, ls="none",
                      label=f"best: {best.value:.4g} at epoch {best.epoch}")  # fmt: skip
            text += f"; the best, {best.value:.4g}, at epoch {best.epoch}"
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, max(2.0, float(epochs[-1]) * 1.03))
        label_axes(axes, "epoch", metric.label)
        axes.legend(loc="best")
        return svg(figure, "validation", text + ".")


def roc(parts: dict[str, Part], confusion: tuple[float, float] | None) -> str:
    """Draw the ROC curve of each part, and the point of the decision threshold."""
    with canvas() as figure:
        axes = figure.subplots()
        texts = []
        for (name, part), (color, style) in zip(parts.items(), _LINES, strict=False):
            value = METRICS["roc_auc"].value(part.y, part.scores)
            axes.plot(
                *roc_curve(part.y == 1, part.scores), color=color, ls=style, label=f"{name}: {value:.3f}"
            )
            texts.append(f"area under the {name} curve {value:.3f}")
        axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=":", label="guessing: 0.500")
        if confusion is not None:
            axes.plot(*confusion, "o", ms=7, color=MAIN, mec=PAGE, mew=1.5, label="decisions", zorder=5)
        _unit_square(axes)
        label_axes(axes, "false positive rate", "true positive rate (recall)")
        axes.legend(loc="lower right")
        return svg(figure, "roc", f"ROC curve: {', '.join(texts)}.")


def precision_recall(parts: dict[str, Part], base_rate: float, decision: tuple[float, float] | None) -> str:
    """Draw the precision-recall curve of each part over the base rate."""
    with canvas() as figure:
        axes = figure.subplots()
        texts = []
        for (name, part), (color, style) in zip(parts.items(), _LINES, strict=False):
            value = METRICS["average_precision"].value(part.y, part.scores)
            recall, precision = precision_recall_curve(part.y == 1, part.scores)
            # Steps where recall rises: the area that is drawn is the average precision.
            rises = np.diff(recall, prepend=0.0) > 0
            recall, precision = recall[rises], precision[rises]
            recall, precision = np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])
            axes.step(recall, precision, color=color, ls=style, where="pre", label=f"{name}: {value:.3f}")
            texts.append(f"average precision of {name} {value:.3f}")
        axes.axhline(base_rate, color=INK, lw=1, ls=":", label=f"base rate: {base_rate:.3f}")
        if decision is not None:
            axes.plot(*decision, "o", ms=7, color=MAIN, mec=PAGE, mew=1.5, label="decisions", zorder=5)
        _unit_square(axes)
        label_axes(axes, "recall", "precision")
        axes.legend(loc="best")
        return svg(figure, "pr", f"Precision-recall curve: {', '.join(texts)}, base rate {base_rate:.3f}.")


def calibration(events: NDArray[np.bool_], probabilities: Floats, what: str, confidence: float) -> str:
    """Draw observed against predicted probability in bins of equal mass, over a histogram."""
    found = reliability(events, probabilities, confidence=confidence)
    with canvas(height=4.1) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=":", label="perfectly calibrated")
        bars = np.abs(np.stack([found.observed - found.low, found.high - found.observed]))
        axes.errorbar(found.predicted, found.observed, yerr=bars, color=MAIN, marker="o", ms=4.5, lw=1.5,
                      elinewidth=1.2, capsize=2.5, label=f"observed, {100 * confidence:g} % interval")  # fmt: skip
        _unit_square(axes)
        axes.set_ylabel("observed share")
        above = found.observed.mean() > found.predicted.mean()
        axes.legend(loc="lower right" if above else "upper left")
        counts, edges = np.histogram(probabilities, bins=25, range=(0, 1))
        below.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=MAIN, alpha=0.55, lw=0)
        below.set_yscale("log") if counts.max() > 50 * max(1, np.median(counts[counts > 0])) else None
        label_axes(below, f"predicted probability {what}", "rows")
        below.grid(visible=False)
        text = f"Calibration: expected calibration error {found.error:.3f} over {len(found.rows)} bins"
        return svg(figure, "calibration", text + ", above a histogram of the probabilities.")


def one_vs_rest(part: Part, names: list[str]) -> str:
    """Draw the ROC curve of each class against the rest, the three with the smallest areas named."""
    rows = as_rows(part.y, part.scores)
    curves, points = [], min(400, max(60, 3000 // len(names)))
    for k, name in enumerate(names):
        events = rows.y[:, k] > 0.5 if rows.multilabel else rows.y == k
        if events.any() and not events.all():
            area = METRICS["roc_auc"].value(events.astype(np.int64), rows.scores[:, k])
            curves.append((area, name, *roc_curve(events, rows.scores[:, k], points=points)))
    with canvas() as figure:
        axes = figure.subplots()
        curves.sort(key=lambda curve: curve[0])
        for i, (area, name, false, true) in enumerate(curves[:MANY]):
            if i < 3:
                color, style = ((SECOND, "-"), (MAIN, "-"), (THIRD, "-"))[i]
                axes.plot(false, true, color=color, ls=style, label=f"{plain(name)}: {area:.3f}", zorder=3)
            else:
                others = _others(len(curves)) if i == 3 else None
                axes.plot(false, true, color=INK, alpha=0.3, lw=1, label=others)
        axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=":")
        _unit_square(axes)
        label_axes(axes, "false positive rate", "true positive rate")
        axes.legend(loc="lower right", title="smallest areas" if len(curves) > 3 else None, title_fontsize=9)
        listed = ", ".join(f"{name} {area:.3f}" for area, name, _, _ in curves[:3])
        return svg(figure, "ovr", f"ROC curve of each class against the rest; smallest areas: {listed}.")


def predicted_against_actual(part: Part, target: str) -> str:
    """Draw predictions against labels, with the diagonal."""
    with canvas(height=4.1) as figure:
        axes = figure.subplots()
        _cloud(axes, part.scores, part.y)
        ends = [float(min(part.y.min(), part.scores.min())), float(max(part.y.max(), part.scores.max()))]
        axes.plot(ends, ends, color=INK, lw=1, ls=":", label="exact")
        label_axes(axes, f"predicted {plain(target)}", f"actual {plain(target)}")
        axes.legend(loc="upper left")
        r = np.corrcoef(part.scores, part.y)[0, 1] if np.ptp(part.scores) and np.ptp(part.y) else np.nan
        return svg(figure, "actual", f"Actual against predicted {target}; correlation {r:.3f}.")


def residuals(part: Part, target: str) -> str:
    """Draw errors against predictions, with the median and the middle 80 % of each tenth of the rows."""
    error = part.y - part.scores
    with canvas(height=4.1) as figure:
        axes = figure.subplots()
        _cloud(axes, part.scores, error)
        axes.axhline(0, color=INK, lw=1, ls=":")
        if len(error) >= 50:
            tenths = [t for t in np.array_split(np.argsort(part.scores, kind="stable"), 10) if len(t)]
            x = np.array([part.scores[t].mean() for t in tenths])
            bounds = np.array([np.quantile(error[t], [0.1, 0.5, 0.9]) for t in tenths])
            axes.plot(x, bounds[:, 1], color=SECOND, label="median")
            axes.plot(x, bounds[:, 0], color=SECOND, lw=1.2, ls=(0, (4, 3)), label="middle 80 %")
            axes.plot(x, bounds[:, 2], color=SECOND, lw=1.2, ls=(0, (4, 3)))
            axes.legend(loc="best")
        label_axes(axes, f"predicted {plain(target)}", "error (actual - predicted)")
        low, middle, high = np.quantile(error, [0.1, 0.5, 0.9])
        text = f"Errors against predictions: median {middle:.3g}, middle 80 % from {low:.3g} to {high:.3g}."
        return svg(figure, "residuals", text)


_LINES = ((MAIN, "-"), (SECOND, (0, (4, 2))))


def _others(curves: int) -> str:
    drawn, left = min(curves, MANY) - 3, curves - 3
    return f"{drawn} of {left} others" if drawn < left else f"{left} other{'s' if left > 1 else ''}"


def _unit_square(axes) -> None:  # type: ignore[no-untyped-def]
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)


def _cloud(axes, x: Array, y: Array) -> None:  # type: ignore[no-untyped-def]
    """Dots for few rows; for many, cells whose opacity grows with the logarithm of their rows."""
    if len(x) <= SCATTER:
        axes.plot(x, y, "o", ms=3.5, color=MAIN, alpha=0.45, mew=0)
        return
    counts, across, up = np.histogram2d(x, y, bins=CELLS)
    i, j = np.nonzero(counts)
    opacity = 0.15 + 0.85 * np.log1p(counts[i, j]) / np.log1p(counts.max())
    for level in np.unique(opacity.round(1)):
        # One path for each of ten levels of opacity: a few thousand cells stay a small file.
        chosen = opacity.round(1) == level
        corners = [
            [(across[a], up[b]), (across[a + 1], up[b]), (across[a + 1], up[b + 1]), (across[a], up[b + 1])]
            for a, b in zip(i[chosen], j[chosen], strict=True)
        ]
        from matplotlib.collections import PolyCollection

        axes.add_collection(PolyCollection(corners, facecolors=MAIN, alpha=float(level), linewidths=0))
    axes.autoscale_view()
