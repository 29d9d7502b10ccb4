import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cluster.errors import ConfigError, DataError
from shoal.training.plan import EpochPlan, resolve_batch_size


def dealt(rows: int, n_shards: int) -> tuple[int, ...]:
    return tuple(rows // n_shards + (v < rows % n_shards) for v in range(n_shards))


plans = st.builds(
    lambda rows, n_shards, batch: EpochPlan(dealt(rows, min(n_shards, rows)), batch, 7),
    st.integers(1, 500),
    st.integers(1, 20),
    st.integers(1, 200),
)


@settings(max_examples=60)
@given(plan=plans, workers=st.integers(1, 5), epoch=st.integers(0, 3))
def test_every_row_is_read_once_an_epoch_in_even_batches_whoever_reads(
    plan: EpochPlan, workers: int, epoch: int
) -> None:
    workers = min(workers, plan.n_shards)
    sizes = np.diff([*[plan.bounds(s)[0] for s in range(plan.steps_per_epoch)], plan.rows])
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() <= plan.batch_size
    read = []
    for worker in range(workers):
        own = plan.positions(epoch, 0, plan.steps_per_epoch, worker, workers)
        for v in plan.shards_of(worker, workers):
            order = plan.permutation(epoch, v)
            read += [(v, int(order[p // plan.n_shards])) for p in own if p % plan.n_shards == v]
    expected = [(v, i) for v, n in enumerate(plan.shard_rows) for i in range(n)]
    assert sorted(read) == expected


def test_the_rows_of_a_step_do_not_depend_on_the_number_of_workers() -> None:
    plan = EpochPlan(dealt(103, 6), 16, 3)
    for step in range(plan.steps_per_epoch):
        together = [
            np.sort(np.concatenate([plan.positions(0, step, step + 1, w, n) for w in range(n)]))
            for n in (1, 2, 6)
        ]
        np.testing.assert_array_equal(together[0], np.arange(*plan.bounds(step)))
        np.testing.assert_array_equal(together[1], together[0])
        np.testing.assert_array_equal(together[2], together[0])


def test_epochs_and_seeds_draw_other_orders() -> None:
    plan, other = EpochPlan((50,), 10, 1), EpochPlan((50,), 10, 2)
    assert (plan.permutation(0, 0) == plan.permutation(0, 0)).all()
    assert (plan.permutation(0, 0) != plan.permutation(1, 0)).any()
    assert (plan.permutation(0, 0) != other.permutation(0, 0)).any()


def test_more_workers_than_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers cannot share 2 logical shards.*data.shards"):
        EpochPlan((5, 5), 4, 0).shards_of(0, 3)


def test_uneven_shards_and_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="shard the data again"):
        EpochPlan((5, 9), 4, 0)
    with pytest.raises(DataError, match="no training rows"):
        EpochPlan((0, 0), 4, 0)


@pytest.mark.parametrize(
    ("asked", "rows", "got"),
    [
        ("full", 70, 70),
        (64, 1000, 64),
        (64, 10, 10),
        ("auto", 100, 32),
        ("auto", 10, 10),
        ("auto", 8192, 128),
        ("auto", 10**7, 1024),
    ],
)
def test_batch_sizes(asked: int | str, rows: int, got: int) -> None:
    assert resolve_batch_size(asked, rows) == got  # type: ignore[arg-type]
