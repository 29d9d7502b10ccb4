"""Trials of several workers: each a worker group, whose epochs are heard from here."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

from shoal.cluster.config import ClusterConfig
from shoal.cluster.progress import EpochRecord, Silent
from shoal.cluster.resources import Shape
from shoal.cluster.storage import Storage
from shoal.training.config import CheckpointConfig
from shoal.training.outcome import FitOutcome
from shoal.training.worker import FitJob
from shoal.tuning.objective import Held, Score


@dataclass(frozen=True, repr=False)
class GroupFit:
    """A fit in a worker group, of which this process only hears; ended early, it gives the group's room back.

    The group itself is waited for in a thread: nothing is fitted there.
    """

    job: FitJob
    config: str
    shape: Shape
    cluster: ClusterConfig

    def scores(self, _held: Held) -> Iterator[Score]:
        """Start the group, and yield the validation score after each of its epochs."""
        from shoal.training.placements import fit_in_group  # imports ray

        heard: SimpleQueue[EpochRecord | FitOutcome | BaseException] = SimpleQueue()
        ended = threading.Event()
        # Workers look up whether to stop where they write checkpoints.
        training = self.job.training.model_copy(
            update={"checkpoint": self.job.training.checkpoint or CheckpointConfig()}
        )
        job = replace(self.job, training=training, scores=False)
        run = Storage.open(job.run_uri, job.storage)
        run.delete()  # what a killed run left: its scores were heard by nobody
        run.write_text("config.yaml", self.config)

        def work() -> None:
            try:
                heard.put(fit_in_group(job, self.shape, self.cluster, _Heard(heard), ended.is_set))
            except BaseException as error:  # raised where it is heard
                heard.put(error)

        thread = threading.Thread(target=work, name="shoal-trial", daemon=True)
        thread.start()
        kept = float("nan")
        restores = training.early_stopping is not None and training.early_stopping.restore_best
        try:
            while not isinstance(found := heard.get(), FitOutcome):
                if isinstance(found, BaseException):
                    raise found
                value = float("nan") if found.value is None else found.value
                if found.best or not restores:
                    kept = value
                yield Score(value, kept)
        finally:
            ended.set()
            thread.join()
            run.delete()


class _Heard(Silent):
    """A reporter that keeps the epochs for another thread."""

    def __init__(self, heard: "SimpleQueue[EpochRecord | FitOutcome | BaseException]") -> None:
        self.heard = heard

    def epoch(self, record: EpochRecord) -> None:
        """Keep the record."""
        self.heard.put(record)
