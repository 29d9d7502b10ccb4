"""LIME: a weighted linear model of the answers around one row.

Shape legend: P cells of a row, B background rows, M columns, N neighbours, K outputs.

A neighbour takes each column's cells from a background row of its own, so that every value is one that occurs. The linear model
sees of a column whether its value is like the row's: the same category, or in the same quarter of the background's numbers.

References
----------
Ribeiro, Singh and Guestrin (2016), "Why should I trust you?", KDD, equation 1 and algorithm 1; kernel, ridge penalty and quarters
are those of the authors' package `lime`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from shoal.evaluation.explain.subject import Cells, Floats, Positions, Predict

_FEW = 10  # values of a column, up to which each is one of its own
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Local:
    """The linear model around one row.

    Parameters
    ----------
    coefficients
        ``[M, K]``: what it adds that a column's value is like the row's.
    intercept, prediction
        ``[K]``: the linear model's answer for a row unlike in everything, and for the row itself.
    fidelity
        Weighted R2 ``[K]`` on the neighbours: how much of the answers around the row it explains.
    """

    coefficients: Floats
    intercept: Floats
    prediction: Floats
    fidelity: Floats


@dataclass(frozen=True)
class Neighbours:
    """A neighbourhood; the first neighbour is the row itself.

    Parameters
    ----------
    cells
        ``[N, P]``.
    alike
        float64 ``[N, M]``, 1 where a column's value is like the row's, otherwise 0.
    """

    cells: Cells
    alike: Floats

    @property
    def weights(self) -> Floats:
        """The kernel ``[N]`` of the distance to the row, of width .75 root M."""
        distance = np.sqrt(((self.alike - 1.0) ** 2).sum(axis=1))
        width = 0.75 * np.sqrt(self.alike.shape[1])
        return np.asarray(np.sqrt(np.exp(-(distance**2) / width**2)))


def kinds(background: Cells, cells: Cells, column: Positions, *, ordered: bool) -> tuple[Codes, Codes]:
    """Return which values of a column are alike, as numbers ``[B]`` and ``[n]``.

    Parameters
    ----------
    ordered
        Whether the first cell is a number: then more than a few values are cut at the background's quartiles.
    """
    at = list(column)
    if ordered:
        numbers = background[:, at[0]].astype(np.float64)
        there = numbers[~np.isnan(numbers)]
        if len(np.unique(there)) > _FEW:
            cuts = np.quantile(there, [0.25, 0.5, 0.75])
            both = (numbers, cells[:, at[0]].astype(np.float64))
            first, second = (np.where(np.isnan(v), -1, np.searchsorted(cuts, v, side="left")) for v in both)
            return first, second
    together = np.concatenate([background[:, at], cells[:, at]])
    number = np.unique(together, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return number[: len(background)], number[len(background) :]


def neighbours(
    row: Cells,
    kind: Codes,
    background: Cells,
    background_kind: Codes,
    columns: Sequence[Positions],
    count: int,
    seed: np.random.SeedSequence,
) -> Neighbours:
    """Draw the neighbourhood of a row ``[P]`` whose columns are of kinds ``[M]``; the background's are ``[B, M]``."""
    source = np.random.default_rng(seed).integers(len(background), size=(count - 1, len(columns)))
    cells = np.tile(row, (count, 1))
    alike = np.ones((count, len(columns)))
    for i, positions in enumerate(columns):
        at = list(positions)
        cells[1:, at] = background[source[:, i]][:, at]
        alike[1:, i] = background_kind[source[:, i], i] == kind[i]
    return Neighbours(cells, alike)


def fitted(around: Neighbours, answers: Floats) -> Local:
    """Fit the linear model to the answers ``[N, K]``: ridge regression with a penalty of 1."""
    weights = around.weights
    model = Ridge(alpha=1.0).fit(around.alike, answers, sample_weight=weights)
    explained = model.predict(around.alike).reshape(answers.shape)
    mean = np.average(answers, axis=0, weights=weights)
    total = (weights[:, None] * (answers - mean) ** 2).sum(0)
    rest = (weights[:, None] * (answers - explained) ** 2).sum(0)
    fidelity = np.where(total > 0, 1.0 - rest / np.where(total > 0, total, 1.0), 1.0)
    coefficients = np.asarray(model.coef_, np.float64).reshape(answers.shape[1], -1).T
    return Local(coefficients, np.atleast_1d(model.intercept_), explained[0], fidelity)


def lime(
    predict: Predict,
    cells: Cells,
    background: Cells,
    columns: Sequence[Positions],
    seeds: Sequence[np.random.SeedSequence],
    *,
    ordered: Sequence[bool] | None = None,
    count: int = 1000,
) -> list[Local]:
    """Explain each row ``[n, P]`` by a linear model around it.

    Parameters
    ----------
    background
        ``[B, P]``: where values come from.
    columns
        Positions of each column's cells.
    seeds
        One a row, so that no explanation depends on the others.
    ordered
        Whether a column is a number; None where all are.
    count
        N.
    """
    is_ordered = ordered if ordered is not None else [True] * len(columns)
    found = [kinds(background, cells, c, ordered=o) for c, o in zip(columns, is_ordered, strict=True)]
    of_background, of_rows = (np.stack(codes, axis=1) for codes in zip(*found, strict=True))
    explained = []
    for row, kind, seed in zip(cells, of_rows, seeds, strict=True):
        around = neighbours(row, kind, background, of_background, columns, count, seed)
        explained.append(fitted(around, predict(around.cells)))
    return explained
