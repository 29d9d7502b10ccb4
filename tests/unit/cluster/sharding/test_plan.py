from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal.cluster.sharding.blocks import group_slots
from shoal.cluster.sharding.plan import count_shards, deal, make_plan, row_ids


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    n = draw(st.integers(1, 200))
    parts = draw(hnp.arrays(np.int8, n, elements=st.integers(-1, 2)))
    strata = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 4)))
    return parts, strata, draw(st.integers(1, 20))


@given(rows())
def test_dealing_is_even_and_the_longer_shards_come_first(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    parts, strata, v = case
    slots = deal(parts, strata, v)
    assert np.array_equal(slots < 0, parts < 0)
    for part in range(3):
        mine = parts == part
        shards = slots[mine] - part * v
        sizes = np.bincount(shards, minlength=v)
        longer = mine.sum() % v
        assert sizes.tolist() == [mine.sum() // v + (i < longer) for i in range(v)]
        for stratum in range(5):
            counts = np.bincount(shards[strata[mine] == stratum], minlength=v)
            assert counts.max() - counts.min() <= 1


@given(rows(), st.integers(0, 2**32))
def test_plan_places_every_row_once(case: tuple[np.ndarray, np.ndarray, int], seed: int) -> None:
    parts, strata, v = case
    n = len(parts)
    draw = np.random.default_rng(seed)
    order = draw.permutation(n + 3)[:n]  # three rows have no label
    plan = make_plan(order, np.arange(n), parts, strata, v, n + 3)
    kept = plan.position[plan.position >= 0]
    assert sorted(kept) == list(range((parts >= 0).sum()))
    assert (plan.position[np.setdiff1d(np.arange(n + 3), order)] == -1).all()
    slots = deal(parts, strata, v)
    by_read = np.full(n + 3, -1)
    by_read[order] = slots
    for slot in range(3 * v):
        places = np.arange(plan.offsets[slot], plan.offsets[slot + 1])
        rows = np.flatnonzero(
            (plan.position >= places.min(initial=10**9)) & (plan.position <= places.max(initial=-1))
        )
        assert (by_read[rows] == slot).all()
        # Within a shard the rows keep the key order.
        in_key_order = [plan.position[order[i]] for i in np.flatnonzero(slots == slot)]
        assert in_key_order == sorted(in_key_order)
    assert len(set(plan.row_id.tolist())) == len(plan.row_id)
    rank = np.full(n + 3, -1)
    rank[order] = np.arange(n)
    assert np.array_equal(plan.arrange(rank)[plan.position[order[parts >= 0]]], np.flatnonzero(parts >= 0))


@given(st.lists(st.integers(0, 15), max_size=60))
def test_row_ids_name_the_nth_copy(keys: list[int]) -> None:
    ids = row_ids(np.array(sorted(keys), np.uint64)).tolist()
    assert len(set(ids)) == len(keys)
    counts = Counter(keys)
    for key, count in counts.items():
        # Fewer copies have the first of the ids that more copies have, whatever the other rows.
        alone = row_ids(np.full(20, key, np.uint64)).tolist()
        assert alone[0] == key
        start = sum(other for value, other in counts.items() if value < key)
        assert ids[start : start + count] == alone[:count]


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, 1), (10, 10), (100, 16), (200_000, 64), (10**6, 256), (10**9, 1024)]
)
def test_number_of_shards(rows: int, expected: int) -> None:
    assert count_shards(rows, "auto") == expected


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(1, 30))
def test_blocks_cover_all_slots(sizes: list[int], most: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    blocks = group_slots(offsets, most)
    assert [s for b in blocks for s in range(b.first, b.last)] == list(range(len(sizes)))
    for block in blocks:
        own = sizes[block.first : block.last]
        assert sum(own) <= most or np.count_nonzero(own) == 1
        # A block is a file, and without rows there would be none. The first slot has rows, but not in all draws here.
        assert sum(own) > 0 or block.first == 0
