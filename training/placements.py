"""Fits in one Ray task or in a Ray Train worker group; the only module of this room that imports ray."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import ray
from ray.exceptions import RayTaskError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer

from shoal.cluster.config import ClusterConfig, format_duration
from shoal.cluster.errors import CollectiveTimeoutError, ResourceError, RunError, ShoalError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.relay import RelayReporter, relay
from shoal.training.device import pick_device
from shoal.training.loop import FitOutcome
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.training.strategies.diagnosis import stuck_workers_named
from shoal.training.worker import FitJob, run_worker

# Ray Train's own settings, read by its driver and handed to its processes.
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also how late the end of a fit is noticed; 2 s by default
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more, for notices that no fit here reacts to
}


class _Trainer(TorchTrainer):
    """A TorchTrainer without two processes that its fits do not need.

    Ray Data's manager imports Ray Data. The cleaner of placement groups outlives a killed driver, while the
    group itself ends with its controller or its driver (measured: within a second).
    """

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unneeded)]


def fit_in_task(job: FitJob, reporter: Reporter) -> FitOutcome:
    """Fit in one Ray task, on an initialised Ray.

    Raises
    ------
    ShoalError
        The task's own error, or a RunError with what ended it.
    """
    task = ray.remote(num_cpus=job.cpus or 1, num_gpus=job.gpus, max_retries=0)(_task)
    with relay(job.run_uri, reporter):
        reference = task.remote(job)
        try:
            outcome: FitOutcome = ray.get(reference)
        except KeyboardInterrupt:
            ray.cancel(reference, force=True)
            raise
        except ray.exceptions.RayError as error:
            raise _our_error([error]) from error
    return outcome


def _task(job: FitJob) -> FitOutcome:
    return run_worker(job, Strategy(pick_device(job.gpus)), RelayReporter(job.run_uri))


def fit_in_group(job: FitJob, workers: int, cluster: ClusterConfig, reporter: Reporter) -> FitOutcome:
    """Fit in a Ray Train worker group with DDP, on an initialised Ray.

    Parameters
    ----------
    job
        The fit; ``job.cpus`` and ``job.gpus`` are reserved for each worker.
    workers
        W.
    cluster
        How long the group may take to start (`wait`), and a worker to wait for the others in one operation.
    reporter
        Hears of rank 0's progress.

    Raises
    ------
    ShoalError
        The first worker's own error, or a RunError with what ended the group.
    """
    timeout = cluster.collective_timeout.total_seconds()
    resources = {"CPU": job.cpus or 1.0}
    if job.gpus:
        resources["GPU"] = job.gpus
    with tempfile.TemporaryDirectory(prefix="shoal-train-") as scratch, relay(job.run_uri, reporter):
        trainer = _Trainer(
            _group_worker,
            train_loop_config={"job": job, "timeout": timeout},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if job.gpus else "gloo",
                timeout_s=max(1, round(timeout)),
            ),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=bool(job.gpus), resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="fit",
                storage_path=scratch,
                # Lost capacity would otherwise be retried without limit, as an error of the controller.
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )
        try:
            with _ray_train_settled(cluster.wait.total_seconds()):
                result = cast(Result, trainer.fit())
        except WorkerGroupError as error:
            raise _our_error(list(error.worker_failures.values())) from error
        except ControllerError as error:
            raise ResourceError(
                f"the group of {workers} workers did not start within {format_duration(cluster.wait)}, or was lost: "
                f"{_first_line(error.controller_failure)}; check the cluster's nodes and what others hold, raise "
                "cluster.wait, or lower cluster.num_workers"
            ) from error
        except TrainingFailedError as error:
            raise RunError(f"training ended early: {_last_line(error)}") from error
    outcome = result.return_value
    if not isinstance(outcome, FitOutcome):
        raise RunError("the worker group ended without a result; see logs/ in the run folder")
    return outcome


@contextmanager
def _ray_train_settled(wait: float) -> Iterator[None]:
    """Set Ray Train's variables for the block, and take back the handler that it sets for Ctrl-C.

    The handler would keep the controller's process alive, and it ends the driver with exit code 0.
    """
    wanted = _RAY_TRAIN | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{wait:g}"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _group_worker(config: dict[str, Any]) -> FitOutcome:
    job: FitJob = config["job"]
    with stuck_workers_named(config["timeout"]):
        strategy = DDP(pick_device(job.gpus))
        reporter: Reporter = RelayReporter(job.run_uri) if strategy.rank == 0 else Silent()
        return run_worker(job, strategy, reporter)


def _our_error(errors: list[BaseException]) -> ShoalError:
    """Pick the error to show: one of ours first, a time-out that follows from another's failure last."""
    causes = [c for error in errors for c in _chain(error)]
    ours = [c for c in causes if isinstance(c, ShoalError)]
    ours.sort(key=lambda e: isinstance(e, CollectiveTimeoutError))
    if ours:
        return ours[0]
    return RunError(f"a worker failed: {_last_line(causes[-1])}; see logs/ in the run folder")


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error and what it wraps, outermost first."""
    found: list[BaseException] = []
    unwrap: tuple[Callable[[BaseException], Any], ...] = (
        lambda e: getattr(e, "_base_exc", None),
        lambda e: e.cause if isinstance(e, RayTaskError) else None,
        lambda e: e.__cause__,
    )
    while error is not None and error not in found:
        found.append(error)
        error = next((inner for f in unwrap if (inner := f(found[-1])) is not None), None)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
