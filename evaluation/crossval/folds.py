"""The folds of an experiment: from `evaluation.cv` and the rows to who trains and who judges.

Rows come in key order, a seeded random order of their content, so consecutive ones are a random choice, whatever the order
of the files.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn import model_selection

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding import splits
from shoal.cluster.sharding.arrays import normalise
from shoal.cluster.sharding.assign import Assignment, Rows, cut_validation, gap_of, group_hashes, times_of
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.hashing import generator, seeded
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import plural
from shoal.evaluation.crossval.config import (
    CV,
    AutoConfig,
    ColumnConfig,
    CountedConfig,
    GroupConfig,
    KFoldConfig,
    LeaveOneGroupOutConfig,
    NestedConfig,
    PurgedConfig,
    RepeatedConfig,
    RepeatedStratifiedConfig,
    StratifiedConfig,
    StratifiedGroupConfig,
    TimeSeriesConfig,
)
from shoal.evaluation.crossval.splitters import PurgedKFold, TimeSeriesSplit
from shoal.training.users_code import users

Ints = NDArray[np.int64]
_STREAM = 61  # of the draws of repeated splits
_BY_TIME = (TimeSeriesConfig, PurgedConfig)
_BY_GROUP = (GroupConfig, StratifiedGroupConfig, LeaveOneGroupOutConfig)
_PLAIN: dict[type[Config], Any] = {
    KFoldConfig: model_selection.KFold,
    StratifiedConfig: model_selection.StratifiedKFold,
    GroupConfig: model_selection.GroupKFold,
    StratifiedGroupConfig: model_selection.StratifiedGroupKFold,
}
_HEED_GROUPS = (*_BY_GROUP, *_BY_TIME, ColumnConfig, Imported)


@dataclass(frozen=True)
class Fold:
    """Who trains and who judges: rows in key order, int64."""

    train: Ints
    test: Ints


@dataclass(frozen=True)
class Folds:
    """All folds, in order; why these, in a sentence; with `cv: nested` those inside each."""

    folds: tuple[Fold, ...]
    reason: str
    inner: tuple["Folds", ...] = ()

    def __len__(self) -> int:
        return len(self.folds)


@dataclass(frozen=True)
class OneFold:
    """Gives rows the parts of a fold; a `cluster.sharding.assign.Resplit`.

    Test rows of the `data` section stay out of all folds. The rows that judge a fold are its test rows; its validation rows,
    for early stopping, calibration and thresholds, are cut from those that train.

    Parameters
    ----------
    cv
        `evaluation.cv`.
    number
        Of the fold, from 0.
    inner
        With `cv: nested`, the number of an inner fold, whose rows are training rows of the fold; None for the fold itself.
    validates
        Whether validation rows are cut from those that train; a fit that learns nothing from them trains on all.
    """

    cv: Config
    number: int
    inner: int | None = None
    validates: bool = True

    @property
    def identity(self) -> Any:
        """Plain values that determine the parts."""
        inner = {} if self.inner is None else {"inner": self.inner}
        validates = {} if self.validates else {"validates": False}
        return {"cv": Choice(CV).plain(self.cv), "fold": self.number, **inner, **validates}

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the folds, where one says them."""
        return columns_of(self.cv)

    def __call__(
        self, rows: Rows, data: DataConfig, target: Target, seed: int, found: Assignment
    ) -> Assignment:
        """Return the fold's parts.

        Raises
        ------
        DataError
            As `folds_of`.
        """
        folds = folds_of(self.cv, rows, data, target, seed, found)
        fold, cv, kind = (
            folds.folds[self.number],
            outer_of(self.cv),
            f"fold {self.number + 1} of {len(folds)}",
        )
        if self.inner is not None:
            assert isinstance(self.cv, NestedConfig)
            inner = inner_folds(self.cv, self.number, fold, rows, data, target, seed)
            fold, cv = inner.folds[self.inner], self.cv.inner
            kind = f"fold {self.inner + 1} of {len(inner)} inside {kind}"
        parts = np.full(len(rows), splits.LEFT_OUT, np.int8)
        parts[fold.test] = splits.TEST
        how = "of no rows"
        parts[fold.train] = splits.TRAIN
        if self.validates:
            parts[fold.train], how = with_validation(cv, rows, fold.train, data, target, seed)
        kind = f"{kind}, validation {how}"
        left_out = {**found.left_out, "of no part in this fold": int((parts == splits.LEFT_OUT).sum())}
        return Assignment(parts, kind, {k: n for k, n in left_out.items() if n}, found.notices)


