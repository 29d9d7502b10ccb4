"""What the sharding service writes, says and keeps."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.sharded import PARTS, Files, Gather, Run, notices, replace

from shoal.cluster.errors import DataError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.manifest import MANIFEST
from shoal.cluster.sharding.prepare import prepare
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"id": "order", "group": "customer"},
        {"time": "booked", "split": {"time": {"test": 0.3, "gap": "2d"}}},
        {"target": "amount"},
        {"split": {"validation": 0}, "shards": 4},
    ],
    ids=["stratified", "group", "time", "regression", "empty part"],
)
def test_shards_depend_on_content_alone(
    table: pa.Table, tmp_path: Path, run: Run, files: Files, options: dict[str, Any]
) -> None:
    table = pa.concat_tables([table, table.slice(0, 40)])  # equal rows too
    one = run(table, **options)
    expected = files(one)
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    folder = tmp_path / "many"
    folder.mkdir()
    for name, start, rows in (("z", 0, 100), ("a", 100, 7), ("m", 107, 533)):
        pq.write_table(shuffled.slice(start, rows), folder / f"{name}.parquet", row_group_size=61)
    many = run(str(folder), **options)
    assert files(many) == expected
    assert files(run(str(folder), budget=20_000, **options)) == expected  # spilled, in small batches
    assert many.manifest.schema_ == one.manifest.schema_
    assert files(run(table, seed=1, **options)) != expected


@pytest.mark.parametrize("name", ["label", "city"])
def test_a_column_that_is_empty_in_one_file(
    table: pa.Table, tmp_path: Path, run: Run, files: Files, name: str
) -> None:
    # pandas writes a column of None as Arrow's null type. Without labels, no row of the file is kept.
    first, last = table.slice(0, 500), table.slice(500)
    typed = run(pa.concat_tables([first, replace(last, name, pa.nulls(100, pa.string()))]))
    folder = tmp_path / "two"
    folder.mkdir()
    pq.write_table(first, folder / "a.parquet")
    pq.write_table(replace(last, name, pa.nulls(100)), folder / "b.parquet")
    for budget in (512 << 20, 20_000):
        dataset = run(str(folder), budget=budget)
        assert files(dataset) == files(typed)
        assert sum(dataset.rows(part) for part in PARTS) == (500 if name == "label" else 600)


def test_every_row_is_in_one_shard_with_its_own_values(table: pa.Table, run: Run, gather: Gather) -> None:
    dataset = run(table, id="order")
    raw = {row: i for i, row in enumerate(table.column("order").to_pylist())}
    expected = prepare(table, dataset.schema)
    seen: list[str] = []
    for part in PARTS:
        found = gather(dataset, part)
        places = [raw[row] for row in found["row_id"]]
        np.testing.assert_array_equal(found["numeric"], expected.numeric[places])
        np.testing.assert_array_equal(found["categorical"], expected.categorical[places])
        classes = dataset.schema.target.classes
        assert [classes[i] for i in found["label"]] == table.column("label").take(places).to_pylist()
        assert dataset.rows(part) == len(places)
        seen += found["row_id"]
    assert sorted(seen) == sorted(raw)


def test_counts_in_the_manifest(table: pa.Table, run: Run, gather: Gather) -> None:
    dataset = run(table)
    labels = Counter(table.column("label").to_pylist())
    for part, share in (("test", 0.2), ("validation", 0.1)):
        split = dataset.manifest.splits[part]
        for i, name in enumerate(dataset.schema.target.classes):
            assert abs(split.class_counts[i] - share * labels[name]) < 1
        assert split.rows == sum(split.class_counts) == round(share * len(table))
        assert split.class_counts == tuple(np.bincount(gather(dataset, part)["label"], minlength=2))
    for split in dataset.manifest.splits.values():
        assert len(split.shards) == dataset.n_shards == 16
        for file in split.shards:
            assert file.rows == sum(file.class_counts)
        assert [f.rows for f in split.shards] == sorted((f.rows for f in split.shards), reverse=True)
        assert np.array_equal(np.sum([f.class_counts for f in split.shards], axis=0), split.class_counts)


def test_statistics_are_of_training_rows(table: pa.Table, run: Run, gather: Gather) -> None:
    dataset = run(table, id="order")
    train = set(gather(dataset, "train")["row_id"])
    rows = table.filter(pc.is_in(table.column("order"), pa.array(train)))
    columns = {column.name: column for column in dataset.schema.columns}
    amount = rows.column("amount").to_pandas().astype(float)
    assert columns["amount"].center[0] == pytest.approx(amount.mean(), rel=1e-13)
    assert columns["amount"].scale[0] == pytest.approx(amount.std(ddof=0), rel=1e-13)
    assert columns["amount"].has_missing
    assert not columns["items"].has_missing
    cities = Counter(c for c in rows.column("city").to_pylist() if c)
    assert columns["city"].categories == tuple(name for name, _ in cities.most_common())
    assert columns["gift"].center == (0.0,)
    assert columns["vector"].width == 3


def test_roles_and_notices(table: pa.Table, run: Run) -> None:
    counter = pa.array(np.random.default_rng(0).permutation(len(table)) + 7)
    table = table.append_column("number", counter).append_column("same", pa.array(["x"] * len(table)))
    table = table.append_column("void", pa.nulls(len(table)))
    dataset = run(table, drop=["items"])
    names = [column.name for column in dataset.schema.columns]
    assert names == ["customer", "booked", "amount", "gift", "city", "vector"]
    dropped = dataset.manifest.dropped
    assert dropped["items"] == "data.drop"
    assert "all 600 values are distinct" in dropped["order"]
    assert "numbers the 600 rows" in dropped["number"]
    assert dropped["same"] == "constant in the training rows"
    assert dropped["void"] == "all values are missing"
    assert "data.types: {order: categorical} keeps it" in notices(dataset)
    kept = run(table, types={"order": "categorical", "number": "numeric", "items": "categorical"})
    types = {column.name: column.type for column in kept.schema.columns}
    assert types["number"] == "numeric"
    assert types["items"] == "categorical"
    # Every value comes once, so each is rare.
    assert next(column for column in kept.schema.columns if column.name == "order").categories == ()


def test_features_name_what_is_used(table: pa.Table, run: Run, files: Files) -> None:
    dataset = run(table, features=["items", "customer"], group="customer")
    assert [column.name for column in dataset.schema.columns] == ["customer", "items"]
    assert dataset.manifest.dropped["city"] == "not in data.features"


def test_dropping_a_column_moves_no_row(table: pa.Table, run: Run, gather: Gather) -> None:
    one, other = run(table), run(table, drop=["city", "amount"])
    assert gather(one, "test")["row_id"] == gather(other, "test")["row_id"]


def test_row_ids_without_an_id_column_are_unique_and_seedless(
    table: pa.Table, run: Run, gather: Gather
) -> None:
    table = pa.concat_tables([table] * 3)
    ids = [
        sorted(row for part in PARTS for row in gather(run(table, seed=seed), part)["row_id"])
        for seed in (0, 1)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(table)


@pytest.mark.parametrize("layout", ["text", "number", "date", "binary"])
def test_ids_of_every_kind(table: pa.Table, run: Run, gather: Gather, layout: str) -> None:
    numbers = pa.array([None if i == 3 else i * 7 for i in range(len(table))])
    layouts = {
        "text": numbers.cast(pa.string()).dictionary_encode(),
        "number": numbers.cast(pa.int32()),
        "date": numbers.cast(pa.int32()).cast(pa.date32()),
        "binary": pa.array([b"\xff"] * len(table)),
    }
    used = replace(table, "order", layouts[layout])
    if layout == "binary":
        with pytest.raises(DataError, match="column 'order' is binary; ids must be integers or texts"):
            run(used, id="order")
        return
    dataset = run(used, id="order")
    found = [row for part in PARTS for row in gather(dataset, part)["row_id"]]
    kind = pa.int64() if layout == "number" else pa.string()
    assert Counter(found) == Counter(layouts[layout].cast(kind).to_pylist())


def test_copies_are_drawn_one_by_one(run: Run) -> None:
    # 20 kinds of rows, 500 copies each: a test set drawn row by row has about 100 of each kind.
    kinds = pa.table({"x": np.repeat(np.arange(20) ** 2, 500), "label": ["a", "b"] * 5000})
    dataset = run(kinds)
    counts = Counter(float(x) for v in range(16) for x in dataset.shard("test", v).numeric[:, 0])
    assert len(counts) == 20
    assert all(60 < count < 140 for count in counts.values())


def test_copies_of_training_rows_are_counted(table: pa.Table, run: Run, gather: Gather) -> None:
    small = table.select(["items", "city", "label"])
    dataset = run(small)
    found = {}
    for part in ("train", "test"):
        rows = gather(dataset, part)
        columns = np.column_stack([rows["numeric"], rows["categorical"], rows["label"]])
        found[part] = [tuple(row) for row in columns.tolist()]
    expected = sum(row in set(found["train"]) for row in found["test"])
    assert f"{expected} test rows of 120 equal a training row" in notices(dataset)
    assert "equal a training row" not in notices(run(small, split={"hash": {}}))


def test_unlabelled_rows_are_left_out_and_said(table: pa.Table, run: Run) -> None:
    labels = pc.if_else(pa.array(np.arange(len(table)) % 10 == 0), None, table.column("label"))
    dataset = run(table.set_column(table.column_names.index("label"), "label", labels))
    assert dataset.manifest.left_out == {"without a label": 60}
    assert sum(dataset.rows(part) for part in PARTS) == 540
    assert dataset.manifest.rows_read == 600


def test_dates_in_strings_are_said(table: pa.Table, run: Run) -> None:
    dates = pc.strftime(table.column("booked"), "%Y-%m-%d")
    dataset = run(replace(table, "booked", dates))
    booked = next(column for column in dataset.schema.columns if column.name == "booked")
    assert booked.type == "timestamp"
    assert "hour_sin" not in booked.parts
    assert "'booked' holds ISO dates" in notices(dataset)


def test_multilabel(table: pa.Table, run: Run, gather: Gather) -> None:
    draw = np.random.default_rng(0).random((600, 2)) < 0.3
    more = table.append_column("a", pa.array(draw[:, 0])).append_column("b", pa.array(draw[:, 1]))
    dataset = run(more, target=["a", "b"])
    labels = gather(dataset, "train")["label"]
    assert labels.dtype == np.float32
    assert labels.shape == (420, 2)
    assert dataset.manifest.splits["train"].class_counts == tuple(labels.sum(axis=0).astype(int))


def test_regression_target(table: pa.Table, run: Run, gather: Gather) -> None:
    dataset = run(table, target="amount")
    labels = gather(dataset, "train")["label"]
    assert labels.dtype == np.float64
    assert dataset.schema.target.center == pytest.approx(labels.mean(), rel=1e-12)
    assert dataset.schema.target.scale == pytest.approx(labels.std(), rel=1e-12)
    assert dataset.manifest.splits["train"].class_counts == ()


def test_fewer_rows_than_shards(run: Run, gather: Gather) -> None:
    dataset = run(pa.table({"x": range(10), "label": [0, 1] * 5}))
    assert dataset.n_shards == 7
    assert [len(dataset.shard("test", v)) for v in range(7)] == [1, 1, 0, 0, 0, 0, 0]


class Heard(Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.stages: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def stage(self, text: str) -> None:
        self.stages.append(text)


def test_reuse_and_change(table: pa.Table, tmp_path: Path) -> None:
    path, out = tmp_path / "a.parquet", Storage.open(str(tmp_path / "out"))
    pq.write_table(table, path)
    data = DataConfig(path=str(path), target="label")
    heard = Heard()
    first = shard(data, 0, out, reporter=heard)
    assert list(first.notices) == heard.notices
    stamp = (tmp_path / "out" / first.splits["train"].shards[0].path).stat().st_mtime_ns
    again = Heard()
    assert shard(data, 0, out, reporter=again) == first
    assert "reused" in again.notices[0]
    assert again.stages == []
    assert (tmp_path / "out" / first.splits["train"].shards[0].path).stat().st_mtime_ns == stamp
    # A request that fails leaves what is there.
    with pytest.raises(DataError):
        shard(data.model_copy(update={"target": ("x",)}), 0, out)
    assert ShardedDataset.open(out).manifest == first
    changed = shard(data, 1, out)
    assert changed.key != first.key
    dataset = ShardedDataset.open(out)
    assert sum(len(dataset.shard("train", v)) for v in range(dataset.n_shards)) == dataset.rows("train")
    folders = {file.path.split("/")[0] for split in changed.splits.values() for file in split.shards}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {MANIFEST, *folders}
    # A damaged manifest is no reason to fail: it is made anew.
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({"key": changed.key}))
    assert shard(data, 1, out).splits["test"].class_counts == changed.splits["test"].class_counts


def test_a_failure_while_writing_leaves_the_earlier_dataset(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "a.parquet", Storage.open(str(tmp_path / "out"))
    pq.write_table(table, path)
    data = DataConfig(path=str(path), target="label")
    first = shard(data, 0, out)
    calls = 0
    real = Storage.write_bytes

    def fail(self: Storage, name: str, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(28, "No space left on device")
        real(self, name, content)

    monkeypatch.setattr(Storage, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        shard(data, 1, out)
    monkeypatch.undo()
    dataset = ShardedDataset.open(out)
    assert dataset.manifest == first
    assert sum(len(dataset.shard("test", v)) for v in range(dataset.n_shards)) == dataset.rows("test")


@pytest.mark.parametrize(
    ("start", "kind"),
    [(2**62, "int64"), (-(2**63), "int64"), (2**63 - 600, "int64"), (2**64 - 600, "uint64")],
)
def test_integers_beyond_a_float64_keep_their_differences(
    table: pa.Table, run: Run, gather: Gather, start: int, kind: str
) -> None:
    small = np.random.default_rng(0).integers(0, 300, 600)
    large = pa.array([start + int(i) for i in small], kind)
    data = (
        table.select(["order", "label"]).append_column("small", pa.array(small)).append_column("large", large)
    )
    dataset = run(data, id="order")
    assert {c.name: c.type for c in dataset.schema.columns} == {"small": "numeric", "large": "numeric"}
    train = gather(dataset, "train")["numeric"]
    np.testing.assert_allclose(train[:, 1], train[:, 0], atol=1e-6)
    far = pa.table({"small": [-4.0, None], "large": pa.array([start, None], kind)})
    assert np.isnan(prepare(far, dataset.schema).numeric[1, 1])
    counter = pa.array([start + i for i in range(600)], kind)
    dropped = run(data.set_column(3, "large", counter), id="order").manifest.dropped
    assert "numbers the 600 rows without a gap" in dropped["large"]
