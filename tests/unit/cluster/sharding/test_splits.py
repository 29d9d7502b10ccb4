from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.model_selection import train_test_split

from shoal.cluster.errors import DataError
from shoal.cluster.sharding import splits
from shoal.cluster.sharding.splits import TEST, TRAIN, VALIDATION

shares = st.tuples(st.floats(0, 0.6), st.floats(0, 0.3))
labels = hnp.arrays(np.int64, st.integers(1, 300), elements=st.integers(0, 5))


@given(hnp.arrays(np.int64, st.integers(1, 8), elements=st.integers(0, 500)), st.floats(0, 0.99))
def test_quotas_are_within_one_and_sum_up(counts: np.ndarray, fraction: float) -> None:
    found = splits.quotas(counts, fraction)
    assert (np.abs(found - counts * fraction) < 1 + 1e-6).all()
    assert abs(found.sum() - counts.sum() * fraction) <= 0.5 + 1e-6


@given(labels, shares)
def test_stratified_counts(labels: np.ndarray, share: tuple[float, float]) -> None:
    test, validation = share
    parts = splits.stratified(labels, 6, test, validation)
    counts = np.bincount(labels, minlength=6)
    for part, fraction in ((TEST, test), (VALIDATION, validation)):
        found = np.bincount(labels[parts == part], minlength=6)
        expected = counts * fraction
        assert (found <= np.floor(expected) + 1).all()
        # Fewer only where the class must keep a training row.
        few = found < np.floor(expected + 1e-9)
        assert (np.bincount(labels[parts == TRAIN], minlength=6)[few] == 1).all()
    assert (np.bincount(labels[parts == TRAIN], minlength=6)[counts > 0] >= 1).all()


@pytest.mark.parametrize(
    ("counts", "test"), [((500, 300, 200), 0.2), ((900, 100), 0.25), ((64, 32, 16, 8), 0.5)]
)
def test_stratified_agrees_with_scikit_learn(counts: tuple[int, ...], test: float) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    _, theirs = train_test_split(y, test_size=test, stratify=y, random_state=0)
    ours = y[splits.stratified(y, len(counts), test, 0.0) == TEST]
    assert np.bincount(ours).tolist() == np.bincount(theirs).tolist()


@given(hnp.arrays(np.uint64, st.integers(3, 200), elements=st.integers(0, 30)), shares)
def test_groups_never_straddle(groups: np.ndarray, share: tuple[float, float]) -> None:
    test, validation = share
    sizes = np.unique(groups, return_counts=True)[1]
    assume(len(sizes) >= 3)
    parts = splits.grouped(groups, test, validation)
    for group in np.unique(groups):
        assert len(np.unique(parts[groups == group])) == 1
    assert (parts == TRAIN).any()
    for part, fraction in ((TEST, test), (VALIDATION, validation)):
        assert (parts == part).any() == (fraction > 0)


def test_group_shares_are_near() -> None:
    groups = np.random.default_rng(0).integers(0, 2**63, 300, dtype=np.uint64)[
        np.random.default_rng(1).integers(0, 300, 20_000)
    ]
    parts = splits.grouped(groups, 0.2, 0.1)
    largest = np.unique(groups, return_counts=True)[1].max()
    assert abs((parts == TEST).sum() - 4000) <= largest / 2
    assert abs((parts == VALIDATION).sum() - 2000) <= largest / 2


def test_a_giant_group_trains() -> None:
    groups = np.concatenate([np.zeros(900, np.uint64), np.arange(1, 101, dtype=np.uint64)])
    parts = splits.grouped(groups, 0.05, 0.02)
    assert (parts[:900] == TRAIN).all()
    assert (parts == TEST).sum() == 50


def test_too_few_groups() -> None:
    with pytest.raises(DataError, match="2 groups cannot fill 3 parts"):
        splits.grouped(np.array([1, 1, 2], np.uint64), 0.2, 0.1)


@given(hnp.arrays(np.uint64, st.integers(1, 50), elements=st.integers(0, 2**64 - 1)), st.data())
def test_hashed_rows_never_move(hashes: np.ndarray, data: st.DataObject) -> None:
    everything = splits.hashed(hashes, 0.3, 0.2)
    some = data.draw(hnp.arrays(np.bool_, len(hashes)))
    assert np.array_equal(splits.hashed(hashes[some], 0.3, 0.2), everything[some])


def test_hashed_shares() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    parts = splits.hashed(hashes, 0.2, 0.1)
    assert abs((parts == TEST).mean() - 0.2) < 0.005
    assert abs((parts == VALIDATION).mean() - 0.1) < 0.005


times = hnp.arrays(np.int64, st.integers(2, 200), elements=st.integers(0, 60))


@given(times, st.floats(0.05, 0.5), st.floats(0, 0.3), st.integers(0, 5))
def test_timed_order_and_gap(times: np.ndarray, test: float, validation: float, gap: int) -> None:
    assume(len(np.unique(times)) > 1)
    try:
        parts = splits.timed(times, test, validation, None, None, gap)
    except DataError:
        # Only one stamp was left for training and validation together.
        start = splits.latest(times, test * len(times))
        assert len(np.unique(times[times < start - gap])) == 1
        return
    for stamp in np.unique(times):
        assert len(np.unique(parts[times == stamp])) == 1
    present = [times[parts == part] for part in (TRAIN, VALIDATION, TEST) if (parts == part).any()]
    for earlier, later in pairwise(present):
        assert earlier.max() < later.min() - gap or (gap == 0 and earlier.max() < later.min())


@given(times, st.floats(0.05, 0.9))
def test_latest_is_the_nearest_cut(times: np.ndarray, share: float) -> None:
    stamps = np.unique(times)
    assume(len(stamps) > 1)
    found = splits.latest(times, share * len(times))
    by_hand = min(abs((times >= stamp).sum() - share * len(times)) for stamp in stamps[1:])
    assert abs((times >= found).sum() - share * len(times)) == by_hand


def test_timed_by_stamp() -> None:
    times = np.arange(100)
    parts = splits.timed(times, 0.2, 0.1, 80, 60, 5)
    assert (parts[80:] == TEST).all()
    assert (parts[75:80] == splits.LEFT_OUT).all()
    assert (parts[60:75] == VALIDATION).all()
    assert (parts[55:60] == splits.LEFT_OUT).all()
    assert (parts[:55] == TRAIN).all()


@given(
    hnp.arrays(np.int8, 40, elements=st.integers(-1, 2)),
    hnp.arrays(np.int64, 40, elements=st.integers(0, 9)),
)
def test_straddling_by_brute_force(parts: np.ndarray, groups: np.ndarray) -> None:
    torn = splits.straddling(parts, groups)
    for group in range(len(torn)):
        assert torn[group] == (
            len({p for p, g in zip(parts, groups, strict=True) if g == group and p >= 0}) > 1
        )
    kept = splits.drop_straddling(parts, groups)
    assert not splits.straddling(kept, groups).any()
    for group in set(groups.tolist()):
        mine = groups == group
        last = parts[mine].max()
        assert np.array_equal(kept[mine], np.where(parts[mine] == last, last, -1))
