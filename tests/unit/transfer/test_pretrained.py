"""Networks of Hugging Face's from a local folder: what they compute, where their weights are from, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.media import image_dataset, save_bert, save_tokenizer, save_vit, text_table
from support.scenarios import CPU, Error, weights
from support.together import run_together

from shoal.cli.main import main
from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import TextConfig
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.texts import tokens, tokens_of
from shoal.training.artifact import TrainedModel
from shoal.training.config import PretrainedConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import Model, build_model
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP
from shoal.transfer.config import TransferConfig
from shoal.transfer.fine_tune import fine_tune
from shoal.transfer.layers import from_head_down, head_of
from shoal.transfer.start import read_start

pytest.importorskip("transformers")

TEXTS = ["the film was good", "dull", "a great plot"]
EXPERIMENT = """\
data: {{path: {folder}/rows.parquet, target: y, id: key, types: {{review: {{text: {{tokenizer: {folder}/tok, max_length: 8}}}}}}}}
model: {{pretrained: {{path: {folder}/bert}}}}
training: {{epochs: 4, batch_size: 16, optimizer: {{adam: {{learning_rate: 0.01}}}}}}
evaluation: {{replicates: 100, scoring: [roc_auc]}}
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    save_tokenizer(folder / "tok")
    save_bert(folder / "bert")
    save_vit(folder / "vit")
    pq.write_table(text_table(160), folder / "rows.parquet")
    (folder / "e.yaml").write_text(EXPERIMENT.format(folder=folder))
    return folder


def text_schema(place: Path, max_length: int = 8) -> Schema:
    config = TextConfig(tokenizer=str(place / "tok"), max_length=max_length)
    column = Column(name="review", type="text", arrow_type="text", tokens=tokens_of("review", config))
    return Schema(columns=(column,), target=Target(columns=("y",), task="binary", classes=("no", "yes")))


def built(place: Path, schema: Schema, training: TrainingConfig | None = None, **transfer: object) -> Model:
    config = PretrainedConfig(path=str(place / "bert"))
    model = build_model(config, schema, 0)
    reuse, known = fine_tune(
        TransferConfig.model_validate({"start": config.path, **transfer}), StorageConfig()
    )
    assert known is None
    reuse(model, schema, training or TrainingConfig(), 0)
    return model


def test_it_computes_what_transformers_does_with_the_folders_weights(place: Path) -> None:
    from transformers import AutoModel

    schema = text_schema(place)
    model = built(place, schema).eval()
    codes = torch.from_numpy(tokens(pa.array(TEXTS), schema.columns[0]))
    theirs = AutoModel.from_pretrained(place / "bert", local_files_only=True).eval()
    mask = codes >= 0
    with torch.no_grad():
        hidden = theirs(input_ids=codes.clamp(min=0).long(), attention_mask=mask.long()).last_hidden_state
        mean = torch.stack([h[m].mean(0) for h, m in zip(hidden, mask, strict=True)])
        expected = torch.nn.functional.linear(mean, model.body.head.weight, model.body.head.bias)
        torch.testing.assert_close(model(torch.zeros(3, 0), codes), expected)
        model.body.pool = "first"
        expected = torch.nn.functional.linear(hidden[:, 0], model.body.head.weight, model.body.head.bias)
        torch.testing.assert_close(model(torch.zeros(3, 0), codes), expected)


def test_an_image_goes_through_a_vision_transformer(place: Path) -> None:
    from transformers import ViTModel

    dataset = image_dataset(30, 1)
    config = PretrainedConfig(path=str(place / "vit"))
    model = build_model(config, dataset.schema, 0)
    fine_tune(TransferConfig(start=config.path), StorageConfig())[0](
        model, dataset.schema, TrainingConfig(), 0
    )
    codes = torch.from_numpy(np.array(dataset.parts["validation"].categorical))
    image = model.encoder.media(codes, torch.float32)["image"]
    with torch.no_grad():
        mean = ViTModel.from_pretrained(place / "vit").eval()(pixel_values=image).last_hidden_state.mean(1)
        torch.testing.assert_close(model.eval()(torch.zeros(10, 0), codes), model.body.head(mean))


