"""Costing ensembles and MetaCost from the experiment file to every answer."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.resources import Shape
from shoal.cluster.run_folder import RunFolder
from shoal.experiment import load_experiment
from shoal.training.artifact import TrainedModel
from shoal.training.ensembles.members import member_seed
from shoal.training.trainer import fit_here
from shoal.verbs.dataset import shard
from shoal.verbs.fit import job_of

BASE = """\
data: {{path: {folder}/rows.parquet, target: y, id: key, positive: "yes"}}
model: {{mlp: {{hidden: [8], dropout: 0.1}}}}
training: {{epochs: 3, batch_size: 32, early_stopping: null, optimizer: {{adam: {{learning_rate: 0.02}}}}}}
evaluation: {{replicates: 100, costs: {{false_positive: 2, false_negative: {{column: amount}}, unit: EUR}}}}
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """600 rows with amounts, which the model sees, and an experiment with costs by row."""
    path = tmp_path_factory.mktemp("ensembles")
    amount = np.random.default_rng(4).lognormal(1.5, 0.5, 600).round(2)
    pq.write_table(rows(600).append_column("amount", pa.array(amount)), path / "rows.parquet")
    (path / "costs.yaml").write_text(BASE.format(folder=path))
    return path


def weights_of(run):
    model = TrainedModel.load(run)
    return {name: tensor.numpy() for name, tensor in model.module.state_dict().items()}, model


@pytest.mark.parametrize("members", [1, 2])
def test_members_are_plain_fits_by_rejection_and_the_answer_is_their_mean(place, shoal, members):
    out = place / f"costing {members}"
    overrides = ("--set", f"training.ensemble={{costing: {{members: {members}}}}}")
    done = shoal("train", place / "costs.yaml", "--out", out, *overrides)
    assert done.code == 0, done.err
    weights, ensemble = weights_of(out)
    experiment = load_experiment(place / "costs.yaml", ["training.sampling=cost_rejection"])
    raw, scores = pq.read_table(place / "rows.parquet"), []
    for member in range(1, members + 1):
        run = RunFolder.open(str(place / f"plain {members}-{member}"))
        run.write_text("config.yaml", "seed: 0\n")
        shape = Shape(1, 1.0, 0.0, "inline", 0)
        job = job_of(experiment, shard(experiment), shape, run)
        outcome = fit_here(replace(job, seed=member_seed(experiment.seed, member)))
        said = f"member {member}/{members} keeps {outcome.rows} rows of "
        assert said in done.err, done.err
        own, model = weights_of(run.storage)
        assert all((weights[f"members.{member - 1}.{name}"] == w).all() for name, w in own.items())
        scores.append(model.scores(raw))
    mean = np.mean(scores, axis=0)
    amounts = {"amount": raw["amount"].to_numpy()}
    assert ensemble.calibration.cost_weights == ((0.0, 2.0), ("amount", 0.0))
    assert ensemble.calibration.temperature is not None
    np.testing.assert_allclose(ensemble.scores(raw), ensemble.calibration(mean, amounts), rtol=1e-9)
    decided = ensemble.predict(raw) == "yes"
    assert (decided == (ensemble.scores(raw) >= 2 / (2 + amounts["amount"]))).all()
    table = pq.read_table(out / "predictions.parquet").to_pandas().set_index("row_id")
    held = raw.filter(pa.array(np.isin(raw["key"].to_pylist(), table.index)))
    by_key = table.loc[held["key"].to_pylist()]
    np.testing.assert_allclose(ensemble.scores(held), by_key.score_yes, rtol=1e-5)
    assert not (out / "members").exists()
    assert f"the mean probability of {members} member" in done.out
    answers = place / "answers.parquet"
    assert shoal("predict", out, "--data", place / "rows.parquet", "--to", answers, "--force").code == 0
    assert (pq.read_table(answers)["prediction"].to_numpy() == ensemble.predict(raw)).all()
    assert shoal("evaluate", out, "--json").json["metrics"] == json.loads((out / "metrics.json").read_text())
    for verb in ("check", "features"):
        done = shoal(verb, place / "costs.yaml", "--set", f"transfer.start={json.dumps(str(out))}")
        assert done.code == 2
        assert f"holds an ensemble of {members} model" in done.err


