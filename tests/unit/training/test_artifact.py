import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from support.prepared import make_part, make_schema
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import FIRST_CATEGORY
from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel
from shoal.training.config import LinearConfig, MLPConfig
from shoal.training.models import build_model


def raw_table(schema, rows: int = 30) -> tuple[pa.Table, np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    """Raw columns whose preparation is known: identity scaling, category ``v<j>`` for code j + 2."""
    part = make_part(schema, rows, 5)
    columns = {
        f"x{i}": pa.array(part.numeric[:, i].astype(float), from_pandas=True)
        for i in range(part.numeric.shape[1])
    }
    for i in range(part.categorical.shape[1]):
        text = [
            None if c == 0 else "never seen" if c == 1 else f"v{c - FIRST_CATEGORY}"
            for c in part.categorical[:, i]
        ]
        columns[f"c{i}"] = pa.array(text, pa.string())
    return pa.table(columns), part.numeric, part.categorical


def make(task: str = "binary", config: MLPConfig | LinearConfig | None = None) -> TrainedModel:
    schema = make_schema(task)
    config = config or MLPConfig(hidden=(4,), dropout=0.5)
    module = build_model(config, schema, 0)
    module.eval()
    return TrainedModel(module, schema, config)


@pytest.mark.parametrize("config", [MLPConfig(hidden=(4,), dropout=0.5), LinearConfig()])
def test_saved_and_loaded_it_answers_the_same_from_raw_columns(
    task: str, config: MLPConfig, tmp_path: Path
) -> None:
    model = make(task, config)
    model.save(Storage.open(str(tmp_path)))
    loaded = TrainedModel.load(tmp_path)
    table, numeric, categorical = raw_table(model.schema)
    with torch.no_grad():
        logits = model.module(torch.from_numpy(numeric), torch.from_numpy(categorical)).double()
    expected = {
        "binary": lambda: logits[:, 0].sigmoid(),
        "multiclass": lambda: logits.softmax(1),
        "multilabel": lambda: logits.sigmoid(),
        "regression": lambda: logits[:, 0] * 3 + 2,
    }[task]().numpy()
    np.testing.assert_allclose(loaded.scores(table), expected, rtol=1e-6)
    answers = loaded.predict(table)
    if task == "binary":
        np.testing.assert_array_equal(answers, np.where(expected >= 0.5, "yes", "no"))
        np.testing.assert_allclose(loaded.predict_proba(table)[:, 1], expected, rtol=1e-6)
    elif task == "multiclass":
        np.testing.assert_array_equal(answers, np.array(["a", "b", "c"])[expected.argmax(1)])
    elif task == "multilabel":
        np.testing.assert_array_equal(answers, (expected >= 0.5).astype(int))
    else:
        np.testing.assert_array_equal(answers, loaded.scores(table))


def test_arrow_pandas_and_mappings_are_the_same_and_extra_columns_are_ignored() -> None:
    model = make()
    table, _, _ = raw_table(model.schema)
    expected = model.scores(table)
    frame = table.to_pandas()
    frame["unused"] = 1
    np.testing.assert_array_equal(model.scores(frame[frame.columns[::-1]]), expected)
    np.testing.assert_array_equal(model.scores({n: table[n] for n in table.column_names}), expected)
    np.testing.assert_array_equal(model.scores(table.to_batches()[0]), expected)
    assert model.scores(table.slice(0, 0)).shape == (0,)


def test_numpy_columns_come_in_the_models_order() -> None:
    schema = make_schema(cardinalities=())
    model = TrainedModel(build_model(LinearConfig(), schema, 0).eval(), schema, LinearConfig())
    table, numeric, _ = raw_table(schema)
    np.testing.assert_array_equal(model.scores(numeric), model.scores(table))
    with pytest.raises(DataError, match=r"shape \(30, 5\): the model needs 6 columns, in this order: x0, x1"):
        model.scores(numeric[:, :5])
    with pytest.raises(DataError, match="data of type str"):
        model.scores("text")


def test_bad_columns_are_named() -> None:
    model = make()
    frame = raw_table(model.schema)[0].to_pandas()
    with pytest.raises(DataError, match="no column 'x2'"):
        model.predict(frame.drop(columns="x2"))
    with pytest.raises(DataError, match="'x1' has 1 infinite value"):
        model.predict(frame.assign(x1=[np.inf] + [0.0] * 29))
    with pytest.raises(DataError, match="'x3'"):
        model.predict(frame.assign(x3=pd.Series(["a"] * 30)))
    with pytest.raises(DataError, match="regression model has no class probabilities"):
        make("regression").predict_proba(frame)


UNREADABLE = {
    "scalars": ({"x1": 1.0}, "column 'x1' is of type float; give a list"),
    "one text": ({"c0": "v1" * 15}, "column 'c0' is of type str; give a list"),
    "mixed": (
        {"x1": pd.Series([1, "seven"] * 15, dtype=object)},
        "column 'x1' .object. cannot be read.*'seven'",
    ),
    "complex": ({"x1": np.full(30, 1j)}, "column 'x1' .complex128. cannot be read"),
    "huge": ({"x1": [2**70] * 30}, "column 'x1' .list. cannot be read: .*too large"),
    "short": ({"x1": [1.0]}, "of several lengths .'x0' 30, 'x1' 1"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_table_is_named(case: str) -> None:
    changed, said = UNREADABLE[case]
    model = make()
    table = raw_table(model.schema)[0]
    columns = {name: table[name].to_pylist() for name in table.column_names}
    with pytest.raises(DataError, match=said):
        model.predict({**columns, **changed})
    if case in ("mixed", "complex", "huge"):
        with pytest.raises(DataError, match="column 'x1' .* cannot be read"):
            model.predict(pd.DataFrame({**columns, **changed}))
    assert len(model.predict({**columns, "unused": changed})) == 30


def test_values_of_private_columns_are_not_shown() -> None:
    model = make()
    model.schema = model.schema.model_copy(update={"private": ("x1",)})
    frame = raw_table(model.schema)[0].to_pandas().assign(x1=pd.Series([1, "hush"] * 15, dtype=object))
    with pytest.raises(DataError, match="column 'x1' .object. cannot be read; give values") as caught:
        model.predict(frame)
    assert "hush" not in str(caught.value)


def test_a_column_that_is_there_twice_is_named() -> None:
    model = make()
    table = raw_table(model.schema)[0]
    twice = pa.table([*table.columns, table["x1"]], names=[*table.column_names, "x1"])
    frame = pd.concat([table.to_pandas(), table.to_pandas()[["x1"]]], axis=1)
    for data in (twice, frame):
        with pytest.raises(DataError, match="2 columns 'x1'; rename or drop all but one"):
            model.predict(data)


def test_frames_whose_columns_are_numbers_are_read_by_them() -> None:
    schema = make_schema(n_numeric=2, cardinalities=())
    renamed = tuple(c.model_copy(update={"name": str(i)}) for i, c in enumerate(schema.columns))
    schema = schema.model_copy(update={"columns": renamed})
    model = TrainedModel(build_model(LinearConfig(), schema, 0).eval(), schema, LinearConfig())
    values = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_array_equal(model.scores(pd.DataFrame(values)), model.scores(values))


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match="the model's place is None; give the folder"):
        TrainedModel.load(None)  # type: ignore[arg-type]


def test_the_threshold_decides() -> None:
    model = make()
    table, _, _ = raw_table(model.schema)
    scores = model.scores(table)
    strict = model.with_threshold(float(np.quantile(scores, 0.9)))
    assert (strict.predict(table) == "yes").sum() == (scores >= np.quantile(scores, 0.9)).sum()


def test_files_hold_no_pickle_and_damage_is_named(tmp_path: Path) -> None:
    model = make()
    model.save(Storage.open(str(tmp_path)))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="is damaged.*train it again"):
        TrainedModel.load(tmp_path)
    (tmp_path / "model" / "model.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(DataError, match="is damaged"):
        TrainedModel.load(tmp_path)
    with pytest.raises(DataError, match="holds no trained model"):
        TrainedModel.load(tmp_path / "nowhere")


def test_a_model_of_ones_own_is_never_imported_unasked(tmp_path: Path) -> None:
    def own(n_inputs: int, n_outputs: int) -> nn.Module:
        return nn.Linear(n_inputs, n_outputs)

    schema, config = make_schema(), Imported.model_validate({"import": "os:getcwd"})
    model = TrainedModel(build_model(config, schema, 0, factory=own).eval(), schema, config)
    model.save(Storage.open(str(tmp_path)))
    with pytest.raises(ConfigError, match="built by os:getcwd, and loading never imports by itself"):
        TrainedModel.load(tmp_path)
    table, _, _ = raw_table(schema)
    np.testing.assert_array_equal(TrainedModel.load(tmp_path, factory=own).scores(table), model.scores(table))


def test_loading_and_predicting_imports_neither_ray_nor_deepspeed(tmp_path: Path) -> None:
    model = make()
    model.save(Storage.open(str(tmp_path)))
    table, _, _ = raw_table(model.schema)
    frame = {n: table[n].to_pylist() for n in table.column_names}
    (tmp_path / "rows.json").write_text(json.dumps(frame).replace("NaN", "null"))
    code = (
        "import json, sys; from shoal.training import TrainedModel\n"
        f"m = TrainedModel.load({str(tmp_path)!r}); m.predict(json.load(open({str(tmp_path / 'rows.json')!r})))\n"
        "print(sorted({'ray', 'deepspeed', 'torch._dynamo', 'sklearn'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
