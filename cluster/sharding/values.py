"""A raw feature column as numbers or as codes, before it is scaled. One code for shards and for `predict`."""

from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import (
    F64,
    described,
    indices,
    integers_from,
    is_number,
    is_stamp,
    is_tensor,
    is_text,
    list_numbers,
    microseconds,
    numbers,
    parse_stamps,
)
from shoal.cluster.sharding.manifest import FIRST_CATEGORY, MISSING, OTHER, Column
from shoal.cluster.sharding.names import plural

_DAY = 86_400_000_000
_TURN = 2 * np.pi


def plain(array: pa.Array, column: Column) -> pa.Array:
    """Read the texts of a time stamp or number column once, so that `raw_numbers` of its slices need not.

    Raises
    ------
    DataError
        If a text is no ISO 8601 stamp, or no number.
    """
    if column.type not in ("timestamp", "numeric") or not is_text(array.type):
        return array
    if column.type == "numeric" and column.arrow_type != "string":
        _wrong_type(column, array.type)
    try:
        if pa.types.is_dictionary(array.type):
            return plain(array.dictionary, column).take(array.indices)
        return parse_stamps(array) if column.type == "timestamp" else array.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {column.name!r} is a time stamp, but some of its texts are no ISO 8601 stamps; write them as "
            "2026-10-01 or 2026-10-01T12:00:00Z"
            if column.type == "timestamp"
            else f"column {column.name!r} is to be numeric, but some of its texts are no numbers; correct them, or use "
            f"data.types: {{{column.name}: categorical}}"
        ) from error


def raw_numbers(array: pa.Array, column: Column) -> F64:
    """Return a column's numeric parts as float64 ``[n, width]``, unscaled; NaN where missing.

    Parameters
    ----------
    array
        From `arrays.normalise` and `plain`.
    column
        Of type numeric, boolean, timestamp or tensor.

    Raises
    ------
    DataError
        If the Arrow type does not suit.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.full((len(array), column.width), np.nan)
    if pa.types.is_dictionary(kind) and not is_text(kind):
        array = array.dictionary_decode()
        kind = array.type
    if column.type == "timestamp":
        return _stamp_parts(array, column)
    if column.type == "tensor":
        return _tensor(array, column)
    if not (
        is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind)
    ):
        _wrong_type(column, kind)
    values = integers_from(array, column.origin) if column.origin else numbers(array)
    if column.type == "boolean" and not pa.types.is_boolean(kind):
        odd = ~(np.isnan(values) | (values == 0) | (values == 1))
        if odd.any():
            raise DataError(
                f"column {column.name!r} is boolean, but has {plural(int(odd.sum()), 'value')} other than 0 and 1"
            )
    return values[:, None]


def codes(array: pa.Array, column: Column) -> npt.NDArray[np.int32]:
    """Return a categorical column's codes, int32 ``[n]``: 0 missing, 1 unknown or rare, then the categories.

    Raises
    ------
    DataError
        If the Arrow type does not suit.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), MISSING, np.int32)
    if pa.types.is_dictionary(kind):
        lut = np.append(codes(array.dictionary, column), np.int32(MISSING))
        return np.asarray(lut[indices(array)], np.int32)
    plain = category_values(array, column)
    found = pc.index_in(plain, pa.array(column.categories, plain.type))
    out = pc.fill_null(found, OTHER - FIRST_CATEGORY).to_numpy(zero_copy_only=False) + np.int32(
        FIRST_CATEGORY
    )
    if plain.null_count:
        out[plain.is_null().to_numpy(zero_copy_only=False)] = MISSING
    return np.asarray(out, np.int32)


def category_values(array: pa.Array, column: Column) -> pa.Array:
    """Cast a plain array to the type of the column's categories: string, int64 or boolean."""
    kind = array.type
    if column.value_type == "string":
        if not is_text(kind):
            _wrong_type(column, kind)
        return array if pa.types.is_string(kind) else array.cast(pa.large_string()).cast(pa.string())
    if column.value_type == "boolean":
        if not (pa.types.is_boolean(kind) or is_number(kind)):
            _wrong_type(column, kind)
        values = numbers(array)
        return pa.array(values != 0, mask=np.isnan(values))
    if not (is_number(kind) or pa.types.is_boolean(kind)):
        _wrong_type(column, kind)
    if pa.types.is_integer(kind):
        return array.cast(pa.int64(), safe=False)
    values = numbers(array)
    missing = np.isnan(values)
    # A fraction is no integer category; -2**63 is none that a file of ordinary codes holds.
    whole = np.where(
        np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**63), values, -(2.0**63)
    )
    return pa.array(whole.astype(np.int64), mask=missing)


def _stamp_parts(array: pa.Array, column: Column) -> F64:
    if not is_stamp(array.type):
        _wrong_type(column, array.type)
    stamps, missing = microseconds(array)
    day = np.floor_divide(stamps, _DAY)
    time_of_day = (stamps - day * _DAY) / _DAY
    dates = day.astype("datetime64[D]")
    year = dates.astype("datetime64[Y]")
    # 1970-01-01 was a Thursday; Monday is 0. A leap year's turn is a day longer.
    length = ((year + 1).astype("datetime64[D]") - year.astype("datetime64[D]")).astype(np.float64)
    cycles = {
        "hour": time_of_day,
        "weekday": (day + 3) % 7 / 7.0,
        "yearday": (dates - year.astype("datetime64[D]")).astype(np.float64) / length,
    }
    out = np.empty((len(stamps), column.width))
    for i, part in enumerate(column.parts):
        name, _, function = part.partition("_")
        if part == "age":
            out[:, i] = stamps / _DAY
        else:
            out[:, i] = (np.sin if function == "sin" else np.cos)(_TURN * cycles[name])
    out[missing] = np.nan
    return out


def _tensor(array: pa.Array, column: Column) -> F64:
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # pandas and numpy give lists without a fixed length.
        lengths = pc.unique(pc.list_value_length(array).drop_null()).to_pylist()
        if lengths in ([], [column.width]) and array.null_count == 0:
            array = array.cast(pa.list_(kind.value_type, column.width))
            kind = array.type
    if not is_tensor(kind):
        _wrong_type(column, kind)
    if kind.list_size != column.width:
        raise DataError(
            f"column {column.name!r} has lists of {kind.list_size} numbers, expected {column.width}"
        )
    return list_numbers(array)


def _wrong_type(column: Column, found: pa.DataType) -> NoReturn:
    raise DataError(
        f"column {column.name!r} is {described(found)}, expected {column.arrow_type} ({column.type}); convert it"
        + (f", with {column.width} numbers a row" if column.type == "tensor" else "")
    )
