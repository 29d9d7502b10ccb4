"""What a trained model says of many rows of a sharded dataset: probabilities, and what its last layer is given."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.prepare import Prepared
from shoal.training.artifact import TrainedModel
from shoal.training.batches import EVALUATION_ROWS, Dataset
from shoal.training.ensembles.model import EnsembleModel
from shoal.training.models import Model
from shoal.transfer.features.taps import LAST, pooled, tapped
from shoal.transfer.layers import head_of


def by_class(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities ``[n, K]`` of scores, which of two classes are the event's alone, ``[n]``."""
    return np.stack([1.0 - scores, scores], axis=1) if scores.ndim == 1 else scores


def unlabelled(dataset: Dataset, part: str) -> Dataset:
    """Return a part of a dataset as the training rows of a target domain, whose labels are none."""
    return dataset if part == "train" else _Unlabelled(dataset, part)


class _Unlabelled:
    """A part of labelled rows, seen as a target domain."""

    def __init__(self, dataset: Dataset, part: str) -> None:
        self._dataset, self._part = dataset, part

    @property
    def schema(self) -> Schema:
        return self._dataset.schema

    @property
    def n_shards(self) -> int:
        return self._dataset.n_shards

    def shard_rows(self, split: str) -> tuple[int, ...]:
        return self._dataset.shard_rows(self._part) if split == "train" else ()

    def class_rows(self, split: str) -> tuple[int, ...]:
        raise AssertionError(f"{split} rows of a target domain have no classes")

    def shard_class_rows(self, split: str) -> NDArray[np.int64]:
        raise AssertionError(f"{split} rows of a target domain have no classes")

    def shard(self, split: str, v: int) -> ShardRows:
        rows = self._dataset.shard(self._part, v)
        assert split == "train"
        return replace(rows, label=np.zeros_like(rows.label))


@dataclass(frozen=True)
class Answers:
    """Of n rows.

    Attributes
    ----------
    scores
        As `TrainedModel.scores`: of the event ``[n]``, or ``[n, K]``; values of a regression.
    features
        What the layer that answers is given, ``[n, F]``; of all members side by side.
    labels
        As in the shards; of target rows they mean nothing.
    row_id
        ``[n]``.
    """

    scores: NDArray[np.float64]
    features: NDArray[np.float32]
    labels: NDArray[Any]
    row_id: list[Any]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Return ``[n, K]``, also of two classes."""
        return by_class(self.scores)


def answers(trained: TrainedModel, dataset: Dataset, split: str, limit: int) -> Answers:
    """Read at most ``limit`` rows of a part, the first ones of every shard: as good as drawn at random, since shards are."""
    model, sizes = trained.module, dataset.shard_rows(split)
    share = min(1.0, limit / max(1, sum(sizes)))
    scores, features, labels, ids = [], [], [], []
    members: list[Model] = (
        [m for m in model.members if isinstance(m, Model)] if isinstance(model, EnsembleModel) else [model]
    )
    with ExitStack() as stack:
        seen = [stack.enter_context(tapped(member, [LAST], head_of(member, None))) for member in members]
        for v, size in enumerate(sizes):
            shard, n = dataset.shard(split, v), int(np.ceil(share * size))
            for start in range(0, n, EVALUATION_ROWS):
                rows = slice(start, min(n, start + EVALUATION_ROWS))
                own = Prepared(shard.numeric[rows], shard.categorical[rows])
                scores.append(trained.prepared_scores(own))
                given = [outputs[LAST] for outputs in seen]
                features.append(
                    torch.cat([pooled(x, "auto") for x in given if x is not None], 1).float().cpu().numpy()
                )
                labels.append(np.array(shard.label[rows]))
                ids += shard.row_id[rows].to_pylist()
    return Answers(np.concatenate(scores), np.concatenate(features), np.concatenate(labels), ids)
