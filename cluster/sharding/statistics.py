"""Encoder statistics, fitted on training rows shard by shard.

Sums of floats depend on their order, so every sum here runs over the rows of one logical shard in their final
order, and the shards are merged in theirs: the result is the same to the last bit however the input was cut,
ordered and read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import F64, normalise
from shoal.cluster.sharding.manifest import Column, Scalar
from shoal.cluster.sharding.texts import token_counts
from shoal.cluster.sharding.values import category_values, plain, raw_numbers

# Up to so many categories each has its own code, however rare; beyond, values seen once train the code
# "other".
FEW_CATEGORIES = 50
_PENDING = 1 << 20


@dataclass
class Moments:
    """Of columns of numbers side by side: count, mean, squared deviations, smallest, largest, missing; each ``[width]``."""

    count: F64
    mean: F64
    squares: F64
    low: F64
    high: F64
    missing: F64

    @classmethod
    def of(cls, values: F64) -> "Moments":
        """Take them from values ``[width, n]``, contiguous, so that numpy sums pairwise; NaN is missing."""
        known = ~np.isnan(values)
        count = known.sum(axis=1).astype(np.float64)
        filled = np.where(known, values, 0.0)
        mean = filled.sum(axis=1) / np.maximum(count, 1)
        with np.errstate(over="ignore"):
            squares = (np.where(known, values - mean[:, None], 0.0) ** 2).sum(axis=1)
        low = np.where(known, values, np.inf).min(axis=1, initial=np.inf)
        high = np.where(known, values, -np.inf).max(axis=1, initial=-np.inf)
        return cls(count, mean, squares, low, high, values.shape[1] - count)

    def __getitem__(self, part: slice) -> "Moments":
        """Return those of some of the numbers."""
        return Moments(*(getattr(self, field.name)[part] for field in fields(self)))

    def merge(self, other: "Moments") -> None:
        """Add the rows of another shard.

        References
        ----------
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, equations 2.1a and 2.1b.
        """
        total = np.maximum(self.count + other.count, 1)
        delta = other.mean - self.mean
        with np.errstate(over="ignore", invalid="ignore"):
            self.squares = self.squares + other.squares + delta**2 * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = self.count + other.count
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.missing = self.missing + other.missing

    @property
    def constant(self) -> bool:
        """Whether all rows are equal, missing ones included."""
        return bool((self.low >= self.high).all()) and not (self.missing.any() and self.count.any())

    def scale(self) -> F64:
        """Return the population's standard deviation, 1 where it is 0."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where((deviation > 0) & (self.low < self.high), deviation, 1.0)

    def whole(self) -> tuple[F64, F64]:
        """Return mean and standard deviation of all numbers together, once for each of them."""
        n = max(1.0, float(self.count.sum()))
        mean = float((self.count * self.mean).sum()) / n
        with np.errstate(over="ignore"):
            squares = self.squares + self.count * (self.mean - mean) ** 2
        deviation = float(np.sqrt(squares.sum() / n))
        return np.full_like(self.mean, mean), np.full_like(self.mean, deviation if deviation > 0 else 1.0)


class Counts:
    """How often each category comes; exact, so the order of the rows does not matter."""

    def __init__(self, kind: pa.DataType) -> None:
        self._schema = pa.schema([("value", kind), ("count", pa.int64())])
        self._table = self._schema.empty_table()
        self.missing = 0

    def add(self, array: pa.Array, column: Column) -> None:
        """Count the values of some rows."""
        self.missing += array.null_count
        if pa.types.is_dictionary(array.type):
            indices = array.indices.drop_null().to_numpy(zero_copy_only=False)
            counts = np.bincount(indices, minlength=len(array.dictionary))
            used = np.flatnonzero(counts)
            values = category_values(array.dictionary.take(pa.array(used)), column)
            piece = [values, pa.array(counts[used], pa.int64())]
        else:
            found = pc.value_counts(category_values(array, column).drop_null())
            piece = [found.field("values"), found.field("counts")]
        self._table = pa.concat_tables([self._table, pa.table(piece, schema=self._schema)])
        if len(self._table) > _PENDING:
            self._table = self._compact()

    def merge(self, other: "Counts") -> None:
        """Add what was counted elsewhere."""
        self.missing += other.missing
        self._table = pa.concat_tables([self._table, other._table])
        if len(self._table) > _PENDING:
            self._table = self._compact()

    def _compact(self) -> pa.Table:
        grouped = self._table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        return grouped.rename_columns({"count_sum": "count"}).select(["value", "count"])

    def sorted(self) -> pa.Table:
        """Return values and counts, most frequent first, ties by value."""
        return self._compact().sort_by([("count", "descending"), ("value", "ascending")])


@dataclass(frozen=True)
class Gathered:
    """What some shards tell: the moments of each shard with rows; of all together, counts of categories and of lengths."""

    moments: list[Moments]
    counts: dict[str, Counts]
    lengths: dict[str, npt.NDArray[np.int64]] = field(
        default_factory=dict
    )  # of texts: how many have 0, 1, … tokens


