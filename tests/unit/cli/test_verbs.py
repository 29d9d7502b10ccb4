import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from support.tabular import rows

import shoal as package
from shoal.cluster.errors import ConfigError, StorageError
from shoal.experiment import load_experiment
from shoal.training.artifact import TrainedModel
from shoal.verbs import rows as reading


def listing(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_train_writes_the_run_and_judges_it_as_scikit_learn_does(run, folder):
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "provenance.json",
        "metrics.json",
        "history.parquet",
        "predictions.parquet",
        "model",
        "log.txt",
        "report.html",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    for part in ("test", "validation"):
        mine = table[table.split == part]
        assert metrics[part]["roc_auc"]["value"] == pytest.approx(
            roc_auc_score(mine.label == "yes", mine.score_yes)
        )
        assert (
            metrics[part]["roc_auc"]["low"]
            <= metrics[part]["roc_auc"]["value"]
            <= metrics[part]["roc_auc"]["high"]
        )
    assert metrics["test"]["roc_auc"]["value"] > 0.9
    assert load_experiment(run / "config.yaml") == load_experiment(folder / "small.yaml")
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["seed"] == 0
    assert facts["cluster"]["placement"] == "inline"
    assert facts["versions"]["torch"]
    assert set(facts["seconds"]) == {"shard", "fit", "evaluate", "report"}
    assert "epoch 3/3" in (run / "log.txt").read_text()


def test_a_complete_run_is_said_and_not_computed_again(shoal, run, folder):
    before = listing(run / "model") | {"metrics": (run / "metrics.json").stat().st_mtime_ns}
    done = shoal("train", folder / "small.yaml", "--out", run, "--json")
    assert done.code == 0
    assert done.json["was_complete"] is True
    assert done.json["metrics"] == json.loads((run / "metrics.json").read_text())
    assert "complete; nothing is computed again" in done.err
    assert before == listing(run / "model") | {"metrics": (run / "metrics.json").stat().st_mtime_ns}


def test_a_changed_experiment_on_an_old_run_is_refused_with_the_difference(shoal, run, folder):
    before = listing(run)
    for verb in ("train", "check"):
        done = shoal(verb, folder / "small.yaml", "--out", run, "--set", "training.epochs=4")
        assert done.code == 2
        assert "training.epochs: 3 -> 4" in done.err
        foreign = shoal(verb, folder / "small.yaml", "--out", folder)
        assert foreign.code == 2
        assert "is no run folder" in foreign.err
    assert shoal("check", folder / "small.yaml", "--out", run).code == 0
    assert listing(run) == before
    same = shoal("train", folder / "small.yaml", "--out", run, "--set", "cluster.wait=1m")
    assert same.code == 0


def test_results_of_files_that_changed_since_are_not_shown(shoal, run, folder):
    data = folder / "rows.parquet"
    stat = data.stat()
    before = listing(run)
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    try:
        done = shoal("train", folder / "small.yaml", "--out", run)
    finally:
        os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert done.code == 2
    assert "the input files changed since" in done.err
    assert listing(run) == before
    assert shoal("train", folder / "small.yaml", "--out", run).code == 0


def test_the_sharded_dataset_is_found_by_its_inputs(shoal, run, folder):
    done = shoal("shard", folder / "small.yaml", "--json")
    assert done.json["reused"] is True
    other = shoal("shard", folder / "small.yaml", "--set", "seed=5", "--json")
    assert other.json["reused"] is False
    assert other.json["key"] != done.json["key"]
    assert other.json["run"].endswith(f"small-shard-{other.json['key']}")
    assert sum(other.json["rows"].values()) == 300
    assert shoal("shard", folder / "small.yaml", "--set", "seed=5", "--json").json["reused"] is True
    named = shoal("shard", folder / "small.yaml", "--out", folder / "named", "--json")
    assert (folder / "named" / "manifest.json").exists()
    assert named.json["key"] == done.json["key"]
    assert shoal("shard", folder / "small.yaml", "--out", folder / "named", "--json").json["reused"] is True


def test_python_and_yaml_give_the_same_run(run, folder):
    from shoal.cluster.config import ClusterConfig, identity
    from shoal.experiment import Experiment, to_dict

    same = Experiment(
        data={"path": f"{folder}/rows.parquet", "target": "y", "id": "key"},
        model="linear",
        training={"epochs": 3, "batch_size": 32, "optimizer": {"adam": {"learning_rate": 0.05}}},
        evaluation={"replicates": 100},
        cluster=ClusterConfig(storage_path=f"{folder}/runs"),
    )
    assert identity(to_dict(same)) == identity(to_dict(load_experiment(folder / "small.yaml")))
    result = package.train(same, str(folder / "from python"))
    assert result.scores == json.loads((run / "metrics.json").read_text())


def test_python_takes_the_path_of_an_experiment_file(run, folder):
    assert package.train(folder / "small.yaml", str(run)).was_complete
    assert package.check(str(folder / "small.yaml")).experiment == load_experiment(folder / "small.yaml")
    for function in (package.train, package.check, load_experiment):
        with pytest.raises(ConfigError, match="given by its path, not by a value of type dict"):
            function({})


def test_check_shows_all_and_writes_nothing(shoal, run, folder):
    before = listing(folder)
    done = shoal("check", folder / "small.yaml", "--json")
    assert done.json["data"]["task"] == "binary"
    assert done.json["data"]["columns"]["kind"]["type"] == "categorical"
    manifest = json.loads((run / "data.json").read_text())
    assert done.json["data"]["split"]["rows"] == {
        name: part["rows"] for name, part in manifest["splits"].items()
    }
    assert done.json["resources"]["num_workers"] == 1
    assert done.json["experiment"]["training"]["epochs"] == 3
    text = shoal("check", folder / "small.yaml").out
    for part in (
        "# the resolved experiment",
        "learning_rate: 0.05",
        "# the data",
        "categorical",
        "1 worker, placed inline",
    ):
        assert part in text
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.num_workers=999", "999 workers x 1 CPU = 999 CPUs; this machine has"),
        ("data.target=yy", "'yy'"),
        ("evaluation.scoring=roc_au", "roc_auc"),
        ("evaluation.scoring=rmse", "rmse"),
        ("data.path=none.parquet", "none.parquet"),
        ("model.import=nowhere:f", "cannot import nowhere:f"),
        ("data.id=kkey", "'kkey'"),
    ],
)
@pytest.mark.parametrize("verb", ["check", "train"])
def test_what_cannot_work_is_refused_with_2_and_leaves_nothing(shoal, folder, verb, override, said):
    before = set(listing(folder))
    done = shoal(verb, folder / "small.yaml", "--set", override)
    assert done.code == 2
    assert said in done.err
    left = set(listing(folder)) - before
    assert not [name for name in left if "train-" in name]
    assert all("shard-" in name or name == "runs" for name in left)
    for dataset in (folder / "runs").glob("*-shard-*"):
        assert (dataset / "manifest.json").exists()


