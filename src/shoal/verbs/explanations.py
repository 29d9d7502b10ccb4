"""explain: what a finished run's answers come from, on rows that it was not fitted to."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import ConfigError, DataError, StorageError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Part, plan
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import require
from shoal.cluster.storage import Storage
from shoal.evaluation.deciding.plan import judging_again
from shoal.evaluation.explain.config import ExplainConfig
from shoal.evaluation.explain.gradients import METHODS as GRADIENTS
from shoal.evaluation.explain.networks import refuse_gradients
from shoal.evaluation.explain.outcome import Outcome, Rows
from shoal.evaluation.explain.permutation import importance
from shoal.evaluation.explain.shapley import Attributions
from shoal.evaluation.explain.together import groups, rank_correlation
from shoal.evaluation.explain.trained import (
    DRAWABLE,
    numbers,
    of_trained,
    ordered_numbers,
    refuse_undrawable,
    values,
)
from shoal.evaluation.explain.work import (
    BACKGROUND,
    ROWS,
    Explain,
    Piece,
    Sample,
    Source,
    answers_of,
    draws,
)
from shoal.evaluation.metrics import METRICS, resolve_scoring
from shoal.evaluation.report.explained import render_explained
from shoal.experiment import Experiment, from_dict
from shoal.training.artifact import TrainedModel
from shoal.verbs.decisions import judging_of_run, known_rows
from shoal.verbs.explained_rows import Drawn, own_rows, rows_of_data
from shoal.verbs.judge import rows_of
from shoal.verbs.runs import finished_run, with_overrides

if TYPE_CHECKING:
    from shoal.cluster.sharding.spread import Spread
    from shoal.evaluation.explain.work import Dependences

FOLDER, SUMMARY, PAGE = "explanations", "explanations.json", "explanations.html"
_TASK_MEMORY = 512 << 20  # bytes of a task, beyond which Ray is not told
_ROWS = 10  # of a piece
_MOST = 6  # columns of partial dependence, where none are named


@dataclass(frozen=True)
class ExplainResult:
    """The main figures, and where the tables and the page are."""

    folder: str
    found: dict[str, Any]
    was_complete: bool = False

    @property
    def page(self) -> str:
        """The page for reading."""
        return f"{self.folder}/{PAGE}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"folder": self.folder, "page": self.page, **self.found, "was_complete": self.was_complete}


def explain(
    run: str,
    data: str | Sequence[str] | None = None,
    *,
    methods: Sequence[str] = (),
    rows: int | None = None,
    columns: Sequence[str | Sequence[str]] = (),
    background: int | None = None,
    out: str | None = None,
    overrides: tuple[str, ...] = (),
    cluster: ClusterConfig | None = None,
    reporter: Reporter | None = None,
    allow_import: bool = False,
) -> ExplainResult:
    """Explain a finished run: on its test or validation rows, or on other data.

    Parameters
    ----------
    run
        The run folder.
    data
        Parquet or CSV files, with labels where permutation is asked for; None for the run's own held-out rows.
    methods, rows, columns, background
        As in ``evaluation.explain`` of the experiment, in whose place they are.
    out
        Folder of the tables and the page; by default ``RUN/explanations``.
    overrides
        ``evaluation.…=…`` only.
    cluster
        Where the work is done, and how to reach storage.
    reporter
        Hears of progress.
    allow_import
        For a model of your own: import its factory by the name that the run holds.

    Raises
    ------
    ConfigError
        If a column is not there, or a method does not suit it or the model.
    DataError
        If the data lack a column or the labels.
    StorageError
        If there is no such finished run, its rows are gone, or the folder holds something else.
    """
    reporter = reporter or Silent()
    folder, experiment = finished_run(run, cluster)
    trained_with = experiment.evaluation
    experiment = with_overrides(experiment, overrides)
    given = {"methods": methods, "rows": rows, "columns": columns, "background": background}
    experiment = _with(experiment, {key: value for key, value in given.items() if value not in (None, ())})
    settings = experiment.evaluation.explain
    trained = TrainedModel.load(folder.storage, allow_import=allow_import)
    _refuse(settings, trained)
    manifest = rows_of(folder)
    judging = judging_again(
        trained_with,
        experiment.evaluation,
        manifest.schema_,
        known_rows(manifest),
        judging_of_run(experiment, manifest, trained),
    )
    judged = "permutation" in settings.methods
    if data is None:
        found = own_rows(folder, experiment, trained, judging.rule.columns, reporter)
    else:
        found = rows_of_data(
            trained, data, experiment, judging.rule.columns if judged else (), reporter, labels=judged
        )
    target = Storage.open(out, experiment.cluster.storage) if out else folder.child(FOLDER)
    metric = resolve_scoring(
        experiment.evaluation.scoring, trained.task, costs=experiment.evaluation.costs is not None
    )[0]
    source = Source(folder.uri, experiment.cluster.storage, allow_import)
    explaining = Explain(
        source,
        source.sha256,
        _sample(found, settings, experiment.seed),
        metric.name,
        judging.rule,
        settings,
        experiment.seed,
        None,
    )
    if judged:
        _refuse_undefined(explaining, found)
    key = _key(explaining, experiment, found, judging.calibration.model_dump(mode="json"))
    if (before := _earlier(target, key)) is not None:
        reporter.notice(f"these explanations are there already; delete {target.uri} to repeat them")
        return ExplainResult(target.uri, before, was_complete=True)
    outcome = _explained(explaining, trained, found, experiment, folder, reporter)
    for name, table in outcome.tables().items():
        target.write_table(f"{name}.parquet", table)
    target.write_text(PAGE, render_explained(outcome))
    summary = outcome.summary()
    target.write_json(SUMMARY, {"key": key, **summary})  # last: it says that all is there
    return ExplainResult(target.uri, summary)


def _with(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """Put what was given in the place of what the experiment says."""
    if not changes:
        return experiment
    plain = experiment.model_dump(mode="json")
    names = plain["data"].get("features") or ()
    if "columns" in changes:
        changes["columns"] = [_pair(c, names) for c in changes["columns"]]
    plain["evaluation"]["explain"] |= {
        key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()
    }
    return from_dict(plain)


def _pair(name: str | Sequence[str], names: Sequence[str]) -> Any:
    """Read ``a,b`` as both columns together."""
    if not isinstance(name, str) or name in names or name.count(",") != 1:
        return name
    return [part.strip() for part in name.split(",")]


def _refuse(settings: ExplainConfig, trained: TrainedModel) -> None:
    """Refuse what does not suit the model's columns, before a row is read."""
    schema = trained.schema
    of_name = {column.name: column for column in schema.columns}
    asked = (
        [] if settings.columns == "auto" else [(c,) if isinstance(c, str) else c for c in settings.columns]
    )
    for name in [name for names in asked for name in names]:
        require(name, list(of_name), "evaluation.explain.columns")
        if name in schema.private:
            raise ConfigError(
                f"evaluation.explain.columns: column {name!r} is private, and its partial dependence would show its values; "
                "leave it out"
            )
        refuse_undrawable(of_name[name])
    for group, names in settings.groups.items():
        for name in names:
            require(name, list(of_name), f"evaluation.explain.groups.{group}")
    for method in settings.methods:
        if method in GRADIENTS:
            refuse_gradients(trained.module, schema, method)
        if method == "lime" and schema.media:
            raise ConfigError(
                f"lime: column {schema.media[0].name!r} is {schema.media[0].of_kind}, of which no two are alike; use permutation "
                "or shap"
            )


