"""What a sharded dataset says of itself: `manifest.json`.

The sharding pass fits the statistics of every column on the training rows and writes *prepared* rows:

- ``numeric``      float32 ``[n, D]``: numbers standardised, booleans 0 or 1, time stamps as parts; NaN where missing
- ``categorical``  int32 ``[n, C + W]``: of a category 0 missing, 1 unknown or rare, 2 and up those of the column; then the
  block of each text (its tokens, -1 behind the last one) and of each image (its pixels, four bytes in a number)
- ``label``        int64 ``[n]`` class index, float32 ``[n, K]`` multi-label, or float64 ``[n]`` regression (raw units)
- ``row_id``       the id column, or an int64 that identifies the row by its content
- ``cost``         float64 ``[n, C]``, the cost columns as they are in the data; only where there are some
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import StorageError
from shoal.cluster.sharding.config import ColumnType
from shoal.cluster.storage import Storage

MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
MISSING, OTHER, FIRST_CATEGORY = 0, 1, 2

Scalar = bool | int | float | str


class Tokens(Config):
    """How a text becomes tokens."""

    file: str = Field(
        repr=False, description="the tokenizer's JSON, deflated, in base64: the model needs no other file"
    )
    max_length: int
    vocabulary: int = Field(description="how many tokens there are")
    padding: int = Field(description="the token that a model gets behind the last one")

    @property
    def block(self) -> int:
        """How many numbers of the codes a text takes."""
        return self.max_length


class Pixels(Config):
    """How an image becomes pixels."""

    height: int
    width: int
    channels: Literal[1, 3]
    raw: tuple[int, ...] | None = Field(None, description="shape of the bytes, where they are pixels already")
    mean: tuple[float, ...] = Field(description="of each channel, subtracted from pixels of 0 to 1")
    std: tuple[float, ...]
    folder: str = Field("", description="where paths begin that are not absolute")
    storage: StorageConfig = StorageConfig()

    @property
    def bytes(self) -> int:
        """How many bytes an image takes."""
        return self.height * self.width * self.channels

    @property
    def block(self) -> int:
        """How many numbers of the codes an image takes."""
        return math.ceil(self.bytes / 4)


class Column(Config):
    """One feature column and the statistics that prepare it, fitted on training rows."""

    name: str
    type: ColumnType
    arrow_type: str
    reason: str = Field("", description="why this type, in a few words")
    parts: tuple[str, ...] = Field(
        (), description="names of its numeric features; one for a number, more for a time stamp"
    )
    origin: int = Field(
        0, description="subtracted from integers that a float64 does not hold, before they are floats"
    )
    center: tuple[float, ...] = Field((), description="subtracted from each part")
    scale: tuple[float, ...] = Field((), description="each part is divided by it")
    has_missing: bool = Field(
        False, description="whether training rows miss it (an indicator is then a feature too)"
    )
    categories: tuple[Scalar, ...] = Field((), description="values of code 2 and up, most frequent first")
    value_type: Literal["string", "integer", "boolean", "float", ""] = ""
    tokens: Tokens | None = Field(None, description="of a text")
    pixels: Pixels | None = Field(None, description="of an image")

    @property
    def width(self) -> int:
        """How many numeric features the column gives."""
        return len(self.parts)

    @property
    def is_numeric(self) -> bool:
        """Whether it gives numbers, rather than codes, tokens or pixels."""
        return self.type not in ("categorical", "text", "image")

    @property
    def of_kind(self) -> str:
        """The type with its article, for messages."""
        return f"an {self.type}" if self.type == "image" else f"a {self.type}"

    @property
    def gives(self) -> str:
        """What a model gets of it, for reading."""
        if self.tokens is not None:
            return f"{self.tokens.max_length:,} tokens"
        if self.pixels is not None:
            return f"{self.pixels.height} x {self.pixels.width} x {self.pixels.channels} pixels"
        count, what = (self.cardinality, "code") if self.type == "categorical" else (self.width, "number")
        return f"{count:,} {what}{'' if count == 1 else 's'}"

    @property
    def block(self) -> int:
        """How many numbers behind the category codes a text or an image takes; 0 for the other types."""
        found = self.tokens or self.pixels
        return 0 if found is None else found.block

    @property
    def cardinality(self) -> int:
        """How many codes the column has, missing and unknown included."""
        return FIRST_CATEGORY + len(self.categories)


class Target(Config):
    """What is predicted."""

    columns: tuple[str, ...]
    task: Literal["binary", "multiclass", "multilabel", "regression"]
    reason: str = ""
    classes: tuple[Scalar, ...] = Field(
        (), description="binary: the event is the second; multi-label: label names"
    )
    center: float = 0.0
    scale: float = 1.0
    prior_correction: tuple[float, ...] = Field(
        (),
        description="added to the log odds of the classes: their shares before resampling over those after, in logs",
    )
    link: Literal["identity", "log"] = Field(
        "identity", description="of a number: scale x output + center, or center x exp(output)"
    )

    @model_validator(mode="after")
    def _has_its_classes(self) -> Self:
        least = {"binary": 2, "multiclass": 2, "multilabel": 1, "regression": 0}[self.task]
        if len(self.classes) < least or (self.task == "binary" and len(self.classes) > least):
            raise ValueError(f"{self.task} with {len(self.classes)} classes; it needs {least}")
        return self

    def shown(self, before: Sequence[float], after: Sequence[float]) -> Self:
        """Return the target of a model to which classes of shares ``before`` were shown with shares ``after``.

        The correction is added to one that is there. Sizes will do for shares; a class without rows has no correction.
        """
        earlier = self.prior_correction or (0.0,) * len(before)
        whole, seen = math.fsum(before), math.fsum(after)
        shift = [
            there + (math.log(old / whole) - math.log(new / seen) if old > 0 and new > 0 else 0.0)
            for there, old, new in zip(earlier, before, after, strict=True)
        ]
        moved = any(abs(amount) > 1e-12 for amount in shift)  # beyond the rounding of equal shares
        return self.model_copy(update={"prior_correction": tuple(shift) if moved else ()})

    @property
    def n_outputs(self) -> int:
        """How many logits a model gives: 1 for binary and regression."""
        return len(self.classes) if self.task in ("multiclass", "multilabel") else 1


class Schema(Config):
    """Raw columns in, prepared tensors out; the same for shards, `predict` and explanations."""

    columns: tuple[Column, ...]
    target: Target
    id: str | None = None
    private: tuple[str, ...] = ()
    costs: tuple[str, ...] = Field(
        (), description="columns that are carried as costs; they may be features too"
    )
    domains: tuple[str, ...] = Field(
        (),
        description="names of the rows' domains, whose number is carried behind the costs; empty for one domain",
    )

    @property
    def numeric(self) -> tuple[Column, ...]:
        """Columns that give numeric features, in order."""
        return tuple(c for c in self.columns if c.is_numeric)

    @property
    def categorical(self) -> tuple[Column, ...]:
        """Columns that give codes, in order."""
        return tuple(c for c in self.columns if c.type == "categorical")

    @property
    def media(self) -> tuple[Column, ...]:
        """Texts and images, in order."""
        return tuple(c for c in self.columns if c.block)

    @property
    def codes_width(self) -> int:
        """C + W, the width of the codes: one a category, then the blocks of texts and images."""
        return len(self.categorical) + sum(c.block for c in self.columns)

    @property
    def numeric_width(self) -> int:
        """D, the width of the prepared numeric matrix."""
        return sum(c.width for c in self.numeric)


class ShardFile(Config):
    """One logical shard of one split."""

    path: str = Field(description="relative to the manifest")
    rows: int
    bytes: int
    sha256: str
    class_counts: tuple[int, ...] = ()


class Split(Config):
    """The rows of one part, dealt over the V logical shards."""

    rows: int
    class_counts: tuple[int, ...] = ()
    shards: tuple[ShardFile, ...]


class Resampling(Config):
    """What became of the training rows; their `Split` counts what there is now."""

    method: dict[str, Any] = Field(description="its name, or where it is imported from, and its arguments")
    class_counts_before: tuple[int, ...]
    synthetic: int = Field(description="rows that were made")
    parents: str = Field("", description="the file that names their parents, relative to the manifest")


class Manifest(Config):
    """A sharded dataset: the only input of a fit."""

    version: Literal[1] = 1
    key: str = Field(description="hash of inputs, data section and seed")
    seed: int
    schema_: Schema = Field(alias="schema")
    splits: dict[Literal["train", "validation", "test"], Split]
    n_shards: int
    sources: tuple[str, ...] = Field((), description="input files, credentials redacted")
    rows_read: int
    left_out: dict[str, int] = Field({}, description="rows left out, by reason")
    dropped: dict[str, str] = Field({}, description="columns left out, with the reason")
    split_kind: str = Field("", description="how the rows were split, in a few words")
    resampling: Resampling | None = None
    cost_sums: dict[str, tuple[float, ...]] = Field(
        {}, description="each cost column, summed over the training rows of each class, before resampling"
    )
    notices: tuple[str, ...] = Field((), description="what was inferred and left out, as said aloud")


def read_manifest(folder: Storage, name: str, fix: str) -> Manifest:
    """Read what a dataset, or a run of its rows, says of it.

    Parameters
    ----------
    folder, name
        Where the file is.
    fix
        What to do when it is damaged.

    Raises
    ------
    StorageError
        If it cannot be read, is damaged, or of another version.
    """
    data = folder.read_bytes(name)
    try:
        return Manifest.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'top level'}: {first['msg'].lower()}"
    except ValueError:
        reason = f"its {len(data):,} bytes are not JSON"
    raise StorageError(f"{name} in {folder.uri} is damaged or of another version ({reason}): {fix}")
