"""adapt: both models beside each other, a choice without target labels, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score
from support.tabular import rows

from shoal.cli.main import main
from shoal.training.artifact import TrainedModel

BASE = """\
data: {{path: {folder}/source.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [8, 4]}}}}
training: {{epochs: 4, batch_size: 32, optimizer: {{adamw: {{learning_rate: 0.02}}}}}}
evaluation: {{replicates: 100, scoring: [accuracy]}}
transfer:
  adaptation: dann
  candidates: [{{mmd: {{label_shift: true}}}}, importance_weighting, bbse, {{mmd: {{weight: 3}}}}]
  target_data: {{path: {folder}/{target}.parquet, test: {folder}/labelled.parquet}}
  seeds: 2
cluster: {{storage_path: {folder}/runs}}
"""


def moved(n, seed):
    """Rows of the same question, elsewhere."""
    table = rows(n, seed=seed)
    return table.set_column(0, "x", pa.array(table["x"].to_numpy() + 0.8))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    target = moved(200, 1)
    pq.write_table(rows(300), folder / "source.parquet")
    pq.write_table(target, folder / "target.parquet")
    shuffled = np.random.default_rng(0).permutation(target["y"].to_numpy(zero_copy_only=False))
    pq.write_table(target.set_column(4, "y", pa.array(shuffled)), folder / "wrong.parquet")
    pq.write_table(moved(150, 2), folder / "labelled.parquet")
    for name in ("target", "wrong"):
        (folder / f"{name}.yaml").write_text(BASE.format(folder=folder, target=name))
    assert main(["adapt", str(folder / "target.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def found(place):
    return json.loads((place / "run" / "metrics.json").read_text())


def test_scores_are_those_of_the_models_on_the_labelled_rows(place):
    metrics = found(place)
    table = pq.read_table(place / "labelled.parquet")
    y = table["y"].to_pylist()
    assert set(metrics["methods"]) == {
        "source_only", "dann", "mmd", "importance_weighting", "bbse", "mmd-2",
    }  # fmt: skip
    for kind, entries in metrics["methods"].items():
        own = [
            accuracy_score(y, TrainedModel.load(str(place / "run" / "fits" / kind / str(s))).predict(table))
            for s in range(2)
        ]
        np.testing.assert_allclose(entries["accuracy"]["by_seed"], own)
        assert entries["accuracy"]["value"] == pytest.approx(np.mean(own))
        if kind != "source_only":
            plain = metrics["methods"]["source_only"]["accuracy"]["value"]
            assert entries["accuracy"]["difference"]["value"] == pytest.approx(np.mean(own) - plain)
    chosen = metrics["selection"]["chosen"]
    assert metrics["adapted"] == metrics["methods"][chosen]
    assert metrics["selection"]["ranks"][chosen] == min(
        rank for kind, rank in metrics["selection"]["ranks"].items() if kind != "source_only"
    )
    assert metrics["in_domain"]["accuracy"]["value"] > 0.5
    assert metrics["judged_on"] == "target"


def test_the_plain_fit_is_that_of_train(place):
    (place / "plain.yaml").write_text(BASE.format(folder=place, target="target").partition("transfer:")[0])
    text = (place / "plain.yaml").read_text()
    (place / "plain.yaml").write_text(text.replace("epochs: 4", "early_stopping: null, epochs: 4"))
    with (place / "plain.yaml").open("a") as file:
        file.write(f"cluster: {{storage_path: {place}/runs}}\n")
    assert main(["train", str(place / "plain.yaml"), "--out", str(place / "plain"), "--quiet"]) == 0
    ours, theirs = (
        load_file(place / run / "model" / "model.safetensors") for run in ("run/fits/source_only/0", "plain")
    )
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_labels_of_the_target_reach_nothing(place):
    """With the target's labels shuffled every weight, score without labels and choice is the same."""
    assert main(["adapt", str(place / "wrong.yaml"), "--out", str(place / "other"), "--quiet"]) == 0
    other = json.loads((place / "other" / "metrics.json").read_text())
    for kind in found(place)["methods"]:
        for seed in range(2):
            ours, theirs = (
                load_file(place / run / "fits" / kind / str(seed) / "model" / "model.safetensors")
                for run in ("run", "other")
            )
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert other["selection"] == found(place)["selection"]
    assert other["shift"] == found(place)["shift"]


