"""Folds dealt while the data are looked at, before anything is fitted."""

from typing import Any

from numpy.typing import NDArray

from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.sharding.assign import Assignment, Rows
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.listing import find
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import require
from shoal.cluster.sharding.source import open_source
from shoal.evaluation.crossval.config import NestedConfig
from shoal.evaluation.crossval.folds import (
    Folds,
    OneFold,
    columns_of,
    folds_of,
    inner_folds,
    outer_of,
    with_validation,
)


class Recorder:
    """Deals all folds when the parts of the `data` section are known; keeps them, and the labels in key order; a `Resplit`.

    Parameters
    ----------
    cv
        `evaluation.cv`.
    data
        The `data` section, whose files must have the column that deals the folds, if one does.
    storage
        How to reach them.
    validation
        What the fits need validation rows for, in words; nothing if they need none. None leaves the rows in the parts that
        the `data` section gives them, otherwise they get those of the first fold.

    Raises
    ------
    DataError
        If there is no such column.
    """

    def __init__(
        self, cv: Config, data: DataConfig, storage: StorageConfig, validation: str | None = None
    ) -> None:
        self.cv, self.identity, self.validation = cv, None, validation
        self.columns = columns_of(cv)
        self.folds: Folds
        self.labels: NDArray[Any]
        if self.columns:
            source = open_source(find(data.path, storage))
            for column in self.columns:
                require(column, list(source.schema.names), "evaluation.cv.column.name")

    def __call__(
        self, rows: Rows, data: DataConfig, target: Target, seed: int, found: Assignment
    ) -> Assignment | None:
        """Deal them; return None, for the parts that the section gives, or those of the first fold.

        Raises
        ------
        DataError, ConfigError
            As `folds_of`; or if the training rows of a fold cannot spare validation rows.
        """
        folds = folds_of(self.cv, rows, data, target, seed, found)
        if isinstance(self.cv, NestedConfig):
            inner = [
                inner_folds(self.cv, i, fold, rows, data, target, seed) for i, fold in enumerate(folds.folds)
            ]
            reason = f"{folds.reason}; inside each, for the choice: {inner[0].reason.removeprefix('cv: ')}"
            folds = Folds(folds.folds, reason, tuple(inner))
        self.folds, self.labels = folds, rows.labels
        if self.validation:
            self._cut(rows, data, target, seed)
        if self.validation is None:
            return None
        return OneFold(self.cv, 0, validates=bool(self.validation))(rows, data, target, seed, found)

    def _cut(self, rows: Rows, data: DataConfig, target: Target, seed: int) -> None:
        """Refuse folds whose training rows cannot spare validation rows."""
        cv = self.cv
        levels = [(f"fold {i}", outer_of(cv), fold) for i, fold in enumerate(self.folds.folds, 1)]
        for i, inside in enumerate(self.folds.inner, 1):
            assert isinstance(cv, NestedConfig)
            levels += [
                (f"fold {j} inside fold {i}", cv.inner, fold) for j, fold in enumerate(inside.folds, 1)
            ]
        for name, dealt_by, fold in levels:
            try:
                with_validation(dealt_by, rows, fold.train, data, target, seed)
            except DataError as error:
                raise DataError(
                    f"evaluation.cv: {name}: validation rows, for {self.validation}, cannot be cut: {error}"
                ) from error
