"""The learning rate at every step of a fit, from torch's schedulers."""

import inspect
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.optim import lr_scheduler

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.sharding.names import plural
from shoal.training.schedules.config import (
    ConstantConfig,
    CosineConfig,
    CosineWarmRestartsConfig,
    CyclicConfig,
    ExponentialConfig,
    InverseSquareRootConfig,
    MultiStepConfig,
    OneCycleConfig,
    PlateauConfig,
    PolynomialConfig,
    ScheduleConfig,
    StepConfig,
)
from shoal.training.schedules.range_test import RangeTestConfig
from shoal.training.users_code import users

_TIMESCALE = 1000
_MOMENTUM = 0.9


class Schedule:
    """By how much the optimiser's learning rate is multiplied, as a function of the steps done and the scores seen.

    torch's scheduler turns an optimiser of its own, with one parameter and the learning rate 1; the real one, which a strategy
    may have cut in parts, gets the factor and, where it moves, the momentum: the same for all of its groups. Nothing of it
    needs to be in a checkpoint.

    Parameters
    ----------
    config
        The component.
    steps_per_epoch, epochs
        Of the fit.
    momentum
        Whether the optimiser has a momentum, or betas.
    greater_is_better
        Direction of the validation score.
    learning_rate
        The optimiser's; a scheduler of the user's own sees it.

    Raises
    ------
    ConfigError
        If the warm-up takes the whole fit, a milestone is beyond it, momentum is to be cycled where there is none, or the
        user's factory makes no scheduler.

    Attributes
    ----------
    notices
        What the schedule would do and this fit is too short for.
    moved
        Whether the rate or the momentum has been another than at first.
    """

    def __init__(
        self,
        config: Config,
        steps_per_epoch: int,
        epochs: int,
        momentum: bool = False,
        greater_is_better: bool = True,
        learning_rate: float = 1.0,
    ) -> None:
        self.config, self._per_epoch = config, steps_per_epoch
        self.is_constant = isinstance(config, ConstantConfig) and not config.warmup
        by_epoch = isinstance(config, ScheduleConfig) and config.unit == "epoch"  # type: ignore[attr-defined]
        self._unit = steps_per_epoch if by_epoch else 1
        self._warmup, total, said = 0, epochs * steps_per_epoch, ""
        if isinstance(config, ScheduleConfig):
            unit = config.warmup_unit or ("epoch" if by_epoch else "step")
            self._warmup = config.warmup * (steps_per_epoch if unit == "epoch" else 1)
            said = plural(config.warmup, unit)
        if self._warmup >= total:
            raise ConfigError(
                f"training.schedule: a warm-up of {said} leaves nothing of this fit, "
                f"which has {total:,} steps ({epochs} epochs of {steps_per_epoch}); use fewer"
            )
        self._base = learning_rate if isinstance(config, Imported) else 1.0
        self.cycles_momentum = isinstance(config, OneCycleConfig) and _cycles(config, momentum)
        self._dummy = torch.optim.SGD([torch.zeros(1)], lr=self._base, momentum=_MOMENTUM)
        units = math.ceil((total - self._warmup) / self._unit)
        self.notices = _idle(
            config, (total - self._warmup - 1) // self._unit, "epoch" if by_epoch else "step"
        )
        self._scheduler: Any = None
        if isinstance(config, Imported):
            self._scheduler = _users(config, self._dummy, total, steps_per_epoch)
            self.cycles_momentum = self.momentum != _MOMENTUM
            if self.cycles_momentum and not momentum:
                raise ConfigError(
                    f"training.schedule.import: {config.path} moves a momentum, and this optimiser has none and no betas; give "
                    "it cycle_momentum: false, or another optimiser"
                )
        elif not isinstance(config, ConstantConfig):
            self._scheduler = _build(
                config,
                self._dummy,
                units,
                self._warmup // self._unit,
                self.cycles_momentum,
                greater_is_better,
            )
        self._first, self._momentum = float(self._dummy.param_groups[0]["lr"]) / self._base, self.momentum
        self.moved = False
        if problem := self._no_rate(0):
            raise ConfigError(problem)
        self._scores = 0
        self._turned = 0

    def factor(self, position: int) -> float:
        """Return the share of the learning rate with which the step after ``position`` others is taken; positions rise."""
        if position < self._warmup:
            return self._first * (position + 1) / (self._warmup + 1)
        if self._scheduler is not None and not isinstance(self.config, PlateauConfig):
            due = (position - self._warmup) // self._unit
            while self._turned < due:
                self._dummy.step()  # torch wants to see the optimiser first
                with users("training.schedule.import"):
                    self._scheduler.step()
                self._turned += 1
                self._look(position)
        rate: float = self._dummy.param_groups[0]["lr"]
        return float(rate) / self._base

    def _look(self, position: int) -> None:
        """Refuse a rate that is none, which a scheduler of the user's own may give; see whether it moves."""
        if problem := self._no_rate(position):
            raise RunError(problem)
        rate = float(self._dummy.param_groups[0]["lr"])
        self.moved |= rate != self._first * self._base or self.momentum != self._momentum

    def _no_rate(self, position: int) -> str:
        rate = float(self._dummy.param_groups[0]["lr"])
        if not isinstance(self.config, Imported) or 0 <= rate < math.inf:
            return ""
        return (
            f"training.schedule.import: {self.config.path} gave step {position + 1:,} the learning rate {rate:g}; it must be a "
            "finite number of at least 0"
        )

    @property
    def momentum(self) -> float:
        """The momentum that belongs to the last factor, where it is cycled."""
        return float(self._dummy.param_groups[0]["momentum"])

    def hear(self, scores: Iterable[float]) -> None:
        """Take the validation scores of all epochs so far, in order; those heard already count once."""
        if not isinstance(self.config, PlateauConfig):
            return
        for epoch, score in enumerate(scores):
            if epoch >= self._scores:
                self._scores = epoch + 1
                if not math.isnan(score) and (epoch + 1) * self._per_epoch > self._warmup:
                    self._scheduler.step(score)


