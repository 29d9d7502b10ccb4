"""The fit of a population's member: its start's fit goes on for some epochs, and hands on its state."""

from collections.abc import Iterator
from dataclasses import dataclass

from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.training.checkpoints.files import FOLDER, Checkpoint, Part, latest, write_part
from shoal.training.checkpoints.keeper import Keeper
from shoal.training.device import own_threads, pick_device
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, loop_of
from shoal.tuning.objective import Held, Score


@dataclass(frozen=True, repr=False)
class MemberFit:
    """Some epochs of a fit on one worker, from the state that another one left.

    Attributes
    ----------
    job
        The whole fit, with `training.changes` as the model goes through them.
    state
        The folder where its state goes.
    start
        That of the state it goes on from; where there is none any more, the fit is done from its first epoch, with the same
        result.
    first, last
        Its epochs, from 1.
    """

    job: FitJob
    state: str
    start: str | None
    first: int
    last: int

    def scores(self, held: Held) -> Iterator[Score]:
        """Train, and yield the validation score after each epoch."""
        own_threads(self.job.cpus)
        dataset = held.dataset(self.job)
        model = build_model(self.job.model, dataset.schema, self.job.seed)
        keeper = _Handed(
            None if self.start is None else Storage.open(self.start, self.job.storage),
            Storage.open(self.state, self.job.storage),
        )
        loop, _ = loop_of(self.job, model, dataset, Strategy(pick_device(self.job.gpus)), Silent(), keeper)
        loop.fingerprint = {}  # the start had other values to come; whose state it is, its folder says
        for value in loop.epochs():
            epoch = loop.position // loop.plan.steps_per_epoch
            if epoch == self.last:
                loop.save(last=True)
            if epoch >= self.first:
                yield Score(value, loop.kept)
            if epoch == self.last:
                return


class _Handed(Keeper):
    """Reads from one folder, and writes into another."""

    def __init__(self, start: Storage | None, state: Storage) -> None:
        self._start, self._state = start, state

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the state to go on from, and what is wrong with one that is of no use."""
        return (None, []) if self._start is None else latest(self._start)

    def save(self, part: Part, name: str, last: bool) -> None:  # noqa: ARG002
        """Write the state."""
        write_part(part, self._state.child(f"{FOLDER}/last/{name}"))
