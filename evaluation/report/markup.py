"""Small pieces of HTML. Everything that may hold a user's text goes through `text`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape a value for HTML; `Html` stays as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def paragraph(*parts: object, css: str = "") -> Html:
    """One paragraph of parts, joined by spaces."""
    attribute = f' class="{css}"' if css else ""
    return Html(f"<p{attribute}>{' '.join(text(part) for part in parts if part != '')}</p>")


def section(identifier: str, title: str, *blocks: object) -> Html:
    """Return a section with a heading; empty where all its blocks are."""
    filled = [text(block) for block in blocks if block]
    if not filled:
        return Html("")
    body = "\n".join(filled)
    return Html(
        f'<section aria-labelledby="{identifier}"><h2 id="{identifier}">{text(title)}</h2>\n{body}\n</section>'
    )


def table(caption: str, headers: Sequence[object], rows: Iterable[Sequence[object]], css: str = "") -> Html:
    """Return a table whose first column names its rows; it scrolls sideways where the screen is narrow."""
    head = "".join(f'<th scope="col">{text(header)}</th>' for header in headers)
    body = []
    for row in rows:
        first, *rest = row
        cells = "".join(text(value) if _is_cell(value) else f"<td>{text(value)}</td>" for value in rest)
        body.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    lines = "\n".join(body)
    return Html(
        f'<p class="caption">{text(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="{text(caption)}">'
        f'<table class="{css}" aria-label="{text(caption)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def cell(content: object, css: str = "", style: str = "") -> Html:
    """Return a table cell with a class or a style of its own."""
    attributes = (f' class="{css}"' if css else "") + (f' style="{style}"' if style else "")
    return Html(f"<td{attributes}>{text(content)}</td>")


def _is_cell(value: object) -> bool:
    return isinstance(value, Html) and value.startswith("<td")


def figure(svg: str, title: object, caption: object = "") -> Html:
    """Return a plot with its title above and what it says below."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Html(f"<figure><h3>{text(title)}</h3>{svg}{below}</figure>")


def grid(*figures: Html) -> Html:
    """Lay figures side by side where there is room."""
    return Html(f'<div class="figures">{"".join(figures)}</div>' if any(figures) else "")


def details(summary: object, body: object, opened: bool = False) -> Html:
    """Return something to unfold, or to fold."""
    return Html(
        f"<details{' open' if opened else ''}><summary>{text(summary)}</summary>\n{text(body)}\n</details>"
    )


def pre(content: str) -> Html:
    """Text with its line breaks."""
    return Html(f'<pre tabindex="0">{text(content.rstrip())}</pre>')


def definitions(values: dict[str, Any]) -> Html:
    """Return nested plain values as a list of terms; None and empty ones are left out."""
    items = "".join(
        f"<div><dt>{_breakable(key)}</dt><dd>{text(value)}</dd></div>"
        for key, value in _flat(values)
        if value != ""
    )
    return Html(f"<dl>{items}</dl>" if items else "")


def _breakable(key: str) -> str:
    """Let a long dotted name break where it reads well."""
    return text(key).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, " ".join(str(part) for part in value)
        elif value is not None:
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def number(
    value: float | None, limits: tuple[float, float] = (0.0, math.inf), like: float | None = None
) -> str:
    """Write a value: three decimals where its range is bounded, four digits otherwise; – for none.

    Parameters
    ----------
    limits
        Of the metric.
    like
        The value that sets the decimals of an unbounded one, so that an interval matches its estimate.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if all(map(math.isfinite, limits)):
        near = min(abs(value - limit) for limit in limits)
        # 0.9996 is not 1.000: more decimals beside a limit, up to six.
        decimals = 3 if near == 0 else min(6, max(3, math.ceil(-math.log10(near))))
        return f"{value:.{decimals}f}"
    size = abs(value if like is None else like)
    if size and not 1e-4 <= size < 1e15:
        return f"{value:.3e}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(size))) if size else 3}f}"


def interval(entry: Mapping[str, Any], limits: tuple[float, float]) -> str:
    """Write the interval of an entry of `metrics.json`; empty for none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    low, high = (number(entry[key], limits, entry["value"]) for key in ("low", "high"))
    return f"{low} to {high}"


def count(value: float) -> str:
    """Write a whole number with thousands apart."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Write a share in percent; – of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"
