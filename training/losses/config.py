"""The losses of `training.loss`."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from shoal.cluster.components import Choice
from shoal.cluster.config import Config
from shoal.cluster.wording import must_be, shown

Weight = Annotated[float, Field(gt=0)]


class EffectiveNumberConfig(Config):
    """Weights that grow as the number of rows that tell something new falls (Cui et al. 2019, equation 2)."""

    beta: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="0 weighs all classes alike; near 1 as balanced does"
    )


EFFECTIVE, BY_COSTS = "effective_number", "costs"


def _readable(weights: Any) -> Any:
    """Refuse a table that cannot be read, in words that pydantic has not for one of several ways to write it."""
    if weights == EFFECTIVE:
        return {EFFECTIVE: EffectiveNumberConfig()}
    if not isinstance(weights, Mapping):
        return weights
    if not weights:
        raise ValueError(
            "it weighs no class; give {class: weight}, balanced or effective_number, or leave it out"
        )
    if EFFECTIVE in weights:
        others = [str(name) for name in weights if name != EFFECTIVE]
        if others:
            raise ValueError(
                f"{EFFECTIVE} weighs all classes, and {', '.join(others[:5])} {'is' if len(others) == 1 else 'are'} "
                "there too; give one of the two"
            )
        return {EFFECTIVE: _effective_number(weights[EFFECTIVE])}
    wrong = [f"{name} is {shown(weight)}" for name, weight in weights.items() if not _is_weight(weight)]
    if wrong:
        raise ValueError(f"{', '.join(wrong[:5])}; a class's weight must be a number above 0, such as 2.5")
    return weights


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _effective_number(value: Any) -> EffectiveNumberConfig:
    try:
        return EffectiveNumberConfig.model_validate({} if value is None else value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name, fix = ".".join([EFFECTIVE, *map(str, first["loc"])]), "such as {effective_number: {beta: 0.999}}"
    if first["type"] == "extra_forbidden":
        raise ValueError(f"{name} is not a key; allowed: beta, {fix}")
    raise ValueError(f"{name} is {shown(first['input'])}; it must be {must_be(first)}, {fix}")


ClassWeights = Literal["balanced", "costs"] | dict[str | int | float | bool, Weight | EffectiveNumberConfig]


class LossConfig(Config):
    """What all losses of classes share."""

    class_weights: Annotated[ClassWeights | None, BeforeValidator(_readable)] = Field(
        None,
        description="balanced, costs (what mistakes on a class cost, by evaluation.costs), {effective_number: {beta: …}}, or "
        "{class: weight}, where a class not named weighs 1; of several labels, the weight of the rows that have the label",
    )


class AutoLossConfig(Config):
    """cross_entropy for classes, bce for several labels, squared_error for numbers."""


class CrossEntropyConfig(LossConfig):
    """Negative log likelihood of the class."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each label spread evenly over all classes (Szegedy et al. 2016, section 7)"
    )


class BCEConfig(LossConfig):
    """Binary cross-entropy of the event, or the mean over several labels."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each label spread evenly over yes and no"
    )


class FocalConfig(LossConfig):
    """Cross-entropy that counts well-classified rows less (Lin et al. 2017, equations 4 and 5)."""

    gamma: Annotated[float, Field(ge=0)] = Field(2.0, description="0 is cross-entropy")


class LDAMConfig(LossConfig):
    """Margins that are wider for rarer classes (Cao et al. 2019, equation 13)."""

    max_margin: Annotated[float, Field(gt=0)] = Field(
        0.5, description="of the rarest class, in units of logits"
    )
    scale: Annotated[float, Field(gt=0)] = Field(1.0, description="times the logits with margins")
    reweight_from: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the epochs before class_weights begin (deferred re-weighting, their section 3.3)",
    )

    @model_validator(mode="after")
    def _reweights_by_something(self) -> "LDAMConfig":
        if self.reweight_from and self.class_weights is None:
            raise ValueError(
                f"reweight_from: {self.reweight_from:g} says when class_weights begin, and there are none: give class_weights, "
                "such as balanced, or leave reweight_from out"
            )
        return self


class LogitAdjustedConfig(LossConfig):
    """Logits with tau times the log of each class's share added (Menon et al. 2021, equation 10)."""

    tau: Annotated[float, Field(ge=0)] = Field(1.0, description="0 is cross-entropy")


class SquaredErrorConfig(Config):
    """Squared error, in units of the target's standard deviation over training rows: predicts the mean."""


class HuberConfig(Config):
    """Squared near zero, absolute beyond delta (Huber 1964): the mean with less weight on outliers."""

    delta: Annotated[float, Field(gt=0)] = Field(1.0, description="in standard deviations of the target")


class QuantileConfig(Config):
    """Pinball loss (Koenker and Bassett 1978): predicts a quantile, .5 the median."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5


class PoissonConfig(Config):
    """Negative log likelihood of a Poisson with a log link: predicts the mean of counts, never below 0."""


LOSSES: dict[str, type[Config]] = {
    "auto": AutoLossConfig,
    "cross_entropy": CrossEntropyConfig,
    "bce": BCEConfig,
    "focal": FocalConfig,
    "ldam": LDAMConfig,
    "logit_adjusted": LogitAdjustedConfig,
    "squared_error": SquaredErrorConfig,
    "huber": HuberConfig,
    "quantile": QuantileConfig,
    "poisson": PoissonConfig,
}
LossChoice = Annotated[Config, Choice(LOSSES)]
