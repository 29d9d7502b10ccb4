"""Cost columns: numbers of the raw data that travel with the rows as they are, for decisions that cost another amount a row.

Shapes: n rows, C cost columns, in the order of their names.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import described, is_number, normalise, numbers
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.cluster.sharding.names import nearest, plural, require
from shoal.cluster.sharding.plan import Plan
from shoal.cluster.sharding.source import Source, read

Floats = npt.NDArray[np.float64]
FIX = "correct or leave out these rows, or give a number in the place of the column"


def require_costs(
    schema: pa.Schema, data: DataConfig, names: Sequence[str], features: Sequence[str]
) -> list[str]:
    """Refuse columns in which no costs can stand; return what to say of the others.

    Parameters
    ----------
    schema, data
        Of the input.
    names
        The cost columns.
    features
        Columns that may be features.

    Raises
    ------
    DataError
        If a column is not there, is the target, the id or that of the split, or holds no numbers.
    """
    roles = dict.fromkeys(data.target, "target") | {data.id: "id", data.split.column: "column of the split"}
    notices = []
    for name in names:
        require(name, list(schema.names), "evaluation.costs")
        if name in roles:
            raise DataError(
                f"evaluation.costs: column {name!r} is the {roles[name]}, which is no cost; name a column of amounts"
            )
        if not is_number(kind := schema.field(name).type):
            raise DataError(
                f"evaluation.costs: column {name!r} is {described(kind)}; costs stand in a column of numbers"
            )
        if name in features:
            notices.append(
                f"column {name!r} is a cost and a feature; if it is not known when a decision is due, data.drop: [{name}] "
                "keeps it a cost alone, and evaluation.threshold: empirical decides without it"
            )
    return notices


def costs_of(table: pa.Table, names: Sequence[str]) -> Floats:
    """Return the costs of raw rows, float64 ``[n, C]``; NaN where missing.

    Raises
    ------
    DataError
        If a column is missing, or holds no numbers.
    """
    found = np.empty((len(table), len(names)), np.float64)
    for i, name in enumerate(names):
        if table.column_names.count(name) != 1:
            raise DataError(
                f"the data have no column {name!r}, in which the costs stand that decisions follow"
                f"{nearest(name, table.column_names)}"
            )
        column = normalise(table.column(name))
        if not is_number(column.type) and not pa.types.is_null(column.type):
            raise DataError(f"column {name!r} is {described(column.type)}; the costs in it must be numbers")
        found[:, i] = numbers(column)
    return found


def missing(costs: Floats, names: Sequence[str]) -> tuple[str, int] | None:
    """Say what is wrong with costs that are missing or infinite, and give the first such row; None where all are there."""
    wrong = ~np.isfinite(costs)
    rows = wrong.any(axis=1)
    if not rows.any():
        return None
    first = int(rows.argmax())
    name = names[int(wrong[first].argmax())]
    return (
        f"evaluation.costs: {plural(int(rows.sum()), 'row')} without a finite cost in column {name!r}",
        first,
    )


Judge = Callable[[Schema, Floats, Callable[[int], str]], None]
"""Refuses rows by their costs ``[n, C]``, in the order of a plan, of which the function gives names."""


def refuse_costs(
    costs: Floats,
    names: Sequence[str],
    plan: Plan,
    source: Source,
    target: Target,
    data: DataConfig,
    judge: Judge | None,
) -> None:
    """Refuse costs that are missing or infinite, or that a judge refuses, in the order of a plan.

    Raises
    ------
    DataError
        With how many rows have such costs, and one of them.
    """
    named = partial(_named, source, data, plan)
    if (found := missing(costs, names)) is not None:
        said, place = found
        raise DataError(f"{said}, such as {named(place)}; {FIX}")
    if names and judge is not None:
        judge(
            Schema(columns=(), target=target, id=data.id, private=data.private, costs=tuple(names)),
            costs,
            named,
        )


def _named(source: Source, data: DataConfig, plan: Plan, place: int) -> str:
    """Name a row by its id, and by where it was read."""
    row = int(np.flatnonzero(plan.position == place)[0])
    if data.id is not None and data.id in data.private:
        return "one whose id is private"
    names, before = [data.id or source.schema.names[0]], 0
    for index, file in enumerate(source.files):
        start = before
        for piece in read(source, index, names, None):
            if row < before + len(piece):
                where = f"row {row - start + 1:,} of {file.uri}"
                return where if data.id is None else f"id {piece.column(0)[row - before].as_py()} in {where}"
            before += len(piece)
    raise AssertionError("the plan has more rows than the input")
