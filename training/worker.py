"""One worker's part of a fit, from shards to the files of a run; the same for every placement."""

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shoal.cluster.components import Choice
from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import RunError, StorageError
from shoal.cluster.progress import EpochRecord, Reporter
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel
from shoal.training.batches import Dataset
from shoal.training.checkpoints.keeper import Asked, Keeper, RunKeeper
from shoal.training.config import MODELS, TrainingConfig
from shoal.training.costs import Costs
from shoal.training.device import own_threads
from shoal.training.history import History
from shoal.training.loop import Loop
from shoal.training.models import Model, build_model
from shoal.training.outcome import FitOutcome, Monitor
from shoal.training.scores import Judge, Judged, predictions_table
from shoal.training.soundness import require_finite
from shoal.training.stages import Reuse
from shoal.training.strategies.base import Strategy
from shoal.training.two_domains import Adapt


@dataclass(frozen=True)
class FitJob:
    """All that a worker needs to know; travels to other processes.

    Attributes
    ----------
    data_uri, run_uri
        The sharded dataset, and the run folder to write into.
    monitor
        Metric over the validation rows; None trains all epochs.
    cpus
        CPUs that a worker owns; None for all that this process may use.
    gpus
        GPUs that a worker owns.
    costs
        What decisions cost, for what follows from it in the fit.
    losses_alone
        Leave the history with the loss of each step, and nothing else.
    keeps_model
        Whether an estimator of scikit-learn's is stored; otherwise its parameters are, as text.
    reuse
        Makes the fit start from another one.
    adapt
        Makes the fit adapt to the rows of a target domain.
    scores
        Whether held-out rows are scored when the fit is done.
    decision_monitor
        In the place of `monitor` where a model learns decisions, and its probabilities are of these.
    """

    model: Config
    training: TrainingConfig
    seed: int
    data_uri: str
    run_uri: str
    monitor: Monitor | None
    storage: StorageConfig = field(default_factory=StorageConfig)
    cache_path: str | None = None
    cpus: float | None = None
    gpus: float = 0.0
    costs: Costs | None = None
    losses_alone: bool = False
    keeps_model: bool = True
    reuse: Reuse | None = None
    adapt: Adapt | None = None
    scores: bool = True
    decision_monitor: Monitor | None = None

    def of_losses_alone(self, training: TrainingConfig) -> "FitJob":
        """Return a job of which only the loss of each step is wanted, trained in another way."""
        return replace(self, training=training, losses_alone=True)


class RankLog:
    """A worker's own log, `logs/rank-00000.txt` in the run folder; also passes progress on."""

    def __init__(self, run: Storage, rank: int, reporter: Reporter) -> None:
        self.run, self.name, self.reporter = run, f"logs/rank-{rank:05d}.txt", reporter
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        """Add a line; the file is written whole, since object stores cannot append."""
        self.lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")
        self.run.write_text(self.name, "\n".join(self.lines) + "\n")

    def notice(self, text: str) -> None:
        """Log and pass on."""
        self.write(text)
        self.reporter.notice(text)

    def stage(self, text: str) -> None:
        """Log and pass on."""
        self.write(text)
        self.reporter.stage(text)

    def epoch(self, record: EpochRecord) -> None:
        """Log and pass on."""
        self.write(
            f"epoch {record.epoch}/{record.epochs} step {record.step} loss {record.train_loss:.6f} "
            f"{record.metric} {record.value} {record.rows_per_second:,.0f} rows/s"
        )
        self.reporter.epoch(record)

    def advance(self, done: int, total: int, what: str) -> None:
        """Pass on."""
        self.reporter.advance(done, total, what)

    def done(self) -> None:
        """Pass on."""
        self.reporter.done()


def keeper_of(job: FitJob, asked: Callable[[], Asked]) -> Keeper:
    """Return the keeper of a fit in one process."""
    config = job.training.checkpoint
    if config is None:
        return Keeper()
    return RunKeeper(Storage.open(job.run_uri, job.storage), config.every.total_seconds(), config.keep, asked)


def run_worker(
    job: FitJob,
    strategy: Strategy,
    reporter: Reporter,
    keeper: Keeper | None = None,
    relabel: Callable[[Dataset], Dataset] | None = None,
) -> FitOutcome:
    """Fit on this worker; rank 0 writes `model/`, `history.parquet` and `predictions.parquet`.

    ``relabel`` gives the training rows other labels.

    Raises
    ------
    StorageError
        If this worker's node does not see the run folder.
    ContractError, RunError
        As the loop.
    """
    threads = own_threads(job.cpus)
    run = Storage.open(job.run_uri, job.storage)
    if not run.exists("config.yaml"):
        raise StorageError(
            f"worker {strategy.rank} on {socket.gethostname()} does not see {run.uri}: on several nodes, "
            "cluster.storage_path must be a shared folder or object storage"
        )
    log = RankLog(run, strategy.rank, reporter)
    log.write(
        f"rank {strategy.rank} of {strategy.world_size} on {socket.gethostname()}, process {os.getpid()}, "
        f"{threads} threads, {strategy.device}, strategy {strategy.name}"
    )
    try:
        return _fit(job, strategy, run, log, keeper or Keeper(), threads, relabel)
    except Exception as error:
        log.write(f"failed: {type(error).__name__}: {error}")
        raise


