"""New rows between a row and a neighbour: SMOTE and its kin.

What is drawn for a new row is a function of (seed, class, number of the row), in chunks of fixed size; so the rows come out the
same whoever makes them, in whatever parts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.hashing import generator
from shoal.cluster.sharding.imbalance.config import (
    ADASYNConfig,
    BorderlineSMOTEConfig,
    SMOTEConfig,
)
from shoal.cluster.sharding.imbalance.neighbours import Neighbourhood, points
from shoal.cluster.sharding.imbalance.rows import (
    Index,
    TrainingRows,
    nominal_parts,
    stack,
    take,
)
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.prepare import Prepared

CHUNK = 4096  # new rows that share a random generator; part of the result
_DRAWS = 12  # first word of the spawn key: what the draw is for
Unit = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How the new rows of one class are made; ``[s]`` rows from ``[b]`` bases with k neighbours each.

    Parameters
    ----------
    bases
        Training rows that new rows start from, int64 ``[b]``.
    neighbours
        Training rows near each, int64 ``[b, k]``.
    base, column
        Which base, and which of its neighbours; int64 ``[s]``.
    step
        How far from the base to the neighbour, float64 ``[s]`` in [0, 1).
    tie
        Decides between categories with equal votes, float64 ``[s]`` in [0, 1).
    """

    bases: Index
    neighbours: Index
    base: Index
    column: Index
    step: Unit
    tie: Unit

    @property
    def parents(self) -> Index:
        """The base and the neighbour of each new row, as training rows; int64 ``[s, 2]``."""
        return np.stack([self.bases[self.base], self.neighbours[self.base, self.column]], axis=1)


@dataclass(frozen=True)
class Interpolated:
    """New rows of all classes, made when they are asked for; see `rows.Made`.

    Parameters
    ----------
    training
        The rows that there are.
    recipes
        Of each class.
    """

    training: TrainingRows
    recipes: tuple[Recipe, ...]

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(len(recipe.base) for recipe in self.recipes)

    @property
    def parents(self) -> Index:
        """int64 ``[s, 2]``."""
        return np.concatenate([np.empty((0, 2), np.int64), *(recipe.parents for recipe in self.recipes)])

    def rows(self, index: Index) -> Prepared:
        """Return some of them; the index is ascending."""
        parts, first = [take(self.training.rows, np.empty(0, np.int64))], 0
        for recipe in self.recipes:
            low, high = np.searchsorted(index, (first, first + len(recipe.base)))
            parts.append(self._make(recipe, index[low:high] - first))
            first += len(recipe.base)
        return stack(parts)

    def _make(self, recipe: Recipe, index: Index) -> Prepared:
        source, base = self.training.rows, recipe.base[index]
        start = take(source, recipe.bases[base])
        around = recipe.neighbours[base]
        end = source.numeric[around[np.arange(len(index)), recipe.column[index]]]
        numeric = interpolate(start.numeric, end, recipe.step[index])
        categorical = start.categorical.copy()
        tie = recipe.tie[index]
        for i in nominal_parts(self.training.schema):
            codes = np.nan_to_num(source.numeric[:, i][around], nan=2.0).astype(np.int32)
            voted = vote(codes, tie).astype(np.float32)
            numeric[:, i] = np.where(voted == 2.0, np.float32(np.nan), voted)
        for i in range(categorical.shape[1]):
            categorical[:, i] = vote(source.categorical[:, i][around], tie)
        return Prepared(numeric, categorical)


def interpolate(
    start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], step: Unit
) -> npt.NDArray[np.float32]:
    """Return points between two rows (Chawla et al. 2002, section 4.2).

    Parameters
    ----------
    start, end
        ``[s, D]``. Where either misses a number, the start's is kept.
    step
        float64 ``[s]``; 0 is the start.
    """
    between = (end - start) * step[:, None]  # in float64, as imbalanced-learn computes it
    between += start
    if np.isnan(between.sum()):
        between = np.where(np.isnan(between), start, between)
    return between.astype(start.dtype)


