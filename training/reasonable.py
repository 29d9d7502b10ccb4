"""Rows whose costs no threshold fits are refused in the same words, wherever the rows come from."""

import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.training.costs import Amounts, Costs


def refuse_unreasonable(costs: Costs, amounts: Amounts, ids: pa.ChunkedArray | None, schema: Schema) -> None:
    """Refuse rows by whose costs one class would be decided whatever its probability.

    Parameters
    ----------
    costs, amounts
        What decisions cost, and the rows' cost columns.
    ids
        Of the rows; None where they have none.
    schema
        For the names of the classes, and for what is private.

    Raises
    ------
    DataError
        With how many rows there are, and one of them.
    """
    wrong, mistake = costs.unreasonable(amounts)
    if mistake is not None:
        first = int(wrong.argmax())
        example = f"row {first}, from 0" if ids is None else f"id {ids[first].as_py()}"
        raise DataError(unreasonable(costs, schema, int(wrong.sum()), example, mistake))


def unreasonable(costs: Costs, schema: Schema, rows: int, example: str, mistake: tuple[int, int]) -> str:
    """Say of how many rows the costs are none to decide by; ``mistake`` is an actual and a decided class."""
    actual, decided = (str(schema.target.classes[k]) for k in mistake)
    hidden = set(schema.target.columns) & set(schema.private)
    which = "between two classes" if hidden else f"deciding {decided!r} where {actual!r} is actual"
    shown = "one whose id is private" if schema.id in schema.private else example
    return (
        f"evaluation.costs: in {plural(rows, 'row')}, such as {shown} ({which}), a mistake costs no more than deciding right, or "
        "next to nothing beside the opposite one, so that one class would be decided whatever its probability (Elkan 2001); "
        f"correct or leave out these rows, or change the costs, which stand in {', '.join(costs.columns)}"
    )
