"""Which columns two domains differ in: a test, an effect and an AUC of its own for each.

Tests are two-sample tests of one column at a time, adjusted over all columns by Holm's step-down; with many rows every
difference is significant, so columns are ordered by effect: the largest distance of two distribution functions
(Kolmogorov-Smirnov) for numbers, the total variation distance for categories. Both are between 0 and 1. What columns do together
(a changed correlation) only a classifier of all of them sees (`domains`).

References
----------
Holm (1979), Scandinavian Journal of Statistics 6. Rabanser, Günnemann and Lipton (2019), "Failing loudly", section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp

from shoal.cluster.sharding.manifest import MISSING, OTHER, Column, Schema
from shoal.transfer.content import Ints
from shoal.transfer.shift.domains import Bools, Floats, Pair, Separation, judge, separate

Values = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]

LEVELS = 32  # intervals of a number, by its quantiles, for its own AUC
BARS = 24  # of a drawn distribution
_LEAST = 5  # rows that chi-square expects in a cell; rarer categories are pooled


@dataclass(frozen=True)
class Distribution:
    """Shares of a column's values in both domains, for a drawing.

    Attributes
    ----------
    edges
        Of a number's intervals in its own units, ``[b + 1]``; empty for categories.
    names
        Of categories, ``[b]``; empty for numbers.
    source, target
        Shares of the rows, ``[b]``: of those that have a number, or of all, missing ones being a category.
    """

    edges: tuple[float, ...]
    names: tuple[str, ...]
    source: tuple[float, ...]
    target: tuple[float, ...]


@dataclass(frozen=True)
class ColumnShift:
    """How one column (or one part of a time stamp) differs.

    Attributes
    ----------
    name, column
        Of the prepared feature, and of the raw column that it comes from.
    numeric
        Whether the effect is Kolmogorov-Smirnov's distance rather than total variation.
    effect
        Of the values that are there; NaN where the column was not tested.
    p_value
        The smaller of the two of values and of the share of missing ones, adjusted over all tests by Holm.
    missing_source, missing_target
        Shares of missing values.
    unknown_target
        Share of target values that are no category of the schema, or rare ones.
    auc
        Of a classifier of this column alone.
    skipped
        Why it was not tested; empty where it was.
    """

    name: str
    column: str
    numeric: bool
    effect: float = np.nan
    p_value: float = np.nan
    missing_source: float = 0.0
    missing_target: float = 0.0
    unknown_target: float = 0.0
    auc: Separation | None = None
    skipped: str = ""


def compare_columns(rows: Pair, schema: Schema, *, confidence: float = 0.95) -> list[ColumnShift]:
    """Test each column; the largest effects come first, then what was skipped.

    Parameters
    ----------
    rows
        Of both domains, prepared by `schema`.
    """
    found: list[ColumnShift] = []
    tests: list[tuple[float, float]] = []
    for place, (column, _, name) in enumerate(_numbers(schema)):
        found.append(_compare(rows, column, name, rows.numeric[:, place], True, tests, confidence))
    for place, column in enumerate(schema.categorical):
        codes = rows.categorical[:, place]
        found.append(_compare(rows, column, column.name, codes, False, tests, confidence))
    adjusted = iter(holm([p for both in tests for p in both]))
    result = [
        shift if shift.skipped else replace(shift, p_value=min(next(adjusted), next(adjusted)))
        for shift in found
    ]
    # A column that is there in one domain only by its missing values counts by these.
    return sorted(result, key=lambda s: (bool(s.skipped), -_size(s), s.name))


def _size(shift: ColumnShift) -> float:
    return max(float(np.nan_to_num(shift.effect)), abs(shift.missing_source - shift.missing_target))


def _numbers(schema: Schema) -> list[tuple[Column, int, str]]:
    """Return column, number of the part and name of each prepared number; only those of several parts are named with it."""
    return [
        (column, i, column.name if column.width == 1 else f"{column.name} ({part})")
        for column in schema.numeric
        for i, part in enumerate(column.parts)
    ]


def _compare(
    rows: Pair,
    column: Column,
    name: str,
    values: Values,
    numeric: bool,
    tests: list[tuple[float, float]],
    confidence: float,
) -> ColumnShift:
    """Describe one column, and add the two p-values of its values and of its missing ones, unadjusted, to `tests`."""
    blank = np.isnan(values) if numeric else values == MISSING
    shift = ColumnShift(
        name, column.name, numeric,
        missing_source=float(blank[~rows.in_target].mean()), missing_target=float(blank[rows.in_target].mean()),
    )  # fmt: skip
    source, target = values[~rows.in_target & ~blank], values[rows.in_target & ~blank]
    if not numeric and len(target):
        shift = replace(shift, unknown_target=float((target == OTHER).mean()))
    if reason := _unfit(column, source, target, values[~blank], numeric, blank):
        return replace(shift, skipped=reason)
    effect, p = (np.nan, 1.0)
    if len(source) and len(target):
        effect, p = numbers_differ(source, target) if numeric else categories_differ(source, target)
    table = np.array([[np.sum(b), np.sum(~b)] for b in (blank[~rows.in_target], blank[rows.in_target])])
    tests.append((p, _chi_square(table)))
    own = judge(
        rows.in_target, _alone(values, blank, numeric, rows.in_target, rows.fold), rows.fold, confidence
    )
    return replace(shift, effect=effect, auc=own)


def _unfit(
    column: Column,
    source: Values,
    target: Values,
    both: Values,
    numeric: bool,
    blank: Bools,
) -> str:
    """Return why a column says nothing of a shift; empty where it may."""
    if not len(both):
        return "missing in every row of both domains"
    distinct = len(np.unique(both))
    if numeric and "int" in column.arrow_type and distinct == len(both) >= 100:
        return "whole numbers that never repeat, like an identifier"
    if not numeric and min(np.mean(source == OTHER), np.mean(target == OTHER)) > 0.5:
        return "most values are rare or unknown in both domains, like an identifier"
    if distinct == 1 and not blank.any():
        return "the same value in every row of both domains"
    return ""


def numbers_differ(source: Values, target: Values) -> tuple[float, float]:
    """Return Kolmogorov-Smirnov's distance of two samples, and its p-value; ties make that too large, not too small."""
    found = ks_2samp(source, target, method="asymp" if max(len(source), len(target)) > 300 else "auto")
    return float(found.statistic), float(found.pvalue)


