"""Which files a path, folder, glob or list means, on any filesystem."""

import difflib
import fnmatch
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.fs as fs

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.filesystems import explained, locate, redact

SUFFIXES = (".parquet", ".parq", ".pq")
# As in Spark and Hive, names that start so are markers and half-written files: only their own name finds them.
_HIDDEN = ("_", ".")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class InputFile:
    """One input file. It can be pickled and sent to a worker.

    Parameters
    ----------
    uri
        For people: where it is, credentials redacted.
    filesystem, path
        Where it is for pyarrow.
    size
        In bytes.
    stamp
        Its modification time in nanoseconds, 0 where the filesystem has none.
    """

    uri: str
    filesystem: fs.FileSystem
    path: str
    size: int
    stamp: int


def find(paths: Sequence[str], config: StorageConfig) -> list[InputFile]:
    """List the input files, sorted by place, each once.

    Parameters
    ----------
    paths
        Files, folders (every Parquet file in them, at any depth) and globs (``*`` stays within a folder,
        ``**`` goes through folders).
    config
        How to reach object storage.

    Raises
    ------
    DataError
        If there is no such file, or a folder or glob gives none; the message names what was looked for and
        the
        nearest name.
    StorageError
        If a place cannot be reached.
    """
    if not paths:
        raise DataError("data.path is empty; give a Parquet file, a folder, a glob or a list of them")
    found: dict[str, InputFile] = {}
    for path in paths:
        for file in _find_one(path, config):
            found[file.uri] = file
    return sorted(found.values(), key=lambda file: file.uri)


def fingerprint(files: Sequence[InputFile], *others: object) -> str:
    """Return a hash, 32 hexadecimal digits, of a listing (places, sizes, times) and of other JSON values."""
    listing = [[file.uri, file.size, file.stamp] for file in files]
    text = json.dumps([listing, *others], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def partition_notice(files: Sequence[InputFile]) -> list[str]:
    """Say that columns which only the names of folders hold (Hive's ``key=value``) are not read."""
    keys = {part.partition("=")[0] for file in files for part in file.path.split("/")[:-1] if "=" in part}
    if not keys:
        return []
    return [
        f"folders are named by {', '.join(sorted(keys))}: their values are in no column, and are not read"
    ]


def _find_one(path: str, config: StorageConfig) -> list[InputFile]:
    uri, filesystem, inner = locate(path, config)
    with explained("look at", uri):
        info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.File:
        return [_file(uri, filesystem, info)]
    if info.type == fs.FileType.Directory:
        return _folder(uri, filesystem, inner)
    if _GLOB.search(inner):
        return _glob(uri, filesystem, inner)
    raise DataError(f"data.path: there is no file or folder {uri}{_nearest(uri, filesystem, inner)}")


def _file(uri: str, filesystem: fs.FileSystem, info: fs.FileInfo) -> InputFile:
    return InputFile(uri, filesystem, info.path, info.size or 0, info.mtime_ns or 0)


def _inside(filesystem: fs.FileSystem, folder: str, recursive: bool) -> list[fs.FileInfo]:
    with explained("list", folder):
        return list(
            filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive))
        )


def _uri_of(uri: str, inner: str, path: str) -> str:
    """Return the place of a file, given the place of a folder (or glob) that leads to it."""
    prefix = uri[: len(uri) - len(inner)] if uri.endswith(inner) else ""
    return redact(prefix + path)


def _folder(uri: str, filesystem: fs.FileSystem, folder: str) -> list[InputFile]:
    files = [info for info in _inside(filesystem, folder, recursive=True) if info.type == fs.FileType.File]
    start = len(folder.rstrip("/")) + 1
    kept = [
        info
        for info in files
        if info.base_name.lower().endswith(SUFFIXES)
        and not any(part.startswith(_HIDDEN) for part in info.path[start:].split("/"))
    ]
    if not kept:
        others = ", ".join(sorted(info.base_name for info in files)[:3])
        there = f"it holds {others}" if others else "it is empty"
        raise DataError(
            f"data.path: folder {uri} has no Parquet file ({', '.join(SUFFIXES)}); {there}; name the files if they "
            "end otherwise"
        )
    return [_file(_uri_of(uri, folder, info.path), filesystem, info) for info in kept]


def _glob(uri: str, filesystem: fs.FileSystem, pattern: str) -> list[InputFile]:
    match = _GLOB.search(pattern)
    root = pattern[: match.start() if match else len(pattern)].rpartition("/")[0] or "/"
    parts = pattern.split("/")
    infos = [
        info
        for info in _inside(filesystem, root, recursive=True)
        if info.type == fs.FileType.File and _matches(info.path.split("/"), parts)
    ]
    if not infos:
        raise DataError(f"data.path: no file matches {uri}{_nearest(uri, filesystem, pattern)}")
    return [_file(_uri_of(uri, pattern, info.path), filesystem, info) for info in infos]


def _matches(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if path[:1] == [""] and pattern[0] == "":  # before the root's slash
        return _matches(path[1:], pattern[1:])
    if pattern[0] == "**":
        shown = next((i for i, name in enumerate(path) if name[:1] in _HIDDEN), len(path))
        return any(_matches(path[i:], pattern[1:]) for i in range(shown + 1))
    if not path or (path[0][0] in _HIDDEN and pattern[0][0] != path[0][0]):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _nearest(uri: str, filesystem: fs.FileSystem, inner: str) -> str:
    """Say what is there instead."""
    folder, _, name = inner.rstrip("/").rpartition("/")
    while folder and _GLOB.search(folder):
        folder = folder.rpartition("/")[0]
    folder = folder or "/"
    infos = _inside(filesystem, folder, recursive=False)
    shown = _uri_of(uri, inner, folder)
    if not infos:
        return f"; folder {shown} is empty or does not exist"
    near = difflib.get_close_matches(name, [info.base_name for info in infos], n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]} in {shown}?"
    some = ", ".join(sorted(info.base_name for info in infos if not info.base_name.startswith("."))[:5])
    return f"; {shown} holds {some}" + (", …" if len(infos) > 5 else "")