def columns_of(cv: Config) -> tuple[str, ...]:
    """Return the columns whose values the folds are made of, beside those of the `data` section."""
    levels = (cv.outer, cv.inner) if isinstance(cv, NestedConfig) else (cv,)
    return tuple(dict.fromkeys(level.name for level in levels if isinstance(level, ColumnConfig)))


def outer_of(cv: Config) -> Config:
    """Return what deals the folds that judge."""
    return cv.outer if isinstance(cv, NestedConfig) else cv


def inner_folds(
    cv: NestedConfig, number: int, fold: Fold, rows: Rows, data: DataConfig, target: Target, seed: int
) -> Folds:
    """Deal the training rows of an outer fold into inner ones.

    Raises
    ------
    ConfigError, DataError
        As `folds_of`, with the outer fold.
    """
    parts = np.full(len(rows), splits.LEFT_OUT, np.int8)
    parts[fold.train] = splits.TRAIN
    try:
        return folds_of(cv.inner, rows, data, target, seed, Assignment(parts, ""))
    except DataError as error:
        raise DataError(f"evaluation.cv: nested: inside fold {number + 1}: {error}") from error


def folds_of(cv: Config, rows: Rows, data: DataConfig, target: Target, seed: int, found: Assignment) -> Folds:
    """Deal rows into folds, the outer ones of nested; those that the `data` section makes test rows, or leaves out, are in none.

    Parameters
    ----------
    cv
        `evaluation.cv`.
    rows
        All labelled rows, in key order.
    found
        Their parts by the `data` section.

    Raises
    ------
    DataError
        If the rows cannot be dealt so.
    ConfigError
        If a splitter of the user's own cannot be used.
    """
    cv = outer_of(cv)
    pool = np.flatnonzero((found.parts == splits.TRAIN) | (found.parts == splits.VALIDATION))
    chosen, reason = _chosen(cv, rows, pool, data, target)
    _refuse(chosen, rows, pool, data, target)
    labels, groups = rows.labels[pool], None
    if data.group is not None:
        groups = np.unique(seeded(group_hashes(rows, data.group)[pool], seed), return_inverse=True)[1]
    features: Any = np.zeros((len(pool), 1))
    if isinstance(chosen, _BY_TIME):
        features, pool, labels, groups = _timed(rows, pool, labels, groups, data)
    elif isinstance(chosen, ColumnConfig):
        groups = _values(rows, pool, chosen)
    splitter = _splitter(chosen, data, rows, seed)
    dealt = []
    try:
        heeded = groups if isinstance(chosen, _HEED_GROUPS) else None  # the others would warn
        for train, test in splitter.split(features, labels, heeded):
            dealt.append(Fold(pool[np.sort(train)], pool[np.sort(test)]))
    except ValueError as error:
        raise DataError(f"evaluation.cv: {_name(chosen)}: {error}; {_fix(chosen, data)}") from None
    _refuse_empty(dealt, rows, target, chosen)
    return Folds(tuple(dealt), reason)


def _chosen(cv: Config, rows: Rows, pool: Ints, data: DataConfig, target: Target) -> tuple[Config, str]:
    """Settle what `auto` leaves open, and say why."""
    if not isinstance(cv, AutoConfig):
        return cv, f"cv: {_name(cv)}"
    n, by_class = cv.n_splits, target.task in ("binary", "multiclass")
    if data.time is not None:
        return TimeSeriesConfig(n_splits=n), (
            f"cv: time_series, {n} folds, because data.time orders the rows: each is judged by a model of its past"
        )
    if data.group is not None:
        name = "stratified_group" if by_class else "group"
        made: Config = StratifiedGroupConfig(n_splits=n) if by_class else GroupConfig(n_splits=n)
        return made, f"cv: {name}, {n} folds, because rows of one {data.group!r} must not be on both sides"
    if by_class:
        fewest = int(np.bincount(rows.labels[pool], minlength=len(target.classes)).min())
        if 2 <= fewest < n:
            return StratifiedConfig(n_splits=fewest), (
                f"cv: stratified, {fewest} folds and not {n}, because the smallest class has {fewest} rows"
            )
        return StratifiedConfig(n_splits=n), f"cv: stratified, {n} folds, because the target has classes"
    return KFoldConfig(n_splits=n), f"cv: kfold, {n} folds, because nothing orders or groups the rows"


