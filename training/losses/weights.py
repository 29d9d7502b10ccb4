"""How much a class weighs, from the training rows of each, or a row, from its costs."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Scalar
from shoal.training.costs import Costs
from shoal.training.losses.config import EFFECTIVE, ClassWeights, EffectiveNumberConfig


@dataclass(frozen=True)
class RowWeights:
    """Weights by row: what its own costs say that mistakes on its class cost above deciding right.

    Parameters
    ----------
    same
        float64 ``[K]``, of each class, without the cost columns.
    times
        float64 ``[K, C]``, what each cost column is multiplied by.
    """

    same: Tensor
    times: Tensor

    @classmethod
    def of(cls, costs: Costs, columns: Sequence[str], mean: float) -> "RowWeights":
        """Return the weights of rows with these cost columns, divided by a mean."""
        zeros = {name: np.zeros(1) for name in columns}
        same = costs.weights(zeros)[0]
        times = [costs.weights({**zeros, name: np.ones(1)})[0] - same for name in columns]
        return cls(torch.tensor(same / mean), torch.tensor(np.stack(times, axis=1) / mean))

    def __call__(self, labels: Tensor, costs: Tensor) -> Tensor:
        """Return float64 ``[B]`` of labels ``[B]`` and cost columns ``[B, C]``, with others behind them or not."""
        same, times = self.same.to(labels.device), self.times.to(labels.device)
        return same[labels] + (costs[:, : times.shape[1]] * times[labels]).sum(1)


def class_weights(
    config: ClassWeights, rows: Tensor, classes: Sequence[Scalar], private: bool = False
) -> Tensor:
    """Return the weight of each class.

    Parameters
    ----------
    config
        ``balanced``: n / (K n_j), as `sklearn.utils.class_weight.compute_class_weight`. ``effective_number``: proportional to
        (1 - beta) / (1 - beta ** n_j), with mean 1 (Cui et al. 2019, "Class-balanced loss based on effective number of
        samples", equations 2 and 5). Or the weights by class, 1 for those not named.
    rows
        int64 ``[K]``, training rows of each class, all above 0.
    classes
        Their names.
    private
        Whether a message must not name them.

    Returns
    -------
    Tensor
        float64 ``[K]``.

    Raises
    ------
    ConfigError
        If a class that is named does not exist, or weights are by costs, which an experiment turns into numbers.
    """
    counts = rows.double()
    if config == "balanced":
        return counts.sum() / (len(counts) * counts)
    if isinstance(config, str):
        raise ConfigError(
            f"class_weights: {config} need an experiment with evaluation.costs; give the weights by class, or balanced"
        )
    by_number = config.get(EFFECTIVE)
    if isinstance(by_number, EffectiveNumberConfig):
        beta = by_number.beta
        weights = (1.0 - beta) / (1.0 - beta**counts)
        return weights * len(weights) / weights.sum()
    names = {str(name): i for i, name in enumerate(classes)}
    weights = torch.ones(len(classes), dtype=torch.float64)
    for name, weight in config.items():
        if str(name) not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
            known = f"the nearest is {near[0]!r}, and all are: {', '.join(list(names)[:20])}"
            raise ConfigError(
                f"training.loss: class_weights name {name!r}, which is no class; "
                f"{'the classes are private (data.private)' if private else known}"
            )
        assert isinstance(weight, float)
        weights[names[str(name)]] = weight
    return weights
