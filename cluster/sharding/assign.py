"""From the `split` section to a part for each row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.config import format_duration
from shoal.cluster.errors import DataError
from shoal.cluster.sharding import splits
from shoal.cluster.sharding.arrays import (
    described,
    indices,
    is_number,
    is_stamp,
    is_text,
    microseconds,
    normalise,
    numbers,
)
from shoal.cluster.sharding.config import DataConfig, TimeSplit
from shoal.cluster.sharding.hashing import U64, seeded
from shoal.cluster.sharding.manifest import SPLITS, Target
from shoal.cluster.sharding.names import listed, plural, require


@dataclass(frozen=True)
class Rows:
    """The labelled rows in key order; every array has ``n`` rows.

    Parameters
    ----------
    labels
        Class index, ``[n]`` or ``[n, K]``, or the value of a regression.
    roles
        Columns whose values matter: time, the split's column.
    keys
        Content keys.
    hashes
        Of the group and id columns, 0 where missing.
    """

    labels: npt.NDArray[Any]
    roles: pa.Table
    keys: U64
    hashes: dict[str, U64]

    def __len__(self) -> int:
        """Return n."""
        return len(self.keys)


@dataclass
class Assignment:
    """A part for each row, and how it came about.

    Parameters
    ----------
    parts
        int8 ``[n]``: 0 train, 1 validation, 2 test, -1 left out.
    kind
        In a few words.
    left_out
        Rows by reason.
    notices
        What to say aloud.
    """

    parts: splits.Codes
    kind: str
    left_out: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class Resplit(Protocol):
    """Gives rows other parts than the `data` section does: those of a fold.

    The section decides about test rows and rows of no part alone; its validation rows, and the gap before them, are none here.
    """

    @property
    def identity(self) -> Any:
        """Plain values that determine the parts, with the section and the seed."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose values `Rows.roles` has to hold, too."""

    def __call__(
        self, rows: Rows, data: DataConfig, target: Target, seed: int, found: Assignment
    ) -> Assignment | None:
        """Return the parts in place of those that were found; None for those of the section after all."""


def assign(
    rows: Rows, data: DataConfig, target: Target, seed: int, resplit: Resplit | None = None
) -> Assignment:
    """Split the rows as the `data` section says, and then as ``resplit`` does.

    Raises
    ------
    DataError
        If they cannot be split so.
    """
    if data.split.groups is not None and data.group is None:
        raise DataError(
            f"data.split.groups is {data.split.groups}, but there is no data.group; name the group's column"
        )
    result = None
    if resplit is not None:
        held = _split(rows, _test_alone(data), target, seed, test_alone=True)
        result = resplit(rows, data, target, seed, held)
    result = result or _split(rows, data, target, seed)
    _check(rows, data, target, result)
    return result


def _test_alone(data: DataConfig) -> DataConfig:
    """Return the section without validation rows."""
    split = data.split
    changes: dict[str, Any] = {"validation": 0.0}
    if split.hash is not None:
        changes["hash"] = split.hash.model_copy(update={"validation": 0.0})
    if split.time is not None:
        changes["time"] = split.time.model_copy(update={"validation": 0.0, "validation_from": None})
    return data.model_copy(update={"split": split.model_copy(update=changes)})


def _split(rows: Rows, data: DataConfig, target: Target, seed: int, test_alone: bool = False) -> Assignment:
    """Split the rows as the `data` section says; those that a column marks for validation train where test rows alone matter."""
    split = data.split
    if split.column is not None:
        result = _by_column(rows, data, target, seed, test_alone)
    elif split.hash is not None:
        result = _by_hash(rows, data, seed)
    elif split.time is not None or data.time is not None:
        result = _by_time(rows, data)
    elif data.group is not None:
        groups = seeded(group_hashes(rows, data.group), seed)
        result = Assignment(splits.grouped(groups, split.test, split.validation), f"group: {data.group}")
    else:
        result = _by_class(rows, data, target)
    if data.group is not None:
        _say_groupless(rows, data.group, result)
    return result


