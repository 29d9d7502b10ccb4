"""Permutation importance: how much a score falls when a column's cells are dealt to other rows.

Shape legend: n rows, P cells of a row, K outputs, R repeats.

References
----------
Breiman (2001), Random forests, Machine Learning 45, section 10; Fisher, Rudin and Dominici (2019), All models are wrong, but
many are useful, JMLR 20, equation 3.4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.utils import check_random_state

from shoal.evaluation.explain.subject import Cells, Floats, Predict, Subject

BLOCK = 4096  # rows of a call: some thousands stay in the processor's cache
Score = Callable[[Floats], float]


@dataclass(frozen=True)
class Importance:
    """How much the score falls without a column, or without several together.

    Parameters
    ----------
    falls
        Of each repeat ``[R]``: the score as it is less the score with cells permuted.
    low, high
        Interval of the mean over repeats (Student's t): what other permutations of the same rows would give.
    """

    name: str
    columns: tuple[str, ...]
    falls: Floats
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The mean over the repeats."""
        return float(self.falls.mean())

    @property
    def std(self) -> float:
        """The standard deviation over the repeats, as scikit-learn's."""
        return float(self.falls.std())


def orders(n: int, repeats: int, random_state: int | np.random.RandomState | None) -> NDArray[np.intp]:
    """Return which row each row's cells come from, ``[R, n]``: scikit-learn's draws, the same for every column.

    scikit-learn seeds every column alike, shuffles the numbers of the rows once more for each repeat, and permutes the cells
    that the repeat before has permuted.
    """
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max + 1)
    source = np.random.RandomState(seed)
    shuffled, found = np.arange(n), np.empty((repeats, n), np.intp)
    before = np.arange(n)
    for repeat in range(repeats):
        source.shuffle(shuffled)
        before = found[repeat] = before[shuffled]
    return found


def predict_in_blocks(predict: Predict, cells: Cells, block: int = BLOCK) -> Floats:
    """Answer for cells ``[n, P]`` a block at a time."""
    return np.concatenate([predict(cells[s : s + block]) for s in range(0, len(cells), block)])


def permuted_scores(
    predict: Predict,
    cells: Cells,
    positions: Sequence[int],
    order: NDArray[np.intp],
    score: Score,
    block: int = BLOCK,
) -> Floats:
    """Score the rows with some cells permuted, once a repeat.

    Parameters
    ----------
    cells
        ``[n, P]``; not changed.
    positions
        Cells that are permuted together.
    order
        From `orders`.
    score
        Predictions ``[n, K]`` to a number.

    Returns
    -------
    float64 ``[R]``
    """
    at = list(positions)
    own = np.ascontiguousarray(cells[:, at])
    answers: list[list[Floats]] = [[] for _ in order]
    for start in range(0, len(cells), block):
        rows = slice(start, start + block)
        work = cells[rows].copy()  # once for all repeats: only the cells in question change
        for repeat, source in enumerate(order):
            if len(at) == 1:
                work[:, at[0]] = own[source[rows], 0]
            else:
                work[:, at] = own[source[rows]]
            answers[repeat].append(predict(work))
    return np.array([score(np.concatenate(blocks)) for blocks in answers])


def importance(
    name: str, columns: Sequence[str], baseline: float, scores: Floats, confidence: float = 0.95
) -> Importance:
    """Put the scores of the repeats ``[R]`` together."""
    falls = baseline - scores
    low = high = float("nan")
    if len(falls) > 1:
        half = float(
            student.ppf((1 + confidence) / 2, len(falls) - 1) * falls.std(ddof=1) / len(falls) ** 0.5
        )
        low, high = float(falls.mean()) - half, float(falls.mean()) + half
    return Importance(name, tuple(columns), falls, low, high)


def permutation(
    subject: Subject,
    cells: Cells,
    score: Score,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    repeats: int = 5,
    random_state: Any = None,
    block: int = BLOCK,
    confidence: float = 0.95,
) -> list[Importance]:
    """Compute the importance of columns, or of groups of them.

    Parameters
    ----------
    subject, cells
        The model, and the rows ``[n, P]``: held-out ones, since a model that overfits finds noise important in the others.
    score
        Predictions ``[n, K]`` to a number; greater is better.
    groups
        Names of columns that are permuted together; None for each column alone.
    random_state
        As scikit-learn's: the importances are bit for bit those of `sklearn.inspection.permutation_importance`, wherever the
        model answers a row alike in any block.

    Returns
    -------
    In the order of the groups, or of the columns.
    """
    chosen = groups if groups is not None else {name: (name,) for name in subject.columns}
    order = orders(len(cells), repeats, random_state)
    baseline = score(predict_in_blocks(subject.predict, cells, block))
    return [
        importance(
            name,
            columns,
            baseline,
            permuted_scores(subject.predict, cells, subject.positions(columns), order, score, block),
            confidence,
        )
        for name, columns in chosen.items()
    ]
