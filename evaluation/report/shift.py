"""A shift between two domains as a section of a report: what is known of it in, HTML out."""

# ruff: noqa: D102  (attributes of protocols)

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from shoal.evaluation.curves import roc_curve
from shoal.evaluation.report.markup import Html, details, figure, grid, number, paragraph, section, table
from shoal.evaluation.report.plots import INK, MAIN, SECOND, THIRD, canvas, label_axes, plain, svg
from shoal.evaluation.tallies import Array, Floats

BARS = 12  # columns and classes that are drawn; a table has the others
UNIT = (0.0, 1.0)
_LINES = {"trees": (MAIN, "-", "boosted trees"), "linear": (SECOND, (0, (4, 2)), "linear classifier")}


class Separated(Protocol):
    """How well a classifier tells the domains apart."""

    @property
    def auc(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def in_target(self) -> Array: ...
    @property
    def scores(self) -> Floats: ...


class Compared(Protocol):
    """One column in both domains."""

    @property
    def name(self) -> str: ...
    @property
    def numeric(self) -> bool: ...
    @property
    def effect(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def missing_source(self) -> float: ...
    @property
    def missing_target(self) -> float: ...
    @property
    def auc(self) -> Separated | None: ...
    @property
    def skipped(self) -> str: ...


class Values(Protocol):
    """Shares of a column's values: between `edges` or of `names`."""

    @property
    def edges(self) -> tuple[float, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> tuple[float, ...]: ...
    @property
    def target(self) -> tuple[float, ...]: ...


class Shares(Protocol):
    """Shares of the classes; the target's with an interval, NaN with a reason."""

    @property
    def source(self) -> Floats: ...
    @property
    def target(self) -> Floats: ...
    @property
    def low(self) -> Floats: ...
    @property
    def high(self) -> Floats: ...
    @property
    def reason(self) -> str: ...


def shift_section(
    sentences: Sequence[str],
    separations: Mapping[str, Separated],
    columns: Sequence[Compared],
    drawn: Mapping[str, Values],
    labels: Shares | None = None,
    classes: Sequence[str] = (),
    *,
    warn: bool = False,
) -> Html:
    """Write the section.

    Parameters
    ----------
    sentences
        What it means; the first is the conclusion.
    separations
        By classifier: ``trees``, ``linear``.
    columns
        Those of the largest effects first.
    drawn
        Values of some columns, by name.
    labels, classes
        Shares of the classes, and their names; None where there is no model.
    warn
        Whether the conclusion is a warning.
    """
    first, *rest = sentences
    said = Html(f"<ul>{''.join(f'<li>{paragraph(_sentence(s))}</li>' for s in rest)}</ul>")
    figures = [
        figure(domain_roc(separations), "Telling the domains apart", "on rows not fitted to; .5 is guessing")
    ]
    tested = [c for c in columns if not c.skipped and np.isfinite(c.effect)]
    if tested:
        figures.append(
            figure(
                column_bars(tested[:BARS]),
                "Columns by effect",
                "0: distributed alike; 1: no value in common. Pale ones do not differ at 5 % (Holm)",
            )
        )
    if labels is not None and not labels.reason:
        figures.append(
            figure(
                class_bars(labels, classes),
                "Classes",
                "the target's shares are estimated, if label shift is all there is",
            )
        )
    for place, (name, values) in enumerate(drawn.items()):
        figures.append(figure(distribution(name, values, place), f"Values of {name}"))
    return section(
        "shift", "The domains", paragraph(_sentence(first), css="warning" if warn else ""), said, grid(*figures),
        details("All columns", _table(columns)) if columns else "",
    )  # fmt: skip


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _table(columns: Sequence[Compared]) -> Html:
    rows = (
        (
            c.name,
            "Kolmogorov-Smirnov" if c.numeric else "total variation",
            number(c.effect, UNIT),
            "–" if np.isnan(c.p_value) else f"{c.p_value:.2g}",
            "–"
            if c.auc is None
            else f"{number(c.auc.auc, UNIT)} ({number(c.auc.low, UNIT)} to {number(c.auc.high, UNIT)})",
            f"{c.missing_source:.1%} / {c.missing_target:.1%}",
            c.skipped,
        )
        for c in columns
    )
    headers = (
        "column",
        "distance",
        "effect",
        "p (Holm)",
        "AUC alone",
        "missing, source / target",
        "not tested",
    )
    return table("Columns of the source in both domains", headers, rows)


def domain_roc(separations: Mapping[str, Separated]) -> str:
    """Draw the ROC curve of each classifier of the domain, pooled over folds, with the AUC and its interval."""
    with canvas() as drawing:
        axes = drawing.subplots()
        texts = []
        for kind, found in separations.items():
            color, style, name = _LINES[kind]
            value = f"{found.auc:.3f} ({found.low:.3f} to {found.high:.3f})"
            axes.plot(
                *roc_curve(found.in_target, found.scores), color=color, ls=style, label=f"{name}: {value}"
            )
            texts.append(f"{name} {value}")
        axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=":", label="guessing: 0.500")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)
        label_axes(axes, "source rows taken for target", "target rows found")
        axes.legend(loc="lower right")
        return svg(drawing, "domains", f"ROC curves of classifiers of the domain, areas: {'; '.join(texts)}.")


def column_bars(columns: Sequence[Compared]) -> str:
    """Draw the effect of each column; those that do not differ at 5 % are pale."""
    with canvas(height=max(2.0, 0.6 + 0.27 * len(columns))) as drawing:
        axes = drawing.subplots()
        for place, column in enumerate(reversed(columns)):
            alpha = 1.0 if column.p_value < 0.05 else 0.3
            axes.barh(place, column.effect, color=MAIN if column.numeric else THIRD, alpha=alpha, height=0.7)
        axes.set_yticks(range(len(columns)), [plain(c.name) for c in reversed(columns)])
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("distance: Kolmogorov-Smirnov (numbers), total variation (categories)")
        listed = ", ".join(f"{c.name} {c.effect:.2f}" for c in columns[:3])
        return svg(drawing, "columns", f"Effects of columns; the largest: {listed}.")


def class_bars(labels: Shares, classes: Sequence[str]) -> str:
    """Draw each class's share in the source, and its estimate in the target with its interval."""
    change = np.abs(labels.target - labels.source)
    chosen = np.sort(np.argsort(-change, kind="stable")[:BARS])
    with canvas(height=max(2.0, 0.9 + 0.4 * len(chosen))) as drawing:
        axes = drawing.subplots()
        place = np.arange(len(chosen))[::-1].astype(float)
        axes.barh(place + 0.2, labels.source[chosen], height=0.36, color=MAIN, label="source")
        axes.barh(place - 0.2, labels.target[chosen], height=0.36, color=SECOND, label="target, estimated")
        # The estimate is no quantile of its replicates, and may lie outside their interval.
        axes.hlines(place - 0.2, labels.low[chosen], labels.high[chosen], color=INK, lw=1.6)
        axes.set_yticks(place, [plain(classes[k]) if classes else f"class {k}" for k in chosen])
        axes.set_xlim(0, 1.05 * float(np.concatenate([labels.source[chosen], labels.high[chosen]]).max()))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of rows")
        axes.legend(loc="best")
        most = int(np.argmax(change))
        name = classes[most] if classes else f"class {most}"
        return svg(
            drawing, "class-shares",
            f"Class shares in both domains; the largest change: {name} from {labels.source[most]:.3f} to "
            f"{labels.target[most]:.3f}.",
        )  # fmt: skip


def distribution(name: str, values: Values, place: int) -> str:
    """Draw a column's values in both domains: steps for numbers, bars for categories."""
    source, target = np.array(values.source), np.array(values.target)
    with canvas() as drawing:
        axes = drawing.subplots()
        if values.edges:
            axes.stairs(source, values.edges, color=MAIN, lw=1.8, label="source", fill=False)
            axes.stairs(target, values.edges, color=SECOND, lw=1.8, ls=(0, (4, 2)), label="target")
            label_axes(axes, plain(name), "share of rows with a value")
        else:
            across = np.arange(len(source))[::-1].astype(float)
            axes.barh(across + 0.2, source, height=0.36, color=MAIN, label="source")
            axes.barh(across - 0.2, target, height=0.36, color=SECOND, label="target")
            axes.set_yticks(across, [plain(n, 18) for n in values.names])
            axes.grid(visible=False, axis="y")
            axes.set_xlabel("share of rows")
        axes.legend(loc="best")
        apart = float(np.abs(source - target).sum() / 2)
        return svg(
            drawing,
            f"values-{place}",
            f"Values of {name} in source and target; {apart:.2f} of the rows would have to move.",
        )