def vote(codes: npt.NDArray[np.int32], tie: Unit) -> npt.NDArray[np.int32]:
    """Return the commonest code of each row (Chawla et al. 2002, section 6.1).

    Parameters
    ----------
    codes
        Of the neighbours, ``[s, k]``.
    tie
        float64 ``[s]`` in [0, 1): which of several commonest ones, in ascending order.
    """
    codes = np.sort(codes, axis=1)
    votes = (codes[:, :, None] == codes[:, None, :]).sum(axis=2)
    best = votes == votes.max(axis=1, keepdims=True)
    best[:, 1:] &= codes[:, 1:] != codes[:, :-1]  # each code once
    best[:, 0] = votes[:, 0] == votes.max(axis=1)
    chosen = (tie * best.sum(axis=1)).astype(np.int64)
    place = np.argmax(np.cumsum(best, axis=1) > chosen[:, None], axis=1)
    return np.asarray(codes[np.arange(len(codes)), place], np.int32)


def draws(seed: int, code: int, n: int, high: int) -> tuple[Index, Unit, Unit]:
    """Draw for n new rows of a class: a whole number below ``high``, and two numbers in [0, 1)."""
    whole, first, second = np.empty(n, np.int64), np.empty(n), np.empty(n)
    for chunk, start in enumerate(range(0, n, CHUNK)):
        rows = slice(start, min(start + CHUNK, n))
        size = rows.stop - rows.start
        draw = generator(seed, _DRAWS, code, chunk)
        whole[rows] = draw.integers(high, size=size)
        first[rows] = draw.random(size)
        second[rows] = draw.random(size)
    return whole, first, second


def over_sample(
    rows: TrainingRows, config: SMOTEConfig | ADASYNConfig, wanted: dict[int, int], seed: int
) -> tuple[Interpolated, Index, list[str]]:
    """Plan the new rows.

    Parameters
    ----------
    rows
        Training rows.
    config
        Which of the methods.
    wanted
        Class code to new rows.
    seed
        Root of the draws.

    Returns
    -------
    The new rows, the class of each (int64, ascending), and what has to be said.

    Raises
    ------
    DataError
        If a class has too few rows, or none where the method makes rows.
    """
    plan: Callable[[TrainingRows, int, int, int, list[str]], Recipe | None]
    if isinstance(config, ADASYNConfig):
        plan = _Adasyn(config)
    elif isinstance(config, BorderlineSMOTEConfig):
        plan = _Borderline(config)
    else:
        plan = _Smote(config)
    recipes: list[Recipe] = []
    labels: list[Index] = []
    notices: list[str] = []
    for code, n in wanted.items():
        if n and (recipe := plan(rows, code, n, seed, notices)) is not None:
            recipes.append(recipe)
            labels.append(np.full(len(recipe.base), code, np.int64))
    return (
        Interpolated(rows, tuple(recipes)),
        np.concatenate([np.empty(0, np.int64), *labels]),
        list(dict.fromkeys(notices)),
    )


