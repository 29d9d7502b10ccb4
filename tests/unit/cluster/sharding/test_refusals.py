"""Data and requests that are refused, with words that help and without private values."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.sharded import Run, notices, replace

from shoal.cluster.errors import DataError


def test_private_values_never_show(table: pa.Table, run: Run) -> None:
    with pytest.raises(DataError) as caught:
        run(
            table.append_column("part", pa.array(["train", "hush"] * 300)),
            split={"column": "part"},
            private=["part"],
        )
    assert "hush" not in str(caught.value)
    dataset = run(table, time="booked", private=["booked", "label"])
    assert "2024" not in notices(dataset)
    assert "'yes'" not in notices(dataset)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("amount", [1.0, np.inf] * 300, "column 'amount' has 300 infinite values: make them null"),
        (
            "city",
            [f"the quick brown fox number {i}" for i in range(600)],
            "column 'city' holds text .*data.drop: .city.",
        ),
        ("city", [bytes([i % 256]) for i in range(600)], "column 'city' holds raw bytes"),
        (
            "city",
            [[1] * (i % 3) for i in range(600)],
            "column 'city' is list.*, lists of any length; .*fixed-size list: .*value_type, K.*not supported: leave it out",
        ),
        ("city", [{"a": i} for i in range(600)], "column 'city' is struct"),
        ("amount", [1e200 * i for i in range(600)], "column 'amount' has numbers too large to standardise"),
    ],
)
def test_columns_that_are_refused(
    table: pa.Table, run: Run, name: str, values: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(replace(table, name, pa.array(values)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "labell"}, "data.target: the data have no column 'labell'; did you mean 'label'"),
        ({"group": "customers"}, "data.group: .*did you mean 'customer'"),
        ({"drop": ["ITEMS"]}, "data.drop: .*did you mean 'items'"),
        ({"types": {"x": "numeric"}}, "data.types: the data have no column 'x'; there are order, customer"),
        (
            {"types": {"city": "boolean"}},
            "'city' is string and cannot be boolean; it can be numeric, categorical",
        ),
        (
            {"types": {"city": "numeric"}},
            "column 'city' is to be numeric, but some of its texts are no numbers",
        ),
        ({"types": {"label": "categorical"}}, "column 'label' is no feature"),
        ({"features": ["order"], "id": "order"}, "is the id, which is never a feature"),
        (
            {"drop": ["customer", "booked", "amount", "items", "gift", "city", "vector", "order"]},
            "no feature column",
        ),
        ({"features": ["order"]}, "no feature column is left: order"),
        ({"split": {"time": {}}}, "needs data.time"),
        ({"split": {"groups": "drop"}}, "there is no data.group"),
        (
            {"group": "vector"},
            "data.group: column 'vector' is fixed_size_list.*name a column of plain values",
        ),
        ({"id": "vector"}, "data.id: column 'vector' is fixed_size_list.*name a column of plain values"),
        ({"time": "city"}, "no ISO 8601 time stamps"),
        ({"time": "gift"}, "must hold numbers, dates or time stamps"),
        ({"shards": 5000}, "data.shards is 5000, more than the 420 training rows"),
        ({"split": {"hash": {"test": 0.7, "validation": 0.4}}}, "leave no training rows"),
    ],
)
def test_requests_that_cannot_be_met(
    table: pa.Table, run: Run, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(table, **options)


def test_a_class_that_is_too_small(table: pa.Table, run: Run) -> None:
    labels = ["rare"] + ["a", "b"] * 299 + ["a"]
    with pytest.raises(DataError, match=r"class 'rare' \(1 row\) of target 'label' cannot be split by class"):
        run(replace(table, "label", pa.array(labels)))
    few = replace(table, "label", pa.array(["few"] * 2 + labels[2:]))
    with pytest.raises(DataError, match=r"class 'few' \(2 rows\) .* needs a row for each of 3 parts"):
        run(few)
    assert "too small to have a test row" in notices(run(few, split={"validation": 0}))
    dataset = run(replace(table, "label", pa.array(["few"] * 3 + labels[3:])))
    assert dataset.manifest.splits["train"].class_counts[2] >= 1
    assert "'few' (3 rows) of target 'label' is too small to have a validation row" in notices(dataset)
    booked = pa.array(np.arange(600))
    late = replace(replace(table, "booked", booked), "label", pa.array(["a", "b"] * 290 + ["late"] * 20))
    with pytest.raises(DataError, match=r"class 'late' \(20 rows\) of target 'label' has no training row"):
        run(late, time="booked")
