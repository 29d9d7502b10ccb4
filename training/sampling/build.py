"""From `training.sampling` and the rows to the plan of a fit's batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.errors import ConfigError
from shoal.training.batches import Dataset
from shoal.training.config import TrainingConfig
from shoal.training.costs import Costs
from shoal.training.plan import EpochPlan, resolve_batch_size
from shoal.training.sampling.bootstrap import resample
from shoal.training.sampling.config import BootstrapConfig, CostRejectionConfig
from shoal.training.sampling.kept import KeptPlan
from shoal.training.sampling.plan import ClassPlan
from shoal.training.sampling.rejection import keep
from shoal.training.sampling.shares import class_shares
from shoal.training.strategies.base import Strategy


@dataclass(frozen=True)
class Sampled:
    """Which rows are in which step.

    Attributes
    ----------
    plan
        Of every epoch.
    shares
        Of each class in every step, float64 ``[classes]``; None where batches are left to chance.
    notices
        To be said before the first step.
    """

    plan: EpochPlan
    shares: NDArray[np.float64] | None
    notices: tuple[str, ...] = ()


def sample(
    config: TrainingConfig, dataset: Dataset, costs: Costs | None, strategy: Strategy, seed: int
) -> Sampled:
    """Plan the batches of a fit; the same on every worker, but for the rows of shards that others read.

    Raises
    ------
    ConfigError, DataError
        If the rows cannot be sampled so.
    """
    rows = dataset.shard_rows("train")
    size = resolve_batch_size(config.batch_size, sum(rows))
    if isinstance(config.sampling, CostRejectionConfig | BootstrapConfig):
        own = range(strategy.rank, dataset.n_shards, strategy.world_size)
        shards = {v: dataset.shard("train", v) for v in own}
        if isinstance(config.sampling, BootstrapConfig):
            kept = resample(dataset, shards, strategy, seed)
        elif costs is None:
            raise ConfigError("training.sampling: cost_rejection needs an experiment with evaluation.costs")
        else:
            kept = keep(dataset, shards, costs, strategy, seed)
        size = resolve_batch_size(config.batch_size, sum(kept.of_shard))
        return Sampled(KeptPlan(kept.rows, kept.of_shard, size, seed), None, kept.notices)
    shares = class_shares(config.sampling, dataset.schema.target, dataset.class_rows("train"), size)
    if shares is None:
        return Sampled(EpochPlan(rows, size, seed), None)
    return Sampled(ClassPlan(dataset.shard_class_rows("train"), shares, size, seed), shares)
