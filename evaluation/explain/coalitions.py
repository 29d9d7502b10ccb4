"""Which columns are known in which question, and how the answers become Shapley values: one linear map for all rows.

Shape legend: M columns, S coalitions (without the empty one, the full one last), G groups for the error.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from shoal.cluster.errors import ConfigError
from shoal.evaluation.explain.subject import Floats

GROUPS = 10
_MOST_EXACT = 16  # columns: 65,536 coalitions


@dataclass(frozen=True)
class Coalitions:
    """Coalitions, and what turns their values into Shapley values.

    Parameters
    ----------
    masks
        bool ``[S, M]``, whether a column is known; the last one knows all.
    maps
        float64 ``[1 + G, M, S]``: Shapley values of the coalitions' values, less that of the empty one; then without each of G
        groups of draws. G is 0 where all coalitions are asked, and the values exact.
    """

    masks: NDArray[np.bool_]
    maps: Floats

    @property
    def exact(self) -> bool:
        """Whether nothing is drawn."""
        return len(self.maps) == 1


def coalitions(columns: int, budget: int, seed: np.random.SeedSequence) -> Coalitions:
    """Return all coalitions where the budget allows, otherwise the most telling ones and draws of the rest.

    Sizes whose coalitions the budget covers are taken whole, from the outside in; of the others, pairs of a coalition and its
    complement are drawn, their sizes by the root of the kernel's mass: half way between the kernel itself and leverage scores,
    which are even over sizes. Weights make up for it.

    Parameters
    ----------
    columns
        M.
    budget
        Coalitions, beside the empty and the full one.
    seed
        Of the draws.

    Raises
    ------
    ConfigError
        If the budget is below 2 M: then some column would never be asked for alone.

    References
    ----------
    Lundberg and Lee (2017), A unified approach to interpreting model predictions, NeurIPS, theorem 2 (the kernel); Covert and
    Lee (2021), Improving KernelSHAP, AISTATS, equation 7 (the constrained solution) and section 4.3 (pairs); Musco and Witter
    (2025), Provably accurate Shapley value estimation via leverage score sampling, ICLR, section 3.
    """
    if columns <= _MOST_EXACT and 2**columns - 2 <= budget:
        return _exact(columns)
    if budget < 2 * columns:
        raise ConfigError(
            f"{budget:,} coalitions are too few for {columns} columns; ask for at least {2 * columns:,}, or for fewer columns"
        )
    mass = np.array([(columns - 1) / (size * (columns - size)) for size in range(1, columns)])
    mass /= mass.sum()
    chance = np.sqrt(mass)  # measured: 6 % less error than by the mass itself
    masks: list[NDArray[np.bool_]] = []
    weights: list[Floats] = []
    left, open_sizes = budget, list(range(1, columns))
    for size in range(1, columns // 2 + 1):
        sizes = sorted({size, columns - size})
        count = len(sizes) * math.comb(columns, size)
        expected = left * _at(chance, sizes).sum() / _at(chance, open_sizes).sum()
        if expected < count - 1e-9 and size > 1:
            break
        one = _of_size(columns, size)
        masks.append(one if len(sizes) == 1 else np.concatenate([one, ~one]))
        weights.append(np.full(count, _at(mass, sizes).sum() / count))
        open_sizes = [s for s in open_sizes if s not in sizes]
        left -= count
    groups = np.concatenate([np.full(len(m), -1) for m in masks])
    if open_sizes and (pairs := left // 2):
        drawn, of_group = _drawn(
            columns, open_sizes, _at(chance, open_sizes), pairs, np.random.default_rng(seed)
        )
        each = (mass / chance)[drawn.sum(1) - 1]
        masks.append(drawn)
        weights.append(each * (_at(mass, open_sizes).sum() / each.sum()))
        groups = np.concatenate([groups, of_group])
    known, weight = np.concatenate(masks), np.concatenate(weights)
    maps = [_solution(known, weight)]
    for group in range(int(groups.max()) + 1):
        kept = np.where(groups == group, 0.0, weight)
        kept[groups >= 0] *= weight[groups >= 0].sum() / kept[groups >= 0].sum()
        maps.append(_solution(known, kept))
    return Coalitions(np.concatenate([known, np.ones((1, columns), bool)]), np.stack(maps))


def _at(values: Floats, sizes: list[int]) -> Floats:
    return np.asarray(values[np.array(sizes) - 1])


def _exact(columns: int) -> Coalitions:
    """Return all coalitions; Shapley (1953), A value for n-person games, equation 12."""
    numbers = np.arange(1, 2**columns)
    masks = (numbers[:, None] >> np.arange(columns)) & 1 == 1
    size = masks.sum(1)
    weight = np.array([1 / (columns * math.comb(columns - 1, s)) for s in range(columns)])
    with_it, without = weight[size - 1], weight[np.minimum(size, columns - 1)]
    return Coalitions(masks, np.where(masks.T, with_it, -without)[None])


def _of_size(columns: int, size: int) -> NDArray[np.bool_]:
    members = np.array(list(combinations(range(columns), size)))
    found = np.zeros((len(members), columns), bool)
    np.put_along_axis(found, members, True, axis=1)
    return found


def _drawn(
    columns: int, sizes: list[int], chance: Floats, pairs: int, draws: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Draw pairs of a coalition and its complement; return them and the group of each."""
    shares = np.cumsum(chance)
    through = (np.arange(pairs) + draws.random()) / pairs * shares[-1]
    size = np.array(sizes)[np.minimum(np.searchsorted(shares, through, side="right"), len(sizes) - 1)]
    first = draws.random((pairs, columns)).argsort(axis=1).argsort(axis=1) < size[:, None]
    group = np.arange(pairs) % min(GROUPS, max(2, pairs))
    return np.concatenate([first, ~first]), np.concatenate([group, group])


def _solution(masks: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the map ``[M, S + 1]`` of the weighted least squares whose values add up to the full coalition's."""
    known = masks.astype(np.float64)
    weighted = (known * weights[:, None]).T
    factor = cho_factor(weighted @ known)
    free = cho_solve(factor, weighted)
    ones = cho_solve(factor, np.ones(masks.shape[1]))
    ones /= ones.sum()
    return np.column_stack([free - ones[:, None] * free.sum(0), ones])
