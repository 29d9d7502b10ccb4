"""The schedules of `training.schedule`.

All of them multiply the optimiser's learning rate, so that it stays the one number to tune: their values are shares of it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from shoal.cluster.components import Choice
from shoal.cluster.config import Config

Unit = Literal["step", "epoch"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # 1 would leave the rate as it is, as a gamma of 1 would
Gamma = Annotated[float, Field(gt=0, lt=1)]


class ScheduleConfig(Config):
    """What all schedules share."""

    warmup: Annotated[int, Field(ge=0)] = Field(
        0,
        description="units in which the rate first rises linearly, at every step, to where the schedule begins",
    )
    warmup_unit: Unit | None = Field(None, description="what warmup is in; null for unit")

    @model_validator(mode="after")
    def _unit_is_of_a_warmup(self) -> "ScheduleConfig":
        if self.warmup_unit is not None and not self.warmup:
            raise ValueError(
                f"warmup_unit: {self.warmup_unit} without a warmup says nothing; give a warmup, or leave it out"
            )
        return self

    @field_validator("warmup", mode="before")
    @classmethod
    def _is_counted(cls, value: Any) -> Any:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(
                f"a warm-up is no share but a whole number, of {cls.model_fields['unit'].default}s unless warmup_unit says "
                "otherwise: write warmup: 100 with warmup_unit: step, or warmup: 1 with warmup_unit: epoch"
            )
        return value


class ByStep(ScheduleConfig):
    """Counts in steps unless told otherwise."""

    unit: Unit = Field("step", description="what the counts are in")


class ByEpoch(ScheduleConfig):
    """Counts in epochs unless told otherwise."""

    unit: Unit = Field("epoch", description="what the counts are in")


class ConstantConfig(ByStep):
    """The optimiser's learning rate throughout."""


class StepConfig(ByEpoch):
    """Times gamma every `step_size` units (`torch.optim.lr_scheduler.StepLR`)."""

    step_size: Count = 10
    gamma: Gamma = 0.1


class MultiStepConfig(ByEpoch):
    """Times gamma at each milestone (`MultiStepLR`)."""

    milestones: Annotated[tuple[Count, ...], Field(min_length=1)]
    gamma: Gamma = 0.1

    @field_validator("milestones")
    @classmethod
    def _rise(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"milestones must rise, got {list(value)}")
        return value


class ExponentialConfig(ByEpoch):
    """Times gamma every unit (`ExponentialLR`)."""

    gamma: Gamma = 0.95


class PolynomialConfig(ByStep):
    """Falls as (1 - t / T) ** power over the whole fit (`PolynomialLR`); power 1 is linear."""

    power: Annotated[float, Field(gt=0)] = 1.0
    min_factor: Share = Field(0.0, description="share of the rate at the end")


class CosineConfig(ByStep):
    """Half a cosine over the whole fit (`CosineAnnealingLR`; Loshchilov and Hutter 2017, equation 5)."""

    min_factor: Share = Field(0.0, description="share of the rate at the end")


class CosineWarmRestartsConfig(ByEpoch):
    """Half a cosine again and again (`CosineAnnealingWarmRestarts`; Loshchilov and Hutter 2017, SGDR)."""

    t_0: Count = Field(10, description="units of the first half cosine")
    t_mult: Count = Field(1, description="times as long is each next one")
    min_factor: Share = Field(0.0, description="share of the rate at the end of each")

    @model_validator(mode="after")
    def _falls(self) -> "CosineWarmRestartsConfig":
        if self.t_0 == self.t_mult == 1:
            raise ValueError(
                f"t_0: 1 {self.unit} begins anew before the rate has fallen; give a longer t_0, or t_mult above 1"
            )
        return self


class CyclicConfig(ByStep):
    """Up and down in straight lines (`CyclicLR`; Smith 2017)."""

    base_factor: Share = Field(
        0.1, description="share of the rate at the bottom; its top is the optimiser's rate"
    )
    step_size_up: Count = Field(2000, description="units from bottom to top")
    step_size_down: Count | None = Field(None, description="units from top to bottom; null for as many")
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: Gamma | None = Field(
        None, description="of exp_range, which needs it: times the height, every unit"
    )

    @model_validator(mode="after")
    def _gamma_is_of_exp_range(self) -> "CyclicConfig":
        if (self.mode == "exp_range") != (self.gamma is not None):
            raise ValueError(
                f"mode {self.mode} with gamma {self.gamma}: exp_range needs a gamma below 1, such as 0.999, and the others have "
                "none; change one of them"
            )
        return self


class OneCycleConfig(ByStep):
    """One rise and one fall over the whole fit (`OneCycleLR`; Smith and Topin 2019); its top is the optimiser's rate."""

    pct_start: Annotated[float, Field(gt=0, lt=1)] = Field(0.3, description="share of the fit that rises")
    anneal_strategy: Literal["cos", "linear"] = "cos"
    three_phase: StrictBool = False
    div_factor: Annotated[float, Field(ge=1)] = Field(
        25.0, description="the top, divided by this, is the start"
    )
    final_div_factor: Annotated[float, Field(ge=1)] = Field(
        1e4, description="the start, divided by this, is the end"
    )
    cycle_momentum: StrictBool | None = Field(
        None,
        description="momentum, or the first of betas, moves the other way; null: where the optimiser has one",
    )
    base_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.85
    max_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _warms_up_itself(self) -> "OneCycleConfig":
        if self.warmup:
            raise ValueError(f"one_cycle rises by itself: use pct_start in place of warmup: {self.warmup}")
        return self

    @model_validator(mode="after")
    def _momentum_falls_first(self) -> "OneCycleConfig":
        if self.base_momentum > self.max_momentum:
            raise ValueError(
                f"base_momentum: {self.base_momentum:g} is above max_momentum: {self.max_momentum:g}, and the momentum goes from "
                "max to base and back; give base_momentum the smaller one"
            )
        return self


class PlateauConfig(ScheduleConfig):
    """Times factor where the validation score stops improving (`ReduceLROnPlateau`); counts in epochs.

    The score is the first metric of `evaluation.scoring`.
    """

    unit: Literal["epoch"] = "epoch"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = Field(3, description="epochs without improvement that are borne")
    min_delta: Annotated[float, Field(gt=0)] = Field(
        1e-4, description="margin of an improvement; keeps float noise from deciding"
    )
    cooldown: Annotated[int, Field(ge=0)] = Field(0, description="epochs after a fall before it counts again")
    min_factor: Share = Field(0.0, description="share of the rate below which it does not fall")


class InverseSquareRootConfig(ByStep):
    """Falls as sqrt(s / (s + t)), t units after the warm-up (Vaswani et al. 2017, equation 3)."""

    timescale: Count | None = Field(None, description="s; null for the warm-up's length, or 1000 without one")


SCHEDULES: dict[str, type[Config]] = {
    "constant": ConstantConfig,
    "step": StepConfig,
    "multi_step": MultiStepConfig,
    "exponential": ExponentialConfig,
    "polynomial": PolynomialConfig,
    "cosine": CosineConfig,
    "cosine_warm_restarts": CosineWarmRestartsConfig,
    "cyclic": CyclicConfig,
    "one_cycle": OneCycleConfig,
    "reduce_on_plateau": PlateauConfig,
    "inverse_square_root": InverseSquareRootConfig,
}
ScheduleChoice = Annotated[Config, Choice(SCHEDULES)]
