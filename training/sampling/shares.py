"""How large a part of the rows that training sees is of each class."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import nearest, plural
from shoal.training.sampling.config import (
    BootstrapConfig,
    ClassBalancedConfig,
    CostRejectionConfig,
    QuotasConfig,
    ShuffleConfig,
    WeightedConfig,
)


def class_shares(
    config: Config, target: Target, class_rows: tuple[int, ...], batch_size: int
) -> NDArray[np.float64] | None:
    """Return the share of each class in every step, None where batches are left to chance.

    Parameters
    ----------
    config
        `training.sampling`.
    target
        For the class names.
    class_rows
        Training rows of each class.
    batch_size
        Rows of a step.

    Returns
    -------
    float64 ``[classes]``, adding up to 1; 0 for a class without training rows.

    Raises
    ------
    ConfigError
        If there are no classes, or no such classes, or the quotas are larger than the batch.
    """
    if isinstance(config, ShuffleConfig | CostRejectionConfig | BootstrapConfig):
        return None
    if target.task not in ("binary", "multiclass"):
        raise ConfigError(
            f"training.sampling chooses rows by class, and the task is {target.task}; use shuffle"
        )
    rows = np.array(class_rows, np.float64)
    if isinstance(config, ClassBalancedConfig):
        weights = np.where(rows > 0, 1.0, 0.0)
    elif isinstance(config, WeightedConfig):
        weights = rows.copy()
        for code, weight in _by_code(config.weights, target, "training.sampling.weights").items():
            weights[code] *= weight
    elif isinstance(config, QuotasConfig):
        return _quota_shares(config, target, rows, batch_size)
    else:
        weights = rows
    return np.asarray(weights / weights.sum())


def _quota_shares(
    config: QuotasConfig, target: Target, rows: NDArray[np.float64], batch_size: int
) -> NDArray[np.float64]:
    named = _by_code(config.rows, target, "training.sampling.rows")
    for code in named:
        if not rows[code]:
            raise ConfigError(f"training.sampling.rows: class {target.classes[code]} has no training row")
    total = sum(config.rows.values())
    others = rows.copy()
    others[list(named)] = 0
    left = batch_size - total
    if left < 0 or (left == 0) != (others.sum() == 0):
        raise ConfigError(
            f"training.sampling.rows: the quotas add up to {total:,} and a step has {batch_size:,} rows, which leaves "
            f"{plural(max(left, 0), 'row')} for the classes without a quota; change the quotas or training.batch_size"
        )
    # Steps are even, so each has a little less than a whole batch where the rows do not divide; a quota is of that.
    step = float(rows.sum() / np.ceil(rows.sum() / batch_size))
    if left == 0 or step <= total:
        step = float(batch_size)
    shares = np.zeros(len(rows)) if left == 0 else others / others.sum() * (step - total)
    for code, count in named.items():
        shares[code] = count
    return np.asarray(shares / step)


def _by_code(values: Mapping[str, float], target: Target, key: str) -> dict[int, float]:
    names = [str(name) for name in target.classes]
    for name in values:
        if name not in names:
            raise ConfigError(f"{key}: there is no class {name!r}{nearest(name, names)}")
    return {names.index(name): value for name, value in values.items()}


def seen(target: Target, class_rows: tuple[int, ...], shares: NDArray[np.float64] | None) -> Target:
    """Return the target that knows which class shares training saw, so that its probabilities are those of the data.

    Parameters
    ----------
    target
        With the correction of resampling, if any.
    class_rows
        Training rows of each class.
    shares
        As `class_shares` returns them.
    """
    return target if shares is None else target.shown(class_rows, shares.tolist())
