"""Trials on Ray Tune: small fits in actors that are used again, groups of workers beside them; this module imports ray."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from shoal.cluster.errors import DivergedError, ShoalError
from shoal.cluster.resources import Part
from shoal.cluster.storage import Storage
from shoal.tuning.objective import Held, TrialFit
from shoal.tuning.sources import Source, Wait
from shoal.tuning.space import Values
from shoal.tuning.stopping import Rule, signed
from shoal.tuning.trials import Running, Trial

FOLDER = "tune"  # Ray Tune's own, gone when the sweep ends
# Read by Ray Tune in this process.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's, which ends the sweep
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # trials are stored by us as they end
    "TUNE_WARN_THRESHOLD_S": "1000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_NO_CPU = float(1 << 20)  # bytes of memory, the whole reservation of an actor that only hears of a group


@dataclass(frozen=True)
class Sweep:
    """What is tried, and how.

    Attributes
    ----------
    source
        Gives values.
    fit
        Makes a trial's work of its index (from 0) and its values.
    count
        Trials that the source has at most.
    at_once
        How many run at a time.
    part
        What each takes; no CPU where its fit is a group of workers, which reserves its own.
    by_epoch
        Whether a trial stops after each score, so that a rule may end it.
    rule
        Ends trials early; None for none.
    greater_is_better
        The direction of scores.
    max_failures
        How often a trial whose process was lost starts again.
    shared
        What all trials have in common; put into the object store once.
    over
        Hears of each trial as it ends.
    """

    source: Source
    fit: Callable[[int, Values], TrialFit]
    count: int
    at_once: int
    part: Part
    by_epoch: bool
    rule: Rule | None
    greater_is_better: bool
    max_failures: int
    shared: Any
    over: Callable[[Trial], None]


def sweep(job: Sweep, run: Storage) -> None:
    """Do all trials, on an initialised Ray; nothing of them is left there when it ends.

    Raises
    ------
    RunError
        If Ray Tune itself fails.
    ShoalError
        What `Sweep.over` raises.
    """
    ours = _Ours(job)
    resources = {"CPU": job.part.cpus, "GPU": job.part.gpus, "memory": job.part.memory or _NO_CPU}
    trainable = tune.with_resources(
        tune.with_parameters(_Actor, shared=job.shared, by_epoch=job.by_epoch),
        PlacementGroupFactory([{name: amount for name, amount in resources.items() if amount}]),
    )
    folder = run.child(FOLDER)
    with _settled(job.at_once):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=job.count,
                max_concurrent_trials=None,
                search_alg=_Search(ours, job.at_once),
                scheduler=_Scheduler(ours),
                reuse_actors=job.part.cpus > 0,  # one that hears of a group ends with it
                trial_name_creator=lambda trial: f"trial-{trial.config['trial'] + 1:06d}",
                trial_dirname_creator=lambda trial: f"trial-{trial.config['trial'] + 1:06d}",
            ),
            run_config=tune.RunConfig(
                name=FOLDER,
                storage_path=run.path,
                storage_filesystem=run.filesystem,
                callbacks=[_Callback(ours)],
                failure_config=tune.FailureConfig(max_failures=job.max_failures),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            folder.delete()
    if ours.error is not None:
        raise ours.error


class _Ours:
    """What search, scheduler and callback of a sweep have in common: the trials under way, by Ray's name for them."""

    def __init__(self, job: Sweep) -> None:
        self.job = job
        self.running: dict[str, Running] = {}
        self.heard_of: dict[str, int] = {}  # results of each
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave all out where Ray Tune stores its own state, from which nothing is ever read."""
        return {}

    def begin(self, name: str) -> dict[str, Any] | Wait | None:
        """Return the configuration of the next trial; None where there are no more."""
        while (found := self.job.source.next()) is not None:
            if isinstance(found, Wait):
                return found
            number, values = found
            try:
                fit = self.job.fit(number - 1, values)
            except ShoalError as error:  # values that do not go together
                self.tell(Trial(number, values, "failed", None, error=str(error)))
                continue
            self.running[name] = Running(number, values)
            return {"trial": number - 1, "fit": fit}
        return None

    def heard(self, name: str, result: Mapping[str, Any]) -> bool:
        """Take a result of a trial; say whether the trial is to end."""
        trial = self.running[name]
        self.heard_of[name] = result["training_iteration"]
        trial.seconds = result["seconds"]
        for value, kept, parts in result["scores"]:
            if not parts:
                trial.curve.append(value)
            trial.kept, trial.parts = kept, parts
            rule = self.job.rule
            if rule is None:
                continue
            if rule.ends(trial.trial, len(trial.curve), signed(kept, self.job.greater_is_better)):
                return not result["done"]
        return False

    def again(self, name: str) -> None:
        """Forget what is known of a trial whose process was lost: it begins anew."""
        if name in self.running:
            self.running[name] = Running(self.running[name].trial, self.running[name].values)
            self.heard_of.pop(name, None)

    def end(self, name: str, result: Mapping[str, Any], lost: str = "") -> None:
        """Take the end of a trial, of whose last result the scheduler does not hear."""
        if name not in self.running:
            return
        if result.get("training_iteration", 0) > self.heard_of.pop(name, 0):
            self.heard(name, result)
        trial = self.running.pop(name)
        if lost:
            self.tell(trial.over("failed", lost))
        elif result.get("status") in ("failed", "diverged"):
            self.tell(trial.over(result["status"], result["error"]))
        else:
            self.tell(trial.over("finished" if result.get("status") == "finished" else "stopped"))

    def tell(self, trial: Trial) -> None:
        """Pass a trial on that is over."""
        self.job.source.tell(trial)
        try:
            self.job.over(trial)
        except Exception as error:  # Ray Tune must not take it for its own
            self.error = self.error or error


class _Actor(tune.Trainable):
    """Does one trial after the other, and keeps the mapped rows between them."""

    def setup(self, config: dict[str, Any], shared: Any = None, by_epoch: bool = True) -> None:
        """Take what all trials have in common, and begin the first."""
        self._held, self._by_epoch = Held(shared), by_epoch
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Go on to the next score, or to the end of the trial where nothing looks at scores on the way."""
        started = time.perf_counter()
        scores: list[tuple[float, float, dict[str, float | None]]] = []
        status, error = "", ""
        try:
            for score in self._scores:
                parts = {name: part if math.isfinite(part) else None for name, part in score.parts.items()}
                scores.append((score.value, score.kept, parts))
                if self._by_epoch:
                    break
            else:
                status = "finished"
        except DivergedError as found:
            status, error = "diverged", str(found)
        except ShoalError as found:
            status, error = "failed", str(found)
        except Exception as found:  # of a model of the user's own, say
            status, error = "failed", f"{type(found).__name__}: {found}"
        self._seconds += time.perf_counter() - started
        return {
            "scores": scores,
            "status": status,
            "error": error,
            "seconds": self._seconds,
            "done": bool(status),
        }

    def cleanup(self) -> None:
        """End the trial."""
        self._end()

    def _begin(self, config: dict[str, Any]) -> None:
        self._seconds = 0.0
        self._scores: Iterator[Any] = config["fit"].scores(self._held)

    def _end(self) -> None:
        close = getattr(self._scores, "close", None)
        if close is not None:
            close()  # so that what a trial started ends with it

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: a trial whose process is lost begins anew."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing."""


