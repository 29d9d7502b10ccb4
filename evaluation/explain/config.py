"""The `evaluation.explain` section."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shoal.cluster.config import Config

Method = Literal[
    "permutation",
    "partial_dependence",
    "shap",
    "lime",
    "integrated_gradients",
    "gradient_shap",
    "deep_lift",
    "saliency",
]
Methods = Annotated[tuple[Method, ...], Field(min_length=1)]
Columns = tuple[str | tuple[str, str], ...]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) and value != "auto" else value


class ExplainConfig(Config):
    """How `shoal explain` explains. No part of a run's identity: nothing is fitted or judged by it."""

    methods: Annotated[
        Methods, BeforeValidator(_as_tuple, json_schema_input_type=str | tuple[Method, ...])
    ] = ("permutation", "partial_dependence", "shap")
    part: Literal["auto", "test", "validation"] = Field(
        "auto", description="which rows; auto: test, where there are some, otherwise validation"
    )
    sample: Annotated[int, Field(ge=2)] = Field(
        5_000, description="rows over which importance and dependence are averaged, at most"
    )
    rows: Annotated[int, Field(ge=1)] = Field(200, description="rows explained one by one, at most")
    background: Annotated[int, Field(ge=1)] = Field(
        30, description="rows that an explained one is compared with, drawn from the same part"
    )
    columns: (
        Annotated[Columns, BeforeValidator(_as_tuple, json_schema_input_type=str | Columns)] | Literal["auto"]
    ) = Field(
        "auto",
        description="of partial dependence, a pair for both together; auto: the six most important ones",
    )
    groups: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(
        {}, description="columns to permute together, by a name of yours; correlated ones are, anyway"
    )
    repeats: Annotated[int, Field(ge=1)] = Field(5, description="permutations of each column")
    coalitions: Annotated[int, Field(ge=2)] | Literal["auto"] = Field(
        "auto",
        description="of columns, asked by shap; auto: 2 x columns + 512, and all of them where they are no more",
    )
    neighbours: Annotated[int, Field(ge=10)] = Field(
        1000, description="answers that lime is fitted to, a row"
    )
