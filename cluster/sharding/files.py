"""The format of a shard: one Arrow IPC file with one record batch, uncompressed, made to be memory-mapped."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import SPLITS, ShardFile, Target
from shoal.cluster.sharding.prepare import Prepared
from shoal.cluster.storage import Storage

FOLDER = "shards"


def shard_path(folder: str, part: int, shard: int) -> str:
    """Return where a shard lies, relative to the manifest."""
    return f"{folder}/{SPLITS[part]}-{shard:05d}.arrow"


def write_shard(
    destination: Storage,
    path: str,
    rows: Prepared,
    labels: npt.NDArray[Any],
    row_id: pa.Array,
    target: Target,
    costs: npt.NDArray[np.float64],
) -> ShardFile:
    """Write one shard.

    Parameters
    ----------
    destination, path
        Where.
    rows
        Prepared rows of this shard, ``[n]``.
    labels
        int64 ``[n]``, float32 ``[n, K]`` or float64 ``[n]``.
    row_id
        int64 or string, ``[n]``.
    target
        For the class counts.
    costs
        float64 ``[n, C]``, not written where C is 0.
    """
    columns = {
        "numeric": _matrix(rows.numeric),
        "categorical": _matrix(rows.categorical),
        "label": _matrix(labels) if labels.ndim == 2 else pa.array(labels),
        "row_id": _canonical(row_id),
    }
    batch = pa.record_batch(columns | ({"cost": _matrix(costs)} if costs.shape[1] else {}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = memoryview(sink.getvalue())
    destination.write_bytes(path, data)
    return ShardFile(
        path=path,
        rows=len(batch),
        bytes=data.nbytes,
        sha256=hashlib.sha256(data).hexdigest(),
        class_counts=class_counts(labels, target),
    )


def identifiers(array: pa.Array, name: str) -> pa.Array:
    """Bring an id column into the form of `row_id`: int64 where it fits, otherwise string.

    Raises
    ------
    DataError
        If the ids cannot be written as texts.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return array.cast(pa.int64())
    try:
        return array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"data.id: column {name!r} is {kind}; ids must be integers or texts") from error


def _canonical(ids: pa.Array) -> pa.Array:
    """Copy ids into buffers that hold nothing else: Arrow also writes what a buffer has beyond its values."""
    n = len(ids)
    absent = np.asarray(ids.is_null().to_numpy(zero_copy_only=False), np.bool_)
    validity = pa.py_buffer(np.packbits(~absent, bitorder="little")) if absent.any() else None
    filled = ids.fill_null("" if pa.types.is_string(ids.type) else 0) if absent.any() else ids
    if not pa.types.is_string(ids.type):
        values = pa.py_buffer(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)))
        return pa.Array.from_buffers(ids.type, n, [validity, values])
    buffers = filled.buffers()
    offsets = np.zeros(1, np.int32)
    if n:
        offsets = np.frombuffer(buffers[1], np.int32)[filled.offset : filled.offset + n + 1]
    data = (
        buffers[2].slice(offsets[0], offsets[-1] - offsets[0])
        if offsets[-1] > offsets[0]
        else pa.py_buffer(b"")
    )
    return pa.Array.from_buffers(ids.type, n, [validity, pa.py_buffer(offsets - offsets[0]), data])


def class_counts(labels: npt.NDArray[Any], target: Target) -> tuple[int, ...]:
    """Return rows of each class; rows that have each label, for multi-label; nothing for regression."""
    if target.task == "regression":
        return ()
    if target.task == "multilabel":
        return tuple(int(n) for n in labels.sum(axis=0, dtype=np.float64))
    return tuple(np.bincount(labels, minlength=len(target.classes)).tolist())


def _matrix(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """Wrap a matrix without copying; widths of 0 need the length said."""
    n, width = values.shape
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_buffers(pa.list_(flat.type, width), n, [None], children=[flat])
