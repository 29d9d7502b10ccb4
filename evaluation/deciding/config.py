"""`evaluation.costs` and `evaluation.threshold`."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from shoal.cluster.config import Config
from shoal.cluster.wording import shown


class CostColumn(Config):
    """A cost of each row: the value of a numeric column of the data."""

    column: Annotated[str, Field(min_length=1)] = Field(description="its name; it may be a feature too")


def _number_or_column(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    named = isinstance(value, Mapping) and set(value) == {"column"} and isinstance(value["column"], str)
    if not (number or named or isinstance(value, CostColumn)):
        raise ValueError(
            f"{shown(value)} is not allowed; it must be a finite number, or {{column: NAME}} for the numbers in a column"
        )
    return value


Amount = Annotated[
    float | CostColumn, BeforeValidator(_number_or_column, json_schema_input_type=float | CostColumn)
]
ClassName = str | int | float | bool
MAXIMISED = ("f1", "balanced_accuracy", "mcc", "accuracy")


class CostsConfig(Config):
    """What decisions cost, by name, each a number or ``{column: …}``; a negative cost is a benefit."""

    false_positive: Amount | None = Field(None, description="binary: of deciding the event where it is not")
    false_negative: Amount | None = Field(None, description="binary: of missing the event")
    true_positive: Amount = Field(0.0, description="binary: of deciding the event where it is")
    true_negative: Amount = Field(0.0, description="binary: of leaving alone what is no event")
    actual: dict[ClassName, dict[ClassName, Amount]] | None = Field(
        None,
        description="by class: {actual class: {decided class: cost}}; deciding right costs 0 unless given",
    )
    otherwise: Amount | None = Field(
        None, description="cost of every mistake that actual does not name; of all of them without actual"
    )
    unit: Annotated[str, Field(max_length=20)] = Field("", description="such as EUR or minutes")

    @model_validator(mode="after")
    def _one_way(self) -> "CostsConfig":
        given = self.model_fields_set & {"false_positive", "false_negative", "true_positive", "true_negative"}
        wrong = (self.false_positive, self.false_negative)
        if self.actual is not None or self.otherwise is not None:
            if any(cost is not None for cost in wrong) or self.true_positive != 0 or self.true_negative != 0:
                by_class = "actual" if self.actual is not None else "otherwise"
                raise ValueError(f"give either {by_class} or {' and '.join(sorted(given))}, not both")
            return self
        if self.false_positive is None or self.false_negative is None:
            raise ValueError(
                "give false_positive and false_negative, or the costs by class, such as {actual: {ill: {well: 25}}, "
                "otherwise: 1}"
            )
        pairs = ((self.false_positive, self.true_negative), (self.false_negative, self.true_positive))
        if any(isinstance(m, float) and isinstance(r, float) and m <= r for m, r in pairs):
            raise ValueError(
                f"each mistake must cost more than deciding right: false_positive ({_said(self.false_positive)}) more than "
                f"true_negative ({_said(self.true_negative)}), and false_negative ({_said(self.false_negative)}) more than "
                f"true_positive ({_said(self.true_positive)}); otherwise one class would be decided whatever the probability "
                "(Elkan 2001)"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in which costs stand, sorted."""
        of_classes = [cost for row in (self.actual or {}).values() for cost in row.values()]
        named = (
            self.false_positive,
            self.false_negative,
            self.true_positive,
            self.true_negative,
            self.otherwise,
        )
        return tuple(sorted({c.column for c in (*named, *of_classes) if isinstance(c, CostColumn)}))


def _said(amount: "float | CostColumn") -> str:
    return f"column {amount.column!r}" if isinstance(amount, CostColumn) else f"{amount:g}"


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
    if isinstance(value, Mapping) and "column" in value:
        raise ValueError(
            "it does not say what the column is the cost of; write such as {false_positive: 1, false_negative: {column: amount}}"
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
