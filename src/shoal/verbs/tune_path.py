"""tune with `tuning.path`: all strengths of a linear model's penalty, chosen among by folds, and the chosen one fitted."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shoal.cluster.errors import ConfigError, ResourceError
from shoal.cluster.machine import local_totals
from shoal.cluster.progress import Reporter
from shoal.cluster.resources import Shape, format_size
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, dump_yaml, from_dict
from shoal.training.config import LinearConfig
from shoal.tuning.config import PathConfig
from shoal.tuning.trials import WORK
from shoal.verbs.provenance import Stages, provenance
from shoal.verbs.runs import PROVENANCE
from shoal.verbs.tune_space import plain

if TYPE_CHECKING:
    from shoal.tuning.path import Choice, Path

STRENGTHS, WEIGHTS, BEST, BEST_RUN = "path.parquet", "weights.parquet", "best.yaml", "best"
_SHARE = 0.5  # of the machine's memory, for the rows as one matrix of float64
_HERE = Shape(1, 1.0, 0.0, "inline")


@dataclass(frozen=True)
class PathResult:
    """A finished path: what was chosen, and what its model comes to."""

    run: str
    path: dict[str, Any]
    scores: dict[str, Any]
    task: str
    seconds: dict[str, float]
    report: str
    was_complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "run": self.run,
            "path": self.path,
            "metrics": self.scores,
            "seconds": self.seconds,
            "report": self.report,
            "was_complete": self.was_complete,
        }


def require_linear(experiment: Experiment) -> None:
    """Refuse a path of another model.

    Raises
    ------
    ConfigError
        With what to write.
    """
    if not isinstance(experiment.model, LinearConfig):
        raise ConfigError(
            "tuning.path is of a linear model, whose path begins where every weight is 0; set model: linear, or vary "
            "training.l1.proximal with tuning.space"
        )


def tune_path(
    experiment: Experiment, run: RunFolder, name: str, reporter: Reporter, command: Sequence[str] | None
) -> PathResult:
    """Fit along the path on every fold and on all training rows, choose a strength, fit it again and judge it.

    Raises
    ------
    ShoalError
        As `shoal.verbs.tune.tune`.
    """
    from shoal.tuning.path import choose, fit, highest, loss_of, strengths
    from shoal.tuning.path_page import write_path_report
    from shoal.verbs.dataset import shard
    from shoal.verbs.dealing import dealt
    from shoal.verbs.fit import train
    from shoal.verbs.tune import Quiet

    assert experiment.tuning is not None
    config = experiment.tuning.path
    assert config is not None
    stages = Stages(reporter)
    stand_in = _with_model(experiment, config, 1.0, 1, "regression")  # its rows are those of all strengths
    with stages.stage("shard", "looking at the rows"):
        data = shard(stand_in, name=name, reporter=reporter, verify=False)
        schema = data.manifest.schema_
        task = schema.target.task
        if task not in ("binary", "regression"):
            raise ConfigError(
                f"tuning.path is for two classes and for numbers, and the task is {task}; use tuning.space with "
                "training.l1.proximal"
            )
        found = dealt({"": _with_model(experiment, config, 1.0, 1, task)}, _HERE, reporter)
        for notice in (*found.notices, found.folds.reason):
            reporter.notice(notice)
    classes, loss = task == "binary", loss_of(task == "binary")
    with stages.stage("fit", f"{plural(config.strengths, 'strength')} on {plural(len(found.folds), 'fold')}"):
        x, y, columns = _rows(
            ShardedDataset.open(Storage.open(data.uri, experiment.cluster.storage)), "train"
        )
        along = strengths(highest(x, y, config.l1), config.strengths, config.ratio)
        whole = fit(x, y, along, config.l1, classes)
        losses = []
        for fold in range(len(found.folds)):
            dataset = _fold(experiment, found.reading, run, fold)
            (a, b, _), (c, d, _) = _rows(dataset, "train"), _rows(dataset, "test")
            losses.append(loss(d, fit(a, b, along, config.l1, classes).scores(c)))
            reporter.advance(fold + 1, len(found.folds), "folds")
        run.delete(WORK)
    choice = choose(np.array(losses))
    at = choice.best if config.choose == "best" else choice.one_standard_error
    run.write_table(STRENGTHS, _strengths(whole, choice, at))
    run.write_table(WEIGHTS, _weights(whole, columns))
    chosen = _with_model(experiment, config, float(along[at]), len(y), task)
    run.write_text(BEST, dump_yaml(chosen))
    scores: dict[str, Any] = {}
    if experiment.tuning.refit:
        with stages.stage("refit", "fitting the chosen strength again"):
            scores = train(
                chosen, f"{run.uri.rstrip('/')}/{BEST_RUN}", name=name, reporter=Quiet(reporter)
            ).scores
    facts = provenance(
        stages,
        seed=experiment.seed,
        data_key=data.manifest.key,
        data_path=data.uri,
        cluster={"placement": "inline", "num_workers": 1},
        fit={},
        command=command,
    )
    run.write_json(PROVENANCE, facts)
    metrics = {
        "tuning": {"path": _facts(config, whole, choice, at, task, found.folds.reason)},
        "best": scores,
        "task": task,
        "seconds": facts["seconds"],
    }
    with stages.stage("report", "writing the report"):
        write_path_report(run, metrics, facts)
    run.write_json("metrics.json", metrics)  # last: it says that the run is complete
    reporter.done()
    return path_result(run, metrics)


def path_result(run: RunFolder, metrics: dict[str, Any], was_complete: bool = False) -> PathResult:
    """Return what a finished path's files say."""
    return PathResult(
        run.uri,
        metrics["tuning"]["path"],
        metrics["best"],
        metrics["task"],
        metrics["seconds"],
        f"{run.uri.rstrip('/')}/report.html",
        was_complete,
    )


