"""Which training rows a fit sees where rows are kept in proportion to what mistakes on them cost.

References
----------
Zadrozny, Langford and Abe (2003), Cost-sensitive learning by cost-proportionate example weighting, ICDM, section 2.3: a row is
kept with probability c / Z, c its cost and Z the largest one; a learner that takes all rows for alike then minimises costs.

Shapes: n rows, V shards.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.dataset import ShardRows
from shoal.cluster.sharding.hashing import hash_values, mix, salt
from shoal.cluster.sharding.names import plural
from shoal.training.batches import Dataset
from shoal.training.costs import Costs, Floats, by_name
from shoal.training.plan import Index
from shoal.training.strategies.base import Strategy

FEW = 300


@dataclass(frozen=True)
class Kept:
    """The rows that are kept.

    Parameters
    ----------
    rows
        Of this worker's shards: shard -> rows in it, ascending.
    of_shard
        How many of every shard, over all workers, ``[V]``.
    notices
        What has to be said.
    """

    rows: Mapping[int, Index]
    of_shard: tuple[int, ...]
    notices: tuple[str, ...]


def keep(
    dataset: Dataset, shards: Mapping[int, ShardRows], costs: Costs, strategy: Strategy, seed: int
) -> Kept:
    """Draw the rows of a fit.

    Parameters
    ----------
    dataset
        Its training rows.
    shards
        Those of this worker.
    costs
        What mistakes cost.
    strategy
        To add up over workers.
    seed
        Root of the draw.

    Raises
    ------
    ConfigError
        If no row of some class is kept.
    """
    schema = dataset.schema
    weights = {v: costs.own_weights(s.label, by_name(s.cost, schema.costs)) for v, s in shards.items()}
    dearest = strategy.maximum(max((float(w.max()) for w in weights.values() if len(w)), default=0.0))
    rows = {v: np.flatnonzero(draws(s, seed) * dearest < weights[v]) for v, s in shards.items()}
    counts = torch.zeros((dataset.n_shards, len(schema.target.classes)), dtype=torch.float64)
    for v, kept in rows.items():
        counts[v] = torch.from_numpy(np.bincount(shards[v].label[kept], minlength=counts.shape[1]))
    counts = strategy.sum(counts.to(strategy.device)).cpu()
    before, left = sum(dataset.class_rows("train")), int(counts.sum())
    empty = [str(schema.target.classes[k]) for k in torch.nonzero(counts.sum(0) == 0).flatten().tolist()]
    said = f"training.sampling: cost_rejection keeps {plural(left, 'training row')} of {before:,}"
    if empty:
        hidden = set(schema.target.columns) & set(schema.private)
        raise ConfigError(
            f"{said}, and none of {'some class' if hidden else ', '.join(empty[:10])}, on which mistakes cost little beside the "
            f"dearest; use training.loss: {{cross_entropy: {{class_weights: costs}}}}, or another seed"
        )
    few = (
        "; so few tell little: use training.loss: {cross_entropy: {class_weights: costs}}, which takes all of them"
        if left < FEW
        else ""
    )
    return Kept(rows, tuple(int(n) for n in counts.sum(1).tolist()), (said + few,))


def draws(rows: ShardRows, seed: int, what: str = "cost rejection") -> Floats:
    """Return a number from 0 to below 1 for each row: of the seed and the row, wherever it lies, float64 ``[n]``.

    A row is known by its id, its class and its costs, so rows that share an id are drawn one by one unless they share all.
    ``what`` the draw is for makes it another one.
    """
    key = np.zeros(len(rows), np.uint64)
    label = [pa.array(rows.label)] if rows.label.ndim == 1 else []  # of several labels the id has to do
    columns = [rows.row_id, *label, *(pa.array(column) for column in rows.cost.T)]
    for i, column in enumerate(columns):
        hashed = hash_values(column, f"column {i}")
        assert hashed is not None
        key += hashed
    mixed = mix(key ^ salt(f"{what} of seed {seed}"))
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)
