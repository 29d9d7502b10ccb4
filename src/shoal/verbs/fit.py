"""train: from an experiment to a finished run folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cluster.components import load_imported
from shoal.cluster.errors import ConfigError, DataError, RunError, StorageError
from shoal.cluster.machine import free_disk
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Demand, Part, Shape, Totals, address_of, check, plan
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.manifest import Manifest
from shoal.cluster.sharding.names import plural
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, given, to_dict
from shoal.verbs.dataset import ShardResult, shard
from shoal.verbs.decisions import Steering, plan_of_rows, settle, steering_of, training_of
from shoal.verbs.judge import DATA, judge, rows_of
from shoal.verbs.provenance import Stages, provenance
from shoal.verbs.runs import (
    PROVENANCE,
    RUN_FILES,
    claimed,
    provenance_of,
    refuse_incomplete,
    run_uri,
    scores_of,
)
from shoal.verbs.starting import starting
from shoal.verbs.writable import require_cache

if TYPE_CHECKING:
    from shoal.evaluation.deciding.plan import Plan
    from shoal.training.outcome import FitOutcome
    from shoal.training.worker import FitJob


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, the scores of its parts with intervals, and how the fit went."""

    run: str
    report: str
    data: str
    task: str
    scores: dict[str, Any]
    fit: dict[str, Any]
    seconds: dict[str, float]
    was_complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "run": self.run,
            "report": self.report,
            "data": self.data,
            "metrics": self.scores,
            "fit": self.fit,
            "seconds": self.seconds,
            "was_complete": self.was_complete,
        }


