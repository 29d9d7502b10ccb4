"""`evaluation.costs` and `evaluation.threshold`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from shoal.cluster.config import Config

Amount = Annotated[float, Field(allow_inf_nan=False)]
ClassName = str | int | float | bool
MAXIMISED = ("f1", "balanced_accuracy", "mcc", "accuracy")


class CostsConfig(Config):
    """What decisions cost, by name; a negative cost is a benefit."""

    false_positive: Amount | None = Field(None, description="binary: of deciding the event where it is not")
    false_negative: Amount | None = Field(None, description="binary: of missing the event")
    true_positive: Amount = Field(0.0, description="binary: of deciding the event where it is")
    true_negative: Amount = Field(0.0, description="binary: of leaving alone what is no event")
    actual: dict[ClassName, dict[ClassName, Amount]] | None = Field(
        None,
        description="by class: {actual class: {decided class: cost}}; deciding right costs 0 unless given",
    )
    otherwise: Amount | None = Field(None, description="cost of every mistake that actual does not name")
    unit: Annotated[str, Field(max_length=20)] = Field("", description="such as EUR or minutes")

    @model_validator(mode="after")
    def _one_way(self) -> "CostsConfig":
        given = self.model_fields_set & {"false_positive", "false_negative", "true_positive", "true_negative"}
        wrong = (self.false_positive, self.false_negative)
        if self.actual is not None:
            if any(cost is not None for cost in wrong) or self.true_positive or self.true_negative:
                raise ValueError(f"give either actual or {' and '.join(sorted(given))}, not both")
            return self
        if self.otherwise is not None:
            raise ValueError(
                "otherwise is the cost of the mistakes that actual does not name; give actual too"
            )
        if self.false_positive is None or self.false_negative is None:
            raise ValueError(
                "give false_positive and false_negative, or the costs by class, such as {actual: {ill: {well: 25}}, "
                "otherwise: 1}"
            )
        if self.false_positive <= self.true_negative or self.false_negative <= self.true_positive:
            raise ValueError(
                f"each mistake must cost more than deciding right: false_positive ({self.false_positive:g}) more than "
                f"true_negative ({self.true_negative:g}), and false_negative ({self.false_negative:g}) more than true_positive "
                f"({self.true_positive:g}); otherwise one class would be decided whatever the probability (Elkan 2001)"
            )
        return self


class MaximiseConfig(Config):
    """The threshold at which a score is highest on the validation rows."""

    maximise: Literal["f1", "balanced_accuracy", "mcc", "accuracy"]


def _no_matrix(value: Any) -> Any:
    if isinstance(value, list | tuple):
        raise ValueError(
            "a matrix does not say whether its rows are actual or decided classes: [[0, 1], [25, 0]] gives the threshold 1/26 "
            "in one way and 25/26 in the other; name the costs, such as {false_positive: 1, false_negative: 25}, or by class "
            "{actual: {ill: {well: 25}}, otherwise: 1}"
        )
    return value


def _known_threshold(value: Any) -> Any:
    named = isinstance(value, str) and value in ("auto", "optimal", "empirical")
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
    score = isinstance(value, Mapping) and set(value) == {"maximise"} and value["maximise"] in MAXIMISED
    if not (named or number or score or isinstance(value, MaximiseConfig)):
        raise ValueError(
            "it must be a number above 0 and below 1, auto, optimal, empirical, or {maximise: a score} with "
            f"{', '.join(MAXIMISED[:-1])} or {MAXIMISED[-1]}"
        )
    return value


CostsField = Annotated[
    CostsConfig | None, BeforeValidator(_no_matrix, json_schema_input_type=CostsConfig | None)
]
Threshold = Annotated[
    Literal["auto", "optimal", "empirical"] | float | MaximiseConfig, BeforeValidator(_known_threshold)
]
