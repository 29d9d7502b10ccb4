"""Which weights of a start are taken, and which are not and why; files of weights; statistics."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.prepared import make_dataset, make_schema
from support.tuned import MLP, ROWS, Hears, make_loop, write_start
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.training.config import LinearConfig, MLPConfig, TrainingConfig
from shoal.training.models import build_model
from shoal.transfer.config import TransferConfig
from shoal.transfer.fine_tune import fine_tune
from shoal.transfer.start import read_start
from shoal.transfer.taking import take

STORAGE = StorageConfig()


def own(n_inputs: int, n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_inputs, 4), nn.Tanh(), nn.Linear(4, n_outputs))


def taken_by(
    start: str, schema: Schema | None = None, config: Any = MLP, head: str = "body.4", **transfer: Any
) -> Any:
    schema = schema or make_dataset("multiclass", ROWS).schema
    model = build_model(config, schema, 3, factory=own if isinstance(config, Imported) else None)
    first = {n: t.clone() for n, t in model.state_dict().items()}
    section = TransferConfig.model_validate({"start": start, **transfer})
    found = take(model, read_start(start, STORAGE), schema, head, section)
    return found, model.state_dict(), first


def test_everything_but_the_head_of_another_question(tmp_path: Path) -> None:
    start = write_start(tmp_path)
    found, after, first = taken_by(start)
    given = load_file(f"{start}/model/model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(tensor, first[name] if name.startswith("body.4") else given[name]), name
    assert found.said(start) == (
        f"start: 6 of 8 tensors of the model are taken from {start}; not body.4.weight, body.4.bias: a new head, for the "
        "start answers another question"
    )


def test_the_head_too_where_the_classes_are_the_same(tmp_path: Path) -> None:
    schema = make_dataset("multiclass", ROWS).schema
    start = write_start(tmp_path, schema)
    found, after, _ = taken_by(start)
    assert found.left == {}
    assert torch.equal(after["body.4.weight"], load_file(f"{start}/model/model.safetensors")["body.4.weight"])
    assert "body.4.weight" in taken_by(start, new_head=True)[0].left["a new head, as transfer.new_head says"]
    assert taken_by(write_start(tmp_path), new_head=False)[0].left == {}


def test_the_head_of_a_number_in_other_units_is_new(tmp_path: Path) -> None:
    schema = make_schema("regression")
    start = write_start(tmp_path, schema)
    assert taken_by(start, schema)[0].left == {}
    other = schema.model_copy(update={"target": schema.target.model_copy(update={"scale": 7.0})})
    assert list(taken_by(start, other)[0].left.values()) == [["body.4.weight", "body.4.bias"]]


def test_shapes_and_names_that_differ_are_said(tmp_path: Path) -> None:
    start = write_start(tmp_path, config=MLPConfig(hidden=(8, 5)))
    found, _, _ = taken_by(start)
    said = found.said("there")
    assert "body.2.weight: [6, 8] here and [5, 8] there" in said
    assert "body.2.bias: [6] here and [5] there" in said
    deeper, _, _ = taken_by(start, config=MLPConfig(hidden=(8, 5, 3, 4)), head="body.8")
    assert deeper.left["not in the start"] == ["body.6.weight", "body.6.bias"]


def test_nothing_taken_is_refused_with_the_model_there(tmp_path: Path) -> None:
    start = write_start(tmp_path, make_schema("multiclass", cardinalities=()), MLPConfig(hidden=(7,)))
    with pytest.raises(
        ConfigError, match=r"nothing of .* fits this model .*\{'hidden': \[7\].*: write model: so"
    ):
        taken_by(start, make_schema("multiclass", cardinalities=()))


def weights(names: str = "") -> dict[str, torch.Tensor]:
    width = build_model(MLP, make_dataset("multiclass", ROWS).schema, 0).encoder.width
    torch.manual_seed(5)
    return {names + n: t.detach() for n, t in own(width, 3).state_dict().items()}


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "nested pt"])
def test_files_of_weights_of_the_users_own_module(tmp_path: Path, kind: str) -> None:
    place = str(tmp_path / f"weights.{kind.split()[-1]}")
    given = weights()
    if kind == "safetensors":
        save_file(given, place)
    else:
        torch.save({"epoch": 3, "state_dict": given} if kind == "nested pt" else given, place)
    config = Imported.model_validate({"import": "a:b"})
    found, after, _ = taken_by(place, config=config, head="body.2")
    assert found.renamed == "body."
    assert torch.equal(after["body.0.weight"], given["0.weight"])
    assert found.left["not in the start"] == ["encoder.embeddings.0.weight", "encoder.embeddings.1.weight"]
    assert "a new head, for the start answers another question, or may do" in found.said(place)
    same, after, _ = taken_by(place, config=config, head="body.2", new_head=False)
    assert torch.equal(after["body.2.weight"], given["2.weight"])
    assert "with 'body.' in front" in same.said(place)


def test_names_in_a_file_can_be_changed(tmp_path: Path) -> None:
    place = str(tmp_path / "weights.safetensors")
    save_file(weights("module.net."), place)
    config = Imported.model_validate({"import": "a:b"})
    with pytest.raises(
        ConfigError,
        match=r"there are module.net.0.bias \[4\], module.net.0.weight \[4, 15\].*give transfer.rename",
    ):
        taken_by(place, config=config, head="body.2")
    found, _, _ = taken_by(place, config=config, head="body.2", rename={"module.net.": "body."})
    assert found.names == ["body.0.weight", "body.0.bias"]
    with pytest.raises(
        ConfigError, match=r"no name in the start begins with 'net.'; there are module.net.0.bias"
    ):
        taken_by(place, config=config, head="body.2", rename={"net.": "body."})


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(1), "evil": Evil()}, "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(torch.nn.Linear(1, 1), "module.pt")
    for name in ("evil.pt", "plain.pt", "module.pt"):
        with pytest.raises(DataError, match=f"{name} is damaged, or holds more than weights"):
            read_start(name, STORAGE)
    assert not (tmp_path / "evil").exists()
    torch.save([1, 2], "list.pt")
    with pytest.raises(DataError, match="holds no tensors by name"):
        read_start("list.pt", STORAGE)


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.PKL", "model.h5", "model.onnx"])
def test_files_of_other_kinds_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"transfer.start: {re.escape(name)} is no file that is read here"):
        read_start(name, STORAGE)


def test_what_is_not_there_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no .*gone.safetensors"):
        read_start(str(tmp_path / "gone.safetensors"), STORAGE)
    with pytest.raises(DataError, match="holds no trained model"):
        read_start(str(tmp_path / "gone"), STORAGE)
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(DataError, match="is damaged, or no file of safetensors"):
        read_start(str(tmp_path / "bad.safetensors"), STORAGE)


def with_categories(schema: Schema, *values: str) -> Schema:
    first = next(i for i, c in enumerate(schema.columns) if c.type == "categorical")
    columns = list(schema.columns)
    columns[first] = columns[first].model_copy(update={"categories": values})
    return schema.model_copy(update={"columns": tuple(columns)})


def test_embeddings_follow_their_categories(tmp_path: Path) -> None:
    there = with_categories(make_schema("multiclass"), "x", "y", "z")
    here = with_categories(make_schema("multiclass"), "y", "new", "x", "other")
    config = MLPConfig(hidden=(8, 6), embedding=3)
    start = write_start(tmp_path, there, config)
    _, after, first = taken_by(start, here, config, statistics="data")
    given = load_file(f"{start}/model/model.safetensors")["encoder.embeddings.0.weight"]
    wanted = first["encoder.embeddings.0.weight"].clone()  # missing, unknown, y, new, x, other
    wanted[[0, 1, 2, 4]] = given[[0, 1, 3, 2]]  # missing, unknown, x, y, z
    assert torch.equal(after["encoder.embeddings.0.weight"], wanted)


def test_weights_of_other_columns_or_categories_are_refused(tmp_path: Path) -> None:
    there = make_schema("multiclass")
    start = write_start(tmp_path, there, LinearConfig())
    with pytest.raises(ConfigError, match=r"other categories than the start's, to which its weights belong"):
        taken_by(start, with_categories(there, "v2", "v1", "v0"), LinearConfig(), head="body")
    fewer = there.model_copy(update={"columns": there.columns[1:]})
    with pytest.raises(ConfigError, match=r"other columns than those that the start reads \(x0 not here\)"):
        taken_by(start, fewer, LinearConfig(), head="body")
    turned = there.model_copy(update={"columns": there.columns[::-1]})
    with pytest.raises(ConfigError, match=r"in another order"):
        taken_by(start, turned, LinearConfig(), head="body")


def test_weights_that_change_under_way_are_refused(tmp_path: Path) -> None:
    start = write_start(tmp_path)
    tune, known = fine_tune(TransferConfig(start=start), STORAGE)
    assert known is not None
    assert known.target.classes == ("other a", "other b", "other c")
    write_start(tmp_path, seed=18)
    schema = make_dataset("multiclass", ROWS).schema
    with pytest.raises(DataError, match="are others than when this run began"):
        tune(build_model(MLP, schema, 3), schema, TrainingConfig(), 3)


def test_what_is_trained_is_said(tmp_path: Path) -> None:
    hears = Hears()
    transfer = {
        "start": write_start(tmp_path),
        "freeze": ["body.0.bias"],
        "unfreeze": {"gradual": {"epochs": 1}},
    }
    make_loop(transfer, hears=hears).run()
    assert hears.said[:7] == [
        f"start: 6 of 8 tensors of the model are taken from {tmp_path}; not body.4.weight, body.4.bias: a new head, for the "
        "start answers another question",
        "start: columns, means, scales and categories are the start's, as its weights expect (statistics: start)",
        "fine-tuning: 255 of 263 parameters are trained, 8 are frozen",
        "  body.4: 21 parameters, trained from epoch 1 on",
        "  body.2: 54 parameters, trained from epoch 2 on",
        "  body.0: 128 parameters, trained from epoch 3 on, but for 8 parameters",
        "  encoder: 60 parameters, trained from epoch 4 on",
    ]


def test_what_is_new_is_never_frozen(tmp_path: Path) -> None:
    start = write_start(tmp_path, config=MLPConfig(hidden=(8, 5)))
    with pytest.raises(ConfigError, match=r"transfer.freeze: body.2.bias, body.2.weight would stay random"):
        make_loop({"start": start, "freeze": ["body.0", "body.2"]})
    loop = make_loop({"start": start, "freeze": "all_but_head"})
    assert loop.stepper.stage.trained == {f"body.{i}.{x}" for i in (2, 4) for x in ("weight", "bias")}
    low = make_loop({"start": start, "lora": {"rank": 2}})
    assert low.stepper.stage.trained == loop.stepper.stage.trained | {
        f"body.0.lora_{x}.default.weight" for x in "AB"
    }
