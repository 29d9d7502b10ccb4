"""Splitters over time against scikit-learn's, and against their definitions."""

import numpy as np
import pytest
from sklearn import model_selection

from shoal.evaluation.crossval.splitters import PurgedKFold, TimeSeriesSplit

N = 60
RNG = np.random.default_rng(0)


def test_with_one_row_a_time_the_folds_are_scikit_learns() -> None:
    times = np.arange(N)
    theirs = model_selection.TimeSeriesSplit(n_splits=5).split(times.reshape(-1, 1))
    for (train, test), (expected_train, expected_test) in zip(
        TimeSeriesSplit(5).split(times), theirs, strict=True
    ):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(test, expected_test)


@pytest.mark.parametrize("most", [None, 7])
def test_gap_and_window_are_scikit_learns_where_times_are_numbered(most: int | None) -> None:
    times = np.arange(N)
    ours = TimeSeriesSplit(5, gap=3, max_train_size=most).split(times)
    theirs = model_selection.TimeSeriesSplit(n_splits=5, gap=3, max_train_size=most).split(
        times.reshape(-1, 1)
    )
    for (train, test), (expected_train, expected_test) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(test, expected_test)


@pytest.mark.parametrize("splitter", [TimeSeriesSplit(4), PurgedKFold(4)])
def test_equal_times_stay_together_in_any_order_of_the_rows(splitter: TimeSeriesSplit) -> None:
    times = RNG.integers(0, 23, N)
    seen = []
    for train, test in splitter.split(times):
        assert not set(times[train]) & set(times[test])
        assert (np.diff(times[test]) >= 0).all()
        seen += test.tolist()
    assert len(seen) == len(set(seen))
    if isinstance(splitter, PurgedKFold):
        assert len(seen) == N


def test_the_past_alone_trains_and_a_gap_is_left() -> None:
    times = RNG.normal(size=N) * 100
    for train, test in TimeSeriesSplit(5, gap=4.5).split(times):
        rest = np.setdiff1d(np.arange(N), [*train, *test])
        first = times[test].min()
        assert (times[train] < first - 4.5).all()
        assert all(times[r] >= first - 4.5 for r in rest)


def test_a_window_of_time_keeps_the_rows_that_are_younger() -> None:
    times = np.sort(RNG.integers(0, 300, N))
    for train, test in TimeSeriesSplit(4, gap=5, window=40).split(times):
        latest = times[times < times[test[0]] - 5].max()
        assert latest - 40 > 0 or test[0] < N // 2
        np.testing.assert_array_equal(times[train], times[(times <= latest) & (times > latest - 40)])


def test_purge_and_embargo_leave_out_what_is_near_a_block() -> None:
    times = np.arange(N)
    for train, test in PurgedKFold(4, purge=2, embargo=3).split(times):
        expected = [t for t in times if t < test[0] - 2 or t > test[-1] + 5]
        np.testing.assert_array_equal(train, expected)


@pytest.mark.parametrize("drop", [True, False])
def test_groups_of_the_block_do_not_train(drop: bool) -> None:
    times, groups = np.arange(N), RNG.integers(0, 12, N)
    shared = [
        set(groups[train]) & set(groups[test])
        for train, test in TimeSeriesSplit(3, drop_groups=drop).split(times, None, groups)
    ]
    assert any(shared) is not drop


def test_too_few_times_and_folds_without_training_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 different times cannot make 6 blocks"):
        list(TimeSeriesSplit(5).split(np.repeat([1, 2, 3], 10)))
    with pytest.raises(ValueError, match="no training rows are left for fold 1"):
        list(TimeSeriesSplit(5, gap=1000).split(np.arange(N)))
