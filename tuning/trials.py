"""What is known of trials: records, a file each while the run goes on, and tables in the end."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from shoal.cluster.errors import StorageError
from shoal.cluster.storage import Storage
from shoal.training.early_stopping import NOISE

Status = Literal["finished", "stopped", "continued", "diverged", "failed"]
STATUSES: tuple[Status, ...] = ("finished", "stopped", "continued", "diverged", "failed")
_WHOLE = ("finished", "stopped")  # whose model is there to be chosen
FOLDER = "trials"
WORK = "work"  # folders of fits that need one while they run


@dataclass(frozen=True)
class Trial:
    """A trial that is over.

    Attributes
    ----------
    trial
        Its number, from 1.
    values
        What it set in the experiment.
    status
        Trained to its end, stopped early by the scheduler, to be gone on with in the next generation, left the numbers, or came
        to nothing.
    score
        What it is compared by; None without one.
    curve
        The score after each epoch, or fold; None where there was none.
    seconds
        Of its work.
    error
        Why it failed or diverged.
    parts
        Scores by which it is ranked among the others.
    """

    trial: int
    values: dict[str, Any]
    status: Status
    score: float | None
    curve: tuple[float | None, ...] = ()
    seconds: float = 0.0
    error: str = ""
    parts: dict[str, float | None] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many scores it has."""
        return len(self.curve)

    @property
    def counts(self) -> bool:
        """Whether it may be the best."""
        return self.status in _WHOLE and self.score is not None


@dataclass
class Running:
    """A trial under way."""

    trial: int
    values: dict[str, Any]
    kept: float = math.nan
    curve: list[float] = field(default_factory=list)
    seconds: float = 0.0
    parts: dict[str, float | None] = field(default_factory=dict)

    def over(self, status: Status, error: str = "") -> Trial:
        """Return the trial as it ended; one whose score is no number has diverged."""
        ranked_later = status == "finished" and bool(self.parts)
        if status in ("finished", "stopped") and not ranked_later and not math.isfinite(self.kept):
            status, error = "diverged", error or "its score is no finite number"
        score = self.kept if status in ("finished", "stopped") and math.isfinite(self.kept) else None
        curve = tuple(v if math.isfinite(v) else None for v in self.curve)
        return Trial(self.trial, self.values, status, score, curve, round(self.seconds, 3), error, self.parts)


def write(run: Storage, trial: Trial) -> None:
    """Store a trial that is over; it appears whole."""
    run.write_json(_name(trial.trial), asdict(trial))


def read(run: Storage, trials: Sequence[int]) -> dict[int, Trial]:
    """Return the trials of these numbers that are over already; one whose file is damaged is done again."""
    found = {}
    there = set(run.child(FOLDER).list()) if run.exists(FOLDER) else set()
    for number in trials:
        if _name(number).rpartition("/")[2] not in there:
            continue
        try:
            values = run.read_json(_name(number))
            found[number] = replace(Trial(**values), curve=tuple(values["curve"]))
        except (StorageError, TypeError, KeyError):
            continue
    return found


def _name(trial: int) -> str:
    return f"{FOLDER}/{trial:06d}.json"


def best_of(trials: Sequence[Trial], greater_is_better: bool) -> Trial | None:
    """Return the best trial, the first one of those that are as good within float noise; None where none has a score."""
    found: Trial | None = None
    for trial in sorted(trials, key=lambda t: t.trial):
        if trial.counts and (found is None or _gain(trial, found, greater_is_better) > NOISE):
            found = trial
    return found


def _gain(trial: Trial, than: Trial, greater_is_better: bool) -> float:
    assert trial.score is not None
    assert than.score is not None
    return trial.score - than.score if greater_is_better else than.score - trial.score


def table(trials: Sequence[Trial]) -> pa.Table:
    """Return `trials.parquet`: a row a trial, its values as JSON."""
    return pa.table(
        {
            "trial": pa.array([t.trial for t in trials], pa.int64()),
            "status": pa.array([t.status for t in trials], pa.string()),
            "values": pa.array([json.dumps(t.values) for t in trials], pa.string()),
            "score": pa.array([t.score for t in trials], pa.float64()),
            "epochs": pa.array([t.epochs for t in trials], pa.int64()),
            "seconds": pa.array([t.seconds for t in trials], pa.float64()),
            "error": pa.array([t.error or None for t in trials], pa.string()),
            **{
                name: pa.array([t.parts.get(name) for t in trials], pa.float64())
                for name in dict.fromkeys(name for t in trials for name in t.parts)
            },
        }
    )


def curves(trials: Sequence[Trial], first: Callable[[int], int] = lambda _: 1) -> pa.Table:
    """Return `curves.parquet`: a row for each score of each trial, in their order, from its first epoch on."""
    rows = [(t.trial, epoch, value) for t in trials for epoch, value in enumerate(t.curve, first(t.trial))]
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    kinds = {"trial": pa.int64(), "epoch": pa.int64(), "score": pa.float64()}
    return pa.table({n: pa.array(list(c), k) for (n, k), c in zip(kinds.items(), columns, strict=True)})


def rows_of(found: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of `trials.parquet`, their values as such."""
    return [{**row, "values": json.loads(row["values"])} for row in found.to_pylist()]


def ranked(rows: Sequence[Mapping[str, Any]], greater_is_better: bool) -> list[Mapping[str, Any]]:
    """Return the rows of trials that may be the best, the best first."""
    known = [row for row in rows if row["score"] is not None and row["status"] in _WHOLE]
    return sorted(known, key=lambda row: (-row["score"] if greater_is_better else row["score"], row["trial"]))


def short(values: Mapping[str, Any]) -> str:
    """Write values for a line of text: the last part of each key, numbers to three digits."""
    return ", ".join(f"{path.rpartition('.')[2]} {shown(value)}" for path, value in values.items())


def shown(value: Any) -> str:
    """Write one value."""
    return (
        f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )
