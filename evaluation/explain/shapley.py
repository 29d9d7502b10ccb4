"""Shapley values of single predictions, against a background of rows.

Shape legend: n rows, P cells of a row, B background rows, M columns, S coalitions, K outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.evaluation.explain.coalitions import Coalitions
from shoal.evaluation.explain.subject import Cells, Floats, Positions, Predict

BLOCK = 4096  # rows of a call: they stay in the processor's cache


@dataclass(frozen=True)
class Attributions:
    """What each column adds to a prediction.

    Parameters
    ----------
    values
        float64 ``[n, M, K]``.
    base
        What they start from: float64 ``[n, K]``, or ``[K]`` where it is the same for all rows.
    predictions
        What they lead to: float64 ``[n, K]``.
    sampling
        Standard error of the values by the draws ``[n, M, K]``; None where nothing is drawn.
    """

    values: Floats
    base: Floats
    predictions: Floats
    sampling: Floats | None = None

    @property
    def additivity(self) -> Floats:
        """How far base and values are from the predictions, ``[n, K]``."""
        return np.asarray(self.predictions - self.base - self.values.sum(axis=1))


def shapley(
    predict: Predict,
    cells: Cells,
    background: Cells,
    columns: Sequence[Positions],
    plan: Coalitions,
    block: int = BLOCK,
) -> Attributions:
    """Compute the Shapley values of rows: interventional, against the mean answer over the background.

    The value of a coalition is the mean over the background of the answers with the known columns' cells from the row and the
    others from the background row. Coalitions and their solution are the same for all rows.

    Parameters
    ----------
    cells, background
        ``[n, P]`` and ``[B, P]``.
    columns
        Positions of each player's cells; cells of no player stay those of the row.
    plan
        From `coalitions`, for as many columns.

    Returns
    -------
    Attributions
        Their sampling error is the delete-a-group jackknife's over the draws of coalitions (Efron and Tibshirani 1993, An
        introduction to the bootstrap, equation 11.5); that of the background, which defines the question, is not in it.
    """
    players = len(columns)
    owner = np.full(cells.shape[1], players)
    for i, positions in enumerate(columns):
        owner[list(positions)] = i
    fixed = owner == players
    known = np.column_stack([plan.masks, np.ones(len(plan.masks), bool)])[:-1, owner]  # [S - 1, P]
    size = len(background)
    step = max(1, block // size)
    full = predict(cells)
    constant = predict(background).mean(axis=0) if not fixed.any() else None
    values, errors, bases = [], [], []
    for row, answer in zip(cells, full, strict=True):
        means = []
        for start in range(0, len(known), step):
            mask = known[start : start + step, None]
            mixed = np.where(mask, row, background).reshape(-1, cells.shape[1])
            means.append(predict(mixed).reshape(-1, size, full.shape[1]).mean(axis=1))
        base = constant
        if base is None:
            base = predict(np.where(fixed, row, background)).mean(axis=0)
        worth = np.concatenate([*means, answer[None]]) - base  # [S, K]
        found = plan.maps @ worth  # [1 + G, M, K]
        values.append(found[0])
        bases.append(base)
        errors.append(found[1:])
    sampling = None
    if not plan.exact:
        without = np.stack(errors)  # [n, G, M, K]
        groups = without.shape[1]
        sampling = np.sqrt((groups - 1) * without.var(axis=1))
    return Attributions(np.stack(values), np.stack(bases), full, sampling)
