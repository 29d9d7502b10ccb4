"""The target: which task it makes, which classes it has, and its labels as numbers."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import (
    EXACT,
    described,
    indices,
    is_number,
    is_tensor,
    is_text,
    list_numbers,
    normalise,
    numbers,
    size_lists,
)
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.manifest import Scalar, Target
from shoal.cluster.sharding.names import listed, plural, require

MOST_INTEGER_CLASSES = 20
_WORDS = {"yes": 1.0, "true": 1.0, "1": 1.0, "no": 0.0, "false": 0.0, "0": 0.0}


def infer_target(table: pa.Table, data: DataConfig) -> tuple[Target, list[str]]:
    """Decide the task and the classes from the labels of all rows.

    Parameters
    ----------
    table
        Has the target columns, as `arrays.normalise` returns them.
    data
        For `target`, `task`, `positive` and `private`.

    Returns
    -------
    The target, without the centre and scale of a regression, and what to say aloud.

    Raises
    ------
    DataError
        If the labels are all missing, constant, of an unsuitable type or not what `data.task` needs.
    """
    for name in data.target:
        require(name, table.column_names, "data.target")
    private = bool(set(data.target) & set(data.private))
    first = normalise(table.column(data.target[0]))
    if len(data.target) > 1 or is_tensor(first.type) or data.task == "multilabel":
        return _multilabel(table, data)
    name = data.target[0]
    if unsized := size_lists(first.type):
        raise DataError(f"data.target: column {name!r} {unsized}")
    if pa.types.is_nested(first.type) or pa.types.is_temporal(first.type) or pa.types.is_binary(first.type):
        raise DataError(
            f"data.target: column {name!r} is {described(first.type)}; a target is strings, booleans, numbers, or (multi-label) "
            "a fixed-size list of 0 and 1"
        )
    values, counts = _classes(first)
    if not values:
        raise DataError(f"data.target: column {name!r} has no value in any of {plural(len(table), 'row')}")
    if len(values) == 1:
        raise DataError(
            f"data.target: column {name!r} has one value only{'' if private else f', {values[0]!r}'}; there is "
            "nothing to predict"
        )
    task, reason = _task(first.type, values, data.task, name)
    if task != "regression":
        _refuse_odd_classes(values, len(first) - first.null_count, data.task, name, private)
    notices = [
        f"task: {task}, because {reason}" + ("; set data.task otherwise" if data.task == "auto" else "")
    ]
    if task == "regression":
        infinite = int(np.isinf(numbers(first)).sum())
        if infinite:
            raise DataError(
                f"data.target: column {name!r} has {plural(infinite, 'infinite value')}; remove those rows or make "
                "them null"
            )
        with np.errstate(over="ignore"):
            squares = np.square(numbers(first))
        if np.isinf(np.nansum(squares)):
            raise DataError(
                f"data.target: column {name!r} has numbers too large to learn (their squares overflow a float64); "
                "correct them, or give them in a larger unit"
            )
        if data.positive is not None:
            raise DataError(
                f"data.positive is {data.positive!r}, but the task is regression; remove it or set data.task"
            )
        return Target(columns=data.target, task=task, reason=reason), notices
    if task == "binary":
        values, notice = _event_last(values, counts, data.positive, name, private)
        notices.append(notice)
    elif data.positive is not None:
        raise DataError(
            f"data.positive is {data.positive!r}, but the task is {task} with {len(values)} classes; remove it or "
            "set data.task"
        )
    return Target(columns=data.target, task=task, reason=reason, classes=tuple(values)), notices


def encode_labels(table: pa.Table, target: Target, *, private: bool = False) -> npt.NDArray[Any]:
    """Turn labels into numbers.

    Parameters
    ----------
    table
        Has the target columns; others are ignored.
    target
        From the schema of a sharded dataset or a trained model.
    private
        Whether messages must not show values.

    Returns
    -------
    int64 ``[n]`` class index; float32 ``[n, K]`` for multi-label; float64 ``[n]`` for regression, in raw
    units.

    Raises
    ------
    DataError
        If a label is missing, infinite, of another type, or of a class that the target does not have.
    """
    codes, missing = code_labels(table, target, private=private)
    if missing.any():
        raise DataError(
            f"target {listed(target.columns)}: {plural(int(missing.sum()), 'row')} of {len(table):,} without a "
            "label; leave them out"
        )
    return codes


def no_labels(target: Target, rows: int) -> npt.NDArray[Any]:
    """Return what stands for the labels of rows that have none: zeros, of the type and shape of this target's."""
    if target.task == "multilabel":
        return np.zeros((rows, len(target.classes)), np.float32)
    return np.zeros(rows, np.float64 if target.task == "regression" else np.int64)