def _refuse(cv: Config, rows: Rows, pool: Ints, data: DataConfig, target: Target) -> None:
    """Refuse folds that the data have no use for."""
    name = _name(cv)
    if isinstance(cv, _BY_GROUP) and data.group is None:
        raise DataError(f"evaluation.cv: {name} needs data.group, the column of the groups")
    if isinstance(cv, _BY_TIME) and data.time is None:
        raise DataError(f"evaluation.cv: {name} needs data.time, the column that orders the rows")
    torn = (KFoldConfig, StratifiedConfig, RepeatedConfig)
    if isinstance(cv, torn) and data.group is not None and data.split.groups != "allow":
        raise DataError(
            f"evaluation.cv: {name} would part the groups of {data.group!r}; choose group or stratified_group, or set "
            "data.split.groups: allow"
        )
    if not isinstance(cv, StratifiedConfig | StratifiedGroupConfig | RepeatedStratifiedConfig):
        return
    if target.task not in ("binary", "multiclass"):
        raise DataError(
            f"evaluation.cv: {name} is for classes, and the task is {target.task}; choose kfold or group"
        )
    counts = np.bincount(rows.labels[pool], minlength=len(target.classes))
    n = cv.n_splits
    if counts.min() < n:
        private = set(target.columns) & set(data.private)
        which = "the smallest class" if private else f"class {target.classes[int(counts.argmin())]!r}"
        raise DataError(
            f"evaluation.cv: {name} with {n} folds needs as many rows of each class, and {which} has "
            f"{plural(int(counts.min()), 'row')} that are not test rows; choose fewer folds, or leave out or join such classes"
        )


def _fix(cv: Config, data: DataConfig) -> str:
    """Return what to change where folds cannot be dealt."""
    spans = [name for name in ("gap", "purge", "embargo") if getattr(cv, name, None)]
    fixes = [f"a smaller {' or '.join(spans)}"] if spans else []
    if isinstance(cv, TimeSeriesConfig | PurgedConfig) and data.group is not None and cv.groups == "drop":
        fixes.append("groups: allow")
    return f"choose {', '.join([*fixes, 'fewer folds'])}, or other ones"


def _splitter(cv: Config, data: DataConfig, rows: Rows, seed: int) -> Any:
    """Return scikit-learn's splitter, or one like it."""
    if isinstance(cv, Imported):
        return _users(cv)
    if isinstance(cv, RepeatedConfig):
        kind = (
            model_selection.RepeatedStratifiedKFold
            if isinstance(cv, RepeatedStratifiedConfig)
            else model_selection.RepeatedKFold
        )
        state = int(generator(seed, _STREAM).integers(2**32))
        return kind(n_splits=cv.n_splits, n_repeats=cv.n_repeats, random_state=state)
    if isinstance(cv, TimeSeriesConfig):
        size = cv.max_train_size
        window = _span(size, data, rows) if isinstance(size, timedelta) else None
        most = size if isinstance(size, int) else None
        return TimeSeriesSplit(cv.n_splits, _span(cv.gap, data, rows), most, cv.groups == "drop", window)
    if isinstance(cv, PurgedConfig):
        return PurgedKFold(
            cv.n_splits, _span(cv.purge, data, rows), _span(cv.embargo, data, rows), cv.groups == "drop"
        )
    if isinstance(cv, LeaveOneGroupOutConfig | ColumnConfig):
        return model_selection.LeaveOneGroupOut()
    assert isinstance(cv, CountedConfig)
    return _PLAIN[type(cv)](n_splits=cv.n_splits)


def _users(cv: Imported) -> Any:
    factory = cv.load()
    try:
        with users(f"evaluation.cv.import: {cv.path}", ConfigError):
            made = factory(**cv.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluation.cv.import: {cv.path} could not be called: {error}; it gets the keys written beside import"
        ) from error
    if not callable(getattr(made, "split", None)):
        raise ConfigError(
            f"evaluation.cv.import: {cv.path} returned {type(made).__name__}; it must return a splitter, with scikit-learn's "
            "split(X, y, groups)"
        )
    return made


