"""crossval: which rows are in folds, and what is refused before any fit."""

import json
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.tabular import rows


def test_nested_folds_need_something_to_choose_among(shoal, small):
    done = shoal("crossval", small / "small.yaml", "--set", "evaluation.cv=nested")
    assert done.code == 2
    assert "nested chooses among alternatives inside each fold, and there are none" in done.err


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
