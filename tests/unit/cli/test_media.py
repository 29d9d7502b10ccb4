"""Texts and images through every verb."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.media import image_table, save_tokenizer, text_table

from shoal.cli.main import main
from shoal.training.artifact import TrainedModel

EXPERIMENT = """\
data: {{path: {folder}/{name}.parquet, target: y, id: key, types: {{{column}: {kind}}}}}
model: {model}
training: {{epochs: 8, batch_size: 16, optimizer: {{adam: {{learning_rate: 0.02}}}}}}
evaluation: {{replicates: 100, scoring: [roc_auc]}}
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs; the tokenizer that one was trained with is gone."""
    folder = tmp_path_factory.mktemp("media")
    save_tokenizer(folder / "tok")
    pq.write_table(image_table(160), folder / "images.parquet")
    pq.write_table(text_table(200), folder / "texts.parquet")
    bag, cnn = "{embedding_bag: {width: 8, hidden: 8}}", "{cnn: {channels: [8], hidden: 8}}"
    (folder / "images.yaml").write_text(
        EXPERIMENT.format(folder=folder, name="images", column="photo", kind="{image: {size: 8}}", model=cnn)
    )
    kind = f"{{text: {{tokenizer: {folder}/tok, max_length: 8}}}}"
    (folder / "texts.yaml").write_text(
        EXPERIMENT.format(folder=folder, name="texts", column="review", kind=kind, model=bag)
    )
    for name in ("images", "texts"):
        assert main(["train", str(folder / f"{name}.yaml"), "--out", str(folder / name), "--quiet"]) == 0
    return folder


@pytest.mark.parametrize("name", ["images", "texts"])
def test_a_run_answers_raw_rows_as_it_did_its_own(shoal, place, tmp_path, name, monkeypatch):
    moved = place / "tok-gone"
    shutil.move(place / "tok", moved)
    try:
        done = shoal(
            "predict", place / name, "--data", place / f"{name}.parquet", "--to", tmp_path / "p.parquet"
        )
        assert done.code == 0, done.err
        found = pq.read_table(tmp_path / "p.parquet").to_pandas().set_index("key")
        own = pq.read_table(place / name / "predictions.parquet").to_pandas().set_index("row_id")
        np.testing.assert_allclose(found.loc[own.index, "score_yes"], own["score_yes"], atol=1e-6)
        model = TrainedModel.load(place / name)
        raw = pq.read_table(place / f"{name}.parquet")
        scores = model.predict_proba(raw.to_pandas())[:, 1]
        np.testing.assert_allclose(scores, found.loc[raw["key"].to_pylist(), "score_yes"], atol=1e-6)
        judged = shoal("evaluate", place / name, "--data", place / f"{name}.parquet", "--json")
        assert judged.code == 0, judged.err
    finally:
        shutil.move(moved, place / "tok")
    held = own[own["split"] == "test"]
    correct = (held["score_yes"] > 0.5) == (held["label"].astype(str) == "yes")
    assert correct.mean() > 0.9  # what tells the classes apart is the text, or the image, alone
    assert shoal("report", place / name).code == 0


BELOW = {"images": "convolutions", "texts": "tokens"}


@pytest.mark.parametrize("name", ["images", "texts"])
def test_layers_and_folds_and_copies_work(shoal, place, tmp_path, name):
    start = f"transfer={{start: {place}/{name}, features: {{layers: [body.head.0]}}}}"
    done = shoal("features", place / f"{name}.yaml", "--set", start, "--out", tmp_path / "f", "--json")
    assert done.code == 0, done.err
    few = ("--set", "training.epochs=1", "--set", "evaluation.cv=2")
    done = shoal("crossval", place / f"{name}.yaml", *few, "--out", tmp_path / "c", "--json")
    assert done.code == 0, done.err
    copies = ("--set", "data.imbalance=random_over_sampler", "--set", "training.epochs=1")
    assert shoal("train", place / f"{name}.yaml", *copies, "--out", tmp_path / "o").code == 0
    frozen = f"transfer={{start: {place}/{name}, freeze: ['body.{BELOW[name]}'], statistics: start}}"
    done = shoal(
        "train",
        place / f"{name}.yaml",
        "--set",
        frozen,
        "--set",
        "training.epochs=1",
        "--out",
        tmp_path / "t",
    )
    assert done.code == 0, done.err
    done = shoal("check", place / f"{name}.yaml", "--set", "data.imbalance=smote")
    assert done.code == 2
    assert "smote looks at the numbers of rows" in done.err
    done = shoal("check", place / f"{name}.yaml", "--set", "model=mlp")
    assert done.code == 2
    assert "model: mlp does not read" in done.err
    done = shoal("check", place / f"{name}.yaml", "--set", "training.mixup={}")
    assert done.code == 2
    assert "training.mixup blends" in done.err


def test_init_writes_a_model_that_reads_what_is_there(shoal, place, tmp_path):
    given = ("--set", "data.types={photo: {image: {size: 8}}}", "--set", "data.drop=[key]")
    done = shoal("init", place / "images.parquet", "--target", "y", "--out", tmp_path / "new.yaml", *given)
    assert done.code == 0, done.err
    written = (tmp_path / "new.yaml").read_text()
    assert "photo: {image: {size: 8}}" in written
    assert "cnn:" in written
    assert shoal("check", tmp_path / "new.yaml").code == 0


def test_paths_of_new_rows_begin_in_their_folder(shoal, place, tmp_path):
    table = pq.read_table(place / "images.parquet").slice(0, 20)
    folder = tmp_path / "new"
    (folder / "photos").mkdir(parents=True)
    names = [f"photos/{key}.png" for key in table["key"].to_pylist()]
    for name, data in zip(names, table["photo"].to_pylist(), strict=True):
        (folder / name).write_bytes(data)
    pq.write_table(table.set_column(0, "photo", pa.array(names)), folder / "rows.parquet")
    for source, to in ((folder / "rows.parquet", "a"), (place / "images.parquet", "b")):
        assert (
            shoal("predict", place / "images", "--data", source, "--to", tmp_path / f"{to}.parquet").code == 0
        )
    found, expected = (pq.read_table(tmp_path / f"{to}.parquet").slice(0, 20) for to in "ab")
    np.testing.assert_allclose(found["score_yes"], expected["score_yes"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "data.types.review.text.tokenizer is missing"),
        ("{image: {sise: 3}}", "data.types.review.image.sise is not a key; did you mean size?"),
        ("{text: {tokenizer: ./nowhere}}", "data.types.review.text.tokenizer: there is no folder ./nowhere"),
        ("{sound: {}}", "there is no 'sound'; allowed: image, text"),
    ],
)
def test_what_is_wrong_with_a_type_is_said(shoal, place, kind, said):
    done = shoal("check", place / "texts.yaml", "--set", f"data.types={{review: {kind}}}")
    assert done.code == 2
    assert said in done.err


def test_large_rows_come_in_small_batches(place, monkeypatch):
    from shoal.cluster.config import StorageConfig
    from shoal.verbs import rows

    monkeypatch.setattr(rows, "PREPARED_BYTES", 30 * 192)  # of images of 8 x 8 colours
    schema = TrainedModel.load(place / "images").schema
    files = rows.input_files(str(place / "images.parquet"), StorageConfig())
    batches = list(rows.raw_batches(files, schema))
    assert [len(batch) for batch in batches] == [30] * 5 + [10]
    whole = pq.read_table(place / "images.parquet")["key"]
    assert pa.concat_tables(batches)["key"].to_pylist() == whole.to_pylist()
