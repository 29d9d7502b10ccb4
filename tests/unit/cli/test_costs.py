"""Costs, calibration and thresholds from the experiment file to every answer."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.experiment import load_experiment
from shoal.training.artifact import TrainedModel

BASE = """\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: linear
training: {{epochs: 4, batch_size: 32, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
cluster: {{storage_path: {folder}/runs}}
"""
COSTS = "evaluation: {replicates: 100, costs: {false_positive: 1, false_negative: 25, unit: EUR}}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """600 rows and an experiment with costs."""
    path = tmp_path_factory.mktemp("costs")
    pq.write_table(rows(600), path / "rows.parquet")
    (path / "costs.yaml").write_text(BASE.format(folder=path) + COSTS)
    return path


@pytest.fixture(scope="module")
def costly(place):
    """Its finished run."""
    from shoal.cli.main import main

    out = place / "finished"
    assert main(["train", str(place / "costs.yaml"), "--out", str(out), "--quiet"]) == 0
    return out


def table_of(run):
    return pq.read_table(run / "predictions.parquet").to_pandas()


def test_every_answer_follows_the_costs(costly, place, shoal):
    table = table_of(costly)
    assert list(table) == ["row_id", "split", "label", "decision", "score_no", "score_yes"]
    assert ((table.decision == "yes") == (table.score_yes >= 1 / 26)).all()
    assert table.score_no.to_numpy() == pytest.approx(1 - table.score_yes)
    test = table[table.split == "test"]
    missed = ((test.label == "yes") & (test.decision == "no")).sum()
    false = ((test.label == "no") & (test.decision == "yes")).sum()
    metrics = json.loads((costly / "metrics.json").read_text())
    cost = (25 * missed + false) / len(test)
    assert metrics["test"]["expected_cost"]["value"] == pytest.approx(cost)
    assert metrics["test"]["expected_cost"]["unit"] == "EUR"
    assert metrics["test"]["savings"]["value"] == pytest.approx(1 - cost / (test.label == "no").mean())
    assert metrics["test"]["accuracy"]["value"] == pytest.approx((test.label == test.decision).mean())
    assert metrics["validation"]["expected_cost"]["value"] is None
    assert "calibrated on these rows" in metrics["validation"]["log_loss"]["reason"]
    assert metrics["validation"]["roc_auc"]["value"] > 0.9
    # The model itself gives the same answers for raw rows, in Python and on the command line.
    raw = pq.read_table(place / "rows.parquet")
    held_out = raw.filter(pa.array(np.isin(raw["key"].to_pylist(), test.row_id)))
    model = TrainedModel.load(costly)
    assert model.calibration.temperature not in (None, 1.0)
    by_key = test.set_index("row_id").loc[held_out["key"].to_pylist()]
    assert model.predict(held_out).tolist() == by_key.decision.tolist()
    assert model.predict_proba(held_out)[:, 1] == pytest.approx(by_key.score_yes.to_numpy(), rel=1e-6)
    pq.write_table(held_out, place / "held out.parquet")
    answers = place / "answers.parquet"
    done = shoal("predict", costly, "--data", place / "held out.parquet", "--to", answers, "--force")
    assert done.code == 0
    assert pq.read_table(answers)["prediction"].to_pylist() == by_key.decision.tolist()
    found = shoal(
        "evaluate", costly, "--data", place / "held out.parquet", "--out", place / "judged", "--json"
    )
    judged = found.json["metrics"]["data"]["expected_cost"]
    assert judged["value"] == pytest.approx(cost)
    assert "decision" in pq.read_table(place / "judged" / "predictions.parquet").column_names


def test_the_report_says_the_rule_the_cost_and_what_was_fitted(costly, shoal):
    page = (costly / "report.html").read_text()
    for said in (
        "yes is predicted where its probability is at least 0.03846: there, both decisions",
        "fitted on the validation rows",
        "no result of theirs",
        "Expected cost (EUR)",
        "Where the cost comes from, test rows, in EUR",
        "Always deciding yes, which is the cheapest",
    ):
        assert said in page, said
    assert shoal("report", costly).code == 0
    again = (costly / "report.html").read_text()
    result, same = (text.split("<main>")[1].split('id="provenance"')[0] for text in (page, again))
    assert same == result


def test_a_finished_run_is_judged_by_other_costs(costly, shoal):
    same = shoal("evaluate", costly, "--json").json["metrics"]
    assert same == json.loads((costly / "metrics.json").read_text())
    table = table_of(costly)
    test = table[table.split == "test"]
    other = shoal("evaluate", costly, "--set", "evaluation.costs.false_negative=2", "--json").json["metrics"]
    decided = test.score_yes >= 1 / 3
    cost = (2 * ((test.label == "yes") & ~decided).sum() + ((test.label == "no") & decided).sum()) / len(test)
    assert other["test"]["expected_cost"]["value"] == pytest.approx(cost)
    half = shoal("evaluate", costly, "--set", "evaluation.threshold=0.5", "--json").json["metrics"]
    right = (test.score_yes >= 0.5) == (test.label == "yes")
    assert half["test"]["accuracy"]["value"] == pytest.approx(right.mean())
    refused = shoal("evaluate", costly, "--set", "evaluation.calibration=isotonic")
    assert refused.code == 2
    assert "train again (the shards are reused)" in refused.err


def test_early_stopping_may_look_at_costs_and_two_workers_are_not_needed_for_that(place, shoal):
    out = place / "by cost"
    done = shoal("train", place / "costs.yaml", "--out", out, "--set", "evaluation.scoring=expected_cost",
                 "--set", "evaluation.threshold=empirical", "--json")  # fmt: skip
    assert done.code == 0, done.err
    history = pq.read_table(out / "history.parquet").to_pandas()
    seen = history[(history.split == "validation") & (history.metric == "expected_cost")]
    assert len(seen) == 4
    assert (seen.value >= 0).all()
    threshold = TrainedModel.load(out).decision.threshold
    table = table_of(out)
    assert ((table.decision == "yes") == (table.score_yes >= threshold)).all()
    held = table[table.split == "validation"]

    def cost(t):
        decided = held.score_yes >= t
        return 25 * ((held.label == "yes") & ~decided).sum() + ((held.label == "no") & decided).sum()

    assert cost(threshold) == min(cost(t) for t in [*held.score_yes, 1.1])
    assert "the threshold of lowest cost on the validation rows" in (out / "report.html").read_text()


def test_several_classes_by_name_and_isotonic(place, shoal):
    out = place / "kinds"
    actual = "{actual: {a: {b: 9, c: 4}}, otherwise: 1}"
    done = shoal("train", place / "costs.yaml", "--out", out, "--set", "data.target=kind", "--set", "data.id=key",
                 "--set", f"evaluation.costs={actual}", "--set", "evaluation.calibration=isotonic", "--json")  # fmt: skip
    assert done.code == 0, done.err
    table = table_of(out)
    matrix = np.array([[0, 9, 4], [1, 0, 1], [1, 1, 0]])
    scores = table[["score_a", "score_b", "score_c"]].to_numpy()
    assert table.decision.tolist() == np.array(list("abc"))[(scores @ matrix).argmin(axis=1)].tolist()
    page = (out / "report.html").read_text()
    assert "The class of lowest expected cost is predicted." in page
    assert "isotonic regression on the validation rows" in page


@pytest.mark.parametrize(
    ("loss", "weight", "tau"),
    [
        ("{cross_entropy: {class_weights: costs}}", 9, 0),
        ("{logit_adjusted: {tau: 1.5}}", 1, 1.5),
        ("{logit_adjusted: {class_weights: {0: 1, 1: 4}}}", 4, 1),
    ],
)
def test_what_a_loss_does_to_the_probabilities_is_taken_out_of_them_again(tmp_path, shoal, loss, weight, tau):
    """A linear model of one column of categories can give every share of events; weighted or not, it must give that."""
    rng = np.random.default_rng(0)
    kind = np.repeat(["a", "b", "c"], [300, 200, 100])
    y = (rng.random(600) < np.select([kind == "a", kind == "b"], [0.05, 0.2], 0.5)).astype(int)
    part = np.where(
        np.arange(600) % 10 == 9, "test", np.where(np.arange(600) % 10 == 8, "validation", "train")
    )
    pq.write_table(pa.table({"kind": kind, "y": y, "part": part}), tmp_path / "rows.parquet")
    (tmp_path / "e.yaml").write_text(f"""\
data: {{path: {tmp_path}/rows.parquet, target: y, positive: 1, split: {{column: part}}}}
model: linear
training:
  {{epochs: 60, batch_size: full, optimizer: lbfgs, loss: {loss}, early_stopping: null,
  precision: fp64}}
evaluation: {{replicates: 100, costs: {{false_positive: 1, false_negative: 9}}, calibration: none}}
cluster: {{storage_path: {tmp_path}/runs}}
""")
    done = shoal("train", tmp_path / "e.yaml", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    model = TrainedModel.load(tmp_path / "run")
    train = part == "train"
    w, share = model.calibration.class_weights, y[train].mean()
    assert w[1] / w[0] == pytest.approx(weight * (share / (1 - share)) ** -tau)
    shares = [y[train & (kind == k)].mean() for k in "abc"]
    found = model.predict_proba({"kind": list("abc")})[:, 1]
    assert found == pytest.approx(shares, rel=1e-3)
    if "costs" in loss:
        assert load_experiment(tmp_path / "run" / "config.yaml").training.loss.class_weights == "costs"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.costs=[[0, 1], [25, 0]]", "does not say whether its rows are actual or decided classes"),
        ("evaluation.costs={column: price}", "it does not say what the column is the cost of; write such as"),
        ("evaluation.costs={false_positive: x, false_negative: 1}", "evaluation.costs.false_positive: 'x' is not allowed"),
        ("evaluation.costs={false_positive: 0, false_negative: 1}", "each mistake must cost more than deciding right"),
        ("evaluation.costs={actual: {yess: {no: 1}}, otherwise: 1}", "'yess', which is no class; did you mean 'yes'?"),
        ("evaluation.threshold=1.5", "evaluation.threshold: 1.5 is not allowed; it must be a number above 0 and below 1"),
        ("evaluation.threshold=empiric", "it must be a number above 0 and below 1, auto, optimal, empirical"),
        ("evaluation.calibration=platt", "evaluation.calibration: 'platt' is not allowed"),
        ("data.split={validation: 0, test: 0.2}", "fitted on validation rows, and there are none; set data.split"),
        ("data.target=x", "evaluation.costs are of deciding a class, and the task is regression"),
        ("training.loss={focal: {class_weights: costs}}", "class_weights: costs is for cross_entropy and bce"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_by_check(place, shoal, override, said):
    done = shoal("check", place / "costs.yaml", "--set", override)
    assert done.code == 2, done.out
    assert said in done.err, done.err


def test_weights_by_cost_need_costs(place, shoal):
    (place / "without.yaml").write_text(BASE.format(folder=place))
    weights = "training.loss={cross_entropy: {class_weights: costs}}"
    done = shoal("check", place / "without.yaml", "--set", weights)
    assert done.code == 2
    assert "class_weights: costs needs evaluation.costs" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("focal", "focal"),
        ("ldam", "ldam"),
        ("{cross_entropy: {label_smoothing: 0.1}}", "cross_entropy with label_smoothing"),
    ],
)
def test_losses_that_bend_probabilities_are_said_where_decisions_go_by_them(place, shoal, loss, name):
    sets = ["--set", f"training.loss={loss}"]
    said = f"training.loss: what {name} learns are not the chances of the classes, and a temperature mends them in part"
    done = shoal("check", place / "costs.yaml", *sets)
    assert done.code == 0
    assert said in " ".join(done.out.split())
    done = shoal("check", place / "costs.yaml", *sets, "--set", "evaluation.calibration=isotonic")
    assert "not the chances" not in done.out


def test_check_says_what_costs_bring_about(place, shoal):
    done = shoal("check", place / "costs.yaml")
    assert done.code == 0
    assert "by temperature on the validation rows, because there are costs" in done.out
    assert "at least 0.03846" in done.out
