"""A fit up to its first step, on labels alone: what it would refuse, it refuses here, by the same code."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.progress import Silent
from shoal.cluster.resources import Shape
from shoal.cluster.sharding.manifest import Schema
from shoal.training.config import TrainingConfig
from shoal.training.costs import Costs, by_name
from shoal.training.device import DTYPES
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import Model, build_model
from shoal.training.optimizers.build import build_optimizer
from shoal.training.outcome import Monitor
from shoal.training.refusals import refuse_model
from shoal.training.stages import Reuse
from shoal.training.strategies.base import Strategy

_FEW = 64  # rows that a loss of the user's own is tried on


def labels_alone(
    schema: Schema,
    labels: Mapping[str, NDArray[np.generic]],
    n_shards: int,
    costs: Mapping[str, NDArray[np.float64]] | None = None,
    row_ids: Mapping[str, pa.Array] | None = None,
) -> ArrayDataset:
    """Return a dataset whose features are zeros that take no memory.

    Parameters
    ----------
    schema
        With the statistics of the training rows.
    labels
        ``[n]`` or ``[n, K]`` of each part.
    n_shards
        V.
    costs, row_ids
        The cost columns ``[n, C]`` and ids ``[n]`` of each part, in the order of its labels.
    """
    parts = {}
    for split, own in labels.items():
        numeric = np.broadcast_to(np.float32(0), (len(own), schema.numeric_width))
        codes = np.broadcast_to(np.int32(0), (len(own), schema.codes_width))
        # Class after class, as the sharding service deals them.
        order = np.argsort(own, kind="stable") if own.dtype == np.int64 else np.arange(len(own))
        cost = costs[split][order] if costs else None
        ids = row_ids[split].take(pa.array(order)) if row_ids else None
        parts[split] = ArrayPart(numeric, codes, own[order], cost, ids)
    return ArrayDataset(schema, parts, n_shards)


def rehearse(
    model: Config,
    training: TrainingConfig,
    seed: int,
    dataset: ArrayDataset,
    monitor: Monitor | None,
    shape: Shape,
    costs: Costs | None = None,
    reuse: Reuse | None = None,
) -> list[str]:
    """Build all that a fit has before its first step, and return what it would say aloud.

    One worker stands for all of them; what depends on their number is asked for the number that there will be.

    Parameters
    ----------
    model, training, seed, dataset, monitor, costs
        As `Loop` takes them.
    shape
        How the fit would be spread.
    reuse
        Makes the fit start from another one.

    Raises
    ------
    ConfigError, DataError
        What the fit would raise.
    """
    module = build_model(model, dataset.schema, seed)
    if module.is_estimator:
        return _rehearse_estimator(module, training, dataset, costs)
    strategy = Strategy(torch.device("cpu"))
    tuning = reuse(module, dataset.schema, training, seed) if reuse is not None else None
    loop = Loop(module, dataset, training, strategy, monitor, seed, Silent(), costs=costs, tuning=tuning)
    loop.plan.shards_of(0, shape.num_workers)
    most = shape.within(dataset.n_shards).max_workers
    tuning = loop.stepper.tuning
    refuse_model(module, training, max(most, shape.num_workers), tuning.always_still)
    for stage in tuning.stages:
        build_optimizer(stage.begin(module, training), module)
    if isinstance(training.loss, Imported):  # says here what it would not take
        labels = torch.from_numpy(np.array(dataset.parts["train"].label[:_FEW]))
        logits = torch.zeros(
            len(labels), module.n_outputs, dtype=DTYPES[training.precision], requires_grad=True
        )
        values = loop.stepper.loss.rows(logits, labels, 0, torch.zeros(len(labels), 0))
        if not torch.isfinite(values).all():
            loop.notices.append(
                f"training.loss.import: {training.loss.path} is no finite number where all logits are 0, as at a usual start"
            )
    return [*loop.said_first, *loop.notices]


def _rehearse_estimator(
    module: Model, training: TrainingConfig, dataset: ArrayDataset, costs: Costs | None
) -> list[str]:
    from shoal.training.scikit.fit import row_weights
    from shoal.training.scikit.model import EstimatorModel

    assert isinstance(module, EstimatorModel)
    part = dataset.parts["train"]
    cost = np.zeros((len(part), 0)) if part.cost is None else part.cost
    row_weights(module, training, dataset, costs, part.label, by_name(cost, dataset.schema.costs))
    return []
