import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.sharding.arrays import normalise
from shoal.cluster.sharding.hashing import hash_values, mix, seeded


def splitmix64(x: int) -> int:
    """The reference C code's three lines, in Python integers (Steele, Lea and Flood 2014)."""
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_mix_is_splitmix64(values: list[int]) -> None:
    assert mix(np.array(values, np.uint64)).tolist() == [splitmix64(v) for v in values]


@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=60), st.integers(0, 5))
def test_text_hashes_follow_values_alone(values: list[str | None], offset: int) -> None:
    plain = pa.array(values, pa.string())
    expected = hash_values(plain, "x")
    assert expected is not None
    for other in (plain.cast(pa.large_string()), normalise(plain), normalise(plain.cast(pa.string_view()))):
        assert np.array_equal(hash_values(other, "x"), expected)
    assert np.array_equal(hash_values(plain.slice(offset), "x"), expected[offset:])
    by_value = dict(zip(values, expected.tolist(), strict=True))
    assert len(set(by_value.values())) == len(by_value)
    if None in by_value:
        assert by_value[None] == 0


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=40))
def test_integer_hashes_are_distinct(values: list[int | None]) -> None:
    hashes = hash_values(pa.array(values, pa.int64()), "x")
    assert hashes is not None
    assert len(set(hashes.tolist())) == len(set(values))


def test_equal_numbers_hash_equally_whatever_their_type() -> None:
    expected = hash_values(pa.array([0, 1, None], pa.int64()), "x")
    for kind in (pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(25, 2), pa.bool_()):
        assert np.array_equal(hash_values(pa.array([0, 1, None], pa.int64()).cast(kind), "x"), expected), kind
    floats = hash_values(pa.array([-0.0, 1.0, np.nan]), "x")
    assert np.array_equal(floats, expected)
    assert not np.array_equal(hash_values(pa.array([0, 1, None]), "y"), expected)


def test_large_unsigned_integers_are_told_apart() -> None:
    hashes = hash_values(pa.array([2**64 - 1, 2**64 - 2, 2**63, 2**53, 2**53 + 1], pa.uint64()), "x")
    assert hashes is not None
    assert len(set(hashes.tolist())) == 5


def test_lists_know_the_order_of_their_elements() -> None:
    hashes = hash_values(pa.array([[1, 2], [2, 1], [1, 2], None], pa.list_(pa.int64(), 2)), "x")
    assert hashes is not None
    assert hashes[0] == hashes[2] != hashes[1]
    assert hashes[3] == 0


def test_maps_and_lists_of_varying_length_have_no_hash() -> None:
    assert hash_values(pa.array([[1], [1, 2]]), "x") is None


def test_seeded_keys_are_one_to_one_and_evenly_spread() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    one, two = seeded(keys, 1), seeded(keys, 2)
    assert len(np.unique(one)) == len(keys)
    assert not np.array_equal(np.argsort(one), np.argsort(two))
    counts = np.bincount((one >> np.uint64(60)).astype(int), minlength=16)
    # Chi-square of 16 cells: the 99.99 % point of 15 degrees of freedom is 44.3.
    assert ((counts - 1250) ** 2 / 1250).sum() < 44.3


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("ns"), pa.time32("s"), pa.duration("us")])
def test_temporal_values_hash(kind: pa.DataType) -> None:
    raw = pa.array([1, 2, None, 1], pa.int64() if kind.bit_width == 64 else pa.int32())
    hashes = hash_values(raw.view(kind), "x")
    assert hashes is not None
    assert hashes[0] == hashes[3] != hashes[1]
    assert hashes[2] == 0


def test_equal_times_hash_equally_whatever_their_unit() -> None:
    days = pa.array([0, 1, -1, None, 20_000], pa.int32()).cast(pa.date32())
    expected = hash_values(days, "x")
    assert expected is not None
    assert len(set(expected.tolist())) == 5
    for kind in (pa.date64(), *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns"))):
        assert np.array_equal(hash_values(days.cast(kind), "x"), expected), kind
    near = hash_values(pa.array([0, 1, 999, 1000, -1], pa.timestamp("ns")), "x")
    assert near is not None
    assert len(set(near.tolist())) == 5
    spans = [hash_values(pa.array([5, None]).cast(pa.duration("s")).cast(k), "x") for k in
             (pa.duration("s"), pa.duration("ns"))]  # fmt: skip
    assert np.array_equal(*spans)


def test_decimals_hash() -> None:
    hashes = hash_values(pa.array([decimal.Decimal("1.25"), None]), "x")
    assert np.array_equal(hashes, hash_values(pa.array([1.25, None]), "x"))
