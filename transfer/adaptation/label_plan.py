"""The fewest target labels that settle whether to adapt: which rows, how many, and what they say.

Where both models decide alike, a label changes nothing in their difference: both are right or both wrong. So only the d rows
(of n) on which they differ are drawn from, and the accuracy difference is (B - C) / n: on B of the d rows the adapted model alone
is right, on C the source-only model alone. The labels are a final test: once they have chosen
between these two, they are no test of the one that was chosen.

References
----------
McNemar (1947), Psychometrika 12; the exact sign test. Intervals for finite populations: Konijn (1973), "Statistical theory of
sample survey design and analysis", chapter on attributes (inversion of the hypergeometric distribution).
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.arrays import normalise
from shoal.cluster.sharding.hashing import hash_values, seeded
from shoal.cluster.sharding.names import listed, plural

Array = NDArray[np.generic]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_LABELS = 2**17  # beyond it, a plan is no plan


@dataclass(frozen=True)
class LabelPlan:
    """Which rows to label.

    Attributes
    ----------
    row_ids
        Of the rows to label, in the order in which they were drawn.
    rows, differing
        n, and d on which the two models decide differently.
    needed
        Labels by which the sign test has its power; None where no number has it.
    power
        That the labels of `row_ids` have for the difference.
    difference, level
        The smallest difference of the two accuracies worth detecting, and the level of the test.
    detectable
        The smallest difference that these labels detect with the power that was asked for; NaN where none.
    message
        What the plan can settle and what not, in a sentence or two.
    """

    row_ids: tuple[int | str, ...]
    rows: int
    differing: int
    needed: int | None
    power: float
    difference: float
    level: float
    detectable: float
    message: str


@dataclass(frozen=True)
class Settled:
    """What the labels say.

    Attributes
    ----------
    better
        ``adapted``, ``source_only``, or empty where the labels do not tell at the plan's level.
    adapted_alone, source_alone, neither
        Labelled rows that only one of the models has right, and those that none has.
    p_value
        Of the exact sign test, both sides; for rows like these, of which the labelled ones are a sample.
    difference, low, high
        Accuracy of the adapted model less that of the source-only one over the plan's n rows, with an interval for these very
        rows; without width where all on which the models differ are labelled.
    message
        In a sentence.
    """

    better: str
    adapted_alone: int
    source_alone: int
    neither: int
    p_value: float
    difference: float
    low: float
    high: float
    message: str


def plan_labels(
    source_only: Array,
    adapted: Array,
    row_ids: pa.Array,
    *,
    difference: float = 0.02,
    power: float = 0.8,
    level: float = 0.05,
    budget: int | None = None,
    seed: int = 0,
) -> LabelPlan:
    """Choose the rows whose labels settle which of two models is more often right in the target.

    Parameters
    ----------
    source_only, adapted
        Class that each model decides, ``[n]``.
    row_ids
        Of the rows, ``[n]``; each once.
    difference
        The smallest difference of the two accuracies, over all n rows, that is worth detecting.
    power, level
        Of the exact sign test, both sides. It is planned for labels that are always one of the two decisions; where
        some are neither, it has more power, not less.
    budget
        The most labels; fewer than are needed have less power, which is said.
    seed
        The rows are drawn by a hash of their id and the seed, whatever their order.

    Raises
    ------
    ConfigError
        If a number is out of its bounds.
    DataError
        If decisions and ids are not of the same rows, or an id is there twice.
    """
    _require(difference, power, level, budget)
    if not len(source_only) == len(adapted) == len(row_ids) or not len(row_ids):
        raise DataError(
            f"{len(source_only)} source-only decisions, {len(adapted)} adapted ones and {len(row_ids)} row ids; "
            "give one of each for every target row"
        )
    differ = np.flatnonzero(np.asarray(source_only != adapted))
    n, d = len(row_ids), len(differ)
    keys = hash_values(normalise(row_ids), "row_id")
    if keys is None or not keys.all() or len(np.unique(keys)) < n:
        raise DataError("row ids are missing or there more than once; give each target row an id of its own")
    order = differ[np.argsort(seeded(keys[differ], seed), kind="stable")]
    effect = difference * n / d if d else np.inf
    needed = sample_size(effect, power, level, d) if effect <= 1 else None
    count = 0 if effect > 1 else d if needed is None else needed
    count = count if budget is None else min(count, budget)
    chosen = tuple(row_ids.take(pa.array(order[:count])).to_pylist())
    reached = float(sign_power(np.array(count), effect, level)) if count and effect <= 1 else 0.0
    smallest = detectable_effect(count, power, level) * d / n if count else np.nan
    message = _message(n, d, count, needed, difference, reached, smallest, effect)
    return LabelPlan(chosen, n, d, needed, reached, difference, level, smallest, message)


def _require(difference: float, power: float, level: float, budget: int | None) -> None:
    for name, value in (("difference", difference), ("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} must be between 0 and 1, got {value:g}")
    if power <= level:
        raise ConfigError(f"power {power:g} must be above level {level:g}, such as 0.8")
    if budget is not None and budget < 1:
        raise ConfigError(f"budget must be at least 1 label, got {budget}")


def _message(
    n: int, d: int, count: int, needed: int | None, difference: float, power: float, smallest: float, effect: float,
) -> str:  # fmt: skip
    if not d:
        return f"both models decide alike on all {plural(n, 'row')}: no label can tell them apart, and none is needed"
    apart = f"the models decide differently on {d:,} of {plural(n, 'row')}"
    if effect > 1:
        return (
            f"{apart}, so their accuracies differ by at most {d / n:.2%}, less than the {difference:.2%} worth detecting: "
            "no label is needed to settle that"
        )
    if needed is not None and count == needed:
        return f"{apart}; labels of {count:,} of them detect a difference of {difference:.2%} with a power of {power:.0%}"
    least = "" if np.isnan(smallest) else f"; a difference of {smallest:.2%} would be detected as asked"
    if count < d:
        what = (
            f"{needed:,} labels are needed" if needed is not None else f"even all {d:,} have too little power"
        )
        return f"{apart}; {what}, and the {count:,} of the budget have a power of {power:.0%} for {difference:.2%}{least}"
    return (
        f"{apart}; labels of all of them give the difference on these {plural(n, 'row')} exactly, but for rows like "
        f"them no plan "
        f"can settle {difference:.2%}: the sign test then has a power of {power:.0%}{least}"
    )


def critical(n: Counts, level: float) -> Counts:
    """Return the most successes of n fair trials that the exact test, both sides, calls too few; -1 where none are."""
    # From the normal approximation it is a step or two; scipy's quantiles take twenty times as long.
    c = np.maximum(-1, np.floor(n / 2 - 0.5 + NormalDist().inv_cdf(level / 2) * np.sqrt(n) / 2)).astype(
        np.int64
    )
    while (more := 2 * binom.cdf(c + 1, n, 0.5) <= level).any():
        c += more
    while (less := 2 * binom.cdf(c, n, 0.5) > level).any():
        c -= less
    return np.asarray(c)


def sign_power(n: Counts, effect: float, level: float) -> Floats:
    """Return the chance that the exact sign test of n labels tells the better model, where it is right on (1 + effect) / 2."""
    return np.asarray(binom.cdf(critical(n, level), n, (1 - effect) / 2))


def sample_size(effect: float, power: float, level: float, most: int = MOST_LABELS) -> int | None:
    """Return the least number of labels from which on the exact sign test has its power; None beyond `most`.

    The power of an exact test goes up and down with n, so that a single n with enough of it may be luck: all that follow have
    it, too.
    """
    high = 1
    while sign_power(np.array(high), effect, level) < power:
        high *= 2
        if high >= 2 * most:
            return None
    # The dips are within a few steps of the smooth curve, far before twice its crossing.
    sizes = np.arange(max(1, high // 2), 2 * high + 20)
    short = np.flatnonzero(sign_power(sizes, effect, level) < power)
    least = int(sizes[short[-1]]) + 1 if len(short) else 1
    return least if least <= most else None


def detectable_effect(n: int, power: float, level: float) -> float:
    """Return the smallest effect, of at most 1, that n labels detect; NaN where not even 1 is."""
    c = int(critical(np.array(n), level))
    if c < 0:
        return np.nan
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if binom.cdf(c, n, (1 - middle) / 2) >= power else (middle, high)
    return high


def judge_labels(
    plan: LabelPlan,
    labels: Mapping[int | str, object],
    source_only: Mapping[int | str, object],
    adapted: Mapping[int | str, object],
    *,
    several: bool = True,
    confidence: float = 0.95,
) -> Settled:
    """Judge both models by the labels of a plan's rows.

    Parameters
    ----------
    plan
        From `plan_labels`.
    labels, source_only, adapted
        True class and decisions by row id; ids beyond the plan's are ignored.
    several
        Whether there are more than two classes, so that both models may be wrong on a row on which they differ. Their intervals
        are wider.
    confidence
        Of the interval.

    Raises
    ------
    DataError
        If a row of the plan has no label or decision, the decisions are not those of the plan, or labels are written in
        another way than decisions.
    """
    for what, given in (
        ("label", labels),
        ("source-only decision", source_only),
        ("adapted decision", adapted),
    ):
        if absent := [i for i in plan.row_ids if given.get(i) is None]:
            raise DataError(
                f"{plural(len(absent), 'row')} of the plan's {len(plan.row_ids):,} without a {what} "
                f"({listed(absent, 3)}): those "
                "that are easy to label are no fair sample; label all, or plan with a budget"
            )
    if same := [i for i in plan.row_ids if source_only[i] == adapted[i]]:
        raise DataError(
            f"on {plural(len(same), 'row')} of the plan both models decide alike ({listed(same, 3)}): "
            "these are decisions of other models"
        )
    decided = {given[i] for given in (source_only, adapted) for i in plan.row_ids}
    if plan.row_ids and decided.isdisjoint(labels[i] for i in plan.row_ids):
        raise DataError(
            f"no label is a class that a model decides: labels such as {labels[plan.row_ids[0]]!r}, decisions such as "
            f"{adapted[plan.row_ids[0]]!r}; give both as the same values"
        )
    b = sum(labels[i] == adapted[i] for i in plan.row_ids)
    c = sum(labels[i] == source_only[i] for i in plan.row_ids)
    k, d, n = len(plan.row_ids), plan.differing, plan.rows
    if not several and b + c < k:
        raise DataError(
            f"{plural(k - b - c, 'label')} that neither model decides: with two classes there is none"
        )
    p = sign_test(b, c)
    low, high = difference_bounds(b, c, k, d, several, 1 - confidence)
    value = (b - c) / k * d / n if k else 0.0
    better = "" if p > plan.level or b == c else "adapted" if b > c else "source_only"
    said = {
        "adapted": "the adapted model is right more often",
        "source_only": "the source-only model is right more often",
        "": "the labels do not tell which model is right more often",
    }[better]
    message = (
        f"{said}: alone right on {b:,} (adapted) and {c:,} (source-only) of {plural(k, 'labelled row')}, p = "
        f"{p:.3g}; over these "
        f"{plural(n, 'row')} the adapted accuracy is {value:+.2%} ({low / n:+.2%} to {high / n:+.2%}) from the "
        f"source-only one"
    )
    return Settled(better, b, c, k - b - c, p, value, low / n, high / n, message)


def sign_test(b: int, c: int) -> float:
    """Return the exact p-value, both sides, of b and c in favour of each."""
    return float(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)))


def difference_bounds(b: int, c: int, k: int, d: int, several: bool, alpha: float) -> tuple[int, int]:
    """Return bounds of B - C among d rows, of which k were drawn at random without replacement, b and c of them counted.

    With two classes C is d - B, and one interval of B does; with several, both have one, at half of `alpha` each.
    """
    if not several:
        low, high = count_bounds(b, k, d, alpha)
        return 2 * low - d, 2 * high - d
    b_low, b_high = count_bounds(b, k, d, alpha / 2)
    c_low, c_high = count_bounds(c, k, d, alpha / 2)
    return b_low - min(c_high, d - b_low), min(b_high, d - c_low) - c_low


def count_bounds(hits: int, k: int, d: int, alpha: float) -> tuple[int, int]:
    """Return an exact interval of how many of d rows are hits, of k drawn without replacement of which `hits` are.

    A number is in it where as few hits, and as many, each have a chance above ``alpha / 2``.
    """
    possible = range(hits, d - (k - hits) + 1)  # the first chance falls with the number, the second rises
    low = bisect_left(possible, True, key=lambda hit: bool(hypergeom.sf(hits - 1, d, hit, k) > alpha / 2))
    past = bisect_left(possible, True, key=lambda hit: bool(hypergeom.cdf(hits, d, hit, k) <= alpha / 2))
    return possible[low], possible[past - 1]
