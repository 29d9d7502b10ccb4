"""Which part each row is in, for every kind of split."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.sharded import PARTS, Gather, Run, notices, replace

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.dataset import ShardedDataset


def parts_of(dataset: ShardedDataset, gather: Gather) -> dict[str, str]:
    return {row: part for part in PARTS for row in gather(dataset, part)["row_id"]}


def test_group_split(table: pa.Table, run: Run, gather: Gather) -> None:
    dataset = run(table, group="customer", id="order")
    parts = parts_of(dataset, gather)
    seen: dict[int, set[str]] = {}
    for row, customer in zip(
        table.column("order").to_pylist(), table.column("customer").to_pylist(), strict=True
    ):
        seen.setdefault(customer, set()).add(parts[row])
    assert all(len(found) == 1 for found in seen.values())
    assert abs(dataset.rows("test") - 120) < 20
    assert "'customer' is the group and no feature" in notices(dataset)


def test_row_labels_of_a_data_frame_are_no_feature(table: pa.Table, run: Run) -> None:
    labels = table.append_column("__index_level_0__", pa.array(np.arange(len(table)) ** 2 % 97 * 1.5))
    dataset = run(labels, id="order")
    assert "__index_level_0__" not in [column.name for column in dataset.schema.columns]
    assert "'__index_level_0__' holds the row labels of a data frame" in notices(dataset)
    named = run(labels, id="order", features=["__index_level_0__"])
    assert [column.name for column in named.schema.columns] == ["__index_level_0__"]


@pytest.mark.parametrize("form", ["stamp", "text", "date", "number"])
def test_time_split(table: pa.Table, run: Run, gather: Gather, form: str) -> None:
    stamps = table.column("booked").combine_chunks()
    times = {
        "stamp": stamps,
        "text": pc.strftime(stamps, "%Y-%m-%dT%H:%M:%SZ"),
        "date": stamps.cast(pa.date32(), safe=False),
        "number": stamps.cast(pa.int64()).cast(pa.float64()),
    }
    values = times[form]
    used = table.set_column(table.column_names.index("booked"), "booked", values)
    dataset = run(used, time="booked", id="order")
    parts = parts_of(dataset, gather)
    by_part: dict[str, list[Any]] = {part: [] for part in PARTS}
    for row, time in zip(table.column("order").to_pylist(), values.to_pylist(), strict=True):
        by_part[parts[row]].append(time)
    assert max(by_part["train"]) < min(by_part["validation"])
    assert max(by_part["validation"]) < min(by_part["test"])
    assert abs(len(by_part["test"]) - 120) <= 15
    assert "booked" not in [column.name for column in dataset.schema.columns]


def test_time_split_from_a_date_with_a_gap(table: pa.Table, run: Run) -> None:
    split = {"time": {"test_from": "2024-03-10", "gap": "2d", "validation": 0}}
    dataset = run(table, time="booked", split=split)
    times = table.column("booked").to_pandas()
    assert dataset.rows("test") == (times >= "2024-03-10").sum()
    assert dataset.rows("train") == (times < "2024-03-08").sum()
    assert dataset.manifest.left_out == {
        "in the gap between parts": int(((times >= "2024-03-08") & (times < "2024-03-10")).sum())
    }
    assert "test from 2024-03-10" in notices(dataset)
    with pytest.raises(
        DataError, match="test_from is 5.0, but column 'booked' holds time stamps; give a date"
    ):
        run(table, time="booked", split={"time": {"test_from": 5}})
    with pytest.raises(DataError, match="but column 'customer' holds numbers; give a number"):
        run(table, time="customer", split={"time": {"test_from": "2024-03-10"}})


@pytest.mark.parametrize(("time", "gap"), [("booked", "900d"), ("customer", 900)])
def test_a_gap_that_is_longer_than_the_data_is_named(
    table: pa.Table, run: Run, time: str, gap: object
) -> None:
    with pytest.raises(DataError, match=rf"data.split.time.gap is {gap}, .*{time}.* give a shorter one"):
        run(table, time=time, split={"time": {"gap": gap}})


@pytest.mark.parametrize("target", ["label", "amount"])
def test_a_share_that_comes_to_no_row_is_named(table: pa.Table, run: Run, target: str) -> None:
    said = notices(run(table, target=target, split={"test": 1e-9, "validation": 0.2}))
    assert "data.split.test is 1e-09, which of " in said
    assert "too small to have a test row" not in said


def test_zoned_times_are_said_in_utc(table: pa.Table, run: Run) -> None:
    plain = table["booked"].cast(pa.timestamp("us"))
    for column, zone in (
        (plain, ""),
        (plain.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "Asia/Tokyo")), " UTC"),
        (plain.cast(pa.string()), " UTC"),
    ):
        said = notices(
            run(replace(table, "booked", column), time="booked", split={"time": {"validation": 0}})
        )
        assert re.search(rf"test from 2024-\d\d-\d\dT\d\d:\d\d:\d\d{zone}$", said, re.MULTILINE), said


def test_the_gap_of_a_numeric_time_is_in_its_own_unit(table: pa.Table, run: Run) -> None:
    dataset = run(table, time="customer", split={"time": {"test_from": 50, "gap": 7, "validation": 0}})
    customers = table.column("customer").to_numpy()
    assert dataset.rows("test") == (customers >= 50).sum()
    assert dataset.rows("train") == (customers < 43).sum()
    with pytest.raises(
        DataError, match="gap: 2d is a duration, but column 'customer' holds numbers, whose unit is not"
    ):
        run(table, time="customer", split={"time": {"gap": "2d"}})


def test_stamps_beyond_the_year_9999(table: pa.Table, run: Run) -> None:
    late = pa.array(np.arange(600) * 86_400 + 253_402_300_800).cast(pa.timestamp("s"))
    dataset = run(replace(table, "booked", late), time="booked")
    assert dataset.rows("test") == 120
    assert "test from 10001-04-" in notices(dataset)


def test_rows_without_a_time_are_left_out(table: pa.Table, run: Run) -> None:
    times = pc.if_else(pa.array(np.arange(len(table)) < 5), None, table.column("booked"))
    dataset = run(table.set_column(table.column_names.index("booked"), "booked", times), time="booked")
    assert dataset.manifest.left_out["without a time stamp"] == 5


def test_time_and_group(table: pa.Table, run: Run, gather: Gather) -> None:
    options: dict[str, Any] = {"time": "booked", "group": "customer", "id": "order"}
    with pytest.raises(
        DataError, match=r"of 60 groups of 'customer', with .* rows, have rows in more than one part"
    ):
        run(table, **options)
    allowed = run(table, **options, split={"groups": "allow"})
    assert sum(allowed.rows(part) for part in PARTS) == 600
    few = table.take(pc.sort_indices(table, [("booked", "ascending")]))
    customers_in_turn = pa.array(np.arange(600) // 7)
    table = replace(few, "customer", customers_in_turn)
    allowed = run(table, **options, split={"groups": "allow"})
    dropped = run(table, **options, split={"groups": "drop"})
    parts = parts_of(dropped, gather)
    customers = dict(
        zip(table.column("order").to_pylist(), table.column("customer").to_pylist(), strict=True)
    )
    seen: dict[int, set[str]] = {}
    for row, part in parts.items():
        seen.setdefault(customers[row], set()).add(part)
    assert all(len(found) == 1 for found in seen.values())
    assert dropped.rows("test") == allowed.rows("test")
    assert dropped.manifest.left_out["of a customer that comes back in a later part"] == 600 - len(parts)


def test_hash_split_never_moves_a_row(table: pa.Table, run: Run, gather: Gather) -> None:
    split = {"hash": {"test": 0.3, "validation": 0.1}}
    for options in ({"id": "order"}, {}, {"group": "customer", "id": "order"}):
        before = parts_of(run(table.slice(0, 300), split=split, **options), gather)
        after = parts_of(run(table, split=split, **options), gather)
        assert all(after[row] == part for row, part in before.items())


def with_split(table: pa.Table, values: list[str | None]) -> pa.Table:
    return table.append_column("part", pa.array([values[i % len(values)] for i in range(len(table))]))


def test_column_split(table: pa.Table, run: Run, gather: Gather) -> None:
    marked = with_split(table, ["train", "train", "validation", "test"])
    dataset = run(marked, id="order", split={"column": "part"})
    expected = dict(zip(marked.column("order").to_pylist(), marked.column("part").to_pylist(), strict=True))
    assert parts_of(dataset, gather) == expected


def test_column_split_without_validation(table: pa.Table, run: Run) -> None:
    dataset = run(with_split(table, ["train", "train", "test"]), split={"column": "part"})
    assert dataset.rows("validation") == 40
    assert "marks no validation rows: 40 rows (10%) were cut" in notices(dataset)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            ["train", "Test", None],
            {},
            r"has the values 'Test', \(missing\) in 400 rows; allowed are train, validation, test",
        ),
        (["train", "validation"], {}, "has no row with 'test'"),
        (["train", "test"], {"group": "customer"}, "choose data.split.groups"),
    ],
)
def test_bad_split_columns(
    table: pa.Table, run: Run, values: list[str | None], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(with_split(table, values), split={"column": "part"}, **options)
