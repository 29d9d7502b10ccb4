"""MetaCost: training rows get the class of least expected cost, and one model learns these labels.

References
----------
Domingos (1999), MetaCost: a general method for making classifiers cost-sensitive, KDD, table 1. Members are fitted to bootstrap
resamples (there, of any size n), their class probabilities are averaged (p = true), over all members (q = true) or over those
that were not fitted to the row (q = false).

Shapes: n rows, K classes, M members.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.cluster.sharding.names import plural
from shoal.training.batches import Dataset
from shoal.training.costs import Costs, Floats, by_name
from shoal.training.models import Model
from shoal.training.sampling.bootstrap import times
from shoal.training.scores import forward_rows, scores_from_logits

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Relabelled:
    """A dataset whose training rows have other labels; its other parts are as they were.

    Parameters
    ----------
    labels
        Of each training shard, int64 ``[n]``.
    notices
        What has to be said.
    """

    dataset: Dataset
    labels: Mapping[int, Labels]
    notices: tuple[str, ...] = ()

    @property
    def schema(self) -> Schema:
        """Columns and target."""
        return self.dataset.schema

    @property
    def n_shards(self) -> int:
        """V."""
        return self.dataset.n_shards

    def shard_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each shard of a part."""
        return self.dataset.shard_rows(split)

    def class_rows(self, split: str) -> tuple[int, ...]:
        """Return the rows of each class of a part."""
        if split != "train":
            return self.dataset.class_rows(split)
        return tuple(self.shard_class_rows(split).sum(axis=0).tolist())

    def shard_class_rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of each class in each shard of a part, int64 ``[V, K]``."""
        if split != "train":
            return self.dataset.shard_class_rows(split)
        k = len(self.schema.target.classes)
        return np.stack([np.bincount(self.labels[v], minlength=k) for v in range(self.n_shards)])

    def shard(self, split: str, v: int) -> ShardRows:
        """Return one shard's rows."""
        shard = self.dataset.shard(split, v)
        return replace(shard, label=self.labels[v]) if split == "train" else shard


def relabelled(
    dataset: Dataset,
    members: Sequence[Callable[[], Model]],
    seeds: Sequence[int],
    costs: Costs,
    out_of_bag: bool,
    device: torch.device,
) -> Relabelled:
    """Give each training row the class of least expected cost, by its own costs.

    Parameters
    ----------
    members
        Each loads a model, which is let go again: one is in memory at a time.
    seeds
        Of the members, from which follows what each was fitted to.
    out_of_bag
        Whether a row's probabilities come only from members that were not fitted to it; of a row that all were fitted to, they
        come from all.

    Raises
    ------
    ConfigError
        If one class is cheapest for every row.
    """
    target, shards = dataset.schema.target, [dataset.shard("train", v) for v in range(dataset.n_shards)]
    k = len(target.classes)
    every = [np.zeros((len(shard), k)) for shard in shards]  # sums of probabilities over members
    fresh = [np.zeros((len(shard), k)) for shard in shards]  # over those that have not seen the row
    unseen = [np.zeros(len(shard), np.int64) for shard in shards]
    for load, seed in zip(members, seeds, strict=True):
        model = load().to(device).eval()
        for v, shard in enumerate(shards):
            p = probabilities(model, shard, target, device)
            new = times(shard, seed) == 0
            every[v] += p
            fresh[v] += p * new[:, None]
            unseen[v] += new
    labels, changed, known = {}, 0, 0
    for v, shard in enumerate(shards):
        own = unseen[v] > 0 if out_of_bag else np.zeros(len(shard), np.bool_)
        mean = np.where(own[:, None], fresh[v] / np.maximum(unseen[v], 1)[:, None], every[v] / len(members))
        amounts = by_name(shard.cost, dataset.schema.costs)
        labels[v] = np.asarray(costs.expected(mean, amounts).argmin(axis=1), np.int64)
        changed += int((labels[v] != shard.label).sum())
        known += int((~own).sum())
    rows = sum(map(len, shards))
    said = f"training.ensemble: metacost gives {plural(changed, 'training row')} of {rows:,} another label"
    if out_of_bag and known:
        said += f"; {known:,} were drawn by all members, so their probabilities come from these"
    found = Relabelled(dataset, labels, (said,))
    counts = np.array(found.class_rows("train"))
    if (counts > 0).sum() == 1:
        hidden = set(target.columns) & set(dataset.schema.private)
        which = "one class" if hidden else f"{str(target.classes[int(counts.argmax())])!r}"
        raise ConfigError(
            f"training.ensemble: metacost: by evaluation.costs, {which} is the cheapest decision for every training row, so "
            "there is nothing to learn; look at the costs, or use training.ensemble: costing, or evaluation.threshold: optimal"
        )
    return found


def probabilities(model: Model, shard: ShardRows, target: Target, device: torch.device) -> Floats:
    """Return class probabilities ``[n, K]`` of a shard's rows."""
    scores = scores_from_logits(forward_rows(model, shard.numeric, shard.categorical, device), target)
    return np.stack([1.0 - scores, scores], axis=1) if target.task == "binary" else scores
