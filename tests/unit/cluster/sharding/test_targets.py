import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.preprocessing import LabelEncoder

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.targets import code_labels, encode_labels, infer_target


def data(**more: object) -> DataConfig:
    return DataConfig(**({"path": "x", "target": "y"} | more))


def infer(values: object, **more: object) -> tuple[str, tuple[object, ...]]:
    target, notices = infer_target(pa.table({"y": values}), data(**more))
    assert notices[0].startswith(f"task: {target.task}")
    return target.task, target.classes


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["b", "a", "a", None], "binary", ("a", "b")),
        (["b", "b", "a"], "binary", ("b", "a")),
        (["a", "b", "c"], "multiclass", ("a", "b", "c")),
        ([True, True, False, None], "binary", (True, False)),
        ([0, 1, 1], "binary", (1, 0)),
        ([3, 1, 2], "multiclass", (1, 2, 3)),
        (list(range(20)), "multiclass", tuple(range(20))),
        (list(range(21)), "regression", ()),
        ([0.0, 1.0, math.nan, 0.0], "binary", (0.0, 1.0)),
        ([0.5, 1.5], "regression", ()),
        ([0.0, 1.0, 2.0], "regression", ()),
    ],
)
def test_task(values: list[object], task: str, classes: tuple[object, ...]) -> None:
    assert infer(values) == (task, classes)


def test_task_as_asked() -> None:
    assert infer([1, 2, 3], task="regression") == ("regression", ())
    assert infer(list(range(30)), task="multiclass") == ("multiclass", tuple(range(30)))
    assert infer(["a", "b"], task="multiclass") == ("multiclass", ("a", "b"))


@pytest.mark.parametrize(
    ("values", "positive", "classes"),
    [
        (["no", "no", "yes"], "no", ("yes", "no")),
        ([0, 0, 1], 0, (1, 0)),
        ([0, 0, 1], "0", (1, 0)),
        ([True, True, False], "true", (False, True)),
        ([0.0, 1.0], 1, (0.0, 1.0)),
    ],
)
def test_positive(values: list[object], positive: object, classes: tuple[object, ...]) -> None:
    assert infer(values, positive=positive) == ("binary", classes)


def test_the_event_is_said_aloud() -> None:
    _, notices = infer_target(pa.table({"y": ["a"] * 9 + ["b"]}), data())
    assert "'b', the rarer of 'b' and 'a'" in notices[1]
    assert "10.0%" in notices[1]
    _, notices = infer_target(pa.table({"y": ["a"] * 9 + ["b"]}), data(private=["y"]))
    assert "'a'" not in notices[1]
    assert "'b'" not in notices[1]


def test_labels_agree_with_label_encoder() -> None:
    values = np.random.default_rng(0).choice(["x", "ä", "zz"], 200)
    target, _ = infer_target(pa.table({"y": values}), data())
    assert np.array_equal(
        encode_labels(pa.table({"y": values}), target), LabelEncoder().fit_transform(values)
    )


def test_labels_of_other_arrow_types() -> None:
    target, _ = infer_target(pa.table({"y": [1, 1, 0]}), data(positive=1))
    for values in ([1, 0], [1.0, 0.0], [True, False]):
        assert encode_labels(pa.table({"y": values}), target).tolist() == [1, 0]
    codes, missing = code_labels(pa.table({"y": pa.array([1, None], pa.int8())}), target)
    assert codes[0] == 1
    assert missing.tolist() == [False, True]


def test_regression_labels_are_raw() -> None:
    target, _ = infer_target(pa.table({"y": [0.5, 2.5, 7.0]}), data())
    found = encode_labels(pa.table({"y": [10, 20]}), target)
    assert found.dtype == np.float64
    assert found.tolist() == [10, 20]


def test_multilabel() -> None:
    table = pa.table({"a": [1, 0, 1], "b": [True, False, None], "c": [0.0, 1.0, 1.0]})
    target, _ = infer_target(table, data(target=["a", "b", "c"]))
    assert (target.task, target.classes, target.n_outputs) == ("multilabel", ("a", "b", "c"), 3)
    codes, missing = code_labels(table, target)
    assert codes.dtype == np.float32
    assert codes[:2].tolist() == [[1, 1, 0], [0, 0, 1]]
    assert missing.tolist() == [False, False, True]
    listed = pa.table({"y": pa.array([[1, 0], [0, 1]], pa.list_(pa.int8(), 2))})
    assert infer(listed.column("y")) == ("multilabel", ("y[0]", "y[1]"))