def test_storage_that_cannot_be_written_is_refused_with_2(shoal, folder):
    done = shoal("train", folder / "small.yaml", "--out", folder / "rows.parquet" / "run")
    assert done.code == 2
    assert "rows.parquet" in done.err
    assert pq.read_table(folder / "rows.parquet").num_rows == 300


def test_init_writes_a_file_that_checks_and_never_overwrites(shoal, folder):
    file = folder / "first.yaml"
    done = shoal("init", folder / "rows.parquet", "--target", "y", "--out", file)
    assert done.code == 0, done.err
    text = file.read_text()
    assert "#   kind: categorical" in text
    assert "# id: key" in text
    assert load_experiment(file).data.target == ("y",)
    assert shoal("check", file).code == 0
    again = shoal("init", folder / "rows.parquet", "--target", "y", "--out", file)
    assert again.code == 2
    assert "--force" in again.err
    assert shoal("init", folder / "rows.parquet", "--target", "y", "--out", file, "--force").code == 0
    assert shoal("init", folder / "rows.parquet", "--target", "y", "--out", folder / "x.txt").code == 2
    uncommented = folder / "typed.yaml"
    uncommented.write_text(text.replace("  # types:", "  types:").replace("  #   kind:", "    kind:"))
    assert load_experiment(uncommented).data.types == {"kind": "categorical"}