class _Search(Searcher):
    """Feeds Ray Tune from a source, as many trials as may run at a time."""

    def __init__(self, ours: _Ours, at_once: int) -> None:
        super().__init__()
        self.ours, self.at_once = ours, at_once

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's configuration; None while enough are under way."""
        if self.ours.error is not None:
            return Searcher.FINISHED
        if len(self.ours.running) >= self.at_once:
            return None
        found = self.ours.begin(trial_id)
        return Searcher.FINISHED if found is None else None if isinstance(found, Wait) else found

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Take the end of a trial."""
        lost = "its process was lost: it crashed or was killed, often for want of memory" if error else ""
        self.ours.end(trial_id, result or {}, lost)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: trials are stored as they end."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class _Scheduler(FIFOScheduler):
    """Ends trials where the rule says so."""

    def __init__(self, ours: _Ours) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours = ours

    def on_trial_result(self, _controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Hear of a trial's scores."""
        if self.ours.error is not None or self.ours.heard(trial.trial_id, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class _Callback(tune.Callback):
    """Hears of trials that start again."""

    def __init__(self, ours: _Ours) -> None:
        self.ours = ours

    def on_trial_recover(self, iteration: int, trials: Any, trial: RayTrial, **info: Any) -> None:  # noqa: ARG002
        """Forget the scores of a process that was lost."""
        self.ours.again(trial.trial_id)


@contextmanager
def _settled(at_once: int) -> Iterator[None]:
    """Set Ray Tune's variables for the block."""
    # Else Ray Tune starts one actor after the other, and where the first is done with a trial before the second is up, it takes
    # the trial over and the second is called off, again and again.
    settings = _SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(at_once)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
