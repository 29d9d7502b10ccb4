"""Fits in one Ray task or in a Ray Train worker group; the only module of this room that imports ray."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.train import get_preemption_info
from ray.train.torch import TorchConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.report_config import CheckpointUploadMode
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer

from shoal.cluster.config import ClusterConfig, format_duration
from shoal.cluster.errors import CollectiveTimeoutError, ResourceError, RunError, ShoalError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.relay import (
    RelayReporter,
    ask_for_checkpoint,
    asked_for_checkpoint,
    publish,
    relay,
    told_to_stop,
)
from shoal.cluster.resources import Shape, address_of
from shoal.cluster.storage import Storage
from shoal.training.checkpoints.files import FOLDER, Part, latest, write_part, written
from shoal.training.checkpoints.keeper import NONE_LEFT, Asked, Keeper, RunKeeper, prune
from shoal.training.config import DeepSpeedConfig
from shoal.training.device import pick_device
from shoal.training.interruption import stop_requests
from shoal.training.outcome import FitOutcome
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.training.strategies.deepspeed import DeepSpeed
from shoal.training.strategies.diagnosis import stuck_workers_named
from shoal.training.worker import FitJob, keeper_of, run_worker

# Ray Train's own settings, read by its driver and handed to its processes.
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also how late the end of a fit is noticed; 2 s by default
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
_ABORT_SECONDS = 3.0  # in which a controller that listens has answered (measured: under 1 s)
_RESIZE_SECONDS = 30.0  # between two looks whether a group could have another size
_START_SECONDS = 30.0  # that a group of several sizes has to start
_LOOK_SECONDS = 1.0  # between two looks for the checkpoint that a group changes its size from
_PREEMPTIONS = 100  # restarts after notices that a node goes away; each begins with a checkpoint


class _Elastic(ElasticScalingPolicy):
    """Lets a group shrink and grow: it grows from a fresh checkpoint, and does not wait for nodes without end.

    Ray Train ends the workers of a group that changes its size; what they did since their newest checkpoint is lost.
    """

    def __init__(self, scaling_config: ScalingConfig, run: Storage, run_uri: str, wait: float) -> None:
        super().__init__(scaling_config)
        self.run, self.run_uri, self.wait = run, run_uri, wait
        self._idle_since: float | None = None
        self._wanted: ResizeDecision | None = None
        self._before: list[str] = []  # checkpoints that are too old to change the size from
        self._looked = 0.0

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """Leave out nodes that are gone: what is reserved can be 20 s old."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        there = {node: has for node, has in reserved_resources.items() if node in alive}
        return super()._count_possible_workers(there)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many as there is room for; end the run where there is too little for too long."""
        decision = super().make_decision_for_non_running_worker_group()
        now = time.monotonic()
        self._wanted = None
        if isinstance(decision, ResizeDecision):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > self.wait:
            raise TimeoutError(f"there was no room for {self.scaling_config.min_workers} workers")
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Let the workers write a checkpoint before the group changes its size."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        now = time.monotonic()
        if isinstance(decision, ResizeDecision) and decision.num_workers != worker_group_state.num_workers:
            self._wanted = decision
            self._before = [self.run.child(path).path for _, path in written(self.run)]
            ask_for_checkpoint(self.run_uri)
        if self._wanted is None or now - self._looked < _LOOK_SECONDS:
            return NoopDecision()
        self._looked = now
        newest, _ = latest(self.run)
        if newest is None or newest.folder.path in self._before:
            return NoopDecision()
        wanted, self._wanted = self._wanted, None
        publish(
            self.run_uri,
            "notice",
            f"there is room for {wanted.num_workers} workers: they go on in place of "
            f"{worker_group_state.num_workers}, from a checkpoint",
        )
        return wanted


class _Trainer(TorchTrainer):
    """A TorchTrainer with a failure policy of its own, and without two processes that its fits do not need.

    Ray Data's manager imports Ray Data. The cleaner of placement groups outlives a killed driver, while the
    group itself ends with its controller or its driver (measured: within a second).
    """

    run_uri: str
    elastic: _Elastic | None = None
    controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unneeded)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = _LostWorkersOnly(
            cast(FailureConfig, self.run_config.failure_config), self.run_uri
        )
        if self.elastic is not None:
            arguments["scaling_policy"] = self.elastic
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the driver: Ray Train's handler would end it with exit code 0."""
        self.controller = controller

    def abort(self) -> None:
        """End the controller with its workers."""
        if self.controller is None:
            return
        try:
            ray.get(self.controller.abort.remote(), timeout=_ABORT_SECONDS)
        except RayActorError:  # it ended itself, and cannot answer
            return
        except GetTimeoutError:  # it is busy with the start of its group, which ends with it
            ray.kill(self.controller)