@pytest.fixture(scope="module")
def metacost(place):
    from shoal.cli.main import main

    out = place / "metacost"
    overrides = [
        "--set",
        "training.ensemble={metacost: {members: 3}}",
        "--set",
        "evaluation.scoring=log_loss",
    ]
    arguments = ["train", str(place / "costs.yaml"), "--out", str(out), "--quiet", *overrides]
    assert main([*arguments, "--set", "training.early_stopping={}"]) == 0
    return out


def test_metacost_decides_by_its_likeliest_class_and_says_so(metacost, place, shoal):
    model, raw = TrainedModel.load(metacost), pq.read_table(place / "rows.parquet")
    assert model.cost_columns == ()
    assert ((model.predict(raw) == "yes") == (model.predict_proba(raw)[:, 1] >= 0.5)).all()
    table = pq.read_table(metacost / "predictions.parquet").to_pandas()
    both = table.merge(raw.to_pandas(), left_on="row_id", right_on="key", validate="1:1")
    assert (both.label == both.y).all()  # held-out rows keep their own
    assert ((both.decision == "yes") == (both.score_yes >= 0.5)).all()
    test = both[both.split == "test"]
    missed, false = (test.y == "yes") & (test.decision == "no"), (test.y == "no") & (test.decision == "yes")
    cost = (missed * test.amount + false * 2).mean()
    found = json.loads((metacost / "metrics.json").read_text())["test"]["expected_cost"]["value"]
    assert found == pytest.approx(cost)
    page, log = (metacost / "report.html").read_text(), (metacost / "log.txt").read_text()
    assert "its probabilities are of decisions, not of classes" in page
    assert "drove the choices of the model" in page
    assert "there were no validation scores to choose by" not in page
    assert "Cost over the threshold" not in page
    assert "its probabilities are of these, not of classes" in log
    assert "training rows of" in log.split("metacost gives")[1]
    steered = pq.read_table(metacost / "history.parquet").to_pandas()
    assert set(steered[steered.split == "validation"].metric) == {"expected_cost"}


def test_metacost_is_judged_again_by_the_decisions_that_it_learned(metacost, shoal):
    table = pq.read_table(metacost / "predictions.parquet").to_pandas()
    test = table[table.split == "test"]
    again = shoal("evaluate", metacost, "--set", "evaluation.costs.false_negative=50", "--json").json
    missed, false = (
        (test.label == "yes") & (test.score_yes < 0.5),
        (test.label == "no") & (test.score_yes >= 0.5),
    )
    assert again["metrics"]["test"]["expected_cost"]["value"] == pytest.approx(
        (missed * 50 + false * 2).mean()
    )
    refused = shoal("evaluate", metacost, "--set", "evaluation.threshold=0.2")
    assert refused.code == 2
    assert "learns decisions, in which costs are counted already" in refused.err


def test_early_stopping_of_members_sees_costs_as_their_own_decisions_do(place, shoal):
    """A first metric of decisions: members decide by costs, the model by its likeliest class."""
    overrides = (
        "--set",
        "training.ensemble={metacost: {members: 1}}",
        "--set",
        "evaluation.scoring=expected_cost",
    )
    done = shoal(
        "train",
        place / "costs.yaml",
        "--out",
        place / "steered",
        *overrides,
        "--set",
        "training.early_stopping={}",
    )
    assert done.code == 0, done.err
    assert "expected_cost" in next(line for line in done.err.splitlines() if "member 1/1 draws" in line)


