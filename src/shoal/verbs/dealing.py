"""Rows dealt into folds, from a look at the data."""

from typing import TYPE_CHECKING

from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.assign import Assignment, Rows
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.listing import find
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import require
from shoal.cluster.sharding.source import open_source
from shoal.experiment import Experiment

if TYPE_CHECKING:
    from shoal.evaluation.crossval.folds import Folds


def dealt(experiment: Experiment, reporter: Reporter) -> tuple["Folds", Target, tuple[str, ...]]:
    """Look at the rows, and deal them into folds.

    Raises
    ------
    DataError
        If they cannot be dealt so.
    """
    from shoal.verbs.look import look

    recorder = Recorder(experiment)
    found = look(
        experiment.data,
        experiment.seed,
        experiment.cluster.storage,
        reporter,
        experiment.cost_columns,
        resplit=recorder,
    )
    return recorder.folds, found.target, found.notices


class Recorder:
    """Deals folds when the parts are known, and leaves the parts as they are; a `Resplit`.

    Raises
    ------
    DataError
        If the data have no column by which the folds are to be dealt.
    """

    def __init__(self, experiment: Experiment) -> None:
        from shoal.evaluation.crossval.folds import columns_of

        self.cv, self.identity = experiment.evaluation.cv, None
        self.columns = columns_of(self.cv)
        self.folds: Folds
        if self.columns:
            source = open_source(find(experiment.data.path, experiment.cluster.storage))
            for column in self.columns:
                require(column, list(source.schema.names), "evaluation.cv.column.name")

    def __call__(
        self, rows: Rows, data: DataConfig, target: Target, seed: int, found: Assignment
    ) -> Assignment:
        """Deal them; return the parts that were found."""
        from shoal.evaluation.crossval.config import NestedConfig
        from shoal.evaluation.crossval.folds import Folds, folds_of, inner_folds

        folds = folds_of(self.cv, rows, data, target, seed, found)
        if isinstance(self.cv, NestedConfig):
            inner = [
                inner_folds(self.cv, i, fold, rows, data, target, seed) for i, fold in enumerate(folds.folds)
            ]
            reason = f"{folds.reason}; inside each, for the choice: {inner[0].reason.removeprefix('cv: ')}"
            folds = Folds(folds.folds, reason, tuple(inner))
        self.folds = folds
        return found
