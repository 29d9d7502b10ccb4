"""shoal explain: importances, attributions and dependence of a run, what is refused, and what is kept private."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score
from support.media import image_table
from support.tabular import rows

import shoal as package
from shoal.cli.main import main
from shoal.cluster.sharding.prepare import prepare
from shoal.evaluation.explain.networks import differentiable, encoded
from shoal.evaluation.explain.permutation import orders
from shoal.evaluation.explain.trained import grid, of_trained, packed
from shoal.evaluation.explain.work import PERMUTATIONS, draws
from shoal.training.artifact import TrainedModel
from shoal.verbs import explaining

BASE = """\
data: {{path: {folder}/{rows}.parquet, target: y, id: key{more}}}
model: {model}
training: {{epochs: 3, batch_size: 32, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
evaluation: {{replicates: 100}}
cluster: {{storage_path: {folder}/runs}}
"""
MLP = "{mlp: {hidden: [8]}}"


def fit(folder, name, source="rows", model=MLP, more=""):
    text = BASE.format(folder=folder, rows=source, model=model, more=more)
    if "import" in model:
        text = "".join(line for line in text.splitlines(True) if not line.startswith("training"))
    (folder / f"{name}.yaml").write_text(text)
    assert main(["train", str(folder / f"{name}.yaml"), "--out", str(folder / name), "--quiet"]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of a network and of a linear model on rows with missing values."""
    folder = tmp_path_factory.mktemp("explained")
    table = rows(600)
    z = table["z"].to_pylist()
    z[::7] = [None] * len(z[::7])
    table = table.set_column(1, "z", pa.array(z)).append_column("copy", pa.array(2 * table["x"].to_numpy()))
    pq.write_table(table, folder / "rows.parquet")
    fit(folder, "net")
    fit(folder, "line", model="linear")
    return folder


def table_of(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


@pytest.fixture(scope="module")
def default(place):
    """The default explanations of the network."""
    return package.explain(str(place / "net"), rows=12), place / "net" / "explanations"


def test_the_defaults_rank_columns_on_test_rows(default):
    result, folder = default
    assert result.found["part"] == "test"
    assert [one["name"] for one in result.found["importance"]][-1] in ("kind", "z")
    assert result.found["importance"][0]["name"] in ("x", "copy")
    assert ["x", "copy"] in result.found["correlated"]
    group = result.found["groups"][0]
    assert group["value"] > result.found["importance"][0]["value"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "explanations.html", "explanations.json", "ice.parquet", "partial_dependence.parquet",
        "permutation.parquet", "section.html", "shap.parquet",
    ]  # fmt: skip


def test_the_runs_report_has_the_main_figures_as_long_as_they_are_there(shoal, place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "line", run)
    assert shoal("report", run).code == 0  # of the copy's name
    before = (run / "report.html").read_bytes()
    assert b"What moves the answers" not in before
    assert shoal("explain", run, "--rows", 6, "--out", tmp_path / "elsewhere").code == 0
    assert (run / "report.html").read_bytes() == before
    assert shoal("explain", run, "--rows", 6).code == 0
    page = (run / "report.html").read_text()
    assert page.count("What moves the answers") == 1
    for heading in ("Without each column", "Shapley values", "The highest answer", "By x"):
        assert f"<h3>{heading}" in page
    assert 'href="explanations/explanations.html"' in page
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert shoal("report", run).code == 0
    assert (run / "report.html").read_text() == page
    shutil.rmtree(run / "explanations")
    assert shoal("report", run).code == 0
    assert (run / "report.html").read_bytes() == before
    (run / "history.parquet").unlink()
    told = shoal("explain", run, "--rows", 6)
    assert told.code == 0
    assert "report.html does not show these explanations" in told.err


def test_threads_are_those_of_a_task_here_too(place, tmp_path, monkeypatch):
    """Their number moves the last digits of a sum, and tasks have one each."""
    seen, own = [], explaining.answers_of

    def answers_of(*given):
        seen.append(torch.get_num_threads())
        return own(*given)

    monkeypatch.setattr(explaining, "answers_of", answers_of)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        package.explain(str(place / "line"), rows=4, methods=["shap"], out=str(tmp_path / "out"))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_three_columns_together_are_refused(shoal, place, tmp_path):
    done = shoal("explain", place / "line", "--columns", "x,z,kind", "--out", tmp_path / "out")
    assert done.code == 2
    assert "is of one column, or of two together, such as a,b" in done.err


def test_importances_are_those_of_permuted_raw_rows(default, place):
    """The same permutations of the raw column, predicted anew from the raw table."""
    result, folder = default
    trained = TrainedModel.load(place / "net")
    predictions = pq.read_table(place / "net" / "predictions.parquet").to_pandas()
    test = predictions[predictions["split"] == "test"]
    raw = pq.read_table(place / "rows.parquet").to_pandas().set_index("key").loc[test["row_id"]].reset_index()
    y = (test["label"] == "yes").to_numpy()
    baseline = average_precision_score(y, trained.scores(raw))
    assert result.found["baseline"] == pytest.approx(baseline, abs=1e-12)
    assert result.found["random_state"] == draws(0, PERMUTATIONS).generate_state(1)[0]
    order = orders(len(raw), 5, result.found["random_state"])
    found = table_of(folder, "permutation")
    for column in ("x", "z", "kind"):
        falls = []
        for one in order:
            mixed = raw.copy()
            mixed[column] = raw[column].to_numpy()[one]
            falls.append(baseline - average_precision_score(y, trained.scores(mixed)))
        np.testing.assert_allclose(found[found["name"] == column]["importance"], falls, atol=1e-12)


def test_contributions_add_up_to_what_the_model_predicts(default, place):
    _, folder = default
    found = table_of(folder, "shap")
    raw = pq.read_table(place / "rows.parquet").to_pandas().set_index("key")
    trained = TrainedModel.load(place / "net")
    for key, one in found.groupby("row_id"):
        predicted = trained.scores(raw.loc[[key]])[0]
        assert one["prediction"].iloc[0] == pytest.approx(predicted, abs=1e-6)
        assert one["base"].iloc[0] + one["contribution"].sum() == pytest.approx(predicted, abs=1e-6)
    values = found[found["column"] == "kind"].set_index("row_id")["value"]
    assert (values == raw.loc[values.index]["kind"]).all()


def test_dependence_is_the_mean_prediction_of_changed_raw_rows(default, place):
    _, folder = default
    trained = TrainedModel.load(place / "net")
    predictions = pq.read_table(place / "net" / "predictions.parquet").to_pandas()
    keys = predictions[predictions["split"] == "test"]["row_id"]
    raw = pq.read_table(place / "rows.parquet").to_pandas().set_index("key").loc[keys].reset_index()
    found = table_of(folder, "partial_dependence")
    for column in ("x", "z", "kind"):
        own = found[found["column"] == column]
        for _, line in own.iloc[:: max(1, len(own) // 4)].iterrows():
            value = line["value"] if column == "kind" else line["number"]
            expected = trained.scores(raw.assign(**{column: value})).mean()
            assert line["mean"] == pytest.approx(expected, abs=1e-6)
    ice = table_of(folder, "ice")
    assert ice[ice["column"] == "x"]["row_id"].nunique() == 12


def test_the_same_again_is_shown_and_other_settings_are_not(shoal, default, place):
    done = shoal("explain", place / "net", "--rows", 12, "--json")
    assert done.json["was_complete"]
    assert done.json["importance"] == default[0].found["importance"]
    other = shoal(
        "explain", place / "net", "--rows", 3, "--methods", "shap", "--out", place / "other", "--json"
    )
    assert not other.json["was_complete"]
    assert sorted(path.name for path in (place / "other").iterdir()) == [
        "explanations.html", "explanations.json", "shap.parquet"
    ]  # fmt: skip


def test_every_method_of_a_network(shoal, place):
    names = "lime,integrated_gradients,gradient_shap,deep_lift,saliency"
    done = shoal("explain", place / "net", "--rows", 6, "--methods", names, "--out", place / "all")
    assert done.code == 0, done.err
    trained = TrainedModel.load(place / "net")
    raw = pq.read_table(place / "rows.parquet").to_pandas().set_index("key")
    for name in ("integrated_gradients", "deep_lift", "gradient_shap"):
        found = table_of(place / "all", name)
        key, one = next(iter(found.groupby("row_id")))
        p = trained.scores(raw.loc[[key]])[0]
        assert one["prediction"].iloc[0] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
        if name != "gradient_shap":
            assert one["base"].iloc[0] + one["contribution"].sum() == pytest.approx(
                np.log(p / (1 - p)), abs=0.02
            )
    assert table_of(place / "all", "lime")["fidelity"].between(0, 1).all()
    page = (place / "all" / "explanations.html").read_text()
    for title in ("LIME", "Integrated gradients", "Gradient SHAP", "DeepLIFT", "Saliency"):
        assert f">{title}</h2>" in page


def test_a_linear_models_gradients_have_their_closed_form(place):
    """Weights times differences to the mean background row, categories and missing values in their raw columns."""
    from shoal.evaluation.explain.gradients import attributions

    trained = TrainedModel.load(place / "line")
    prepared = prepare(pq.read_table(place / "rows.parquet"), trained.schema)
    model = trained.module
    own = encoded(model, prepared)
    subject = differentiable(model, trained.schema)
    found = attributions("integrated_gradients", subject, own[:5], own, (0,))
    assert found.values.shape == (5, 4, 1)
    weight = model.body.numbers.weight.detach().numpy()[0]
    numbers = model.encoder.fill(own[:, : prepared.numeric.shape[1]]).numpy()
    names = [c.name for c in trained.schema.columns]
    at = [c.name for c in trained.schema.numeric].index("x")
    expected = weight[at] * (numbers[:5, at] - numbers[:, at].mean())
    np.testing.assert_allclose(found.values[:, names.index("x"), 0], expected, atol=1e-5)
    one_hot = model.body.categories.weight.detach().numpy()[:, 0]
    codes = one_hot[prepared.categorical[:, 0]]
    np.testing.assert_allclose(found.values[:, names.index("kind"), 0], codes[:5] - codes.mean(), atol=1e-5)
    np.testing.assert_allclose(
        found.predictions[:, 0], model(*_tensors(prepared, 5)).detach()[:, 0], atol=1e-5
    )


def _tensors(prepared, n):
    import torch

    return torch.from_numpy(prepared.numeric[:n].copy()), torch.from_numpy(prepared.categorical[:n].copy())


def test_the_network_behind_an_ensembles_encoders_is_the_ensemble(place):
    from shoal.training.config import MLPConfig
    from shoal.training.ensembles.model import EnsembleModel
    from shoal.training.models import build_model

    schema = TrainedModel.load(place / "net").schema
    prepared = prepare(pq.read_table(place / "rows.parquet"), schema)
    both = EnsembleModel([build_model(MLPConfig(hidden=(4,)), schema, seed) for seed in range(2)]).eval()
    subject = differentiable(both, schema)
    found = subject.network(encoded(both, prepared)).detach()
    np.testing.assert_allclose(found, both(*_tensors(prepared, 600)).detach(), atol=1e-6)
    assert set(subject.owner) == set(range(4))


def test_cells_are_the_raw_rows_bit_for_bit(place):
    trained = TrainedModel.load(place / "net")
    table = pq.read_table(place / "rows.parquet")
    subject = of_trained(trained)
    cells = packed(prepare(table, trained.schema))
    np.testing.assert_array_equal(subject.predict(cells)[:, 0], trained.scores(table))
    column = next(c for c in trained.schema.columns if c.name == "kind")
    tried = grid(subject, column, cells[:, list(subject.columns["kind"])])
    assert set(tried.names) == {"a", "b", "c"}


def test_other_data_and_two_columns_together(shoal, place):
    new = rows(80, seed=5)
    new = new.append_column("copy", pa.array(2 * new["x"].to_numpy()))
    pq.write_table(new, place / "new.parquet")
    out = place / "new"
    done = shoal(
        "explain", place / "net", "--data", place / "new.parquet", "--columns", "x,z", "--columns", "kind",
        "--methods", "partial_dependence", "--rows", 5, "--out", out, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["part"] == "data"
    assert done.json["dependence"] == [["x", "z"], ["kind"]]
    found = table_of(out, "partial_dependence")
    both = found[found["second_column"] == "z"]
    assert len(both) == 144
    trained = TrainedModel.load(place / "net")
    line = both.iloc[37]
    changed = new.to_pandas().assign(x=line["number"], z=line["second_number"])
    assert line["mean"] == pytest.approx(trained.scores(changed).mean(), abs=1e-6)


def test_a_regression_and_three_classes(shoal, tmp_path):
    table = rows(300)
    number = 100 + 10 * table["x"].to_numpy()
    names = np.array(["low", "mid", "high"])[np.digitize(table["x"].to_numpy(), [-0.5, 0.5])]
    for name, y in (("number", number), ("classes", names)):
        pq.write_table(
            table.drop_columns(["y"]).append_column("y", pa.array(y)), tmp_path / f"{name}.parquet"
        )
        fit(tmp_path, f"{name}-run", name)
        done = shoal("explain", tmp_path / f"{name}-run", "--rows", 4, "--json")
        assert done.code == 0, done.err
        assert done.json["importance"][0]["name"] == "x"
        found = table_of(tmp_path / f"{name}-run" / "explanations", "shap")
        assert found["output"].nunique() == (1 if name == "number" else 3)
        total = found.groupby(["row_id", "output"])["contribution"].sum()
        lines = found.groupby(["row_id", "output"]).first()
        np.testing.assert_allclose(lines["base"] + total, lines["prediction"], rtol=1e-6)


def test_private_columns_show_no_values(shoal, place, tmp_path):
    (tmp_path / "rows.parquet").write_bytes((place / "rows.parquet").read_bytes())
    fit(tmp_path, "hidden", more=", private: [kind, x]")
    done = shoal(
        "explain", tmp_path / "hidden", "--rows", 5, "--methods", "permutation,shap,lime,partial_dependence"
    )
    assert done.code == 0, done.err
    folder = tmp_path / "hidden" / "explanations"
    found = table_of(folder, "shap")
    assert found[found["column"].isin(["kind", "x"])]["value"].isna().all()
    assert set(table_of(folder, "partial_dependence")["column"]) == {"z", "copy"}
    page = (folder / "explanations.html").read_text()
    assert "kind =" not in page
    assert "Values of x, kind are private and not shown." in page
    refused = shoal("explain", tmp_path / "hidden", "--columns", "kind", "--out", tmp_path / "no")
    assert refused.code == 2
    assert "column 'kind' is private" in refused.err


def test_what_cannot_be_is_refused_by_name(shoal, place, tmp_path):
    cases = [
        (("--columns", "nothing"), "evaluation.explain.columns: the data have no column 'nothing'"),
        (("--methods", "magic"), "evaluation.explain.methods"),
        (("--set", "training.epochs=3"), "only evaluation.* can change now"),
        (("--set", "evaluation.explain.groups={g: [x, q]}"), "evaluation.explain.groups.g: the data have no column 'q'"),
        (("--set", "evaluation.explain.coalitions=2", "--methods", "shap"), None),
        (("--out", place), "choose another --out"),
    ]  # fmt: skip
    for given, said in cases:
        done = shoal(
            "explain",
            place / "net",
            "--rows",
            2,
            *(given if "--out" in given else (*given, "--out", tmp_path / "x")),
        )
        assert done.code == 2, (given, done.err)
        if said:
            assert said in done.err, done.err
    alike = rows(60).append_column("copy", pa.array(np.zeros(60)))
    pq.write_table(alike.filter(pa.compute.equal(alike["y"], "no")), tmp_path / "alike.parquet")
    done = shoal("explain", place / "net", "--data", tmp_path / "alike.parquet", "--out", tmp_path / "x")
    assert done.code == 2
    assert "these rows hold one class only" in done.err
    unlabelled = rows(20).drop_columns(["y"]).append_column("copy", pa.array(np.zeros(20)))
    pq.write_table(unlabelled, tmp_path / "unlabelled.parquet")
    done = shoal("explain", place / "net", "--data", tmp_path / "unlabelled.parquet", "--out", tmp_path / "x")
    assert done.code == 2
    assert "no target column 'y'" in done.err
    done = shoal(
        "explain", place / "net", "--data", tmp_path / "unlabelled.parquet", "--methods", "shap", "--out", tmp_path / "y"
    )  # fmt: skip
    assert done.code == 0, done.err


def test_an_estimator_has_no_gradients(shoal, place):
    fit(place, "tree", model="{import: 'sklearn.tree:DecisionTreeClassifier', max_depth: 3}")
    refused = shoal("explain", place / "tree", "--methods", "saliency", "--out", place / "t")
    assert refused.code == 2
    assert (
        "saliency: the model is scikit-learn's and has no gradients; use permutation or shap" in refused.err
    )
    done = shoal("explain", place / "tree", "--rows", 3, "--out", place / "t", "--json")
    assert done.code == 0, done.err
    assert done.json["additivity_error"]["shap"] < 1e-9


def test_an_image_is_one_column(shoal, tmp_path):
    pq.write_table(image_table(120), tmp_path / "rows.parquet")
    text = BASE.format(folder=tmp_path, rows="rows", model="{cnn: {channels: [4]}}", more="")
    text = text.replace("id: key", "id: key, types: {photo: {image: {size: 8}}}")
    (tmp_path / "e.yaml").write_text(text)
    assert main(["train", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    done = shoal("explain", tmp_path / "run", "--rows", 3, "--json")
    assert done.code == 0, done.err
    assert {one["name"] for one in done.json["importance"]} == {"photo", "price", "kind"}
    assert [one[0] for one in done.json["dependence"]] != []
    for method, said in (
        ("lime", "lime: column 'photo' is an image"),
        ("saliency", "saliency: column 'photo' is an image"),
    ):
        refused = shoal("explain", tmp_path / "run", "--methods", method, "--out", tmp_path / "x")
        assert refused.code == 2
        assert said in refused.err
    refused = shoal("explain", tmp_path / "run", "--columns", "photo", "--out", tmp_path / "x")
    assert "partial dependence: column 'photo' is an image" in refused.err


def test_a_private_number_is_shown_in_standard_deviations(shoal, tmp_path):
    table = rows(300)
    number = 7_000_000 + 3_000 * table["x"].to_numpy()
    pq.write_table(table.drop_columns(["y"]).append_column("y", pa.array(number)), tmp_path / "rows.parquet")
    fit(tmp_path, "run", more=", private: [y]")
    done = shoal("explain", tmp_path / "run", "--rows", 4)
    assert done.code == 0, done.err
    for name in ("explanations/explanations.html", "report.html"):
        page = (tmp_path / "run" / name).read_text()
        assert "standard deviations" in page
        assert "70000" not in page.replace(",", "")
        assert "7e+06" not in page


def test_rows_that_are_gone_are_named(shoal, place):
    moved = place / "moved"
    shutil.copytree(place / "line", moved)
    facts = json.loads((moved / "provenance.json").read_text())
    facts["data"]["path"] = str(place / "nowhere")
    (moved / "provenance.json").write_text(json.dumps(facts))
    done = shoal("explain", moved)
    assert done.code == 2
    assert "are not there any more" in done.err
    assert "--data" in done.err


def test_explaining_is_no_part_of_a_runs_identity(shoal, place):
    done = shoal("train", place / "net.yaml", "--out", place / "net", "--set", "evaluation.explain.rows=7")
    assert done.code == 0, done.err
    assert "complete" in done.err