def _timed(
    rows: Rows, pool: Ints, labels: NDArray[Any], groups: Ints | None, data: DataConfig
) -> tuple[NDArray[Any], Ints, NDArray[Any], Ints | None]:
    """Return the times of the rows that have one, and those rows alone."""
    times, missing, _ = times_of(rows.roles, data)
    known = ~missing[pool]
    return times[pool][known], pool[known], labels[known], None if groups is None else groups[known]


def _span(value: Any, data: DataConfig, rows: Rows) -> float:
    """Return a span in the unit of the times; a number alone is none of days or hours."""
    numeric = times_of(rows.roles, data)[2]
    if isinstance(value, float) and value and not numeric:
        raise DataError(
            f"evaluation.cv: {value:g} is no span of time, and column {data.time!r} holds times; write a duration, such as "
            f"{value:g}d, {value:g}h or {value:g}s"
        )
    return gap_of(value, numeric, data, "evaluation.cv")


def _values(rows: Rows, pool: Ints, cv: ColumnConfig) -> Ints:
    column = normalise(rows.roles.column(cv.name)).take(pa.array(pool))
    if pa.types.is_nested(column.type):
        raise DataError(
            f"evaluation.cv.column: column {cv.name!r} holds {column.type}; it must hold one value a row"
        )
    if column.null_count:
        raise DataError(
            f"evaluation.cv.column: {plural(column.null_count, 'row')} that are not test rows have no value in {cv.name!r}; give "
            "each its fold"
        )
    values = np.asarray(column.to_pylist())
    found, codes = np.unique(values, return_inverse=True)
    if len(found) < 2 or len(found) > len(pool) // 2:
        raise DataError(
            f"evaluation.cv.column: {cv.name!r} has {plural(len(found), 'value')} in {plural(len(pool), 'row')}; it must name "
            "each row's fold, with at least 2 of them"
        )
    return codes.astype(np.int64)


def _refuse_empty(dealt: list[Fold], rows: Rows, target: Target, cv: Config) -> None:
    """Refuse folds that cannot be trained on or judged by."""
    if not dealt:
        raise DataError(f"evaluation.cv: {_name(cv)} makes no folds of these rows")
    for number, fold in enumerate(dealt, 1):
        if not len(fold.test) or not len(fold.train):
            what = "test" if not len(fold.test) else "training"
            raise DataError(
                f"evaluation.cv: fold {number} of {_name(cv)} has no {what} rows; choose fewer folds"
            )
        trains = np.zeros(len(rows), np.bool_)
        trains[fold.train] = True
        if trains[fold.test].any():
            raise DataError(
                f"evaluation.cv: fold {number} of {_name(cv)} has rows that both train and judge: its splitter is wrong"
            )
        if target.task in ("binary", "multiclass"):
            judged, trained = (
                np.bincount(rows.labels[part], minlength=len(target.classes))
                for part in (fold.test, fold.train)
            )
            if absent := int(((judged > 0) & (trained == 0)).sum()):
                raise DataError(
                    f"evaluation.cv: fold {number} of {_name(cv)} judges {plural(absent, 'class')} of which it has no "
                    "training row; choose fewer folds, or stratified ones"
                )


def with_validation(
    cv: Config, rows: Rows, train: Ints, data: DataConfig, target: Target, seed: int
) -> tuple[splits.Codes, str]:
    """Cut a fold's validation rows from those that train: the latest of them in folds over time.

    Parameters
    ----------
    cv
        What dealt the fold: not nested.
    train
        Which rows train, int64 ``[t]``.

    Returns
    -------
    Their parts, int8 ``[t]``, and how they came about.

    Raises
    ------
    DataError
        If they cannot be cut so.
    """
    by_time = data.split.time is not None or (data.time is not None and data.split.hash is None)
    share = data.split.time.validation if data.split.time is not None else data.split.validation
    if data.split.hash is not None:
        share = data.split.hash.validation
    if share == 0:
        return np.zeros(len(train), np.int8), "of no rows"
    if not (by_time and isinstance(cv, (*_BY_TIME, AutoConfig))):
        return cut_validation(rows, train, data, target, seed, share)
    times, _, _ = times_of(rows.roles, data)
    gap = _span(data.split.time.gap if data.split.time else getattr(cv, "gap", None), data, rows)
    return splits.timed(times[train], 0.0, share, None, None, gap), "the latest"


def _name(cv: Config) -> str:
    return cv.path if isinstance(cv, Imported) else str(Choice(CV).name_of(cv))
