"""Matplotlib figures as inline SVG that follows the page: its fonts, and its colours in light and dark.

Colours are drawn as sentinels and written as CSS variables; the backend is used directly, so that neither
pyplot nor a display is needed.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sentinel to CSS variable; distinct from each other and from black and white.
INK, FAINT, MAIN, SECOND, THIRD, PAGE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {INK: "ink", FAINT: "line", MAIN: "main", SECOND: "second", THIRD: "third", PAGE: "page"}

_STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.facecolor": PAGE,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "path.simplify_threshold": 0.3,
}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
WIDTH, HEIGHT = 4.9, 3.5  # inches of 72 CSS pixels: two side by side on a desktop, one on a phone


@contextmanager
def canvas(height: float = HEIGHT, width: float = WIDTH) -> "Iterator[Figure]":
    """Give a figure in the report's style; draw and call `svg` inside."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: "Figure", name: str, description: str) -> str:
    """Write a figure as an SVG element.

    Parameters
    ----------
    name
        Unique in the page: it keeps the ids of clip paths apart.
    description
        What a reader who cannot see it should know.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(target, metadata=_METADATA)  # type: ignore[no-untyped-call]
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for sentinel, variable in _VARIABLES.items():
        text = text.replace(sentinel, f"var(--{variable})")
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    # Two decimals of a pixel, in tags only: text nodes hold numbers that are meant to be read.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(?<=\d\.\d\d)\d+", "", tag[0]), text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"\n\s*", "\n", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    body = text[text.index(">") + 1 :]
    view = box[1] if box else "0 0 360 260"
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(description, quote=True)}">{body}'


def label_axes(axes: "Axes", x: str, y: str) -> None:
    """Name both axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def plain(text: str, limit: int = 24) -> str:
    """Make a user's name safe for matplotlib, which reads $…$ as mathematics; long ones are cut."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut.replace("$", r"\$")
