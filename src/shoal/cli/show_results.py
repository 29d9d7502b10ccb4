"""Results for people: tables of scores with their intervals, paths, and what to do next."""

from typing import TYPE_CHECKING, Any

from shoal.cluster.sharding.names import plural

if TYPE_CHECKING:
    from shoal.cluster.sharding.manifest import Manifest
    from shoal.verbs.adapt import AdaptResult
    from shoal.verbs.check import CheckResult
    from shoal.verbs.crossval import CrossvalResult
    from shoal.verbs.dataset import ShardResult
    from shoal.verbs.digits import DemoResult
    from shoal.verbs.explanations import ExplainResult
    from shoal.verbs.features import FeaturesResult, LayersResult
    from shoal.verbs.first_file import InitResult
    from shoal.verbs.fit import TrainResult
    from shoal.verbs.judge import EvaluateResult, ReportResult
    from shoal.verbs.look import Look
    from shoal.verbs.predictions import PredictResult
    from shoal.verbs.range_test import RangeTestResult
    from shoal.verbs.tune import TuneResult
    from shoal.verbs.tune_path import PathResult

ORDER = ("data", "test", "validation")
MOST_CLASSES = 20  # shown in a table
_MOST_COLUMNS = 15
NAMED = {"test": "test rows", "validation": "validation rows", "data": "rows of --data"}


def scores(found: dict[str, Any], task: str) -> list[Any]:
    """Return a table for each part: metric, value, interval."""
    from rich import box
    from rich.table import Table

    from shoal.evaluation.deciding.judging import WITHHELD
    from shoal.evaluation.report.facts import is_macro

    shown: list[Any] = []
    for part in [p for p in ORDER if p in found]:
        metrics = found[part]
        first = next(iter(metrics.values()))
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"{NAMED[part]} ({first['n']:,})",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("metric")
        table.add_column("value", justify="right")
        table.add_column("interval", justify="right")
        macro = {name: f"{name} (macro)" for name in metrics if is_macro(name, task)}
        for name, entry in metrics.items():
            shown_as = macro.get(name, name)
            if entry.get("unit"):
                shown_as = f"{shown_as} ({entry['unit']})"
            if entry["value"] is None:
                reason = entry.get("reason", "")
                table.add_row(shown_as, "left out" if reason in WITHHELD else "undefined", reason)
            else:
                table.add_row(shown_as, _number(entry["value"]), _interval(entry))
        shown.append(table)
        if macro:
            shown.append(
                f"macro: the plain average over the {'labels' if task == 'multilabel' else 'classes'} that occur in these rows"
            )
        if methods := _methods(metrics):
            shown.append(f"intervals: {methods}")
        flat = [name for name, e in metrics.items() if e["value"] is not None and e["low"] == e["high"]]
        if flat:
            shown.append(
                f"no width: {', '.join(flat)}; the model treats these rows all alike, so they cannot show how sure "
                "that value is"
            )
    return shown


def train(result: "TrainResult") -> list[Any]:
    """Return the test scores, how the fit went and where everything is."""
    fit = result.fit
    parts = {"test": result.scores["test"]} if "test" in result.scores else result.scores
    steps = ""
    if fit["steps"]:  # models of scikit-learn's have none
        best = f", best epoch {fit['best_epoch']}" if fit["best_epoch"] else ""
        left_out = f" ({fit['skipped']:,} of them left out)" if fit["skipped"] else ""
        steps = f"{plural(fit['epochs'], 'epoch')}, {plural(fit['steps'], 'step')}{left_out}{best}; "
    return [
        *scores(parts, result.task),
        f"fit:    {steps}{fit['stopped']}",
        f"run:    {_short(result.run)}",
        f"report: {_short(result.report)}",
    ]


