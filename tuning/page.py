"""The page of a search: what was chosen and what it comes to, the trials, what mattered, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.cluster.run_folder import CONFIG, RunFolder
from shoal.cluster.sharding.names import plural
from shoal.evaluation.metrics import METRICS, Metric
from shoal.evaluation.report.facts import STANDARD
from shoal.evaluation.report.inputs import provenance_of
from shoal.evaluation.report.markup import (
    Html,
    details,
    figure,
    grid,
    interval,
    number,
    paragraph,
    section,
    table,
    text,
)
from shoal.evaluation.report.overview import subtitle
from shoal.evaluation.report.page import REPORT, document
from shoal.tuning import figures
from shoal.tuning.config import DimensionConfig
from shoal.tuning.drop import sentence
from shoal.tuning.importance import FEW
from shoal.tuning.objective import MEAN_RANK
from shoal.tuning.population import POPULATION
from shoal.tuning.trials import ranked, rows_of, short, shown

_SHOWN = 15
_IN_UNITS = ("score", "value", "low", "high", "test", "chosen_by")


@dataclass(frozen=True)
class Facts:
    """One search, ready to be rendered.

    Attributes
    ----------
    found
        What is in `metrics.json`.
    rows
        Of `trials.parquet`.
    curves
        Epochs and scores by trial.
    turns
        Rows of `population.parquet`; empty without a population.
    hidden
        Whether the target is private.
    scale
        What numbers in the target's units are divided by: its standard deviation where it is private, otherwise 1.
    """

    name: str
    found: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    curves: Mapping[int, Sequence[tuple[int, float | None]]]
    turns: Sequence[Mapping[str, Any]]
    hidden: bool
    scale: float
    config: Mapping[str, Any]
    config_text: str
    provenance: dict[str, Any]

    @property
    def tuning(self) -> Mapping[str, Any]:
        """The search's own part of the results."""
        return dict(self.found["tuning"])

    @property
    def metric(self) -> Metric:
        """What trials were compared by."""
        return _metric(self.tuning["metric"])

    @property
    def space(self) -> dict[str, DimensionConfig]:
        """The space."""
        return {path: DimensionConfig(**given) for path, given in self.tuning["space"].items()}


def _metric(name: str) -> Metric:
    return MEAN_RANK if name == MEAN_RANK.name else METRICS[name]