def test_init_of_odd_names_reads_back(shoal, folder):
    table = rows(60).rename_columns(["no", "a: b", "#c", "key", "1e3"])
    pq.write_table(table, folder / "odd names.parquet")
    file = folder / "odd.yaml"
    done = shoal(
        "init",
        folder / "odd names.parquet",
        "--target",
        "1e3",
        "--out",
        file,
        "--set",
        "data.drop=['#c', 'no']",
    )
    assert done.code == 0, done.err
    found = load_experiment(file).data
    assert (found.target, found.drop, found.positive) == (("1e3",), ("#c", "no"), "yes")


def test_init_names_the_override_that_helps(shoal, folder):
    text = [f"one {i} two {i * 7} three {i * 13} four words more" for i in range(60)]
    pq.write_table(rows(60).append_column("note", pa.array(text)), folder / "text.parquet")
    done = shoal("init", folder / "text.parquet", "--target", "y", "--out", folder / "text.yaml")
    assert done.code == 2
    assert "'note'" in done.err
    assert "--set 'data.drop=[COLUMN]'" in done.err
    assert not (folder / "text.yaml").exists()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_predict_keeps_the_order_and_the_id(shoal, run, folder, monkeypatch, suffix):
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)  # many batches
    order = np.random.default_rng(3).permutation(300)
    data = rows(order=order)
    pq.write_table(data.drop_columns("y"), folder / "in.parquet")
    out = folder / f"out.{suffix}"
    out.unlink(missing_ok=True)
    done = shoal("predict", run, "--data", folder / "in.parquet", "--to", out, "--json")
    assert done.json["rows"] == 300
    table = pq.read_table(out) if suffix == "parquet" else csv.read_csv(out)
    assert table.column_names == ["key", "prediction", "score_no", "score_yes"]
    assert table["key"].to_pylist() == data["key"].to_pylist()
    model = TrainedModel.load(run)
    assert np.allclose(table["score_yes"].to_numpy(), model.predict_proba(data)[:, 1], atol=1e-6)
    assert table["prediction"].to_pylist() == list(model.predict(data))
    before = out.read_bytes()
    refused = shoal("predict", run, "--data", folder / "in.parquet", "--to", out)
    assert refused.code == 2
    assert "--force" in refused.err
    assert shoal("predict", run, "--data", folder / "in.parquet", "--to", out, "--force").code == 0
    assert out.read_bytes() == before


def test_predict_reads_csv_with_the_models_types(shoal, run, folder):
    data = rows(40, seed=4)
    numbered = data.set_column(
        3, "key", pa.array([f"{i:03d}" for i in range(40)])
    )  # a number to a CSV reader
    pq.write_table(numbered, folder / "same.parquet")
    csv.write_csv(numbered, folder / "same.csv")
    for suffix in ("parquet", "csv"):
        done = shoal(
            "predict",
            run,
            "--data",
            folder / f"same.{suffix}",
            "--to",
            folder / f"by_{suffix}.parquet",
            "--force",
        )
        assert done.code == 0, done.err
    first, second = (pq.read_table(folder / f"by_{suffix}.parquet") for suffix in ("parquet", "csv"))
    assert first["key"].to_pylist() == second["key"].to_pylist()
    assert np.allclose(first["score_yes"], second["score_yes"], atol=1e-6)


def test_predict_without_the_id_numbers_the_rows(shoal, run, folder):
    pq.write_table(rows(20).drop_columns("key"), folder / "anonymous.parquet")
    shoal("predict", run, "--data", folder / "anonymous.parquet", "--to", folder / "anonymous.csv", "--force")
    assert csv.read_csv(folder / "anonymous.csv")["row"].to_pylist() == list(range(20))


def bad_rows():
    infinite = rows(40)
    infinite = infinite.set_column(0, "x", pa.array([*infinite["x"].to_pylist()[:-1], float("inf")]))
    return {
        "missing": (rows(40).drop_columns("z"), "'z'"),
        "infinite": (infinite, "'x'"),
        "typed": (rows(40).set_column(0, "x", pa.array(["word"] * 40)), "'x'"),
        "empty": (rows(40).slice(0, 0), "holds no rows"),
    }