def _refuse_undefined(explaining: Explain, found: Drawn) -> None:
    """Refuse to watch a score that these rows do not have.

    Raises
    ------
    DataError
        If they are of one class, say.
    """
    labels = found.labels
    assert labels is not None
    metric = METRICS[explaining.metric]
    one_class = labels.ndim == 1 and "regression" not in metric.tasks and len(np.unique(labels)) < 2
    if len(labels) < 2 or one_class:
        few = "one row" if len(labels) < 2 else "one class"
        raise DataError(
            f"permutation: these rows hold {few} only, on which {metric.name} says nothing; give others, or leave out the method "
            "(--methods shap,partial_dependence)"
        )


def _sample(found: Drawn, settings: ExplainConfig, seed: int) -> Sample:
    n = len(found.cells)

    def some(count: int, purpose: int) -> NDArray[np.int64]:
        generator = np.random.default_rng(draws(seed, purpose))
        return np.sort(generator.choice(n, min(count, n), replace=False)).astype(np.int64)

    return Sample(
        found.cells,
        found.labels,
        found.amounts,
        found.numbers,
        some(settings.rows, ROWS),
        some(settings.background, BACKGROUND),
    )


def _key(explaining: Explain, experiment: Experiment, found: Drawn, calibration: Any) -> str:
    """Return a hash of all that the result depends on."""
    digest = hashlib.sha256(found.cells.tobytes())
    for judged_by in (found.labels, *found.amounts.values()):
        digest.update(b"" if judged_by is None else np.ascontiguousarray(judged_by).tobytes())
    evaluation = experiment.evaluation.model_dump(mode="json")
    facts = [explaining.sha256, evaluation, experiment.seed, explaining.metric, found.part, calibration]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _earlier(target: Storage, key: str) -> dict[str, Any] | None:
    """Return what the folder holds where it is the same; it may hold nothing but explanations.

    Raises
    ------
    StorageError
        If the folder holds something else.
    """
    if not target.exists():
        return None
    there = target.list()
    if SUMMARY not in there:
        ours = (".parquet", PAGE)
        if strange := [name for name in there if not name.endswith(ours) and not name.startswith(".")]:
            raise StorageError(
                f"{target.uri} holds {strange[0]}, which is no explanation; choose another --out"
            )
        return None
    before: dict[str, Any] = target.read_json(SUMMARY)
    if before.pop("key", None) == key:
        return before
    target.delete(SUMMARY)  # what it says is not true any more while the others are written
    for name in there:
        if name.endswith(".parquet"):
            target.delete(name)
    return None


