"""predict: a trained model's answers for raw rows, streamed from file to file."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shoal.cluster.config import ClusterConfig, StorageConfig
from shoal.cluster.errors import ConfigError, DataError, StorageError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.listing import InputFile
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.prepare import Prepared, prepare
from shoal.cluster.sharding.targets import encode_labels
from shoal.cluster.storage import Storage
from shoal.evaluation.evaluate import amounts_of, labels_and_scores, part_of
from shoal.evaluation.unlabelled import ASSUMES, confidences, estimate_accuracy
from shoal.experiment import Experiment
from shoal.training.artifact import TrainedModel
from shoal.training.costs import by_name
from shoal.training.scores import Judged, predictions_table
from shoal.verbs.decisions import PREDICTIONS, decides_itself
from shoal.verbs.rows import input_files, raw_batches
from shoal.verbs.runs import finished_run
from shoal.verbs.unknown import Unknown

ROW = "row"
_FAR = 10  # standard deviations of a column over the training rows
_FEW_FAR = 0.05  # of the rows: heavy tails have some
FORMATS = {".parquet": "Parquet", ".pq": "Parquet", ".csv": "CSV"}


@dataclass(frozen=True)
class PredictResult:
    """Where the predictions are; the columns of a private target's scores, whose names are its values, as ``score_*``."""

    run: str
    predictions: str
    rows: int
    columns: tuple[str, ...]
    unknown: dict[str, int]  # rows of each column whose category the model does not know
    estimate: dict[str, Any] | None = None  # of their accuracy, where it was asked for

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "run": self.run,
            "predictions": self.predictions,
            "rows": self.rows,
            "columns": list(self.columns),
            "unknown": self.unknown,
            **({} if self.estimate is None else {"estimate": self.estimate}),
        }


def predict(
    run: str,
    data: str | Sequence[str],
    to: str,
    *,
    force: bool = False,
    cluster: ClusterConfig | None = None,
    reporter: Reporter | None = None,
    allow_import: bool = False,
    estimate: bool = False,
) -> PredictResult:
    """Predict raw rows in their order, in bounded memory.

    Parameters
    ----------
    run
        A finished run.
    data
        Parquet files, folders and globs, or CSV files.
    to
        The file to write, ``.parquet`` or ``.csv``: the id column where the data have it (otherwise ``row``,
        from 0), the prediction, and a score for each class. It appears whole or not at all.
    force
        Overwrite `to`.
    cluster
        How to reach storage.
    reporter
        Hears of progress.
    allow_import
        For a model of your own: import its factory by the name that the run holds.
    estimate
        Whether to estimate, without labels, how many of the decisions are right.

    Raises
    ------
    ConfigError
        If `to` is neither Parquet nor CSV, or nothing can be estimated.
    DataError
        If the data lack a column, hold infinity, or are empty.
    StorageError
        If there is no such finished run, or `to` exists, is one of the inputs, or lies in the run folder.
    """
    reporter = reporter or Silent()
    folder, experiment = finished_run(run, cluster)
    config = experiment.cluster.storage
    target, name = _target(to, config)
    files = input_files(data, config)
    _refuse_precious(to, target, name, folder.storage, files)
    if target.exists(name) and not force:
        raise StorageError(f"{to} exists; choose another --to, or overwrite it with --force")
    trained = TrainedModel.load(folder.storage, allow_import=allow_import).reading(files, config)
    known = _held_out(folder, experiment, trained) if estimate else None
    reporter.stage("predicting")
    rows = 0
    columns: tuple[str, ...] = ()
    sure: list[Any] = []
    far = 0
    unknown = Unknown(trained.schema)
    with _writer(target, name) as write:
        for batch in raw_batches(files, trained.schema, costs=trained.cost_columns):
            if not batch.num_rows:
                continue
            prepared = prepare(batch, trained.schema)
            unknown.see(batch, prepared.categorical)
            answers, scores, decided = _answers(trained, batch, prepared, rows)
            write(answers)
            if known is not None:
                sure.append(confidences(scores, decided))
                far += int((np.abs(np.nan_to_num(prepared.numeric)) > _FAR).any(axis=1).sum())
            rows, columns = rows + batch.num_rows, _told(answers.column_names, trained.schema)
            reporter.advance(rows, rows, "rows")
        if not rows:
            raise DataError(
                f"{data if isinstance(data, str) else ', '.join(data)} holds no rows; nothing to predict"
            )
    unknown.say(reporter)
    found = None
    if known is not None:
        settings = experiment.evaluation
        estimated = estimate_accuracy(
            *known,
            np.concatenate(sure),
            confidence=settings.confidence,
            replicates=settings.replicates,
            seed=experiment.seed,
        )
        found = {**asdict(estimated), "assumes": ASSUMES, "far_rows": far}
        if far > _FEW_FAR * rows:
            reporter.notice(
                f"{far:,} of {plural(rows, 'row')} have a number more than {_FAR} standard deviations from its mean in training: "
                "there the model is often sure and wrong, and the estimate too good"
            )
    return PredictResult(folder.uri, to, rows, columns, unknown.rows, found)