def _facts(
    config: PathConfig, whole: "Path", choice: "Choice", at: int, task: str, folds: str
) -> dict[str, Any]:
    def of(i: int) -> dict[str, Any]:
        return {
            "strength": float(whole.strengths[i]),
            "loss": float(choice.mean[i]),
            "error": float(choice.error[i]),
            "nonzero": int(whole.nonzero[i]),
        }

    return {
        "penalty": config.penalty,
        "l1_ratio": config.l1,
        "loss": "log loss" if task == "binary" else "squared error",
        "folds": folds,
        "columns": int(whole.weights.shape[1]),
        "strengths": len(whole.strengths),
        "choose": config.choose,
        "chosen": of(at),
        "best": of(choice.best),
        "one_standard_error": of(choice.one_standard_error),
        "at_the_end": choice.best == len(whole.strengths) - 1,
    }


def _with_model(
    experiment: Experiment, config: PathConfig, strength: float, rows: int, task: str
) -> Experiment:
    """Return the experiment with the estimator of scikit-learn's that minimises the same objective at one strength."""
    from sklearn.linear_model import LogisticRegression

    if task == "regression":
        kind = {"l1": "Lasso", "l2": "Ridge", "elastic_net": "ElasticNet"}[config.penalty]
        alpha = strength * rows if config.penalty == "l2" else strength
        model: dict[str, Any] = {"alpha": alpha}
        if config.penalty == "elastic_net":
            model["l1_ratio"] = config.l1
        if config.penalty != "l2":
            model |= {"tol": 1e-8, "max_iter": 100_000}
    else:
        kind = "LogisticRegression"
        model = {"C": 1.0 / (rows * strength)}
        if config.penalty == "l2":
            model |= {"solver": "newton-cholesky", "tol": 1e-8}
        else:
            model |= {"solver": "saga", "l1_ratio": config.l1, "tol": 1e-6, "max_iter": 10_000}
            if inspect.signature(LogisticRegression).parameters["penalty"].default == "l2":  # before 1.8
                model["penalty"] = "elasticnet"
    values = {
        **plain(experiment),
        "training": {},
        "model": {"import": f"sklearn.linear_model:{kind}", **model},
    }
    return from_dict(values)


def _fold(experiment: Experiment, reading: Any, run: RunFolder, fold: int) -> ShardedDataset:
    """Shard the rows of a fold, with statistics of its own training rows."""
    from shoal.cluster.progress import Silent
    from shoal.cluster.sharding.service import shard
    from shoal.evaluation.crossval.folds import OneFold

    folder = run.child(f"{WORK}/fold-{fold + 1:03d}")
    shard(
        experiment.data,
        experiment.seed,
        folder,
        storage_config=experiment.cluster.storage,
        reporter=Silent(),
        costs=experiment.cost_columns,
        resplit=OneFold(experiment.evaluation.cv, fold, None, False),
        reading=reading,
    )
    return ShardedDataset.open(folder)


def _rows(dataset: ShardedDataset, part: str) -> tuple[Any, Any, list[str]]:
    """Return the rows of a part as scikit-learn's models have them: float64 ``[n, E]``, targets ``[n]``, names of columns.

    Raises
    ------
    ResourceError
        If they do not fit into memory.
    """
    from sklearn.linear_model import Ridge

    from shoal.training.scikit.model import EstimatorModel

    schema = dataset.schema
    if schema.target.task == "binary":
        from sklearn.linear_model import LogisticRegression

        model = EstimatorModel(LogisticRegression(), schema, "linear")
    else:
        model = EstimatorModel(Ridge(), schema, "linear")
    names = _names(schema)
    size, memory = 8 * dataset.rows(part) * len(names), local_totals().memory
    if memory is not None and size > _SHARE * memory:
        raise ResourceError(
            f"tuning.path: {dataset.rows(part):,} rows of {len(names):,} columns are {format_size(size)} as one matrix, more "
            f"than half of this machine's {format_size(memory)}; use fewer columns (data.drop, data.max_categories)"
        )
    shards = [dataset.shard(part, v) for v in range(dataset.n_shards)]
    x = model.matrix(
        np.concatenate([s.numeric for s in shards]), np.concatenate([s.categorical for s in shards])
    )
    x = np.asfortranarray(x.toarray() if hasattr(x, "toarray") else x)
    return x, np.concatenate([np.asarray(s.label, np.float64) for s in shards]), names


def _names(schema: Schema) -> list[str]:
    """Return what each column of the matrix is; categories of a private column by number."""
    names = [part if len(c.parts) > 1 else c.name for c in schema.numeric for part in c.parts]
    names += [f"{c.name} is missing" for c in schema.numeric if c.has_missing]
    for column in schema.categorical:
        private = column.name in schema.private
        known = [f"category {i}" if private else str(v) for i, v in enumerate(column.categories, 1)]
        names += [f"{column.name} = {value}" for value in ("missing", "unknown", *known)]
    return names


def _strengths(whole: "Path", choice: "Choice", at: int) -> pa.Table:
    count = len(whole.strengths)
    return pa.table(
        {
            "strength": whole.strengths,
            "nonzero": whole.nonzero,
            "loss": choice.mean,
            "error": choice.error,
            "intercept": whole.intercepts,
            "chosen": np.arange(count) == at,
        }
    )


def _weights(whole: "Path", columns: list[str]) -> pa.Table:
    """Return the weights that are not 0, a row each."""
    at, column = np.nonzero(whole.weights)
    return pa.table(
        {
            "strength": whole.strengths[at],
            "column": pa.array(columns).take(pa.array(column)),
            "weight": whole.weights[at, column],
        }
    )
