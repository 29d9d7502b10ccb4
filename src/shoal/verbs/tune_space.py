"""The space of `shoal tune`, held against the experiment: each key exists, each value is one that it takes."""

import json
import re
from collections.abc import Mapping
from typing import Any

from shoal.cluster.components import Choice, Imported
from shoal.cluster.errors import ConfigError
from shoal.experiment import Experiment, from_dict
from shoal.training.config import MODELS
from shoal.training.scikit.unused import names_estimator
from shoal.tuning.config import TRIALS, DimensionConfig, GridConfig, OptunaConfig, PBTConfig, TuningConfig
from shoal.tuning.population import change_key
from shoal.tuning.space import Values, default_space, draw, ends, grid, grid_size, ordered

_MOST = 10_000  # combinations of a grid
# What decides which rows are judged and how, or what is the same for all trials.
_FIXED = {
    "data": "decides which rows there are, which trials must have in common (data.imbalance may be varied)",
    "evaluation": "decides how trials are judged, which they must have in common",
    "cluster": "is where trials run, and changes no result",
    "seed": "is the root of every draw, of the values too",
    "tuning": "is the search itself",
    **{
        f"transfer.{key}": "is for shoal adapt"
        for key in ("candidates", "target_data", "seeds", "leave_one_domain_out", "in_domain")
    },
}
_FREE = ("data.imbalance",)


def space_of(experiment: Experiment) -> dict[str, DimensionConfig]:
    """Return the space of an experiment, or the usual one of its network, in the order in which values are set.

    Raises
    ------
    ConfigError
        If a key is none, or one of its values is not allowed there.
    """
    tuning = experiment.tuning or TuningConfig()
    space = ordered(tuning.space if tuning.space is not None else _usual(experiment))
    for path in space:
        _require_free(path, tuning.objective == "target")
    base = plain(experiment)
    written: dict[str, str] = {}
    for path, dimension in space.items():
        # Where a component is chosen by another key, each of them that this one is varied for must take the value.
        for parents in _parents(space, path):
            before = plain(changed(base, parents, f"tuning.space: {path}"))
            made = [
                plain(changed(base, {**parents, path: value}, f"tuning.space: {path}: {_shown(value)}"))
                for value in ends(dimension)
            ]
            _require_kept(path, parents, before, made[0])
            place = _where_they_differ(made[0], made[-1])
            if (other := written.setdefault(place, path)) != path:
                raise ConfigError(
                    f"tuning.space: {other} and {path} are the same key, {place}; leave one of them out"
                )
    return space


