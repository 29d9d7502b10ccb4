"""Whether a folder can be written, found out without leaving a file behind."""

import errno
import secrets
import tempfile
from pathlib import Path

from shoal.cluster.config import ClusterConfig, StorageConfig
from shoal.cluster.errors import ConfigError
from shoal.cluster.filesystems import explained, redact
from shoal.cluster.resources import Shape, address_of
from shoal.cluster.storage import Storage


def require_writable(uri: str, config: StorageConfig) -> None:
    """Write a file and take it away again; on a local disk it never has a name.

    Some object stores keep an empty folder where their only object was; to delete that could take another's first file.

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
            name = f".shoal-check-{secrets.token_hex(4)}"
            storage.write_bytes(name, b"shoal")
            storage.delete(name)


def require_cache(config: ClusterConfig, shape: Shape) -> None:
    """Try the folder of shard copies where it is on this machine; a cluster does not say what its nodes have.

    Raises
    ------
    ConfigError
        If the shards are remote, and there is no such folder.
    StorageError
        If it cannot be written.
    """
    if config.cache_path is None and not Storage.open(config.storage_path, config.storage).is_local:
        raise ConfigError(
            f"cluster.storage_path {redact(config.storage_path)} is remote: give cluster.cache_path, a local folder for copies "
            "of the shards"
        )
    here = address_of(config) is None or shape.placement == "inline"
    if config.cache_path is not None and here:
        with explained("write", f"cluster.cache_path {config.cache_path}"):
            _try_disk(Path(config.cache_path).absolute())


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
