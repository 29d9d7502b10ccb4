"""Where checkpoints go, and who may ask for one: nobody, the run folder, or Ray Train (in `placements`)."""

import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from shoal.cluster.errors import StorageError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints.files import FOLDER, Checkpoint, Part, latest, write_part, written

NONE_LEFT = "no checkpoint is left that can be used: training begins anew"

Asked = Literal["", "checkpoint", "stop"]
REACHED = "logs/steps.json"  # how far a fit came, so that steps which are done again are counted
_PUT_SECONDS = 30.0  # between two puts of it to an object store, which take their time


class Keeper:
    """Keeps nothing and is asked for nothing: a fit in memory."""

    idle = True  # nobody ever asks, and nothing is ever due
    every = math.inf  # seconds between checkpoints

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that verifies, and what is wrong with newer ones."""
        return None, []

    def reached(self) -> tuple[int, int]:
        """Return a step to which the fit came before this start, and how many had been done again until then."""
        return 0, 0

    def note(self, position: int, repeated: int) -> None:
        """Let the next start know what `reached` returns; called by worker 0 alone."""

    def name(self, position: int) -> str:
        """Return a new checkpoint's name, which worker 0 tells the others."""
        return f"step-{position:012d}-{secrets.token_hex(3)}"

    def save(self, part: Part, name: str, last: bool) -> None:
        """Write a worker's part; with ``last``, return when it is stored."""

    def finish(self) -> None:
        """Return when all that was given to `save` is stored."""

    def asked(self) -> Asked:
        """Return what is asked of this worker now."""
        return ""


class RunKeeper(Keeper):
    """Copies what it is given and writes it into the run folder while training goes on; for one worker.

    Parameters
    ----------
    run
        The run folder.
    every
        Seconds between checkpoints; infinity writes one only when asked.
    keep
        How many to keep.
    asked
        Says what is asked of this process.
    """

    idle = False

    def __init__(
        self, run: Storage, every: float, keep: int, asked: Callable[[], Asked] = lambda: ""
    ) -> None:
        self.run, self.every, self.keep, self._asked = run, every, keep, asked
        self._attempt = f"{FOLDER}/{secrets.token_hex(4)}"
        self._writer = ThreadPoolExecutor(1, "shoal-checkpoint")
        self._writing: Future[None] | None = None
        self._noted = -math.inf

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that verifies, and what is wrong with newer ones."""
        return latest(self.run)

    def reached(self) -> tuple[int, int]:
        """Return a step to which the fit came before this start, and how many had been done again until then."""
        try:
            found = (
                self.run.read_json(REACHED) if self.run.exists(REACHED) else {"position": 0, "repeated": 0}
            )
            return int(found["position"]), int(found["repeated"])
        except (StorageError, KeyError, TypeError, ValueError):  # only a count: a damaged one stops nothing
            return 0, 0

    def note(self, position: int, repeated: int) -> None:
        """Let the next start know what `reached` returns; called by worker 0 alone."""
        now = time.monotonic()
        if self.run.is_local or now - self._noted >= _PUT_SECONDS:
            self._noted = now
            self.run.write_json(REACHED, {"position": position, "repeated": repeated})

    def save(self, part: Part, name: str, last: bool) -> None:
        """Write a copy of the part, then delete what is beyond `keep`; one at a time.

        Raises
        ------
        StorageError
            If this one with ``last``, or the one before, could not be written.
        """
        self.finish()
        self._writing = self._writer.submit(self._write, part.copy(), name)
        if last:
            self.finish()

    def finish(self) -> None:
        """Return when all that was given to `save` is stored.

        Raises
        ------
        StorageError
            If it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, part: Part, name: str) -> None:
        write_part(part, self.run.child(f"{self._attempt}/{name}"))
        for _, path in written(self.run)[self.keep :]:
            self.run.delete(path)

    def asked(self) -> Asked:
        """Return what is asked of this process now."""
        return self._asked()


def prune(run: Storage) -> list[str]:
    """Delete every checkpoint of earlier attempts but the newest that verifies; return what is wrong with newer ones."""
    newest, problems = latest(run)
    kept = "" if newest is None else newest.folder.path
    for _, path in written(run):
        if run.child(path).path != kept:
            run.delete(path)
    for attempt in run.list(FOLDER):
        inside = run.list(f"{FOLDER}/{attempt}")
        if not any(name.startswith("step-") for name in inside):
            run.delete(f"{FOLDER}/{attempt}")
    return problems
