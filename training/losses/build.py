"""A loss by its config, for a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Target
from shoal.training.losses import classification, regression
from shoal.training.losses.config import (
    BY_COSTS,
    EFFECTIVE,
    LOSSES,
    AutoLossConfig,
    BCEConfig,
    CrossEntropyConfig,
    FocalConfig,
    HuberConfig,
    LDAMConfig,
    LogitAdjustedConfig,
    LossConfig,
    PoissonConfig,
    QuantileConfig,
    SquaredErrorConfig,
)
from shoal.training.losses.weights import RowWeights, class_weights
from shoal.training.users_code import users

Values = Callable[[Tensor, Tensor], Tensor]
"""(logits ``[B, K]``, labels) -> ``[B]``, or ``[B, K]`` for several labels."""
Weights = Callable[[Tensor, Tensor], Tensor]
NO_COSTS = torch.empty((0, 0), dtype=torch.float64)

_AUTO: dict[str, Config] = {
    "binary": CrossEntropyConfig(),
    "multiclass": CrossEntropyConfig(),
    "multilabel": BCEConfig(),
    "regression": SquaredErrorConfig(),
}
_CLASSES = ("binary", "multiclass")
_TASKS: dict[type[Config], tuple[str, ...]] = {
    CrossEntropyConfig: _CLASSES,
    BCEConfig: ("binary", "multilabel"),
    FocalConfig: (*_CLASSES, "multilabel"),
    LDAMConfig: _CLASSES,
    LogitAdjustedConfig: _CLASSES,
    SquaredErrorConfig: ("regression",),
    HuberConfig: ("regression",),
    QuantileConfig: ("regression",),
    PoissonConfig: ("regression",),
}


@dataclass(frozen=True)
class Loss:
    """A value and a weight a row.

    Attributes
    ----------
    values
        Unweighted, per row or per label.
    weights
        (labels, cost columns) -> weights of the shape of ``values``; None where all are 1.
    weighted_from
        First epoch, from 0, in which weights count.
    """

    values: Values
    weights: Weights | None = None
    weighted_from: int = 0

    def is_weighted(self, epoch: int) -> bool:
        """Whether rows may weigh other than 1 in an epoch."""
        return self.weights is not None and epoch >= self.weighted_from

    def rows(self, logits: Tensor, labels: Tensor, epoch: int, costs: Tensor = NO_COSTS) -> Tensor:
        """Return value times weight ``[B]`` of each row; ``costs`` are its cost columns ``[B, C]``."""
        values = self.values(logits, labels)
        if self.weights is not None and self.is_weighted(epoch):
            values = values * self.weights(labels, costs).to(values.dtype)
        return values if values.dim() == 1 else values.mean(1)

    def weight(self, labels: Tensor, epoch: int, costs: Tensor = NO_COSTS) -> float:
        """Return the sum of the rows' weights."""
        if self.weights is None or not self.is_weighted(epoch):
            return float(len(labels))
        found = self.weights(labels, costs)
        return float((found if found.dim() == 1 else found.mean(1)).sum(dtype=torch.float64))


def build_loss(
    config: Config,
    target: Target,
    class_rows: Sequence[int],
    total: int,
    epochs: int,
    private: bool = False,
    by_row: RowWeights | None = None,
) -> Loss:
    """Return the loss that a config names.

    Parameters
    ----------
    config
        The component.
    target
        Task, classes, and the training labels' mean and standard deviation.
    class_rows, total
        Training rows of each class, or with each of several labels; all training rows.
    epochs
        Of the fit.
    private
        Whether a message must not name the classes.
    by_row
        What ``class_weights: costs`` means where costs stand in columns.

    Raises
    ------
    ConfigError
        If the loss is not for this task, or a class that it needs rows of has none.
    """
    if isinstance(config, AutoLossConfig):
        config = _AUTO[target.task]
    if isinstance(config, Imported):
        return Loss(_users(config, target))
    if target.task not in _TASKS[type(config)]:
        fitting = [n for n, c in LOSSES.items() if target.task in _TASKS.get(c, ())]
        raise ConfigError(
            f"training.loss: {Choice(LOSSES).name_of(config)} is not for {target.task}; use auto or one of {', '.join(fitting)}"
        )
    if not isinstance(config, LossConfig):
        return Loss(partial(_number, config, target))
    rows = torch.tensor(class_rows, dtype=torch.int64)
    values = _classes(config, target, rows, private)
    if config.class_weights is None:
        return Loss(values)
    if config.class_weights == BY_COSTS and by_row is not None:
        return Loss(values, by_row)
    first = int(config.reweight_from * epochs) if isinstance(config, LDAMConfig) else 0
    return Loss(values, _weights(config, target, rows, total, private), first)