class _LostWorkersOnly(DefaultFailurePolicy):
    """Starts a group again where a worker was lost, never for an error that would only come again."""

    def __init__(self, failure_config: FailureConfig, run_uri: str) -> None:
        super().__init__(failure_config)
        self.run_uri = run_uri

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide, and tell the driver of a new start."""
        lost: list[str] = []
        if isinstance(training_failed_error, WorkerGroupError):
            for rank, error in training_failed_error.worker_failures.items():
                chain = _chain(error)
                ours = [e for e in chain if isinstance(e, ShoalError)]
                if any(not isinstance(e, CollectiveTimeoutError) for e in ours):
                    return FailureDecision.RAISE
                if not ours and isinstance(error, UserExceptionWithTraceback):
                    return FailureDecision.RAISE
                if not ours:
                    lost.append(f"worker {rank}")
        decision = super().make_decision(training_failed_error)
        if decision is FailureDecision.RETRY and not isinstance(training_failed_error, WorkerGroupError):
            publish(
                self.run_uri,
                "notice",
                "the group did not start in time; it tries again with the nodes there are",
            )
        elif decision is FailureDecision.RETRY:
            who = " and ".join(lost) or "a worker"
            publish(
                self.run_uri,
                "notice",
                f"{who} was lost; the group starts again, from its newest checkpoint if it wrote one "
                f"({self._worker_group_failures + self._preemption_failures} of {self.failure_config.max_failures})",
            )
        return decision


class _ReportedKeeper(RunKeeper):
    """Lets Ray Train's thread write a copy of each worker's part while training goes on, and delete old ones."""

    def __init__(self, job: FitJob, rank: int) -> None:
        config = job.training.checkpoint
        assert config is not None
        run = Storage.open(job.run_uri, job.storage)
        super().__init__(run, config.every.total_seconds(), config.keep)
        self.uri, self.rank, self._notice = job.run_uri, rank, False
        self._attempt = f"{FOLDER}/{ray.train.get_context().get_experiment_name()}"
        self._stored = Event()
        self._stored.set()

    def save(self, part: Part, name: str, last: bool) -> None:
        """Have a copy of the part written into the run folder, once the one before is."""
        # Ray skips a report when a worker was lost, and nothing is stored: then it is about to end this process too.
        self._stored.wait()
        self._stored.clear()
        copy, folder = part.copy(), self.run.child(f"{self._attempt}/{name}")

        def write(place: ray.train.Checkpoint, _: str) -> ray.train.Checkpoint:
            try:
                write_part(copy, folder)
            finally:
                self._stored.set()
            return place

        ray.train.report(
            {"step": part.position},
            checkpoint=ray.train.Checkpoint(folder.path, folder.filesystem),
            checkpoint_dir_name=name,
            checkpoint_upload_fn=write,
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if last else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # it is where it belongs from the start
        )

    def asked(self) -> Asked:
        """Ask the driver, on worker 0, and the nodes whether they are about to go away."""
        noticed = get_preemption_info() is not None
        first, self._notice = noticed and not self._notice, noticed
        if self.rank == 0 and told_to_stop(self.uri):
            return "stop"
        if self.rank == 0 and asked_for_checkpoint(self.uri):
            return "checkpoint"
        return "checkpoint" if first else ""


def fit_in_task(job: FitJob, reporter: Reporter) -> FitOutcome:
    """Fit in one Ray task, on an initialised Ray.

    Raises
    ------
    ShoalError
        The task's own error, or a RunError with what ended it.
    """
    task = ray.remote(num_cpus=job.cpus or 1, num_gpus=job.gpus, max_retries=0)(_task)
    begun = Event()
    with (
        stop_requests(job.training.checkpoint is not None, begun.is_set) as stopping,
        relay(job.run_uri, reporter, stopping, begun),
    ):
        reference = task.remote(job)
        try:
            outcome: FitOutcome = ray.get(reference)
        except KeyboardInterrupt:
            ray.cancel(reference, force=True)
            raise
        except RayError as error:
            raise _our_error({0: error}) from error
    return outcome


def _task(job: FitJob) -> FitOutcome:
    keeper = keeper_of(job, lambda: "stop" if told_to_stop(job.run_uri) else "")
    return run_worker(job, Strategy(pick_device(job.gpus)), RelayReporter(job.run_uri), keeper)


def fit_in_group(
    job: FitJob,
    shape: Shape,
    cluster: ClusterConfig,
    reporter: Reporter,
    ended: Callable[[], bool] = lambda: False,
) -> FitOutcome:
    """Fit in a Ray Train worker group, on an initialised Ray.

    A group that loses a worker starts again from the newest checkpoint, `cluster.max_failures` times at most.

    Parameters
    ----------
    job
        The fit; ``job.cpus`` and ``job.gpus`` are reserved for each worker.
    shape
        How many workers.
    cluster
        How long the group may take to start (`wait`), a worker to wait for the others in one operation, and how
        often the group may start again.
    reporter
        Hears of rank 0's progress.
    ended
        Says that the fit is to stop, as signals do: with a checkpoint, and a StoppedError.

    Raises
    ------
    ShoalError
        The first worker's own error, or a RunError with what ended the group.
    """
    timeout = cluster.collective_timeout.total_seconds()
    resources = {"CPU": job.cpus or 1.0}
    if job.gpus:
        resources["GPU"] = job.gpus
    workers, run = shape.num_workers, Storage.open(job.run_uri, job.storage)
    checkpoints = job.training.checkpoint
    problems = prune(run)
    for problem in problems:
        reporter.notice(f"a checkpoint is left out: {problem}")
    before = written(run)
    if problems and not before:
        reporter.notice(NONE_LEFT)
    begun = Event()
    with (
        stop_requests(checkpoints is not None, begun.is_set) as stopping,
        relay(job.run_uri, reporter, lambda: stopping() or ended(), begun),
    ):
        trainer = _Trainer(
            _group_worker,
            train_loop_config={"job": job, "timeout": timeout},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if job.gpus else "gloo",
                timeout_s=max(1, round(timeout)),
            ),
            scaling_config=ScalingConfig(
                num_workers=(workers, shape.max_workers) if shape.is_elastic else workers,
                use_gpu=bool(job.gpus),
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            ),
            run_config=RunConfig(
                name=secrets.token_hex(4),
                storage_path=run.child(FOLDER).path,
                storage_filesystem=run.filesystem,
                checkpoint_config=CheckpointConfig(num_to_keep=checkpoints.keep if checkpoints else None),
                # Lost capacity would otherwise be retried without limit, as an error of the controller.
                failure_config=FailureConfig(
                    max_failures=cluster.max_failures,
                    # A group of several sizes may have counted on a node that had just gone.
                    controller_failure_limit=cluster.max_failures if shape.is_elastic else 0,
                    max_preemption_failures=_PREEMPTIONS,
                ),
            ),
        )
        trainer.run_uri = job.run_uri
        if shape.is_elastic:
            scaling = cast(ScalingConfig, trainer.scaling_config)
            trainer.elastic = _Elastic(scaling, run, job.run_uri, cluster.wait.total_seconds())
        try:
            with _ray_train_settled(cluster, shape.is_elastic):
                result = cast(Result, trainer.fit())
        except KeyboardInterrupt:
            trainer.abort()
            raise
        except WorkerGroupError as error:
            raise _our_error(error.worker_failures) from error
        except ControllerError as error:
            raise _no_room(error, workers, cluster, ran=written(run) != before) from error
        except TrainingFailedError as error:
            raise RunError(f"training ended early: {_last_line(error)}") from error
        except RayError as error:  # of the controller: it could not be started, or was lost
            raise RunError(
                f"Ray could not run the group: {_first_line(error)}; look at the nodes' memory and at Ray's own logs there, or "
                "run again with --debug"
            ) from error
        finally:
            trainer.controller = None  # an error's traceback would keep it alive
            if not written(run):  # a group that never came so far leaves nothing behind
                run.delete(FOLDER)
    outcome = result.return_value
    if not isinstance(outcome, FitOutcome):
        raise RunError("the worker group ended without a result; see logs/ in the run folder")
    return outcome


@contextmanager
def _ray_train_settled(cluster: ClusterConfig, elastic: bool) -> Iterator[None]:
    """Set Ray Train's variables for the block."""
    wait = cluster.wait.total_seconds()
    if elastic:  # it starts where there is room, and soon finds out where there was none
        wait = min(wait, _START_SECONDS)
    wanted = _RAY_TRAIN | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{wait:g}"}
    local = address_of(cluster) is None
    if local:  # a process more, for notices that no machine of one's own gives
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _group_worker(config: dict[str, Any]) -> FitOutcome:
    job: FitJob = config["job"]
    with stuck_workers_named(config["timeout"]):
        device, chosen = pick_device(job.gpus), job.training.strategy
        strategy = DeepSpeed(device, chosen) if isinstance(chosen, DeepSpeedConfig) else DDP(device)
        reporter: Reporter = RelayReporter(job.run_uri) if strategy.rank == 0 else Silent()
        keeper = _ReportedKeeper(job, strategy.rank) if job.training.checkpoint else Keeper()
        return run_worker(job, strategy, reporter, keeper)