@pytest.mark.parametrize("case", ["missing", "infinite", "typed", "empty"])
def test_predict_refuses_bad_rows_and_leaves_nothing_half_written(shoal, run, folder, monkeypatch, case):
    monkeypatch.setattr(reading, "BATCH_ROWS", 16)
    table, said = bad_rows()[case]
    pq.write_table(table, folder / "bad.parquet")
    done = shoal("predict", run, "--data", folder / "bad.parquet", "--to", folder / "bad out.parquet")
    assert done.code == 2
    assert said in done.err
    assert not [p for p in folder.iterdir() if "bad out" in p.name]
    deep = folder / "new" / "deeper" / "out.csv"
    assert shoal("predict", run, "--data", folder / "bad.parquet", "--to", deep).code == 2
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("data", "to", "said"),
    [
        ("none.parquet", "o.csv", "--data: there is no file or folder"),
        ("small.yaml", "o.csv", "is not a Parquet file"),
        ("in.csv", "o.xls", "must end in .parquet, .pq, .csv"),
    ],
)
def test_predict_refuses_wrong_files(shoal, run, folder, data, to, said):
    done = shoal("predict", run, "--data", folder / data, "--to", folder / to)
    assert done.code == 2
    assert said in done.err


def test_evaluate_gives_the_runs_scores_again(shoal, run):
    done = shoal("evaluate", run, "--json")
    assert done.json["metrics"] == json.loads((run / "metrics.json").read_text())
    narrow = shoal("evaluate", run, "--set", "evaluation.confidence=0.6", "--json").json["metrics"]["test"][
        "brier"
    ]
    wide = done.json["metrics"]["test"]["brier"]
    assert narrow["value"] == wide["value"]
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]
    refused = shoal("evaluate", run, "--set", "training.epochs=9")
    assert refused.code == 2
    assert "only evaluation.* can change" in refused.err


def test_evaluate_takes_the_storage_of_a_remote_run_from_set(shoal):
    # Nothing listens there, so that the answer names the endpoint that was asked.
    done = shoal("evaluate", "s3://bucket/run", "--set", "cluster.storage.endpoint=http://127.0.0.1:1")
    assert done.code == 2
    assert "127.0.0.1" in done.err
    assert "--cluster FILE" not in done.err


def test_a_remote_run_that_cannot_be_reached_names_the_cluster_file(shoal, monkeypatch):
    def unreachable(uri, config):
        raise StorageError(f"cannot open {uri}: no network")

    monkeypatch.setattr("shoal.verbs.runs.RunFolder.open", unreachable)
    done = shoal("evaluate", "s3://bucket/run")
    assert done.code == 2
    assert "cannot open s3://bucket/run: no network. Where its storage needs an endpoint" in done.err
    assert "--cluster FILE" in done.err


def test_evaluate_on_other_rows_agrees_with_scikit_learn(shoal, run, folder):
    data = rows(200, seed=11)
    pq.write_table(data, folder / "other.parquet")
    out = folder / "judged"
    done = shoal("evaluate", run, "--data", folder / "other.parquet", "--out", out, "--json")
    scores = TrainedModel.load(run).predict_proba(data)[:, 1]
    expected = roc_auc_score(np.array(data["y"]) == "yes", scores)
    assert done.json["metrics"]["data"]["roc_auc"]["value"] == pytest.approx(expected)
    assert json.loads((out / "metrics.json").read_text()) == done.json["metrics"]
    assert pq.read_table(out / "predictions.parquet")["row_id"].to_pylist() == data["key"].to_pylist()
    assert shoal("evaluate", run, "--data", folder / "other.parquet", "--out", out).code == 2
    assert "trained on rows of" in shoal("evaluate", run, "--data", folder / "rows.parquet").err


def test_evaluate_refuses_labels_that_it_does_not_know(shoal, run, folder):
    pq.write_table(rows(30).drop_columns("y"), folder / "unlabelled.parquet")
    done = shoal("evaluate", run, "--data", folder / "unlabelled.parquet")
    assert done.code == 2
    assert "no target column 'y'" in done.err
    strange = rows(30).set_column(4, "y", pa.array(["maybe"] * 30))
    pq.write_table(strange, folder / "strange.parquet")
    done = shoal("evaluate", run, "--data", folder / "strange.parquet")
    assert done.code == 2
    assert "maybe" in done.err


