"""The training rows as resampling sees them, and what it makes of them.

Rows are in *dealing order*: by class, then by key, as `plan.deal` takes them. So a class is a slice, and nothing depends on
the number of shards or on the order of the input.

Shape legend: n rows, m rows after resampling, D numbers, C categories.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.prepare import Prepared

Index = npt.NDArray[np.int64]
BLOCK = 16_384  # rows handled at a time where a matrix is read or made


@dataclass(frozen=True)
class TrainingRows:
    """Prepared training rows in dealing order; arrays in memory or memory-mapped files.

    Parameters
    ----------
    rows
        ``[n, D]`` and ``[n, C]``.
    offsets
        First row of each class and, last, n; int64 ``[classes + 1]``.
    schema
        For the class names and the columns that are nominal.
    """

    rows: Prepared
    offsets: Index
    schema: Schema

    def __len__(self) -> int:
        """Return n."""
        return int(self.offsets[-1])

    @property
    def counts(self) -> Index:
        """Rows of each class, int64 ``[classes]``."""
        return np.diff(self.offsets)

    @property
    def labels(self) -> Index:
        """Class of each row, int64 ``[n]``."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of_class(self, code: int) -> slice:
        """Return the rows of a class."""
        return slice(int(self.offsets[code]), int(self.offsets[code + 1]))

    def name(self, code: int) -> str:
        """Return a class in the words of messages; its place where the target is private."""
        private = set(self.schema.target.columns) & set(self.schema.private)
        return f"class number {code + 1}" if private else f"class {self.schema.target.classes[code]}"


class Made(Protocol):
    """Rows that were not there: made when they are asked for, so that they need not all be in memory."""

    def __len__(self) -> int:
        """Return how many there are."""

    @property
    def parents(self) -> Index:
        """The two training rows that each was made from, -1 where there is none; int64 ``[s, 2]``."""

    def rows(self, index: Index) -> Prepared:
        """Return some of them."""


@dataclass(frozen=True)
class Given:
    """Rows that lie in memory already.

    Parameters
    ----------
    made
        ``[s, D]`` and ``[s, C]``.
    parents
        int64 ``[s, 2]``.
    """

    made: Prepared
    parents: Index

    def __len__(self) -> int:
        """Return s."""
        return len(self.parents)

    def rows(self, index: Index) -> Prepared:
        """Return some of them."""
        return take(self.made, index)


@dataclass(frozen=True)
class Resampled:
    """What resampling made of the training rows.

    Parameters
    ----------
    kept
        Training rows that stay, a copy for each time that one is there; int64, ascending.
    made
        Rows that are added.
    made_labels
        Class of each, ascending, int64 ``[s]``.
    notices
        What has to be said.
    """

    kept: Index
    made: Made
    made_labels: Index
    notices: tuple[str, ...] = ()

    def counts(self, rows: TrainingRows) -> Index:
        """Rows of each class afterwards, int64 ``[classes]``."""
        classes = len(rows.counts)
        kept = np.diff(np.searchsorted(self.kept, rows.offsets))
        return np.asarray(kept + np.bincount(self.made_labels, minlength=classes), np.int64)


def nothing_made(rows: TrainingRows) -> Given:
    """Return no row."""
    return Given(take(rows.rows, np.empty(0, np.int64)), np.empty((0, 2), np.int64))


def take(rows: Prepared, index: Index | slice) -> Prepared:
    """Return some rows."""
    return Prepared(rows.numeric[index], rows.categorical[index])


def stack(parts: list[Prepared]) -> Prepared:
    """Return all rows of several."""
    return Prepared(
        np.concatenate([part.numeric for part in parts]), np.concatenate([part.categorical for part in parts])
    )


def nominal_parts(schema: Schema) -> list[int]:
    """Return which of the D numbers are booleans: they are nominal, as categories are."""
    parts, at = [], 0
    for column in schema.numeric:
        if column.type == "boolean":
            parts.append(at)
        at += column.width
    return parts