def categories_differ(source: Values, target: Values) -> tuple[float, float]:
    """Return the total variation distance of two samples of codes, and the p-value of chi-square with rare ones pooled."""
    _, codes = np.unique(np.concatenate([source, target]), return_inverse=True)
    table = np.stack(
        [np.bincount(part, minlength=codes.max() + 1) for part in np.split(codes, [len(source)])]
    )
    shares = table / table.sum(axis=1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), _chi_square(pool(table))


def pool(table: Ints) -> Ints:
    """Join the columns of a ``[2, k]`` table in which chi-square expects fewer than 5 rows of a domain.

    Where they are too few together, the smallest of the others joins them.
    """
    expected = table.sum(axis=0) * (table.sum(axis=1).min() / table.sum())
    rare = expected < _LEAST
    if rare.any() and not rare.all() and expected[rare].sum() < _LEAST:
        rare[np.argmin(np.where(rare, np.inf, expected))] = True
    if not rare.any():
        return table
    return np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)


def _chi_square(table: Ints) -> float:
    table = table[:, table.sum(axis=0) > 0]
    return 1.0 if table.shape[1] < 2 else float(chi2_contingency(table, correction=False).pvalue)


def holm(p_values: Sequence[float]) -> Floats:
    """Adjust p-values so that those below a level keep the chance of one false one among all at that level."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _alone(values: Values, blank: Bools, numeric: bool, in_target: Bools, fold: Ints) -> Floats:
    """Score each row by the log odds of the target among the rows of other folds whose value is in the same interval."""
    cells = np.zeros(len(values), np.int64)
    if numeric:
        edges = np.unique(np.quantile(values[~blank], np.linspace(0, 1, LEVELS + 1)[1:-1]))
        cells[~blank] = 1 + np.searchsorted(edges, values[~blank], side="right")
    else:
        cells[:] = values
    width = int(cells.max()) + 1
    counts = np.zeros((int(fold.max()) + 1, 2, width))
    np.add.at(counts, (fold, in_target.astype(np.int64), cells), 1)
    others = counts.sum(axis=0) - counts  # of all folds but this one
    shares = (others + 0.5) / (others.sum(axis=2, keepdims=True) + 0.5 * width)
    return np.asarray(np.log(shares[:, 1] / shares[:, 0])[fold, cells])


def without(rows: Pair, schema: Schema, columns: Sequence[str]) -> Pair | None:
    """Return the rows without some raw columns; None where no column is left."""
    numbers = np.array([column.name not in columns for column, _, _ in _numbers(schema)], bool)
    codes = np.array([column.name not in columns for column in schema.categorical], bool)
    if not numbers.any() and not codes.any():
        return None
    return replace(rows, numeric=rows.numeric[:, numbers], categorical=rows.categorical[:, codes])


@dataclass(frozen=True)
class Carriers:
    """How well domains are told apart without the columns that differ most.

    Attributes
    ----------
    each
        The separation without one column, by its name.
    joint
        Without the 1, 2, 4 … columns that tell most alone, by their names. None where no column is left.
    """

    each: dict[str, Separation | None]
    joint: dict[tuple[str, ...], Separation | None]


def carriers(
    rows: Pair, schema: Schema, shifts: Sequence[ColumnShift], whole: Separation, most: int = 4
) -> Carriers:
    """Fit the classifier of the domain again without the columns whose own AUC is largest.

    A column that carries the shift alone takes it along when it goes; where several say the same, only their joint removal does:
    1, 2, 4 … columns, until hardly anything of the shift is left, or half of the columns are gone.

    Parameters
    ----------
    shifts
        From `compare_columns`; only columns that differ at 5 % after Holm's adjustment are left out.
    whole
        The separation with all columns, by trees.
    most
        Columns that are left out one at a time.
    """
    own: dict[str, float] = {}
    for shift in shifts:
        if shift.auc is not None and shift.auc.seen and shift.p_value < 0.05:
            own[shift.column] = max(own.get(shift.column, 0.0), shift.auc.auc)
    ranked = sorted(own, key=lambda name: (-own[name], name)) if whole.seen else []

    def left(names: Sequence[str]) -> Separation | None:
        rest = without(rows, schema, names)
        return None if rest is None else separate(rest)

    each = {name: left([name]) for name in ranked[:most]}
    joint: dict[tuple[str, ...], Separation | None] = {}
    size = 1
    while ranked:
        names = tuple(ranked[:size])
        joint[names] = last = each[names[0]] if size == 1 else left(names)
        if last is None or last.hardly(whole) or size >= min(len(ranked), len(schema.columns) // 2):
            break
        size *= 2
    return Carriers(each, joint)


def distribution(rows: Pair, schema: Schema, name: str) -> Distribution | None:
    """Return a feature's values in both domains; None for a private column, whose values are for no drawing."""
    for place, (column, part, feature) in enumerate(_numbers(schema)):
        if feature == name:
            return (
                None
                if column.name in schema.private
                else _histogram(rows, column, part, rows.numeric[:, place])
            )
    place, column = next((i, c) for i, c in enumerate(schema.categorical) if c.name == name)
    return None if name in schema.private else _bars(rows, column, rows.categorical[:, place])


