"""Progress on the terminal: one live line, one permanent line an epoch, notices dim; plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from shoal.cli.output import stderr
from shoal.cluster.filesystems import redact
from shoal.cluster.progress import EpochRecord


class _Rate(ProgressColumn):
    """How many units a second, by rich's own average."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:,.0f} {unit}/s" if task.speed >= 10 else f"{task.speed:.1f} {unit}/s")


class Live:
    """A `Reporter` that draws on stderr.

    Parameters
    ----------
    console
        Where to draw; stderr by default. Without a terminal there is no live line and no control character.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stderr()
        self._progress: Progress | None = None
        self._task: object = None
        self._stage, self._score, self._began = "", "", time.monotonic()

    def notice(self, text: str) -> None:
        """Print a dim line that stays."""
        self._print(Text(f"  {redact(text)}", style="dim"))

    def stage(self, text: str) -> None:
        """Name the work on the live line, or on a line of its own."""
        self.done()
        self._stage, self._began = redact(text), time.monotonic()
        if self.console.is_terminal:
            self._show(0, None, "")
        else:
            self._print(Text(self._stage))

    def epoch(self, record: EpochRecord) -> None:
        """Print the epoch's line, which stays."""
        self._score = "" if record.value is None else f"{record.metric} {record.value:.4f}"
        self._print(Text(str(record)))

    def advance(self, done: int, total: int, what: str) -> None:
        """Move the live line."""
        if self.console.is_terminal:
            self._show(done, total, what)

    def done(self) -> None:
        """Take the live line away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _show(self, done: int, total: int | None, unit: str) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                _Rate(),
                TextColumn("{task.fields[score]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task(self._stage, total=total, score=self._score, unit=unit)
            self._progress.start()
        self._progress.update(
            self._task,  # type: ignore[arg-type]
            completed=done,
            total=total,
            score=self._score,
            unit=unit,
        )

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)