def answered(target: Target, config: Config) -> Target:
    """Return the target with the link that a loss gives it."""
    return target.model_copy(update={"link": "log"}) if isinstance(config, PoissonConfig) else target


def _classes(config: LossConfig, target: Target, rows: Tensor, private: bool) -> Values:
    """Return the unweighted loss of classes; multi-label logits are taken element by element."""
    several = target.task == "multilabel"
    match config:
        case CrossEntropyConfig():
            return lambda z, y: classification.cross_entropy(z, y, config.label_smoothing)
        case BCEConfig():
            if several:
                return lambda z, y: classification.bce(z, y, config.label_smoothing)
            return lambda z, y: classification.bce(z[:, 0], y, config.label_smoothing)
        case FocalConfig():
            base = classification.bce if several else classification.cross_entropy
            return lambda z, y: classification.focal(base(z, y), config.gamma)
    _need_rows(config, target, rows, private)
    if isinstance(config, LDAMConfig):
        margins = classification.ldam_margins(rows, config.max_margin)

        def with_margins(z: Tensor, y: Tensor) -> Tensor:
            own = margins.to(z.device, z.dtype)
            return classification.cross_entropy(classification.with_margins(z, y, own, config.scale), y)

        return with_margins
    assert isinstance(config, LogitAdjustedConfig)
    shares, tau = classification.log_shares(rows), config.tau
    return lambda z, y: classification.cross_entropy(
        classification.adjusted(z, shares.to(z.device, z.dtype), tau), y
    )


def _weights(config: LossConfig, target: Target, rows: Tensor, total: int, private: bool) -> Weights:
    """Return the weight of each row by its class, or of each of several labels by whether a row has it."""
    assert config.class_weights is not None
    named = isinstance(config.class_weights, dict) and EFFECTIVE not in config.class_weights
    if target.task != "multilabel":
        if not named:
            _need_rows(config, target, rows, private)
        by_class = class_weights(config.class_weights, rows, target.classes, private)
        return lambda y, _: by_class.to(y.device)[y]
    if named:
        yes = class_weights(config.class_weights, rows, target.classes, private)
        no = torch.ones_like(yes)
    else:
        _need_rows(config, target, torch.minimum(rows, total - rows), private)
        both = [class_weights(config.class_weights, torch.stack([total - n, n]), (False, True)) for n in rows]
        no, yes = torch.stack(both).unbind(1)
    return lambda y, _: torch.where(y.bool(), yes.to(y.device), no.to(y.device))


def _need_rows(config: LossConfig, target: Target, rows: Tensor, private: bool) -> None:
    empty = [str(target.classes[i]) for i in np.flatnonzero(rows.numpy() == 0)]
    if empty:
        which = f"{len(empty)} of them" if private else ", ".join(empty[:10])
        raise ConfigError(
            f"training.loss: {Choice(LOSSES).name_of(config)} needs training rows of every class, with and without it; there are "
            f"none for {which}; use cross_entropy or weights by class, or give more rows"
        )


def _number(config: Config, target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    """Return a loss of numbers, in standard deviations of the target; of counts, over their mean."""
    answers = logits[:, 0]
    if isinstance(config, PoissonConfig):
        return regression.poisson(answers, (labels / target.center).to(logits.dtype))
    wanted = ((labels - target.center) / target.scale).to(logits.dtype)
    match config:
        case HuberConfig():
            return regression.huber(answers, wanted, config.delta)
        case QuantileConfig():
            return regression.quantile(answers, wanted, config.quantile)
    return regression.squared_error(answers, wanted)


def _users(config: Imported, target: Target) -> Values:
    factory = config.load()
    try:
        with users(f"training.loss.import: {config.path}", ConfigError):
            found = factory(**config.kwargs)
    except TypeError as error:
        raise ConfigError(
            f"training.loss.import: {config.path} could not be called: {error}; it gets the keys written beside import"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"training.loss.import: {config.path} returned {type(found).__name__}; it must return a function of logits and labels"
        )

    def values(logits: Tensor, labels: Tensor) -> Tensor:
        wanted = labels
        if target.task == "regression":
            wanted = ((labels - target.center) / target.scale).to(logits.dtype)
        with users(f"training.loss.import: {config.path}"):
            losses = found(logits, wanted)
        if not isinstance(losses, Tensor) or losses.shape != labels.shape[:1]:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"training.loss.import: {config.path} gave {shape} for {len(labels)} rows; it must give one value a row, "
                "unreduced"
            )
        if logits.requires_grad and not losses.requires_grad:
            raise ConfigError(
                f"training.loss.import: {config.path} gave values without a gradient: compute them from the logits by torch's "
                "operations, without detach, item or numpy"
            )
        return losses

    return values