@contextmanager
def _spread(experiment: Experiment, most: int, reporter: Reporter) -> "Iterator[tuple[Spread, float | None]]":
    """Work in this process, or in tasks: as many as there are workers asked for, or CPUs free; with a task's CPUs."""
    from shoal.cluster.sharding.spread import Here

    shape, _ = plan(experiment.cluster)
    if shape.placement == "inline":
        yield Here(), None
        return
    from shoal.cluster.tasks import tasks

    part = Part("explanations", 1, shape.cpus_per_worker, 0.0, float(_TASK_MEMORY))
    asked = most if experiment.cluster.num_workers == "auto" else min(most, shape.num_workers)
    with tasks(experiment.cluster, part, reporter, most=asked) as several:
        yield several, shape.cpus_per_worker


def _explained(
    explaining: Explain,
    trained: TrainedModel,
    found: Drawn,
    experiment: Experiment,
    folder: RunFolder,
    reporter: Reporter,
) -> Outcome:
    settings, schema, sample = explaining.settings, trained.schema, explaining.sample
    subject = of_trained(trained)
    names = [column.name for column in schema.columns]
    answers = answers_of(subject, sample)
    correlated = _correlated(trained, sample, answers)
    outcome = Outcome(
        folder.uri,
        schema,
        _outputs(subject.outputs, schema),
        found.part,
        len(sample.cells),
        len(sample.background),
        _rows(schema, subject.columns, found, sample),
        correlated=tuple(correlated),
        confidence=experiment.evaluation.confidence,
        sample=_values(schema, subject.columns, sample),
    )
    by_rows = [(s, min(s + _ROWS, len(sample.explained))) for s in range(0, len(sample.explained), _ROWS)]
    with _spread(experiment, max(len(names), len(by_rows)), reporter) as (spread, cpus):
        work = replace(explaining, cpus=cpus)

        def done(method: str, title: str, items: Sequence[tuple[Any, ...]], what: str) -> list[Any]:
            reporter.stage(title)
            pieces: list[Piece] = [(method, item) for item in items]
            results = []
            for result in spread.map(work, pieces):
                results.append(result)
                reporter.advance(len(results), len(pieces), what)
            reporter.done()
            return results

        if "permutation" in settings.methods:
            together = dict(settings.groups) | {" + ".join(group): group for group in correlated}
            of = {name: (name,) for name in names} | together
            scores = done(
                "permutation", "permutation importance", [(columns,) for columns in of.values()], "columns"
            )
            baseline = explaining.score(answers)
            made = [
                importance(name, columns, baseline, falls, outcome.confidence)
                for (name, columns), falls in zip(of.items(), scores, strict=True)
            ]
            ranked = sorted(made[: len(names)], key=lambda one: -one.mean)
            outcome = replace(
                outcome,
                metric=METRICS[explaining.metric],
                baseline=baseline,
                importances=tuple(ranked),
                groups=tuple(made[len(names) :]),
            )
        for method in [m for m in settings.methods if m not in ("permutation", "partial_dependence")]:
            parts = done(method, method.replace("_", " "), by_rows, "blocks of rows")
            if method == "lime":
                locals_ = [one for part in parts for one in part]
                joined = Attributions(
                    np.stack([one.coefficients for one in locals_]),
                    np.stack([one.intercept for one in locals_]),
                    answers[sample.explained],
                )
                outcome = replace(outcome, fidelity=np.stack([one.fidelity for one in locals_]))
            else:
                joined = _joined(parts)
            outcome = replace(outcome, attributions={**outcome.attributions, method: joined})
        if "partial_dependence" in settings.methods:
            chosen = _chosen(settings, schema, outcome)
            drawn: list[Dependences] = done("partial_dependence", "partial dependence", chosen, "columns")
            outcome = replace(outcome, dependences=tuple(drawn))
    return outcome