def test_report_is_built_again_without_the_shards(shoal, run):
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    done = shoal("report", run, "--json")
    assert done.code == 0, done.err
    assert done.json["report"] == f"{run}/report.html"
    assert len((run / "report.html").read_text()) == pytest.approx(len(before), rel=0.01)


@pytest.mark.parametrize("verb", [["report"], ["evaluate"], ["predict", "--data", "x", "--to", "y.csv"]])
def test_what_is_no_finished_run_is_named(shoal, run, folder, verb):
    done = shoal(verb[0], folder / "finishe", *verb[1:])
    assert done.code == 2
    assert f"runs there: {run}" in done.err
    dataset = next((folder / "runs").glob("small-shard-*"))
    done = shoal(verb[0], dataset, *verb[1:])
    assert done.code == 2
    assert "sharded dataset, not a trained model" in done.err


def test_results_are_shown_to_people(shoal, run, folder):
    text = shoal("train", folder / "small.yaml", "--out", run).out
    for part in ("test rows", "roc_auc", " to ", "intervals: ", "report: "):
        assert part in text
    assert shoal("train", folder / "small.yaml", "--out", run, "--quiet").out == ""


def test_only_evaluation_may_change_afterwards(run):
    from shoal.verbs import evaluate

    with pytest.raises(ConfigError, match=r"only evaluation\.\*"):
        evaluate(str(run), overrides=("seed=3",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", ""], "the experiment file's name is empty"),
        (["check", "small.yaml", "--out", ""], "--out is empty; name a place"),
        (["check", "small.yaml", "--time-limit=-5m"], "--time-limit -5m: it must be above 0"),
        (
            ["check", "small.yaml", "--cluster", "small.yaml"],
            "small.yaml:1: this is a whole experiment; --cluster",
        ),
        (
            ["train", "rows.parquet"],
            "is data, not an experiment file; write one with: shoal init rows.parquet",
        ),
        (
            ["check", "small.yaml", "--set", "cluster.cache_path=rows.parquet"],
            "cluster.cache_path rows.parquet",
        ),
        (
            ["train", "small.yaml", "--set", "cluster.cache_path=rows.parquet"],
            "cluster.cache_path rows.parquet",
        ),
    ],
)
def test_odd_arguments_are_named(shoal, folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    done = shoal(*arguments)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_sections_that_are_left_empty_have_their_defaults(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("data: {path: a, target: y}\n")
    plain = load_experiment(file)
    file.write_text("data: {path: a, target: y}\nmodel:\ntraining:\nevaluation:\ncluster:\n")
    assert load_experiment(file) == plain


def test_find_learning_rate_suggests_a_rate_in_a_folder_of_its_own(shoal, run, folder):
    before, where = listing(run), folder / "range"
    arguments = ["train", folder / "small.yaml", "--find-learning-rate", "--out", where]
    found = shoal(*arguments, "--json").json
    assert 1e-5 < found["suggestion"] < 1
    assert found["key"] == "training.optimizer.adam.learning_rate"
    assert found["steps"] >= 100
    assert (where / "learning_rate.png").read_bytes().startswith(b"\x89PNG")
    assert pq.read_table(where / "learning_rate.parquet").column_names == [
        "learning_rate",
        "loss",
        "smoothed",
    ]
    left = {
        "config.yaml",
        "learning_rate.json",
        "learning_rate.parquet",
        "learning_rate.png",
        "log.txt",
        "logs",
    }
    assert {path.name for path in where.iterdir()} == left
    again = shoal(*arguments)
    assert f"--set training.optimizer.adam.learning_rate={found['suggestion']:g}" in again.out
    assert "nothing is computed again" in again.err
    refused = shoal(*arguments, "--set", "training.optimizer=lbfgs")
    assert refused.code == 2
    assert "has no learning rate of Shoal's to find" in refused.err
    assert listing(run) == before