def _fit(
    job: FitJob,
    strategy: Strategy,
    run: Storage,
    log: RankLog,
    keeper: Keeper,
    threads: int,
    relabel: Callable[[Dataset], Dataset] | None,
) -> FitOutcome:
    cache = Path(job.cache_path) if job.cache_path else None
    dataset = ShardedDataset.open(Storage.open(job.data_uri, job.storage), cache=cache)
    model = build_model(job.model, dataset.schema, job.seed)
    if model.is_estimator:
        return _fit_estimator(job, model, dataset, strategy, run, log, threads)
    loop, provenance = loop_of(job, model, dataset, strategy, log, keeper, relabel)
    model, tuning, adaptation = loop.model, loop.tuning, loop.adaptation
    if job.losses_alone:
        loop.loss_points = sys.maxsize
        outcome = loop.run()
        if strategy.rank == 0:
            run.write_table("history.parquet", loop.history.table())
        return outcome
    outcome = loop.run()
    if tuning is not None:
        tuning.finish()
    if adaptation is not None:
        outcome = replace(outcome, notices=(*outcome.notices, *adaptation.finish()))
    parts = judged_parts(loop.judge, model, dataset) if job.scores else {}
    if strategy.rank == 0:
        scores = {split: j.score for split, j in parts.items()}
        require_finite(model, scores, job.training, outcome.skipped, outcome.steps)
        schema = dataset.schema.model_copy(update={"target": loop.target})
        TrainedModel(model, schema, job.model, provenance=provenance).save(run)
        write_parts(run, parts, loop.history, dataset)
    log.write(f"done: {outcome.stopped}, {outcome.steps} steps")
    return outcome


def loop_of(
    job: FitJob,
    model: Model,
    dataset: ShardedDataset,
    strategy: Strategy,
    reporter: Reporter,
    keeper: Keeper | None = None,
    relabel: Callable[[Dataset], Dataset] | None = None,
) -> tuple[Loop, dict[str, Any]]:
    """Return the loop that does a fit of a network, and what its model is of.

    Parameters
    ----------
    job
        What to fit.
    model, dataset
        The job's, as `build_model` and `ShardedDataset.open` give them.
    strategy, reporter, keeper
        As the loop's.
    relabel
        Gives the training rows other labels.

    Raises
    ------
    ShoalError
        What the fit refuses.
    """
    key = dataset.manifest.key
    of = {
        "other input files, which have changed since": key,
        "another model, training or seed": _settings(job),
    }
    tuning = None
    provenance: dict[str, Any] = {"data": key}
    if job.reuse is not None:
        tuning = job.reuse(model, dataset.schema, job.training, job.seed)
        provenance["start"] = job.reuse.identity
    rows: Dataset = dataset if relabel is None else relabel(dataset)
    adaptation = None
    if job.adapt is not None:
        from shoal.training.ensembles.members import member_seed  # which imports this module

        before, first = {name for name, _ in model.named_parameters()}, model

        def member(number: int) -> Model:
            return build_model(job.model, dataset.schema, member_seed(job.seed, number)) if number else first

        model, adaptation, rows = job.adapt(member, rows, job.seed)
        if tuning is not None:
            beside = {name for name, _ in model.named_parameters()} - before
            tuning = tuning.also(beside, adaptation.still)
        provenance["adaptation"] = job.adapt.identity
    loop = Loop(
        model,
        rows,
        job.training,
        strategy,
        job.monitor,
        job.seed,
        reporter,
        keeper or Keeper(),
        of,
        costs=job.costs,
        tuning=tuning,
        adaptation=adaptation,
    )
    return loop, provenance


def _fit_estimator(
    job: FitJob,
    model: Model,
    dataset: ShardedDataset,
    strategy: Strategy,
    run: Storage,
    log: RankLog,
    threads: int,
) -> FitOutcome:
    from shoal.training.scikit.files import to_bytes
    from shoal.training.scikit.fit import fit_estimator, parameters_of
    from shoal.training.scikit.model import EstimatorModel

    assert isinstance(model, EstimatorModel)
    if job.keeps_model:
        to_bytes(model.estimator, model.path)  # what cannot be stored is refused before its fit
    judge = Judge(dataset, strategy, dataset.schema.target)
    outcome = fit_estimator(
        model, dataset, job.training, job.costs, job.seed, threads, job.monitor, judge, log
    )
    parts = judged_parts(judge, model, dataset)
    for name, judged in parts.items():
        if not np.isfinite(judged.score).all():
            raise RunError(
                f"the fit failed: predictions of {name} rows by {model.path} are no finite numbers"
            )
    if job.keeps_model:
        TrainedModel(model, dataset.schema, job.model, provenance={"data": dataset.manifest.key}).save(run)
    else:
        run.write_json("parameters.json", parameters_of(model.estimator))
    write_parts(run, parts, History(), dataset)
    log.write(f"done: {outcome.stopped}")
    return outcome


def judged_parts(judge: Judge, model: Model, dataset: ShardedDataset) -> dict[str, Judged]:
    """Return the scored parts that there are; on rank 0."""
    judged = {s: judge(model, s) for s in ("validation", "test") if sum(dataset.shard_rows(s))}
    return {split: found for split, found in judged.items() if found is not None}


def write_parts(run: Storage, parts: dict[str, Judged], history: History, dataset: ShardedDataset) -> None:
    """Write the history of a fit, and the predictions of the parts that were scored."""
    run.write_table("history.parquet", history.table())
    if parts:
        run.write_table("predictions.parquet", predictions_table(parts, dataset.schema.target))


def _settings(job: FitJob) -> str:
    """Return a hash of what determines a fit, its rows aside."""
    model = Choice(MODELS).plain(job.model)
    training = job.training.model_dump(mode="json", exclude={"checkpoint"})
    start = [one.identity for one in (job.reuse, job.adapt) if one is not None]
    text = json.dumps([model, training, job.seed, *start], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