def test_layers_lie_from_the_head_down(place: Path) -> None:
    model = build_model(PretrainedConfig(path=str(place / "bert")), text_schema(place), 0)
    names = [layer.name for layer in from_head_down(model, head_of(model, None))]
    backbone = "body.backbone"
    assert names == [
        "body.head",
        f"{backbone}.encoder.layer.1",
        f"{backbone}.encoder.layer.0",
        f"{backbone}.embeddings",
    ]


def text_fit(place: Path, strategy: Strategy) -> np.ndarray:
    torch.set_num_threads(1)
    schema, table = text_schema(place), text_table(60)
    codes = tokens(table["review"].combine_chunks(), schema.columns[0])
    label = (np.array(table["y"]) == "yes").astype(np.int64)
    parts = {
        name: ArrayPart(np.empty((len(codes[part]), 0), np.float32), codes[part], label[part])
        for name, part in (("train", slice(20, None)), ("validation", slice(0, 20)))
    }
    dataset = ArrayDataset(schema, parts, 4)
    config = PretrainedConfig(path=str(place / "bert"), dropout=0.2)
    model = build_model(config, schema, 1)
    section = TrainingConfig.model_validate({"epochs": 2, "batch_size": 10, "precision": "fp64"})
    reuse, _ = fine_tune(TransferConfig(start=config.path), StorageConfig())
    tuning = reuse(model, schema, section, 1)
    loop = Loop(model, dataset, section, strategy, Error(), 3, Silent(), tuning=tuning)
    assert not any("draws its dropout by itself" in said for said in loop.notices)
    loop.run()
    return weights(loop)


def together(place: str) -> np.ndarray:
    return text_fit(Path(place), DDP(CPU))


def test_two_workers_and_one_agree(place: Path, tmp_path: Path) -> None:
    alone = text_fit(place, Strategy(CPU))
    for found in run_together(tmp_path, 2, together, str(place)):
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-10)


def run(place: Path, verb: str, out: Path, *sets: str) -> int:
    given = [part for value in sets for part in ("--set", value)]
    return main([verb, str(place / "e.yaml"), "--out", str(out), "--quiet", *given])


def test_a_trained_one_needs_neither_folder(place: Path, tmp_path: Path) -> None:
    assert run(place, "train", tmp_path / "run") == 0
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert scores["roc_auc"]["value"] > 0.9
    for name in ("bert", "tok"):
        shutil.move(place / name, tmp_path / name)
    try:
        model = TrainedModel.load(tmp_path / "run")
        own = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pandas().set_index("row_id")
        raw = pq.read_table(place / "rows.parquet").to_pandas().set_index("key").loc[own.index]
        np.testing.assert_allclose(model.predict_proba(raw)[:, 1], own["score_yes"], atol=1e-6)
    finally:
        for name in ("bert", "tok"):
            shutil.move(tmp_path / name, place / name)


@pytest.mark.parametrize(
    "transfer",
    [
        "{freeze: all_but_head}",
        "{freeze: ['body.backbone.embeddings'], rate_decay: 0.5}",
        "{lora: {rank: 2, layers: ['*query', '*value']}}",
        "{unfreeze: {gradual: {epochs: 1}}}",
    ],
)
def test_it_is_fine_tuned_as_asked(place: Path, tmp_path: Path, transfer: str) -> None:
    if "lora" in transfer:
        pytest.importorskip("peft")
    assert run(place, "train", tmp_path / "run", f"transfer={transfer}", "training.epochs=4") == 0
    before = read_start(str(place / "bert"), StorageConfig()).weights
    after = TrainedModel.load(tmp_path / "run").module.state_dict()
    moved = {
        name for name, tensor in before.items() if name in after and not torch.equal(tensor, after[name])
    }
    embeddings = {name for name in moved if ".embeddings." in name}
    if "all_but_head" in transfer:
        assert not moved
    elif "lora" in transfer:
        assert moved
        assert all("query.weight" in name or "value.weight" in name for name in moved)
    elif "freeze" in transfer and "unfreeze" not in transfer:
        assert moved
        assert not embeddings
    else:
        assert moved