def write_tune_report(run: RunFolder, found: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write `report.html` into the run folder of a search.

    Parameters
    ----------
    found, provenance
        What will be, or is, in `metrics.json` and `provenance.json`.

    Raises
    ------
    StorageError
        If its tables are not there any more.
    """
    run.write_text(REPORT, render(_collect(run, found, provenance)))


def _collect(run: RunFolder, found: Mapping[str, Any], provenance: Mapping[str, Any]) -> Facts:
    config = run.config() or {}
    data = config.get("data", {})
    target = data.get("target", [])
    targets = {target} if isinstance(target, str) else set(target)
    hidden = bool(targets & set(data.get("private") or ()))
    metric, scale = _metric(found["tuning"]["metric"]), 1.0
    if hidden and metric.in_units and run.exists("best/data.json"):
        scale = float(run.read_json("best/data.json")["schema"]["target"]["scale"])
    curves: dict[int, list[tuple[int, float | None]]] = {}
    for row in run.read_table("curves.parquet").to_pylist():
        value = row["score"]
        curves.setdefault(row["trial"], []).append((row["epoch"], None if value is None else value / scale))
    rows = [
        {**row, "score": None if row["score"] is None else row["score"] / scale}
        for row in rows_of(run.read_table("trials.parquet"))
    ]
    turns = run.read_table(POPULATION).to_pylist() if run.exists(POPULATION) else []
    name = run.uri.rstrip("/").rpartition("/")[2]
    text_ = run.read_bytes(CONFIG).decode() if run.exists(CONFIG) else ""
    return Facts(name, found, rows, curves, turns, hidden, scale, config, text_, dict(provenance))


def render(facts: Facts) -> str:
    """Write a search as one self-contained HTML page: no script, nothing fetched."""
    blocks = (
        _searched(facts),
        _headline(facts),
        _population(facts),
        _trials(facts),
        _importance(facts),
        _lost(facts),
        _method(facts),
    )
    body = "\n".join(block for block in (*blocks, _provenance(facts)) if block)
    data = facts.config.get("data", {})
    target = data.get("target", "")
    names = target if isinstance(target, str) else ", ".join(target)
    return document(
        f"{names}: a search of {plural(len(facts.rows), 'trial')}",
        subtitle(facts.name, facts.provenance),
        body,
    )


def _searched(facts: Facts) -> Html:
    tuning, by = (
        facts.tuning,
        {
            "validation": "on the validation rows",
            "cv": "as a mean over folds",
            "expected_cost": "on the validation rows",
            "target": "of models adapted to the target's rows",
        },
    )
    counts = ", ".join(f"{n} {status}" for status, n in tuning["statuses"].items() if n)
    return paragraph(
        f"{plural(len(facts.rows), 'trial')} of other values ({counts}) were compared by {facts.metric.label}",
        f"{by[tuning['objective']]}. They varied {', '.join(tuning['space'])}, and trained {plural(tuning['epochs'], 'epoch')}",
        "in all." if tuning["objective"] != "cv" else "(folds) in all.",
        f"The target is private: numbers in its units are given in {STANDARD}." if facts.scale != 1.0 else "",
    )


def _headline(facts: Facts) -> Html:
    tuning, metric = facts.tuning, facts.metric
    drop = {k: v / facts.scale if k in _IN_UNITS else v for k, v in (tuning["drop"] or {}).items()}
    best = tuning["best"]["score"] / facts.scale
    test = facts.found["best"].get("test", {}).get(metric.name)
    values = ", ".join(f"{path}: {shown(value)}" for path, value in tuning["best"]["values"].items())
    on_target = tuning["objective"] == "target"
    said = tuning["sentence"] if on_target else sentence(metric.label, best, drop or None, len(facts.rows))
    if test is None or test["value"] is None:
        shown_, label, spread, kind = (
            number(best, metric.limits),
            "by the rows that chose it",
            "",
            "no interval",
        )
    else:
        entry = {k: v / facts.scale if k in _IN_UNITS and v is not None else v for k, v in test.items()}
        shown_, label = number(entry["value"], metric.limits), "test rows, which no trial saw"
        spread = interval(entry, metric.limits)
        kind = f"{100 * facts.config.get('evaluation', {}).get('confidence', 0.95):g} % interval, {entry['method']}"
    link = (
        Html('<a href="best/report.html">The report of its run</a> has all other metrics.')
        if test or on_target
        else ""
    )
    chosen = paragraph(f"Trial {tuning['best']['trial']} was chosen:", values)
    warning = paragraph(said[0].upper() + said[1:] + ".", css="warning")
    return Html(
        f'<div class="headline"><div><div class="soft">{text(metric.label)} ({text(label)})</div>'
        f'<div class="value">{shown_}</div><div class="range">{text(spread)}<small>{text(kind)}</small></div></div>'
        f'<div class="words">{chosen}{paragraph(metric.meaning, link)}'
        f"</div></div>{warning}"
    )


def _trials(facts: Facts) -> Html:
    tuning, metric, space = facts.tuning, facts.metric, facts.space
    best = tuning["best"]["trial"]
    order = ranked(facts.rows, metric.greater_is_better)
    rows = [
        [
            f"trial {row['trial']}",
            number(row["score"], metric.limits),
            row["status"],
            row["epochs"],
            f"{row['seconds']:.1f}",
            *(shown(row["values"][path]) if path in row["values"] else "–" for path in space),
        ]
        for row in order[:_SHOWN]
    ]
    headers = ["", metric.label, "ended", "epochs", "seconds", *(path.rpartition(".")[2] for path in space)]
    better = "Higher" if metric.greater_is_better else "Lower"
    drawn = [
        figure(
            Html(figures.by_trial(facts.rows, metric.label, metric.greater_is_better)),
            "Score by trial",
            f"{better} is better.",
        )
    ]
    if any(len(curve) > 1 for curve in facts.curves.values()):
        svg = figures.learning(facts.curves, tuning["lineage"] or [best], metric.label)
        says = "A line a trial; those that end early were stopped, diverged, or ran out of patience."
        if facts.turns:
            says = "A line for each turn of a member."
        drawn.append(figure(Html(svg), "Learning curves of all trials", says))
    lines = figures.parallel(facts.rows, space, best, metric.label, metric.greater_is_better)
    lines = lines.replace("<svg ", '<svg style="max-width: none" ', 1)
    wide = Html(
        '<div class="scroll" tabindex="0" role="group" aria-label="Values and scores">'
        f'<figure style="min-width: 640px"><h3>Values and scores</h3>{lines}'
        "<figcaption>A line a trial over its values, and its score at the right; the better, the stronger.</figcaption>"
        "</figure></div>"
    )
    shown_ = "all" if len(order) <= _SHOWN else f"the best {_SHOWN}"
    return section(
        "trials", "Trials", grid(*drawn), wide, table(f"Trials with a score, {shown_}", headers, rows)
    )


def _population(facts: Facts) -> Html:
    """Draw which values were trained with when, and what became of them."""
    if not facts.turns:
        return Html("")
    lineage = facts.tuning["lineage"]
    drawn = [
        figure(
            Html(figures.schedules(facts.turns, path, lineage)),
            path.rpartition(".")[2],
            "A line a member over its epochs; it breaks where the member went on from another one, with other values.",
        )
        for path in facts.space
    ]
    rows = [
        [
            f"epochs {turn['first_epoch']} to {turn['last_epoch']}",
            f"trial {turn['trial']}",
            f"member {turn['member']}",
            *(shown(turn[path]) for path in facts.space),
        ]
        for turn in facts.turns
        if turn["trial"] in lineage
    ]
    headers = ["", "trial", "", *(path.rpartition(".")[2] for path in facts.space)]
    made = table("What the chosen model went through; best.yaml has it as training.changes", headers, rows)
    return section("population", "Values on the way", grid(*drawn), made)


def _importance(facts: Facts) -> Html:
    found = facts.tuning["importance"]
    if not found or len(found["keys"]) < 2:
        return Html("")
    notes = []
    if found["trials"] < FEW:
        notes.append(
            f"Only {plural(found['trials'], 'trial')} have a score: with fewer than {FEW}, this says little."
        )
    if found["fit"] < 0.2:
        notes.append(
            f"The forest hardly predicts trials that it has not seen (R squared {found['fit']:.2f}): what it finds important may "
            "be chance."
        )
    drawn = figure(
        Html(figures.importances(found["keys"])),
        "Importance of each key",
        "Of a random forest that learns the ranks of scores from values: how much worse it predicts when a key's values are "
        "shuffled, mean and standard deviation over shuffles.",
    )
    return section(
        "importance", "What mattered", *(paragraph(note, css="warning") for note in notes), grid(drawn)
    )


def _lost(facts: Facts) -> Html:
    lost = [row for row in facts.rows if row["score"] is None]
    if not lost:
        return Html("")
    errors = "" if facts.hidden else "why"
    rows = [
        [f"trial {row['trial']}", row["status"], short(row["values"]), *([row["error"] or ""] if errors else [])]
        for row in lost
    ]  # fmt: skip
    made = table(
        "Trials without a score count as the worst",
        ["", "ended", "values", *([errors] if errors else [])],
        rows,
    )
    return section("lost", "Trials without a score", details(plural(len(lost), "trial"), made))


def _method(facts: Facts) -> Html:
    tuning = facts.config.get("tuning") or {}
    search, scheduler = (next(iter(tuning.get(key) or {"": 0})) for key in ("search", "scheduler"))
    said = {
        "random": "Each trial's values were drawn at random, as a function of the seed and the trial's number.",
        "grid": "All combinations of the values were tried.",
        "optuna": "A tree-structured Parzen estimator proposed values, by the scores of the trials that had ended.",
    }.get(
        search, "Each trial's values were drawn at random, as a function of the seed and the trial's number."
    )
    ended = {
        "asha": "Trials that were not among the best at a rung were stopped there (asynchronous successive halving).",
        "median": "Trials worse than the median of the others so far were stopped.",
        "pbt": "These are the values of the first generation. After each one, members that were behind went on from one that was "
        "ahead, with other values (population based training): each trial is what a member did in a generation, and the best one "
        "of the last was chosen.",
    }.get(scheduler, "Every trial was trained to its end.")
    return section(
        "method",
        "How the numbers were made",
        paragraph(
            said,
            ended,
            "All trials were fitted with the experiment's seed, to the same training rows. The best one's values were fitted "
            "again and judged on the test rows, which took no part in any trial; best.yaml is that experiment.",
        ),
    )


def _provenance(facts: Facts) -> Html:
    if facts.hidden:  # the experiment may name classes: data.positive, costs by class
        hidden = paragraph("The target is private; the resolved experiment is in config.yaml.", css="soft")
        return provenance_of(facts.provenance, "", hidden)
    return provenance_of(facts.provenance, facts.config_text)
