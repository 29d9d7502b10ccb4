"""Pieces of an explanation that know nothing of each other: some columns, or some rows, of one method.

Shape legend: n rows of the sample, P cells of a row, R repeats, K outputs. What a piece gives depends on what it is, never on who
does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.storage import Storage
from shoal.evaluation.deciding.costs import Rule
from shoal.evaluation.explain.coalitions import Coalitions, coalitions
from shoal.evaluation.explain.config import ExplainConfig
from shoal.evaluation.explain.dependence import Dependence, crossed, dependence
from shoal.evaluation.explain.lime import Local, lime
from shoal.evaluation.explain.permutation import orders, permuted_scores, predict_in_blocks
from shoal.evaluation.explain.shapley import Attributions, shapley
from shoal.evaluation.explain.subject import Cells, Floats, Subject
from shoal.evaluation.explain.trained import Grid, grid, numbers, of_trained, unpacked
from shoal.evaluation.metrics import METRICS
from shoal.training.artifact import TrainedModel
from shoal.training.costs import Amounts
from shoal.training.description import DESCRIPTION, digest
from shoal.training.device import own_threads

Piece = tuple[str, tuple[Any, ...]]
_FOR = int.from_bytes(b"expl", "big")  # first word of the keys of all draws here
SAMPLE, BACKGROUND, ROWS, PERMUTATIONS, COALITIONS, NEIGHBOURS, GRADIENTS = range(7)


def draws(seed: int, *key: int) -> np.random.SeedSequence:
    """Return the seed of a draw: what it is for, and of which row."""
    return np.random.SeedSequence(seed, spawn_key=(_FOR, *key))


@dataclass(frozen=True)
class Sample:
    """Rows with what they are judged by.

    Parameters
    ----------
    cells
        int32 ``[n, P]``, as `packed` makes them.
    labels
        ``[n]`` or ``[n, K]``; None where nothing is judged.
    amounts
        Cost columns that decisions follow.
    numbers
        int64 ``[n]``: of the rows in their part or file, from 0.
    explained, background
        Which of them are explained one by one, and which they are compared with.
    """

    cells: Cells
    labels: NDArray[Any] | None
    amounts: Amounts
    numbers: NDArray[np.int64]
    explained: NDArray[np.int64]
    background: NDArray[np.int64]


@dataclass(frozen=True)
class Dependences:
    """Dependence on one column, or on two together, and the values that were tried."""

    columns: tuple[str, ...]
    grids: tuple[Grid, ...]
    found: Dependence


@dataclass(frozen=True)
class Source:
    """Where a process takes the model from.

    Parameters
    ----------
    run, storage
        The run folder, and how to reach it.
    allow_import
        Whether a model of the user's own may be imported.
    """

    run: str
    storage: StorageConfig
    allow_import: bool

    @property
    def sha256(self) -> str:
        """A hash of the model as it is now: of its description, which holds that of its weights."""
        return digest(Storage.open(self.run, self.storage).read_bytes(DESCRIPTION))

    def load(self) -> TrainedModel:
        """Load the model."""
        return TrainedModel.load(Storage.open(self.run, self.storage), allow_import=self.allow_import)


_LOADED: list[tuple[Source, str, TrainedModel]] = []  # of this process: the newest


@dataclass(frozen=True)
class Explain:
    """Does pieces.

    Parameters
    ----------
    source, sha256
        The model, and the hash of its description when this began.
    sample
        The rows.
    metric, rule
        Which score is watched, and how it decides.
    settings, seed
        Of the draws and their sizes.
    cpus
        That the process owns; None for all.
    """

    source: Source
    sha256: str
    sample: Sample
    metric: str
    rule: Rule
    settings: ExplainConfig
    seed: int
    cpus: float | None

    def __call__(self, piece: Piece) -> Any:
        """Do one piece: a method, and the columns or rows that it is of."""
        own_threads(self.cpus)
        method, of = piece
        trained = self._trained()
        subject = of_trained(trained)
        if method == "permutation":
            return self.permuted(subject, *of)
        if method == "partial_dependence":
            return self.depending(subject, trained, of)
        rows = self.sample.explained[of[0] : of[1]]
        if method == "shap":
            return self.shap(subject, rows)
        return (
            self.lime(subject, trained, rows) if method == "lime" else self.gradients(method, trained, rows)
        )

    def _trained(self) -> TrainedModel:
        if not _LOADED or _LOADED[0][:2] != (self.source, self.sha256):
            trained = self.source.load()
            if self.source.sha256 != self.sha256:
                raise DataError(f"the model in {self.source.run} changed since this began; start again")
            _LOADED[:] = [(self.source, self.sha256, trained)]
        return _LOADED[0][2]

    @property
    def random_state(self) -> int:
        """With which scikit-learn draws the same permutations."""
        return int(draws(self.seed, PERMUTATIONS).generate_state(1)[0])

    def score(self, predictions: Floats) -> float:
        """Score answers ``[n, K]`` of the sample; greater is better."""
        metric, sample = METRICS[self.metric], self.sample
        assert sample.labels is not None
        scores = predictions[:, 0] if sample.labels.ndim == 1 and predictions.shape[1] == 1 else predictions
        value = metric.value(sample.labels, scores, self.rule, amounts=sample.amounts)
        return value if metric.greater_is_better else -value

    def permuted(self, subject: Subject, columns: Sequence[str]) -> Floats:
        """Return the scores ``[R]`` with columns permuted together."""
        order = orders(len(self.sample.cells), self.settings.repeats, self.random_state)
        return permuted_scores(
            subject.predict, self.sample.cells, subject.positions(columns), order, self.score
        )

    def depending(self, subject: Subject, trained: TrainedModel, names: Sequence[str]) -> Dependences:
        """Return the dependence on a column, or on two with fewer values each."""
        of_name = {column.name: column for column in trained.schema.columns}
        points = {} if len(names) == 1 else {"points": 12}
        grids = tuple(
            grid(subject, of_name[name], self.sample.cells[:, list(subject.columns[name])], **points)
            for name in names
        )
        cells = grids[0].cells if len(grids) == 1 else crossed(grids[0].cells, grids[1].cells)
        alone = self.sample.explained.tolist() if len(grids) == 1 else []
        found = dependence(subject.predict, self.sample.cells, subject.positions(names), cells, alone)
        return Dependences(tuple(names), grids, found)

    def plan(self, columns: int) -> Coalitions:
        """Return the coalitions, the same for all rows."""
        asked = self.settings.coalitions
        budget = 2 * columns + 512 if asked == "auto" else asked
        return coalitions(columns, budget, draws(self.seed, COALITIONS))

    def shap(self, subject: Subject, rows: NDArray[np.int64]) -> Attributions:
        """Return the Shapley values of some rows."""
        cells, places = self.sample.cells, list(subject.columns.values())
        return shapley(
            subject.predict, cells[rows], cells[self.sample.background], places, self.plan(len(places))
        )

    def lime(self, subject: Subject, trained: TrainedModel, rows: NDArray[np.int64]) -> list[Local]:
        """Return the linear models around some rows, whose neighbours come from the whole sample."""
        cells = self.sample.cells
        of_type = {c.name: c for c in trained.schema.columns}

        def in_order(name: str, of: Cells) -> Floats | None:
            column = of_type[name]
            return None if column.type in ("categorical", "tensor") else numbers(column, of)

        seeds = [draws(self.seed, NEIGHBOURS, int(self.sample.numbers[row])) for row in rows]
        return lime(subject, cells[rows], cells, seeds, count=self.settings.neighbours, numbers=in_order)

    def gradients(self, method: str, trained: TrainedModel, rows: NDArray[np.int64]) -> Attributions:
        """Return attributions by gradients of some rows."""
        from shoal.evaluation.explain.gradients import attributions
        from shoal.evaluation.explain.networks import differentiable, encoded

        cells, schema, model = self.sample.cells, trained.schema, trained.module
        seeds = [
            int(draws(self.seed, GRADIENTS, int(self.sample.numbers[row])).generate_state(1)[0])
            for row in rows
        ]
        own, others = (encoded(model, unpacked(cells[of], schema)) for of in (rows, self.sample.background))
        outputs = range(model.n_outputs)
        return attributions(method, differentiable(model, schema), own, others, outputs, seeds)


def answers_of(subject: Subject, sample: Sample) -> Floats:
    """Return what the model says of the sample as it is, ``[n, K]``."""
    return predict_in_blocks(subject.predict, sample.cells)
