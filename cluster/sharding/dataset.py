"""Read a sharded dataset: memory-mapped, verified, without a copy."""

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import CorruptShardError, DataError, StorageError
from shoal.cluster.filesystems import explained
from shoal.cluster.sharding.manifest import MANIFEST, Manifest, Schema, ShardFile, Split, read_manifest
from shoal.cluster.storage import Storage


@dataclass(frozen=True)
class ShardRows:
    """The rows of one logical shard; read-only views of the mapped file.

    Parameters
    ----------
    numeric
        float32 ``[n, D]``, NaN where missing.
    categorical
        int32 ``[n, C]``.
    label
        int64 ``[n]``, float32 ``[n, K]`` or float64 ``[n]``.
    row_id
        int64 or string, ``[n]``.
    cost
        float64 ``[n, C]``, in the order of `Schema.costs`, then with `Schema.domains` the number of the row's domain; NaN for
        rows that resampling made.
    """

    numeric: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.int32]
    label: npt.NDArray[Any]
    row_id: pa.Array
    cost: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return n."""
        return len(self.row_id)


class ShardedDataset:
    """A sharded dataset; see `open`.

    Parameters
    ----------
    storage
        Its folder.
    manifest
        What it holds.
    cache
        Where remote shards are copied to.
    """

    def __init__(self, storage: Storage, manifest: Manifest, cache: Path | None) -> None:
        self.storage, self.manifest = storage, manifest
        # Shards of several datasets may share a cache.
        self._cache = None if cache is None else cache / f"shoal-{manifest.key}-{manifest.seed}"
        self._open: dict[tuple[str, int], ShardRows] = {}

    @classmethod
    def open(cls, storage: Storage, *, cache: Path | None = None) -> "ShardedDataset":
        """Open what `shard` has written.

        Parameters
        ----------
        storage
            Its folder.
        cache
            Local folder for copies of remote shards; needed only where the storage is remote.

        Raises
        ------
        DataError
            If there is no sharded dataset, or it needs a cache.
        CorruptShardError
            If the manifest is damaged.
        """
        if not storage.exists(MANIFEST):
            raise DataError(
                f"{storage.uri} holds no sharded dataset (no {MANIFEST}); run `shoal shard` first"
            )
        try:
            fix = f"delete {storage.uri} and run `shoal shard` again"
            manifest = read_manifest(storage, MANIFEST, fix)
        except StorageError as error:
            raise CorruptShardError(str(error)) from error
        if not storage.is_local and cache is None:
            raise DataError(
                f"{storage.uri} is remote: give cluster.cache_path, a local folder for copies of its shards"
            )
        return cls(storage, manifest, cache)

    @property
    def schema(self) -> Schema:
        """Columns, target and statistics."""
        return self.manifest.schema_

    @property
    def n_shards(self) -> int:
        """V, the number of logical shards of each part."""
        return self.manifest.n_shards

    def rows(self, split: str) -> int:
        """Return the number of rows of a part."""
        return sum(self.shard_rows(split))

    def shard_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each shard of a part, empty where there is no such part."""
        part = {str(name): part for name, part in self.manifest.splits.items()}.get(split)
        return tuple(shard.rows for shard in part.shards) if part else ()

    def class_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each class of a part, or with each of several labels; empty for numbers."""
        return self._split(split).class_counts

    def shard_class_rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the rows of each class in each shard of a part, int64 ``[V, classes]``."""
        return np.array([file.class_counts for file in self._split(split).shards], np.int64)

    def shard(self, split: str, index: int) -> ShardRows:
        """Map one shard; its size and hash are verified the first time.

        Parameters
        ----------
        split
            train, validation or test.
        index
            0 to ``n_shards - 1``. Row p of the part (in dealing order) is row ``p // n_shards`` of shard
            ``p % n_shards``.

        Raises
        ------
        CorruptShardError
            If the file is not what the manifest recorded.
        """
        found = self._open.get((split, index))
        if found is None:
            file = self._split(split).shards[index]
            found = self._map(file, self._local(file))
            self._open[split, index] = found
        return found

    def _split(self, split: str) -> Split:
        for name, found in self.manifest.splits.items():
            if name == split:
                return found
        raise DataError(f"there is no part {split!r}; there are {', '.join(self.manifest.splits)}")

    def bytes_to_copy(self) -> int:
        """Return the size of the shards that have no copy in the cache yet; 0 where none is needed."""
        files = [file for part in self.manifest.splits.values() for file in part.shards]
        return sum(file.bytes for file in files if self._copy_wanted(file) is not None)

    def _copy_wanted(self, file: ShardFile) -> Path | None:
        """Return where a copy has to be made; None where the file, or a copy of its size, is on a disk here."""
        if self._cache is None or self.storage.is_local:
            return None
        copy = self._cache / file.path
        return None if copy.exists() and copy.stat().st_size == file.bytes else copy

    def _local(self, file: ShardFile) -> Path:
        if self._cache is None or self.storage.is_local:
            return self.storage.local(file.path)
        if (copy := self._copy_wanted(file)) is not None:
            with explained("copy to", str(copy.parent)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                # Several workers may copy at once: each its own file, and the rename is one step.
                partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
                try:
                    with self.storage.open_input(file.path) as source, partial.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    partial.replace(copy)
                finally:
                    partial.unlink(missing_ok=True)
        return self._cache / file.path

    def _map(self, file: ShardFile, path: Path) -> ShardRows:
        if not path.exists():
            raise self._corrupt(file, "the file is missing")
        size = path.stat().st_size
        if size != file.bytes:
            raise self._corrupt(file, f"it has {size:,} bytes instead of {file.bytes:,}", path)
        with path.open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
        if digest != file.sha256:
            raise self._corrupt(file, f"its sha256 is {digest[:12]}… instead of {file.sha256[:12]}…", path)
        return shard_rows(pa.memory_map(str(path)))

    def _corrupt(self, file: ShardFile, what: str, path: Path | None = None) -> CorruptShardError:
        if path is not None and self._cache is not None and path.is_relative_to(self._cache):
            path.unlink(missing_ok=True)  # the next attempt copies it anew
            fix = f"its copy in {self._cache} was deleted: start again; if that does not help,"
        else:
            fix = "to rebuild it alone,"
        return CorruptShardError(
            f"shard {file.path} of {self.storage.uri} is not as it was written: {what}; {fix} run `shoal shard` again"
        )


def shard_rows(source: pa.NativeFile | pa.Buffer) -> ShardRows:
    """Look at the rows of a shard's file, without a copy."""
    batch = pa.ipc.open_file(source).get_batch(0)
    label = batch.column("label")
    return ShardRows(
        _matrix(batch.column("numeric")),
        _matrix(batch.column("categorical")),
        _matrix(label) if pa.types.is_fixed_size_list(label.type) else label.to_numpy(),
        batch.column("row_id"),
        _matrix(batch.column("cost")) if "cost" in batch.schema.names else np.empty((len(batch), 0)),
    )


def _matrix(array: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    return np.asarray(array.values.to_numpy()).reshape(len(array), array.type.list_size)
