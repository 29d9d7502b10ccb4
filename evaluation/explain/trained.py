"""A trained model as a subject: prepared rows as cells, and raw values for reading.

Shape legend: n rows, P cells of a row, D numeric features, C codes (blocks of texts and images too), A cost columns, m values.

Preparing works row by row and column by column, so that exchanging the prepared cells of a raw column is exchanging its raw
values; the rows are prepared once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import FIRST_CATEGORY, MISSING, Column, Schema
from shoal.cluster.sharding.prepare import Prepared
from shoal.evaluation.explain.dependence import numeric_grid
from shoal.evaluation.explain.subject import Cells, Floats, Positions, Subject
from shoal.training.artifact import TrainedModel
from shoal.training.costs import NO_AMOUNTS, Amounts, by_name

_POINTS, _CATEGORIES = 40, 12  # values of a number, and of a category, at which dependence is tried
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DRAWABLE = ("numeric", "boolean", "categorical", "timestamp")


def packed(prepared: Prepared, amounts: Amounts = NO_AMOUNTS, names: Sequence[str] = ()) -> Cells:
    """Return prepared rows as int32 words ``[n, D + C + 2 A]``: floats and codes side by side, bit for bit."""
    words = [prepared.numeric.view(np.int32), prepared.categorical]
    words += [np.ascontiguousarray(amounts[name], np.float64)[:, None].view(np.int32) for name in names]
    return np.ascontiguousarray(np.concatenate(words, axis=1))


def positions(schema: Schema, costs: Sequence[str] = ()) -> dict[str, Positions]:
    """Return where each raw column's words are; a cost column that is a feature too has those of its costs."""
    found: dict[str, Positions] = {}
    start, code = 0, schema.numeric_width
    for column in schema.numeric:
        found[column.name] = tuple(range(start, start + column.width))
        start += column.width
    for column in schema.categorical:
        found[column.name] = (code,)
        code += 1
    for column in schema.media:
        found[column.name] = tuple(range(code, code + column.block))
        code += column.block
    for i, name in enumerate(costs):
        if name in found:
            found[name] += (code + 2 * i, code + 2 * i + 1)
    return {column.name: found[column.name] for column in schema.columns}


@dataclass(frozen=True)
class Answers:
    """What a trained model says of packed rows: float64 ``[n, K]``, the probability of the event alone for two classes."""

    trained: TrainedModel

    def __call__(self, cells: Cells) -> Floats:
        """Score rows."""
        schema, names = self.trained.schema, self.trained.calibration.columns
        prepared = unpacked(cells, schema)
        amounts = np.ascontiguousarray(cells[:, schema.numeric_width + schema.codes_width :]).view(np.float64)
        found = self.trained.prepared_scores(prepared, by_name(amounts, names))
        return found[:, None] if found.ndim == 1 else found


def unpacked(cells: Cells, schema: Schema) -> Prepared:
    """Return packed rows as the model takes them."""
    numeric, codes = schema.numeric_width, schema.codes_width
    return Prepared(cells[:, :numeric].view(np.float32), cells[:, numeric : numeric + codes])


def of_trained(trained: TrainedModel) -> Subject:
    """Explain a trained model; its rows come from `packed`."""
    target = trained.schema.target
    if target.task == "regression":
        outputs: tuple[str, ...] = ("prediction",)
    else:
        outputs = tuple(map(str, target.classes[1:] if target.task == "binary" else target.classes))
    columns = positions(trained.schema, trained.calibration.columns)
    return Subject(Answers(trained), columns, outputs, _Encoder(trained.schema))


@dataclass(frozen=True)
class _Encoder:
    """Values of a column as cells ``[m, w]``."""

    schema: Schema

    def __call__(self, name: str, values: Sequence[Any]) -> Cells:
        column = next(c for c in self.schema.columns if c.name == name)
        if column.type == "categorical":
            code = {value: i for i, value in enumerate(column.categories, FIRST_CATEGORY)}
            return np.array([[MISSING if v is None else code[v]] for v in values], np.int32)
        numbers = np.array([np.nan if v is None else float(v) - column.origin for v in values])
        scaled = (numbers[:, None] - np.array(column.center)) / np.array(column.scale)
        return np.asarray(scaled.astype(np.float32).view(np.int32))


