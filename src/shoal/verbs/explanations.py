"""explain: what a finished run's answers come from, on rows that it was not fitted to."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import ConfigError, DataError, StorageError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.names import require
from shoal.cluster.storage import Storage
from shoal.evaluation.deciding.plan import judging_again
from shoal.evaluation.explain.config import ExplainConfig
from shoal.evaluation.explain.gradients import METHODS as GRADIENTS
from shoal.evaluation.explain.networks import refuse_gradients
from shoal.evaluation.explain.trained import (
    refuse_undrawable,
)
from shoal.evaluation.explain.work import (
    BACKGROUND,
    ROWS,
    Explain,
    Sample,
    Source,
    draws,
)
from shoal.evaluation.metrics import METRICS, resolve_scoring
from shoal.evaluation.report.explained import render_explained, render_section
from shoal.evaluation.report.facts import EXPLAINED, EXPLANATIONS, SUMMARY
from shoal.experiment import Experiment, from_dict
from shoal.training.artifact import TrainedModel
from shoal.verbs.decisions import judging_of_run, known_rows
from shoal.verbs.explained_rows import Drawn, own_rows, rows_of_data
from shoal.verbs.explaining import explained
from shoal.verbs.judge import report, rows_of
from shoal.verbs.runs import finished_run, with_overrides

PAGE = "explanations.html"


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
    target = Storage.open(out, experiment.cluster.storage) if out else folder.child(EXPLANATIONS)
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
    outcome = explained(explaining, trained, found, experiment, folder, reporter)
    for name, table in outcome.tables().items():
        target.write_table(f"{name}.parquet", table)
    target.write_text(PAGE, render_explained(outcome))
    summary = outcome.summary()
    if judged:
        summary["random_state"] = explaining.random_state
    own = target.uri == folder.child(EXPLANATIONS).uri
    if own:
        target.write_text(EXPLAINED, render_section(outcome, f"{EXPLANATIONS}/{PAGE}"))
    target.write_json(SUMMARY, {"key": key, **summary})  # last: it says that all is there
    if own:
        try:
            report(run, cluster=cluster, reporter=reporter)
        except (StorageError, DataError) as error:  # of the run's other files; what was asked for is there
            reporter.notice(f"report.html does not show these explanations: {error}")
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
    if not isinstance(name, str) or name in names or "," not in name:
        return name
    if name.count(",") > 1:
        raise ConfigError(
            f"--columns {name}: partial dependence is of one column, or of two together, such as a,b; give --columns again"
        )
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
        ours = (".parquet", PAGE, EXPLAINED)
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
