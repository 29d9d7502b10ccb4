"""Which columns are features, and of which type."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from shoal.cluster.config import Config
from shoal.cluster.errors import DataError
from shoal.cluster.resources import format_size
from shoal.cluster.sharding.arrays import (
    EXACT,
    described,
    is_bytes,
    is_number,
    is_stamp,
    is_tensor,
    is_text,
    size_lists,
)
from shoal.cluster.sharding.config import ColumnType, DataConfig, ImageConfig, TextConfig
from shoal.cluster.sharding.facts import Facts
from shoal.cluster.sharding.images import pixels_of
from shoal.cluster.sharding.manifest import Column, Schema
from shoal.cluster.sharding.names import listed, plural, require
from shoal.cluster.sharding.texts import tokens_of

# Fewer rows say little about whether values repeat.
FEWEST_FOR_IDS = 20
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_WORDS = 4
_LONG = 100
_CYCLES = ("weekday_sin", "weekday_cos", "yearday_sin", "yearday_cos")
DATE_PARTS = ("age", *_CYCLES)
STAMP_PARTS = ("age", "hour_sin", "hour_cos", *_CYCLES)


@dataclass
class Features:
    """The feature columns, without statistics yet.

    Parameters
    ----------
    columns
        In the order of the input, or of an earlier fit.
    dropped
        Left out columns, with the reason.
    notices
        What to say aloud.
    """

    columns: list[Column] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def candidates(schema: pa.Schema, data: DataConfig) -> tuple[list[str], dict[str, str], list[str]]:
    """Decide by name and role which columns may be features.

    Returns
    -------
    Their names, the other columns with the reason, and notices.

    Raises
    ------
    DataError
        If the `data` section names a column that is not there, or one in two roles.
    """
    names = list(schema.names)
    for key in ("group", "domain", "time", "id"):
        if (name := getattr(data, key)) is not None:
            require(name, names, f"data.{key}")
            kind = schema.field(name).type
            if pa.types.is_nested(kind) and key != "time":
                raise DataError(
                    f"data.{key}: column {name!r} is {kind}; name a column of plain values, such as texts or integers"
                )
    if data.split.column is not None:
        require(data.split.column, names, "data.split.column")
    for key in ("target", "features", "drop", "private", "types", "scaling"):
        for name in getattr(data, key) or ():
            require(name, names, f"data.{key}")
    reasons = dict.fromkeys(data.drop, "data.drop")
    reasons |= dict.fromkeys(data.target, "target")
    for role, name in (("id", data.id), ("column of the split", data.split.column), ("domain", data.domain)):
        if name is None:
            continue
        if name in (data.features or ()) or name in data.target:
            raise DataError(
                f"data.features: column {name!r} is the {role}, which is never a feature; leave it out there"
            )
        reasons[name] = role
    notices = []
    for role, name in (("group", data.group), ("time", data.time)):
        if name is not None and name not in (data.features or ()) and name not in reasons:
            reasons[name] = f"{role} column"
            notices.append(f"column {name!r} is the {role} and no feature; data.features can name it")
    for name in names:  # pandas stores a data frame's row labels so
        if _PANDAS_INDEX.fullmatch(name) and name not in (data.features or ()) and name not in reasons:
            reasons[name] = "row labels of a data frame"
            notices.append(
                f"column {name!r} holds the row labels of a data frame, and is no feature; data.features can name it"
            )
    if data.features is not None:
        reasons = {name: "not in data.features" for name in names if name not in data.features} | reasons
    chosen = [name for name in names if name not in reasons]
    if not chosen:
        raise DataError("no feature column is left; check data.features and data.drop")
    for key in ("types", "scaling"):
        for name in getattr(data, key):
            if name in reasons:
                raise DataError(
                    f"data.{key}: column {name!r} is no feature ({reasons[name]}); remove it there"
                )
    return chosen, reasons, notices


def known_features(
    known: Schema, chosen: list[str], names: list[str], *, unlabelled: bool = False
) -> Features:
    """Return the columns of an earlier fit, as that left them; the others that might be features are left out.

    Parameters
    ----------
    known
        The schema of that fit.
    chosen, names
        Columns that may be features, and all that there are.
    unlabelled
        Whether these are rows of a target domain, and the fit is that of the source's rows.

    Raises
    ------
    DataError
        If one is not there, or may be no feature.
    """
    own = [column.name for column in known.columns]
    for name in own:
        if name not in chosen:
            why = "is no feature here (see the data section)" if name in names else "is not in the data"
            if unlabelled:
                raise DataError(
                    f"transfer.target_data: column {name!r} {why}, and it is a feature of the source's rows: give it under that "
                    "name, or leave it out there too (data.drop)"
                )
            raise DataError(
                f"column {name!r} {why}, and the model to start from reads it: give it under that name, or "
                "start from another model (transfer.start)"
            )
    result = Features(list(known.columns))
    more = [name for name in chosen if name not in own]
    whose = (
        "that the source's rows do not have" if unlabelled else "that the model to start from does not read"
    )
    result.dropped = dict.fromkeys(
        more, "no column of the source's rows" if unlabelled else "no column of the model to start from"
    )
    if more:
        result.notices.append(
            f"{plural(len(more), 'column')} {whose} "
            f"{'is' if len(more) == 1 else 'are'} left out: {listed(map(repr, more), 3)}"
        )
    return result


def infer_features(
    schema: pa.Schema,
    names: list[str],
    facts: dict[str, Facts],
    data: DataConfig,
    costs: Sequence[str] = (),
) -> Features:
    """Decide the type of every feature column from its Arrow type and what it holds.

    Infinity in ``costs`` is left to `costs.refuse_costs`, which names the row.

    Raises
    ------
    DataError
        If a column holds text, images, raw bytes, variable lists, structures, maps or infinity; the message
        gives the fix.
    """
    result = Features()
    refused: list[str] = []
    for name in names:
        kind, of = schema.field(name).type, facts[name]
        asked, media = _asked(data, name)
        if not of.present and of.rows:
            _leave(result, name, "all values are missing", "")
            continue
        problem = None if asked else _refusal(name, kind, of)
        if problem:
            refused.append(problem)
            continue
        if asked is None and (why := _id_like(kind, of)):
            _leave(
                result,
                name,
                why,
                f"data.types: {{{name}: {'categorical' if is_text(kind) else 'numeric'}}} keeps it",
            )
            continue
        found, reason = (asked, "data.types says so") if asked else _infer(kind, of)
        _suits(name, kind, found, of)
        if asked is None and is_text(kind) and found == "timestamp":
            result.notices.append(
                f"column {name!r} holds ISO dates: taken as time stamps (UTC where no zone is given); data.types: "
                f"{{{name}: categorical}} changes that"
            )
        if of.infinite and name not in costs:
            refused.append(
                f"column {name!r} has {plural(of.infinite, 'infinite value')}: make them null (missing) or large "
                "numbers, or leave the column out with data.drop"
            )
            continue
        if media is not None:
            result.columns.append(_media_column(name, kind, media))
            continue
        result.columns.append(_column(name, kind, found, reason, of))
    if refused:
        raise DataError("\n".join(refused))
    if not result.columns:
        fix = ""
        for name, why in result.dropped.items():
            if "identifier" in why and not fix:
                kind = "numeric" if "without a gap" in why else "categorical"
                fix = f"; where it is a feature, say so: data.types: {{{name}: {kind}}}"
        raise DataError(
            f"no feature column is left: {listed(f'{n} ({r})' for n, r in result.dropped.items())}{fix}"
        )
    incomplete = {c.name: facts[c.name].missing for c in result.columns if facts[c.name].missing}
    if incomplete:
        first = sorted(incomplete, key=lambda name: -incomplete[name])
        counted = (f"{name!r} in {incomplete[name]:,}" for name in first)
        result.notices.append(
            f"missing values (null or NaN) of {plural(facts[first[0]].rows, 'row')}: {listed(counted, 3)}; numbers get the "
            "training mean and a column that says so, categories a code of their own"
            + (", texts are empty, images of the mean colour" if any(c.block for c in result.columns) else "")
        )
    size = sum(4 * c.block * facts[c.name].rows for c in result.columns)
    if size:
        result.notices.append(
            f"texts and images take {format_size(size)} in the shards, as tokens and pixels"
        )
    return result


def drop_constant(
    columns: list[Column], constant: Callable[[Column], bool], features: Features
) -> list[Column]:
    """Leave out the columns that the training rows do not vary in.

    Raises
    ------
    DataError
        If none is left.
    """
    kept = []
    for column in columns:
        if constant(column):
            _leave(features, column.name, "constant in the training rows", "")
        else:
            kept.append(column)
    if not kept:
        raise DataError(
            f"no feature column is left: {listed(f'{n} ({r})' for n, r in features.dropped.items())}; give columns "
            "that vary"
        )
    return kept


def _leave(result: Features, name: str, reason: str, key: str) -> None:
    result.dropped[name] = reason
    result.notices.append(f"column {name!r} is left out: {reason}" + (f"; {key}" if key else ""))


def _refusal(name: str, kind: pa.DataType, of: Facts) -> str | None:
    drop = f"leave it out with data.drop: [{name}]"
    if is_bytes(kind):
        return (
            f"column {name!r} holds raw bytes ({kind}): if they are images, say so with data.types: {{{name}: {{image: "
            f"{{size: 224}}}}}} (or {{shape: [28, 28]}}, for raw pixels); otherwise {drop}, or store numbers as a fixed-size list"
        )
    if unsized := size_lists(kind):
        return f"column {name!r} {unsized}; lists of varying length are not supported: {drop}"
    if pa.types.is_nested(kind) and not is_tensor(kind):
        return f"column {name!r} is {kind}: structures, maps and lists of varying length are not supported; {drop}"
    if is_text(kind) and not of.iso and _is_prose(of):
        return (
            f"column {name!r} holds text (about {of.distinct:,.0f} distinct values of {of.length / of.present:.0f} "
            f"characters on average): give it a tokenizer with data.types: {{{name}: {{text: {{tokenizer: ./folder}}}}}}, "
            f"{drop}, or take each value as a category with data.types: {{{name}: categorical}}"
        )
    return None


def _is_prose(of: Facts) -> bool:
    """Tell free text from category names: mostly distinct values of several words, or long ones."""
    repeated = of.distinct < 0.5 * of.present or of.present < FEWEST_FOR_IDS
    wordy = of.spaces >= (_WORDS - 1) * of.present or (
        of.length > _LONG * of.present and of.spaces >= of.present
    )
    return wordy and not repeated


def _id_like(kind: pa.DataType, of: Facts) -> str | None:
    if of.present < FEWEST_FOR_IDS:
        return None
    if is_text(kind) and not of.iso and of.all_distinct:
        return f"all {of.present:,} values are distinct, as in an identifier"
    if pa.types.is_integer(kind) and of.contiguous():
        return f"it numbers the {of.present:,} rows without a gap, as an identifier"
    return None


def _infer(kind: pa.DataType, of: Facts) -> tuple[ColumnType, str]:
    if is_text(kind):
        return ("timestamp", "ISO dates") if of.iso else ("categorical", "strings")
    if pa.types.is_boolean(kind):
        return "boolean", "booleans"
    if is_stamp(kind):
        return "timestamp", "dates" if pa.types.is_date(kind) else "time stamps"
    if is_tensor(kind):
        return "tensor", "lists of one length"
    if pa.types.is_decimal(kind):
        return "numeric", "decimals"
    return "numeric", "integers" if pa.types.is_integer(kind) else "numbers"


def _asked(data: DataConfig, name: str) -> tuple[ColumnType | None, Config | None]:
    """Return the type that is asked for, and how a text or an image is read."""
    asked = data.types.get(name)
    if isinstance(asked, TextConfig):
        return "text", asked
    if isinstance(asked, ImageConfig):
        return "image", asked
    return asked, None  # type: ignore[return-value]


def _media_column(name: str, kind: pa.DataType, config: Config) -> Column:
    column = Column(name=name, type="text", arrow_type=described(kind), reason="data.types says so")
    if isinstance(config, TextConfig):
        return column.model_copy(update={"tokens": tokens_of(name, config)})
    assert isinstance(config, ImageConfig)
    return column.model_copy(update={"type": "image", "pixels": pixels_of(config)})


def _suits(name: str, kind: pa.DataType, found: ColumnType, of: Facts) -> None:
    """Refuse a type from `data.types` that the column cannot have."""
    plain = is_number(kind) or pa.types.is_boolean(kind)
    measured = pa.types.is_time(kind) or pa.types.is_duration(kind)
    fits = {
        "numeric": plain or measured or is_text(kind),
        "boolean": pa.types.is_boolean(kind) or (is_number(kind) and {of.low, of.high} <= {0.0, 1.0}),
        "categorical": is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind),
        "timestamp": is_stamp(kind) or (is_text(kind) and of.iso),
        "tensor": is_tensor(kind),
        "image": is_bytes(kind) or is_text(kind),
        "text": is_text(kind),
    }
    if not fits[found]:
        allowed = [other for other, fit in fits.items() if fit]
        raise DataError(
            f"data.types: column {name!r} is {kind} and cannot be {found}; "
            + (f"it can be {listed(allowed)}" if allowed else f"leave it out with data.drop: [{name}]")
        )


def _column(name: str, kind: pa.DataType, found: ColumnType, reason: str, of: Facts) -> Column:
    parts: tuple[str, ...] = ("value",)
    if found == "categorical":
        parts = ()
    elif found == "tensor":
        parts = tuple(map(str, range(kind.list_size)))
    elif found == "timestamp":
        parts = STAMP_PARTS if of.timed else DATE_PARTS
    value_type: Literal["string", "integer", "boolean", ""] = ""
    if found == "categorical":
        value_type = "string" if is_text(kind) else "boolean" if pa.types.is_boolean(kind) else "integer"
    return Column(
        name=name,
        type=found,
        arrow_type=str(kind),
        reason=reason,
        parts=parts,
        origin=_origin(kind, of) if found == "numeric" else 0,
        center=(0.0,) * len(parts),
        scale=(1.0,) * len(parts),
        value_type=value_type,
    )


def _origin(kind: pa.DataType, of: Facts) -> int:
    """Return what to take off integers whose differences a float64 would lose: 0 where it holds them well enough."""
    if not pa.types.is_integer(kind) or not of.present:
        return 0
    low, high = int(of.low), int(of.high)
    return low if max(abs(low), abs(high)) > EXACT and high - low < EXACT else 0
