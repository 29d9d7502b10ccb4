"""The format of a shard: one Arrow IPC file with one record batch, uncompressed, made to be memory-mapped."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
    """
    batch = pa.record_batch(
        {
            "numeric": _matrix(rows.numeric),
            "categorical": _matrix(rows.categorical),
            "label": _matrix(labels) if labels.ndim == 2 else pa.array(labels),
            "row_id": row_id,
        }
    )
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
