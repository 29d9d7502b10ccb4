"""Rows dealt into folds, and each alternative's fit to the first of them rehearsed, before anything is fitted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shoal.cluster.errors import ConfigError, RequestError
from shoal.cluster.progress import Reporter
from shoal.cluster.resources import Shape
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.reading import Reading, read_once
from shoal.cluster.sharding.service import BUDGET
from shoal.evaluation.crossval.config import KFoldConfig, RepeatedConfig, StratifiedConfig
from shoal.experiment import Experiment

if TYPE_CHECKING:
    from shoal.evaluation.crossval.folds import Folds
    from shoal.evaluation.crossval.recorder import Recorder
    from shoal.verbs.look import Look


@dataclass(frozen=True)
class Dealt:
    """What all alternatives have in common.

    Attributes
    ----------
    folds, target
        Of the rows.
    reading
        The rows, read once for all fits; None where they do not fit in memory.
    notices
        What to say aloud.
    """

    folds: "Folds"
    target: Target
    reading: Reading | None
    notices: tuple[str, ...]


def dealt(made: Mapping[str, Experiment], shape: Shape, reporter: Reporter) -> Dealt:
    """Look at the rows of all alternatives, deal them into folds, and rehearse each one's fit.

    Raises
    ------
    RequestError
        If the rows cannot be dealt so, or a fit would refuse its first fold.
    """
    from shoal.evaluation.crossval.folds import outer_of
    from shoal.evaluation.crossval.recorder import Recorder
    from shoal.verbs.check import rehearsed
    from shoal.verbs.decisions import judge_of
    from shoal.verbs.look import look
    from shoal.verbs.starting import starting

    first = next(iter(made.values()))
    deals = Recorder(first.evaluation.cv, first.data, first.cluster.storage)
    reading = read_once(first.data, first.cluster.storage, reporter, first.cost_columns, deals, BUDGET)
    looks: dict[str, tuple[Recorder, Look]] = {}
    said: dict[str, None] = {}
    purposes: dict[str, str] = {}
    for name, experiment in made.items():
        config, storage = experiment.evaluation, experiment.cluster.storage
        purpose = learns_from_validation(experiment)
        start = None if experiment.transfer is None else experiment.transfer.model_dump(mode="json")
        key = json.dumps([experiment.data.model_dump(mode="json"), purpose, start])
        try:
            begun = starting(experiment)
            if key not in looks:
                recorder = Recorder(config.cv, experiment.data, storage, purpose)
                ids = config.costs is not None
                looks[key] = (
                    recorder,
                    look(
                        experiment.data,
                        experiment.seed,
                        storage,
                        reporter,
                        experiment.cost_columns,
                        ids=ids,
                        resplit=recorder,
                        reading=reading,
                        known=begun.known,
                        judge=judge_of(experiment),
                    ),
                )
            recorder, found = looks[key]
            rehearsed(experiment, found, shape, begun.reuse)  # what it says, each fit says
        except RequestError as error:
            if len(made) == 1:
                raise
            raise type(error)(f"--compare: {name}: {error}") from error
        said |= dict.fromkeys(found.notices)
        purposes[name] = purpose
    same = len(set(purposes.values())) == 1
    for name, purpose in purposes.items():
        said[_of_validation(purpose) if same else f"{name}: {_of_validation(purpose)}"] = None
    recorder, found = next(iter(looks.values()))
    _require_inner_scores(first, recorder, found.target)
    if first.data.time is not None and isinstance(
        outer_of(first.evaluation.cv), KFoldConfig | RepeatedConfig | StratifiedConfig
    ):
        said[
            f"folds are dealt at random, and data.time ({first.data.time}) orders the rows: models are judged on the past of "
            "what they have seen; evaluation.cv: time_series judges them on what comes after"
        ] = None
    return Dealt(recorder.folds, found.target, reading, tuple(said))


def _require_inner_scores(experiment: Experiment, recorder: "Recorder", target: Target) -> None:
    """Refuse inner folds by which nothing can be chosen, whatever the models: of one class, where the metric needs two."""
    from shoal.evaluation.metrics import resolve_scoring

    if target.task not in ("binary", "multiclass") or not recorder.folds.inner:
        return
    costs = experiment.evaluation.costs is not None
    metric = resolve_scoring(experiment.evaluation.scoring, target.task, costs=costs)[0]
    if metric.needs == "cost":
        return
    for i, inside in enumerate(recorder.folds.inner, 1):
        for j, fold in enumerate(inside.folds, 1):
            y = recorder.labels[fold.test]
            draws = np.random.default_rng(0).dirichlet(np.ones(len(target.classes)), len(y))
            if why := metric.undefined(y, draws[:, 1] if target.task == "binary" else draws):
                raise ConfigError(
                    f"evaluation.cv: nested: {metric.name} cannot choose inside fold {i}: in its fold {j}, {why}; choose other "
                    "inner folds, or another first metric (evaluation.scoring), such as log_loss"
                )


def learns_from_validation(experiment: Experiment) -> str:
    """Return what a fit needs validation rows for, in words; nothing where it needs none."""
    from shoal.evaluation.deciding.config import MaximiseConfig
    from shoal.training.schedules.config import PlateauConfig
    from shoal.training.scikit.unused import names_estimator

    training, deciding = experiment.training, experiment.evaluation
    found = []
    if not names_estimator(experiment.model):
        found += ["early stopping"] if training.early_stopping is not None else []
        found += ["the schedule"] if isinstance(training.schedule, PlateauConfig) else []
    has_costs = deciding.costs is not None
    if deciding.calibration not in ("auto", "none") or (deciding.calibration == "auto" and has_costs):
        found.append("calibration")
    if deciding.threshold == "empirical" or isinstance(deciding.threshold, MaximiseConfig):
        found.append("the threshold")
    return ", ".join(found)


def _of_validation(purpose: str) -> str:
    if purpose:
        return f"validation rows are cut from each fold's training rows, for {purpose}"
    return "no validation rows are cut from the training rows: nothing would learn from them"
