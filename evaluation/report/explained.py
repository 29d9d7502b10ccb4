"""The page of explanations: what was found in, one HTML file out."""

from collections.abc import Sequence

import numpy as np

from shoal.cluster.sharding.names import listed, plural
from shoal.evaluation.explain.outcome import Outcome
from shoal.evaluation.explain.permutation import Importance
from shoal.evaluation.explain.shapley import Attributions
from shoal.evaluation.explain.subject import Floats
from shoal.evaluation.explain.work import Dependences
from shoal.evaluation.report import explained_figures as figures
from shoal.evaluation.report.facts import STANDARD
from shoal.evaluation.report.markup import (
    Html,
    count,
    details,
    figure,
    grid,
    number,
    paragraph,
    section,
    table,
    text,
)
from shoal.evaluation.report.overview import lower, title
from shoal.evaluation.report.page import document

_PARTS = {"test": "test row", "validation": "validation row", "data": "row"}
_WHO = {
    "test": "which took no part in training or in any choice",
    "validation": "which also steered the training",
    "data": "of --data",
}
TITLES = {
    "shap": "Shapley values",
    "lime": "LIME",
    "integrated_gradients": "Integrated gradients",
    "gradient_shap": "Gradient SHAP",
    "deep_lift": "DeepLIFT",
    "saliency": "Saliency",
}
_IN_REPORT = 3  # columns whose dependence the run's own report shows
_LOGITS = ("integrated_gradients", "gradient_shap", "deep_lift", "saliency")
_TOGETHER = (
    "These columns go together (absolute rank correlation of at least 0.8): the model can read one from another, so each alone "
    "looks less important than it is, and values that never occur together are tried. Judge them as groups:"
)
_MEANS = {
    "shap": "What a column's value adds to the prediction, shared fairly over all orders in which columns may become known: "
    "base and contributions add up to the prediction. The base is the mean prediction over the background rows.",
    "lime": "A linear model of the predictions around a row: what it adds that a column's value is like this row's (the same "
    "category, or the same quarter of the numbers) rather than another one that occurs.",
    "integrated_gradients": "The network's gradient along the straight way from the mean encoded background row to the row, "
    "times the distance; contributions add up to the difference of the two.",
    "gradient_shap": "As integrated gradients, from background rows drawn at random; contributions add up to the difference to "
    "their mean.",
    "deep_lift": "Differences of activations to those of the mean encoded background row, carried back layer by layer; "
    "contributions add up to the difference.",
    "saliency": "The size of the network's gradient by each column's encoded values: where a small change would move the answer "
    "most. It adds up to nothing.",
}


def render_explained(found: Outcome) -> str:
    """Write explanations as one self-contained HTML page: no script, nothing fetched.

    Returns
    -------
    str
        A whole HTML document, the same for the same outcome.
    """
    shown = found.standardised() if hides_units(found) else found
    blocks = (
        _top(shown),
        _importance(shown),
        *(_attributed(shown, method, one) for method, one in shown.attributions.items()),
        _dependence(shown),
        _method(shown),
    )
    name = found.run.rstrip("/").rpartition("/")[2]
    heading = f"What moves {title(found.schema.target)}"
    return document(heading, paragraph(f"Run {name}", css="soft"), "\n".join(b for b in blocks if b))


def render_section(found: Outcome, page: str) -> str:
    """Write the main figures as a section of the run's own report.

    Parameters
    ----------
    page
        Where the whole page is, from the report.
    """
    shown = found.standardised() if hides_units(found) else found
    drawn: list[Html] = []
    if shown.importances and shown.metric is not None:
        drawn.append(_importance_bars(shown, "report-importance"))
    if shown.attributions:
        method, one = next(iter(shown.attributions.items()))
        k = _telling(one.predictions)[-1]
        drawn.append(_swarm(shown, method, one, k, "report-swarm", TITLES[method]))
        if method != "saliency":
            row = int(one.predictions[:, k].argmax())
            drawn.append(_fall(shown, method, one, k, row, "highest", "report-fall"))
    drawn += [
        _depends(shown, one, f"report-dependence-{i}") for i, one in enumerate(shown.dependences[:_IN_REPORT])
    ]
    link = Html(f'<a href="{text(page)}">All of them, with tables and how to read them.</a>')
    return section("explanations", "What moves the answers", _top(shown), grid(*drawn), paragraph(link))


def hides_units(found: Outcome) -> bool:
    """Whether the target is a private number, of which only standard deviations may be shown."""
    target = found.schema.target
    return target.task == "regression" and bool(set(target.columns) & set(found.schema.private))


def answer(found: Outcome, output: int = 0) -> str:
    """Name what is predicted."""
    task, name = found.schema.target.task, found.outputs[output]
    if task == "regression":
        units = f", in {STANDARD} from its mean" if hides_units(found) else ""
        return f"prediction of {found.schema.target.columns[0]}{units}"
    return f"probability of {name}"


