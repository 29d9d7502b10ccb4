"""Raw rows to the matrices that a model takes; the same for shards, `predict` and explanations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import normalise
from shoal.cluster.sharding.images import pixels
from shoal.cluster.sharding.manifest import Column, Schema
from shoal.cluster.sharding.names import nearest, plural
from shoal.cluster.sharding.texts import tokens
from shoal.cluster.sharding.values import codes, plain, raw_numbers

# Rows prepared at a time: a block's columns stay in the processor's cache while they are interleaved.
BLOCK = 16_384
MEDIA_ROWS = 256  # texts and images at a time


@dataclass(frozen=True)
class Prepared:
    """Prepared rows.

    Parameters
    ----------
    numeric
        float32 ``[n, D]``: standardised numbers, booleans as 0 and 1, parts of time stamps; NaN where
        missing.
    categorical
        int32 ``[n, C + W]``: 0 missing, 1 unknown or rare, then the categories; behind them the blocks of texts and images.
    """

    numeric: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.int32]


def prepare(table: pa.Table, schema: Schema) -> Prepared:
    """Prepare raw rows.

    Parameters
    ----------
    table
        Has the schema's feature columns; others are ignored, their order does not matter.
    schema
        From a sharded dataset or a trained model, with the statistics of the training rows.

    Raises
    ------
    DataError
        If a column is missing, there twice, of an unsuitable type, or holds infinity or what is no image.
    """
    require_columns(table.column_names, schema)
    arrays = {column.name: plain(normalise(table.column(column.name)), column) for column in schema.columns}
    numeric = np.empty((len(table), schema.numeric_width), np.float32)
    categorical = np.empty((len(table), schema.codes_width), np.int32)
    for start in range(0, len(table), BLOCK):
        rows = slice(start, min(start + BLOCK, len(table)))
        left = 0
        for column in schema.numeric:
            values = raw_numbers(arrays[column.name].slice(start, BLOCK), column)
            _scale(values, column, numeric[rows, left : left + column.width])
            left += column.width
    for i, column in enumerate(schema.categorical):
        categorical[:, i] = codes(arrays[column.name], column)
    first = len(schema.categorical)
    for column in schema.media:
        for start in range(0, len(table), MEDIA_ROWS):
            values, rows = arrays[column.name].slice(start, MEDIA_ROWS), slice(start, start + MEDIA_ROWS)
            private = column.name in schema.private
            found = tokens(values, column) if column.tokens is not None else pixels(values, column, private)
            categorical[rows, first : first + column.block] = found
        first += column.block
    _refuse_infinity(numeric, arrays, schema)
    return Prepared(numeric, categorical)


def require_columns(names: Sequence[str], schema: Schema) -> None:
    """Refuse data without a column that the model needs, or with two of its name.

    Raises
    ------
    DataError
        Naming the column.
    """
    for column in schema.columns:
        if (found := names.count(column.name)) != 1:
            raise DataError(
                f"the data have {found} columns {column.name!r}; rename or drop all but one"
                if found
                else f"the data have no column {column.name!r}, which the model needs{nearest(column.name, names)}"
            )


def _scale(values: npt.NDArray[np.float64], column: Column, out: npt.NDArray[np.float32]) -> None:
    if column.center != (0.0,) * column.width or column.scale != (1.0,) * column.width:
        values = (values - np.array(column.center)) / np.array(column.scale)
    with np.errstate(over="ignore"):  # what overflows is refused below
        out[...] = values


def _refuse_infinity(numeric: npt.NDArray[np.float32], arrays: dict[str, pa.Array], schema: Schema) -> None:
    with np.errstate(invalid="ignore"):
        total = numeric.sum(dtype=np.float64)  # one pass; NaN, which is allowed, leads to the closer look too
    if np.isfinite(total):
        return
    infinite = np.isinf(numeric).sum(axis=0)
    left = 0
    for column in schema.numeric:
        count = int(infinite[left : left + column.width].sum())
        left += column.width
        if count:
            raw = int(np.isinf(raw_numbers(arrays[column.name], column)).sum())
            what = (
                plural(raw, "infinite value") if raw else f"{plural(count, 'value')} too large for a float32"
            )
            raise DataError(f"column {column.name!r} has {what}; make them null (missing), or correct them")
