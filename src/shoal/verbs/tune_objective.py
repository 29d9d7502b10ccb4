"""What the trials of `shoal tune` are compared by: a score on the validation rows, or a mean over folds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Reporter
from shoal.cluster.resources import Shape
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.reading import Reading
from shoal.experiment import Experiment, dump_yaml
from shoal.training.scikit.unused import names_estimator
from shoal.tuning.groups import GroupFit
from shoal.tuning.objective import Held, NetworkFit, Score, TrialFit, WholeFit
from shoal.tuning.trials import WORK, Trial
from shoal.verbs.dataset import ShardResult, shard
from shoal.verbs.decisions import plan_of_rows, steering_of
from shoal.verbs.fit import job_of
from shoal.verbs.fold_fit import FoldFit, fit_fold, in_this_process

if TYPE_CHECKING:
    from shoal.evaluation.metrics import Metric


@dataclass
class Datasets:
    """The rows of trials, sharded once for each `data` section that they have.

    Attributes
    ----------
    name, reporter
        As for `shard`.
    """

    name: str
    reporter: Reporter
    found: dict[str, ShardResult] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> ShardResult:
        """Return the rows of an experiment.

        Raises
        ------
        ConfigError
            If there are no validation rows.
        """
        key = experiment.data.model_dump_json()
        if key not in self.found:
            made = shard(experiment, name=self.name, reporter=self.reporter, verify=False)
            validation = made.manifest.splits.get("validation")
            if validation is None or not validation.rows:
                raise ConfigError(
                    "tuning.objective: there are no validation rows to compare trials by; give some (data.split: {validation: "
                    "0.1}), or use objective: cv"
                )
            self.found[key] = made
        return self.found[key]


@dataclass
class _ByMetric:
    """What trials have in common that have a score by themselves.

    Attributes
    ----------
    metric
        The first one of `evaluation.scoring`.
    run
        The sweep's.
    shape
        How each trial is spread.
    """

    metric: "Metric"
    run: RunFolder
    shape: Shape

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric.name

    @property
    def greater_is_better(self) -> bool:
        """The metric's direction."""
        return self.metric.greater_is_better

    def settled(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials as they are: each has its score by itself."""
        return list(trials)


@dataclass
class OnValidation(_ByMetric):
    """The metric that drives early stopping, on the validation rows.

    Attributes
    ----------
    datasets
        The rows of trials.
    """

    datasets: Datasets

    def fit(self, trial: int, experiment: Experiment) -> TrialFit:
        """Return the work of a trial."""
        data = self.datasets.of(experiment)
        steered = steering_of(experiment, data.manifest, self.metric, plan_of_rows(experiment, data.manifest))
        folder = RunFolder.open(
            f"{self.run.uri.rstrip('/')}/{WORK}/{trial + 1:06d}", experiment.cluster.storage
        )
        job = job_of(experiment, data, self.shape, folder, steered)
        if self.shape.placement == "group":
            return GroupFit(job, dump_yaml(experiment), self.shape, experiment.cluster)
        if names_estimator(experiment.model) or experiment.training.ensemble is not None:
            return WholeFit(job, dump_yaml(experiment))
        return NetworkFit(job)


@dataclass
class OverFolds(_ByMetric):
    """The mean of the first metric over the folds of `evaluation.cv`; the test rows of the `data` section are in none.

    Attributes
    ----------
    folds
        How many.
    """

    folds: int

    def fit(self, trial: int, experiment: Experiment) -> TrialFit:
        """Return the work of a trial."""
        folder = f"{self.run.uri.rstrip('/')}/{WORK}/{trial + 1:06d}"
        config = dump_yaml(experiment)
        return FoldsFit(
            tuple(
                FoldFit("", experiment, config, fold, None, f"{folder}/fold-{fold + 1:03d}", self.shape)
                for fold in range(self.folds)
            ),
            self.metric.name,
        )


@dataclass(frozen=True, repr=False)
class FoldsFit:
    """The fits of all folds, one at each turn; `Held.shared` is the input, where it was read before."""

    fits: tuple[FoldFit, ...]
    metric: str

    def scores(self, held: Held) -> Iterator[Score]:
        """Fit, and yield each fold's score; what is kept is their mean, once all are known."""
        reading: Reading | None = held.shared
        known: list[float] = []
        for fit in self.fits:
            try:
                fit_fold(fit, in_this_process, reading=reading)
                found: Any = fit.run.read_json("metrics.json")["scores"][self.metric]
            finally:
                fit.run.delete()
            known.append(math.nan if found is None else float(found))
            whole = len(known) == len(self.fits)
            yield Score(known[-1], float(np.mean(known)) if whole else math.nan)