def _by_class(rows: Rows, data: DataConfig, target: Target) -> Assignment:
    test, validation = data.split.test, data.split.validation
    if target.task not in ("binary", "multiclass"):
        result = Assignment(splits.random(len(rows), test, validation), "random")
        _say_none(result, test, validation)
        return result
    counts = np.bincount(rows.labels, minlength=len(target.classes))
    n_parts = 1 + (test > 0) + (validation > 0)
    small = np.flatnonzero(counts < n_parts)
    if len(small):
        raise DataError(
            f"data.split: {_classes(small, counts, data, target)} of target {target.columns[0]!r} cannot be split by "
            f"class, which needs a row for each of {n_parts} parts; leave out or join such classes, ask for fewer parts "
            "(data.split.validation: 0), or use another split, such as data.split.hash"
        )
    parts = splits.stratified(rows.labels, len(target.classes), test, validation)
    result = Assignment(parts, f"stratified by {target.columns[0]}")
    _say_none(result, test, validation)
    for name, part in (("test", splits.TEST), ("validation", splits.VALIDATION)):
        empty = np.flatnonzero(np.bincount(rows.labels[parts == part], minlength=len(counts)) == 0)
        if 0 < len(empty) < len(counts):
            result.notices.append(
                f"{_classes(empty, counts, data, target)} of target {target.columns[0]!r} is too small to have a "
                f"{name} row"
            )
    return result


def _say_none(result: Assignment, test: float, validation: float) -> None:
    for name, part, share in (("test", splits.TEST, test), ("validation", splits.VALIDATION, validation)):
        if share > 0 and not (result.parts == part).any():
            result.notices.append(
                f"data.split.{name} is {share:g}, which of {plural(len(result.parts), 'row')} is none; give more, or 0"
            )


def _by_hash(rows: Rows, data: DataConfig, seed: int) -> Assignment:
    chosen = data.split.hash
    assert chosen is not None
    if chosen.test + chosen.validation >= 1:
        raise DataError(
            f"data.split.hash: test {chosen.test} and validation {chosen.validation} leave no training rows; their "
            "sum must be below 1"
        )
    if data.group is not None:
        hashes, of = group_hashes(rows, data.group), data.group
    elif data.id is not None:
        ids = rows.hashes[data.id]
        hashes, of = np.where(ids == 0, rows.keys, ids), data.id
    else:
        hashes, of = rows.keys, "the row's content"
    return Assignment(splits.hashed(seeded(hashes, seed), chosen.test, chosen.validation), f"hash of {of}")


def _by_time(rows: Rows, data: DataConfig) -> Assignment:
    if data.time is None:
        raise DataError("data.split.time needs data.time, the column that orders the rows")
    chosen = data.split.time or TimeSplit(test=data.split.test, validation=data.split.validation)
    times, missing, numeric = times_of(rows.roles, data)
    known = ~missing
    if not known.any():
        raise DataError(f"data.time: column {data.time!r} has no value in any row")
    test_from = _stamp(chosen.test_from, numeric, data, "test_from")
    validation_from = _stamp(chosen.validation_from, numeric, data, "validation_from")
    if test_from is not None and validation_from is not None and validation_from >= test_from:
        raise DataError(
            f"data.split.time: validation_from {chosen.validation_from} is not before test_from {chosen.test_from}"
        )
    for key, given, stamp in (
        ("test_from", chosen.test_from, test_from),
        ("validation_from", chosen.validation_from, validation_from),
    ):
        if stamp is not None and stamp > times[known].max():
            raise DataError(
                f"data.split.time: {key} {given} is after the last time stamp of column {data.time!r}, so that part would "
                "be empty; give an earlier one, or a share of the rows (test, validation)"
            )
    test = 0.2 if chosen.test is None else chosen.test
    gap = gap_of(chosen.gap, numeric, data)
    parts = np.full(len(rows), splits.LEFT_OUT, np.int8)
    parts[known] = splits.timed(times[known], test, chosen.validation, test_from, validation_from, gap)
    if gap and not (parts == splits.TRAIN).any():
        shown = format_duration(chosen.gap) if isinstance(chosen.gap, timedelta) else f"{chosen.gap:g}"
        raise DataError(
            f"data.split.time.gap is {shown}, and no row of column {data.time!r} is that long before the parts to come: "
            "there would be no training rows; give a shorter one"
        )
    result = Assignment(parts, f"time: {data.time}")
    _count(result, "without a time stamp", int(missing.sum()))
    _count(result, "in the gap between parts", int((known & (parts == splits.LEFT_OUT)).sum()))
    _say_cut(result, times, rows.roles.schema.field(data.time).type, data)
    return _settle_groups(rows, data, result)


