import datetime as dt
import decimal
import math
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.preprocessing import StandardScaler

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import normalise
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.prepare import prepare
from shoal.cluster.sharding.statistics import Moments, Statistics

TARGET = Target(columns=("label",), task="binary", classes=("no", "yes"))


def column(name: str, kind: str, arrow: str, **more: object) -> Column:
    parts = () if kind == "categorical" else ("value",)
    value_type = "string" if kind == "categorical" else ""
    fields = {
        "parts": parts,
        "center": (0.0,) * len(parts),
        "scale": (1.0,) * len(parts),
        "value_type": value_type,
    }
    return Column(name=name, type=kind, arrow_type=arrow, **{**fields, **more})


def schema(*columns: Column) -> Schema:
    return Schema(columns=columns, target=TARGET)


def test_moments_agree_with_standard_scaler_whatever_the_pieces() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(1e6, 3, (5000, 4))
    values[draw.random(values.shape) < 0.1] = np.nan
    oracle = StandardScaler().fit(values)
    for cuts in ([], [17], [0, 1, 4999], [1000, 2000, 2001]):
        pieces = [Moments.of(np.ascontiguousarray(piece.T)) for piece in np.split(values, cuts) if len(piece)]
        total = pieces[0]
        for piece in pieces[1:]:
            total.merge(piece)
        np.testing.assert_allclose(total.mean, oracle.mean_, rtol=1e-13)
        np.testing.assert_allclose(total.scale(), oracle.scale_, rtol=1e-10)
        np.testing.assert_array_equal(total.missing, np.isnan(values).sum(axis=0))
        np.testing.assert_array_equal(total[1:3].mean, total.mean[1:3])


def test_prepared_numbers_agree_with_standard_scaler() -> None:
    values = np.random.default_rng(0).normal(50, 9, (40_000, 1))
    oracle = StandardScaler().fit(values)
    one = column("x", "numeric", "double", center=tuple(oracle.mean_), scale=tuple(oracle.scale_))
    found = prepare(pa.table({"x": values[:, 0]}), schema(one)).numeric
    assert found.dtype == np.float32
    assert np.array_equal(found, oracle.transform(values).astype(np.float32))


def test_numbers_in_texts() -> None:
    one = column("x", "numeric", "string", center=(1.0,), scale=(2.0,))
    values = pa.array(["5", None, "-1e1", "nan"])
    for layout in (values, values.dictionary_encode(), values.cast(pa.large_string())):
        found = prepare(pa.table({"x": layout}), schema(one)).numeric
        np.testing.assert_array_equal(found, np.array([[2], [math.nan], [-5.5], [math.nan]], np.float32))
    assert prepare(pa.table({"x": [5.0]}), schema(one)).numeric.tolist() == [[2]]


def test_vocabulary_is_by_frequency_then_value() -> None:
    values = list("bbbaaaccd") + [None] * 4
    statistics = Statistics([column("x", "categorical", "string")])
    table = pa.table({"x": normalise(pa.array(values))})
    statistics.add(table, [0, 5, len(values)])
    complete, notices = statistics.finish(column("x", "categorical", "string"), 3)
    assert complete.categories == ("a", "b", "c")
    assert complete.has_missing
    assert "1 beyond data.max_categories = 3" in notices[0]


def test_rare_categories_train_the_code_of_unknown_ones() -> None:
    draw = np.random.default_rng(0)
    values = [f"v{i}" for i in draw.zipf(1.5, 2000).clip(max=500)]
    statistics = Statistics([column("x", "categorical", "string")])
    statistics.add(pa.table({"x": normalise(pa.array(values))}), [0, 700, 2000])
    complete, _ = statistics.finish(column("x", "categorical", "string"), 10_000)
    counts = Counter(values)
    expected = sorted((v for v, c in counts.items() if c > 1), key=lambda v: (-counts[v], v))
    assert list(complete.categories) == expected
    codes = prepare(pa.table({"x": values}), schema(complete)).categorical[:, 0]
    by_hand = [expected.index(v) + 2 if v in expected else 1 for v in values]
    assert codes.tolist() == by_hand


