"""Rows whose costs no threshold fits are refused in the same words, wherever the rows come from."""

from collections.abc import Callable
from typing import Any

import numpy as np

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.training.costs import Amounts, Costs


def refuse_unreasonable(costs: Costs, amounts: Amounts, schema: Schema, shown: Callable[[int], str]) -> None:
    """Refuse rows by whose costs one class would be decided whatever its probability.

    Parameters
    ----------
    costs, amounts
        What decisions cost, and the rows' cost columns.
    schema
        For the names of the classes, and for what is private.
    shown
        Names a row.

    Raises
    ------
    DataError
        With how many rows there are, and one of them.
    """
    if (found := unreasonable(costs, amounts, schema)) is not None:
        rows, first, why = found
        raise DataError(refusal(costs, rows, shown(first), why))


def unreasonable(costs: Costs, amounts: Amounts, schema: Schema) -> tuple[int, int, str] | None:
    """Return how many rows have costs that are none to decide by, the first of them, and why; None where there are none."""
    wrong, mistake = costs.unreasonable(amounts)
    if mistake is None:
        return None
    first = int(wrong.argmax())
    actual, decided = (str(schema.target.classes[k]) for k in mistake)
    hidden = set(schema.target.columns) & set(schema.private)
    which = "deciding another class" if hidden else f"deciding {decided!r} where {actual!r} is actual"
    own = {name: values[first : first + 1] for name, values in amounts.items()}
    (i, j), excess = mistake, costs.excess
    cost, right, over, opposite = (
        float(np.ravel(found)[0])
        for found in (costs.of(i, j, own), costs.of(i, i, own), excess.of(i, j, own), excess.of(j, i, own))
    )
    values = not set(costs.columns) & set(schema.private)
    if over <= 0:
        said = f" costs {cost:g}, and deciding right {right:g}" if values else ""
        return int(wrong.sum()), first, f"({which}{said}), a mistake costs no more than deciding right"
    said = f" costs {over:g}, the opposite {opposite:g} more than deciding right" if values else ""
    return (
        int(wrong.sum()),
        first,
        f"({which}{said}), a mistake costs next to nothing beside the opposite one",
    )


def refusal(costs: Costs, rows: int, example: str, why: str) -> str:
    """Say of how many rows the costs are none to decide by, and what to change."""
    return (
        f"evaluation.costs: in {plural(rows, 'row')}, such as {example} {why}, so that one class would be decided whatever "
        "its probability (Elkan 2001); correct or leave out these rows, or change the costs, which stand in "
        f"{', '.join(costs.columns)}"
    )


def shown(row: int, ids: Any, schema: Schema) -> str:
    """Name a row by its id in ``ids``, or by its place where these are None."""
    if ids is None:
        return f"row {row}, from 0"
    return "one whose id is private" if schema.id in schema.private else f"id {ids[row].as_py()}"