def _by_column(rows: Rows, data: DataConfig, target: Target, seed: int, test_alone: bool) -> Assignment:
    name = data.split.column
    assert name is not None
    column = normalise(rows.roles.column(name))
    if not is_text(column.type):
        raise DataError(
            f"data.split.column: column {name!r} is {described(column.type)}; it must hold the texts {listed(SPLITS)}"
        )
    found = column.dictionary.to_pylist()
    lut = np.array([*(SPLITS.index(value) if value in SPLITS else 3 for value in found), 3], np.int8)
    codes = indices(column)
    parts = lut[codes]
    if (parts == 3).any():
        odd = sorted({"(missing)" if i < 0 else repr(found[i]) for i in np.unique(codes[parts == 3])})
        shown = "other values" if name in data.private else f"the values {listed(odd)}"
        raise DataError(
            f"data.split.column: column {name!r} has {shown} in {plural(int((parts == 3).sum()), 'row')}; allowed "
            f"are {listed(SPLITS)}"
        )
    result = Assignment(parts, f"column: {name}")
    for part, label in ((splits.TEST, "test"), (splits.TRAIN, "train")):
        if not (parts == part).any():
            raise DataError(
                f"data.split.column: column {name!r} has no row with {label!r}; mark some, or use another split"
            )
    if test_alone:
        parts[parts == splits.VALIDATION] = splits.TRAIN
    result = _settle_groups(rows, data, result)
    if not (result.parts == splits.VALIDATION).any() and data.split.validation > 0:
        _cut_validation(rows, data, target, seed, result)
    return result


def cut_validation(
    rows: Rows, train: splits.Ints, data: DataConfig, target: Target, seed: int, share: float
) -> tuple[splits.Codes, str]:
    """Take validation rows from training rows, whole groups or by class.

    Parameters
    ----------
    train
        Which rows train, int64 ``[t]``.
    share
        Of them, in [0, 1).

    Returns
    -------
    Their parts, int8 ``[t]``, and how they came about.
    """
    if data.group is not None and data.split.groups != "allow":
        groups = seeded(group_hashes(rows, data.group)[train], seed)
        return splits.grouped(groups, 0.0, share), f"by {data.group}"
    if target.task in ("binary", "multiclass"):
        return splits.stratified(rows.labels[train], len(target.classes), 0.0, share), "by class"
    return splits.random(len(train), 0.0, share), "at random"


def _cut_validation(rows: Rows, data: DataConfig, target: Target, seed: int, result: Assignment) -> None:
    train = np.flatnonzero(result.parts == splits.TRAIN)
    share = data.split.validation
    cut, how = cut_validation(rows, train, data, target, seed, share)
    result.parts[train] = cut
    result.kind += f", validation cut from train {how}"
    result.notices.append(
        f"column {data.split.column!r} marks no validation rows: "
        f"{plural(int((cut == splits.VALIDATION).sum()), 'row')} ({share:.0%}) were cut from the training rows "
        f"{how}; data.split.validation sets the share"
    )


def _settle_groups(rows: Rows, data: DataConfig, result: Assignment) -> Assignment:
    """Answer for groups that the split tore apart: refuse, allow or drop."""
    if data.group is None or data.split.groups == "allow":
        return result
    _, groups = np.unique(group_hashes(rows, data.group), return_inverse=True)
    torn = splits.straddling(result.parts, groups)
    if not torn.any():
        return result
    count, concerned = int(torn.sum()), int((torn[groups] & (result.parts >= 0)).sum())
    if data.split.groups is None:
        raise DataError(
            f"data.split: {count:,} of {len(torn):,} groups of {data.group!r}, with {plural(concerned, 'row')}, have "
            f"rows in more than one part ({result.kind}); choose data.split.groups: allow (they stay in all their "
            "parts) or drop (only their latest part keeps them)"
        )
    before = int((result.parts >= 0).sum())
    result.parts = splits.drop_straddling(result.parts, groups)
    _count(
        result, f"of a {data.group} that comes back in a later part", before - int((result.parts >= 0).sum())
    )
    return result


def group_hashes(rows: Rows, name: str) -> U64:
    """Return the group of each row; a row without a group is one of its own, known by its content."""
    hashes = rows.hashes[name]
    return np.where(hashes == 0, rows.keys, hashes)


def _say_groupless(rows: Rows, name: str, result: Assignment) -> None:
    alone = int((rows.hashes[name] == 0).sum())
    if alone:
        result.notices.append(
            f"{plural(alone, 'row')} without a value in {name!r}: each is taken as a group of its own"
        )


