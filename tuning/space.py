"""Spaces of values: draws, grids and their ends, as plain arithmetic.

A value is a function of the seed and the trial's index, so that it is the same however many trials run at a time.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.wording import cut
from shoal.tuning.config import DimensionConfig

_STREAM = 0x74756E65  # keeps these draws apart from the others of a seed
Space = Mapping[str, DimensionConfig]
Values = dict[str, Any]


def ordered(space: Space) -> dict[str, DimensionConfig]:
    """Return a space whose keys come after those that they depend on: sections before what is in them, conditions first.

    Raises
    ------
    ConfigError
        If a condition names a key that is not in the space, a value that it never has, or goes round in a circle.
    """
    if not space:
        raise ConfigError(
            "tuning.space is empty; name a key, such as training.optimizer.learning_rate, or leave it out"
        )
    for path, dimension in space.items():
        for other, value in (dimension.when or {}).items():
            if other not in space:
                raise ConfigError(
                    f"tuning.space: {path}: when names {cut(other)}, which the space does not have; it has: {', '.join(space)}"
                )
            allowed = space[other].choice
            if allowed is not None and value not in allowed:
                raise ConfigError(
                    f"tuning.space: {path}: when: {other} is never {value!r}; it is one of {', '.join(map(repr, allowed))}"
                )
    found: dict[str, DimensionConfig] = {}
    rest = sorted(space, key=lambda path: path.count("."))  # stable: else as they were written
    while rest:
        ready = next((p for p in rest if all(w in found for w in space[p].when or {})), None)
        if ready is None:
            raise ConfigError(
                f"tuning.space: the conditions of {' and '.join(rest)} go round in a circle; leave one out"
            )
        found[ready] = space[ready]
        rest.remove(ready)
    return found


def active(space: Space, values: Mapping[str, Any]) -> Values:
    """Return the values whose conditions hold, in the order of an `ordered` space."""
    found: Values = {}
    for path, dimension in space.items():
        if path in values and all(w in found and found[w] == v for w, v in (dimension.when or {}).items()):
            found[path] = values[path]
    return found


def draw(space: Space, seed: int, trial: int) -> Values:
    """Draw the values of a trial, whose index counts from 0.

    Every key takes its draw, also where its condition does not hold, so that conditions move no other key's.
    """
    draws = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, trial)))
    return active(space, {path: at(dimension, float(draws.random())) for path, dimension in space.items()})


def at(dimension: DimensionConfig, share: float) -> Any:
    """Return the value at a share of the domain's length, from 0 to 1 (of a choice and of integers, below 1)."""
    if dimension.choice is not None:
        return dimension.choice[min(int(share * len(dimension.choice)), len(dimension.choice) - 1)]
    if dimension.integer is not None:
        low, high = dimension.integer
        return min(low + int(share * (high - low + 1)), high)
    if dimension.uniform is not None:
        low_, high_ = dimension.uniform
        value = low_ + share * (high_ - low_)
    else:
        assert dimension.loguniform is not None
        low_, high_ = dimension.loguniform
        value = math.exp(math.log(low_) + share * (math.log(high_) - math.log(low_)))
    return min(max(float(f"{value:.4g}"), low_), high_)  # more digits would only be harder to read


def share_of(dimension: DimensionConfig, value: Any) -> float:
    """Return where a value lies in its domain, from 0 to 1; of a choice, by its place in the list."""
    if dimension.choice is not None:
        return dimension.choice.index(value) / max(1, len(dimension.choice) - 1)
    if dimension.loguniform is not None:
        low, high = map(math.log, dimension.loguniform)
        return (math.log(value) - low) / (high - low)
    low, high = dimension.uniform or dimension.integer or (0.0, 1.0)
    return float((value - low) / (high - low))


def ends(dimension: DimensionConfig) -> tuple[Any, ...]:
    """Return the values at both ends of a domain and one between them, or all of a choice."""
    if dimension.choice is not None:
        return dimension.choice
    low, high = getattr(dimension, dimension.domain)
    return (low, high, at(dimension, 0.5))


def grid(space: Space, points: int) -> list[Values]:
    """Return all combinations, those that differ only in values without effect once."""
    axes = [_points(dimension, points) for dimension in space.values()]
    found: list[Values] = []
    seen: set[str] = set()
    for values in itertools.product(*axes):
        kept = active(space, dict(zip(space, values, strict=True)))
        if (key := repr(kept)) not in seen:
            seen.add(key)
            found.append(kept)
    return found


def grid_size(space: Space, points: int) -> int:
    """Return the number of combinations before those without effect are left out."""
    return math.prod(len(_points(dimension, points)) for dimension in space.values())


def _points(dimension: DimensionConfig, points: int) -> list[Any]:
    if dimension.choice is not None:
        return list(dimension.choice)
    if dimension.integer is not None:
        low, high = dimension.integer
        return list(dict.fromkeys(round(v) for v in np.linspace(low, high, points)))
    return [at(dimension, i / (points - 1)) for i in range(points)]


def default_space(training: Any, model: Config) -> dict[str, DimensionConfig]:
    """Return what is usually worth varying of a network: learning rate, weight decay, penalties and dropout, as it has them.

    Parameters
    ----------
    training
        The `training` section.
    model
        One of Shoal's.
    """
    return dict(_defaults(training, model))


def _defaults(training: Any, model: Config) -> Iterator[tuple[str, DimensionConfig]]:
    fields = type(training.optimizer).model_fields
    searches = "tolerance_grad" in fields  # along a line, and so finds its step itself
    if "learning_rate" in fields and not searches:
        usual = float(fields["learning_rate"].default)
        yield (
            "training.optimizer.learning_rate",
            DimensionConfig(loguniform=(usual / 30, min(usual * 30, 1.0))),
        )
    if "weight_decay" in fields:
        yield "training.optimizer.weight_decay", DimensionConfig(loguniform=(1e-6, 1e-1))
    elif training.l2 or searches:
        yield "training.l2", DimensionConfig(loguniform=(1e-7, 1e-2))
    if training.l1 is not None:
        kind = "subgradient" if training.l1.subgradient is not None else "proximal"
        yield f"training.l1.{kind}", DimensionConfig(loguniform=(1e-6, 1e-2))
    if "dropout" in type(model).model_fields and getattr(model, "hidden", True):
        yield "model.dropout", DimensionConfig(uniform=(0.0, 0.5))
