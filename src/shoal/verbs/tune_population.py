"""tune with `scheduler: pbt`: what a population asks of an experiment, and the experiment that a model went through."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Shape
from shoal.cluster.run_folder import RunFolder
from shoal.experiment import Experiment
from shoal.training.config import DeepSpeedConfig, SearchConfig
from shoal.training.scikit.unused import names_estimator
from shoal.tuning.config import DimensionConfig, PBTConfig
from shoal.tuning.population import Population, change_key, generations
from shoal.tuning.space import Values
from shoal.tuning.trials import WORK
from shoal.verbs.tune_space import changed

if TYPE_CHECKING:
    from shoal.tuning.objective import Objective, TrialFit


def require_population(
    experiment: Experiment, space: Mapping[str, DimensionConfig], members: int, shape: Shape
) -> None:
    """Refuse what a population cannot be trained with.

    Raises
    ------
    ConfigError
        With the key, and what to write.
    """
    assert experiment.tuning is not None
    config, training = experiment.tuning.scheduler, experiment.training
    assert isinstance(config, PBTConfig)
    where = "tuning.scheduler: pbt"
    if names_estimator(experiment.model) or training.ensemble is not None:
        raise ConfigError(
            f"{where} goes on with other values after some epochs, and this model has none; use scheduler: none"
        )
    if shape.placement == "group" or isinstance(training.strategy, DeepSpeedConfig):
        raise ConfigError(
            f"{where} trains each member in one process; set cluster.num_workers: 1 and training.strategy: ddp, or use "
            "scheduler: asha"
        )
    if isinstance(training.optimizer, SearchConfig):
        raise ConfigError(
            f"{where} changes a fit on its way, and this optimiser searches for one optimum; use adamw, or another"
        )
    if training.changes:
        raise ConfigError(f"{where} finds training.changes itself; leave them out")
    paths: dict[str, str] = {}
    for path, dimension in space.items():
        if change_key(path) is None:
            raise ConfigError(
                f"tuning.space: {path} cannot change while a fit goes on, as {where} wants it; it can vary the optimizer's "
                "learning_rate and weight_decay, training.l1.proximal or subgradient, and training.l2"
            )
        if dimension.domain not in ("uniform", "loguniform") or dimension.when:
            raise ConfigError(
                f"tuning.space: {path}: {where} moves values by factors: give it uniform or loguniform, without when"
            )
        if (other := paths.setdefault(str(change_key(path)), path)) != path:
            raise ConfigError(
                f"tuning.space: {other} and {path} cannot both be: they are of one fit; leave one of them out"
            )
    if members < 4:
        raise ConfigError(
            f"tuning.trials: {members} members are too few for {where} to choose among; use at least 4"
        )
    if generations(config, training.epochs) < 2:
        raise ConfigError(
            f"tuning.scheduler.pbt.interval: a generation of {config.interval} epochs leaves no second one of training.epochs: "
            f"{training.epochs}; use a smaller one, or more epochs"
        )


def without_patience(experiment: Experiment) -> Experiment:
    """Return an experiment that is trained to its end, as a population's members are."""
    training = experiment.training.model_copy(update={"early_stopping": None})
    return experiment.model_copy(update={"training": training})


def experiment_of(population: Population, base: Mapping[str, Any], trial: int) -> Experiment:
    """Return the experiment whose fit is that of a member after its turn: later values are its `training.changes`."""
    lineage = population.lineage(trial)
    changes: list[dict[str, Any]] = []
    for before, turn in pairwise(lineage):
        new = {
            str(change_key(path)): value
            for path, value in turn.values.items()
            if value != before.values[path]
        }
        if new:
            changes.append({"epoch": population.epochs_of(turn)[0], **new})
    values: Values = dict(lineage[0].values)
    if changes:
        values["training.changes"] = changes
    return changed(base, values, f"tuning.space: trial {trial}")


def member_fit(
    population: Population, objective: "Objective", base: Mapping[str, Any], run: RunFolder, trial: int
) -> "TrialFit":
    """Return the work of a member's turn, whose number counts from 1."""
    from shoal.tuning.members import MemberFit
    from shoal.tuning.objective import NetworkFit

    turn = population.turns[trial]
    fit = objective.fit(trial - 1, experiment_of(population, base, trial))
    assert isinstance(fit, NetworkFit)  # as `require_population` has it
    first, last = population.epochs_of(turn)
    start = None if turn.start is None else _state(run, population, turn.start)
    return MemberFit(replace(fit.job, scores=False), _state(run, population, trial), start, first, last)


def forget(population: Population, run: RunFolder) -> None:
    """Delete the states that no member goes on from any more."""
    if population.generation >= 2:
        run.delete(f"{WORK}/generation-{population.generation - 1:03d}")


def _state(run: RunFolder, population: Population, trial: int) -> str:
    return f"{run.uri.rstrip('/')}/{WORK}/generation-{population.turns[trial].generation + 1:03d}/{trial:06d}"
