"""crossval: scores as scikit-learn's, stored fits, alternatives on the same folds."""

import builtins
import json
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.tabular import rows

import shoal as shoal_package
from shoal.cluster.errors import RunError
from shoal.training import worker

L2 = 0.01


@pytest.fixture
def tumours(tmp_path):
    """scikit-learn's breast cancer set, of which 565 rows can be dealt into 5 equal folds."""
    x, y = load_breast_cancer(return_X_y=True)
    keep = np.r_[np.flatnonzero(y == 0)[:210], np.flatnonzero(y == 1)[:355]]
    x, y = x[keep], y[keep]
    table = pa.table({f"x{i:02d}": x[:, i] for i in range(30)} | {"id": np.arange(len(y)), "y": y})
    pq.write_table(table, tmp_path / "tumours.parquet")
    (tmp_path / "tumours.yaml").write_text(
        f"""\
data: {{path: {tmp_path}/tumours.parquet, target: y, positive: 1, id: id, split: {{test: 0, validation: 0}}}}
model: linear
training:
  {{epochs: 60, batch_size: full, precision: fp64, early_stopping: null, l2: {L2}, optimizer: {{lbfgs: {{tolerance_grad: 1e-9}}}}
  }}
evaluation: {{scoring: [roc_auc, log_loss, f1], cv: {{stratified: {{n_splits: 5}}}}}}
cluster: {{storage_path: {tmp_path}/runs}}
"""
    )
    return tmp_path, x, y


def test_scores_equal_scikit_learns_cross_validate(shoal, tumours):
    path, x, y = tumours
    done = shoal("crossval", path / "tumours.yaml", "--out", path / "run", "--json")
    assert done.code == 0, done.err
    found = pq.read_table(path / "run" / "predictions.parquet").to_pandas()
    assert sorted(found.row_id) == list(range(len(y)))
    # Its rows in the order in which the folds were dealt.
    folds = [found.row_id[found.fold == k + 1].to_numpy() for k in range(5)]
    splits = [(np.setdiff1d(np.arange(len(y)), test), test) for test in folds]
    n = len(splits[0][0])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (L2 * n), tol=1e-10, max_iter=10_000))
    theirs = cross_validate(model, x, y, cv=splits, scoring=["roc_auc", "neg_log_loss", "f1"])
    scores = done.json["crossval"]["as it is"]
    np.testing.assert_allclose(scores["roc_auc"]["by_fold"], theirs["test_roc_auc"], atol=1e-12)
    np.testing.assert_allclose(scores["log_loss"]["by_fold"], -theirs["test_neg_log_loss"], atol=1e-5)
    np.testing.assert_allclose(scores["f1"]["by_fold"], theirs["test_f1"], atol=1e-12)
    assert scores["roc_auc"]["value"] == pytest.approx(theirs["test_roc_auc"].mean())
    for test in folds:  # as the splitter deals
        assert abs(y[test].mean() - y.mean()) < 1 / len(test)
    sizes = [len(test) for _, test in StratifiedKFold(5).split(x, y)]
    assert sorted(map(len, folds)) == sorted(sizes)


