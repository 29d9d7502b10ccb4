"""Whether a folder can be written, found out without leaving anything behind."""

import errno
import secrets
import tempfile
from pathlib import Path

from pyarrow import fs

from shoal.cluster.config import StorageConfig
from shoal.cluster.filesystems import explained
from shoal.cluster.storage import Storage


def require_writable(uri: str, config: StorageConfig) -> None:
    """Write a file and take it away again; on a local disk it never has a name.

    Raises
    ------
    StorageError
        If the folder, or the nearest one above it that exists, cannot be written.
    """
    storage = Storage.open(uri, config)
    with explained("write", storage.uri):
        if storage.is_local:
            _try_disk(storage.local())
        else:
            _try_store(storage)


def _try_disk(folder: Path) -> None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"shoal")
    except OSError as error:  # its own text names a file that nobody knows
        raise OSError(error.errno, error.strerror, str(folder)) from None


def _try_store(storage: Storage) -> None:
    name = f".shoal-check-{secrets.token_hex(4)}"
    top = _missing(storage)
    storage.write_bytes(name, b"shoal")
    storage.delete(name)
    # Stores may keep an empty folder where its only object was.
    if top is not None and _is_empty(storage.filesystem, top):
        storage.filesystem.delete_dir(top)


def _missing(storage: Storage) -> str | None:
    """Return the highest folder on the way, the bucket aside, that does not exist yet."""
    way, missing = storage.path, None
    while "/" in way.strip("/") and storage.filesystem.get_file_info(way).type == fs.FileType.NotFound:
        way, missing = way.rpartition("/")[0], way
    return missing


def _is_empty(filesystem: fs.FileSystem, folder: str) -> bool:
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
    exists = filesystem.get_file_info(folder).type == fs.FileType.Directory
    return exists and all(info.type == fs.FileType.Directory for info in found)
