"""`evaluation.costs` for a target, and the rule by which a model decides."""

import difflib
from dataclasses import dataclass, field
from typing import Any

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.evaluation.deciding.config import CostColumn, CostsConfig
from shoal.training.costs import Costs
from shoal.training.decision import Decision

Cell = float | str


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

    @property
    def columns(self) -> tuple[str, ...]:
        """The cost columns that it needs of each row."""
        of_costs = self.costs.columns if self.costs is not None else ()
        return tuple(sorted({*of_costs, *self.decision.columns}))


USUAL = Rule()


def resolve_costs(config: CostsConfig, schema: Schema) -> Costs:
    """Turn named costs into a matrix.

    Raises
    ------
    ConfigError
        If the task has no single class a row, a name is no class, a mistake has no cost, or one costs no more than deciding
        right, where both are numbers.
    """
    target = schema.target
    if target.task not in ("binary", "multiclass"):
        raise ConfigError(
            f"evaluation.costs are of deciding a class, and the task is {target.task}; leave them out"
        )
    hidden = bool(set(target.columns) & set(schema.private))
    names = [_text(name) for name in target.classes]
    if config.actual is not None or config.otherwise is not None:
        cells = _by_name(config, names, hidden)
    elif target.task == "binary":
        by_place = (
            (config.true_negative, config.false_positive),
            (config.false_negative, config.true_positive),
        )
        cells = [[_cell(amount) for amount in row] for row in by_place]
    else:
        raise ConfigError(
            f"evaluation.costs: false_positive and false_negative are of two classes, and there are {len(names)}; write "
            "{actual: {class: {decided class: cost}}, otherwise: cost}"
        )
    found = Costs.of_cells(cells, config.unit)
    _refuse_unreasonable(cells, names, hidden)
    return found


def _cell(amount: float | CostColumn | None) -> Cell:
    assert amount is not None
    return amount.column if isinstance(amount, CostColumn) else amount


def _by_name(config: CostsConfig, names: list[str], hidden: bool) -> list[list[Cell]]:
    k = len(names)
    given: dict[tuple[int, int], Cell] = {(i, i): 0.0 for i in range(k)}
    if config.otherwise is not None:
        given = {(i, j): _cell(config.otherwise) for i in range(k) for j in range(k)} | given
    for actual, by_decided in (config.actual or {}).items():
        i = _index(actual, names, hidden)
        for decided, cost in by_decided.items():
            given[i, _index(decided, names, hidden)] = _cell(cost)
    missing = [(i, j) for i in range(k) for j in range(k) if (i, j) not in given]
    if missing:
        i, j = missing[0]
        which = "" if hidden else f", such as deciding {names[j]!r} where {names[i]!r} is actual"
        raise ConfigError(
            f"evaluation.costs: {plural(len(missing), 'mistake')} without a cost{which}; give otherwise, the cost "
            "of every other mistake"
        )
    return [[given[i, j] for j in range(k)] for i in range(k)]


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


def _refuse_unreasonable(cells: list[list[Cell]], names: list[str], hidden: bool) -> None:
    """Refuse numbers for which Elkan's threshold between some two classes is not strictly between 0 and 1.

    What stands in columns is refused where the rows are (`training.refusals`).
    """
    k = range(len(cells))
    for i, j in ((i, j) for i in k for j in k if i < j):
        pair = [[cells[a][b] for b in (i, j)] for a in (i, j)]
        if any(isinstance(cell, str) for row in pair for cell in row):
            continue
        if (mistake := Costs.of_cells(pair).unreasonable()[1]) is None:
            continue
        a, d = ((i, j)[place] for place in mistake)
        which = (
            "between two classes"
            if hidden
            else f"deciding {names[d]!r} where {names[a]!r} is actual costs {cells[a][d]:g}, and deciding right {cells[a][a]:g}"
        )
        raise ConfigError(
            f"evaluation.costs: {which}: a mistake must cost more than deciding right, and not be nothing beside the opposite "
            "one, or a class would be decided whatever its probability (Elkan 2001)"
        )