def _idle(config: Config, last: int, unit: str) -> list[str]:
    """Refuse milestones that this fit does not reach, and say of a schedule that it changes nothing.

    Parameters
    ----------
    last
        Units after the warm-up that are over when the last step is taken.
    """
    fit = f"this fit lasts {last + 1:,} {unit}s, warm-up aside"
    if isinstance(config, MultiStepConfig) and config.milestones[-1] > last:
        beyond = ", ".join(f"{m:,}" for m in config.milestones if m > last)
        raise ConfigError(
            f"training.schedule.multi_step.milestones: {beyond} would never be reached: {fit}; use smaller ones, leave them out, "
            "or train longer (training.epochs)"
        )
    least = None
    if isinstance(config, CyclicConfig):
        least, key = config.step_size_up, "cyclic.step_size_up"
        if least > last:
            return [
                f"training.schedule.{key}: {least:,} is so long that the rate never reaches its top: {fit}; use a smaller one"
            ]
        return []
    if isinstance(config, CosineWarmRestartsConfig):
        if config.t_0 > last:
            return [
                f"training.schedule.cosine_warm_restarts.t_0: {config.t_0:,} is so long that nothing restarts: {fit}; use a "
                "smaller one, or cosine"
            ]
        return []
    if isinstance(config, StepConfig):
        least, key = config.step_size, "step.step_size"
    elif isinstance(config, PlateauConfig):  # the best epoch, those without improvement, and one to act in
        least, key = config.patience + 2, "reduce_on_plateau.patience"
    if least is None or least <= last:
        return []
    return [
        f"training.schedule.{key} is so long that the learning rate stays as it is: {fit}; use a smaller one"
    ]


