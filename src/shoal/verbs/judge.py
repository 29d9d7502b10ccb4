"""evaluate and report: judge a finished run, again or on other data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import StorageError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.manifest import Manifest, Schema, read_manifest
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment
from shoal.training.reasonable import refuse_unreasonable, shown
from shoal.verbs.runs import (
    RUN_FILES,
    finished_crossval,
    finished_run,
    finished_tune,
    provenance_of,
    refuse_incomplete,
    scores_of,
    with_overrides,
)

if TYPE_CHECKING:
    from shoal.evaluation.deciding.judging import Judging
    from shoal.evaluation.metrics import Metric

OTHER = "data"
# The run keeps the manifest of its rows, so that its report does not need the shards any more.
DATA = "data.json"


@dataclass(frozen=True)
class EvaluateResult:
    """Scores with intervals, by part: ``test`` and ``validation`` of the run, or ``data``."""

    run: str
    task: str
    scores: dict[str, Any]
    written: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"run": self.run, "metrics": self.scores, "written": self.written}


def rows_of(run: Storage) -> Manifest:
    """Read what a run says of the rows that it used."""
    return read_manifest(run, DATA, "train again with another --out")


def metrics_of(experiment: Experiment, task: str) -> "list[Metric]":
    """Return the metrics that were asked for, the first of which drives choices, and then the usual ones."""
    from shoal.evaluation.metrics import resolve_scoring

    costs = experiment.evaluation.costs is not None
    asked = resolve_scoring(experiment.evaluation.scoring, task, costs=costs)
    return [*asked, *(metric for metric in resolve_scoring("auto", task, costs=costs) if metric not in asked)]


def judge(
    predictions: pa.Table, schema: Schema, experiment: Experiment, judging: "Judging"
) -> dict[str, Any]:
    """Return every part's metrics with their intervals, in the form of `metrics.json`.

    Raises
    ------
    DataError
        If by the costs of some rows one class would always be decided.
    """
    from shoal.evaluation.evaluate import amounts_of
    from shoal.evaluation.evaluate import evaluate as score

    settings = experiment.evaluation
    if judging.rule.costs is not None and judging.rule.costs.columns:
        amounts = amounts_of(predictions, judging.rule.costs.columns)
        by_id = partial(shown, ids=predictions.column("row_id"), schema=schema)
        refuse_unreasonable(judging.rule.costs, amounts, schema, by_id)
    return score(
        predictions,
        schema.target,
        metrics_of(experiment, schema.target.task),
        confidence=settings.confidence,
        replicates=settings.replicates,
        seed=experiment.seed,
        rule=judging.rule,
        withheld=judging.withheld,
    )


def evaluate(
    run: str,
    data: str | Sequence[str] | None = None,
    *,
    out: str | None = None,
    overrides: tuple[str, ...] = (),
    cluster: ClusterConfig | None = None,
    reporter: Reporter | None = None,
    allow_import: bool = False,
) -> EvaluateResult:
    """Score a finished run: on its own test and validation rows, or on other labelled data.

    Parameters
    ----------
    run
        The run folder.
    data
        Labelled Parquet or CSV files; None for the run's own `predictions.parquet`.
    out
        Folder to write `metrics.json` and `predictions.parquet` to; nothing is written without it.
    overrides
        ``evaluation.…=…`` only.
    cluster
        How to reach storage.
    reporter
        Hears of progress.
    allow_import
        For a model of your own: import its factory by the name that the run holds.

    Raises
    ------
    DataError
        If the data lack a column or the labels, or hold a class that the model does not know.
    StorageError
        If there is no such finished run, or `out` holds results already.
    """
    from shoal.evaluation.deciding.plan import judging_again
    from shoal.training.artifact import TrainedModel
    from shoal.verbs.decisions import judging_of_run, known_rows, with_decisions

    reporter = reporter or Silent()
    folder, experiment = finished_run(run, cluster)
    trained_with, experiment = experiment.evaluation, with_overrides(experiment, overrides)
    target = Storage.open(out, experiment.cluster.storage) if out else None
    if target is not None and target.exists("metrics.json"):
        raise StorageError(f"{target.uri} holds results already; choose another --out")
    trained = TrainedModel.load(folder.storage, allow_import=allow_import)
    manifest = rows_of(folder)
    judging = judging_again(
        trained_with,
        experiment.evaluation,
        manifest.schema_,
        known_rows(manifest),
        judging_of_run(experiment, manifest, trained),
    )
    if judging.rule.costs is not None and trained_with.costs is None:
        reporter.notice("the run was trained without costs: its probabilities are as its fit left them")
    if data is None:
        refuse_incomplete(folder, ("predictions.parquet",))
        predictions = folder.read_table("predictions.parquet")
        scores = judge(predictions, trained.schema, experiment, judging)
    else:
        from shoal.verbs.predictions import labelled_predictions

        _warn_of_own_rows(data, folder, experiment, reporter)

        predictions = labelled_predictions(
            trained, data, experiment.cluster.storage, reporter, judging.rule.columns
        )
        # `judge` knows the parts of a run; these rows are all held out, so they are judged as test rows are.
        judged = judge(_as_part(predictions, "test"), trained.schema, experiment, judging)
        scores = {OTHER: judged["test"]}
    if target is not None:
        if "decision" in predictions.column_names:
            predictions = predictions.drop_columns("decision")
        target.write_table("predictions.parquet", with_decisions(predictions, trained.schema.target, judging))
        target.write_json("metrics.json", scores)
    return EvaluateResult(
        folder.uri, trained.task, scores, written=target.uri if target is not None else None
    )


@dataclass(frozen=True)
class ReportResult:
    """Where the report is."""

    run: str
    report: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"run": self.run, "report": self.report}


def report(
    run: str, *, cluster: ClusterConfig | None = None, reporter: Reporter | None = None
) -> ReportResult:
    """Build `report.html` of a finished run again.

    Raises
    ------
    StorageError
        If there is no such finished run, or its files are damaged.
    DataError
        If its model is damaged.
    """
    from shoal.evaluation.report import write_report
    from shoal.evaluation.report.fold_facts import write_fold_report
    from shoal.training.description import read_model
    from shoal.tuning.page import write_tune_report
    from shoal.tuning.path_page import write_path_report
    from shoal.verbs.decisions import judging_of_run

    if (folds := finished_crossval(run, cluster)) is not None:
        (reporter or Silent()).stage("writing the report")
        write_fold_report(folds, folds.read_json("metrics.json"), provenance_of(folds))
        return ReportResult(folds.uri, f"{folds.uri}/report.html")
    if (search := finished_tune(run, cluster)) is not None:
        (reporter or Silent()).stage("writing the report")
        metrics = search.read_json("metrics.json")
        of_path = "path" in metrics["tuning"]
        (write_path_report if of_path else write_tune_report)(search, metrics, provenance_of(search))
        return ReportResult(search.uri, f"{search.uri}/report.html")
    folder, experiment = finished_run(run, cluster)
    refuse_incomplete(folder, RUN_FILES)  # a poorer report must not take a good one's place
    trained, _ = read_model(folder.storage)  # a report of a model that is damaged would speak of nothing
    manifest = rows_of(folder)
    (reporter or Silent()).stage("writing the report")
    judging = judging_of_run(experiment, manifest, trained)
    write_report(folder, manifest, scores_of(folder), provenance_of(folder), judging)
    return ReportResult(folder.uri, f"{folder.uri}/report.html")


def _warn_of_own_rows(
    data: str | Sequence[str], run: Storage, experiment: Experiment, reporter: Reporter
) -> None:
    from shoal.verbs.rows import input_files

    files = input_files(data, experiment.cluster.storage)
    own = set(rows_of(run).sources)
    if known := [file.uri for file in files if file.uri in own]:
        reporter.notice(
            f"the run was trained on rows of {known[0]}{' and others' if len(known) > 1 else ''}: these scores are not "
            "those of unseen rows; leave out --data for the test rows"
        )


def _as_part(predictions: pa.Table, split: str) -> pa.Table:
    at = predictions.column_names.index("split")
    return predictions.set_column(at, "split", pa.array([split] * predictions.num_rows, pa.string()))