def test_a_model_of_scikit_learns_is_judged_as_it_judges_it_itself(shoal, tumours):
    path, x, y = tumours
    model = 'model={import: "sklearn.linear_model:LogisticRegression", C: 0.5, tol: 1e-10}'
    # Nothing of its fit needs validation rows, so none are taken from the training rows.
    plain = ["training={}", "evaluation.scoring=[roc_auc, log_loss, f1]", "data.split.validation=0.1"]
    sets = [part for value in (model, *plain) for part in ("--set", value)]
    done = shoal("crossval", path / "tumours.yaml", "--out", path / "run", "--json", *sets)
    assert done.code == 0, done.err
    found = pq.read_table(path / "run" / "predictions.parquet").to_pandas()
    folds = [found.row_id[found.fold == k + 1].to_numpy() for k in range(5)]
    splits = [(np.setdiff1d(np.arange(len(y)), test), test) for test in folds]
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-10))
    theirs = cross_validate(theirs, x, y, cv=splits, scoring=["roc_auc", "neg_log_loss", "f1"])
    scores = done.json["crossval"]["as it is"]
    np.testing.assert_allclose(scores["roc_auc"]["by_fold"], theirs["test_roc_auc"], atol=1e-12)
    np.testing.assert_allclose(scores["log_loss"]["by_fold"], -theirs["test_neg_log_loss"], atol=1e-5)
    np.testing.assert_allclose(scores["f1"]["by_fold"], theirs["test_f1"], atol=1e-12)
    kept = json.loads((path / "run" / "fits" / "fold-001" / "parameters.json").read_text())
    assert kept["C"] == "0.5"
    assert not (path / "run" / "fits" / "fold-001" / "model").exists()


def test_a_model_of_scikit_learns_is_an_alternative_without_how_the_network_is_trained(shoal, small):
    axis = small / "axis.yaml"
    axis.write_text('trees: {model: {import: "sklearn.ensemble:RandomForestClassifier", n_estimators: 5}}\n')
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--json")
    assert done.code == 0, done.err
    assert set(done.json["crossval"]) == {"as it is", "trees"}
    axis.write_text(axis.read_text().replace("}}", "}, training.epochs: 3}"))
    done = shoal("crossval", small / "small.yaml", "--compare", axis)
    assert done.code == 2
    assert "training.epochs means nothing for sklearn.ensemble:RandomForestClassifier" in done.err


def test_a_model_of_scikit_learns_is_trained_judged_and_asked(shoal, small):
    sets = ["--set", 'model={import: "sklearn.ensemble:HistGradientBoostingClassifier", max_iter: 5}']
    sets += ["--set", "training={}", "--set", "evaluation.costs={false_positive: 1, false_negative: 5}"]
    run = small / "run"
    assert shoal("check", small / "small.yaml", *sets).code == 0
    done = shoal("train", small / "small.yaml", "--out", run, *sets)
    assert done.code == 0, done.err
    assert "HistGradientBoostingClassifier fitted to" in done.out
    asked = shoal("predict", run, "--data", small / "rows.parquet", "--to", small / "found.parquet")
    assert asked.code == 0, asked.err
    found = pq.read_table(small / "found.parquet").to_pandas().set_index("key")
    known = pq.read_table(run / "predictions.parquet").to_pandas()
    np.testing.assert_allclose(found.score_yes[known.row_id], known.score_yes, rtol=0, atol=1e-12)
    assert (found.prediction[known.row_id].to_numpy() == known.decision.to_numpy()).all()
    again = shoal("evaluate", run, "--json")
    assert again.code == 0, again.err
    assert shoal("report", run).code == 0
    (run / "model" / "model.skops").write_bytes(b"damaged")
    assert (
        "is damaged"
        in shoal("predict", run, "--data", small / "rows.parquet", "--to", small / "x.parquet").err
    )
    (run / "model" / "model.skops").unlink()
    done = shoal("train", small / "small.yaml", "--out", run, *sets)
    assert done.code == 2
    assert "are gone since" in done.err or "is gone since" in done.err


