"""The `data` section: where the rows are, what the columns mean, how they are split."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeFloat, Tag, model_validator

from shoal.cluster.components import Choice
from shoal.cluster.config import Config, Duration
from shoal.cluster.sharding.imbalance.config import ImbalanceChoice

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Task = Literal["auto", "binary", "multiclass", "multilabel", "regression"]
PlainType = Literal["numeric", "boolean", "categorical", "timestamp", "tensor"]
ColumnType = Literal["numeric", "boolean", "categorical", "timestamp", "tensor", "image", "text"]
Side = Annotated[int, Field(ge=1, le=4096)]
Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0)]


def _as_tuple(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError("it must be a text or a list of texts")
    if value == "" or (not isinstance(value, str) and "" in value):
        raise ValueError("an empty text names nothing")
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | tuple[str, ...])]


class ImageConfig(Config):
    """A column of images: encoded (PNG, JPEG, …), paths of such files, or raw bytes of a stated shape."""

    size: Side | tuple[Side, Side] | None = Field(
        None, description="height and width: cut to their ratio around the middle, and scaled"
    )
    shape: tuple[Side, Side] | tuple[Side, Side, Literal[1, 3]] | None = Field(
        None, description="of raw pixels, a byte each: [height, width] or [height, width, channels]"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 grey, 3 colours (default: 3, or those of shape)"
    )
    mean: Level | tuple[Level, ...] = Field(
        0.5, description="subtracted from pixels of 0 to 1; one, or one a channel"
    )
    std: Spread | tuple[Spread, ...] = Field(0.5, description="by which they are then divided")

    @model_validator(mode="after")
    def _has_a_size(self) -> "ImageConfig":
        if self.size is None and self.shape is None:
            raise ValueError(
                "size is missing: give size: 224, or the shape of raw pixels, such as shape: [28, 28]"
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.depth:
                raise ValueError(
                    f"{name} has {len(value)} numbers for {self.depth} channels; give one a channel, or one"
                )
        return self

    @property
    def depth(self) -> int:
        """How many channels a model gets."""
        if self.channels is not None:
            return self.channels
        if self.shape is None:
            return 3
        return self.shape[2] if len(self.shape) == 3 else 1

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width."""
        if self.size is not None:
            return (self.size, self.size) if isinstance(self.size, int) else self.size
        assert self.shape is not None
        return self.shape[0], self.shape[1]


class TextConfig(Config):
    """A column of texts, cut into tokens by a tokenizer in a local folder; nothing is fetched."""

    tokenizer: Annotated[str, Field(min_length=1)] = Field(
        description="folder of a Hugging Face tokenizer, or its tokenizer.json"
    )
    max_length: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256, description="tokens kept of a text, the first ones"
    )


MEDIA: dict[str, type[Config]] = {"image": ImageConfig, "text": TextConfig}
_MediaChoice = Annotated[Config, Choice(MEDIA, importable=False), Tag("dict[media]")]
TypeChoice = Annotated[
    Annotated[PlainType, Tag("literal[type]")] | _MediaChoice,
    Discriminator(
        lambda value: "literal[type]" if isinstance(value, str) and value not in MEDIA else "dict[media]"
    ),
]


class TimeSplit(Config):
    """Train on the past, test on the future. Equal time stamps stay together."""

    test: Fraction | None = Field(None, description="share of rows, the latest ones (default 0.2)")
    validation: Fraction = Field(0.1, description="share of rows, the latest before the test rows")
    test_from: datetime | date | float | None = Field(None, description="first time stamp of the test rows")
    validation_from: datetime | date | float | None = None
    gap: Annotated[NonNegativeFloat | Duration, Field(union_mode="left_to_right")] | None = Field(
        None,
        description="left out between one part and the next: a duration, or a number in the unit of a numeric column",
    )

    @model_validator(mode="after")
    def _one_way(self) -> "TimeSplit":
        if self.test is not None and self.test_from is not None:
            raise ValueError("test and test_from exclude each other: give the share or the date")
        return self


class HashSplit(Config):
    """A row's part follows from a hash of its id, so rows never move when data grow."""

    test: Fraction = 0.2
    validation: Fraction = 0.1


class SplitConfig(Config):
    """Which rows train, validate and test.

    Without `time`, `hash` or `column`: by `data.time` where it is given, by `data.group` where that
    is given, otherwise stratified by class.
    """

    test: Fraction = 0.2
    validation: Fraction = 0.1
    time: TimeSplit | None = None
    hash: HashSplit | None = None
    column: str | None = Field(None, description="column that holds train, validation or test")
    groups: Literal["allow", "drop"] | None = Field(
        None, description="groups on both sides of a time split: keep them, or drop their training rows"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "SplitConfig":
        named = [name for name in ("time", "hash", "column") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} exclude each other: keep one")
        if self.test + self.validation >= 1:
            raise ValueError(
                f"test {self.test} and validation {self.validation} leave no training rows; "
                "their sum must be below 1"
            )
        return self


class DataConfig(Config):
    """The rows: `path` and `target` are enough."""

    path: Names = Field(
        min_length=1,
        description="a Parquet file, folder, glob or list of them; local (from the current directory) or remote",
    )
    target: Names = Field(min_length=1, description="column to predict; a list of columns for multi-label")
    task: Task = "auto"
    positive: str | bool | int | float | None = Field(
        None, description="binary: the value that is the event (default: the rarer)"
    )
    group: str | None = Field(None, description="rows of one group stay in one part")
    domain: str | None = Field(
        None,
        description="column that says which of several source domains a row is of, for shoal adapt; never a feature",
    )
    time: str | None = Field(None, description="column that orders time splits")
    id: str | None = Field(None, description="carried into predictions, never a feature")
    features: Names | None = Field(None, description="use these columns only")
    drop: Names = Field((), description="columns to leave out")
    private: Names = Field((), description="never in logs, errors or reports")
    types: dict[str, TypeChoice] = Field(
        {},
        description="column to type, where the inferred one is wrong; {image: …} and {text: …} are never inferred",
    )
    scaling: dict[str, Literal["each", "whole", "none"]] = Field(
        {},
        description="column of numbers to how they are standardised: each number of a list by itself (the default), the whole "
        "list by one mean and deviation (pixels, word counts), or not",
    )
    max_categories: int = Field(10_000, ge=2, description="categories kept a column, the most frequent ones")
    split: SplitConfig = SplitConfig()
    imbalance: ImbalanceChoice | None = Field(
        None, description="how the training rows are resampled; the others never are"
    )
    shards: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = Field(
        "auto", description="logical shards of each part; the most workers that can train"
    )

    @model_validator(mode="after")
    def _roles(self) -> "DataConfig":
        if self.features is not None and self.drop:
            raise ValueError("features and drop exclude each other: name what to use or what to leave out")
        if twice := sorted({name for name in self.target if self.target.count(name) > 1}):
            raise ValueError(f"target names {', '.join(map(repr, twice))} more than once")
        roles = {
            name: role
            for role in ("group", "domain", "time", "id")
            if (name := getattr(self, role)) is not None
        }
        for name in self.target:
            if name in roles or name in self.drop or name in (self.features or ()):
                raise ValueError(
                    f"target {name!r} cannot also be a feature, dropped, a group, a domain, a time or an id"
                )
        return self
