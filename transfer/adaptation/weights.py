"""Weights of the source's rows: by class, or row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.manifest import Schema
from shoal.training.batches import Dataset
from shoal.training.losses.build import Loss

COLUMN = "importance"  # the weights beside the cost columns, last


@dataclass(frozen=True)
class Weights:
    """What a source row weighs.

    Attributes
    ----------
    by_class
        ``[K]``, mean 1 over the training rows; empty where all weigh alike.
    by_row
        Whether rows carry a weight of their own, as the last of their cost columns.
    """

    by_class: tuple[float, ...] = ()
    by_row: bool = False

    def on(self, loss: Loss) -> Loss:
        """Return a loss whose rows have these weights, times those that it has."""
        own = torch.tensor(self.by_class, dtype=torch.float64)

        def weights(labels: Tensor, costs: Tensor) -> Tensor:
            found = own.to(labels.device)[labels] if self.by_class else costs[:, -1]
            if loss.weights is not None:
                found = found * loss.weights(labels, costs[:, :-1] if self.by_row else costs)
            return found

        return replace(loss, weights=weights)


class Weighted:
    """A dataset whose training rows carry a weight.

    Parameters
    ----------
    dataset
        The rows.
    of_shard
        The weights of each shard's training rows, float64.
    """

    def __init__(self, dataset: Dataset, of_shard: Sequence[NDArray[np.float64]]) -> None:
        self._dataset, self._of_shard = dataset, of_shard

    @property
    def schema(self) -> Schema:
        """Columns and target; the weights are no cost column of it."""
        return self._dataset.schema

    @property
    def n_shards(self) -> int:
        """V."""
        return self._dataset.n_shards

    def shard_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each shard of a part."""
        return self._dataset.shard_rows(split)

    def class_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each class of a part."""
        return self._dataset.class_rows(split)

    def shard_class_rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of each class in each shard of a part."""
        return self._dataset.shard_class_rows(split)

    def shard(self, split: str, v: int) -> ShardRows:
        """Return one shard's rows, with the weights where they train."""
        rows = self._dataset.shard(split, v)
        if split != "train":
            return rows
        return replace(rows, cost=np.column_stack([rows.cost, self._of_shard[v]]))
