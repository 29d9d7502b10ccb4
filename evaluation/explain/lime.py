"""LIME: a weighted linear model of the answers around one row.

Shape legend: P cells of a row, B background rows, M columns, N neighbours, K outputs.

A neighbour takes each column's cells from a background row of its own, so that every value is one that occurs. The linear model
sees of a column whether its value is like the row's: the same category, or in the same quarter of the background's numbers.

References
----------
Ribeiro, Singh and Guestrin (2016), "Why should I trust you?", KDD, equation 1 and algorithm 1; kernel, ridge penalty and quarters
are those of the authors' package `lime`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from shoal.evaluation.explain.subject import Cells, Floats, Positions, Subject

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


def kinds(
    background: Cells, cells: Cells, numbers: tuple[Floats, Floats] | None = None
) -> tuple[Codes, Codes]:
    """Return which values of a column are alike, as codes ``[B]`` and ``[n]``.

    Parameters
    ----------
    background, cells
        The column's cells ``[B, w]`` and ``[n, w]``.
    numbers
        What they are as numbers, ``[B]`` and ``[n]``: more than a few are cut at the background's quartiles. None where values
        are alike only if they are equal.
    """
    if numbers is not None:
        there = numbers[0][~np.isnan(numbers[0])]
        if len(np.unique(there)) > _FEW:
            cuts = np.quantile(there, [0.25, 0.5, 0.75])
            first, second = (
                np.where(np.isnan(v), -1, np.searchsorted(cuts, v, side="left")) for v in numbers
            )
            return first, second
    together = np.concatenate([background, cells])
    code = np.unique(together, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return code[: len(background)], code[len(background) :]


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


def first_cell(_: str, cells: Cells) -> Floats | None:
    """Return a column's numbers where its cells are numbers themselves."""
    return cells[:, 0].astype(np.float64)


def lime(
    subject: Subject,
    cells: Cells,
    background: Cells,
    seeds: Sequence[np.random.SeedSequence],
    *,
    count: int = 1000,
    numbers: Callable[[str, Cells], Floats | None] = first_cell,
) -> list[Local]:
    """Explain each row ``[n, P]`` by a linear model around it.

    Parameters
    ----------
    background
        ``[B, P]``: where values come from.
    seeds
        One a row, so that no explanation depends on the others.
    count
        N.
    numbers
        Name of a column, and its cells, to numbers; None where its values have no order.
    """
    places = list(subject.columns.values())
    codes = []
    for name, positions in subject.columns.items():
        parts = background[:, list(positions)], cells[:, list(positions)]
        first, second = (numbers(name, part) for part in parts)
        codes.append(kinds(*parts, None if first is None or second is None else (first, second)))
    of_background, of_rows = (np.stack(each, axis=1) for each in zip(*codes, strict=True))
    explained = []
    for row, kind, seed in zip(cells, of_rows, seeds, strict=True):
        around = neighbours(row, kind, background, of_background, places, count, seed)
        explained.append(fitted(around, subject.predict(around.cells)))
    return explained
