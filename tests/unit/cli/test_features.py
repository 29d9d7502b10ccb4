"""features: Parquet of what layers give, the ranking, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.tabular import rows
from torch import nn

from shoal.cluster.sharding.prepare import prepare
from shoal.training.artifact import TrainedModel

BASE = """\
data: {{path: {folder}/{rows}.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [8, 4], dropout: 0.2}}}}
training: {{epochs: 2, batch_size: 32}}
evaluation: {{replicates: 100, scoring: [log_loss]}}
cluster: {{storage_path: {folder}/runs}}
"""


class Pixels(nn.Module):
    """A convolution of six numbers, and a head."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 2)
        self.head = nn.Linear(3, n_outputs)
        self.width = n_inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x[:, None]).mean(2).relu())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run, and other rows of the same columns with other labels."""
    from shoal.cli.main import main

    folder = tmp_path_factory.mktemp("features")
    table = rows(300)
    pq.write_table(table, folder / "first.parquet")
    other = rows(200, seed=1)
    three = np.array(["low", "mid", "high"])[np.digitize(other["x"].to_numpy(), [-0.5, 0.5])]
    pq.write_table(other.drop_columns(["y"]).append_column("y", pa.array(three)), folder / "other.parquet")
    for name in ("first", "other"):
        (folder / f"{name}.yaml").write_text(BASE.format(folder=folder, rows=name))
    assert main(["train", str(folder / "first.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def ask(place, *layers, **more):
    transfer = {"start": str(place / "run"), "features": {"layers": layers or ["last"], **more}}
    return ["--set", f"transfer={json.dumps(transfer)}"]


def table_of(run, split=None):
    table = pa.concat_tables([pq.read_table(path) for path in sorted((run / "features").glob("*.parquet"))])
    return table if split is None else table.filter(pa.compute.equal(table["split"], split))


def numbers(table, layer):
    return np.array(table[layer].to_pylist())


def test_features_are_what_the_layers_compute(shoal, place, tmp_path):
    done = shoal(
        "features", place / "other.yaml", *ask(place, "encoder", "body.0", "last"), "--out", tmp_path / "f"
    )
    assert done.code == 0, done.err
    found = table_of(tmp_path / "f")
    raw = pq.read_table(place / "other.parquet")
    assert sorted(found["row_id"].to_pylist()) == sorted(raw["key"].to_pylist())
    order = {key: i for i, key in enumerate(raw["key"].to_pylist())}
    raw = raw.take(pa.array([order[key] for key in found["row_id"].to_pylist()]))
    assert found["y"].to_pylist() == raw["y"].to_pylist()
    model = TrainedModel.load(place / "run")
    made = prepare(raw, model.schema)
    with torch.no_grad():
        encoded = model.module.encoder(torch.from_numpy(made.numeric), torch.from_numpy(made.categorical))
        first = model.module.body[0](encoded)
        last = model.module.body[:-1](encoded)
    for layer, expected in (("encoder", encoded), ("body.0", first), ("last", last)):
        np.testing.assert_allclose(numbers(found, layer), expected.numpy(), atol=1e-6)
    assert found.schema.field("last").type == pa.list_(pa.float32(), 4)


def test_layers_are_ranked_by_a_linear_model_of_each(shoal, place, tmp_path):
    done = shoal("features", place / "other.yaml", *ask(place, "body.*"), "--out", tmp_path / "f", "--json")
    assert done.code == 0, done.err
    train, validation = table_of(tmp_path / "f", "train"), table_of(tmp_path / "f", "validation")
    found = done.json["layers"]
    assert {entry["layer"] for entry in found} == {"body.0", "body.1", "body.3", "body.4", "body.6"}
    for entry in found:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(numbers(train, entry["layer"]).astype(np.float64), train["y"].to_pylist())
        p = model.predict_proba(numbers(validation, entry["layer"]).astype(np.float64))
        expected = log_loss(validation["y"].to_pylist(), p, labels=model.classes_)
        assert entry["value"] == pytest.approx(expected, rel=1e-3)
        assert entry["low"] < entry["value"] < entry["high"]
    values = [entry["value"] for entry in found]
    assert values == sorted(values)
    assert done.json["sentence"].startswith(
        f"{found[0]['layer']} ranks first: log_loss {values[0]:.4f} on 20 validation"
    )
    assert "validation" in done.json["sentence"]
    again = shoal("features", place / "other.yaml", *ask(place, "body.*"), "--out", tmp_path / "f", "--json")
    assert again.json["was_complete"]
    assert again.json["layers"] == found


def test_an_ended_run_writes_what_is_missing(shoal, place, tmp_path):
    run = tmp_path / "f"
    arguments = ["features", place / "other.yaml", *ask(place), "--out", run]
    assert shoal(*arguments).code == 0
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (run / "features").iterdir()}
    (run / "metrics.json").unlink()
    lost = run / "features" / "train-00003.parquet"
    lost.unlink()
    done = shoal(*arguments)
    assert done.code == 0, done.err
    assert "are there already" in done.err
    for path, (data, written) in files.items():
        assert path.read_bytes() == data
        assert (path.stat().st_mtime_ns == written) is (path != lost)


def test_a_model_of_ones_own_with_weights_from_a_file(shoal, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 6)).astype(np.float32)
    table = {"pixels": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 6), "key": np.arange(120)}
    pq.write_table(pa.table(table | {"y": x[:, 0] + x[:, 1]}), tmp_path / "rows.parquet")
    torch.manual_seed(3)
    net = Pixels(6, 1)
    save_file(
        {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("head")},
        tmp_path / "w.safetensors",
    )
    (tmp_path / "e.yaml").write_text(
        BASE.format(folder=tmp_path, rows="rows").replace("scoring: [log_loss]", "scoring: [rmse]")
        .replace("{mlp: {hidden: [8, 4], dropout: 0.2}}", f"{{import: '{__name__}:Pixels'}}")
    )  # fmt: skip
    sets = [
        "--set",
        f"transfer={{start: {tmp_path}/w.safetensors, features: {{layers: [body.conv, last], pool: max}}}}",
    ]
    listed = shoal("features", tmp_path / "e.yaml", *sets, "--list")
    assert listed.code == 0, listed.err
    assert "3 x 5" in listed.out
    done = shoal("features", tmp_path / "e.yaml", *sets, "--out", tmp_path / "f")
    assert done.code == 0, done.err
    found = table_of(tmp_path / "f")
    fold = json.loads(next((tmp_path / "runs").glob("*-shard-*/manifest.json")).read_text())
    (column,) = fold["schema"]["columns"]
    seen = (x[found["row_id"].to_numpy()] - np.array(column["center"])) / np.array(column["scale"])
    with torch.no_grad():
        conv = net.conv(torch.from_numpy(seen.astype(np.float32))[:, None])
    np.testing.assert_allclose(numbers(found, "body.conv"), conv.amax(2).numpy(), atol=1e-5)
    np.testing.assert_allclose(numbers(found, "last"), conv.mean(2).relu().numpy(), atol=1e-5)


def test_other_weights_are_another_run(shoal, place, tmp_path):
    run, arguments = tmp_path / "f", ["features", place / "other.yaml"]
    copied = tmp_path / "copy"
    for name in ("model/model.json", "model/model.safetensors"):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((place / "run" / name).read_bytes())
    sets = ["--set", f"transfer.start={copied}", "--out", run]
    assert shoal(*arguments, *sets).code == 0
    (run / "metrics.json").unlink()
    tensors = TrainedModel.load(place / "run")
    with torch.no_grad():
        next(tensors.module.parameters()).add_(1)
    from shoal.cluster.storage import Storage

    tensors.save(Storage.open(str(copied)))
    done = shoal(*arguments, *sets)
    assert done.code == 2
    assert "weights" in done.err


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({}, "a new model's weights are draws, and so would its features be"),
        (
            {"model": "{import: 'sklearn.linear_model:Ridge'}"},
            "sklearn.linear_model:Ridge is scikit-learn's and has no layers",
        ),
        (
            {"transfer.start": "{run}", "transfer.features.layers": "[bdy]"},
            "'bdy' matches no layer; the nearest are body",
        ),
        (
            {"transfer.start": "{run}", "data.split.validation": "0"},
            "there are no validation rows to rank layers on",
        ),
        (
            {"transfer.start": "{run}", "transfer.features.pool": "mode"},
            "transfer.features.pool: 'mode' is not allowed",
        ),
        ({"transfer.start": "nothing"}, "holds no trained model"),
        ({"transfer.start": "{run}", "data.drop": "[x]"}, "x"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(shoal, place, tmp_path, sets, said):
    given = [
        part
        for key, value in sets.items()
        for part in ("--set", f"{key}={value.replace('{run}', str(place / 'run'))}")
    ]
    done = shoal("features", place / "other.yaml", "--out", tmp_path / "f", *given)
    assert done.code == 2, done.err
    assert said in done.err
    assert not (tmp_path / "f" / "features").exists()