def _held_out(
    run: RunFolder, experiment: Experiment, trained: TrainedModel
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return whether each held-out decision of a run was right, and how sure the model was: of its test rows, or validation rows.

    Raises
    ------
    ConfigError
        If its decisions are no classes with probabilities, or it has no such rows.
    """
    if trained.task not in ("binary", "multiclass"):
        raise ConfigError(f"--estimate is of decided classes, and the task is {trained.task}; leave it out")
    if decides_itself(experiment):
        raise ConfigError(
            "--estimate goes by the probabilities of classes, and this model's are of decisions (metacost); leave it out"
        )
    table = run.read_table(PREDICTIONS) if run.exists(PREDICTIONS) else None
    parts = [] if table is None else [part_of(table, split) for split in ("test", "validation")]
    held = next((part for part in parts if part.num_rows), None)
    if held is None:
        raise ConfigError(
            "--estimate compares with held-out rows, and the run has none (data.split); leave it out"
        )
    y, scores = labels_and_scores(held, trained.schema.target)
    decided = trained.decision.classes(scores, amounts_of(held, trained.decision.columns))
    return decided == y, confidences(scores, decided)


def labelled_predictions(
    trained: TrainedModel,
    data: str | Sequence[str],
    config: StorageConfig,
    reporter: Reporter,
    costs: Sequence[str] = (),
) -> pa.Table:
    """Score labelled raw rows; the table has the columns of `predictions.parquet` and ``data`` as its split.

    ``costs`` are cost columns to carry.

    Raises
    ------
    DataError
        If the data lack a column or a label, or are empty.
    """
    files = input_files(data, config)
    trained = trained.reading(files, config)
    schema = trained.schema
    private = bool(set(schema.target.columns) & set(schema.private))
    ids: list[pa.Array] = []
    labels: list[Any] = []
    scores: list[Any] = []
    carried: list[Any] = []
    columns = tuple(sorted({*costs, *trained.calibration.columns}))
    reporter.stage("scoring")
    unknown = Unknown(schema)
    rows = 0
    for batch in raw_batches(files, schema, labels=True, costs=columns):
        if not batch.num_rows:
            continue
        labels.append(encode_labels(batch, schema.target, private=private))
        prepared = prepare(batch, schema)
        unknown.see(batch, prepared.categorical)
        amounts = trained.amounts(batch, columns)
        carried.append(np.stack([amounts[name] for name in columns], axis=1) if columns else None)
        scores.append(trained.prepared_scores(prepared, amounts))
        ids += identity_column(trained, batch, rows)[1].chunks
        rows += batch.num_rows
        reporter.advance(rows, rows, "rows")
    if not rows:
        raise DataError(
            f"{data if isinstance(data, str) else ', '.join(data)} holds no rows; nothing to evaluate"
        )
    unknown.say(reporter)
    amounts = by_name(np.concatenate(carried), columns) if columns else {}
    judged = Judged(pa.chunked_array(ids), np.concatenate(labels), np.concatenate(scores), amounts)
    return predictions_table({"data": judged}, schema.target)


def identity_column(trained: TrainedModel, batch: pa.Table, start: int) -> tuple[str, pa.ChunkedArray]:
    """Return the id column's name and values where a batch has it, otherwise the numbers of its rows from `start`."""
    name = trained.schema.id
    if name is not None and name in batch.column_names:
        column = batch.column(name)
        if pa.types.is_dictionary(column.type):  # dictionaries may differ from batch to batch
            column = column.cast(column.type.value_type)
        return name, column
    return ROW, pa.chunked_array([pa.array(np.arange(start, start + batch.num_rows))])


def _told(names: Sequence[str], schema: Schema) -> tuple[str, ...]:
    private = schema.target.task != "multilabel" and set(schema.target.columns) & set(schema.private)
    return tuple(
        dict.fromkeys(
            "score_*" if private and n.startswith("score_") and n != schema.id else n for n in names
        )
    )


def _answers(
    trained: TrainedModel, batch: pa.Table, prepared: Prepared, start: int
) -> tuple[pa.Table, NDArray[np.float64], NDArray[Any]]:
    """Return the answers, with the scores and class codes that they are made of."""
    amounts = trained.amounts(batch, trained.cost_columns)
    scores = trained.prepared_scores(prepared, amounts)
    decided = trained.decide(scores, amounts)
    by_class = trained.task in ("binary", "multiclass")
    raw, codes = scores, trained.decision.classes(scores, amounts) if by_class else decided
    name, identity = identity_column(trained, batch, start)
    columns: dict[str, Any] = {name: identity}
    if trained.task == "multilabel":
        columns |= {f"prediction_{c}": decided[:, k] for k, c in enumerate(trained.classes)}
    else:
        columns["prediction"] = pa.array(decided)
    if trained.task == "binary":
        scores = np.stack([1.0 - scores, scores], axis=1)
    if trained.task != "regression":
        columns |= {f"score_{c}": scores[:, k] for k, c in enumerate(trained.classes)}
    return pa.table(columns), raw, codes


def _target(to: str, config: StorageConfig) -> tuple[Storage, str]:
    parent, _, name = to.rpartition("/")
    if not any(name.lower().endswith(suffix) for suffix in FORMATS):
        raise ConfigError(
            f"{to}: the file of predictions must end in {', '.join(FORMATS)}, which says what is written"
        )
    return Storage.open(parent or ("/" if to.startswith("/") else "."), config), name


def _refuse_precious(to: str, target: Storage, name: str, run: Storage, inputs: Sequence[InputFile]) -> None:
    """Refuse to write over what is read, or over the run; no --force does that."""
    place = _real(target, f"{target.path}/{name}")
    if place in {_real(target, file.path) for file in inputs}:
        raise StorageError(
            f"--to {to} is one of the files of --data, which would be lost; choose another --to"
        )
    if place.startswith(f"{_real(run, run.path)}/"):
        raise StorageError(
            f"--to {to} lies in the run folder, which holds the run's own files; choose another --to"
        )
    if target.is_local and os.path.isdir(place):
        raise StorageError(f"--to {to} is a folder; name a file")


def _real(storage: Storage, path: str) -> str:
    return os.path.realpath(path) if storage.is_local else path.rstrip("/")


@contextmanager
def _writer(target: Storage, name: str) -> Iterator[Callable[[pa.Table], None]]:
    """Open the file at the first batch's schema; it appears when the block ends well."""
    make = csv.CSVWriter if name.lower().endswith(".csv") else pq.ParquetWriter
    # The writer closes before its file does, also after an error, or it would complain when it is collected.
    with target.write_stream(name) as sink, ExitStack() as stack:
        opened: list[Any] = []

        def write(table: pa.Table) -> None:
            if not opened:
                opened.append(stack.enter_context(make(sink, table.schema)))
            opened[0].write_table(table)

        yield write
