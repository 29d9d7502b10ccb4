"""Rows of a shard to a Parquet file of features: a piece of work that knows nothing of the others.

Shape legend: n rows, F numbers a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.sharding.dataset import ShardedDataset, ShardRows
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.cluster.storage import Storage
from shoal.training.batches import evaluation_rows
from shoal.training.device import own_threads, pick_device
from shoal.training.models import Model, build_model
from shoal.transfer.config import TransferConfig
from shoal.transfer.features.taps import Pool, has_channels_first, pooled, tapped
from shoal.transfer.layers import head_of
from shoal.transfer.start import read_start
from shoal.transfer.taking import take

FOLDER = "features"
_ROWS = 1024  # of a forward pass, and of a row group


@dataclass(frozen=True)
class Source:
    """The model that is tapped; every process builds it anew, the same.

    Parameters
    ----------
    model
        The component that builds it.
    schema
        Of its rows.
    seed
        Of weights that nothing else gives.
    transfer
        What it takes its weights from, if from anywhere.
    storage
        How to reach that.
    sha256
        Of the weights, as they were when this began; nothing where there are none.
    """

    model: Config
    schema: Schema
    seed: int
    transfer: TransferConfig
    storage: StorageConfig
    sha256: str

    def build(self) -> tuple[Model, str]:
        """Return the model in evaluation mode, and the name of the module that answers.

        Raises
        ------
        ConfigError
            If the weights do not fit the model.
        DataError
            If they are gone, damaged, or others than they were.
        """
        model = build_model(self.model, self.schema, self.seed)
        head = head_of(model, self.transfer.head)
        if self.transfer.start is not None:
            start = read_start(self.transfer.start, self.storage)
            if start.sha256 != self.sha256:
                raise DataError(
                    f"transfer.start: the weights in {start.place} are others than when this began; leave them while it runs"
                )
            take(model, start, self.schema, head, self.transfer)
        return model.eval(), head


_BUILT: list[tuple[Source, Model, str]] = []  # of this process: the newest


def _built(source: Source) -> tuple[Model, str]:
    if not _BUILT or _BUILT[0][0] != source:
        _BUILT[:] = [(source, *source.build())]
    return _BUILT[0][1:]


@dataclass(frozen=True)
class Extract:
    """Writes the features of shards.

    Parameters
    ----------
    source
        The model.
    layers, pool
        What is kept of it.
    data_uri, run_uri
        The sharded dataset, and where the features go.
    cache_path
        Folder for copies of remote shards.
    cpus, gpus
        That the process owns; None for all CPUs.
    """

    source: Source
    layers: tuple[str, ...]
    pool: Pool
    data_uri: str
    run_uri: str
    cache_path: str | None
    cpus: float | None
    gpus: float

    def __call__(self, piece: tuple[str, int]) -> int:
        """Write one shard of a part, and return its rows.

        Raises
        ------
        DataError
            If a layer gives no numbers for a row, or no finite ones.
        """
        split, v = piece
        own_threads(self.cpus)
        storage = self.source.storage
        cache = None if self.cache_path is None else Path(self.cache_path)
        dataset = ShardedDataset.open(Storage.open(self.data_uri, storage), cache=cache)
        rows = dataset.shard(split, v)
        if not len(rows):
            return 0
        device = pick_device(self.gpus)
        model, head = _built(self.source)
        model.to(device)
        first = {name: has_channels_first(module) for name, module in model.named_modules()}
        writer: pq.ParquetWriter | None = None
        with (
            tapped(model, self.layers, head) as outputs,
            Storage.open(self.run_uri, storage).write_stream(path_of(split, v)) as sink,
        ):
            most = min(_ROWS, evaluation_rows(rows.categorical.shape[1]))
            for start in range(0, len(rows), most):
                part = slice(start, min(start + most, len(rows)))
                with torch.inference_mode():
                    dtype = next((p.dtype for p in model.parameters()), torch.float32)
                    model(
                        torch.from_numpy(np.array(rows.numeric[part])).to(device, dtype),
                        torch.from_numpy(np.array(rows.categorical[part])).to(device),
                    )
                columns = {
                    name: self._numbers(name, outputs[name], first.get(name, False)) for name in self.layers
                }
                table = _table(rows, part, split, dataset.schema.target, columns)
                writer = writer or pq.ParquetWriter(sink, table.schema)
                writer.write_table(table)
            assert writer is not None
            writer.close()
        return len(rows)

    def _numbers(self, name: str, output: torch.Tensor | None, channels_first: bool) -> np.ndarray:
        if output is None:
            raise DataError(f"layer {name} gave no tensor of numbers in a pass; choose another")
        found = pooled(output, self.pool, channels_first).float().cpu().numpy()
        if not np.isfinite(found).all():
            bad = int((~np.isfinite(found).all(axis=1)).sum())
            raise DataError(
                f"layer {name} gave numbers that are not finite for {bad:,} of {len(found):,} rows"
            )
        return np.asarray(found)


def path_of(split: str, v: int) -> str:
    """Return where the features of a shard lie, relative to the run."""
    return f"{FOLDER}/{split}-{v:05d}.parquet"


def _table(
    rows: ShardRows, part: slice, split: str, target: Target, columns: Mapping[str, np.ndarray]
) -> pa.Table:
    n = part.stop - part.start
    made: dict[str, pa.Array] = {"row_id": rows.row_id.slice(part.start, n)}
    made["split"] = pa.array([split] * n)
    made |= _labels(np.asarray(rows.label[part]), target)
    for name, values in columns.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        made[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(made)


def _labels(label: np.ndarray, target: Target) -> dict[str, pa.Array]:
    """Return the target's columns with their own values."""
    if target.task == "regression":
        return {target.columns[0]: pa.array(label)}
    if target.task == "multilabel":
        return {str(name): pa.array(label[:, k].astype(np.int8)) for k, name in enumerate(target.classes)}
    classes: Sequence[object] = target.classes
    return {target.columns[0]: pa.array([classes[code] for code in label.tolist()])}