@pytest.mark.parametrize("ensemble", ["costing", "metacost"])
def test_folds_and_several_classes(place, shoal, ensemble, tmp_path):
    table = rows(400)
    y = np.where(np.asarray(table["x"]) > 0.5, "b", np.asarray(table["y"]))
    pq.write_table(
        table.set_column(table.column_names.index("y"), "y", pa.array(y)), tmp_path / "three.parquet"
    )
    (tmp_path / "three.yaml").write_text(f"""\
data: {{path: {tmp_path}/three.parquet, target: y, id: key}}
training: {{epochs: 2, ensemble: {{{ensemble}: {{members: 2}}}}}}
evaluation: {{cv: 2, replicates: 100, costs: {{actual: {{b: {{no: 4}}}}, otherwise: 2}}}}
cluster: {{storage_path: {tmp_path}/runs}}
""")
    done = shoal("crossval", tmp_path / "three.yaml", "--out", tmp_path / "folds", "--json")
    assert done.code == 0, done.err
    assert 0 < done.json["crossval"]["as it is"]["expected_cost"]["value"] < 4
    assert not list(tmp_path.glob("folds/fits/*/members"))
    done = shoal("train", tmp_path / "three.yaml", "--out", tmp_path / "once")
    assert done.code == 0, done.err
    model = TrainedModel.load(tmp_path / "once")
    p = model.predict_proba(table)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    best = (
        p if ensemble == "metacost" else -(p @ np.array([[0.0, 4.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 0.0]]))
    )
    assert model.predict(table).tolist() == [model.classes[k] for k in best.argmax(axis=1)]


@pytest.mark.parametrize("ensemble", ["costing", "metacost"])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.costs=null"], "training.ensemble: {} needs evaluation.costs"),
        (["training.loss=focal"], "training.ensemble: {} is for the losses cross_entropy and bce"),
        (["training.loss={cross_entropy: {class_weights: balanced}}"], "training.ensemble: {} and class_weights both count"),
        (["training.sampling=cost_rejection"], "ensemble: {} draws the rows of its members itself"),
        (["training.mixup={}"], "ensemble: {}: mixup blends rows"),
        (["training.ensemble={%: {members: 0}}"], "members: 0 is not allowed; it must be from 1 to 1000"),
        (["cluster.placement=group"], "training.ensemble fits each member in one process"),
        (["model={import: 'sklearn.linear_model:LogisticRegression'}"], "training.ensemble is of networks"),
        (["data.target=x", "data.positive=null"], "the task is regression"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_check_and_by_train(place, shoal, ensemble, overrides, said):
    every = [f"training.ensemble={ensemble}", *(o.replace("%", ensemble) for o in overrides)]
    arguments = [part for override in every for part in ("--set", override)]
    for verb in ("check", "train"):
        done = shoal(verb, place / "costs.yaml", *arguments)
        assert done.code == 2, done.out
        assert said.format(ensemble) in done.err, done.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.calibration=temperature"], "leave evaluation.calibration out"),
        (["evaluation.threshold=optimal"], "leave evaluation.threshold out"),
        (["evaluation.threshold=0.3"], "leave evaluation.threshold out"),
        (["data.imbalance=random_under_sampler"], "data.imbalance changes these"),
    ],
)
def test_what_would_count_costs_twice_is_refused(place, shoal, overrides, said):
    arguments = [part for o in ("training.ensemble=metacost", *overrides) for part in ("--set", o)]
    for verb in ("check", "train"):
        done = shoal(verb, place / "costs.yaml", *arguments)
        assert done.code == 2, done.out
        assert said in done.err, done.err


def test_check_draws_the_rows_of_the_first_member(place, shoal):
    said = {
        "costing": "member 1: training.sampling: cost_rejection keeps ",
        "metacost": "member 1: training.sampling: bootstrap draws ",
    }
    for ensemble, line in said.items():
        override = f"training.ensemble={{{ensemble}: {{members: 1}}}}"
        looked = shoal("check", place / "costs.yaml", "--set", override)
        assert looked.code == 0, looked.err
        rows_said = (looked.out + looked.err).split(line)[1].split()[0]
        done = shoal("train", place / "costs.yaml", "--out", place / f"first {ensemble}", "--set", override)
        verb = "keeps" if ensemble == "costing" else "draws"
        assert f"member 1/1 {verb} {rows_said} rows of" in done.err


def test_members_of_files_that_have_changed_since_are_fitted_again(place, shoal, tmp_path):
    from shoal.training.ensembles.members import fit_member, is_stored, members_of

    experiment = load_experiment(place / "costs.yaml", ["training.ensemble={costing: {members: 1}}"])
    run = RunFolder.open(str(tmp_path / "run"))
    data = shard(experiment)
    (member,) = members_of(job_of(experiment, data, Shape(1, 1.0, 0.0, "inline", 0), run))
    assert not is_stored(member, data.manifest.key)
    fit_member(member)
    assert is_stored(member, data.manifest.key)
    assert not is_stored(member, "another")
