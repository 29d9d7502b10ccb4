"""`evaluation.cv`: how rows are dealt into folds."""

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat

from shoal.cluster.components import Choice
from shoal.cluster.config import Config, Duration


def _text_alone(value: Any) -> Any:
    if isinstance(value, str | timedelta):
        return value
    raise ValueError("a whole number of rows from 1 on, or a duration such as 90d")


Splits = Annotated[int, Field(ge=2, le=1000)]
DurationText = Annotated[Duration, BeforeValidator(_text_alone)]
Span = Annotated[NonNegativeFloat | Duration, Field(union_mode="left_to_right")]


class CountedConfig(Config):
    """Splitters that are told how many folds to make share this."""

    n_splits: Splits = 5


class AutoConfig(CountedConfig):
    """Chosen from the data: by time, by group, by class, or at random."""


class KFoldConfig(CountedConfig):
    """At random, folds of equal size."""


class StratifiedConfig(CountedConfig):
    """Each fold has the class shares of all rows."""


class GroupConfig(CountedConfig):
    """Whole groups (`data.group`), folds of about equal size."""


class StratifiedGroupConfig(CountedConfig):
    """Whole groups (`data.group`), class shares as near as they allow."""


class RepeatedConfig(CountedConfig):
    """At random, again and again with another order."""

    n_repeats: Annotated[int, Field(ge=2, le=100)] = 2


class RepeatedStratifiedConfig(RepeatedConfig):
    """By class, again and again with another order."""


class LeaveOneGroupOutConfig(Config):
    """A fold for each group (`data.group`)."""


class TimeSeriesConfig(CountedConfig):
    """Train on the past, judge on the block after it (`data.time`); equal time stamps stay together."""

    gap: Span | None = Field(
        None,
        description="left out before each block: a duration, or a number in the unit of a numeric column",
    )
    max_train_size: Annotated[int, Field(ge=1)] | DurationText | None = Field(
        None,
        description="a sliding window: the latest training rows, as many as this number, or those of a duration such as 90d; "
        "null for all (expanding)",
    )
    groups: Literal["allow", "drop"] = Field(
        "drop", description="groups that a block judges: keep or drop their training rows"
    )


class PurgedConfig(CountedConfig):
    """Blocks of time (`data.time`), trained on what lies before and after, less what touches the block."""

    purge: Span | None = Field(None, description="left out on both sides of each block")
    embargo: Span | None = Field(None, description="left out after each block, beyond the purge")
    groups: Literal["allow", "drop"] = Field(
        "drop", description="groups that a block judges: keep or drop their training rows"
    )


class ColumnConfig(Config):
    """A fold for each value of a column."""

    name: Annotated[str, Field(min_length=1)]


FOLDS: dict[str, type[Config]] = {
    "auto": AutoConfig,
    "kfold": KFoldConfig,
    "stratified": StratifiedConfig,
    "group": GroupConfig,
    "stratified_group": StratifiedGroupConfig,
    "repeated": RepeatedConfig,
    "repeated_stratified": RepeatedStratifiedConfig,
    "leave_one_group_out": LeaveOneGroupOutConfig,
    "time_series": TimeSeriesConfig,
    "purged": PurgedConfig,
    "column": ColumnConfig,
}


def _number_of_folds(value: Any) -> Any:
    return {"auto": {"n_splits": value}} if isinstance(value, int) and not isinstance(value, bool) else value


FoldsChoice = Annotated[Config, Choice(FOLDS), BeforeValidator(_number_of_folds)]


class NestedConfig(Config):
    """A choice among alternatives by inner folds, made anew inside each outer fold, which judges it (Varma and Simon 2006)."""

    outer: FoldsChoice = Field(AutoConfig(), description="the folds that judge")
    inner: FoldsChoice = Field(
        AutoConfig(n_splits=3), description="the folds of the training rows of each, that choose"
    )


CV: dict[str, type[Config]] = {**FOLDS, "nested": NestedConfig}
CvChoice = Annotated[Config, Choice(CV), BeforeValidator(_number_of_folds)]