def numbers(column: Column, cells: Cells) -> Floats:
    """Return raw numbers of a column's cells ``[n, w]``: a number, a truth value as 0 and 1, days since 1970; NaN where missing.

    They are as exact as what the model sees of them, float32 of the standardised number.
    """
    prepared = np.ascontiguousarray(cells[:, 0]).view(np.float32).astype(np.float64)
    raw = prepared * column.scale[0] + column.center[0] + column.origin
    if column.type == "boolean" or "int" in column.arrow_type:
        return np.asarray(np.rint(raw) + 0.0)  # no minus before 0
    return raw


def values(column: Column, cells: Cells) -> list[str]:
    """Return a column's cells ``[n, w]`` for reading; empty texts where it has no short form."""
    if column.type == "categorical":
        names = ["(missing)", "(rare)", *map(str, column.categories)]
        return [names[code] for code in cells[:, 0]]
    if column.type not in DRAWABLE:
        return [""] * len(cells)
    return [_written(column, value) for value in numbers(column, cells)]


def _written(column: Column, value: float) -> str:
    if np.isnan(value):
        return "(missing)"
    if column.type == "boolean":
        return "yes" if value else "no"
    if column.type == "timestamp":
        return (_EPOCH + timedelta(days=float(value))).strftime("%Y-%m-%d")
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"


@dataclass(frozen=True)
class Grid:
    """The values at which dependence on a column is tried.

    Parameters
    ----------
    cells
        ``[m, w]``.
    names
        For reading.
    numbers
        ``[m]``, where the values have an order and distances; otherwise None.
    """

    cells: Cells
    names: tuple[str, ...]
    numbers: Floats | None


def grid(subject: Subject, column: Column, cells: Cells, points: int = _POINTS) -> Grid:
    """Return where dependence on a column is tried, from the values of some rows ``[n, w]``.

    Numbers as scikit-learn has them; of categories the most frequent ones; of time stamps those of rows, evenly spread.

    Raises
    ------
    ConfigError
        For a column of lists, texts or images, or one without a value.
    """
    refuse_undrawable(column)
    if column.type == "categorical":
        codes, counts = np.unique(cells[:, 0], return_counts=True)
        chosen = codes[np.argsort(-counts, kind="stable")[:_CATEGORIES]].astype(np.int32)[:, None]
        return Grid(chosen, tuple(values(column, chosen)), None)
    found = numbers(column, cells)
    there = np.flatnonzero(~np.isnan(found))
    if not len(there):
        raise ConfigError(
            f"partial dependence: column {column.name!r} has no value in these rows; leave it out"
        )
    if column.type == "timestamp":
        order = there[np.argsort(found[there], kind="stable")]
        picked = cells[order[np.unique(np.linspace(0, len(order) - 1, points).astype(int))]]
        kept = np.unique(numbers(column, picked), return_index=True)[1]
        return _numeric(column, picked[kept])
    axis = numeric_grid(found, points)
    width = (
        len(subject.columns[column.name]) - column.width
    )  # where a cost column is a feature, its costs go along
    encoded = subject.encode(column.name, axis.tolist())
    if width:
        encoded = np.concatenate([encoded, axis[:, None].view(np.int32)], axis=1)
    return Grid(encoded, tuple(_written(column, v) for v in axis), axis)


def _numeric(column: Column, cells: Cells) -> Grid:
    return Grid(cells, tuple(values(column, cells)), numbers(column, cells))


def refuse_undrawable(column: Column) -> None:
    """Refuse a column whose values cannot be tried one by one.

    Raises
    ------
    ConfigError
        For lists, texts and images.
    """
    if column.type not in DRAWABLE:
        kind = "a list of numbers" if column.type == "tensor" else column.of_kind
        raise ConfigError(
            f"partial dependence: column {column.name!r} is {kind}, whose values cannot be tried one by one; use permutation or "
            "shap for it"
        )


def ordered_numbers(column: Column, cells: Cells, answers: Floats) -> Floats | None:
    """Return numbers ``[n]`` by which a column can be ranked; of categories the mean answer ``[n]`` of their rows.

    None for lists, texts and images.
    """
    if column.type == "categorical":
        codes = np.unique(cells[:, 0], return_inverse=True)[1].reshape(-1)
        return np.asarray((np.bincount(codes, answers) / np.bincount(codes))[codes])
    return numbers(column, cells) if column.type in DRAWABLE else None