def test_a_complete_run_is_not_computed_again(place, capsys):
    before = (place / "run" / "metrics.json").stat().st_mtime_ns
    assert main(["adapt", str(place / "target.yaml"), "--out", str(place / "run"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["was_complete"]
    assert "nothing is computed again" in printed.err
    assert (place / "run" / "metrics.json").stat().st_mtime_ns == before


def test_fits_that_are_there_are_kept(place):
    (place / "run" / "metrics.json").unlink()
    kept = place / "run" / "fits" / "dann" / "0" / "metrics.json"
    before = kept.stat().st_mtime_ns
    whole = (place / "run" / "report.html").read_text()
    assert main(["adapt", str(place / "target.yaml"), "--out", str(place / "run"), "--quiet"]) == 0
    assert kept.stat().st_mtime_ns == before
    for part in ("What adaptation did", "Choosing without target labels", "mmd-2", "in domain (upper bound)"):
        assert part in whole


def test_without_labels_nothing_is_said_of_the_target(place, capsys):
    text = BASE.format(folder=place, target="target").replace(f", test: {place}/labelled.parquet", "")
    text = text.replace("seeds: 2", "seeds: 1").replace("  candidates:", "  # candidates:")
    (place / "bare.yaml").write_text(text)
    assert main(["adapt", str(place / "bare.yaml"), "--out", str(place / "bare")]) == 0
    printed = capsys.readouterr().out
    assert "no target labels were given" in printed
    metrics = json.loads((place / "bare" / "metrics.json").read_text())
    assert metrics["judged_on"] == "source"
    assert metrics["in_domain"] is None
    guess = metrics["selection"]["estimates"]["source_only"]["by_threshold"]
    assert 0 < guess["low"] <= guess["value"] <= guess["high"] < 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transfer.adaptation": "dannn"}, "did you mean dann?"),
        ({"transfer.target_data": "null"}, "adaptation needs target_data: give {path: …}"),
        ({"transfer.target_data": "{path: /nowhere.parquet}"}, "transfer.target_data.path"),
        ({"transfer.target_data.test": "/nowhere.parquet"}, "transfer.target_data.test"),
        ({"transfer.target_data": "{path: a.parquet, oracle: true}"}, "oracle chooses by labels of the target"),
        ({"transfer.target_data": "{path: a.parquet, test: a.parquet}"}, "say test: same"),
        ({"transfer.adaptation": "{dann: {layer: body.7}}"}, "layer: 'body.7' matches nothing"),
        ({"training.gradient_accumulation": "2"}, "training.gradient_accumulation does not go with that"),
        ({"training.optimizer": "lbfgs"}, "training.optimizer"),
        ({"model": "linear"}, "no layer below the one that answers"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_refused(place, capsys, changes, said):
    given = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    assert main(["adapt", str(place / "target.yaml"), "--out", str(place / "refused"), *given]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("method", ["co_training", "tri_training"])
def test_models_that_label_for_each_other_are_kept_as_one(place, method):
    text = BASE.format(folder=place, target="target").replace("adaptation: dann", f"adaptation: {method}")
    text = text.replace("seeds: 2", "seeds: 1, in_domain: false".replace(", ", "\n  ")).replace(
        "  candidates:", "  # candidates:"
    )
    (place / f"{method}.yaml").write_text(text)
    assert main(["adapt", str(place / f"{method}.yaml"), "--out", str(place / method), "--quiet"]) == 0
    table = pq.read_table(place / "labelled.parquet")
    model = TrainedModel.load(str(place / method / "fits" / method / "0"))
    assert len(model.module.members) == (2 if method == "co_training" else 3)
    metrics = json.loads((place / method / "metrics.json").read_text())
    right = accuracy_score(table["y"].to_pylist(), model.predict(table))
    assert metrics["adapted"]["accuracy"]["value"] == pytest.approx(right)


def test_other_verbs_name_the_runs_that_have_a_model(place, capsys):
    chosen = found(place)["selection"]["chosen"]
    for verb in ("report", "evaluate"):
        assert main([verb, str(place / "run")]) == 2
        assert f"run/fits/{chosen}/0 is the first one" in capsys.readouterr().err
    assert main(["evaluate", str(place / "run" / "fits" / chosen / "0"), "--quiet"]) == 0


def test_check_looks_at_both_domains(place, capsys):
    assert main(["check", str(place / "target.yaml")]) == 0
    assert "shoal adapt: 200 target rows; 12 fits: source only and dann, mmd" in capsys.readouterr().out
    lacking = place / "lacking.parquet"
    pq.write_table(pq.read_table(place / "target.parquet").drop_columns(["z"]), lacking)
    for given, said in (
        (f"transfer.target_data.path={lacking}", "transfer.target_data: the data have no column 'z'"),
        ("transfer.adaptation={dann: {layer: body.9}}", "layer: 'body.9' matches nothing"),
        ("transfer.target_data.path=/nowhere.parquet", "transfer.target_data.path"),
        ("transfer.target_data.test=/nowhere.parquet", "transfer.target_data.test"),
        (f"transfer.target_data.test={lacking}", "transfer.target_data.test: the data have no column 'z'"),
    ):
        assert main(["check", str(place / "target.yaml"), "--set", given]) == 2
        assert said in capsys.readouterr().err


def test_train_says_that_it_adapts_nothing(place, capsys):
    out = str(place / "trained")
    assert main(["train", str(place / "target.yaml"), "--out", out, "--set", "training.epochs=1"]) == 0
    assert "this fit learns from the source's rows alone" in capsys.readouterr().err


def test_labels_of_the_plan_settle_which_model_is_better(place, capsys, tmp_path):
    plan = pq.read_table(place / "run" / "label_plan.parquet")
    facts = found(place)["label_plan"]
    table = pq.read_table(place / "target.parquet")
    kinds = ("source_only", found(place)["selection"]["chosen"])
    plain, adapted = (TrainedModel.load(str(place / "run" / "fits" / k / "0")).predict(table) for k in kinds)
    differ = {key for key, a, b in zip(table["key"].to_pylist(), plain, adapted, strict=True) if a != b}
    assert set(plan["key"].to_pylist()) <= differ
    assert (facts["rows"], facts["differing"]) == (200, len(differ))
    labels = tmp_path / "labels.parquet"
    pq.write_table(table.select(["key", "y"]), labels)
    command = [
        "adapt",
        str(place / "target.yaml"),
        "--out",
        str(place / "run"),
        "--settle",
        str(labels),
        "--json",
    ]
    assert main(command) == 0
    settled = json.loads(capsys.readouterr().out)
    truth = dict(zip(table["key"].to_pylist(), table["y"].to_pylist(), strict=True))
    right = [
        truth[key] == a for key, a in zip(plan["key"].to_pylist(), plan["adapted"].to_pylist(), strict=True)
    ]
    assert settled["adapted_alone"] == sum(right)
    pq.write_table(table.select(["key"]), labels)
    assert main(command) == 2
    assert "has no column 'y'" in capsys.readouterr().err