def test_codes_of_every_layout_of_strings() -> None:
    one = column("x", "categorical", "string", categories=("b", "a"))
    values = pa.array(["a", "b", None, "zzz"])
    layouts = [
        values,
        values.cast(pa.large_string()),
        values.cast(pa.string_view()),
        values.dictionary_encode(),
        values.cast(pa.dictionary(pa.uint8(), pa.large_string())),
        pa.chunked_array([values.slice(0, 1).dictionary_encode(), values.slice(1).dictionary_encode()]),
    ]
    for layout in layouts:
        assert prepare(pa.table({"x": layout}), schema(one)).categorical[:, 0].tolist() == [3, 2, 0, 1]
    pandas = pa.Table.from_pandas(pd.DataFrame({"x": pd.Categorical(["a", "b", None, "zzz"])}))
    assert prepare(pandas, schema(one)).categorical[:, 0].tolist() == [3, 2, 0, 1]


def test_integer_categories_accept_floats_of_equal_value() -> None:
    one = column("x", "categorical", "int64", categories=(10, 20), value_type="integer")
    table = pa.table({"x": pa.array([20.0, None, 10.5, 10.0, math.nan])})
    assert prepare(table, schema(one)).categorical[:, 0].tolist() == [3, 0, 1, 2, 0]


def test_boolean_categories() -> None:
    one = column("x", "categorical", "bool", categories=(True, False), value_type="boolean")
    table = pa.table({"x": pa.array([True, None, False])})
    assert prepare(table, schema(one)).categorical[:, 0].tolist() == [2, 0, 3]