def test_its_layers_give_features_without_a_run(place: Path, tmp_path: Path) -> None:
    layers = "transfer={features: {layers: ['body.backbone.encoder.layer.0', last]}}"
    assert run(place, "features", tmp_path / "f", layers) == 0
    found = pq.read_table(next((tmp_path / "f" / "features").glob("train-*.parquet")))
    assert found.schema.field("last").type.list_size == 16 + 1  # and the column stars


def test_folds_work(place: Path, tmp_path: Path) -> None:
    assert run(place, "crossval", tmp_path / "c", "evaluation.cv=2", "training.epochs=1") == 0


def test_what_does_not_fit_is_refused_by_name(place: Path, tmp_path: Path) -> None:
    schema = text_schema(place)

    def refused(said: str, schema: Schema = schema, path: Path = place / "bert") -> None:
        with pytest.raises(ConfigError, match=said):
            build_model(PretrainedConfig(path=str(path)), schema, 0)

    refused("holds no config.json", path=tmp_path)
    refused("reads at most 12 tokens; set data.types.review.text.max_length: 12", text_schema(place, 13))
    refused("knows 9 tokens, and the tokenizer of 'review' has 14", path=save_bert(tmp_path / "small", 9))
    refused(r"pretrained \(bert\) does not read images", image_dataset().schema)
    refused(r"pretrained \(vit\) does not read texts", path=place / "vit")
    config = json.loads((place / "vit" / "config.json").read_text())
    (tmp_path / "other").mkdir()
    for change, said in (
        (
            {"image_size": 12},
            "does not take an image of this size.*set data.types.photo.image.size: 12",
        ),
        ({"num_channels": 1}, "1 channels, and column 'photo' has 3"),
        ({"model_type": "nonesuch"}, "describes no network that transformers builds"),
    ):
        (tmp_path / "other" / "config.json").write_text(json.dumps({**config, **change}))
        refused(said, image_dataset().schema, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    refused("an architecture of timm's; build others by a function of your own", path=tmp_path / "other")


def test_weights_that_are_pickles_or_damaged_are_refused(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "bert" / "config.json", tmp_path)
    with pytest.raises(DataError, match="holds no weights as safetensors; write them"):
        read_start(str(tmp_path), StorageConfig())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"but pytorch_model.bin, which could run any code when it is read"):
        read_start(str(tmp_path), StorageConfig())
    (tmp_path / "model.safetensors").write_bytes(b"what")
    with pytest.raises(DataError, match="the weights in .* cannot be read"):
        read_start(str(tmp_path), StorageConfig())


def test_a_missing_package_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = text_schema(place)
    monkeypatch.setattr("shoal.training.pretrained.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r'model.pretrained needs the package transformers: pip install "shoal\[transfer\]"'
    ):
        build_model(PretrainedConfig(path=str(place / "bert")), schema, 0)


def test_code_beside_the_weights_is_never_run(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "bert", tmp_path / "bert")
    config = json.loads((place / "bert" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Own", "AutoConfig": "own.OwnConfig"}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    (tmp_path / "bert" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    built(tmp_path, text_schema(place))
    assert not (tmp_path / "ran").exists()


def test_another_tokenizer_than_the_starts_is_refused(place: Path, tmp_path: Path) -> None:
    assert run(place, "train", tmp_path / "run", "training.epochs=1") == 0
    words = save_tokenizer(tmp_path / "tok", ("plot", "film", "good"))
    kind = f"data.types={{review: {{text: {{tokenizer: {words}, max_length: 8}}}}}}"
    transfer = f"transfer={{start: {tmp_path / 'run'}, statistics: data}}"
    assert run(place, "train", tmp_path / "again", "training.epochs=1", kind, transfer) == 2
    assert run(place, "train", tmp_path / "again", "training.epochs=1", transfer) == 0
