import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.listing import find, partition_notice
from shoal.cluster.sharding.service import sharding_key
from shoal.cluster.sharding.source import open_source, read

CONFIG = StorageConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "2024/jan.parquet",
        "2024/feb.parquet",
        "2025/jan.parquet",
        "2025/deep/er/mar.pq",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), tmp_path / name)
    (tmp_path / "_temporary").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "_temporary" / "part.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / ".hidden.parquet")
    return tmp_path


def names(paths: list[str], root: Path) -> list[str]:
    return [os.path.relpath(file.path, root) for file in find(paths, CONFIG)]


def test_folder_glob_list_and_uri(folder: Path) -> None:
    everything = ["2024/feb.parquet", "2024/jan.parquet", "2025/deep/er/mar.pq", "2025/jan.parquet"]
    assert names([str(folder)], folder) == everything
    assert names([folder.as_uri()], folder) == everything
    assert names([f"{folder}/*/jan.parquet"], folder) == ["2024/jan.parquet", "2025/jan.parquet"]
    assert names([f"{folder}/*/*.p*"], folder) == ["2024/feb.parquet", "2024/jan.parquet", "2025/jan.parquet"]
    assert names([f"{folder}/**/*.pq"], folder) == ["2025/deep/er/mar.pq"]
    assert names([f"{folder}/202[4]/*.parquet"], folder) == ["2024/feb.parquet", "2024/jan.parquet"]
    one = str(folder / "2024/jan.parquet")
    assert names([one, one, f"{folder}/2024"], folder) == ["2024/feb.parquet", "2024/jan.parquet"]


def test_nothing_found(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file or folder .*/2024/jam.parquet; did you mean jan.parquet in"
    ):
        find([str(folder / "2024/jam.parquet")], CONFIG)
    with pytest.raises(
        DataError, match=r"no file matches .*/xyz\*; .* holds 2024, 2025, _temporary, notes.txt"
    ):
        find([f"{folder}/xyz*"], CONFIG)
    with pytest.raises(DataError, match="is empty or does not exist"):
        find([str(folder / "no/where/at.parquet")], CONFIG)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="has no Parquet file .*; it is empty"):
        find([str(folder / "empty")], CONFIG)
    (folder / "empty" / "data.csv").write_text("a,b")
    with pytest.raises(DataError, match="it holds data.csv"):
        find([str(folder / "empty")], CONFIG)


def test_partitioned_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "year=2024").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "year=2024" / "a.parquet")
    assert "named by year" in partition_notice(find([str(tmp_path)], CONFIG))[0]


def test_credentials_never_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    inside = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())

    def opened(uri: str, scheme: str) -> tuple[fs.FileSystem, str]:
        return inside, uri.partition("@")[2]

    monkeypatch.setattr("shoal.cluster.filesystems._from_uri", opened)
    for path in ("s3://me:hunter22@a.parquet", "s3://me:hunter22@a*"):
        (file,) = find([path], CONFIG)
        assert file.uri == "s3://***@a.parquet"


def test_key_follows_inputs_section_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1], "y": [1]}), path)
    data = DataConfig(path=str(path), target="y")
    key = sharding_key(data, 0)
    assert key == sharding_key(DataConfig(path=str(path), target="y"), 0)
    assert len(key) == 32
    assert key != sharding_key(data, 1)
    assert key != sharding_key(data.model_copy(update={"shards": 4}), 0)
    os.utime(path, (1, 1))
    assert key != sharding_key(data, 0)


def write(path: Path, table: pa.Table) -> str:
    pq.write_table(table, path)
    return str(path)


