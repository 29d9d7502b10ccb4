"""Storage: a folder on any pyarrow filesystem, whose files appear whole or not at all."""

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pyarrow.types import is_floating, is_integer

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import StorageError
from shoal.cluster.filesystems import explained, locate, redact

__all__ = ["Storage", "redact"]

_DEFAULT = StorageConfig()
_TEMPORARY = ".tmp-"
# These rename in one step; everywhere else an object appears when its put completes.
_RENAMES = ("local", "hdfs")


@dataclass(frozen=True)
class Storage:
    """A folder, local or remote. It can be pickled and sent to a worker.

    Parameters
    ----------
    uri
        For people: where it is, credentials redacted.
    filesystem
        The pyarrow filesystem.
    path
        The folder's path on that filesystem.
    """

    uri: str
    filesystem: fs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str, config: StorageConfig = _DEFAULT) -> Self:
        """Open a folder; nothing is created or looked up until something is written or read.

        Raises
        ------
        StorageError
            If the URI cannot be read or its filesystem cannot be reached.
        """
        return cls(*locate(str(uri), config))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's own file system, and can be memory-mapped."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def local(self, name: str = "") -> Path:
        """Return the path of a file or of the folder itself; only where `is_local`."""
        if not self.is_local:
            raise StorageError(
                f"{self._show(name)} is not on a local disk; copy it to cluster.cache_path first"
            )
        return Path(self._at(name))

    def child(self, name: str) -> "Storage":
        """Return a folder inside this one."""
        return Storage(self._show(name), self.filesystem, self._at(name))

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or a folder."""
        with explained("look at", self._show(name)):
            return bool(self.filesystem.get_file_info(self._at(name)).type != fs.FileType.NotFound)

    def is_file(self, name: str = "") -> bool:
        """Whether there is a file."""
        with explained("look at", self._show(name)):
            return bool(self.filesystem.get_file_info(self._at(name)).type == fs.FileType.File)

    def list(self, name: str = "", unfinished: bool = False) -> list[str]:
        """Return the sorted names of the files and folders directly inside; none where there is no folder.

        With ``unfinished``, also of the files that someone is writing, or did not come to finish.
        """
        selector = fs.FileSelector(self._at(name), allow_not_found=True)
        with explained("list", self._show(name)):
            names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return sorted(n for n in names if n and (unfinished or not n.startswith(_TEMPORARY)))

    def open_input(self, name: str) -> pa.NativeFile:
        """Open a file for reading at any position."""
        with explained("read", self._show(name)):
            return self.filesystem.open_input_file(self._at(name))

    def read_bytes(self, name: str) -> bytes:
        """Read a whole file."""
        with explained("read", self._show(name)), self.open_input(name) as source:
            return bytes(source.readall())

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        data = self.read_bytes(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(
                f"{self._show(name)} is not JSON ({error}); it was changed or damaged"
            ) from error

    def read_table(self, name: str) -> pa.Table:
        """Read a Parquet file."""
        with explained("read", self._show(name)), self.open_input(name) as source:
            try:
                return pq.read_table(source)
            except MemoryError:
                raise  # Arrow's is an ArrowException too
            except pa.ArrowException as error:
                raise StorageError(
                    f"{self._show(name)} is no whole Parquet file; it was changed or damaged: restore it, or delete "
                    "its run and train again"
                ) from error

    @contextmanager
    def write_stream(self, name: str, size: int | None = None) -> Iterator[pa.NativeFile]:
        """Write a file that appears whole when the block ends well, and never when it does not.

        Parameters
        ----------
        name
            Where in the folder.
        size
            How many bytes it will have, where that is known; for messages.

        Yields
        ------
        pyarrow.NativeFile
            Open for writing. It is closed for you.

        Raises
        ------
        StorageError
            If the place is full, read-only or missing. A former file of that name stays as it was.
        """
        if self.filesystem.type_name in _RENAMES:
            with self._renamed(name, size) as sink:
                yield sink
        else:
            with self._put(name, size) as sink:
                yield sink

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file."""
        with self.write_stream(name, memoryview(data).nbytes) as sink:
            sink.write(data)

    def write_text(self, name: str, text: str) -> None:
        """Write a whole text file, UTF-8."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, obj: Any) -> None:
        """Write a JSON file; NaN and infinity are refused, because JSON has neither."""
        self.write_text(name, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        # A dictionary of values that seldom come twice costs memory, and then gives up.
        repeating = [f.name for f in table.schema if not (is_floating(f.type) or is_integer(f.type))]
        with self.write_stream(name) as sink:
            pq.write_table(table, sink, use_dictionary=repeating)

    def delete(self, name: str = "") -> None:
        """Delete a file, or a folder with all that is in it; nothing happens where there is none."""
        with explained("delete", self._show(name)):
            kind = self.filesystem.get_file_info(self._at(name)).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self._at(name))
            elif kind != fs.FileType.NotFound:
                self.filesystem.delete_file(self._at(name))

    def plain(self) -> "Storage":
        """Return the same folder as a `Storage`, whatever subclass this is."""
        return Storage(self.uri, self.filesystem, self.path)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name.strip('/')}" if name else self.path

    def _show(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name.strip('/')}" if name else self.uri

    @contextmanager
    def _renamed(self, name: str, size: int | None) -> Iterator[pa.NativeFile]:
        folder, _, base = self._at(name).rpartition("/")
        temporary = f"{folder}/{_TEMPORARY}{secrets.token_hex(4)}-{base}"
        with explained("write", self._show(name), size=size):
            made = self._absent(folder)
            self.filesystem.create_dir(folder, recursive=True)
            try:
                # Detection by suffix would compress a file that is named .gz.
                with self.filesystem.open_output_stream(temporary, compression=None) as sink:
                    yield sink
                self.filesystem.move(temporary, self._at(name))
            except BaseException:
                with suppress(OSError):
                    self.filesystem.delete_file(temporary)
                with suppress(OSError):  # not empty: someone else uses it by now
                    for empty in made:
                        empty.rmdir()
                raise

    def _absent(self, folder: str) -> tuple[Path, ...]:
        """Return the local folders that are to be made for this one, the innermost first."""
        if not self.is_local:
            return ()
        return tuple(path for path in (Path(folder), *Path(folder).parents) if not path.exists())

    @contextmanager
    def _put(self, name: str, size: int | None) -> Iterator[pa.NativeFile]:
        # An Arrow output stream that is dropped half-way still completes its upload, so the data wait in a
        # local file until the block has ended well.
        with explained("write", self._show(name), size=size), tempfile.TemporaryFile() as spool:
            with explained("write", tempfile.gettempdir(), size=size):  # TMPDIR sets another one
                sink = pa.PythonFile(spool, mode="w")
                yield sink
                sink.flush()
            spool.seek(0)
            with self.filesystem.open_output_stream(self._at(name), compression=None) as upload:
                shutil.copyfileobj(spool, upload, 1 << 23)


def copy(source: Storage, name: str, destination: Storage, new_name: str | None = None) -> None:
    """Copy one file from a storage to another, whole or not at all."""
    with (
        explained("copy", source._show(name)),
        source.open_input(name) as reader,
        destination.write_stream(new_name or name) as sink,
    ):
        shutil.copyfileobj(reader, sink, 1 << 23)