def gather(columns: Sequence[Column], table: pa.Table, offsets: Sequence[int]) -> Gathered:
    """Look at whole shards, alone; `Statistics.merge` joins what was gathered.

    Parameters
    ----------
    columns
        The features.
    table
        Raw training rows in final order.
    offsets
        First row of each shard, and the end.
    """
    shards = [(start, stop - start) for start, stop in pairwise(offsets) if stop > start]
    gathered, numeric = Gathered([], _no_counts(columns)), []
    for column in columns:
        array = plain(normalise(table.column(column.name)), column)
        if column.type == "categorical":
            gathered.counts[column.name].add(array.slice(offsets[0], offsets[-1] - offsets[0]), column)
        elif column.tokens is not None:
            texts = array.slice(offsets[0], offsets[-1] - offsets[0])
            gathered.lengths[column.name] = np.bincount(token_counts(texts, column))
        elif column.is_numeric:
            numeric.append((array, column))
    for start, length in shards:
        values = np.empty((sum(column.width for _, column in numeric), length))
        first = 0
        for array, column in numeric:
            values[first : first + column.width] = raw_numbers(array.slice(start, length), column).T
            first += column.width
        gathered.moments.append(Moments.of(values))
    return gathered


def _no_counts(columns: Sequence[Column]) -> dict[str, Counts]:
    kinds = {"string": pa.string(), "boolean": pa.bool_(), "integer": pa.int64()}
    return {c.name: Counts(kinds[c.value_type]) for c in columns if c.type == "categorical"}


class Statistics:
    """Holds what `prepare` needs of each column. Feed it all training shards in their order."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._moments: Moments | None = None
        self._counts = _no_counts(columns)
        self._lengths: dict[str, npt.NDArray[np.int64]] = {}

    def add(self, table: pa.Table, offsets: list[int]) -> None:
        """Add whole shards.

        Parameters
        ----------
        table
            Raw training rows in final order.
        offsets
            First row of each shard, and the end.
        """
        self.merge(gather(self._columns, table, offsets))

    def merge(self, gathered: Gathered) -> None:
        """Add what was gathered from the shards that follow."""
        for moments in gathered.moments:
            if self._moments is None:
                self._moments = moments
            else:
                self._moments.merge(moments)
        for name, counts in gathered.counts.items():
            self._counts[name].merge(counts)
        for name, lengths in gathered.lengths.items():
            known = self._lengths.get(name, np.zeros(0, np.int64))
            total = np.zeros(max(len(known), len(lengths)), np.int64)
            total[: len(known)] += known
            total[: len(lengths)] += lengths
            self._lengths[name] = total

    def constant(self, column: Column) -> bool:
        """Whether no training row differs from another in this column."""
        if column.block:
            return False
        if column.type != "categorical":
            return self._of(column).constant
        counts = self._counts[column.name]
        return len(counts.sorted()) + (counts.missing > 0) < 2

    def finish(self, column: Column, max_categories: int, scaling: str = "each") -> tuple[Column, list[str]]:
        """Return the column with its statistics, and what to say aloud.

        ``scaling`` is how its numbers are standardised: each, whole or none.

        Raises
        ------
        DataError
            If the numbers are too large for a standard deviation, or there are none to scale.
        """
        if column.type in ("categorical", "boolean") and scaling != "each":
            raise DataError(
                f"data.scaling: column {column.name!r} is {column.type} and has no numbers to scale; remove it there"
            )
        if column.type == "categorical":
            return self._vocabulary(column, max_categories)
        if column.block:
            return column, self._say_lengths(column)
        moments = self._of(column)
        update: dict[str, object] = {"has_missing": bool(moments.missing.any())}
        if column.type != "boolean" and scaling != "none":
            mean, scale = moments.whole() if scaling == "whole" else (moments.mean, moments.scale())
            if not (np.isfinite(scale).all() and np.isfinite(mean).all()):
                raise DataError(
                    f"column {column.name!r} has numbers too large to standardise (their squares overflow a "
                    "float64); correct them, or leave the column out with data.drop"
                )
            # Sines and cosines are of unit size as they are.
            keep = np.array([part.endswith(("_sin", "_cos")) for part in column.parts])
            update["center"] = tuple(np.where(keep, 0.0, mean).tolist())
            update["scale"] = tuple(np.where(keep, 1.0, scale).tolist())
        return column.model_copy(update=update), []

    def _of(self, column: Column) -> Moments:
        assert self._moments is not None, "no training rows"
        first = 0
        for other in self._columns:
            if other.name == column.name:
                break
            first += other.width if other.is_numeric else 0
        return self._moments[first : first + column.width]

    def _say_lengths(self, column: Column) -> list[str]:
        """Say how long the texts are, and how many are cut."""
        found = self._lengths.get(column.name)
        if column.tokens is None or found is None or not found.sum():
            return []
        most, total = column.tokens.max_length, int(found.sum())
        cut, half = int(found[most + 1 :].sum()), int(np.searchsorted(found.cumsum(), total / 2))
        of_cut = (
            f"; {cut:,} of {total:,} ({cut / total:.1%}) are cut at max_length: {most}"
            if cut
            else ", and none is cut"
        )
        return [
            f"column {column.name!r}: training texts of {half} tokens (median), at most {len(found) - 1:,}{of_cut}"
        ]

    def _vocabulary(self, column: Column, most: int) -> tuple[Column, list[str]]:
        counts = self._counts[column.name]
        table = counts.sorted()
        found, notices = len(table), []
        if found > FEW_CATEGORIES:
            table = table.filter(pc.greater(table.column("count"), 1))
        once = found - len(table)
        table = table.slice(0, most)
        cut = found - once - len(table)
        rare = [f"{once:,} seen once in the training rows"] if once else []
        rare += [f"{cut:,} beyond data.max_categories = {most:,}"] if cut else []
        if rare:
            notices.append(
                f"column {column.name!r}: {found:,} categories, of which {' and '.join(rare)} are taken together as "
                "one"
            )
        categories: list[Scalar] = table.column("value").to_pylist()
        update = {"categories": tuple(categories), "has_missing": counts.missing > 0}
        return column.model_copy(update=update), notices
