from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from shoal.cluster.errors import CorruptShardError, DataError
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.storage import Storage

Run = Callable[..., ShardedDataset]


def test_arrays_are_views_of_the_mapped_file(table: pa.Table, run: Run) -> None:
    dataset = run(table)
    before = pa.total_allocated_bytes()
    rows = dataset.shard("train", 0)
    assert pa.total_allocated_bytes() == before
    for array in (rows.numeric, rows.categorical, rows.label):
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert rows.numeric.dtype == np.float32
    assert rows.categorical.dtype == np.int32
    assert rows.label.dtype == np.int64
    assert len(rows) == len(rows.numeric) == len(rows.row_id) == 27
    assert dataset.shard("train", 0) is rows


def test_matrices_without_columns(run: Run) -> None:
    numbers = run(pa.table({"x": np.arange(100) ** 2, "label": [0, 1] * 50})).shard("test", 1)
    assert numbers.categorical.shape == (len(numbers), 0)
    words = run(pa.table({"x": ["a", "b", "c", "d"] * 25, "label": [0, 1] * 50})).shard("test", 1)
    assert words.numeric.shape == (len(words), 0)
    assert words.categorical.shape == (len(words), 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "its sha256 is .* instead of"),
        (lambda data: data[:-10], "bytes instead of"),
        (lambda data: None, "the file is missing"),
    ],
)
def test_a_damaged_shard_is_named(
    table: pa.Table, run: Run, damage: Callable[[bytes], bytes | None], message: str
) -> None:
    dataset = run(table)
    path = dataset.storage.local("shards/validation-00003.arrow")
    changed = damage(path.read_bytes())
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    dataset.shard("validation", 2)
    with pytest.raises(
        CorruptShardError, match=rf"shards/validation-00003.arrow .*{message}.*run `shoal shard` again"
    ):
        dataset.shard("validation", 3)


def test_no_dataset_or_a_damaged_manifest(table: pa.Table, run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no sharded dataset"):
        ShardedDataset.open(Storage.open(str(tmp_path / "nowhere")))
    dataset = run(table)
    with pytest.raises(DataError, match="no part 'dev'; there are train, validation, test"):
        dataset.shard("dev", 0)
    manifest = dataset.storage.local("manifest.json")
    whole = manifest.read_text()
    for text, message in (
        (whole[:100], "100 bytes are not JSON"),
        ("{}", "damaged or of another version"),
        ("\udcff", "1 bytes are not JSON"),
    ):
        manifest.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CorruptShardError, match=rf"{message}.* again"):
            ShardedDataset.open(dataset.storage)


@pytest.fixture
def remote(table: pa.Table, run: Run) -> Storage:
    """The same dataset on a filesystem that cannot be memory-mapped."""
    root = run(table).storage.local()
    return Storage("mock://bucket", fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), "")


def test_remote_shards_are_copied_once(remote: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give cluster.cache_path"):
        ShardedDataset.open(remote)
    cache = tmp_path / "cache"
    rows = ShardedDataset.open(remote, cache=cache).shard("train", 1)
    (copy,) = cache.rglob("*.arrow")
    stamp = copy.stat().st_mtime_ns
    again = ShardedDataset.open(remote, cache=cache).shard("train", 1)
    assert np.array_equal(again.numeric, rows.numeric, equal_nan=True)
    assert copy.stat().st_mtime_ns == stamp
    assert [p.name for p in cache.rglob("*") if p.is_file()] == [copy.name]


def test_a_damaged_copy_is_thrown_away(remote: Storage, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ShardedDataset.open(remote, cache=cache).shard("train", 1)
    (copy,) = cache.rglob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptShardError, match="was deleted: start again"):
        ShardedDataset.open(remote, cache=cache).shard("train", 1)
    ShardedDataset.open(remote, cache=cache).shard("train", 1)
