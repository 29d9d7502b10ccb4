"""Which columns differ: distances by their definition, tests at their level, Holm by hand, and what carries a shift."""

import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.prepare import Prepared, prepare
from shoal.transfer.shift.columns import (
    carriers,
    categories_differ,
    compare_columns,
    distribution,
    holm,
    numbers_differ,
    pool,
    without,
)
from shoal.transfer.shift.domains import pair, separate
from shoal.transfer.shift.verdict import _columns

CITIES = ("Bern", "Oslo", "Rome")


def number(name: str, **more) -> Column:
    return Column(
        name=name, type="numeric", arrow_type="double", parts=("value",), center=(10.0,), scale=(2.0,), **more
    )


SCHEMA = Schema(
    columns=(
        number("a"),
        number("b"),
        number("still"),
        number("code").model_copy(update={"arrow_type": "int64"}),
        Column(name="city", type="categorical", arrow_type="string", categories=CITIES, value_type="string"),
        Column(name="token", type="categorical", arrow_type="string", categories=("x",), value_type="string"),
    ),
    target=Target(columns=("y",), task="binary", classes=(0, 1)),
)


def table(n: int, seed: int, shift: float = 0.0, shares=(0.5, 0.3, 0.2), missing: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a = 10 + 2 * (rng.standard_normal(n) + shift)
    return pa.table(
        {
            "a": a,
            "b": pa.array(10 + 2 * rng.standard_normal(n), mask=rng.random(n) < missing),
            "still": np.full(n, 10.0),
            "code": np.arange(n) + seed * n,
            "city": rng.choice(CITIES, n, p=shares),
            "token": [f"{seed}-{i}" for i in range(n)],
        }
    )


def both(source: pa.Table, target: pa.Table, schema: Schema = SCHEMA):
    return pair(prepare(source, schema), prepare(target, schema))


def found(source: pa.Table, target: pa.Table):
    return {c.name: c for c in compare_columns(both(source, target), SCHEMA)}


def test_the_distance_of_numbers_is_that_of_their_distribution_functions() -> None:
    rng = np.random.default_rng(0)
    a, b = np.round(rng.standard_normal(70), 1), np.round(rng.standard_normal(90) + 0.4, 1)
    far = max(abs((a <= x).mean() - (b <= x).mean()) for x in np.concatenate([a, b]))
    assert numbers_differ(a, b)[0] == pytest.approx(far)


def test_the_distance_of_categories_is_half_the_sum_of_differences() -> None:
    a, b = np.array([2, 2, 2, 3]), np.array([2, 3, 3, 4])
    assert categories_differ(a, b)[0] == pytest.approx((abs(0.75 - 0.25) + abs(0.25 - 0.5) + 0.25) / 2)


@pytest.mark.parametrize("kind", ["numbers", "categories"])
def test_without_a_difference_p_values_keep_their_level(kind: str) -> None:
    rng, below = np.random.default_rng(1), 0
    shares = np.array([0.6, 0.3, 0.05, 0.02, 0.01, 0.01, 0.01])
    for _ in range(400):
        if kind == "numbers":
            p = numbers_differ(rng.standard_normal(80), rng.standard_normal(120))[1]
        else:
            p = categories_differ(rng.choice(7, 80, p=shares), rng.choice(7, 120, p=shares))[1]
        below += p < 0.05
    assert 4 <= below <= 36  # of 400 at 5 %: outside fewer than one in 1,000 times


def test_rare_categories_are_pooled_until_they_can_be_expected() -> None:
    counts = np.array([[50, 4, 1, 0, 40], [60, 1, 2, 3, 30]])
    pooled = pool(counts)
    np.testing.assert_array_equal(pooled, [[50, 40, 5], [60, 30, 6]])
    few = np.array([[50, 1, 40], [60, 1, 30]])  # one expected: the smallest of the others joins
    np.testing.assert_array_equal(pool(few), [[50, 41], [60, 31]])
    np.testing.assert_array_equal(pool(np.array([[9, 8], [8, 9]])), [[9, 8], [8, 9]])


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert len(holm([])) == 0


def test_a_moved_number_comes_first_and_others_do_not_differ() -> None:
    shifts = found(table(500, 0), table(500, 1, shift=0.8))
    assert next(iter(shifts)) == "a"
    assert shifts["a"].p_value < 1e-6
    assert shifts["a"].effect == pytest.approx(0.31, abs=0.08)  # 2 Phi(.4) - 1
    # Phi(.8 / sqrt 2), less what intervals blur
    assert shifts["a"].auc.auc == pytest.approx(0.714, abs=0.05)
    assert shifts["b"].p_value > 0.05
    assert shifts["city"].p_value > 0.05
    assert not shifts["b"].auc.seen


def test_a_shift_of_spread_is_seen_by_a_column_alone() -> None:
    source, target = table(1000, 0), table(1000, 1)
    wide = 10 + 4 * (target["a"].to_numpy() - 10)
    shifts = found(source, target.set_column(0, "a", pa.array(wide)))
    assert shifts["a"].auc.low > 0.6  # the mean is the same


def test_categories_and_missing_values_count() -> None:
    shifts = found(table(500, 0), table(500, 1, shares=(0.2, 0.3, 0.5), missing=0.4))
    assert shifts["city"].effect == pytest.approx(0.3, abs=0.08)
    assert shifts["city"].p_value < 1e-6
    assert shifts["b"].p_value < 1e-6  # by what is missing; the numbers that are there do not differ
    assert shifts["b"].effect < 0.12
    assert shifts["b"].missing_target == pytest.approx(0.4, abs=0.06)
    assert shifts["b"].auc.seen


def test_values_that_the_source_does_not_know_are_counted() -> None:
    target = table(500, 1)
    strange = pa.array([c if i % 4 else "Lima" for i, c in enumerate(target["city"].to_pylist())])
    shifts = found(table(500, 0), target.set_column(4, "city", strange))
    assert shifts["city"].unknown_target == 0.25
    assert shifts["city"].effect == pytest.approx(0.25, abs=0.05)


def test_what_says_nothing_is_skipped_with_a_reason() -> None:
    shifts = found(table(200, 0), table(200, 1))
    assert "same value" in shifts["still"].skipped
    assert "identifier" in shifts["code"].skipped
    assert "identifier" in shifts["token"].skipped
    assert [c.skipped != "" for c in shifts.values()] == [False] * 3 + [True] * 3
    assert np.isnan(shifts["code"].effect)


def test_a_column_that_one_domain_lacks_values_of() -> None:
    target = table(300, 1)
    empty = target.set_column(1, "b", pa.nulls(300, pa.float64()))
    shifts = found(table(300, 0), empty)
    assert next(iter(shifts)) == "b"
    assert (shifts["b"].missing_target, shifts["b"].auc.auc) == (1, 1)
    (said,) = [line for line in _columns([shifts["b"]], [shifts["b"]]) if "'b'" in line]
    assert "missing in 0% of source rows and 100% of target rows" in said


def test_the_order_of_rows_means_nothing() -> None:
    source, target = table(300, 0), table(280, 1, shift=0.3, missing=0.2)
    order = np.random.default_rng(2).permutation(280)
    first = compare_columns(both(source, target), SCHEMA)
    again = compare_columns(both(source, target.take(pa.array(order))), SCHEMA)
    for a, b in zip(first, again, strict=True):
        assert (a.name, a.skipped, a.missing_target) == (b.name, b.skipped, b.missing_target)
        np.testing.assert_array_equal([a.effect, a.p_value], [b.effect, b.p_value])
        assert a.auc is None or (a.auc.auc, a.auc.low) == (b.auc.auc, b.auc.low)


def test_the_column_that_carries_a_shift_takes_it_along() -> None:
    rows = both(table(400, 0), table(400, 1, shift=1.0))
    whole = separate(rows)
    found = carriers(rows, SCHEMA, compare_columns(rows, SCHEMA), whole)
    assert list(found.joint) == [("a",)]
    assert whole.auc > 0.7
    rest = separate(without(rows, SCHEMA, ["a"]))
    assert found.each["a"].auc == rest.auc


def test_without_a_shift_nothing_carries_it() -> None:
    rows = both(table(200, 0), table(200, 1))
    kept = without(rows, SCHEMA, ["token", "code"])  # as sharding drops them
    schema = SCHEMA.model_copy(
        update={"columns": tuple(c for c in SCHEMA.columns if c.name not in ("token", "code"))}
    )
    assert carriers(kept, schema, compare_columns(kept, schema), separate(kept)).joint == {}
    assert without(rows, SCHEMA, [c.name for c in SCHEMA.columns]) is None


def test_distributions_are_in_units_of_the_data_and_private_ones_are_not_shown() -> None:
    rows = both(table(400, 0), table(400, 1, shift=1.0))
    drawn = distribution(rows, SCHEMA, "a")
    middle = (np.array(drawn.edges[1:]) + drawn.edges[:-1]) / 2
    assert middle @ drawn.source == pytest.approx(10, abs=0.4)
    assert middle @ drawn.target == pytest.approx(12, abs=0.4)
    assert sum(drawn.source) == pytest.approx(1)
    cities = distribution(rows, SCHEMA, "city")
    assert cities.names[0] == "Bern"
    assert sum(cities.target) == pytest.approx(1)
    private = SCHEMA.model_copy(update={"private": ("a", "city")})
    assert distribution(rows, private, "a") is None
    assert distribution(rows, private, "city") is None


def test_parts_of_a_time_stamp_are_features_of_one_column() -> None:
    rng = np.random.default_rng(0)
    parts = ("age", "hour_sin")
    stamp = Column(
        name="at",
        type="timestamp",
        arrow_type="timestamp[us]",
        parts=parts,
        center=(5.0, 0.0),
        scale=(2.0, 1.0),
    )
    schema = SCHEMA.model_copy(update={"columns": (stamp,)})
    numeric = rng.standard_normal((400, 2)).astype(np.float32)
    moved = numeric + np.array([0.0, 1.0], np.float32)
    none = np.zeros((400, 0), np.int32)
    rows = pair(Prepared(numeric, none), Prepared(moved, none))
    shifts = compare_columns(rows, schema)
    assert [c.name for c in shifts] == ["at (hour_sin)", "at (age)"]
    assert {c.column for c in shifts} == {"at"}
    middle = distribution(rows, schema, "at (age)").edges
    assert np.mean(middle) == pytest.approx(5, abs=1)
    assert list(carriers(rows, schema, shifts, separate(rows)).joint.values()) == [None]
