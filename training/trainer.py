"""A fit, wherever it is placed."""

from shoal.cluster.config import ClusterConfig
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Shape
from shoal.training.device import pick_device
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
        How many workers, with what, where. `task` and `group` need an initialised Ray.
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
            keeper = keeper_of(job, lambda: "stop" if stopping() else "")
            return run_worker(job, Strategy(pick_device(job.gpus)), reporter, keeper)
    from shoal.training.placements import (
        fit_in_group,
        fit_in_task,
    )  # imports ray, which inline fits do without

    if shape.placement == "task":
        return fit_in_task(job, reporter)
    return fit_in_group(job, shape, cluster, reporter)
