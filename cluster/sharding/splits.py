"""Which rows train, validate and test: pure functions from arrays to part codes.

Rows come in key order (a seeded random order that depends on their content only), so "the first rows" are a
random choice. Part codes: 0 train, 1 validation, 2 test, -1 left out.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.names import plural

Codes = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEFT_OUT, TRAIN, VALIDATION, TEST = -1, 0, 1, 2


def quotas(counts: Ints, fraction: float) -> Ints:
    """Share ``fraction`` of the rows among classes by largest remainder.

    Parameters
    ----------
    counts
        Rows of each class, ``[K]``.
    fraction
        Of all rows, in [0, 1).

    Returns
    -------
    int64 ``[K]``, each within one of ``counts * fraction``, with the sum ``round(sum(counts) * fraction)``.
    Equal
    remainders go to the larger class, then to the first.
    """
    exact = counts * fraction
    whole = np.floor(exact + 1e-9).astype(np.int64)
    wanted = int(np.floor(counts.sum() * fraction + 0.5))
    remainder = np.round(exact - whole, 9)
    order = np.lexsort((np.arange(len(counts)), -counts, -remainder))
    whole[order[: max(0, wanted - int(whole.sum()))]] += 1
    return np.asarray(np.minimum(whole, counts))


def stratified(labels: Ints, n_classes: int, test: float, validation: float) -> Codes:
    """Split by class, with exact counts and at least one training row a class.

    Parameters
    ----------
    labels
        Class of each row, in key order, ``[n]``.
    n_classes
        K; classes without rows are allowed.
    test, validation
        Shares of the rows.

    Returns
    -------
    int8 ``[n]``.
    """
    counts = np.bincount(labels, minlength=n_classes)
    tests = np.minimum(quotas(counts, test), np.maximum(counts - 1, 0))
    validations = np.minimum(quotas(counts, validation), np.maximum(counts - 1 - tests, 0))
    by_class = by_stratum(labels)
    parts = np.zeros(len(labels), np.int8)
    for start, to_test, to_validation in zip(np.cumsum(counts) - counts, tests, validations, strict=True):
        parts[by_class[start : start + to_test]] = TEST
        parts[by_class[start + to_test : start + to_test + to_validation]] = VALIDATION
    return parts


def by_stratum(strata: npt.NDArray[np.signedinteger[Any]]) -> Ints:
    """Return the rows class after class, each class in the given order."""
    # numpy sorts integers of 16 bits by radix.
    narrow = strata.astype(np.int16) if len(strata) and strata.max() < 2**15 else strata
    return np.argsort(narrow, kind="stable")


def random(n: int, test: float, validation: float) -> Codes:
    """Split rows in key order into the first (test), the next (validation) and the rest."""
    return stratified(np.zeros(n, np.int64), 1, test, validation)


def grouped(groups: npt.NDArray[np.uint64], test: float, validation: float) -> Codes:
    """Split whole groups, in the order of their hashes, with row shares as near as the groups allow.

    A group goes to the test rows if that brings their number nearer to the share, otherwise to the validation
    rows
    by the same rule, otherwise to training; so a group of more than twice a part's share trains.

    Parameters
    ----------
    groups
        Seeded hash of each row's group, ``[n]``.
    test, validation
        Shares of the rows.

    Raises
    ------
    DataError
        If there are fewer groups than parts.
    """
    _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    wanted = [(TEST, test * len(groups)), (VALIDATION, validation * len(groups))]
    wanted = [(part, rows) for part, rows in wanted if rows > 0]
    if len(sizes) < len(wanted) + 1:
        raise DataError(
            f"data.group: {plural(len(sizes), 'group')} cannot fill {len(wanted) + 1} parts, because a group never "
            "straddles a split; give data with more groups, or set data.split.validation or data.split.test to 0"
        )
    of_group = np.zeros(len(sizes), np.int8)
    for later, (part, rows) in enumerate(wanted):
        _fill(of_group, sizes, part, rows, keep=len(wanted) - later)
    return of_group[inverse]


def _fill(of_group: Codes, sizes: Ints, part: int, wanted: float, keep: int) -> None:
    """Give free groups to a part; at least one, and ``keep`` groups stay free for the parts to come."""
    free = np.flatnonzero(of_group == TRAIN)
    taken, left = 0.0, len(free)
    smallest = int(sizes[free].min())
    for group, size in zip(free.tolist(), sizes[free].tolist(), strict=True):
        if left <= keep or 2 * (wanted - taken) <= smallest:
            break
        if size <= 2 * (wanted - taken):
            of_group[group] = part
            taken += size
            left -= 1
    if taken == 0:
        of_group[free[np.argmin(sizes[free])]] = part


def hashed(hashes: npt.NDArray[np.uint64], test: float, validation: float) -> Codes:
    """Split by thresholds on a hash, so that a row's part does not depend on the other rows.

    Parameters
    ----------
    hashes
        Seeded hash of each row's id, group or content, ``[n]``.
    test, validation
        Shares; reached on average.
    """
    unit = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    parts = np.zeros(len(hashes), np.int8)
    parts[unit < test + validation] = VALIDATION
    parts[unit < test] = TEST
    return parts


def latest(times: npt.NDArray[Any], rows: float) -> Any:
    """Return the first stamp of the latest rows, with as near to ``rows`` of them as the stamps allow.

    Parameters
    ----------
    times
        ``[n]``, no missing ones.
    rows
        Wanted number; at least one stamp is taken, and one is left before.

    Raises
    ------
    DataError
        If all stamps are equal.
    """
    stamps, counts = np.unique(times, return_counts=True)
    if len(stamps) < 2:
        raise DataError(
            "data.time: all rows to be split have the same time stamp, and equal time stamps stay together; use "
            "another split"
        )
    from_here = np.cumsum(counts[::-1])[::-1][1:]
    best = np.flatnonzero(np.abs(from_here - rows) == np.abs(from_here - rows).min())[-1]
    return stamps[1:][best]


def timed(
    times: npt.NDArray[Any], test: float, validation: float, test_from: Any, validation_from: Any, gap: Any
) -> Codes:
    """Split by time: train, then validation, then test; equal stamps stay together.

    Parameters
    ----------
    times
        ``[n]``, numbers; no missing ones.
    test, validation
        Shares of the rows, used where no stamp is given. 0 makes the part empty.
    test_from, validation_from
        First stamps of the parts, or None.
    gap
        Rows at most this long before the next part are left out; 0 for none.
    """
    parts = np.zeros(len(times), np.int8)
    free = np.ones(len(times), np.bool_)
    for part, share, given in ((TEST, test, test_from), (VALIDATION, validation, validation_from)):
        if given is None and (share <= 0 or not free.any()):
            continue
        start = latest(times[free], share * len(times)) if given is None else given
        parts[free & (times >= start)] = part
        parts[free & (times < start) & (times >= start - gap)] = LEFT_OUT
        free &= times < start - gap
    return parts


def straddling(parts: Codes, groups: Ints) -> Bools:
    """Return which groups have rows in more than one part.

    Parameters
    ----------
    parts
        ``[n]``; rows left out do not count.
    groups
        Index of each row's group, ``[n]``, from 0.

    Returns
    -------
    bool ``[number of groups]``.
    """
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    seen = np.zeros((3, n_groups), np.bool_)
    for part in (TRAIN, VALIDATION, TEST):
        seen[part, groups[parts == part]] = True
    return np.asarray(seen.sum(axis=0) > 1)


def drop_straddling(parts: Codes, groups: Ints) -> Codes:
    """Leave out the rows of every group that comes back in a later part: it stays in its last one only."""
    last = np.full(int(groups.max()) + 1 if len(groups) else 0, LEFT_OUT, np.int8)
    np.maximum.at(last, groups, parts)
    kept = parts.copy()
    kept[parts != last[groups]] = LEFT_OUT
    return kept
