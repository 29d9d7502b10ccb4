"""Splitters over time, as scikit-learn's; it has none that knows time stamps.

X is the time of each row, ``[n]``, in any order; rows of equal time are never parted. Shape legend: n rows.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator

Ints = NDArray[np.int64]


class _Blocks(BaseCrossValidator):  # type: ignore[misc]
    """What splitters over blocks of time share."""

    first = 0  # block that is judged; those before it only train

    def __init__(self, n_splits: int, drop_groups: bool) -> None:
        self.n_splits, self.drop_groups = n_splits, drop_groups

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002
        """Return the number of folds."""
        return self.n_splits

    @abstractmethod
    def _fold(self, times: NDArray[Any], start: Any, stop: Any) -> NDArray[np.bool_]:
        """Return which rows may train for the block of times from ``start`` up to ``stop``, the last included."""

    def split(
        self,
        X: ArrayLike,
        y: Any = None,  # noqa: ARG002
        groups: ArrayLike | None = None,
    ) -> Iterator[tuple[Ints, Ints]]:
        """Yield training and test rows of each fold, int64, each in the order of time.

        Raises
        ------
        ValueError
            If there are fewer times than blocks, or a fold has no training rows.
        """
        times = np.asarray(X)
        order = np.argsort(times, kind="stable").astype(np.int64)
        edges = self._edges(times[order])
        of = None if groups is None or not self.drop_groups else np.asarray(groups)
        blocks = zip(edges[self.first : -1], edges[self.first + 1 :], strict=True)
        for number, (start, stop) in enumerate(blocks, 1):
            test = order[start:stop]
            may = self._fold(times[order], times[test[0]], times[test[-1]])
            may[start:stop] = False
            if of is not None:
                may &= ~np.isin(of[order], np.unique(of[test]))
            train = self._latest(order[may])
            if not len(train):
                raise ValueError(
                    f"no training rows are left for fold {number}, which judges {len(test):,} rows"
                )
            yield train, test

    def _latest(self, train: Ints) -> Ints:
        return train

    def _edges(self, ordered: NDArray[Any]) -> list[int]:
        """Return where blocks of about equal size begin and end, where the time changes."""
        blocks = self.n_splits + self.first
        begins = np.flatnonzero(np.diff(ordered)) + 1  # of another time
        if len(begins) + 1 < blocks:
            raise ValueError(f"{len(begins) + 1} different times cannot make {blocks} blocks")
        edges = [0]
        for block in range(1, blocks):
            wanted = block * len(ordered) / blocks
            free = begins[
                np.searchsorted(begins, edges[-1], side="right") : len(begins) - (blocks - 1 - block)
            ]
            edges.append(int(free[np.abs(free - wanted).argmin()]))
        return [*edges, len(ordered)]


class TimeSeriesSplit(_Blocks):
    """Train on all that is before a block of time, judge on the block.

    Parameters
    ----------
    n_splits
        Folds; one more block than that is made, since the first only trains.
    gap
        In units of the times: rows so shortly before a block do not train.
    max_train_size
        Most training rows, the latest ones; None for all.
    window
        In units of the times: training rows are no older than the last row before the gap less this; None for all.
    drop_groups
        Whether rows of the block's groups do not train.

    References
    ----------
    Bergmeir and Benitez (2012), "On the use of cross-validation for time series predictor evaluation", section 3.
    """

    first = 1

    def __init__(
        self,
        n_splits: int = 5,
        gap: float = 0,
        max_train_size: int | None = None,
        drop_groups: bool = True,
        window: float | None = None,
    ) -> None:
        super().__init__(n_splits, drop_groups)
        self.gap, self.max_train_size, self.window = gap, max_train_size, window

    def _fold(self, times: NDArray[Any], start: Any, stop: Any) -> NDArray[np.bool_]:  # noqa: ARG002
        may = np.asarray(times < start - self.gap if self.gap else times < start)
        if self.window is not None and may.any():
            may &= times > times[may][-1] - self.window
        return may

    def _latest(self, train: Ints) -> Ints:
        return train if self.max_train_size is None else train[-self.max_train_size :]


class PurgedKFold(_Blocks):
    """Train on what is before and after a block of time, less what is near it.

    Parameters
    ----------
    n_splits
        Folds, each a block.
    purge
        In units of the times: rows so near the block, on either side, do not train, since what they are labelled by overlaps
        with it.
    embargo
        In the same units: rows so long after the block and its purge do not train either.
    drop_groups
        Whether rows of the block's groups do not train.

    References
    ----------
    Lopez de Prado (2018), "Advances in financial machine learning", sections 7.4.1 and 7.4.2.
    """

    def __init__(
        self, n_splits: int = 5, purge: float = 0, embargo: float = 0, drop_groups: bool = True
    ) -> None:
        super().__init__(n_splits, drop_groups)
        self.purge, self.embargo = purge, embargo

    def _fold(self, times: NDArray[Any], start: Any, stop: Any) -> NDArray[np.bool_]:
        return np.asarray((times < start - self.purge) | (times > stop + self.purge + self.embargo))
