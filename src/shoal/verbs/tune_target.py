"""Trials that adapt to a target domain, compared without its labels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Demand, Shape
from shoal.cluster.run_folder import RunFolder
from shoal.experiment import Experiment
from shoal.transfer.adaptation.selection import mean_ranks
from shoal.tuning.objective import MEAN_RANK, Held, Score, TrialFit
from shoal.tuning.trials import WORK, Trial
from shoal.verbs.adapt import named_methods
from shoal.verbs.adapt_fits import SOURCE_ONLY, Work, fit_adapted, fit_kind, needs_plain
from shoal.verbs.adapt_judging import scores_without_labels
from shoal.verbs.dataset import ShardResult, shard_target
from shoal.verbs.provenance import Stages
from shoal.verbs.tune_objective import Datasets


def require_target(experiment: Experiment, shape: Shape) -> None:
    """Refuse what gives nothing to adapt to, or several methods.

    Raises
    ------
    ConfigError
        With what to change.
    """
    transfer = experiment.transfer
    if transfer is None or transfer.adaptation is None:
        raise ConfigError(
            "tuning.objective: target compares models that adapt to a target domain: give transfer: {adaptation: mmd, "
            "target_data: {path: …}}, or use objective: validation"
        )
    if transfer.candidates:
        raise ConfigError(
            "tuning.objective: target tries values of one method; leave transfer.candidates out, or vary transfer.adaptation by "
            "a choice in tuning.space"
        )
    if shape.placement == "group":
        raise ConfigError(
            "tuning.objective: target fits each trial in one process; set cluster.num_workers: 1"
        )


@dataclass
class OnTarget:
    """The mean rank of the scores of adapted models that need no label of the target; see `transfer.adaptation.selection`.

    Attributes
    ----------
    run
        The sweep's.
    shape
        What each trial takes.
    datasets
        The source's rows.
    """

    run: RunFolder
    shape: Shape
    datasets: Datasets
    reporter: Reporter
    targets: dict[str, ShardResult] = field(default_factory=dict)

    name: str = MEAN_RANK.name
    greater_is_better: bool = MEAN_RANK.greater_is_better

    def fit(self, trial: int, experiment: Experiment) -> TrialFit:
        """Return the work of a trial."""
        source = self.datasets.of(experiment)
        if source.uri not in self.targets:
            self.targets[source.uri] = shard_target(
                experiment, source.manifest, self.datasets.name, self.reporter
            )
        folder = f"{self.run.uri.rstrip('/')}/{WORK}/{trial + 1:06d}"
        return AdaptedFit(experiment, folder, source, self.targets[source.uri], self.shape)

    def settled(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return all trials with the scores that they have beside each other."""
        return by_mean_rank(trials)


def by_mean_rank(trials: Sequence[Trial]) -> list[Trial]:
    """Give each trial its mean rank among all that have scores."""
    known = [trial for trial in trials if trial.parts]
    if not known:
        return list(trials)
    ranks = mean_ranks({name: [_number(t.parts[name]) for t in known] for name in known[0].parts})
    rank_of = {trial.trial: rank for trial, rank in zip(known, ranks, strict=True)}
    return [replace(t, score=rank_of[t.trial]) if t.trial in rank_of else t for t in trials]


@dataclass(frozen=True, repr=False)
class AdaptedFit:
    """A fit of both domains' rows; it needs a folder for a while."""

    experiment: Experiment
    uri: str
    source: ShardResult
    target: ShardResult
    shape: Shape

    def scores(self, _held: Held) -> Iterator[Score]:
        """Fit, and yield the scores without labels once."""
        run, quiet = RunFolder.open(self.uri, self.experiment.cluster.storage), Silent()
        work = Work(
            self.experiment,
            run,
            self.source,
            self.target,
            replace(self.shape, placement="inline"),
            Demand(),
            Stages(quiet),
            quiet,
            None,
            cpus=self.shape.cpus_per_worker,
        )
        ((kind, method),) = named_methods(self.experiment).items()
        try:
            plain = fit_kind(work, SOURCE_ONLY, 0, lambda job: job) if needs_plain(method) else ""
            uri = fit_adapted(work, kind, method, 0, plain)
            found = scores_without_labels(
                self.experiment, work.open(self.source), work.open(self.target), uri
            )
        finally:
            run.delete()
        yield Score(math.nan, math.nan, found)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
