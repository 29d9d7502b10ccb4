"""What decisions cost: numbers by class, or by row where they stand in columns of the data.

Shapes: n rows, K classes. A cost matrix has the actual class in rows and the decided class in columns, everywhere; binary costs
are of the classes (other, event). Each row's matrix is a sum: what is the same for all rows, plus each cost column's value where
that column stands. So whatever is linear in the matrix needs no matrix a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Floats = NDArray[np.float64]
Amounts = Mapping[str, Floats]
"""Cost column -> its value in each row, float64 ``[n]``."""
NO_AMOUNTS: Amounts = {}
COST = "cost_"  # before a cost column's name, in the table of predictions

Cells = tuple[tuple[Annotated[float, Field(allow_inf_nan=False)] | str, ...], ...]
"""A cost matrix as plain values: numbers, and names of columns."""


def by_name(costs: Floats, names: Sequence[str]) -> Amounts:
    """Return the columns of costs ``[n, C]`` under their names; those behind them, such as a row's domain, have none."""
    return dict(zip(names, costs.T[: len(names)], strict=True))


@dataclass(frozen=True)
class Costs:
    """The cost of deciding class j where class i is actual, in a unit.

    Parameters
    ----------
    matrix
        float64 ``[K, K]``, the same for all rows; 0 where a column has the cost.
    unit
        For messages.
    by_column
        Name -> float64 ``[K, K]``, how often the column's value is added: 1 where the cost stands in it, otherwise 0.
    """

    matrix: Floats
    unit: str = ""
    by_column: Mapping[str, Floats] = field(default_factory=dict)

    @classmethod
    def of_cells(cls, cells: Sequence[Sequence[float | str]], unit: str = "") -> "Costs":
        """Return the costs whose matrix holds numbers and names of columns."""
        columns = sorted({cell for row in cells for cell in row if isinstance(cell, str)})
        matrix = [[0.0 if isinstance(cell, str) else float(cell) for cell in row] for row in cells]
        by_column = {
            name: np.array([[float(cell == name) for cell in row] for row in cells]) for name in columns
        }
        return cls(np.array(matrix), unit, by_column)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in which costs stand, sorted; empty where all costs are numbers."""
        return tuple(sorted(self.by_column))

    @property
    def cells(self) -> Cells:
        """The matrix as plain values."""
        names = {(i, j): name for name in self.columns for i, j in np.argwhere(self.by_column[name]).tolist()}
        k = range(len(self.matrix))
        return tuple(tuple(names.get((i, j), float(self.matrix[i, j])) for j in k) for i in k)

    @property
    def excess(self) -> "Costs":
        """What each decision costs more than the right one; deciding right is 0."""

        def above(matrix: Floats) -> Floats:
            return matrix - np.diag(matrix)[:, None]

        return Costs(
            above(self.matrix), self.unit, {name: above(where) for name, where in self.by_column.items()}
        )

    def of(self, actual: Any, decided: Any, amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return what decisions cost.

        Parameters
        ----------
        actual, decided
            Classes: int64 ``[n]``, or one for all rows.
        amounts
            The rows' cost columns.

        Returns
        -------
        float64 ``[n]``; one number where both classes are and the cost stands in no column.
        """
        cost = self.matrix[actual, decided]
        for name, where in self.by_column.items():
            if (times := where[actual, decided]).any():
                cost = cost + times * amounts[name]
        return np.asarray(cost)

    def expected(self, scores: Floats, amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return the expected cost ``[n, K]`` of deciding each class, where classes have probabilities ``[n, K]``."""
        cost = scores @ self.matrix
        for name, where in self.by_column.items():
            cost = cost + amounts[name][:, None] * (scores @ where)
        return np.asarray(cost)

    def thresholds(self, amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return the least probability of the event at which deciding it costs no more than not to (binary).

        Returns
        -------
        float64 ``[n]``, or one number where no cost stands in a column.

        References
        ----------
        Elkan (2001), The foundations of cost-sensitive learning, IJCAI, equation 2.
        """
        excess = self.excess
        false, missed = excess.of(0, 1, amounts), excess.of(1, 0, amounts)
        return np.asarray(false / (false + missed))

    def weights(self, amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return the mean excess cost of each class's mistakes, ``[n, K]``; ``[1, K]`` where no cost stands in a column.

        References
        ----------
        Ting (2002), An instance-weighting method to induce cost-sensitive trees, IEEE Transactions on Knowledge and Data
        Engineering 14, section 2: a class weighs as much as all its mistakes cost together.
        """
        excess, mistakes = self.excess, len(self.matrix) - 1
        weights = excess.matrix.sum(axis=1)[None] / mistakes
        for name, times in excess.by_column.items():
            weights = weights + amounts[name][:, None] * (times.sum(axis=1) / mistakes)
        return np.asarray(weights)

    def own_weights(self, labels: NDArray[Any], amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return the mean excess cost of the mistakes on each row's own class ``[n]``, of labels ``[n]``."""
        weights = self.weights(amounts)
        return np.asarray(
            np.broadcast_to(weights, (len(labels), weights.shape[1]))[np.arange(len(labels)), labels]
        )

    @property
    def class_weights(self) -> Floats:
        """The weights ``[K]`` with mean 1 over the classes, of costs that are numbers."""
        weights = self.weights()[0]
        return np.asarray(weights / weights.mean())

    def constant(self, class_rows: Sequence[float], sums: Mapping[str, Sequence[float]] | None = None) -> int:
        """Return the class that is cheapest to decide for all of some rows.

        Parameters
        ----------
        class_rows
            How many of the rows are of each class, ``[K]``.
        sums
            Each cost column, summed over the rows of each class, ``[K]``.
        """
        cost = np.asarray(class_rows, dtype=np.float64) @ self.matrix
        for name, where in self.by_column.items():
            cost = cost + np.asarray((sums or {})[name], dtype=np.float64) @ where
        return int(cost.argmin())

    def unreasonable(self, amounts: Amounts = NO_AMOUNTS) -> tuple[NDArray[np.bool_], tuple[int, int] | None]:
        """Find the rows for which Elkan's threshold between some two classes is not strictly between 0 and 1.

        Returns
        -------
        Which rows, ``[n]`` (``[1]`` where no cost stands in a column), and the actual and the decided class of the first mistake
        that costs no more than deciding right, or next to nothing beside the opposite one; None where there is none.

        References
        ----------
        Elkan (2001), section 1.2, the reasonableness conditions.
        """
        excess = self.excess
        wrong = np.zeros(max((len(values) for values in amounts.values()), default=1), np.bool_)
        first: tuple[int, int] | None = None
        for i, j in combinations(range(len(self.matrix)), 2):
            one, other = np.broadcast_arrays(excess.of(i, j, amounts), excess.of(j, i, amounts))
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = one / (one + other), other / (one + other)
            sound = (one > 0) & (other > 0) & (shares[0] < 1) & (shares[1] < 1)
            if not sound.all() and first is None:
                at = np.unravel_index(int((~sound).argmax()), sound.shape)
                first = (i, j) if one[at] <= other[at] else (j, i)
            wrong |= ~sound
        return wrong, first
