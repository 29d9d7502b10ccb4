"""Arrow arrays in the few forms that the sharding pass works with."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

F64 = npt.NDArray[np.float64]
EXACT = 1 << 53  # integers up to here are float64 numbers


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, in any of Arrow's layouts or in a dictionary."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def described(kind: pa.DataType) -> str:
    """Return a type's name for messages: Arrow has several for texts."""
    return "text" if is_text(kind) else str(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are raw bytes."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or (pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind))
    )


def is_number(kind: pa.DataType) -> bool:
    """Whether values are integers, floats or decimals."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_stamp(kind: pa.DataType) -> bool:
    """Whether values are dates or time stamps."""
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def is_tensor(kind: pa.DataType) -> bool:
    """Whether values are lists of numbers, all of one length."""
    inner = kind.value_type if pa.types.is_fixed_size_list(kind) else None
    return inner is not None and bool(is_number(inner) or pa.types.is_boolean(inner))


def size_lists(kind: pa.DataType) -> str | None:
    """Say how to store lists of numbers that the file gives no size; None for every other type."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not is_tensor(
        pa.list_(kind.value_type, 1)
    ):
        return None
    return (
        f"is {kind}, lists of any length; where all have one length, K, store it as a fixed-size list: in pyarrow, "
        "column.cast(pa.list_(column.type.value_type, K))"
    )


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Join a column's chunks, their dictionaries too."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks == 0:
        return pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks() if column.num_chunks > 1 else column.chunk(0)


def normalise(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return one contiguous array: strings as a dictionary, no views or extensions, everything else as it is."""
    array = one_chunk(column)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind = array.type
    if pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
    elif pa.types.is_binary_view(kind):
        array = array.cast(pa.large_binary())
    if is_text(array.type) and not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return array


def indices(array: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    """Return a dictionary array's indices; -1 where missing."""
    found = array.indices
    if found.null_count:
        found = pc.fill_null(found.cast(pa.int64()), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False))


def numbers(array: pa.Array) -> F64:
    """Return integers, floats, decimals or booleans as float64 ``[n]``; NaN where missing."""
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        array = array.cast(pa.float64())
    elif pa.types.is_time(kind) or pa.types.is_duration(kind):
        array = array.cast(pa.int64() if kind.bit_width == 64 else pa.int32())
    values = array.to_numpy(zero_copy_only=False)
    if array.null_count and values.dtype.kind in "iu":
        values = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.float64)
        values[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return np.asarray(values, np.float64)


def integers_from(array: pa.Array, origin: int) -> F64:
    """Return integers less `origin` as float64 ``[n]``, exact where a float64 holds the difference; NaN where missing."""
    rough = numbers(array) - float(origin)
    if not pa.types.is_integer(array.type):
        return rough
    raw = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.uint64)
    exact = (raw - np.uint64(origin % 2**64)).view(np.int64)  # modulo 2**64, so right where it is below 2**63
    return np.where(np.abs(rough) < 2.0**62, exact, rough)


def list_numbers(array: pa.Array) -> F64:
    """Return a fixed-size list column as float64 ``[n, width]``; NaN where missing."""
    width = array.type.list_size
    flat = numbers(array.values.slice(array.offset * width, len(array) * width))
    matrix = flat.reshape(len(array), width)
    if array.null_count:
        matrix = matrix.copy()
        matrix[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return matrix


def microseconds(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return dates, time stamps or ISO strings as int64 microseconds since 1970 UTC, and which are missing."""
    if pa.types.is_dictionary(array.type):
        values, missing = microseconds(array.dictionary)
        codes = indices(array)
        values, missing = np.append(values, 0), np.append(missing, True)
        return values[codes], missing[codes]
    if is_text(array.type):
        array = parse_stamps(array)
    if not (pa.types.is_timestamp(array.type) and array.type.unit == "us"):
        # Casting a date or a coarser unit is exact; nanoseconds lose their last digits on purpose.
        array = array.cast(pa.timestamp("us", tz=getattr(array.type, "tz", None)), safe=False)
    missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False), np.bool_)
    values = pc.fill_null(array.view(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return values, missing


def parse_stamps(array: pa.Array) -> pa.Array:
    """Read ISO 8601 strings as UTC time stamps; a text without zone means UTC.

    Raises
    ------
    pyarrow.ArrowInvalid
        If a value is not one.
    """
    unit = pa.timestamp("us", tz="UTC")
    zoned = pc.match_substring_regex(array, r"(Z|[+-]\d{2}(:?\d{2})?)$")
    zoned = pc.and_(zoned, pc.match_substring(array, ":"))
    if not pc.any(zoned).as_py():
        return array.cast(pa.timestamp("us")).cast(unit)
    plain = pc.if_else(zoned, pa.scalar(None, array.type), array).cast(pa.timestamp("us")).cast(unit)
    stamped = pc.if_else(zoned, array, pa.scalar(None, array.type)).cast(unit)
    return pc.coalesce(stamped, plain)
