"""A fit, wherever it is placed."""

from collections.abc import Callable

from shoal.cluster.config import ClusterConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import FIT_MEMORY, Part, Shape
from shoal.cluster.sharding.names import plural
from shoal.training.checkpoints.keeper import Asked
from shoal.training.device import pick_device
from shoal.training.ensembles.fit import fit_ensemble
from shoal.training.ensembles.members import here, members_of, not_asked
from shoal.training.interruption import stop_requests
from shoal.training.outcome import FitOutcome
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, keeper_of, run_worker


def fit(job: FitJob, shape: Shape, cluster: ClusterConfig, reporter: Reporter | None = None) -> FitOutcome:
    """Fit a model and write `model/`, `history.parquet` and `predictions.parquet` into the run folder.

    A fit that was killed goes on from its newest checkpoint. SIGTERM and Ctrl-C stop it with one.

    Parameters
    ----------
    job
        What to fit, on which sharded dataset, into which run folder (whose `config.yaml` is there already).
    shape
        How many workers, with what, where. `task` and `group` need an initialised Ray, but for an ensemble.
    cluster
        Time-outs.
    reporter
        Hears of every epoch.

    Returns
    -------
    FitOutcome
        The same for any placement and number of workers, but for times.

    Raises
    ------
    ShoalError
        What went wrong, in words for the user.
    """
    reporter = reporter or Silent()
    if shape.placement == "inline":
        with stop_requests(job.training.checkpoint is not None) as stopping:
            return fit_here(job, reporter, lambda: "stop" if stopping() else "")
    if job.training.ensemble is not None:
        return _members_as_tasks(job, shape, cluster, reporter)
    from shoal.training.placements import (
        fit_in_group,
        fit_in_task,
    )  # imports ray, which inline fits do without

    if shape.placement == "task":
        return fit_in_task(job, reporter)
    return fit_in_group(job, shape, cluster, reporter)


def fit_here(
    job: FitJob, reporter: Reporter | None = None, asked: Callable[[], Asked] = not_asked
) -> FitOutcome:
    """Fit in this process; the members of an ensemble one after another.

    Parameters
    ----------
    job, reporter
        As for `fit`.
    asked
        Says whether to stop, or to write a checkpoint.
    """
    reporter = reporter or Silent()
    if job.training.ensemble is not None:
        return fit_ensemble(job, here(asked), reporter)
    return run_worker(job, Strategy(pick_device(job.gpus)), reporter, keeper_of(job, asked))


def _members_as_tasks(job: FitJob, shape: Shape, cluster: ClusterConfig, reporter: Reporter) -> FitOutcome:
    """Fit the members of an ensemble as Ray tasks, on a Ray of their own where there is none."""
    from shoal.cluster.tasks import tasks  # imports ray, which inline fits do without

    part = Part("members", 1, shape.cpus_per_worker, shape.gpus_per_worker, float(FIT_MEMORY))
    with tasks(cluster, part, reporter, most=len(members_of(job))) as several:
        reporter.notice(f"{plural(several.count, 'member')} at a time")
        return fit_ensemble(job, several.map, reporter)
