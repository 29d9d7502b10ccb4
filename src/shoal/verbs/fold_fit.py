"""One fit of a cross-validation: everything that learns from rows happens here, on the fold's training rows alone."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shoal.cluster.errors import RunError, ShoalError, StoppedError, StorageError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Shape
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.reading import Reading
from shoal.cluster.storage import Storage
from shoal.evaluation.crossval.folds import OneFold
from shoal.experiment import Experiment
from shoal.verbs.dataset import ShardResult
from shoal.verbs.dealing import learns_from_validation
from shoal.verbs.decisions import plan_of_rows, settle, steering_of
from shoal.verbs.judge import metrics_of
from shoal.verbs.starting import starting

if TYPE_CHECKING:
    from shoal.evaluation.deciding.judging import Judging
    from shoal.evaluation.metrics import Metric
    from shoal.training.outcome import FitOutcome
    from shoal.training.worker import FitJob

DATA = "data"
_KEPT_FOR_RESUMING = ("checkpoints", "logs", "members")


@dataclass(frozen=True)
class FoldFit:
    """What is to be fitted; travels to tasks.

    Attributes
    ----------
    alternative, experiment
        Its name, and what it says.
    config
        As its `config.yaml` has it.
    fold
        Its number, from 0.
    inner
        The number of a fold inside that one; None for the fold itself.
    uri
        Where the fit is stored.
    shape
        How it is spread.
    """

    alternative: str
    experiment: Experiment
    config: str
    fold: int
    inner: int | None
    uri: str
    shape: Shape

    @property
    def run(self) -> RunFolder:
        """Its folder."""
        return RunFolder.open(self.uri, self.experiment.cluster.storage)

    @property
    def is_done(self) -> bool:
        """Whether it was stored whole; one that was damaged since is done again."""
        run = self.run
        if not run.exists("metrics.json") or not run.exists("predictions.parquet"):
            return False
        try:
            return isinstance(run.read_json("metrics.json").get("scores"), dict)
        except (StorageError, AttributeError):
            return False


Place = Callable[["FitJob"], "FitOutcome"]


def in_this_process(job: "FitJob") -> "FitOutcome":
    """Train as a task does."""
    from shoal.training.trainer import fit_here

    return fit_here(job)


def attempt(fit: FoldFit, place: Place = in_this_process, reading: Reading | None = None) -> str:
    """Fit; return the error that ended it, in words, or nothing.

    A fit that failed is tried once more: storage, memory and workers may be there again. ``reading`` is the input, where it was
    read before.

    Raises
    ------
    StoppedError
        If the fit was asked to stop.
    """
    error: ShoalError | None = None
    for _ in range(2):
        try:
            fit_fold(fit, place, reading=reading)
        except StoppedError:
            raise
        except (StorageError, RunError) as found:
            error = found
        except ShoalError as found:  # a wrong request, which stays wrong
            error = found
            break
        else:
            return ""
    with suppress(StorageError):
        fit.run.child(DATA).delete()
    return str(error)


def fit_fold(
    fit: FoldFit, place: Place, reporter: Reporter | None = None, reading: Reading | None = None
) -> None:
    """Shard a fold, fit, decide and judge; `metrics.json` in the fit's folder comes last.

    Raises
    ------
    ShoalError
        What went wrong, in words for the user.
    """
    import shoal.training.worker  # noqa: F401  # seconds of importing it are none of the fit's
    from shoal.cluster.sharding.service import shard
    from shoal.verbs.fit import job_of

    experiment, run = fit.experiment, fit.run
    started = time.perf_counter()
    run.write_text("config.yaml", fit.config)
    data = run.child(DATA)
    manifest = shard(
        experiment.data,
        experiment.seed,
        data,
        storage_config=experiment.cluster.storage,
        reporter=reporter or Silent(),
        costs=experiment.cost_columns,
        resplit=OneFold(
            experiment.evaluation.cv, fit.fold, fit.inner, bool(learns_from_validation(experiment))
        ),
        reading=reading,
        known=starting(experiment).known,
    )
    sharded = time.perf_counter()
    decisions = plan_of_rows(experiment, manifest)
    task = manifest.schema_.target.task
    metrics = metrics_of(experiment, task)
    job = job_of(
        experiment,
        ShardResult(data.uri, manifest, False),
        fit.shape,
        run,
        steering_of(experiment, manifest, metrics[0], decisions),
    )
    outcome = place(replace(job, keeps_model=False))  # its weights or, of scikit-learn's, its parameters stay
    fitted = time.perf_counter()
    judging = settle(run, decisions, manifest.schema_.target)
    scores = _scores(run, metrics, manifest.schema_.target, judging)
    run.write_json("data.json", manifest.model_dump(mode="json", by_alias=True))
    facts: dict[str, Any] = {
        "fold": fit.fold,
        "inner": fit.inner,
        "rows": {part: split.rows for part, split in manifest.splits.items()},
        "scores": scores,
        "epochs": outcome.epochs,
        "best_epoch": outcome.best_epoch,
        "stopped": outcome.stopped,
        "threshold": judging.rule.decision.threshold if judging.decides and task == "binary" else None,
        "seconds": {
            "shard": sharded - started,
            "fit": fitted - sharded,
            "judge": time.perf_counter() - fitted,
        },
        "notices": [*decisions.start.notices, *judging.notices, *outcome.notices],
    }
    data.delete()
    for name in _KEPT_FOR_RESUMING:
        run.delete(name)
    run.write_json("metrics.json", facts)


def _scores(
    run: Storage, metrics: "list[Metric]", target: Target, judging: "Judging"
) -> dict[str, float | None]:
    """Return each metric's value on the rows that the fold judges; None where it has none."""
    from shoal.evaluation.evaluate import amounts_of, labels_and_scores, part_of

    rows = part_of(run.read_table("predictions.parquet"), "test")
    (y, scores), amounts = labels_and_scores(rows, target), amounts_of(rows, judging.rule.columns)
    values = {metric.name: metric.value(y, scores, judging.rule, amounts=amounts) for metric in metrics}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