def code_labels(
    table: pa.Table, target: Target, *, private: bool = False
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Do as `encode_labels`, but return which labels are missing; their numbers mean nothing."""
    for name in target.columns:
        require(name, table.column_names, "target")
    columns = [normalise(table.column(name)) for name in target.columns]
    if target.task == "multilabel":
        matrix = np.column_stack(
            [_zero_one(column, name) for column, name in zip(columns, target.columns, strict=True)]
        )
        if matrix.shape[1] != len(target.classes):
            raise DataError(
                f"target {listed(target.columns)}: {matrix.shape[1]} labels, expected {len(target.classes)}"
            )
        return matrix.astype(np.float32), np.asarray(np.isnan(matrix).any(axis=1))
    name, column = target.columns[0], columns[0]
    if target.task == "regression":
        if not (is_number(column.type) or pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
            raise DataError(
                f"target {name!r} is {described(column.type)}, but the task is regression; give numbers"
            )
        values = numbers(column)
        if np.isinf(values).any():
            raise DataError(
                f"target {name!r} has {plural(int(np.isinf(values).sum()), 'infinite value')}; remove them"
            )
        huge = int((np.abs(values) >= EXACT).sum()) if pa.types.is_integer(column.type) else 0
        if huge:
            raise DataError(
                f"target {name!r} has {plural(huge, 'integer')} from 2**53 on, of which a float64 keeps the first digits only; "
                "subtract what they have in common, use a larger unit, or store them as double where that is near enough"
            )
        return values, np.isnan(values)
    return _class_codes(column, target.classes, name, private)


def _task(kind: pa.DataType, values: Sequence[Scalar], asked: str, name: str) -> tuple[Any, str]:
    numeric = is_number(kind)
    count = len(values)
    if asked == "regression" and not (numeric or pa.types.is_boolean(kind)):
        raise DataError(
            f"data.task is regression, but column {name!r} is {described(kind)}; give numbers or another task"
        )
    if asked == "binary" and count != 2:
        raise DataError(
            f"data.task is binary, but column {name!r} has {count} values; use multiclass or regression"
        )
    if (
        asked == "multiclass"
        and pa.types.is_floating(kind)
        and not all(float(v).is_integer() for v in values)
    ):
        raise DataError(f"data.task is multiclass, but column {name!r} holds fractions; use regression")
    if asked != "auto":
        return asked, "data.task says so"
    if count == 2 and (not pa.types.is_floating(kind) or set(values) == {0, 1}):
        return "binary", f"{name!r} has 2 values"
    if numeric and not pa.types.is_integer(kind):
        return "regression", f"{name!r} is {kind}"
    if numeric and count > MOST_INTEGER_CLASSES:
        return "regression", f"{name!r} holds {count:,} distinct integers, more than {MOST_INTEGER_CLASSES}"
    return "multiclass", f"{name!r} has {count:,} values"


def _refuse_odd_classes(values: Sequence[Scalar], rows: int, asked: str, name: str, private: bool) -> None:
    """Refuse classes without a name, integers that a float64 cannot tell apart, and identifiers."""
    blank = [v for v in values if isinstance(v, str) and not v.strip()]
    if blank:  # its score column would have no name either, and CSV takes it for missing
        raise DataError(
            f"data.target: {name!r} has a class called {blank[0]!r}, which is no name; make those labels null (such "
            "rows are left out), or name the class"
        )
    huge = [v for v in values if isinstance(v, int | float) and abs(v) > EXACT]
    if huge:
        shown = "" if private else f", such as {huge[0]!r}"
        raise DataError(
            f"data.target: column {name!r} has classes beyond 2**53{shown}, which cannot be told apart safely; write them "
            "as strings"
        )
    if asked == "auto" and len(values) > MOST_INTEGER_CLASSES and 2 * len(values) > rows:
        raise DataError(
            f"data.target: column {name!r} has {len(values):,} classes in {rows:,} rows, as an identifier has; choose "
            "another target, or say data.task: multiclass (for numbers also regression)"
        )


def _classes(column: pa.Array) -> tuple[list[Scalar], list[int]]:
    """Return the distinct values in ascending order, and how often each comes."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    table = pc.value_counts(column.drop_null())
    values = table.field("values").to_pylist()
    pairs = sorted(zip(values, table.field("counts").to_pylist(), strict=True))
    return [value for value, _ in pairs], [count for _, count in pairs]


def _event_last(
    values: Sequence[Any], counts: Sequence[int], positive: Any, name: str, private: bool
) -> tuple[list[Scalar], str]:
    if positive is None:
        # Ties go to the larger value: 1, True, "yes".
        event = 0 if counts[0] < counts[1] else 1
        share = counts[event] / sum(counts)
        other = values[1 - event]
        text = (
            "the rarer class"
            if private
            else f"{values[event]!r}, the rarer of {values[event]!r} and {other!r}"
        )
        notice = f"event: {text} of {name!r} ({share:.1%} of rows); set data.positive to change it"
    else:
        same = [i for i, value in enumerate(values) if value == positive and type(value) is type(positive)]
        alike = same or [i for i, value in enumerate(values) if _text(value) == _text(positive)]
        if not alike:
            there = "" if private else f"; it has {listed(map(repr, values))}"
            raise DataError(f"data.positive is {positive!r}, which is no value of column {name!r}{there}")
        event = alike[0]
        notice = f"event: {'as set' if private else repr(values[event])} ({counts[event] / sum(counts):.1%} of rows)"
    return [values[1 - event], values[event]], notice


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _multilabel(table: pa.Table, data: DataConfig) -> tuple[Target, list[str]]:
    if data.task not in ("auto", "multilabel"):
        raise DataError(
            f"data.task is {data.task}, but data.target gives several labels a row; use multilabel"
        )
    if data.positive is not None:
        raise DataError(
            f"data.positive is {data.positive!r}, but in multi-label every label has its own event, 1"
        )
    classes: list[str] = []
    parts = []
    for name in data.target:
        values = _zero_one(normalise(table.column(name)), name)
        parts.append(values)
        width = values.shape[1]
        classes += [name] if len(data.target) > 1 or width == 1 else [f"{name}[{i}]" for i in range(width)]
        if len(data.target) > 1 and width != 1:
            raise DataError(
                f"data.target: column {name!r} is itself a list; give one list or several plain columns"
            )
    matrix = np.column_stack(parts)
    known = matrix[~np.isnan(matrix).any(axis=1)]
    if not len(known):
        raise DataError(f"data.target: no row has all of {listed(data.target)}")
    constant = [classes[i] for i in np.flatnonzero(known.min(axis=0) == known.max(axis=0))]
    if constant:
        raise DataError(f"data.target: {listed(constant)} has one value only; leave it out")
    reason = f"there are {len(classes)} labels a row"
    suffix = "; set data.task otherwise" if data.task == "auto" else ""
    target = Target(columns=data.target, task="multilabel", reason=reason, classes=tuple(classes))
    return target, [f"task: multilabel, because {reason}{suffix}"]


def _zero_one(column: pa.Array, name: str) -> npt.NDArray[np.float64]:
    """Return float64 ``[n, K]`` of 0, 1 and NaN where missing."""
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 1
    kind = column.type.value_type if width != 1 or pa.types.is_fixed_size_list(column.type) else column.type
    if unsized := size_lists(kind):
        raise DataError(f"target {name!r} {unsized}")
    if is_text(column.type) and (words := _yes_or_no(column)) is not None:
        return words
    if not (is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"data.target: column {name!r} is {described(column.type)}, and each label of several is yes or no: store it as "
            "booleans, as 0 and 1, or as the words yes and no (yes where it holds what the label is named after)"
        )
    values = list_numbers(column) if pa.types.is_fixed_size_list(column.type) else numbers(column)[:, None]
    odd = ~(np.isnan(values) | (values == 0) | (values == 1))
    if odd.any():
        raise DataError(
            f"data.target: column {name!r} has {plural(int(odd.sum()), 'value')} other than 0 and 1; each of several labels is "
            "yes or no: store it as booleans or 0 and 1"
        )
    return values


def _yes_or_no(column: pa.Array) -> npt.NDArray[np.float64] | None:
    """Return float64 ``[n, 1]`` of a column of words for yes and no, NaN where missing; None where there are other words."""
    values = [_WORDS.get(str(value).strip().lower()) for value in column.dictionary.to_pylist()]
    places = indices(column)
    if any(values[i] is None for i in np.unique(places[places >= 0])):
        return None
    return np.array([*(np.nan if v is None else v for v in values), np.nan])[places][:, None]


def _class_codes(
    column: pa.Array, classes: Sequence[Any], name: str, private: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    if pa.types.is_dictionary(column.type):
        lut, odd = _lookup(column.dictionary, classes, name)
        places = indices(column)
        codes = np.append(lut, -1)[places]
        strange = np.append(odd, False)[places]
        unknown_values: pa.Array = column.dictionary.take(pa.array(np.unique(places[strange])))
        unknown = int(strange.sum())
    else:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        codes, odd = _lookup(column, classes, name)
        unknown = int(odd.sum())
        unknown_values = pc.unique(column.filter(pa.array(odd)))
    if unknown:
        shown = "" if private else f": {listed(map(repr, sorted(unknown_values.to_pylist())))}"
        allowed = "" if private else f"; the classes are {listed(map(repr, classes))}"
        raise DataError(
            f"target {name!r} has {plural(unknown, 'row')} of a class that was not there in "
            f"training{shown}{allowed}; correct those labels or leave the rows out"
        )
    return codes, codes < 0


def _lookup(
    values: pa.Array, classes: Sequence[Any], name: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the class index of each value (-1 where null), and which values are of no class."""
    kind = pa.array(classes).type
    if not pa.types.is_null(values.type) and is_text(values.type) != is_text(kind):
        _wrong_type(values.type, kind, name)
    if is_text(kind):
        values = values.cast(pa.string())
        found = pc.index_in(values, pa.array(classes, pa.string()))
    elif pa.types.is_null(values.type) or is_number(values.type) or pa.types.is_boolean(values.type):
        # Numbers and booleans compare by value, so that a class 1 is found as 1, 1.0 or true.
        nulls = values.is_null()
        plain = pc.if_else(nulls, pa.scalar(None, pa.float64()), pa.array(numbers(values)))
        found = pc.index_in(plain, pa.array([float(c) for c in classes], pa.float64()))
    else:
        _wrong_type(values.type, kind, name)
    codes = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    nulls_np = values.is_null().to_numpy(zero_copy_only=False)
    return codes, (codes < 0) & ~nulls_np


def _wrong_type(found: pa.DataType, expected: pa.DataType, name: str) -> NoReturn:
    raise DataError(
        f"target {name!r} is {described(found)}, but the classes are {described(expected)}; give labels of that type"
    )