def _top(found: Outcome) -> Html:
    rows = plural(found.n, _PARTS[found.part])
    sentences = [f"Explained on {rows}, {_WHO[found.part]}."]
    if found.attributions:
        sentences.append(
            f"{plural(len(found.rows.ids), 'row')} of them {'is' if len(found.rows.ids) == 1 else 'are'} explained one by one, "
            f"compared with {plural(found.background, 'background row')} drawn from the same rows."
        )
    private = [c for c in found.columns if c in found.schema.private]
    if private:
        sentences.append(f"Values of {listed(private)} are private and not shown.")
    top = paragraph(*sentences)
    lead = ""
    if found.importances and found.metric is not None and found.baseline is not None:
        first = [one for one in found.importances if one.mean > 0][:3]
        lead = paragraph(
            f"{found.metric.label} is {number(_signed(found), found.metric.limits)}. "
            + (
                f"It worsens most without {_and([one.name for one in first])}."
                if first
                else "No column alone makes it worse when permuted."
            )
        )
    return Html(f"{top}{lead}{_together(found)}")


def _together(found: Outcome) -> Html:
    """Warn of columns that go together."""
    if not found.correlated:
        return Html("")
    names = Html("".join(f"<li>{text(_and(group))}</li>" for group in found.correlated))
    return Html(f'<div class="warning">{paragraph(_TOGETHER)}<ul>{names}</ul></div>')


def _signed(found: Outcome) -> float:
    assert found.metric is not None
    assert found.baseline is not None
    return found.baseline if found.metric.greater_is_better else -found.baseline


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _importance(found: Outcome) -> Html:
    if not found.importances or found.metric is None:
        return Html("")
    way = "fall" if found.metric.greater_is_better else "rise"
    what = f"{way} of {lower(found.metric)}"
    drawn = [_importance_bars(found)]
    if found.groups:
        ranked = sorted(found.groups, key=lambda one: -one.mean)
        drawn.append(
            figure(
                Html(figures.importance_bars(ranked, what, "groups")),
                "Without groups of columns",
                "permuted together, as one",
            )
        )
    every = [*found.importances, *found.groups]
    rows = [(one.name, *_numbers(one)) for one in every]
    headers = ("column", "mean", f"{100 * found.confidence:g} % interval", "standard deviation")
    return section(
        "importance",
        "Which columns the score needs",
        grid(*drawn),
        details("All columns", table(f"{what.capitalize()} without a column", headers, rows)),
    )


def _importance_bars(found: Outcome, name: str = "importance") -> Html:
    assert found.metric is not None
    way = "fall" if found.metric.greater_is_better else "rise"
    return figure(
        Html(figures.importance_bars(found.importances, f"{way} of {lower(found.metric)}", name)),
        "Without each column",
        f"{way} when its cells are dealt to other rows; the line is the {100 * found.confidence:g} % interval over "
        f"{plural(len(found.importances[0].falls), 'permutation')}",
    )


def _numbers(one: Importance) -> tuple[str, str, str]:
    spread = f"{one.low:.4g} to {one.high:.4g}" if np.isfinite(one.low) else "–"
    return f"{one.mean:.4g}", spread, f"{one.std:.3g}"