@dataclass(frozen=True)
class _Smote:
    config: SMOTEConfig

    def __call__(self, rows: TrainingRows, code: int, n: int, seed: int, notices: list[str]) -> Recipe:
        own = rows.of_class(code)
        near = _within_class(rows, code, self.config.k_neighbors, self.config.exact_up_to, seed, notices)
        k = near.shape[1]
        whole, step, tie = draws(seed, code, n, near.size)
        return Recipe(np.arange(own.start, own.stop), near + own.start, whole // k, whole % k, step, tie)


@dataclass(frozen=True)
class _Adasyn:
    config: ADASYNConfig

    def __call__(self, rows: TrainingRows, code: int, n: int, seed: int, notices: list[str]) -> Recipe:
        own = rows.of_class(code)
        k, exact = self.config.n_neighbors, self.config.exact_up_to
        others = _others_around(rows, code, k, exact, seed, notices)
        if not others.any():
            raise DataError(
                f"data.imbalance: adasyn makes rows where other classes are near, and no row of {rows.name(code)} has one "
                f"among its {k} neighbours; use smote"
            )
        # He et al. (2008), equations 2 to 4; rounding changes the sum a little, as the paper lets it.
        each = np.rint(others / others.sum() * n).astype(np.int64)
        near = _within_class(rows, code, k, exact, seed, notices)
        whole, step, tie = draws(seed, code, int(each.sum()), near.shape[1])
        base = np.repeat(np.arange(len(each)), each)
        return Recipe(np.arange(own.start, own.stop), near + own.start, base, whole, step, tie)


@dataclass(frozen=True)
class _Borderline:
    config: BorderlineSMOTEConfig

    def __call__(self, rows: TrainingRows, code: int, n: int, seed: int, notices: list[str]) -> Recipe | None:
        own, config = rows.of_class(code), self.config
        m = min(config.m_neighbors, len(rows) - 1)
        others = _others_around(rows, code, m, config.exact_up_to, seed, notices)
        # Han, Wang and Mao (2005), section 3: at least half of the neighbours, but not all.
        danger = np.flatnonzero((others >= m / 2) & (others < m))
        if not len(danger):
            notices.append(
                f"borderline_smote made no row of {rows.name(code)}: none of its rows lies between the classes"
            )
            return None
        bases = own.start + danger
        if config.kind == "borderline-1":
            near = own.start + _within_class(
                rows, code, config.k_neighbors, config.exact_up_to, seed, notices, danger
            )
        else:
            k = min(config.k_neighbors, len(rows) - 1)
            near = _everywhere(rows, config.exact_up_to, seed, notices).of_members(bases, k)
        whole, step, tie = draws(seed, code, n, near.size)
        base, column = whole // near.shape[1], whole % near.shape[1]
        elsewhere = near[base, column]
        other = (elsewhere < own.start) | (elsewhere >= own.stop)
        # borderline-2: towards another class, less than half of the way.
        return Recipe(bases, near, base, column, np.where(other, step / 2, step), tie)


def _within_class(
    rows: TrainingRows,
    code: int,
    k: int,
    exact_up_to: int,
    seed: int,
    notices: list[str],
    members: Index | None = None,
) -> Index:
    """Return the neighbours of a class's rows in it, counted from its first row."""
    own = rows.of_class(code)
    there = own.stop - own.start
    if there < 2:
        raise DataError(
            f"data.imbalance: {rows.name(code)} has {plural(there, 'training row')}, and a new row needs two to lie between; use "
            "random_over_sampler, or leave the class out of sampling_strategy"
        )
    if k >= there:
        notices.append(
            f"{rows.name(code)} has {there} training rows, so each has {plural(there - 1, 'neighbour')}, not {k}"
        )
        k = there - 1
    lie = points(take(rows.rows, own), nominal_parts(rows.schema))
    among = Neighbourhood(lie, rows.name(code), exact_up_to, seed, notices)
    return among.of_members(np.arange(there) if members is None else members, k)


def _everywhere(rows: TrainingRows, exact_up_to: int, seed: int, notices: list[str]) -> Neighbourhood:
    lie = points(rows.rows, nominal_parts(rows.schema))
    return Neighbourhood(lie, "all classes", exact_up_to, seed, notices, mixed=True)


def _others_around(
    rows: TrainingRows, code: int, k: int, exact_up_to: int, seed: int, notices: list[str]
) -> Index:
    """Return how many of the k nearest rows of any class are of another one, for each row of a class."""
    own = rows.of_class(code)
    near = _everywhere(rows, exact_up_to, seed, notices).of_members(
        np.arange(own.start, own.stop), min(k, len(rows) - 1)
    )
    return np.asarray(((near < own.start) | (near >= own.stop)).sum(axis=1), np.int64)
