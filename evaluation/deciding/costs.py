"""Costs as numbers: the threshold, the weights and the constant decision that follow from them.

Shapes: K classes. A cost matrix has the actual class in rows and the decided class in columns, everywhere; binary costs are of
the classes (other, event).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.evaluation.deciding.config import CostsConfig
from shoal.training.decision import Decision, Floats


@dataclass(frozen=True)
class Costs:
    """The cost ``matrix[i, j]`` of deciding class j where class i is actual, float64 ``[K, K]``, in a unit."""

    matrix: Floats
    unit: str = ""

    @property
    def excess(self) -> Floats:
        """What each decision costs more than the right one, ``[K, K]`` with a diagonal of 0."""
        return self.matrix - np.diag(self.matrix)[:, None]

    @property
    def threshold(self) -> float:
        """Least probability of the event at which deciding it costs no more than not to (binary).

        References
        ----------
        Elkan (2001), The foundations of cost-sensitive learning, IJCAI, equation 2.
        """
        excess = self.excess
        return float(excess[0, 1] / (excess[0, 1] + excess[1, 0]))

    @property
    def class_weights(self) -> Floats:
        """Weight of each class in a loss, ``[K]``: the mean excess cost of its mistakes, with mean 1 over the classes.

        References
        ----------
        Ting (2002), An instance-weighting method to induce cost-sensitive trees, IEEE Transactions on Knowledge and Data
        Engineering 14, section 2: a class weighs as much as all its mistakes cost together.
        """
        weights = self.excess.sum(axis=1)
        return np.asarray(weights / weights.mean())

    def constant(self, class_rows: Sequence[int]) -> int:
        """Return the class that is cheapest to decide for every row, where classes come as often as among these rows."""
        return int((np.asarray(class_rows, dtype=np.float64) @ self.matrix).argmin())


@dataclass(frozen=True)
class Rule:
    """Which class is decided, and what that costs.

    Parameters
    ----------
    constant
        The best decision without a model, with which costs are compared.
    """

    decision: Decision = field(default_factory=Decision)
    costs: Costs | None = None
    constant: int = 0


USUAL = Rule()


def resolve_costs(config: CostsConfig, schema: Schema) -> Costs:
    """Turn named costs into a matrix.

    Raises
    ------
    ConfigError
        If the task has no single class a row, a name is no class, a mistake has no cost, or one costs no more than deciding
        right.
    """
    target = schema.target
    if target.task not in ("binary", "multiclass"):
        raise ConfigError(
            f"evaluation.costs are of deciding a class, and the task is {target.task}; leave them out"
        )
    hidden = bool(set(target.columns) & set(schema.private))
    names = [_text(name) for name in target.classes]
    if config.actual is not None:
        matrix = _by_name(config, names, hidden)
    elif target.task == "binary":
        assert config.false_positive is not None
        assert config.false_negative is not None
        matrix = np.array(
            [[config.true_negative, config.false_positive], [config.false_negative, config.true_positive]]
        )
    else:
        raise ConfigError(
            f"evaluation.costs: false_positive and false_negative are of two classes, and there are {len(names)}; write "
            "{actual: {class: {decided class: cost}}, otherwise: cost}"
        )
    found = Costs(matrix, config.unit)
    _refuse_unreasonable(found, names, hidden)
    return found


def _by_name(config: CostsConfig, names: list[str], hidden: bool) -> Floats:
    assert config.actual is not None
    k = len(names)
    matrix = np.full((k, k), np.nan if config.otherwise is None else config.otherwise)
    np.fill_diagonal(matrix, 0.0)
    for actual, by_decided in config.actual.items():
        i = _index(actual, names, hidden)
        for decided, cost in by_decided.items():
            matrix[i, _index(decided, names, hidden)] = cost
    if np.isnan(matrix).any():
        i, j = np.argwhere(np.isnan(matrix))[0]
        which = "" if hidden else f", such as deciding {names[j]!r} where {names[i]!r} is actual"
        raise ConfigError(
            f"evaluation.costs: {plural(int(np.isnan(matrix).sum()), 'mistake')} without a cost{which}; give otherwise, the cost "
            "of every other mistake"
        )
    return matrix


def _index(name: Any, names: list[str], hidden: bool) -> int:
    if _text(name) in names:
        return names.index(_text(name))
    if hidden:
        raise ConfigError("evaluation.costs names a class that the target, which is private, does not have")
    near = difflib.get_close_matches(_text(name), names, n=1, cutoff=0.4)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"evaluation.costs names {name!r}, which is no class; {guess}the classes are {', '.join(names[:20])}"
    )


def _text(name: Any) -> str:
    """Return a class as an experiment file has it: ``true`` and ``1``, not ``True`` and ``1.0``."""
    if isinstance(name, bool):
        return str(name).lower()
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def _refuse_unreasonable(costs: Costs, names: list[str], hidden: bool) -> None:
    """Refuse costs for which Elkan's threshold between some two classes is not strictly between 0 and 1."""
    excess = costs.excess
    with np.errstate(invalid="ignore", divide="ignore"):
        thresholds = excess.T / (excess + excess.T)
    sound = (excess > 0) & (excess.T > 0) & (thresholds > 0) & (thresholds < 1)
    np.fill_diagonal(sound, True)
    if sound.all():
        return
    i, j = np.argwhere(~sound & (excess <= excess.T))[0]
    which = (
        "between two classes"
        if hidden
        else f"deciding {names[j]!r} where {names[i]!r} is actual costs {costs.matrix[i, j]:g}, and deciding right "
        f"{costs.matrix[i, i]:g}"
    )
    raise ConfigError(
        f"evaluation.costs: {which}: a mistake must cost more than deciding right, and not be nothing beside the opposite one, "
        "or a class would be decided whatever its probability (Elkan 2001)"
    )