def _require_kept(path: str, parents: Values, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse a key that names one component and is varied where another key has chosen another one."""
    for other in parents:
        if not path.startswith(f"{other}."):
            continue
        kept, now = (_component(made, other) for made in (before, after))
        if kept != now:
            raise ConfigError(
                f"tuning.space: {path} is of {now}, and {other} may be {kept}: vary it only with when: {{{other}: {now}}}"
            )


def _component(made: Any, path: str) -> str:
    """Return the name of the component that a section chooses."""
    for key in path.split("."):
        made = made[key]
    return str(next(iter(made)))


def _where_they_differ(one: Any, other: Any, place: str = "") -> str:
    """Return the deepest key in which all differences of two experiments lie."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        differing = [key for key in one if one[key] != other[key]]
        if len(differing) == 1:
            key = differing[0]
            return _where_they_differ(one[key], other[key], f"{place}.{key}".lstrip("."))
    return place


def drawn(experiment: Experiment, space: Mapping[str, DimensionConfig]) -> list[Values]:
    """Return the values of all trials of a random search or a grid, each tried on the experiment; of optuna, none.

    Raises
    ------
    ConfigError
        If a grid has more points than trials were asked for, or values do not go together.
    """
    tuning = experiment.tuning or TuningConfig()
    if isinstance(tuning.search, OptunaConfig):
        return []
    if isinstance(tuning.search, GridConfig):
        if grid_size(space, tuning.search.points) > _MOST:
            raise ConfigError(
                f"tuning.search: grid: the space has {grid_size(space, tuning.search.points):,} combinations, more than "
                f"{_MOST:,}; use search: random, or fewer values"
            )
        found = grid(space, tuning.search.points)
        if tuning.trials is not None and tuning.trials < len(found):
            raise ConfigError(
                f"tuning.trials: {tuning.trials} are fewer than the {len(found):,} points of the grid; leave trials out for all "
                "of them, give fewer values, or use search: random"
            )
    else:
        found = [draw(space, experiment.seed, trial) for trial in range(trials_of(tuning))]
    base = plain(experiment)
    for trial, values in enumerate(found, 1):
        changed(base, values, f"tuning.space: trial {trial}")
    return found


def trials_of(tuning: TuningConfig) -> int:
    """Return how many trials a random search, or one by optuna, has."""
    return TRIALS if tuning.trials is None else tuning.trials


def plain(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as values, without its `tuning` section."""
    return experiment.model_dump(mode="json", exclude={"tuning"})


def changed(base: Mapping[str, Any], values: Mapping[str, Any], where: str) -> Experiment:
    """Return an experiment with other values at some keys, which may leave the names of components out.

    Raises
    ------
    ConfigError
        If it would not be one; the message begins with ``where``.
    """
    overrides = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    try:
        return from_dict(base, overrides)
    except ConfigError as error:
        said = re.sub(r"^--set ([^\s=]+)=.*?: ", "", str(error), flags=re.MULTILINE)  # nobody wrote that
        raise ConfigError(f"{where}: {said}") from error


def _usual(experiment: Experiment) -> dict[str, DimensionConfig]:
    if names_estimator(experiment.model):
        raise ConfigError(
            "tuning.space: what is worth varying of a model of scikit-learn's is not known here; name a space, such as "
            "{model.max_depth: {integer: [2, 12]}}"
        )
    found = default_space(experiment.training, experiment.model)
    tuning, transfer = experiment.tuning or TuningConfig(), experiment.transfer
    if isinstance(tuning.scheduler, PBTConfig):
        found = {path: dimension for path, dimension in found.items() if change_key(path) is not None}
    if tuning.objective == "target" and transfer is not None and hasattr(transfer.adaptation, "weight"):
        found["transfer.adaptation.weight"] = DimensionConfig(loguniform=(0.1, 10.0))
    if not found:
        model = Choice(MODELS).name_of(experiment.model)
        optimizer = experiment.training.optimizer
        own = optimizer.path if isinstance(optimizer, Imported) else type(optimizer).__name__
        raise ConfigError(
            f"tuning.space: nothing usual is known to vary of model {model} with optimiser {own}; name a space, such as "
            "{training.batch_size: {choice: [64, 256]}}"
        )
    return found


def _require_free(path: str, adapts: bool) -> None:
    if any(path == free or path.startswith(f"{free}.") for free in _FREE):
        return
    fixed_here = (
        _FIXED if adapts else {**_FIXED, "transfer.adaptation": "matters with tuning.objective: target"}
    )
    for fixed, why in fixed_here.items():
        if path == fixed or path.startswith(f"{fixed}."):
            raise ConfigError(f"tuning.space: {path} cannot be varied: it {why}; set it in the experiment")


def _parents(space: Mapping[str, DimensionConfig], path: str) -> list[Values]:
    """Return the values of the keys on which a key's meaning depends: its conditions, and each choice of a section above it."""
    found: list[Values] = [{}]
    conditions: Values = {}
    waiting = [path]
    while waiting:
        for other, value in (space[waiting.pop()].when or {}).items():
            conditions[other] = value
            waiting.append(other)
    for other, dimension in space.items():
        if other in conditions:
            found = [{**values, other: conditions[other]} for values in found]
        elif dimension.choice is not None and path.startswith(f"{other}."):
            found = [{**values, other: value} for values in found for value in dimension.choice]
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