def train(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> TrainResult:
    """Fit, judge and report; the results are in the run folder.

    A finished run is not computed again: its results are returned.

    Parameters
    ----------
    experiment
        What to do, or the path of its file.
    out
        The run folder; by default ``<storage_path>/<name>-train-<hash of the experiment>``.
    name
        What the folder's name begins with; by default the experiment file's stem.
    reporter
        Hears of progress; everything is written to the run's `log.txt` as well.
    command
        What to write down as the command; this process's own by default.

    Raises
    ------
    ShoalError
        With the cause and the fix: `RequestError` before anything started, `RunError` afterwards.
    """
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.scikit.unused import refuse_estimator

    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    run = RunFolder.open(run_uri(experiment, "train", name, out), experiment.cluster.storage)
    load_imported(
        experiment, experiment.training
    )  # one that is not there is found now, not after the sharding
    shape, demand = plan(experiment.cluster, needs_group(experiment.training))
    refuse(experiment.training, shape)
    refuse_estimator(experiment.model, experiment.training, shape)
    require_cache(experiment.cluster, shape)
    with claimed(run, to_dict(experiment), reporter, "metrics.json") as heard:
        if run.is_complete:
            known = _known(run)
            _refuse_other_data(run, experiment, heard)
            heard.notice(f"this run is complete; nothing is computed again. Delete {run.uri} to repeat it")
            return known
        return _train(experiment, run, name, shape, demand, heard, command)


def _train(
    experiment: Experiment,
    run: RunFolder,
    name: str,
    shape: Shape,
    demand: Demand,
    reporter: Reporter,
    command: Sequence[str] | None,
) -> TrainResult:
    stages = Stages(reporter)
    if experiment.transfer is not None and experiment.transfer.adaptation is not None:
        reporter.notice(
            "transfer.adaptation is for shoal adapt: this fit learns from the source's rows alone"
        )
    if experiment.tuning is not None:
        reporter.notice("tuning is for shoal tune: this fit has the values of the experiment")
    with stages.stage("shard", "sharding"):
        data = shard(experiment, name=name, reporter=reporter, verify=False)
    wanted, shape = shape, shape.within(data.manifest.n_shards)
    if shape != wanted:
        reporter.notice(capped(data.manifest.n_shards))
    return fit_into(run, experiment, data, shape, demand, stages, reporter, command)


def fit_into(
    run: RunFolder,
    experiment: Experiment,
    data: ShardResult,
    shape: Shape,
    demand: Demand,
    stages: Stages,
    reporter: Reporter,
    command: Sequence[str] | None,
    change: "Callable[[FitJob], FitJob]" = lambda job: job,
) -> TrainResult:
    """Fit to rows that are sharded, judge and report; ``change`` may alter the fit.

    Raises
    ------
    ShoalError
        As `train`.
    """
    from shoal.evaluation.metrics import resolve_scoring

    decisions = plan_of_rows(experiment, data.manifest)
    for notice in decisions.start.notices:
        reporter.notice(notice)
    settings, task = experiment.evaluation, data.manifest.schema_.target.task
    monitor = resolve_scoring(settings.scoring, task, costs=settings.costs is not None)[0]
    job = change(
        job_of(experiment, data, shape, run, steering_of(experiment, data.manifest, monitor, decisions))
    )
    demand += copies(experiment, data, shape)
    try:
        outcome = place(job, shape, demand, experiment, stages, reporter)
        return _finish(run, experiment, data, shape, decisions, outcome, stages, reporter, command)
    except StorageError as error:  # a disk that fills up under way is no wrong request
        raise RunError(str(error)) from error


def capped(shards: int) -> str:
    """Say that a group does not grow as far as was asked."""
    return f"the group grows to {plural(shards, 'worker')} at most, one for each logical shard (data.shards)"


def job_of(
    experiment: Experiment,
    data: ShardResult,
    shape: Shape,
    run: RunFolder,
    steered: "Steering | None" = None,
) -> "FitJob":
    """Return what the workers of an experiment's fit need to know."""
    from shoal.training.worker import FitJob
    from shoal.verbs.decisions import costs_of

    return FitJob(
        model=experiment.model,
        training=training_of(experiment, data.manifest.schema_),
        seed=experiment.seed,
        data_uri=data.uri,
        run_uri=run.uri,
        monitor=None if steered is None else steered.monitor,
        storage=experiment.cluster.storage,
        cache_path=experiment.cluster.cache_path,
        cpus=None if shape.placement == "inline" else shape.cpus_per_worker,
        gpus=shape.gpus_per_worker,
        costs=costs_of(experiment, data.manifest.schema_),
        reuse=starting(experiment).reuse,
        decision_monitor=None if steered is None else steered.of_decisions,
    )


def copies(experiment: Experiment, data: ShardResult, shape: Shape) -> Demand:
    """Return the disk that copies of remote shards still take; refuse it where the disk is this machine's and too small.

    A cluster does not say what disks its nodes have: there a copy that does not fit is an error of the worker.
    """
    config = experiment.cluster
    here = address_of(config) is None or shape.placement == "inline"
    if config.cache_path is None or not here:
        return Demand()
    cache = Path(config.cache_path)
    size = ShardedDataset.open(Storage.open(data.uri, config.storage), cache=cache).bytes_to_copy()
    demand = Demand((Part("caches", 1, disk=size),))
    check(demand, Totals(math.inf, math.inf, disk=free_disk(cache), where=f"the disk of {cache}"))
    return demand


def place(
    job: "FitJob", shape: Shape, demand: Demand, experiment: Experiment, stages: Stages, reporter: Reporter
) -> "FitOutcome":
    """Run a fit where its shape says, on a Ray of its own where it needs one."""
    from shoal.training.trainer import fit

    if shape.placement == "inline":
        with stages.stage("fit", "training"):
            return fit(job, shape, experiment.cluster, reporter)
    if job.training.ensemble is not None:  # its members are tasks, whose room is reserved by themselves
        with stages.stage("fit", "training members as tasks"):
            return fit(job, shape, experiment.cluster, reporter)
    from shoal.cluster.session import session

    with (
        stages.stage("fit", f"training with {shape.workers}"),
        session(experiment.cluster, demand, reporter),
    ):
        return fit(job, shape, experiment.cluster, reporter)


def _finish(
    run: RunFolder,
    experiment: Experiment,
    data: ShardResult,
    shape: Shape,
    decisions: "Plan",
    outcome: "FitOutcome",
    stages: Stages,
    reporter: Reporter,
    command: Sequence[str] | None,
) -> TrainResult:
    """Judge the predictions that the fit left, and write what a finished run has."""
    from shoal.evaluation.report import write_report
    from shoal.training.checkpoints.files import FOLDER
    from shoal.training.checkpoints.keeper import REACHED
    from shoal.training.ensembles.members import MEMBERS

    manifest = data.manifest
    if not run.exists("config.yaml"):
        raise RunError(
            f"{run.uri} was deleted, or moved, while it was trained in: what is left there is no run; delete it and train again"
        )
    for notice in outcome.notices:
        reporter.notice(notice)
    reporter.notice(f"time: {outcome.time}")
    with stages.stage("evaluate", "scoring"):
        judging = settle(run, decisions, manifest.schema_.target)
        for notice in judging.notices if judging is not decisions.start else ():
            reporter.notice(notice)
        scores = judge(run.read_table("predictions.parquet"), manifest.schema_, experiment, judging)
    if experiment.data.group is not None:
        reporter.notice(
            f"the intervals take rows as independent; rows of one {experiment.data.group!r} are not, so they are too narrow"
        )
    run.write_json(DATA, manifest.model_dump(mode="json", by_alias=True))
    fit_facts = asdict(outcome)
    seen: dict[str, Any] = {
        "seed": experiment.seed,
        "data_key": manifest.key,
        "data_path": data.uri,
        "cluster": _shape(shape),
        "fit": _finite(fit_facts),
        "command": command,
    }
    with stages.stage("report", "writing the report"):
        write_report(run, manifest, scores, provenance(stages, **seen), judging)
    run.write_json(PROVENANCE, provenance(stages, **seen))
    run.write_json("metrics.json", scores)  # last: it says that the run is complete
    for name in (FOLDER, REACHED, MEMBERS):
        run.delete(name)
    reporter.done()
    return _result(run, manifest, scores, run.read_json(PROVENANCE))


def _known(run: Storage) -> TrainResult:
    from shoal.training.description import read_model

    if not any(run.exists(name) for name in RUN_FILES if name != "predictions.parquet"):
        raise StorageError(f"{run.uri} holds scores, not a training run; choose another --out")
    refuse_incomplete(run, RUN_FILES)
    read_model(run)  # a damaged one is refused, as shoal predict does
    result = _result(run, rows_of(run), scores_of(run), provenance_of(run))
    return TrainResult(**{**result.__dict__, "was_complete": True})


def _refuse_other_data(run: Storage, experiment: Experiment, reporter: Reporter) -> None:
    """Results of files that have changed since are not shown as if they were of these.

    Raises
    ------
    ConfigError
        If the input files are not those of the run.
    """
    from shoal.cluster.sharding.service import sharding_key

    try:
        key = sharding_key(
            experiment.data,
            experiment.seed,
            experiment.cluster.storage,
            experiment.cost_columns,
            starting(experiment).known,
        )
    except DataError:
        also = "" if experiment.transfer is None else ", or what it started from,"
        reporter.notice(f"the input files of this run{also} are not there any more")
        return
    if key != rows_of(run).key:
        raise ConfigError(
            f"the input files changed since {run.uri} was trained (their names, sizes or times; a file that was copied or "
            "touched has another time), or this version reads them in another way: choose another --out, or delete that "
            "folder to train anew"
        )


def _result(run: Storage, manifest: Manifest, scores: dict[str, Any], facts: dict[str, Any]) -> TrainResult:
    return TrainResult(
        run.uri,
        f"{run.uri.rstrip('/')}/report.html",
        facts["data"]["path"],
        manifest.schema_.target.task,
        scores,
        facts["fit"],
        facts["seconds"],
    )


def _shape(shape: Shape) -> dict[str, Any]:
    return asdict(shape)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a fit without a monitored score has none."""
    return {k: None if isinstance(v, float) and v != v else v for k, v in values.items()}


__all__ = ["Manifest", "ShardResult", "TrainResult", "train"]