def test_several_labels_in_words() -> None:
    table = pa.table({"a": ["yes", "No", None, "YES "], "b": ["true", "false", "true", "false"]})
    target, _ = infer_target(table, data(target=["a", "b"]))
    codes, missing = code_labels(table, target)
    assert codes[[0, 1, 3]].tolist() == [[1, 1], [0, 0], [1, 0]]
    assert missing.tolist() == [False, False, True, False]
    with pytest.raises(DataError, match="column 'a' is text, and each label of several is yes or no"):
        code_labels(pa.table({"a": ["yes", "maybe"], "b": ["true", "false"]}), target)


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        (pa.nulls(3, pa.string()), {}, "has no value in any of 3 rows"),
        (["a", "a"], {}, "has one value only, 'a'"),
        (pa.array([["a"], ["a", "b"]]), {}, "a target is strings, booleans, numbers"),
        ([0.1, math.inf, 2.0], {}, "1 infinite value"),
        (["a", "b"], {"task": "regression"}, "task is regression, but column 'y' is"),
        (["a", "b", "c"], {"task": "binary"}, "task is binary, but column 'y' has 3 values"),
        ([0.5, 1.5], {"task": "multiclass"}, "holds fractions; use regression"),
        (["a", "b"], {"positive": "c"}, "positive is 'c', which is no value of column 'y'; it has 'a', 'b'"),
        (["a", "b", "c"], {"positive": "a"}, "task is multiclass with 3 classes"),
        ([0.1, 0.2], {"positive": 1}, "the task is regression"),
        (["a", "b"], {"task": "multilabel"}, "store it as booleans, as 0 and 1, or as the words yes and no"),
        ([0, 2, 1], {"task": "multilabel"}, "1 value other than 0 and 1"),
        (["a", "b"], {"target": "Y"}, "no column 'Y'; did you mean 'y'"),
    ],
)
def test_bad_targets(values: object, more: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer_target(pa.table({"y": values}), data(**more))


def test_unknown_classes_are_named_unless_private() -> None:
    target, _ = infer_target(pa.table({"y": ["a", "b", "b"]}), data())
    table = pa.table({"y": ["a", "secret", None]})
    with pytest.raises(
        DataError, match=r"1 row of a class that was not there in training: 'secret'.*'b', 'a'"
    ):
        encode_labels(table, target)
    with pytest.raises(DataError) as caught:
        encode_labels(table, target, private=True)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="1 row of 2 without a label"):
        encode_labels(pa.table({"y": ["a", None]}), target)
    with pytest.raises(DataError, match="give labels of that type"):
        encode_labels(pa.table({"y": [1, 2]}), target)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([2**62, 2**62 + 1] * 5, "classes beyond 2\\*\\*53, such as 4611686018427387904"),
        ([f"r{i}" for i in range(60)], "60 classes in 60 rows, as an identifier"),
    ],
)
def test_classes_that_are_none_are_refused(values: list[object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        infer(values)


def test_integers_that_a_float64_does_not_hold_are_refused() -> None:
    target, _ = infer_target(pa.table({"y": list(range(30))}), data())
    for kind in (pa.int64(), pa.uint64()):
        table = pa.table({"y": pa.array([2**53 + 1, 2**53 - 1, None], kind)})
        with pytest.raises(DataError, match=r"'y' has 1 integer from 2\*\*53 on, .* store them as double"):
            code_labels(table, target)
    assert encode_labels(pa.table({"y": [2**53 - 1]}), target).tolist() == [2.0**53 - 1]
    assert encode_labels(pa.table({"y": [2.0**60, 1.0]}), target).tolist() == [2.0**60, 1.0]


def test_labels_in_lists_of_no_fixed_size_are_told_how_to_have_one() -> None:
    table = pa.table({"y": [[0, 1], [1, 0]]})
    fix = (
        r"'y' is list<.*: int64>, lists of any length; .*column.cast\(pa.list_\(column.type.value_type, K\)\)"
    )
    for task in ("auto", "multilabel"):
        with pytest.raises(DataError, match=fix):
            infer_target(table, data(task=task))
    fixed = pa.table({"y": table["y"].cast(pa.list_(pa.int64(), 2))})
    assert infer_target(fixed, data())[0].classes == ("y[0]", "y[1]")