def test_nested_folds_choose_and_judge_as_scikit_learn_does(shoal, tumours):
    path, x, y = tumours
    strengths = [0.1, 0.003, 0.0003]
    (path / "axis.yaml").write_text("".join(f"l2 {s}: {{training.l2: {s}}}\n" for s in strengths))
    cv = "evaluation.cv={nested: {outer: {stratified: {n_splits: 3}}, inner: {stratified: {n_splits: 2}}}}"
    arguments = [path / "tumours.yaml", "--compare", path / "axis.yaml", "--out", path / "run", "--json"]
    done = shoal("crossval", *arguments, "--set", cv, "--set", "evaluation.scoring=[log_loss]")
    assert done.code == 0, done.err

    def judged(fit):
        table = pq.read_table(path / "run" / "fits" / fit / "predictions.parquet").to_pandas()
        return table.row_id[table.split == "test"].to_numpy()

    def loss(l2, train, test):
        model = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-10, max_iter=10_000)
        made = make_pipeline(StandardScaler(), model).fit(x[train], y[train])
        return log_loss(y[test], made.predict_proba(x[test]))

    candidates = {"as it is": L2, **{f"l2 {s}": s for s in strengths}}
    found = done.json["nested"]
    everyone = pq.read_table(path / "run" / "predictions.parquet").to_pandas()
    for k, choice in enumerate(found["choices"]):
        outer = judged(f"fold-{k + 1:03d}")
        pool = np.setdiff1d(np.arange(len(y)), outer)
        inner = [judged(f"fold-{k + 1:03d}-inner-{i:03d}") for i in (1, 2)]
        assert sorted(np.concatenate(inner)) == sorted(pool)
        means = {
            name: np.mean([loss(s, np.setdiff1d(pool, test), test) for test in inner])
            for name, s in candidates.items()
        }
        assert choice["means"] == pytest.approx(means, abs=1e-5)
        assert choice["chosen"] == min(means, key=means.get)
        expected = loss(candidates[choice["chosen"]], pool, outer)
        assert found["scores"]["log_loss"]["by_fold"][k] == pytest.approx(expected, abs=1e-5)
        assert set(everyone.alternative[everyone.chosen & (everyone.fold == k + 1)]) == {choice["chosen"]}


def test_nested_folds_need_something_to_choose_among(shoal, small):
    done = shoal("crossval", small / "small.yaml", "--set", "evaluation.cv=nested")
    assert done.code == 2
    assert "nested chooses among alternatives inside each fold, and there are none" in done.err


@pytest.fixture
def small(tmp_path):
    pq.write_table(rows(), tmp_path / "rows.parquet")
    (tmp_path / "small.yaml").write_text(
        f"""\
data: {{path: {tmp_path}/rows.parquet, target: y, id: key}}
model: linear
training: {{epochs: 3, batch_size: 32, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
evaluation: {{cv: 3}}
cluster: {{storage_path: {tmp_path}/runs}}
"""
    )
    return tmp_path


def parts(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.name in ("predictions.parquet", "model.safetensors")
    }