def opened(tmp_path: Path, *tables: pa.Table) -> pa.Table:
    for i, table in enumerate(tables):
        write(tmp_path / f"part-{i}.parquet", table)
    source = open_source(find([str(tmp_path)], CONFIG))
    pieces = [piece for i in range(len(tables)) for piece in read(source, i, source.schema.names, None)]
    assert source.n_rows == sum(map(len, tables))
    return pa.concat_tables(pieces), source


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int8(), pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.null(), pa.int16(), pa.int16()),
        (pa.date32(), pa.timestamp("us"), pa.timestamp("us")),
        (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us")),
    ],
)
def test_types_that_unify(tmp_path: Path, one: pa.DataType, other: pa.DataType, kind: pa.DataType) -> None:
    a, b = (
        pa.nulls(2, k) if pa.types.is_null(k) else pa.array([dt.datetime(2024, 1, 1)] * 2).cast(k)
        if pa.types.is_temporal(k) else pa.array([1, 2]).cast(k)
        for k in (one, other)
    )  # fmt: skip
    table, source = opened(tmp_path, pa.table({"x": a}), pa.table({"x": b}))
    assert table.column("x").to_pylist() == [*a.cast(kind).to_pylist(), *b.cast(kind).to_pylist()]
    assert table.schema.field("x").type == kind
    assert "read as" in source.notices[0]


def test_layouts_of_strings_are_one_type(tmp_path: Path) -> None:
    values = pa.array(["a", None, "b"])
    table, source = opened(
        tmp_path, *(pa.table({"x": values.cast(kind)}) for kind in (pa.string(), pa.large_string())),
        pa.table({"x": values.dictionary_encode()}),
    )  # fmt: skip
    assert table.column("x").to_pylist() == ["a", None, "b"] * 3
    assert source.notices == ()


def test_extension_types_are_read_as_what_they_store(tmp_path: Path) -> None:
    storage = {
        pa.uuid(): pa.array([bytes(16), None], pa.binary(16)),
        pa.json_(): pa.array(["{}", None]),
        pa.bool8(): pa.array([1, None], pa.int8()),
        pa.fixed_shape_tensor(pa.float32(), [2]): pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
    }
    columns = {f"x{i}": pa.ExtensionArray.from_storage(*pair) for i, pair in enumerate(storage.items())}
    table, source = opened(tmp_path, pa.table(columns))
    assert source.schema.types == [pa.binary(), pa.string(), pa.int8(), pa.list_(pa.float32(), 2)]
    assert table.to_pydict() == {f"x{i}": a.to_pylist() for i, a in enumerate(storage.values())}


def test_schemas_that_differ(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"column 'x' is string in .*part-1.parquet but int64 in .*part-0.parquet"
    ):
        opened(tmp_path, pa.table({"x": [1]}), pa.table({"x": ["a"]}))
    with pytest.raises(DataError, match=r"column 'z' is in .*part-1.parquet but not in .*part-0.parquet"):
        opened(tmp_path, pa.table({"x": [1]}), pa.table({"x": [1], "z": [2]}))
    with pytest.raises(DataError, match=r"column 'x' is in .*part-0.parquet but not in .*part-1.parquet"):
        opened(tmp_path, pa.table({"x": [1], "z": [1]}), pa.table({"z": [2]}))
    big = pa.table({"x": pa.array([2**60 + 1])})
    with pytest.raises(DataError, match="cannot be read as double, the type that holds"):
        opened(tmp_path, big, pa.table({"x": [0.5]}))


def test_bad_files(tmp_path: Path, run: Callable[..., object]) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty \\(0 bytes\\)"):
        run(str(path))
    path.write_text("a,b\n1,2\n" * 10)
    with pytest.raises(DataError, match=r"is not a Parquet file \(it starts with b'a,b\\n'"):
        run(str(path))
    write(path, pa.table({"x": pa.array([], pa.int64()), "label": pa.array([], pa.int64())}))
    with pytest.raises(DataError, match="has no rows"):
        run(str(path))
    write(path, pa.table({"x": list(range(5000)), "label": [0, 1] * 2500}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"is cut short"):
        run(str(path))
    path.write_bytes(whole[:10] + b"\xff" * 200 + whole[210:])
    with pytest.raises(DataError, match=r"is a damaged Parquet file .*; write or copy it again"):
        run(str(path))


def test_repeated_column_names(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]))
    with pytest.raises(DataError, match="several columns named 'x'"):
        open_source(find([str(tmp_path)], CONFIG))
