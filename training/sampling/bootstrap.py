"""Training rows drawn with replacement, whoever reads them.

References
----------
Oza and Russell (2001), Online bagging and boosting, AISTATS, section 2.1: the number of times that a row is among n drawn of n is
binomial, and Poisson with mean 1 for large n; drawn row by row, it needs no order of the rows.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import poisson

from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.names import plural
from shoal.training.batches import Dataset
from shoal.training.sampling.rejection import Kept, draws
from shoal.training.strategies.base import Strategy

_UP_TO = poisson.cdf(np.arange(20), 1)  # the last one is the double next below 1, which no draw reaches


def times(rows: ShardRows, seed: int) -> NDArray[np.int64]:
    """Return how often each row is drawn, int64 ``[n]``: of the seed and the row, wherever it lies."""
    return np.searchsorted(_UP_TO, draws(rows, seed, "bootstrap"), side="right").astype(np.int64)


def resample(dataset: Dataset, shards: Mapping[int, ShardRows], strategy: Strategy, seed: int) -> Kept:
    """Draw the rows of a fit.

    Parameters
    ----------
    dataset
        Its training rows.
    shards
        Those of this worker.
    strategy
        To add up over workers.
    seed
        Root of the draw.
    """
    counts = {v: times(s, seed) for v, s in shards.items()}
    rows = {v: np.repeat(np.arange(len(found)), found) for v, found in counts.items()}
    sums = torch.zeros((dataset.n_shards, 2), dtype=torch.float64)
    for v, found in counts.items():
        sums[v] = torch.tensor([float(found.sum()), float((found > 0).sum())])
    sums = strategy.sum(sums.to(strategy.device)).cpu()
    drawn, different = (int(n) for n in sums.sum(0).tolist())
    said = f"training.sampling: bootstrap draws {plural(drawn, 'row')}, {different:,} of them different"
    return Kept(rows, tuple(int(n) for n in sums[:, 0].tolist()), (said,))
