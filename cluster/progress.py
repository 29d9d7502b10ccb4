"""Progress: what long work says while it runs, and who listens."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from shoal.cluster.filesystems import explained, redact


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a fit, as the reporters show it.

    Parameters
    ----------
    epoch, epochs
        This epoch, from 1, and how many there will be.
    step, steps
        Global optimiser steps done, and in all.
    train_loss
        Mean over the epoch's rows.
    metric, value
        The first metric of `evaluation.scoring` and its value on the validation rows, if there are any.
    best
        Whether this is the best epoch so far.
    seconds
        Wall time of the epoch, evaluation included.
    rows_per_second
        Training rows of all workers.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    train_loss: float
    metric: str
    value: float | None
    best: bool
    seconds: float
    rows_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        value = (
            "" if self.value is None else f"  {self.metric} {self.value:.4f}{' (best)' if self.best else ''}"
        )
        return (
            f"epoch {self.epoch}/{self.epochs}  loss {self.train_loss:.4f}{value}"
            f"  {self.rows_per_second:,.0f} rows/s  {self.seconds:.1f} s"
        )


class Reporter(Protocol):
    """Who hears of progress: the command line's progress line, the log, both, or nobody."""

    def notice(self, text: str) -> None:
        """Say something that the user should know: what was inferred, left out, taken over."""

    def stage(self, text: str) -> None:
        """Say which part of the work begins."""

    def epoch(self, record: EpochRecord) -> None:
        """Tell how an epoch ended."""

    def advance(self, done: int, total: int, what: str) -> None:
        """Tell how far the stage is, in units of `what`; called often."""

    def done(self) -> None:
        """Tell that the work has ended, well or not; later calls are allowed and open a new stage."""


class Silent:
    """A reporter that says nothing."""

    def notice(self, text: str) -> None:
        """Do nothing."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int, what: str) -> None:
        """Do nothing."""

    def done(self) -> None:
        """Do nothing."""


class Log:
    """A reporter that appends to a text file, a line at a time with the time of day.

    Each line is opened, written and closed, so a killed run keeps what it said.

    Parameters
    ----------
    path
        The file. Its folder is made. A former run's lines stay.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stage = ""

    def notice(self, text: str) -> None:
        """Write the notice."""
        self.write(f"notice: {text}")

    def stage(self, text: str) -> None:
        """Write the stage's name."""
        self._stage = text
        self.write(text)

    def epoch(self, record: EpochRecord) -> None:
        """Write the epoch's line."""
        self.write(str(record))

    def advance(self, done: int, total: int, what: str) -> None:
        """Write the stage's end; the steps on the way would drown the rest."""
        if done >= total:
            self.write(f"{self._stage}: {total:,} {what}".removeprefix(": "))

    def done(self) -> None:
        """Write that the work ended."""
        self.write("done")

    def write(self, text: str) -> None:
        """Append a text, one stamped line for each of its lines, credentials redacted.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{stamp} {line}\n" for line in redact(text).splitlines())
        with explained("write", str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as log:
                log.write(lines)


class Several:
    """Tell several reporters the same."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = tuple(reporters)

    def notice(self, text: str) -> None:
        """Tell everyone."""
        for reporter in self.reporters:
            reporter.notice(text)

    def stage(self, text: str) -> None:
        """Tell everyone."""
        for reporter in self.reporters:
            reporter.stage(text)

    def epoch(self, record: EpochRecord) -> None:
        """Tell everyone."""
        for reporter in self.reporters:
            reporter.epoch(record)

    def advance(self, done: int, total: int, what: str) -> None:
        """Tell everyone."""
        for reporter in self.reporters:
            reporter.advance(done, total, what)

    def done(self) -> None:
        """Tell everyone."""
        for reporter in self.reporters:
            reporter.done()
