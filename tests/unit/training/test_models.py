from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder
from support.prepared import make_part, make_schema
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.sharding.manifest import Schema
from shoal.training.config import LinearConfig, MLPConfig
from shoal.training.models import InputEncoder, Model, build_model, embedding_width


class ByType(nn.Module):
    def __init__(self, schema: Schema, n_outputs: int) -> None:
        super().__init__()
        self.width = schema.numeric_width + sum(c.has_missing for c in schema.numeric)
        self.out = nn.Linear(self.width + len(schema.categorical), n_outputs)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([numeric, categorical.to(numeric.dtype)], 1))


def encoded(schema: Schema, n_outputs: int, n_inputs: int, hidden: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(n_inputs, hidden), nn.Linear(hidden, n_outputs))


def wrong_shape(n_inputs: int, n_outputs: int) -> nn.Module:
    return nn.Linear(n_inputs, n_outputs + 1)


def no_module(n_outputs: int) -> int:
    return n_outputs


def imported(function: object, **kwargs: object) -> Imported:
    return Imported.model_validate({"import": "my_package.models:make", **kwargs})


def inputs(schema: Schema) -> tuple[torch.Tensor, torch.Tensor]:
    part = make_part(schema, 20, 0)
    return torch.from_numpy(part.numeric), torch.from_numpy(part.categorical)


def test_encoder_fills_missing_with_the_mean_flags_it_and_embeds() -> None:
    schema = make_schema()
    encoder = InputEncoder(schema)
    numeric, categorical = inputs(schema)
    numeric[3, 0] = torch.nan
    out = encoder(numeric, categorical)
    assert out.shape == (20, encoder.width) == (20, 6 + 1 + embedding_width(5) + embedding_width(9))
    assert out[3, 0] == 0
    np.testing.assert_array_equal(out[:, 6].detach(), numeric[:, 0].isnan())
    torch.testing.assert_close(out[:, 7 : 7 + 3], encoder.embeddings[0](categorical[:, 0]))
    unknown = encoder(numeric, torch.ones_like(categorical))
    assert (unknown[:, 7:] == 0).all()


def test_linear_is_linear_regression_on_one_hot_columns() -> None:
    schema = make_schema("multiclass")
    model = build_model(LinearConfig(), schema, 0)
    for p in model.parameters():
        nn.init.normal_(p)
    numeric, categorical = inputs(schema)
    one_hot = OneHotEncoder(categories=[range(5), range(9)], sparse_output=False).fit_transform(
        categorical.numpy()
    )
    body = model.body
    expected = model.encoder.fill(numeric) @ body.numbers.weight.T + body.numbers.bias  # type: ignore[union-attr,operator]
    expected = expected + torch.from_numpy(one_hot).float() @ body.categories.weight  # type: ignore[union-attr]
    torch.testing.assert_close(model(numeric, categorical), expected)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("config", [MLPConfig(hidden=(4,), dropout=0.1), LinearConfig()])
def test_outputs_by_task(task: str, config: MLPConfig | LinearConfig) -> None:
    schema = make_schema(task)
    model = build_model(config, schema, 0)
    assert model(*inputs(schema)).shape == (
        20,
        {"binary": 1, "multiclass": 3, "multilabel": 2, "regression": 1}[task],
    )


def test_only_categories_and_only_numbers() -> None:
    for schema in (make_schema(n_numeric=0), make_schema(cardinalities=())):
        for config in (MLPConfig(), LinearConfig()):
            assert build_model(config, schema, 0)(*inputs(schema)).shape == (20, 1)


def test_weights_depend_on_the_seed_alone_and_leave_torchs_state() -> None:
    schema = make_schema()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    a = build_model(MLPConfig(), schema, 1)
    assert (torch.get_rng_state() == before).all()
    torch.rand(7)
    b, c = build_model(MLPConfig(), schema, 1), build_model(MLPConfig(), schema, 2)
    assert all((x == y).all() for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any((x != y).any() for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_users_own_module_encoded_or_by_type() -> None:
    schema = make_schema("multiclass")
    model = build_model(imported(encoded, hidden=5), schema, 0, factory=encoded)
    assert model.body[0].out_features == 5  # type: ignore[index,union-attr]
    assert model(*inputs(schema)).shape == (20, 3)
    by_type = build_model(imported(ByType), schema, 0, factory=ByType)
    assert by_type(*inputs(schema)).shape == (20, 3)
    assert not list(by_type.encoder.parameters())


def test_users_mistakes_are_named() -> None:
    schema = make_schema()
    with pytest.raises(ConfigError, match="must return \\(20, 1\\)"):
        build_model(imported(wrong_shape), schema, 0, factory=wrong_shape)(*inputs(schema))
    with pytest.raises(ConfigError, match="returned int; it must return a torch.nn.Module"):
        build_model(imported(no_module), schema, 0, factory=no_module)
    with pytest.raises(ConfigError, match="could not be called.*depth"):
        build_model(imported(encoded, depth=3), schema, 0, factory=encoded)
    with pytest.raises(ConfigError, match="cannot import my_package.models:make"):
        build_model(imported(encoded), schema, 0)


class _Failing(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise ValueError("boom")


def _two_numbers() -> Any:
    number = SimpleNamespace(has_missing=False, width=2)
    return SimpleNamespace(numeric=[number], categorical=[], media=(), target=SimpleNamespace(n_outputs=1))


def test_an_error_of_the_users_module_names_its_file_and_line() -> None:
    model = Model(InputEncoder(_two_numbers()), _Failing(2, 1), 1)
    with pytest.raises(RunError, match=r"test_models\.py, line \d+: ValueError: boom"):
        model(torch.zeros(3, 2), torch.zeros(3, 0, dtype=torch.int64))


def test_a_wrong_layer_of_a_library_inside_the_users_module_is_the_users_fault_too() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 1)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.layer(input))

    with pytest.raises(RunError, match=r"test_models\.py, line \d+: RuntimeError"):
        Model(InputEncoder(_two_numbers()), Narrow(), 1)(torch.zeros(3, 2), torch.zeros(3, 0))


def test_an_error_that_is_not_the_users_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Model(InputEncoder(_two_numbers()), nn.Linear(5, 1), 1)(torch.zeros(3, 2), torch.zeros(3, 0))


def test_a_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch.nn:Identity has no parameter to train"):
        build_model(Imported(**{"import": "torch.nn:Identity"}), _two_numbers(), 0)


def failing(n_inputs: int, n_outputs: int) -> nn.Module:
    raise ZeroDivisionError(f"{n_inputs} by {n_outputs}")


def lazy(n_outputs: int) -> nn.Module:
    return nn.LazyLinear(n_outputs)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            Imported.model_validate({"import": f"{__name__}:failing"}),
            r"failed at .*test_models.py, line \d+: ZeroDivisionError: \d+ by 1",
        ),
        (
            Imported.model_validate({"import": f"{__name__}:lazy"}),
            r"take their size from the first rows \(weight\)",
        ),
        (MLPConfig(hidden=(10**7, 10**7)), r"model.mlp.hidden: \[10000000, 10000000\] needs more memory"),
    ],
)
def test_a_model_that_cannot_be_built_is_named(config: Imported | MLPConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(config, make_schema(), 0)
