"""From shards on disk to a step's tensors, a window of steps at a time.

Gathering row by row is slow and holding everything in memory is not needed: a window of some tens of thousands of
rows is gathered from the memory-mapped shards in a few large operations, and the steps are slices of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.manifest import Schema
from shoal.training.plan import EpochPlaces, EpochPlan, Group, Index

WINDOW_ROWS = 1 << 15  # rows gathered at once
WINDOW_BYTES = 256 << 20  # of them, where they are texts and images
EVALUATION_ROWS = 4096  # rows of a forward pass without gradients
_EVALUATION_BYTES, _FEWEST = 512 << 10, 16  # of codes, as activations are many times their size


def evaluation_rows(codes: int) -> int:
    """Return the rows of a forward pass without gradients, of so many codes, tokens and packed pixels each."""
    return min(EVALUATION_ROWS, max(_FEWEST, _EVALUATION_BYTES // (4 * max(1, codes))))


class Dataset(Protocol):
    """What training reads: a sharded dataset, or arrays in memory that look like one."""

    @property
    def schema(self) -> Schema:
        """Columns and target."""

    @property
    def n_shards(self) -> int:
        """V, the same for every part."""

    def shard_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each shard of a part, empty where there is no such part."""

    def class_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each class of a part, or with each of several labels; empty for numbers."""

    def shard_class_rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of each class in each shard of a part, int64 ``[V, classes]``."""

    def shard(self, split: str, v: int) -> ShardRows:
        """Return one shard's rows, memory-mapped where they lie on disk."""


@dataclass(frozen=True)
class Batch:
    """A worker's rows of one step.

    Attributes
    ----------
    numeric
        ``[b, D]``, the loop's float type.
    categorical
        int32 ``[b, C + W]``, with the blocks of texts and images.
    label
        ``[b]`` or ``[b, K]``, as in the shards.
    position
        int64 ``[b]``, positions in the epoch: the identity of a row for draws.
    global_rows
        Rows of the step over all workers.
    cost
        float64 ``[b, C']``, the rows' cost columns.
    partner
        As many rows to blend these with, for mixup; None where nothing is blended.
    """

    numeric: Tensor
    categorical: Tensor
    label: Tensor
    position: Tensor
    global_rows: int
    cost: Tensor
    partner: "Batch | None" = None

    def __len__(self) -> int:
        return len(self.label)

    def part(self, start: int, stop: int, global_rows: int | None = None) -> "Batch":
        """Return rows ``start`` to ``stop - 1``, of the same step or of one of so many rows over all workers."""
        s = slice(start, stop)
        return Batch(
            self.numeric[s],
            self.categorical[s],
            self.label[s],
            self.position[s],
            self.global_rows if global_rows is None else global_rows,
            self.cost[s],
            self.partner and self.partner.part(start, stop, global_rows),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to a device, numbers in the loop's float type."""
        return Batch(
            self.numeric.to(device, dtype, non_blocking=True),
            self.categorical.to(device, non_blocking=True),
            self.label.to(device, non_blocking=True),
            self.position,
            self.global_rows,
            self.cost.to(device, non_blocking=True),
            self.partner and self.partner.to(device, dtype),
        )


class BatchReader:
    """One worker's batches of an epoch.

    Parameters
    ----------
    dataset
        Where the rows are.
    plan
        Which rows make up which step.
    worker, workers
        This worker's number and how many there are.
    partners
        Whether each row comes with another one: that after it in its shard's order of the epoch, which is a draw without
        regard to the class, and lies where the row itself does, whatever the number of workers.
    """

    def __init__(
        self, dataset: Dataset, plan: EpochPlan, worker: int, workers: int, partners: bool = False
    ) -> None:
        self.dataset, self.plan, self.worker, self.workers = dataset, plan, worker, workers
        self.partners = partners
        self.shards = {v: dataset.shard("train", v) for v in plan.shards_of(worker, workers)}
        row_bytes = 4 * max(1, dataset.schema.numeric_width + dataset.schema.codes_width)
        self.window = max(1, min(WINDOW_ROWS, WINDOW_BYTES // row_bytes) * workers // plan.batch_size)

    def epoch(self, epoch: int, first_step: int = 0, end: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch's steps from ``first_step`` on, or up to the one before ``end``.

        A worker without rows in a step gets an empty one.
        """
        plan = self.plan
        places = plan.places(epoch, self.shards)
        end = plan.steps_per_epoch if end is None else end
        for start in range(first_step, end, self.window):
            stop = min(start + self.window, end)
            position = plan.positions(epoch, start, stop, self.worker, self.workers)
            rows = self._gather(position, places.groups(position))
            if self.partners:
                assert isinstance(places, EpochPlaces)  # refused with other plans
                rows = replace(rows, partner=self._gather(position, places.groups(position, ahead=1)))
            bounds = [plan.bounds(step) for step in range(start, stop)]
            for (low, high), (first, last) in zip(
                bounds, np.searchsorted(position, bounds).tolist(), strict=True
            ):
                yield rows.part(first, last, high - low)

    def _gather(self, position: Index, groups: Iterator[Group]) -> Batch:
        example = next(iter(self.shards.values()))
        n = len(position)
        numeric = np.empty((n, example.numeric.shape[1]), np.float32)
        categorical = np.empty((n, example.categorical.shape[1]), np.int32)
        label = np.empty((n, *example.label.shape[1:]), example.label.dtype)
        cost = np.empty((n, example.cost.shape[1]))
        for v, here, rows in groups:
            shard = self.shards[v]
            numeric[here] = np.take(shard.numeric, rows, axis=0)
            categorical[here] = np.take(shard.categorical, rows, axis=0)
            label[here] = np.take(shard.label, rows, axis=0)
            cost[here] = np.take(shard.cost, rows, axis=0)
        return Batch(
            torch.from_numpy(numeric),
            torch.from_numpy(categorical),
            torch.from_numpy(label),
            torch.from_numpy(position),
            0,
            torch.from_numpy(cost),
        )

    def row_ids(self, epoch: int, positions: Index) -> list[Any]:
        """Return the ids of this worker's rows at positions of an epoch."""
        shards, rows = self.plan.places(epoch, self.shards).of(positions)
        return [
            self.shards[v].row_id[row].as_py() for v, row in zip(shards.tolist(), rows.tolist(), strict=True)
        ]

    def filler(self) -> Batch:
        """Return one row of this worker, to take part in a step with weight 0."""
        shard = next(s for s in self.shards.values() if len(s.label))
        row = Batch(
            torch.from_numpy(shard.numeric[:1].copy()),
            torch.from_numpy(shard.categorical[:1].copy()),
            torch.from_numpy(shard.label[:1].copy()),
            torch.zeros(1, dtype=torch.int64),
            1,
            torch.from_numpy(shard.cost[:1].copy()),
        )
        return replace(row, partner=row) if self.partners else row