def test_time_stamps_by_the_calendar() -> None:
    parts = ("age", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "yearday_sin", "yearday_cos")
    one = column("t", "timestamp", "timestamp[us]", parts=parts, center=(0.0,) * 7, scale=(1.0,) * 7)
    stamps = [
        dt.datetime(2024, 12, 31, 18, 30),
        dt.datetime(1969, 7, 20, 20, 17, 40),
        dt.datetime(2023, 3, 1),
    ]
    expected = []
    for t in stamps:
        hour = 2 * math.pi * (t.hour * 3600 + t.minute * 60 + t.second) / 86400
        weekday = 2 * math.pi * t.weekday() / 7
        length = 366 if t.year % 4 == 0 else 365
        yearday = 2 * math.pi * (t.timetuple().tm_yday - 1) / length
        age = (t - dt.datetime(1970, 1, 1)) / dt.timedelta(days=1)
        expected.append([age, *(f(x) for x in (hour, weekday, yearday) for f in (math.sin, math.cos))])
    layouts = [pa.array(stamps, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")]
    layouts.append(pa.array([t.isoformat() for t in stamps]))
    layouts.append(pa.array([t.isoformat() + "Z" for t in stamps]).dictionary_encode())
    for layout in layouts:
        found = prepare(pa.table({"t": layout}), schema(one)).numeric
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-6, atol=1e-6)
    missing = prepare(pa.table({"t": pa.array([None, *stamps])}), schema(one)).numeric
    assert np.isnan(missing[0]).all()
    assert not np.isnan(missing[1:]).any()


def test_dates_decimals_booleans_and_lists() -> None:
    day = column("d", "timestamp", "date32[day]", parts=("age",))
    cash = column("c", "numeric", "decimal128(5, 2)")
    flag = column("b", "boolean", "bool")
    vector = column("v", "tensor", "fixed_size_list", parts=("0", "1"), center=(1.0, 0.0), scale=(2.0, 1.0))
    table = pa.table(
        {
            "v": pa.array([[1, 2], [3, None], None], pa.list_(pa.float64(), 2)),
            "b": pa.array([True, None, False]),
            "c": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-2.5")]),
            "d": pa.array([dt.date(1970, 1, 2), None, dt.date(1969, 12, 31)]),
            "extra": [1, 2, 3],
        }
    )
    nan = math.nan
    expected = [[1, 1.25, 1, 0, 2], [nan, nan, nan, 1, nan], [-1, -2.5, 0, nan, nan]]
    found = prepare(table, schema(day, cash, flag, vector))
    np.testing.assert_array_equal(found.numeric, np.array(expected, np.float32))
    assert found.categorical.shape == (3, 0)
    lists = table.set_column(0, "v", pa.array([[1, 2], [3, None], [5, 6]], pa.list_(pa.float64())))
    assert prepare(lists, schema(vector)).numeric[:, 0].tolist() == [0, 1, 2]


def test_a_sliced_list_column_keeps_its_rows() -> None:
    vector = column("v", "tensor", "fixed_size_list", parts=("0", "1"), center=(0.0, 0.0))
    table = pa.table({"v": pa.array([[i, -i] for i in range(10)], pa.list_(pa.int64(), 2))})
    assert prepare(table.slice(7), schema(vector)).numeric.tolist() == [[7, -7], [8, -8], [9, -9]]


def test_all_missing_at_predict_time() -> None:
    columns = (column("x", "numeric", "double"), column("c", "categorical", "string", categories=("a",)))
    found = prepare(pa.table({"x": pa.nulls(2), "c": pa.nulls(2)}), schema(*columns))
    assert np.isnan(found.numeric).all()
    assert found.categorical.tolist() == [[0], [0]]


def test_no_rows() -> None:
    found = prepare(pa.table({"x": pa.array([], pa.float64())}), schema(column("x", "numeric", "double")))
    assert found.numeric.shape == (0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1.0, math.inf, -math.inf]), "column 'x' has 2 infinite values; make them null"),
        (pa.array([1.0, 1e300, 0.0]), "column 'x' has 1 value too large for a float32"),
        (pa.array(["a", "b", "c"]), r"column 'x' is text, expected double \(numeric\)"),
        (pa.array([[1.0], [2.0], [3.0]]), "column 'x' is list<.*>, expected double"),
        (pa.array([dt.date(2024, 1, 1)] * 3), "column 'x' is date32.*, expected double"),
    ],
)
def test_bad_numbers(values: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(pa.table({"x": values}), schema(column("x", "numeric", "double")))


@pytest.mark.parametrize(
    ("one", "values", "message"),
    [
        (
            column("x", "categorical", "string", categories=("a",)),
            pa.array([1, 2]),
            "is int64, expected string",
        ),
        (column("x", "boolean", "bool"), pa.array([1, 2]), "is boolean, but has 1 value other than 0 and 1"),
        (column("x", "timestamp", "timestamp[us]"), pa.array(["May"]), "no ISO 8601 stamps"),
        (column("x", "timestamp", "timestamp[us]"), pa.array([5]), "is int64, expected timestamp"),
        (
            column("x", "tensor", "l", parts=("0", "1")),
            pa.array([[1, 2, 3]], pa.list_(pa.int64(), 3)),
            "lists of 3 numbers, expected 2",
        ),
    ],
)
def test_wrong_types(one: Column, values: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(pa.table({"x": values}), schema(one))


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match="no column 'amount', which the model needs; did you mean 'Amounts'"):
        prepare(pa.table({"Amounts": [1], "other": [2]}), schema(column("amount", "numeric", "double")))


def test_numbers_are_scaled_each_by_itself_together_or_not() -> None:
    values = np.random.default_rng(0).gamma(2.0, [1.0, 10.0, 5.0], (200, 3))
    values[values < 0.5] = np.nan
    one = column("x", "tensor", "fixed_size_list<item: double>[3]", parts=("0", "1", "2"))
    one = one.model_copy(update={"center": (0.0,) * 3, "scale": (1.0,) * 3})
    statistics = Statistics([one])
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)})
    statistics.add(table, [0, 70, 200])
    each, _ = statistics.finish(one, 10)
    np.testing.assert_allclose(each.scale, np.nanstd(values, axis=0))
    whole, _ = statistics.finish(one, 10, "whole")
    np.testing.assert_allclose(whole.center, [np.nanmean(values)] * 3)
    np.testing.assert_allclose(whole.scale, [np.nanstd(values)] * 3)
    untouched, _ = statistics.finish(one, 10, "none")
    assert (untouched.center, untouched.scale) == ((0.0,) * 3, (1.0,) * 3)
    words = column("w", "categorical", "string")
    with pytest.raises(
        DataError, match=r"data.scaling: column 'w' is categorical and has no numbers to scale"
    ):
        Statistics([words]).finish(words, 10, "none")
