"""How much a class weighs, from the training rows of each."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Scalar
from shoal.training.losses.config import EFFECTIVE, ClassWeights, EffectiveNumberConfig


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
