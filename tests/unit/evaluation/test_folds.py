"""Folds of rows, against scikit-learn's splitters and their own definitions."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter
from sklearn import model_selection

from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding import splits
from shoal.cluster.sharding.assign import Assignment, Rows
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.manifest import Target
from shoal.evaluation.crossval.config import CvChoice
from shoal.evaluation.crossval.folds import Folds, OneFold, folds_of, inner_folds

N = 120
DRAW = np.random.default_rng(0)
LABELS = (DRAW.random(N) < 0.3).astype(np.int64)
GROUPS = DRAW.integers(1, 25, N).astype(np.uint64)
TIMES = DRAW.integers(0, 50, N)
BINARY = Target(columns=("y",), task="binary", classes=("no", "yes"))
NUMBER = Target(columns=("y",), task="regression")
CV: TypeAdapter[Any] = TypeAdapter(CvChoice)


class Halves:
    """A splitter of a user's own."""

    def __init__(self, first: int = 2) -> None:
        self.first = first

    def split(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> Any:
        n = len(x) // self.first
        yield np.arange(n, len(x)), np.arange(n)
        yield np.arange(n), np.arange(n, len(x))


def overlapping() -> Any:
    class Overlapping:
        def split(self, x: np.ndarray, *_: Any) -> Any:
            yield np.arange(len(x)), np.arange(10)

    return Overlapping()


def rows(labels: np.ndarray = LABELS) -> Rows:
    roles = pa.table({"y": labels, "when": TIMES, "part": [f"p{i % 3}" for i in range(N)]})
    keys = np.arange(N, dtype=np.uint64) + np.uint64(1)
    return Rows(labels, roles, keys, {"customer": GROUPS})


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate({"path": "x.parquet", "target": "y", **data})


def fold(
    cv: Any, target: Target = BINARY, held_out: int = 0, labels: np.ndarray = LABELS, **data: Any
) -> Folds:
    parts = np.zeros(N, np.int8)
    parts[:held_out] = splits.TEST
    found = Assignment(parts, "")
    return folds_of(CV.validate_python(cv), rows(labels), config(**data), target, 7, found)


SKLEARN = {
    "kfold": ({"kfold": {"n_splits": 4}}, {}, model_selection.KFold(4)),
    "stratified": ({"stratified": {"n_splits": 3}}, {}, model_selection.StratifiedKFold(3)),
    "group": ({"group": {"n_splits": 3}}, {"group": "customer"}, model_selection.GroupKFold(3)),
    "stratified_group": (
        {"stratified_group": {"n_splits": 3}},
        {"group": "customer"},
        model_selection.StratifiedGroupKFold(3),
    ),
    "leave_one_group_out": ("leave_one_group_out", {"group": "customer"}, model_selection.LeaveOneGroupOut()),
}


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("held_out", [0, 20])
def test_folds_are_scikit_learns_on_the_rows_that_are_no_test_rows(name: str, held_out: int) -> None:
    from shoal.cluster.sharding.hashing import seeded

    cv, data, theirs = SKLEARN[name]
    pool = np.arange(held_out, N)
    groups = seeded(GROUPS, 7)[pool]
    expected = list(theirs.split(np.zeros((len(pool), 1)), LABELS[pool], groups))
    found = fold(cv, held_out=held_out, **data)
    assert len(found) == len(expected)
    for ours, (train, test) in zip(found.folds, expected, strict=True):
        np.testing.assert_array_equal(ours.train, pool[train])
        np.testing.assert_array_equal(ours.test, pool[test])


@pytest.mark.parametrize("name", ["repeated", "repeated_stratified"])
def test_repeats_judge_every_row_as_often_in_other_folds(name: str) -> None:
    found = fold({name: {"n_splits": 3, "n_repeats": 4}})
    assert len(found) == 12
    assert (np.bincount(np.concatenate([f.test for f in found.folds]), minlength=N) == 4).all()
    assert len({f.test.tobytes() for f in found.folds}) == 12
    again = fold({name: {"n_splits": 3, "n_repeats": 4}})
    assert [f.test.tolist() for f in again.folds] == [f.test.tolist() for f in found.folds]


def test_folds_over_time_follow_the_column_and_leave_out_rows_of_the_blocks_groups() -> None:
    found = fold(
        {"time_series": {"n_splits": 4, "gap": 2}}, time="when", group="customer", split={"groups": "allow"}
    )
    for part in found.folds:
        assert TIMES[part.train].max() < TIMES[part.test].min() - 2
        assert not set(GROUPS[part.train]) & set(GROUPS[part.test])


def test_a_column_names_the_folds() -> None:
    found = fold({"column": {"name": "part"}})
    assert [set(f.test % 3) for f in found.folds] == [{0}, {1}, {2}]


def test_a_splitter_of_the_users_own() -> None:
    found = fold({"import": f"{__name__}:Halves", "first": 3})
    assert [len(f.test) for f in found.folds] == [40, 80]


@pytest.mark.parametrize(
    ("cv", "data", "target", "reason"),
    [
        (5, {}, BINARY, "cv: stratified, 5 folds, because the target has classes"),
        (
            "auto",
            {"group": "customer"},
            BINARY,
            "cv: stratified_group, 5 folds, because rows of one 'customer'",
        ),
        (3, {"time": "when"}, BINARY, "cv: time_series, 3 folds, because data.time orders the rows"),
        (4, {}, NUMBER, "cv: kfold, 4 folds, because nothing orders or groups the rows"),
        (40, {}, BINARY, "cv: stratified, 32 folds and not 40, because the smallest class has 32 rows"),
    ],
)
def test_auto_says_what_it_chose_and_why(cv: Any, data: dict[str, Any], target: Target, reason: str) -> None:
    assert LABELS.sum() == 32
    labels = LABELS if target is BINARY else LABELS.astype(np.float64)
    assert fold(cv, target, labels=labels, **data).reason.startswith(reason)


@pytest.mark.parametrize(
    ("cv", "data", "message"),
    [
        (
            {"stratified": {"n_splits": 40}},
            {},
            "class 'yes' has 32 rows that are not test rows; choose fewer folds",
        ),
        ("group", {}, "group needs data.group"),
        ("time_series", {}, "time_series needs data.time"),
        ("kfold", {"group": "customer"}, "kfold would part the groups of 'customer'"),
        (
            {"group": {"n_splits": 100}},
            {"group": "customer"},
            "evaluation.cv: group: Cannot have number of splits",
        ),
        (
            {"time_series": {"gap": 1000}},
            {"time": "when"},
            "no training rows are left for fold 1, which judges .* rows; choose a smaller gap, fewer folds",
        ),
        ({"time_series": {"max_train_size": "3d"}}, {"time": "when"}, "column 'when' holds numbers"),
        ({"time_series": {"gap": "3d"}}, {"time": "when"}, "column 'when' holds numbers"),
        ({"column": {"name": "y"}}, {}, "fold 1 of column judges 1 class of which it has no training row"),
        ({"import": f"{__name__}:overlapping"}, {}, "rows that both train and judge"),
    ],
)
def test_folds_that_cannot_be_are_refused(cv: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fold(cv, **data)


def test_a_splitter_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="could not be called"):
        fold({"import": f"{__name__}:Halves", "second": 3})
    with pytest.raises(ConfigError, match="it must return a splitter"):
        fold({"import": "builtins:dict"})


def test_a_folds_parts_keep_test_rows_out_and_cut_validation_from_training() -> None:
    parts = np.zeros(N, np.int8)
    parts[:20] = splits.TEST
    data, cv = config(split={"validation": 0.25}), CV.validate_python({"stratified": {"n_splits": 4}})
    tested = np.zeros(N, int)
    for number in range(4):
        made = OneFold(cv, number)(rows(), data, BINARY, 7, Assignment(parts.copy(), ""))
        assert (made.parts[:20] == splits.LEFT_OUT).all()
        counts = {
            part: int((made.parts == part).sum()) for part in (splits.TRAIN, splits.VALIDATION, splits.TEST)
        }
        assert counts[splits.TEST] == 25
        assert counts[splits.VALIDATION] == pytest.approx(0.25 * 75, abs=1)
        tested += made.parts == splits.TEST
    assert (tested[20:] == 1).all()
    assert OneFold(cv, 0).identity != OneFold(cv, 1).identity


def test_validation_rows_of_folds_over_time_are_the_latest() -> None:
    data = config(time="when", split={"validation": 0.2})
    made = OneFold(CV.validate_python("time_series"), 3)(
        rows(), data, BINARY, 7, Assignment(np.zeros(N, np.int8), "")
    )
    latest = TIMES[made.parts == splits.TRAIN].max()
    assert latest < TIMES[made.parts == splits.VALIDATION].min()
    assert TIMES[made.parts == splits.VALIDATION].max() < TIMES[made.parts == splits.TEST].min()


def test_inner_folds_are_scikit_learns_on_the_training_rows_of_the_outer_one() -> None:
    cv = CV.validate_python(
        {"nested": {"outer": {"group": {"n_splits": 3}}, "inner": {"stratified": {"n_splits": 2}}}}
    )
    data, found = config(group="customer", split={"groups": "allow"}), Assignment(np.zeros(N, np.int8), "")
    outer = folds_of(cv, rows(), data, BINARY, 7, found)
    assert len(outer) == 3
    for number, fold_of in enumerate(outer.folds):
        inner = inner_folds(cv, number, fold_of, rows(), data, BINARY, 7)
        theirs = model_selection.StratifiedKFold(2).split(fold_of.train, LABELS[fold_of.train])
        for i, (ours, (train, test)) in enumerate(zip(inner.folds, theirs, strict=True)):
            np.testing.assert_array_equal(ours.train, fold_of.train[train])
            np.testing.assert_array_equal(ours.test, fold_of.train[test])
            one = OneFold(cv, number, i)(rows(), data, BINARY, 7, found)
            np.testing.assert_array_equal(np.flatnonzero(one.parts == splits.TEST), ours.test)
            assert (one.parts[fold_of.test] == splits.LEFT_OUT).all()
            assert one.kind.startswith(f"fold {i + 1} of 2 inside fold {number + 1} of 3")


def test_inner_folds_that_cannot_be_dealt_name_the_outer_one() -> None:
    cv = CV.validate_python(
        {"nested": {"outer": {"kfold": {"n_splits": 2}}, "inner": {"stratified": {"n_splits": 40}}}}
    )
    first, _ = folds_of(cv, rows(), config(), BINARY, 7, Assignment(np.zeros(N, np.int8), "")).folds
    with pytest.raises(DataError, match="nested: inside fold 1: .* needs as many rows of each class"):
        inner_folds(cv, 0, first, rows(), config(), BINARY, 7)
