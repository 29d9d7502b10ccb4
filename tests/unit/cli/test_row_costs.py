"""Costs by row from the experiment file to every answer."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.training.artifact import TrainedModel

BASE = """\
data: {{path: {folder}/rows.parquet, target: y, id: key, drop: [amount], positive: "yes"}}
model: linear
training: {{epochs: 4, batch_size: 32, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
evaluation:
  replicates: 100
  costs: {{false_positive: 2, false_negative: {{column: amount}}, unit: EUR}}
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """600 rows with amounts, and an experiment with costs by row."""
    path = tmp_path_factory.mktemp("row costs")
    table = rows(600)
    amount = np.random.default_rng(4).lognormal(1.5, 1.0, 600).round(2)
    pq.write_table(table.append_column("amount", pa.array(amount)), path / "rows.parquet")
    (path / "costs.yaml").write_text(BASE.format(folder=path))
    return path


@pytest.fixture(scope="module")
def costly(place):
    """Its finished run."""
    from shoal.cli.main import main

    out = place / "finished"
    assert main(["train", str(place / "costs.yaml"), "--out", str(out), "--quiet"]) == 0
    return out


def joined(run, place):
    """Predictions beside the raw row of the same id."""
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    raw = pq.read_table(place / "rows.parquet").to_pandas()
    both = table.merge(raw, left_on="row_id", right_on="key", validate="1:1")
    assert len(both) == len(table)
    assert (both.label == both.y).all()
    return both


def cost_of(both, decided):
    missed, false = (both.y == "yes") & ~decided, (both.y == "no") & decided
    return (missed * both.amount + false * 2).mean()


def test_every_answer_follows_the_costs_of_its_row(costly, place, shoal):
    both = joined(costly, place)
    assert (both.cost_amount == both.amount).all()
    decided = both.decision == "yes"
    assert (decided == (both.score_yes >= 2 / (2 + both.amount))).all()
    test = both[both.split == "test"]
    metrics = json.loads((costly / "metrics.json").read_text())["test"]
    cost = cost_of(test, test.decision == "yes")
    assert metrics["expected_cost"]["value"] == pytest.approx(cost)
    raw = pq.read_table(place / "rows.parquet")
    train = raw.to_pandas()[~raw["key"].to_pandas().isin(both.row_id)]
    always = cost_of(train, train.y != "") < cost_of(train, train.y == "")
    without = cost_of(test, (test.y != "") if always else (test.y == ""))
    assert metrics["savings"]["value"] == pytest.approx(1 - cost / without)
    described = json.loads((costly / "model" / "model.json").read_text())
    assert described["costs"] == [[0.0, 2.0], ["amount", 0.0]]
    assert described["schema"]["costs"] == ["amount"]
    # The model itself gives the same answers for raw rows, in Python and on the command line, from Parquet and CSV.
    by_key = both.set_index("row_id").loc[test.row_id]
    held_out = raw.filter(pa.array(np.isin(raw["key"].to_pylist(), test.row_id)))
    by_key = both.set_index("row_id").loc[held_out["key"].to_pylist()]
    model = TrainedModel.load(costly)
    assert model.predict(held_out).tolist() == by_key.decision.tolist()
    assert model.predict(held_out.to_pandas()).tolist() == by_key.decision.tolist()
    for name, write in (("held.parquet", pq.write_table), ("held.csv", csv.write_csv)):
        write(held_out, place / name)
        answers = place / "answers.parquet"
        assert shoal("predict", costly, "--data", place / name, "--to", answers, "--force").code == 0
        assert pq.read_table(answers)["prediction"].to_pylist() == by_key.decision.tolist()
    judged = shoal("evaluate", costly, "--data", place / "held.parquet", "--out", place / "judged", "--json")
    assert judged.json["metrics"]["data"]["expected_cost"]["value"] == pytest.approx(cost)
    kept = pq.read_table(place / "judged" / "predictions.parquet").to_pandas().set_index("row_id")
    assert (kept.loc[by_key.index].cost_amount == by_key.amount).all()
    page = (costly / "report.html").read_text()
    for said in (
        "by its own costs in amount",
        "cheapest for the costs of the training rows",
        "mean cost",
        "each row&#x27;s threshold",
    ):
        assert said in page or said.replace("&#x27;", "'") in page, said
    assert "Drummond" not in page


def test_rows_without_their_costs_are_refused(costly, place, shoal):
    raw = pq.read_table(place / "rows.parquet").slice(0, 50)
    pq.write_table(raw.drop_columns("amount"), place / "bare.parquet")
    broken = raw.set_column(
        raw.column_names.index("amount"), "amount", pa.array([None, *raw["amount"].to_pylist()[1:]])
    )
    pq.write_table(broken, place / "broken.parquet")
    for data, said in (
        ("bare", "has no column 'amount', in which the costs stand"),
        ("broken", "1 row without a finite cost in column 'amount', such as id k0000"),
    ):
        for verb in (("predict", costly, "--to", place / "never.parquet"), ("evaluate", costly)):
            done = shoal(*verb, "--data", place / f"{data}.parquet")
            assert done.code == 2, done.out
            assert said in done.err, done.err
    assert not (place / "never.parquet").exists()


@pytest.mark.parametrize(
    ("amount", "overrides", "said"),
    [
        (-3.5, [], "id k0005 in row 6 of {file} (deciding 'no' where 'yes' is actual costs -3.5, and deciding right 0), a "
         "mistake costs no more than deciding right"),
        (0.0, [], "is actual costs 0, and deciding right 0)"),
        (1e300, [], "(deciding 'yes' where 'no' is actual costs 2, the opposite 1e+300 more than deciding right), a mistake "
         "costs next to nothing beside the opposite one"),
        (-3.5, ["data.private=[amount]"], "(deciding 'no' where 'yes' is actual), a mistake"),
        (-3.5, ["data.private=[y]"], "(deciding another class costs -3.5, and"),
        (float("inf"), ["data.drop=[]"], "1 row without a finite cost in column 'amount', such as id k0005 in row 6 of {file}; "
         "correct or leave out these rows"),
    ],
)  # fmt: skip
def test_costs_that_nothing_can_be_decided_by_are_refused_before_anything_is_written(
    place, tmp_path, shoal, amount, overrides, said
):
    raw = pq.read_table(place / "rows.parquet")
    values = raw["amount"].to_pylist()
    values[5] = amount
    pq.write_table(
        raw.set_column(raw.column_names.index("amount"), "amount", pa.array(values)), tmp_path / "odd.parquet"
    )
    overrides = [f"data.path={tmp_path}/odd.parquet", f"cluster.storage_path={tmp_path}/runs", *overrides]
    given = [part for override in overrides for part in ("--set", override)]
    for verb in ("check", "train", "shard"):
        done = shoal(verb, place / "costs.yaml", *given)
        assert done.code == 2, done.out
        assert said.format(file=tmp_path / "odd.parquet") in done.err, done.err
        assert "costs.yaml:6: evaluation.costs: " in done.err
        assert "writing shards" not in done.err
    assert not list(tmp_path.rglob("shards"))


@pytest.mark.parametrize("override", ["training.sampling=cost_rejection", "training.ensemble=costing"])
def test_a_range_test_has_its_steps_where_rows_are_left_out_by_their_costs(place, shoal, override):
    out = place / f"rates {override}"
    done = shoal("train", place / "costs.yaml", "--find-learning-rate", "--out", out, "--set", override,
                 "--set", "training.loss=cross_entropy", "--set", "data.drop=[]", "--json")  # fmt: skip
    assert done.code == 0, done.err
    kept = int(done.err.split("cost_rejection keeps ")[1].split(" ")[0])
    per_epoch = -(-kept // 32)
    assert kept < 300
    assert done.json["steps"] == -(-100 // per_epoch) * per_epoch


def test_a_finished_run_is_judged_by_numbers_and_by_columns_that_it_has(costly, place, shoal):
    both = joined(costly, place)
    test = both[both.split == "test"]
    assert shoal("evaluate", costly, "--json").json["metrics"] == json.loads(
        (costly / "metrics.json").read_text()
    )
    number = shoal("evaluate", costly, "--set", "evaluation.costs.false_negative=50", "--json").json[
        "metrics"
    ]
    decided = test.score_yes >= 2 / 52
    wanted = (((test.y == "yes") & ~decided) * 50 + ((test.y == "no") & decided) * 2).mean()
    assert number["test"]["expected_cost"]["value"] == pytest.approx(wanted)
    half = shoal("evaluate", costly, "--set", "evaluation.threshold=0.5", "--json").json["metrics"]
    assert half["test"]["expected_cost"]["value"] == pytest.approx(cost_of(test, test.score_yes >= 0.5))
    swapped = "evaluation.costs={false_positive: {column: amount}, false_negative: 2}"
    column = shoal("evaluate", costly, "--set", swapped, "--json").json["metrics"]
    decided = test.score_yes >= test.amount / (2 + test.amount)
    wanted = (((test.y == "yes") & ~decided) * 2 + ((test.y == "no") & decided) * test.amount).mean()
    assert column["test"]["expected_cost"]["value"] == pytest.approx(wanted)
    for override, said in (
        ("evaluation.costs.false_negative.column=x", "the rows of this run have no costs of column 'x'"),
        ("evaluation.costs.true_positive=3", "a mistake costs no more than deciding right"),
    ):
        done = shoal("evaluate", costly, "--set", override)
        assert done.code == 2
        assert said in done.err, done.err


def test_an_empirical_threshold_is_the_cheapest_for_all_rows_together(place, shoal):
    out = place / "empirical"
    done = shoal("train", place / "costs.yaml", "--out", out, "--set", "evaluation.threshold=empirical",
                 "--set", "evaluation.scoring=expected_cost", "--json")  # fmt: skip
    assert done.code == 0, done.err
    both = joined(out, place)
    held, model = both[both.split == "validation"], TrainedModel.load(out)
    assert model.decision.costs == ()
    best = min(cost_of(held, held.score_yes >= t) for t in [*held.score_yes, 1.1])
    assert cost_of(held, held.score_yes >= model.decision.threshold) == pytest.approx(best)
    assert ((both.decision == "yes") == (both.score_yes >= model.decision.threshold)).all()


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("weights", "training.loss={cross_entropy: {class_weights: costs}}"),
        ("rejection", "training.sampling=cost_rejection"),
    ],
)
def test_weights_and_rejection_are_taken_out_of_the_probabilities_again(place, shoal, name, override):
    out = place / name
    overrides = ("--set", override, "--set", "data.drop=[]")
    looked = shoal("check", place / "costs.yaml", *overrides)
    assert looked.code == 0, looked.err
    done = shoal("train", place / "costs.yaml", "--out", out, *overrides)
    assert done.code == 0, done.err
    both, model = joined(out, place), TrainedModel.load(out)
    assert model.calibration.cost_weights == ((0.0, 2.0), ("amount", 0.0))
    raw = pq.read_table(place / "rows.parquet")
    own = raw.filter(pa.array(np.isin(raw["key"].to_pylist(), both.row_id)))
    by_key = both.set_index("row_id").loc[own["key"].to_pylist()]
    assert model.predict_proba(own)[:, 1] == pytest.approx(by_key.score_yes.to_numpy(), rel=1e-6)
    assert model.predict(own).tolist() == by_key.decision.tolist()
    if name == "rejection":
        said = next(line for line in done.err.splitlines() if "cost_rejection keeps" in line).split("keeps")[
            1
        ]
        assert said in looked.err + looked.out  # the same rows are drawn
        assert "so few tell little" in said
    hidden = shoal("check", place / "costs.yaml", "--set", override)
    assert "rows weigh by amount, which the model does not see" in hidden.out + hidden.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.costs.false_negative={column: kind}"], "column 'kind' is text; costs stand in a column of numbers"),
        (["evaluation.costs.false_negative={column: amuont}"], "no column 'amuont'; did you mean 'amount'?"),
        (["evaluation.costs.false_negative={column: y}"], "column 'y' is the target"),
        (["evaluation.costs.false_negative={colum: amount}"], "is not allowed; it must be a finite number, or {column: NAME}"),
        (["evaluation.costs.false_negative=dear"], "'dear' is not allowed; it must be a finite number, or {column: NAME}"),
        (["evaluation.costs.false_negative={column: x}"], "a mistake costs no more than deciding right"),
        (["evaluation.costs=null", "training.sampling=cost_rejection"], "cost_rejection needs evaluation.costs"),
        (["training.sampling=cost_rejection", "training.loss=focal"], "for the losses cross_entropy and bce"),
        (
            ["training.sampling=cost_rejection", "training.loss={cross_entropy: {class_weights: balanced}}"],
            "keep one of them",
        ),
        (["training.sampling=cost_rejection", "data.imbalance=random_over_sampler"], "copies rows"),
        (["training.sampling=cost_rejection", "training.mixup={}"], "mixup blends rows"),
        (["training.sampling=cost_rejection", "data.imbalance=smotenc"], "smotenc makes rows, and nothing says"),
        (["training.loss={cross_entropy: {class_weights: costs}}", "data.imbalance=smotenc"], "smotenc makes rows"),
        (["training.sampling=cost_rejection", "evaluation.costs.false_negative=1e9"], "and none of no, on which mistakes cost"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_by_check_and_by_train(place, shoal, overrides, said):
    arguments = [part for override in overrides for part in ("--set", override)]
    for verb in ("check", "train"):
        done = shoal(verb, place / "costs.yaml", *arguments)
        assert done.code == 2, done.out
        assert said in done.err, done.err


def test_what_is_private_stays_so(place, shoal):
    out = place / "private"
    done = shoal("train", place / "costs.yaml", "--out", out, "--set", "data.private=[amount, key]")
    assert done.code == 0, done.err
    page = (out / "report.html").read_text()
    assert "Where the cost comes from" not in page
    assert "Cost over the threshold" not in page
    assert "differs from row to row" not in page
    refused = shoal("check", place / "costs.yaml", "--set", "data.private=[amount, key]", "--set",
                    "evaluation.costs.false_negative={column: x}")  # fmt: skip
    assert "such as one whose id is private" in refused.err
