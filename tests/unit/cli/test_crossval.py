"""crossval: scores as scikit-learn's, stored fits, alternatives on the same folds."""

import builtins
import json

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


def test_metrics_hold_what_was_printed(shoal, small):
    done = shoal("crossval", small / "small.yaml", "--out", small / "run")
    assert done.code == 0, done.err
    metrics = json.loads((small / "run" / "metrics.json").read_text())
    entry = metrics["crossval"]["as it is"]["roc_auc"]
    assert f"{entry['value']:.4f}" in done.out
    assert f"{entry['low']:.4f} to {entry['high']:.4f}" in done.out
    assert "corrected resampled t over folds" in done.out