def times_of(roles: pa.Table, data: DataConfig) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], bool]:
    """Return the time of each row (microseconds since 1970 UTC, or numbers), where it is missing, and whether it is a number.

    Raises
    ------
    DataError
        If the column holds neither times nor numbers.
    """
    assert data.time is not None
    require(data.time, roles.column_names, "data.time")
    column = normalise(roles.column(data.time))
    if is_number(column.type):
        values = numbers(column)
        missing = np.isnan(values)
        if np.isinf(values).any():
            raise DataError(f"data.time: column {data.time!r} holds infinite values; remove those rows")
        return np.where(missing, 0, values), missing, True
    if is_stamp(column.type) or is_text(column.type):
        try:
            values_us, missing = microseconds(column)
        except pa.ArrowInvalid as error:
            shown = "" if data.time in data.private else f" ({str(error).splitlines()[0]})"
            raise DataError(
                f"data.time: column {data.time!r} holds texts that are no ISO 8601 time stamps{shown}; write them as "
                "2026-10-01 or 2026-10-01T12:00:00Z"
            ) from error
        return values_us, missing, False
    raise DataError(
        f"data.time: column {data.time!r} is {described(column.type)}; it must hold numbers, dates or time stamps"
    )


def _stamp(value: datetime | date | float | None, numeric: bool, data: DataConfig, key: str) -> Any:
    """Return a configured stamp in the unit of the column: its number, or microseconds since 1970 UTC."""
    if value is None:
        return None
    if isinstance(value, date) == numeric:
        kind, form = ("numbers", "a number") if numeric else ("time stamps", "a date such as 2026-10-01")
        raise DataError(
            f"data.split.time.{key} is {value}, but column {data.time!r} holds {kind}; give {form}"
        )
    if not isinstance(value, date):
        return value
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def gap_of(
    value: timedelta | float | None, numeric: bool, data: DataConfig, key: str = "data.split.time.gap"
) -> float | int:
    """Return the gap in the unit of the column: its number, or microseconds; a number alone is of seconds there."""
    if value is None:
        return 0
    if numeric and isinstance(value, timedelta):
        raise DataError(
            f"{key}: {format_duration(value)} is a duration, but column {data.time!r} holds numbers, whose unit is "
            "not known; give a number in that unit"
        )
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return seconds if numeric else round(seconds * 1_000_000)


def _say_cut(result: Assignment, times: npt.NDArray[Any], kind: pa.DataType, data: DataConfig) -> None:
    zone = " UTC" if is_text(kind) or getattr(kind, "tz", None) else ""
    said = []
    for name, part in (("validation", splits.VALIDATION), ("test", splits.TEST)):
        inside = times[result.parts == part]
        if len(inside) and data.time not in data.private:
            start = inside.min()
            text = (
                f"{start:g}"
                if is_number(kind)
                else f"{np.datetime64(int(start), 'us').astype('M8[s]')}{zone}"
            )
            said.append(f"{name} from {text}")
    if said:
        result.notices.append(f"split by time {data.time!r}: {', '.join(said)}")


def _count(result: Assignment, reason: str, rows: int) -> None:
    if rows:
        result.left_out[reason] = rows
        result.notices.append(f"left out {plural(rows, 'row')} {reason}")


def _classes(
    which: Sequence[int] | npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    data: DataConfig,
    target: Target,
) -> str:
    if set(target.columns) & set(data.private):
        return plural(len(which), "class")
    word = "class" if len(which) == 1 else "classes"
    shown = [f"{target.classes[i]!r} ({plural(int(counts[i]), 'row')})" for i in which]
    return f"{word} {listed(shown)}"


def _check(rows: Rows, data: DataConfig, target: Target, result: Assignment) -> None:
    """Refuse parts that cannot be trained on or judged by."""
    parts = result.parts
    train = parts == splits.TRAIN
    if not train.any():
        raise DataError(
            f"data.split ({result.kind}) leaves no training rows of {len(rows):,}; make test or validation smaller"
        )
    for name, part in (("test", splits.TEST), ("validation", splits.VALIDATION)):
        if not (parts == part).any():
            result.notices.append(f"there are no {name} rows")
    if target.task in ("binary", "multiclass"):
        counts = np.bincount(rows.labels, minlength=len(target.classes))
        absent = np.flatnonzero(np.bincount(rows.labels[train], minlength=len(counts)) == 0)
        if len(absent):
            raise DataError(
                f"data.split ({result.kind}): {_classes(absent, counts, data, target)} of target "
                f"{target.columns[0]!r} has no training row; leave it out, or split otherwise"
            )
    elif target.task == "multilabel":
        of_train = rows.labels[train]
        constant = np.flatnonzero(of_train.min(axis=0) == of_train.max(axis=0))
        if len(constant):
            raise DataError(
                f"data.split ({result.kind}): label {listed(target.classes[i] for i in constant)} has one value only "
                "in the training rows; leave it out, or split otherwise"
            )
    elif rows.labels[train].min() == rows.labels[train].max():
        raise DataError(
            f"data.split ({result.kind}): target {target.columns[0]!r} has one value only in the training rows; "
            "split otherwise"
        )