def _histogram(rows: Pair, column: Column, part: int, prepared: NDArray[np.float32]) -> Distribution | None:
    scale, center = (column.scale[part], column.center[part]) if column.scale else (1.0, 0.0)
    values = prepared.astype(np.float64) * scale + center + column.origin
    there = ~np.isnan(values)
    if not there.any():
        return None
    low, high = np.quantile(values[there], [0.005, 0.995])  # a far value would leave one bar
    edges = np.linspace(low, high, BARS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    shares = []
    for of in (~rows.in_target, rows.in_target):
        own = np.clip(values[there & of], edges[0], edges[-1])
        shares.append(tuple((np.histogram(own, edges)[0] / max(1, len(own))).tolist()))
    return Distribution(tuple(edges.tolist()), (), shares[0], shares[1])


def _bars(rows: Pair, column: Column, codes: NDArray[np.int32]) -> Distribution:
    names = ["missing", "rare or unknown", *map(str, column.categories)]  # codes 0 and 1 are not categories
    counts = [np.bincount(codes[of], minlength=len(names)) for of in (~rows.in_target, rows.in_target)]
    source, target = (count / max(1, count.sum()) for count in counts)
    both = source + target
    chosen = [k for k in np.argsort(-both, kind="stable")[: BARS // 2] if both[k] > 0]
    rest = np.setdiff1d(np.arange(len(names)), chosen)
    shares = [[float(share[k]) for k in chosen] for share in (source, target)]
    labels = [names[k] for k in chosen]
    if both[rest].sum() > 0:
        labels.append(f"{int((both[rest] > 0).sum())} others")
        for share, whole in zip(shares, (source, target), strict=True):
            share.append(float(whole[rest].sum()))
    return Distribution((), tuple(labels), tuple(shares[0]), tuple(shares[1]))