def _cycles(config: OneCycleConfig, momentum: bool) -> bool:
    if config.cycle_momentum and not momentum:
        raise ConfigError(
            "training.schedule.one_cycle.cycle_momentum: this optimiser has no momentum and no betas; use sgd with a momentum, "
            "an optimiser of the Adam family, or leave it out"
        )
    return momentum if config.cycle_momentum is None else config.cycle_momentum


def _build(
    config: Config,
    dummy: torch.optim.Optimizer,
    units: int,
    warmup: int,
    cycle_momentum: bool,
    greater_is_better: bool,
) -> Any:
    """Return torch's scheduler over ``units``, after a warm-up of so many, that the rate, 1 at first, is turned by."""
    match config:
        case StepConfig():
            return lr_scheduler.StepLR(dummy, config.step_size, config.gamma)
        case MultiStepConfig():
            return lr_scheduler.MultiStepLR(dummy, config.milestones, config.gamma)
        case ExponentialConfig():
            return lr_scheduler.ExponentialLR(dummy, config.gamma)
        case PolynomialConfig():
            fall = partial(_polynomial, units, config.power, config.min_factor)
            return lr_scheduler.LambdaLR(dummy, fall)
        case CosineConfig():
            return lr_scheduler.CosineAnnealingLR(dummy, units, config.min_factor)
        case CosineWarmRestartsConfig():
            return lr_scheduler.CosineAnnealingWarmRestarts(
                dummy, config.t_0, config.t_mult, config.min_factor
            )
        case CyclicConfig():
            return lr_scheduler.CyclicLR(
                dummy,
                config.base_factor,
                1.0,
                config.step_size_up,
                config.step_size_down,
                config.mode,
                config.gamma or 1.0,
                cycle_momentum=False,
            )
        case OneCycleConfig():
            return lr_scheduler.OneCycleLR(
                dummy,
                1.0,
                total_steps=max(units, 2),  # the scheduler divides by one less
                cycle_momentum=cycle_momentum,
                **config.model_dump(exclude={"warmup", "warmup_unit", "unit", "cycle_momentum"}),
            )
        case PlateauConfig():
            return lr_scheduler.ReduceLROnPlateau(
                dummy,
                "max" if greater_is_better else "min",
                config.factor,
                config.patience,
                config.min_delta,
                "abs",
                config.cooldown,
                config.min_factor,
            )
        case RangeTestConfig():
            return lr_scheduler.LambdaLR(dummy, lambda t: config.low ** (1 - t / max(1, units - 1)))
        case InverseSquareRootConfig():
            scale = config.timescale or warmup or _TIMESCALE
            return lr_scheduler.LambdaLR(dummy, lambda t: math.sqrt(scale / (scale + t)))
    raise TypeError(f"{type(config).__name__} is no schedule")


def _polynomial(units: int, power: float, low: float, t: int) -> float:
    """Return what `PolynomialLR` does, but to a share that need not be 0."""
    return low + (1 - low) * float((1 - min(t, units) / units) ** power)


def _users(config: Imported, dummy: torch.optim.Optimizer, total: int, per_epoch: int) -> Any:
    factory, offered = config.load(), {"total_steps": total, "steps_per_epoch": per_epoch}
    try:
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            offered = {name: value for name, value in offered.items() if name in parameters}
        with users(f"training.schedule.import: {config.path}", ConfigError):
            found = factory(dummy, **offered, **config.kwargs)
    except TypeError as error:
        raise ConfigError(
            f"training.schedule.import: {config.path} could not be called: {error}; it gets an optimiser, total_steps and "
            "steps_per_epoch where it names them, and the keys written beside import"
        ) from error
    if not isinstance(found, lr_scheduler.LRScheduler) or isinstance(found, lr_scheduler.ReduceLROnPlateau):
        raise ConfigError(
            f"training.schedule.import: {config.path} returned {type(found).__name__}; it must return a "
            "torch.optim.lr_scheduler.LRScheduler, which turns once a step"
        )
    return found
