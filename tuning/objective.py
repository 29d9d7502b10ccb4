"""What a trial does, and what it is judged by: protocols, and the fits of one worker.

A trial is anything that yields scores: after each epoch, each fold, or once. What is compared is an `Objective`, which
makes such a fit from an experiment; another one is plugged in where `shoal.verbs.tune` chooses it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shoal.cluster.progress import Silent
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.storage import Storage
from shoal.evaluation.metrics import Metric
from shoal.training.device import own_threads, pick_device
from shoal.training.models import build_model
from shoal.training.outcome import Monitor
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, loop_of
from shoal.tuning.trials import Trial

MEAN_RANK = Metric(
    "mean_rank",
    "mean rank without target labels",
    ("binary", "multiclass", "multilabel", "regression"),
    False,
    "score",
    "The mean place of a model among all trials, 1 for the best, over scores that need no label of the target.",
    (1.0, math.inf),
)


@dataclass(frozen=True)
class Score:
    """How good a trial is now.

    Attributes
    ----------
    value
        Of the last epoch, or fold; NaN where it has none.
    kept
        Of what the trial would leave if it ended now, by which trials are compared.
    parts
        Scores by which trials are ranked once all are over, in the place of those two.
    """

    value: float
    kept: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Held:
    """What a process keeps from one trial to the next: mapped shards, and what all trials share."""

    shared: Any = None
    datasets: dict[str, ShardedDataset] = field(default_factory=dict)

    def dataset(self, job: FitJob) -> ShardedDataset:
        """Open a job's rows, once; its shards stay mapped and are verified once."""
        if job.data_uri not in self.datasets:
            cache = Path(job.cache_path) if job.cache_path else None
            self.datasets[job.data_uri] = ShardedDataset.open(
                Storage.open(job.data_uri, job.storage), cache=cache
            )
        return self.datasets[job.data_uri]


class TrialFit(Protocol):
    """The work of a trial; travels to other processes."""

    def scores(self, held: Held) -> Iterator[Score]:
        """Do the work, and yield a score at each turn; closing the iterator ends it early.

        Raises
        ------
        DivergedError
            If the fit left the numbers.
        ShoalError
            What else went wrong, in words for the user.
        """


class Objective(Protocol):
    """What trials are compared by.

    Attributes
    ----------
    name
        As reports show it.
    greater_is_better
        Its direction.
    """

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def greater_is_better(self) -> bool:
        """Its direction."""

    def fit(self, trial: int, experiment: Any) -> TrialFit:
        """Return the work of a trial, whose index counts from 0.

        Raises
        ------
        ConfigError
            If its values do not go together.
        """

    def settled(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return all trials with the scores that they have beside each other."""


@dataclass(frozen=True, repr=False)
class NetworkFit:
    """A network's fit on one worker, an epoch at each turn; it writes nothing."""

    job: FitJob

    def scores(self, held: Held) -> Iterator[Score]:
        """Train, and yield the validation score after each epoch."""
        own_threads(self.job.cpus)
        dataset = held.dataset(self.job)
        model = build_model(self.job.model, dataset.schema, self.job.seed)
        loop, _ = loop_of(self.job, model, dataset, Strategy(pick_device(self.job.gpus)), Silent())
        for value in loop.epochs():
            yield Score(value, loop.kept)


@dataclass(frozen=True, repr=False)
class WholeFit:
    """A fit that has no epochs of its own: of a model of scikit-learn's, or of an ensemble. It needs a folder for a while."""

    job: FitJob
    config: str

    def scores(self, held: Held) -> Iterator[Score]:
        """Fit, and yield the score of the validation rows once."""
        from shoal.evaluation.evaluate import part_of
        from shoal.training.trainer import fit_here

        run = Storage.open(self.job.run_uri, self.job.storage)
        run.write_text("config.yaml", self.config)
        try:
            fit_here(self.job)
            monitor = self.job.decision_monitor or self.job.monitor
            rows = part_of(run.read_table("predictions.parquet"), "validation")
            value = math.nan if monitor is None else _value(monitor, rows, held.dataset(self.job))
        finally:
            run.delete()
        yield Score(value, value)


def _value(monitor: Monitor, rows: Any, dataset: ShardedDataset) -> float:
    from shoal.evaluation.evaluate import amounts_of, labels_and_scores

    amounts = amounts_of(rows, dataset.schema.costs)
    return float(monitor.value(*labels_and_scores(rows, dataset.schema.target), amounts=amounts))