def test_an_ended_run_does_only_what_is_missing_and_ends_as_if_it_had_not(shoal, small, monkeypatch):
    assert shoal("crossval", small / "small.yaml", "--out", small / "whole").code == 0
    whole, count = worker.run_worker, 0

    def ends(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr("shoal.training.trainer.run_worker", ends)
    assert shoal("crossval", small / "small.yaml", "--out", small / "ended").code == 130
    assert not (small / "ended" / "metrics.json").exists()
    done = shoal("crossval", small / "small.yaml", "--out", small / "ended")
    assert done.code == 0, done.err
    assert "2 fits of 3 are there already" in done.err
    assert count == 4
    assert parts(small / "ended") == parts(small / "whole")
    before = count
    done = shoal("crossval", small / "small.yaml", "--out", small / "ended")
    assert "this run is complete" in done.err
    assert count == before


def test_a_fit_that_fails_is_named_and_the_others_are_kept(shoal, small, monkeypatch):
    whole, count = worker.run_worker, 0

    def fails(*arguments):
        nonlocal count
        count += 1
        if count in (2, 3):  # it is tried twice
            raise RunError("the loss became nan")
        return whole(*arguments)

    monkeypatch.setattr("shoal.training.trainer.run_worker", fails)
    done = shoal("crossval", small / "small.yaml", "--out", small / "run")
    assert done.code == 1
    assert "1 fit of 3 failed, the others are kept; the same command tries them again" in done.err
    assert "fold-002: the loss became nan" in done.err
    assert shoal("crossval", small / "small.yaml", "--out", small / "run").code == 0
    assert count == 5


class Own(ClassifierMixin, BaseEstimator):
    """scikit-learn's documented least, which may fail."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def fit(self, _, y):
        if self.fails:
            raise getattr(builtins, self.fails)("boom")
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        return np.full((len(x), len(self.classes_)), 1 / len(self.classes_))


@pytest.mark.parametrize("error", ["RuntimeError", "KeyError", "ZeroDivisionError"])
def test_an_alternative_that_fails_leaves_the_others_and_what_they_score(shoal, small, error):
    model = f'{{import: "{__name__}:Own"'
    axis, run = small / "axis.yaml", small / "run"
    axis.write_text(f"plain: {{}}\nown: {{model: {model}}}}}\nbad: {{model: {model}, fails: {error}}}}}\n")
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--out", run)
    assert done.code == 1, done.err
    assert "3 fits of 9 failed" in done.err
    assert f"{__name__}:Own could not be fitted: {error}: " in done.err
    assert "whole: plain: average_precision 0." in done.err
    assert "whole: own: average_precision 0." in done.err
    assert not list(run.glob("fits/*/data"))
    assert shoal("report", run).code == 2
    fits = {path: path.stat().st_mtime_ns for path in run.glob("fits/*/metrics.json")}
    assert len(fits) == 6
    axis.write_text(f"own: {{model: {model}}}}}\nslow: {{training.optimizer.learning_rate: 1e-5}}\n")
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--out", run)
    assert done.code == 0, done.err
    assert "6 fits of 9 are there already" in done.err
    assert {path: path.stat().st_mtime_ns for path in fits} == fits
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--out", run)
    assert "this run is complete" in done.err
    assert shoal("report", run).code == 0


def test_fits_that_failed_are_tried_again_and_damaged_ones_done_again(shoal, small, monkeypatch):
    whole, count = worker.run_worker, 0

    def fails(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise RunError("a worker was lost")
        return whole(*arguments)

    monkeypatch.setattr("shoal.training.trainer.run_worker", fails)
    run = small / "run"
    done = shoal("crossval", small / "small.yaml", "--out", run)
    assert done.code == 0, done.err
    assert count == 4
    scores = (run / "fits" / "fold-002" / "metrics.json").read_text()
    (run / "fits" / "fold-002" / "metrics.json").write_text("{")
    (run / "metrics.json").unlink()
    done = shoal("crossval", small / "small.yaml", "--out", run)
    assert done.code == 0, done.err
    assert count == 5
    again = json.loads((run / "fits" / "fold-002" / "metrics.json").read_text())
    assert again["scores"] == json.loads(scores)["scores"]


def test_alternatives_may_be_given_in_python(small):
    found = shoal_package.crossval(
        shoal_package.load_experiment(small / "small.yaml"),
        str(small / "run"),
        compare={"linear": {"model": "linear"}},
    )
    assert list(found.scores) == ["as it is", "linear"]
    assert "p_value" not in found.scores["linear"]["roc_auc"]


def test_what_ranks_cannot_tell_apart_is_told_by_cost(shoal, small):
    axis = small / "axis.yaml"
    axis.write_text("plain: {}\nother: {evaluation.threshold: 0.9}\n")
    sets = [
        "--set",
        "evaluation.costs={false_positive: 1, false_negative: 5}",
        "--set",
        "evaluation.calibration=none",
    ]
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--json", *sets)
    assert done.code == 0, done.err
    (other,) = done.json["comparison"].values()
    assert other["differences"]["average_precision"]["value"] == 0
    assert other["sentence"].startswith("other: expected_cost +")


def test_inner_folds_by_which_nothing_can_be_chosen_are_refused_first(shoal, small):
    table = rows(120).append_column("site", pa.array([f"s{i % 4}" for i in range(120)]))
    ill = pc.and_(pc.equal(table["y"], "yes"), pc.equal(table["site"], "s1"))
    pq.write_table(table.filter(pc.invert(ill)), small / "rows.parquet")
    (small / "axis.yaml").write_text("plain: {}\nlinear: {model: linear}\n")
    cv = "evaluation.cv={nested: {outer: leave_one_group_out, inner: leave_one_group_out}}"
    sets = ["--set", "data.group=site", "--set", "data.split={test: 0}", "--set", cv]
    arguments = [small / "small.yaml", "--compare", small / "axis.yaml", "--out", small / "run", *sets]
    done = shoal("crossval", *arguments, "--set", "evaluation.scoring=[roc_auc]")
    assert done.code == 2, done.err
    assert "roc_auc cannot choose inside fold" in done.err
    assert "the rows hold one class only; choose other inner folds" in done.err
    assert "fitting" not in done.err


def test_rows_near_validation_rows_of_the_split_are_in_folds(shoal, small):
    days = [datetime(2026, 1, 1) + timedelta(days=i) for i in range(300)]
    table = (
        rows(300)
        .append_column("when", pa.array(days))
        .append_column("who", pa.array([f"w{i % 30}" for i in range(300)]))
    )
    pq.write_table(table, small / "rows.parquet")
    base = ["--set", "data.time=when", "--set", "training.epochs=1"]
    base += ["--set", "evaluation.cv={time_series: {n_splits: 3, gap: 5d}}"]
    sets = ["--set", "data.split={time: {test: 0, validation: 0.1, gap: 10d}}"]
    done = shoal("crossval", small / "small.yaml", "--out", small / "run", *base, *sets)
    assert done.code == 0, done.err
    judged = pq.read_table(small / "run" / "predictions.parquet").to_pandas()
    assert len(judged) == 225  # all but the first of four blocks
    # Groups on both sides are the folds' business alone, where there is no test part.
    sets = ["--set", "data.group=who", "--set", "data.split={test: 0}"]
    done = shoal(
        "crossval", small / "small.yaml", "--out", small / "grouped", *base, *sets, "--set", "evaluation.cv=3"
    )
    assert done.code == 2
    assert "no training rows are left" in done.err
    sets += ["--set", "evaluation.cv={time_series: {n_splits: 3, groups: allow}}"]
    done = shoal("crossval", small / "small.yaml", "--out", small / "grouped", *base, *sets)
    assert done.code == 0, done.err
    assert len(pq.read_table(small / "grouped" / "predictions.parquet")) == 225
    done = shoal("crossval", small / "small.yaml", *base, "--set", "evaluation.cv={time_series: {gap: 10}}")
    assert done.code == 2
    assert "evaluation.cv: 10 is no span of time" in done.err
    sets = ["--set", "evaluation.cv={kfold: {n_splits: 2}}", "--set", "data.split={test: 0}"]
    done = shoal("crossval", small / "small.yaml", *base, *sets)
    assert "data.time (when) orders the rows: models are judged on the past" in done.err


def test_test_rows_need_no_value_in_the_column_of_folds(shoal, small):
    table = rows(90)
    part = ["test" if i % 3 == 0 else "train" for i in range(90)]
    fold = [None if i % 3 == 0 else i % 2 for i in range(90)]
    table = table.append_column("part", pa.array(part)).append_column("fold", pa.array(fold))
    pq.write_table(table, small / "rows.parquet")
    sets = ["--set", "data.split={column: part}", "--set", "evaluation.cv={column: {name: fold}}"]
    done = shoal("crossval", small / "small.yaml", "--out", small / "run", *sets)
    assert done.code == 0, done.err
    assert len(pq.read_table(small / "run" / "predictions.parquet")) == 60


def test_alternatives_are_judged_on_the_same_rows(shoal, small):
    axis = small / "axis.yaml"
    axis.write_text("mlp: {model: {mlp: {hidden: [8]}}}\nsmote: {data.imbalance: random_over_sampler}\n")
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--json")
    if done.code == 2:  # the method's name is not what is tested here
        axis.write_text(
            "mlp: {model: {mlp: {hidden: [8]}}}\nslow: {training.optimizer.learning_rate: 1e-5}\n"
        )
        done = shoal("crossval", small / "small.yaml", "--compare", axis, "--json")
    assert done.code == 0, done.err
    found = pq.read_table(f"{done.json['run']}/predictions.parquet").to_pandas()
    of = {name: group.sort_values("row_id") for name, group in found.groupby("alternative")}
    first, *others = of
    for name in others:
        assert of[name].row_id.tolist() == of[first].row_id.tolist()
        assert of[name].fold.tolist() == of[first].fold.tolist()
    entry = done.json["crossval"]["mlp"]["roc_auc"]
    mine = of["mlp"]
    by_fold = [
        roc_auc_score(mine.label[mine.fold == k] == "yes", mine.score_yes[mine.fold == k]) for k in (1, 2, 3)
    ]
    assert entry["by_fold"] == pytest.approx(by_fold)
    difference = done.json["comparison"]["mlp"]["differences"]["roc_auc"]["value"]
    assert difference == pytest.approx(entry["value"] - done.json["crossval"]["as it is"]["roc_auc"]["value"])


def test_the_test_rows_are_in_no_fold(shoal, small):
    done = shoal("crossval", small / "small.yaml", "--out", small / "run", "--json")
    assert done.code == 0, done.err
    trained = shoal("train", small / "small.yaml", "--out", small / "trained")
    assert trained.code == 0, trained.err
    held_out = pq.read_table(small / "trained" / "predictions.parquet").to_pandas()
    tests = set(held_out.row_id[held_out.split == "test"])
    judged = set(pq.read_table(small / "run" / "predictions.parquet")["row_id"].to_pylist())
    assert len(judged) == 300 - len(tests)
    assert not judged & tests


def test_selection_on_noise_inside_the_folds_finds_nothing(shoal, tmp_path):
    # 120 columns of noise: chosen by their correlation over all rows they would score far above .5.
    rng = np.random.default_rng(5)
    table = pa.table({f"x{i}": rng.normal(size=200) for i in range(120)} | {"y": rng.integers(0, 2, 200)})
    pq.write_table(table, tmp_path / "noise.parquet")
    (tmp_path / "noise.yaml").write_text(
        f"""\
data: {{path: {tmp_path}/noise.parquet, target: y, split: {{test: 0}}}}
model: linear
training: {{epochs: 5, batch_size: 32, l1: {{proximal: 0.02}}, optimizer: {{sgd: {{learning_rate: 0.1}}}}}}
evaluation: {{scoring: roc_auc, threshold: {{maximise: f1}}, calibration: isotonic}}
cluster: {{storage_path: {tmp_path}/runs}}
"""
    )
    done = shoal("crossval", tmp_path / "noise.yaml", "--json")
    assert done.code == 0, done.err
    scores = done.json["crossval"]["as it is"]["roc_auc"]
    assert scores["low"] < 0.5 < scores["high"]
    assert abs(scores["value"] - 0.5) < 0.1


def test_the_best_of_several_on_noise_is_none_when_the_choice_is_nested(shoal, tmp_path):
    # 30 models of noise, told apart by the columns that they see; the best of them on the inner folds is far above .5.
    rng = np.random.default_rng(11)
    table = pa.table({f"x{i:02d}": rng.normal(size=90) for i in range(30)} | {"y": rng.permutation(90) % 2})
    pq.write_table(table, tmp_path / "noise.parquet")
    (tmp_path / "noise.yaml").write_text(
        f"""\
data: {{path: {tmp_path}/noise.parquet, target: y, split: {{test: 0, validation: 0}}}}
model: linear
training: {{epochs: 4, batch_size: full, early_stopping: null, optimizer: {{lbfgs: {{max_iter: 5}}}}, l2: 0.01}}
evaluation: {{scoring: roc_auc, cv: {{nested: {{outer: 3, inner: 2}}}}}}
cluster: {{storage_path: {tmp_path}/runs}}
"""
    )
    (tmp_path / "axis.yaml").write_text(
        "".join(f"x{i:02d}: {{data.features: [x{i:02d}]}}\n" for i in range(12))
    )
    done = shoal("crossval", tmp_path / "noise.yaml", "--compare", tmp_path / "axis.yaml", "--json")
    assert done.code == 0, done.err
    found = done.json["nested"]
    by_choice = np.mean([choice["means"][choice["chosen"]] for choice in found["choices"]])
    scores = found["scores"]["roc_auc"]
    assert by_choice > 0.6  # what the choice would be sold for
    assert scores["low"] < 0.5 < scores["high"]
    assert abs(scores["value"] - 0.5) < 0.12


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("", "there is no alternative"),
        ("a: {}\n", "there is nothing to compare with"),
        ("'': {model: linear}\n", "an alternative has no name"),
        ("a: 3\n", "a: 3 is not allowed; an alternative is a section"),
        ("a: {seed: 3}\n", "a: seed decides which rows are judged"),
        ("a: {data.split.test: 0.1}\n", "data.split.test decides which rows are judged"),
        ("a: {data: {imbalance: smote}}\n", "data decides which rows are judged"),
        ("a: {training.epoch: 3}\n", "training.epoch is not a key; did you mean"),
        ("a: {training.epochs: 0}\n", "training.epochs: 0 is not allowed"),
    ],
)
def test_alternatives_that_cannot_be_compared_are_refused(shoal, small, axis, said):
    (small / "axis.yaml").write_text(axis)
    done = shoal("crossval", small / "small.yaml", "--compare", small / "axis.yaml")
    assert done.code == 2
    assert said in done.err
    assert not (small / "runs").exists()


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("data.imbalance: smote", "smote makes rows between numbers"),
        ('model: {import: "sklearn.linear_model:LogisticRegression", C: -3}', "The 'C' parameter"),
        ('model: {import: "sklearn.svm:LinearSVC"}', "gives no probabilities"),
        ('model: {import: "sklearn.linear_model:Ridge"}', "is no classifier"),
        ("training.loss: huber", "huber"),
    ],
)
def test_alternatives_that_no_fold_could_fit_are_refused_before_any_is_fitted(shoal, small, axis, said):
    (small / "axis.yaml").write_text(f"plain: {{}}\nbad: {{{axis}}}\n")
    run = small / "run"
    done = shoal("crossval", small / "small.yaml", "--compare", small / "axis.yaml", "--out", run)
    assert done.code == 2, done.err
    assert f"--compare: bad: {said}" in done.err or ("--compare: bad: " in done.err and said in done.err)
    assert "fitting" not in done.err
    assert not run.exists()


def test_validation_rows_are_cut_where_a_fit_learns_from_them(shoal, small):
    axis = small / "axis.yaml"
    axis.write_text(
        "plain: {}\nstopped: {training.early_stopping: {patience: 3}}\n"
        "calibrated: {evaluation.calibration: temperature}\n"
    )
    sets = ["--set", "training.early_stopping=null"]
    done = shoal("crossval", small / "small.yaml", "--compare", axis, "--out", small / "run", *sets)
    assert done.code == 0, done.err
    assert "plain: no validation rows are cut from the training rows" in done.err
    assert "stopped: validation rows are cut from each fold's training rows, for early stopping" in done.err
    rows_of = [
        json.loads(next((small / "run" / "fits").glob(f"fold-001{name}/metrics.json")).read_text())["rows"]
        for name in ("", "-stopped-*", "-calibrated-*")
    ]
    assert [found.get("validation", 0) > 0 for found in rows_of] == [False, True, True]
    assert len({found["train"] + found.get("validation", 0) for found in rows_of}) == 1


def test_folds_that_cannot_spare_validation_rows_are_refused_before_any_is_fitted(shoal, small):
    table = rows(120).append_column("site", pa.array([f"s{i % 3}" for i in range(120)]))
    pq.write_table(table, small / "rows.parquet")
    (small / "axis.yaml").write_text("plain: {}\nlinear: {model: linear}\n")
    cv = "evaluation.cv={nested: {outer: leave_one_group_out, inner: leave_one_group_out}}"
    sets = ["--set", "data.group=site", "--set", "data.split={test: 0}", "--set", cv]
    arguments = [small / "small.yaml", "--compare", small / "axis.yaml", "--out", small / "run", *sets]
    done = shoal("crossval", *arguments)
    assert done.code == 2, done.err
    assert "fold 1 inside fold 1: validation rows, for early stopping, cannot be cut: " in done.err
    assert "1 group cannot fill 2 parts" in done.err
    assert not (small / "run").exists()
    done = shoal("crossval", *arguments, "--set", "training.early_stopping=null")
    assert done.code == 0, done.err


def test_means_that_are_not_over_all_folds_say_so(shoal, small):
    table = rows(120).append_column("site", pa.array([f"s{i % 3}" for i in range(120)]))
    table = table.filter(pc.or_(pc.equal(table["y"], "no"), pc.not_equal(table["site"], "s0")))
    pq.write_table(table, small / "rows.parquet")
    sets = [
        "--set",
        "data.group=site",
        "--set",
        "data.split={test: 0}",
        "--set",
        "evaluation.cv=leave_one_group_out",
    ]
    done = shoal("crossval", small / "small.yaml", "--out", small / "run", *sets)
    assert done.code == 0, done.err
    said = "undefined in 1 of 3 folds, so means over the other folds alone: average_precision, roc_auc"
    assert said in " ".join(done.out.split())
    page = (small / "run" / "report.html").read_text()
    assert "are undefined in 1 of 3 folds: what is shown is the mean over the others alone." in page


@pytest.mark.parametrize(
    ("cv", "said"),
    [
        ("1", "evaluation.cv"),
        ("{kfold: {n_splits: 1}}", "must be from 2 to 1000"),
        ("{kfold:{n_splits:3}}", "a space belongs after each colon: {kfold: {n_splits: 3}}"),
        ("kfld", "there is no 'kfld'; did you mean kfold?"),
        ("group", "group needs data.group"),
        ("{column: {name: nothing}}", "evaluation.cv.column.name: the data have no column 'nothing'"),
    ],
)
def test_folds_that_cannot_be_are_refused(shoal, small, cv, said):
    done = shoal("crossval", small / "small.yaml", "--set", f"evaluation.cv={cv}")
    assert done.code == 2
    assert said in done.err
    assert not list((small / "runs").glob("*")) if (small / "runs").exists() else True


def test_metrics_hold_what_was_printed(shoal, small):
    done = shoal("crossval", small / "small.yaml", "--out", small / "run")
    assert done.code == 0, done.err
    metrics = json.loads((small / "run" / "metrics.json").read_text())
    entry = metrics["crossval"]["as it is"]["roc_auc"]
    assert f"{entry['value']:.4f}" in done.out
    assert f"{entry['low']:.4f} to {entry['high']:.4f}" in done.out
    assert "corrected resampled t over folds" in done.out


@pytest.mark.parametrize(
    ("cv", "code", "said"),
    [
        ("{stratified: {n_splits: 200}}", 2, "stratified with 200 folds needs as many rows of each class"),
        ("{column: {name: nowhere}}", 2, "evaluation.cv.column.name: the data have no column 'nowhere'"),
        ("{nested: {outer: {kfold: {n_splits: 2}}, inner: {group: {n_splits: 2}}}}", 2, "needs data.group"),
        ("4", 0, "cv: stratified, 4 folds, because the target has classes"),
        ("auto", 0, "train"),
    ],
)
def test_check_deals_the_folds_that_the_file_asks_for(shoal, small, cv, code, said):
    done = shoal("check", small / "small.yaml", "--set", f"evaluation.cv={cv}")
    assert done.code == code, done.err
    assert said in done.out + done.err
    assert not (small / "runs").exists()