def _attributed(found: Outcome, method: str, one: Attributions) -> Html:
    of = _telling(one.predictions)
    several = len(found.outputs) > 1
    drawn = [
        _swarm(
            found,
            method,
            one,
            k,
            f"{method}-swarm-{k}",
            f"Contributions to {answer(found, k)}" if several else "Contributions, row by row",
        )
        for k in of
    ]
    falls = []
    if method != "saliency":
        k = of[0]
        order = np.argsort(one.predictions[:, k], kind="stable")
        picks = dict.fromkeys((int(order[-1]), int(order[len(order) // 2]), int(order[0])))
        words = ("highest", "middle", "lowest")
        falls = [
            _fall(found, method, one, k, row, word, f"{method}-fall-{row}")
            for row, word in zip(picks, words, strict=False)
        ]
    headers = ("column", *(f"mean size, {name}" for name in (found.outputs[k] for k in of)))
    size = np.abs(one.values).mean(axis=0)
    ranked = np.argsort(-size[:, of].sum(axis=1), kind="stable")
    rows = [(found.columns[i], *(f"{size[i, k]:.4g}" for k in of)) for i in ranked]
    return section(
        method,
        TITLES[method],
        paragraph(_MEANS[method]),
        paragraph(*_errors(found, method, one), css="soft"),
        grid(*drawn, *falls),
        details("All columns", table("Mean size of the contributions", headers, rows)),
    )


def _swarm(found: Outcome, method: str, one: Attributions, k: int, name: str, heading: str) -> Html:
    svg = figures.beeswarm(
        one.values[:, :, k], found.columns, found.rows.numbers, _unit(found, method, k), name
    )
    says = "a dot is a row" + (
        "" if method == "saliency" else "; right of the line the value raises the answer"
    )
    return figure(Html(svg), heading, says)


def _fall(found: Outcome, method: str, one: Attributions, k: int, row: int, word: str, name: str) -> Html:
    texts = [found.rows.texts[i][row] for i in range(len(found.columns))]
    values, base = one.values[row, :, k], float(one.base[row, k])
    svg = figures.waterfall(values, base, found.columns, texts, _unit(found, method, k), name)
    return figure(
        Html(svg),
        f"The {word} answer, {one.predictions[row, k]:.4g}",
        f"row {found.rows.ids[row]}{_where_it_ends(method, values, base)}",
    )


def _where_it_ends(method: str, values: Floats, base: float) -> str:
    return f"; the linear model around it says {base + values.sum():.4g}" if method == "lime" else ""


def _unit(found: Outcome, method: str, output: int) -> str:
    """Return what contributions are counted in."""
    target = found.schema.target
    if method not in _LOGITS or (target.task == "regression" and target.link == "identity"):
        return answer(found, output)
    if target.task == "regression":
        return "the network's output (log scale)"
    return f"log odds of {found.outputs[output]}, before calibration"


def _errors(found: Outcome, method: str, one: Attributions) -> list[str]:
    """Say how exact the method was, by its own measure."""
    said = []
    if method == "lime":
        assert found.fidelity is not None
        said.append(
            f"The linear model explains {np.median(found.fidelity):.0%} of the answers' variance around a row (median; "
            f"lowest {found.fidelity.min():.0%}): where that is little, do not read it."
        )
    elif method != "saliency":
        said.append(
            f"Base and contributions miss the prediction by at most {np.abs(one.additivity).max():.2g} "
            f"({'additivity' if method == 'shap' else 'completeness'} error)."
        )
    if one.sampling is not None:
        said.append(
            f"By the draws, a contribution is uncertain by {np.sqrt((one.sampling**2).mean()):.2g} on average (standard error), "
            f"{one.sampling.max():.2g} at most."
        )
    elif method == "shap":
        said.append("All coalitions of the columns were asked: nothing is drawn but the background.")
    return said


def _telling(predictions: np.ndarray) -> list[int]:
    """Return the outputs that are drawn: those that differ most from row to row, in their order."""
    spread = predictions.var(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[: figures.MOST_OUTPUTS].tolist())


def _dependence(found: Outcome) -> Html:
    if not found.dependences:
        return Html("")
    drawn = [_depends(found, one, f"dependence-{place}") for place, one in enumerate(found.dependences)]
    single = any(len(one.columns) == 1 for one in found.dependences)
    says = (
        "The mean answer over all rows, with one column set to each value in turn and the others as they are."
    )
    lines = (
        "Thin lines are single rows (bars: eight of ten rows); where they cross, the column works otherwise in some rows than "
        "in others. The rug shows where values lie."
        if single
        else ""
    )
    return section("dependence", "How answers follow a column", paragraph(says, lines), grid(*drawn))


def _depends(found: Outcome, one: Dependences, name: str) -> Html:
    what = "probability" if len(found.outputs) > 1 else answer(found)
    if len(one.columns) == 1:
        rug = found.sample.get(one.columns[0])
        svg = figures.dependence_line(one, found.outputs, _telling(one.found.mean), rug, what, name)
    else:
        best = int(one.found.mean.var(axis=0).argmax())
        svg = figures.dependence_map(one, best, answer(found, best), name)
    return figure(Html(svg), f"By {' and '.join(one.columns)}")


def _method(found: Outcome) -> Html:
    parts = [
        paragraph(
            "These are statements about the model, not about the world: a column may move the answer because it stands for "
            "another one, and changing it may change nothing outside the model."
        )
    ]
    if found.importances:
        parts.append(
            paragraph(
                "Permutation importance: the score as it is less the score with a column's cells dealt to other rows (Breiman "
                "2001, Random forests, section 10), the same permutations for every column. The interval is Student's t over the "
                "permutations: other rows would move it further."
            )
        )
    if "shap" in found.attributions:
        parts.append(
            paragraph(
                "Shapley values are interventional: unknown columns come from background rows, whatever the known ones are. The "
                "coalitions are the same for all rows (Lundberg and Lee 2017; Covert and Lee 2021); their sampling error is the "
                "jackknife's over groups of draws."
            )
        )
    parts.append(
        paragraph(
            f"{count(found.n)} rows; tables with all figures lie beside this page as Parquet.", css="soft"
        )
    )
    return section("method", "How to read this", *parts)
