"""What a search is before it starts: its space, the values that are known, and what a trial takes."""

import json
from dataclasses import dataclass, replace

from shoal.cluster.components import load_imported
from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import FIT_MEMORY, Demand, Part, Shape, plan
from shoal.cluster.sharding.names import plural
from shoal.experiment import Experiment
from shoal.tuning.config import DimensionConfig, OptunaConfig, PBTConfig, TuningConfig
from shoal.tuning.population import generations
from shoal.tuning.sources import import_optuna
from shoal.tuning.space import Values
from shoal.verbs.tune_path import require_linear
from shoal.verbs.tune_population import require_population, without_patience
from shoal.verbs.tune_space import changed, drawn, plain, space_of, trials_of


@dataclass(frozen=True)
class Search:
    """A search that is settled: the experiment, its space and the values that are known from the start."""

    experiment: Experiment
    tuning: TuningConfig
    space: dict[str, DimensionConfig]
    values: list[Values]
    shape: Shape
    demand: Demand

    @property
    def count(self) -> int:
        """How many trials there are; of a population, the turns of all members."""
        scheduler = self.tuning.scheduler
        turns = (
            generations(scheduler, self.experiment.training.epochs) if isinstance(scheduler, PBTConfig) else 1
        )
        return turns * (len(self.values) or trials_of(self.tuning))


def settle_search(experiment: Experiment) -> Search:
    """Settle the space, the values that are known beforehand and what each trial takes; refuse what cannot be.

    Raises
    ------
    RequestError
        For a space that does not fit, a missing package, or trials for which there is no room.
    """
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.scikit.unused import refuse_estimator

    tuning = experiment.tuning or TuningConfig()
    if experiment.cluster.placement == "inline":
        raise ConfigError(
            "cluster.placement: inline fits in this process, and trials run in others; leave it out for shoal tune"
        )
    if isinstance(tuning.search, OptunaConfig):
        import_optuna()
    space = space_of(experiment)
    values = drawn(experiment, space)
    base = plain(experiment)
    others = [changed(base, v, f"tuning.space: trial {i}") for i, v in enumerate(values, 1)]
    group = any(needs_group(other.training) for other in (experiment, *others))
    shape, demand = plan(experiment.cluster, group)
    for other in (experiment, *others):
        load_imported(other, other.training)
        refuse(other.training, shape)
        refuse_estimator(other.model, other.training, shape)
    if shape.is_elastic:
        raise ConfigError(
            f"cluster.num_workers: [{shape.num_workers}, {shape.max_workers}] lets a group grow, and trials share the cluster: "
            f"give one number, such as {shape.num_workers}"
        )
    if tuning.objective == "cv" and shape.placement == "group":
        raise ConfigError(
            "tuning.objective: cv fits each fold in one process; set cluster.num_workers: 1, or use objective: validation"
        )
    if tuning.objective == "target":
        from shoal.verbs.tune_target import require_target

        require_target(experiment, shape)
    if isinstance(tuning.scheduler, PBTConfig):
        require_population(experiment, space, len(values), shape)
        experiment = without_patience(experiment)
    if shape.placement == "inline":  # that is what auto makes of one worker
        shape = replace(shape, placement="task")
    return Search(experiment, tuning, space, values, shape, demand)


def trial_part(shape: Shape, count: int) -> Part:
    """Return what trials take that run at the same time: an actor's CPUs, or those of a group's workers."""
    name = "trials" if shape.placement != "group" else "groups of a trial"
    workers = shape.num_workers if shape.placement == "group" else 1
    return Part(
        name,
        count,
        workers * shape.cpus_per_worker,
        workers * shape.gpus_per_worker,
        0.0 if shape.placement == "group" else float(FIT_MEMORY),
    )


def described(experiment: Experiment) -> tuple[tuple[str, ...], list[str]]:
    """Return what `shoal check` says of a search: a line a key of its space, and what its trials take.

    Raises
    ------
    RequestError
        As `settle_search`.
    """
    if experiment.tuning is not None and (path := experiment.tuning.path) is not None:
        require_linear(experiment)
        return (
            f"{plural(path.strengths, 'strength')} of {path.penalty}, one after the other, in this process",
        ), []
    settled = settle_search(experiment)
    asked = settled.tuning.max_concurrent_trials
    what = "trial" if not isinstance(settled.tuning.scheduler, PBTConfig) else "turn"
    many = "as many as are free" if asked == "auto" else f"at most {asked}"
    lines = [f"{path}: {said(dimension)}" for path, dimension in settled.space.items()]
    return (
        tuple(lines),
        [
            f"{plural(settled.count, what)}, {many} at a time, each:",
            str(Demand((trial_part(settled.shape, 1),))),
        ],
    )


def said(dimension: DimensionConfig) -> str:
    """Return a domain as the experiment file has it, without braces."""
    given = dimension.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{name}: {json.dumps(value)}" for name, value in given.items())