def crossval(result: "CrossvalResult") -> list[Any]:
    """Return the scores over folds, of the alternatives beside each other, and what the comparison says."""
    from rich import box
    from rich.table import Table

    first = next(iter(result.scores.values()))
    lead = next(iter(first))
    table = Table(
        box=box.SIMPLE_HEAD, title=plural(len(first[lead]["by_fold"]), "fold"), title_justify="left"
    )
    shown: list[Any] = [table, f"intervals: {first[lead]['method']}"]
    if not result.comparison:
        for column, justify in (("metric", "left"), ("mean", "right"), ("interval", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for metric, entry in first.items():
            known = entry["value"] is not None
            row = (_number(entry["value"]), _interval(entry)) if known else ("undefined", entry["reason"])
            table.add_row("seconds (median)" if metric == "seconds" else metric, *row)
        shown += _missing_folds(first)
    else:
        # What 80 columns hold; the differences' intervals are in the sentences.
        errors = [name for name in ("log_loss", "brier", "rmse") if name in first and name != lead]
        others = [
            *errors[:1],
            *(["expected_cost"] if "expected_cost" in first and lead != "expected_cost" else []),
        ]
        table.add_column("alternative", min_width=11)
        for column in (lead, "difference", "p", *others, "seconds"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, scores in result.scores.items():
            found = result.comparison.get(name, {}).get("differences", {}).get(lead, {"value": None})
            known = found["value"] is not None
            compared = (f"{found['value']:+.4f}", f"{found['p_value']:.3f}") if known else ("",) * 2
            means = (_mean(scores[lead]) + _give_or_take(scores[lead]), *compared)
            seconds = f"{scores['seconds']['value']:.1f}"
            table.add_row(name, *means, *(_mean(scores[other]) for other in others), seconds)
            missing = _missing_folds({m: scores[m] for m in (lead, *others)})
            shown += [f"{name}: {line}" for line in missing]
        shown += [found["sentence"] for found in result.comparison.values()]
        if result.nested:
            entry = result.nested["scores"][lead]
            spread = _interval(entry) or entry.get("reason", "no interval")
            shown.append(f"{lead} of the choice: {_mean(entry)} ({spread}); {result.nested['sentence']}")
        else:
            shown.append(
                "The best of several looks better here than it is: judge the one that you choose on the test rows (shoal train)."
            )
    return [*shown, f"run:    {_short(result.run)}", f"report: {_short(result.report)}"]


def path(result: "PathResult") -> list[Any]:
    """Return what was chosen along a path, and what its model comes to on the test rows."""
    found, chosen = result.path, result.path["chosen"]
    end = (
        ["the lowest loss is at the lowest strength: lower tuning.path.ratio"] if found["at_the_end"] else []
    )
    return [
        *scores({part: entry for part, entry in result.scores.items() if part == "test"}, result.task),
        f"chosen: strength {chosen['strength']:.4g} of {found['penalty']} ({found['choose'].replace('_', ' ')}), "
        f"{found['loss']} {chosen['loss']:.4f} ± {chosen['error']:.4f} over folds; {chosen['nonzero']:,} of "
        f"{found['columns']:,} weights are not 0",
        *end,
        f"best:   {_short(result.run)}/best.yaml, its run: {_short(result.run)}/best",
        f"run:    {_short(result.run)}",
        f"report: {_short(result.report)}",
    ]


def tune(result: "TuneResult | PathResult") -> list[Any]:
    """Return the best trials, what the model of the best one comes to on the test rows, and where everything is."""
    from shoal.verbs.tune_path import PathResult

    if isinstance(result, PathResult):
        return path(result)
    from rich import box
    from rich.table import Table

    from shoal.tuning.trials import ranked, short

    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"the best of {plural(len(result.trials), 'trial')}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("trial", result.metric, "epochs", "s", "values"):
        table.add_column(column, justify="left" if column == "values" else "right")
    for row in ranked(result.trials, result.greater_is_better)[:5]:
        seconds, values = f"{row['seconds']:.1f}", short(row["values"])
        table.add_row(str(row["trial"]), _number(row["score"]), str(row["epochs"]), seconds, values)
    parts = {part: found for part, found in result.scores.items() if part == "test"}
    return [
        table,
        *scores(parts, result.task),
        result.sentence,
        f"best:   {_short(result.run)}/best.yaml, its run: {_short(result.run)}/best",
        f"run:    {_short(result.run)}",
        f"report: {_short(result.report)}",
    ]


def adapt(result: "AdaptResult") -> list[Any]:
    """Return the plain and the adapted model beside each other, and how the latter was chosen."""
    from rich import box
    from rich.table import Table

    found = result.found
    kinds = found["methods"]
    names = list(kinds["source_only"])[:3]
    seeds, on = plural(found["seeds"], "seed"), plural(found["rows"], f"{found['judged_on']} row")
    table = Table(box=box.SIMPLE_HEAD, title=f"{on}, {seeds}", title_justify="left", title_style="bold")
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mean rank", justify="right")
    for kind, entries in kinds.items():
        label = (
            f"{kind} (chosen)"
            if kind == found["selection"]["chosen"]
            else kind.replace("_", " ", kind == "source_only")
        )
        cells = (_mean(entries[name]) + _give_or_take(entries[name]) for name in names)
        table.add_row(label, *cells, f"{found['selection']['ranks'][kind]:.2f}")
    if found["in_domain"]:
        table.add_row("in domain", *(_mean(found["in_domain"][name]) for name in names), "")
    by = "" if found["oracle"] else f" ({found['selection']['by']}, which need no labels)"
    return [
        table,
        found["sentence"],
        found["selection"]["sentence"] + by,
        *([f"labels: {found['label_plan']['message']}"] if found["label_plan"] else []),
        f"run:    {_short(result.run)}",
        f"report: {_short(result.report)}",
    ]


def _missing_folds(scores: dict[str, Any]) -> list[str]:
    """Say which means are not over all folds."""
    by_reason: dict[str, list[str]] = {}
    for metric, entry in scores.items():
        if entry.get("reason") and entry["value"] is not None:
            by_reason.setdefault(entry["reason"], []).append(metric)
    return [
        f"{reason}, so means over the other folds alone: {', '.join(metrics)}"
        for reason, metrics in by_reason.items()
    ]


def _give_or_take(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return ""
    return f" ± {_number(max(entry['high'] - entry['value'], entry['value'] - entry['low']))}"


def _mean(entry: dict[str, Any]) -> str:
    return "undefined" if entry["value"] is None else _number(entry["value"])


def features(result: "FeaturesResult") -> list[Any]:
    """Return the layers, best first, and where their features are."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    probed = "value" in result.layers[0]
    for column in ("layer", *(("numbers", result.layers[0]["metric"], "interval", "s") if probed else ())):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for entry in result.layers:
        cells = (
            (f"{entry['width']:,}", _mean(entry), _interval(entry), f"{entry['seconds']:.1f}")
            if probed
            else ()
        )
        table.add_row(entry["layer"], *cells)
    rows = ", ".join(f"{split} {count:,}" for split, count in result.rows.items())
    return [
        table,
        *([result.sentence] if result.sentence else []),
        f"rows:     {rows}",
        f"features: {_short(result.run)}/features",
    ]


def explain(result: "ExplainResult") -> list[Any]:
    """Return the most important columns, what goes together, and where the tables and the page are."""
    from rich import box
    from rich.table import Table

    found = result.found
    shown: list[Any] = []
    entries = found["importance"][:_MOST_COLUMNS]
    if entries:
        title = f"importance on {NAMED[found['part']]} ({found['rows']:,}), by {found['metric']}"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        for column in ("column", "worse by", "interval"):
            table.add_column(column, justify="left" if column == "column" else "right")
        for entry in entries:
            table.add_row(entry["name"], _number(entry["value"]), _interval(entry))
        shown.append(table)
        if rest := len(found["importance"]) - len(entries):
            shown.append(f"and {plural(rest, 'column')} of less importance")
    for entry in found.get("groups", ()):
        shown.append(
            f"{entry['name']}, permuted together: worse by {_number(entry['value'])} ({_interval(entry)})"
        )
    for group in found["correlated"]:
        shown.append(f"together: {', '.join(group)}; judge them as a group")
    for method, sizes in found["mean_absolute"].items():
        best = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown.append(f"{method}: largest on average {', '.join(f'{n} {sizes[n]:.3g}' for n in best)}")
    return [*shown, f"tables: {_short(result.folder)}", f"page:   {_short(result.page)}"]


def layers(result: "LayersResult") -> list[Any]:
    """Return the layers that can be chosen."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column, justify in (
        ("layer", "left"),
        ("kind", "left"),
        ("output", "right"),
        ("pooled", "right"),
        ("parameters", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for layer in result.layers:
        shape = " x ".join(map(str, layer.shape))
        table.add_row(layer.name, layer.kind, shape, f"{layer.width:,}", f"{layer.parameters:,}")
    return [table, "last is what the layer that answers is given (transfer.features.layers: [last, …])"]


def range_test(result: "RangeTestResult") -> list[Any]:
    """Return the suggestion, its reason, and where the plot is."""
    if result.suggestion is None:
        said = [f"no suggestion: {result.reason}"]
    else:
        said = [
            f"suggested learning rate: {result.suggestion:g}; {result.reason}",
            f"use it:  --set {result.key}={result.suggestion:g}",
        ]
    return [*said, f"plot:    {_short(result.run)}/learning_rate.png ({plural(result.steps, 'step')})"]


def demo(result: "DemoResult") -> list[Any]:
    """Return the run's results and three commands to try."""
    return [*train(result.train), "", "next:", *(f"  {command}" for command in result.next_commands)]


def shard(result: "ShardResult") -> list[Any]:
    """Return how many rows are where, of each class."""
    manifest = result.manifest
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())
    return [
        *_class_counts(manifest),
        f"{'found' if result.reused else 'written'}: {_short(result.uri)}",
        f"rows:   {rows}; {plural(manifest.n_shards, 'shard')} each",
        f"split:  {manifest.split_kind}",
    ]


def _class_counts(manifest: "Manifest") -> list[Any]:
    """Return a table of the rows of each class in each part; of the training rows, before and after resampling."""
    from rich import box
    from rich.table import Table

    target, resampling = manifest.schema_.target, manifest.resampling
    if not target.classes or set(target.columns) & set(manifest.schema_.private):
        return []
    counts = {str(name): split.class_counts for name, split in manifest.splits.items()}
    columns = counts
    if resampling is not None:
        before = {"train, before": resampling.class_counts_before, "train, after": counts["train"]}
        columns = {**before, **{name: found for name, found in counts.items() if name != "train"}}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("label" if target.task == "multilabel" else "class")
    for name in columns:
        table.add_column(name, justify="right")
    for code, value in list(enumerate(target.classes))[:MOST_CLASSES]:
        table.add_row(str(value), *(f"{found[code]:,}" for found in columns.values()))
    shown: list[Any] = [table]
    if len(target.classes) > MOST_CLASSES:
        shown.append(f"and {len(target.classes) - MOST_CLASSES:,} more classes: manifest.json has them")
    if resampling is not None and resampling.synthetic:
        made = plural(resampling.synthetic, "training row")
        shown.append(f"made:   {made}; {resampling.parents} names their parents")
    return shown


def evaluate(result: "EvaluateResult") -> list[Any]:
    """Return the scores."""
    return [
        *scores(result.scores, result.task),
        *([f"written: {_short(result.written)}"] if result.written else []),
    ]


def predict(result: "PredictResult") -> list[Any]:
    """Return what was written."""
    shown = [
        f"{plural(result.rows, 'row')} written: {result.predictions}",
        f"columns: {', '.join(result.columns)}",
    ]
    if (found := result.estimate) is not None:
        first, second = found["by_threshold"], found["by_difference"]
        shown += [
            f"estimated accuracy: {_mean(first)} ({_interval(first)}) by thresholded confidence, {_mean(second)} "
            f"({_interval(second)}) by the difference of confidences",
            f"of the run's {plural(found['held_out_rows'], 'held-out row')} it was {found['held_out']:.4f}; {found['assumes']}",
        ]
    return shown


def report(result: "ReportResult") -> list[Any]:
    """Return where the report is."""
    return [f"report: {_short(result.report)}"]


def init(result: "InitResult") -> list[Any]:
    """Return the file's name and the next command."""
    return [*_notices(result.data), f"written: {result.file}", f"next:    shoal check {result.file}"]


def check(result: "CheckResult") -> list[Any]:
    """Return the resolved experiment, what the data hold, and the resources."""
    from shoal.experiment import dump_yaml

    return [
        "# the resolved experiment",
        dump_yaml(result.experiment).rstrip(),
        "",
        "# the data",
        *_data(result.data),
        *_notices(result.data),
        *(["", "# the space of shoal tune", *result.space_lines] if result.space_lines else []),
        "",
        "# the resources",
        *result.resource_lines,
    ]


def _short(uri: str) -> str:
    from shoal.verbs.runs import shown

    return shown(uri)


def _data(found: "Look") -> list[Any]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("column", "type", "why"):
        table.add_column(name)
    for column in found.columns:
        table.add_row(column.name, column.type, column.reason)
    for name, reason in found.dropped.items():
        table.add_row(name, "not a feature", reason)
    classes = ", ".join(f"{name}: {rows:,}" for name, rows in list(found.class_rows.items())[:20])
    parts = ", ".join(f"{name} {rows:,}" for name, rows in found.parts.items())
    return [
        f"{plural(found.rows, 'row')} in {plural(found.files, 'file')}; task {found.target.task}"
        + (f" ({found.target.reason})" if found.target.reason else ""),
        *([f"classes: {classes}"] if classes else []),
        f"split: {found.split_kind}: {parts}",
        table,
    ]


def _notices(found: "Look") -> list[Any]:
    return [f"notice: {text}" for text in found.notices]


def _methods(metrics: dict[str, Any]) -> str:
    """Name the kinds of interval, the most common first; the metrics of the others are named."""
    kinds: dict[str, list[str]] = {}
    for name, entry in metrics.items():
        if entry["method"]:
            times = f", {entry['replicates']:,} replicates" if entry["replicates"] else ""
            kinds.setdefault(f"{entry['method']}{times}", []).append(name)
    first, *others = sorted(kinds, key=lambda kind: -len(kinds[kind])) or [""]
    return "; ".join([first, *(f"{kind} of {', '.join(kinds[kind])}" for kind in others)])


def _interval(entry: dict[str, Any]) -> str:
    return "" if entry["low"] is None else f"{_number(entry['low'])} to {_number(entry['high'])}"


def _number(value: float) -> str:
    if abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:,.1f}" if abs(value) < 1e9 else f"{value:.4g}"