def _chosen(settings: ExplainConfig, schema: Schema, outcome: Outcome) -> list[tuple[str, ...]]:
    """Return the columns of partial dependence: those that were named, or the most important ones that may be shown."""
    if settings.columns != "auto":
        return [(name,) if isinstance(name, str) else tuple(name) for name in settings.columns]
    may = [c.name for c in schema.columns if c.type in DRAWABLE and c.name not in schema.private]
    if outcome.importances:
        order = [one.name for one in outcome.importances]
    elif outcome.attributions:
        size = np.abs(next(iter(outcome.attributions.values())).values).mean(axis=(0, 2))
        order = [outcome.columns[i] for i in np.argsort(-size, kind="stable")]
    else:
        order = may
    found: list[tuple[str, ...]] = [(name,) for name in order if name in may]
    return found[:_MOST]


def _joined(parts: Sequence[Attributions]) -> Attributions:
    sampling = [part.sampling for part in parts if part.sampling is not None]
    return Attributions(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.base for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        np.concatenate(sampling) if sampling else None,
    )


def _correlated(trained: TrainedModel, sample: Sample, answers: Any) -> list[tuple[str, ...]]:
    """Return groups of columns that go together; categories are ordered by the mean answer of their rows."""
    subject = of_trained(trained)
    telling = answers[:, int(answers.var(axis=0).argmax())]
    found = {
        column.name: ordered_numbers(column, sample.cells[:, list(subject.columns[column.name])], telling)
        for column in trained.schema.columns
    }
    known = {name: numbers for name, numbers in found.items() if numbers is not None}
    if len(known) < 2:
        return []
    return groups(list(known), rank_correlation(np.stack(list(known.values()), axis=1)))


def _outputs(names: Sequence[str], schema: Schema) -> tuple[str, ...]:
    """Name the outputs; the classes of a private target by their numbers."""
    if not set(schema.target.columns) & set(schema.private) or schema.target.task in (
        "regression",
        "multilabel",
    ):
        return tuple(names)
    return ("event",) if len(names) == 1 else tuple(f"class {k}" for k in range(len(names)))


def _rows(schema: Schema, places: Any, found: Drawn, sample: Sample) -> Rows:
    """Read the explained rows' values; private ones are not."""
    cells = sample.cells[sample.explained]
    texts, ordered = [], []
    for column in schema.columns:
        own, hidden = cells[:, list(places[column.name])], column.name in schema.private
        texts.append([""] * len(own) if hidden else values(column, own))
        has_order = column.type in DRAWABLE and column.type != "categorical" and not hidden
        ordered.append(numbers(column, own) if has_order else None)
    hide = schema.id is not None and schema.id in schema.private
    ids = pa.array(sample.numbers[sample.explained]) if hide else found.ids.take(pa.array(sample.explained))
    return Rows(ids, texts, ordered)


def _values(schema: Schema, places: Any, sample: Sample) -> dict[str, Any]:
    """Return the numbers of the sample's columns that may be shown, for rugs."""
    return {
        c.name: numbers(c, sample.cells[:, list(places[c.name])])
        for c in schema.columns
        if c.type in ("numeric", "timestamp") and c.name not in schema.private
    }