def _no_room(error: ControllerError, workers: int, cluster: ClusterConfig, ran: bool) -> ShoalError:
    """Say that a group did not start, or, where it ``ran``, that it could not start again."""
    failure, wait = error.controller_failure, format_duration(cluster.wait)
    # Ray names its own variables at length where a start takes too long.
    waited = isinstance(failure, WorkerGroupStartupTimeoutError | TimeoutError)
    why = "" if waited else f": {_first_line(failure)}"
    if ran:
        return RunError(
            f"workers were lost, and the cluster had no room for {workers} within {wait}{why}; the same command goes on from "
            "the newest checkpoint once it has, or with a lower cluster.num_workers"
        )
    return ResourceError(
        f"the group of {workers} workers did not start within {wait}, or was lost{why}; check the cluster's nodes and what "
        "others hold, raise cluster.wait, or lower cluster.num_workers"
    )


def _our_error(failures: Mapping[int, BaseException]) -> ShoalError:
    """Pick the error of the workers to show: one of ours first, a time-out that follows from another's failure last."""
    chains = {rank: _chain(error) for rank, error in failures.items()}
    causes = [c for chain in chains.values() for c in chain]
    ours = [c for c in causes if isinstance(c, ShoalError)]
    ours.sort(key=lambda e: isinstance(e, CollectiveTimeoutError))
    if ours:
        return ours[0]
    gone = (WorkerHealthCheckFailedError, WorkerCrashedError)
    lost = [str(rank) for rank, error in failures.items() if isinstance(error, gone)]
    if lost:
        who = f"worker {lost[0]} was" if len(lost) == 1 else f"workers {' and '.join(lost)} were"
        return RunError(
            f"{who} lost for good: the process crashed or was killed, often for want of memory. See logs/ in the run folder; "
            "the same command goes on from the newest checkpoint, if one was written; a group starts again by itself as often "
            "as cluster.max_failures allows"
        )
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
