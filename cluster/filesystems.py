"""From a path or URI to a pyarrow filesystem, and from its errors to messages that help."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import FullError, StorageError
from shoal.cluster.machine import free_disk
from shoal.cluster.resources import format_size

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
# A secret may hold a slash, which pyarrow refuses with a message that repeats the URI; a port is no secret.
_USER_AND_SECRET = re.compile(r"(\w[\w+.-]*://)[^/\s:@]+:(?!\d+/)[^\s@]*@")
_RAW_SLASH = re.compile(r"\w[\w+.-]*://[^/\s:@]+:(?!\d+/)[^\s@]*/[^\s@]*@")
_USER = re.compile(r"(\w[\w+.-]*://)[^/\s@]+@")
_SECRET_PARAMETER = re.compile(
    r"((?:^|[?&;\s])(?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid"
    r"|signature|sig|access_?key(?:_?id)?|secret(?:_?access)?(?:_?key)?|(?:session_?|access_?|sas_?)?token"
    r"|account_?key|password|passwd)=)[^&;\s\"']+",
    re.IGNORECASE,
)
_AWS_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "RAY_AUTH_TOKEN")


def redact(text: str) -> str:
    """Replace credentials in a text by ``***``.

    Parameters
    ----------
    text
        Anything that is about to be printed or stored: a URI, an error message, a log line.

    Returns
    -------
    str
        The text without ``user:password@`` in URIs, access keys, signed query parameters and the values
        of the environment's well-known secret variables.
    """
    text = _USER_AND_SECRET.sub(r"\1***@", text)
    text = _USER.sub(r"\1***@", text)
    text = _SECRET_PARAMETER.sub(r"\1***", text)
    text = _AWS_KEY_ID.sub("***", text)
    for name in _SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, "***")
    return text


def locate(uri: str, config: StorageConfig) -> tuple[str, fs.FileSystem, str]:
    """Find the filesystem and the path of a URI or a plain local path.

    Parameters
    ----------
    uri
        A local path (``~`` is expanded, relative paths become absolute), ``file://``, ``s3://``,
        ``gs://``, ``hdfs://`` and so on; a scheme that pyarrow does not know is tried with fsspec.
    config
        Endpoint, region, role and certificates for S3.

    Returns
    -------
    tuple of (str, pyarrow.fs.FileSystem, str)
        The URI to show (credentials redacted, no query), the filesystem, and the path on it.

    Raises
    ------
    StorageError
        If the URI cannot be read, or its filesystem cannot be reached.
    """
    if not uri.strip():
        raise StorageError(
            "an empty path names no place; give a folder such as runs/mine or s3://bucket/runs"
        )
    match = _SCHEME.match(uri)
    if match is None:
        path = os.path.abspath(os.path.expanduser(uri))
        return path, fs.LocalFileSystem(), path
    if _RAW_SLASH.match(uri):
        raise StorageError(
            f"{redact(uri)}: its secret holds a slash, which begins the path of a URI; put the credentials into the environment, "
            "or write / as %2F"
        )
    if match[1].lower() in ("s3", "gs", "gcs", "abfs") and not urlsplit(uri).netloc.rpartition("@")[2]:
        raise StorageError(f"{redact(uri)} names no bucket; write it as {match[1]}://bucket/folder")
    with explained("open", uri, pa.ArrowException):
        if match[1].lower() == "s3" and config != StorageConfig():
            filesystem, path = _s3(uri, config)
        else:
            filesystem, path = _from_uri(uri, match[1].lower())
    path = path.rstrip("/") or path
    if isinstance(filesystem, fs.LocalFileSystem):
        return str(Path(path)), filesystem, str(Path(path))
    return redact(uri.partition("?")[0].rstrip("/")), filesystem, path


@contextmanager
def explained(verb: str, where: str, *also: type[Exception], size: int | None = None) -> Iterator[None]:
    """Turn what a filesystem raises within the block into a `StorageError` with cause and fix.

    Only `OSError` and the classes in `also` are taken for the filesystem's; everything else passes. ``size`` is how many
    bytes are to be written, where that is known.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        cause = redact(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        if isinstance(
            error, FileNotFoundError
        ):  # Arrow says it at length, with a path that may be a temporary one
            cause = "its folder is not there, or cannot be made" if verb == "write" else "nothing is there"
        kind = FullError if _is_full(error) else StorageError
        if kind is FullError:
            cause = _full(error, where, size)
        message = f"cannot {verb} {redact(where)}: {cause}; {_fix(error, where)}"
    else:
        return
    # Not "from error": the original text may hold the credentials that were just taken out.
    raise kind(message) from None


def _s3(uri: str, config: StorageConfig) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    bucket = parts.netloc.rpartition("@")[2]
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if "@" in parts.netloc:
        user, _, secret = parts.netloc.rpartition("@")[0].partition(":")
        options |= {"access_key": unquote(user), "secret_key": unquote(secret)}
    if config.endpoint is not None:
        endpoint = _SCHEME.match(config.endpoint)
        options["endpoint_override"] = config.endpoint[endpoint.end() if endpoint else 0 :].rstrip("/")
        options["scheme"] = endpoint[1] if endpoint else "https"
    for ours, theirs in (("region", "region"), ("role_arn", "role_arn"), ("tls_ca_file", "tls_ca_file_path")):
        if (value := getattr(config, ours)) is not None:
            options[theirs] = value
    if "region" not in options and "endpoint_override" not in options:
        options["region"] = fs.resolve_s3_region(bucket)
    try:
        return fs.S3FileSystem(**options), bucket + unquote(parts.path)
    except TypeError as error:
        raise StorageError(
            f"cannot open {redact(uri)}: {redact(str(error))}; leave that parameter out"
        ) from None


def _from_uri(uri: str, scheme: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        import fsspec  # type: ignore[import-untyped]

        try:
            other, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as missing:
            raise StorageError(
                f"cannot open {redact(uri)}: {redact(str(missing))}; use a local path, file, s3, gs, "
                f"abfs or hdfs, or install the fsspec package for {scheme}"
            ) from None
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    return filesystem, path


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ) or "No space left" in str(error)


def _full(error: Exception, where: str, size: int | None) -> str:
    """Say what is used up, how much is wanted, and how much there is."""
    used_up = {
        errno.EDQUOT: "the quota there is used up",
        errno.EFBIG: "the limit of a file's size is reached",
    }
    what = used_up.get(getattr(error, "errno", None) or 0, "no space is left there")
    known = [f"it takes {format_size(size)}"] if size is not None else []
    if what.startswith("no space") and os.path.isabs(where):
        known.append(f"{format_size(free_disk(Path(where)))} are free")
    return what + (f" ({', '.join(known)})" if known else "")


def _fix(error: Exception, where: str) -> str:
    number, text = getattr(error, "errno", None), str(error)
    if _is_full(error):
        return "free some space, or choose another place"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or isinstance(error, PermissionError):
        return "it may not be written or read: change its permissions, or choose another place"
    if "ACCESS_DENIED" in text or "403" in text or "InvalidAccessKeyId" in text:
        return "access was denied: check the credentials in the environment, or cluster.storage.role_arn"
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return "a file is where a folder is expected, or the other way round: move it, or choose another path"
    if "wrong version number" in text:
        return "the server does not speak TLS: write http:// before cluster.storage.endpoint"
    if "NO_SUCH_BUCKET" in text:
        return "its bucket does not exist: check the name, or create it"
    if "NETWORK_CONNECTION" in text or "resolve" in text or "curlCode" in text:
        return "check cluster.storage.endpoint and the network"
    if isinstance(error, FileNotFoundError) or number == errno.ENOENT:
        return "check the path, and restore what was deleted"
    if _SCHEME.match(where):
        return "check the URI, cluster.storage and the credentials in the environment"
    return "check the path"
