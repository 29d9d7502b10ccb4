"""From predictions to metrics.json: every task's columns, undefined values, foreign tables."""

import json

import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import Target
from shoal.evaluation.evaluate import evaluate, labels_and_scores
from shoal.evaluation.metrics import resolve_scoring

BINARY = Target(columns=("y",), task="binary", classes=("no", "yes"))


def _predictions(label: list[str], split: list[str]) -> pa.Table:
    score = np.linspace(0.05, 0.95, len(label))
    return pa.table(
        {
            "row_id": np.arange(len(label)),
            "split": pa.array(split).dictionary_encode(),
            "label": pa.array(label).dictionary_encode(),
            "score_no": 1 - score,
            "score_yes": score,
        }
    )


def test_parts_are_judged_apart_and_ready_for_json() -> None:
    table = _predictions(["no", "no", "yes", "no"] * 10 + ["no"] * 5, ["test"] * 40 + ["validation"] * 5)
    found = evaluate(table, BINARY, resolve_scoring("auto", "binary"), replicates=200, seed=3)
    assert list(found) == ["test", "validation"]
    entry = found["test"]["roc_auc"]
    assert entry["low"] < entry["value"] < entry["high"]
    assert entry["n"] == 40
    assert entry["replicates"] == 200
    assert found["validation"]["roc_auc"]["value"] is None
    assert "one class" in found["validation"]["roc_auc"]["reason"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    alone = evaluate(table.slice(0, 40), BINARY, resolve_scoring("auto", "binary"), replicates=200, seed=3)
    assert alone["test"] == found["test"]


def test_every_task_is_read_from_its_columns() -> None:
    y, score = labels_and_scores(_predictions(["no", "yes"], ["test"] * 2), BINARY)
    assert (y == [0, 1]).all()
    assert np.allclose(score, [0.05, 0.95])
    many = Target(columns=("y",), task="multiclass", classes=(3, 5, 7))
    scores = {f"score_{c}": np.full(2, c / 15) for c in (7, 3, 5)}
    y, score = labels_and_scores(pa.table({"label": ["7", "3"], **scores}), many)
    assert (y == [2, 0]).all()
    assert np.allclose(score, [[3 / 15, 5 / 15, 7 / 15]] * 2)
    labels = Target(columns=("a", "b"), task="multilabel", classes=("a", "b"))
    columns = {"label_a": [0, 1], "label_b": [1, 1], "score_a": [0.1, 0.7], "score_b": [0.6, 0.8]}
    y, score = labels_and_scores(pa.table(columns), labels)
    assert (y == [[0, 1], [1, 1]]).all()
    assert score.shape == (2, 2)
    number = Target(columns=("y",), task="regression")
    y, score = labels_and_scores(pa.table({"label": [1.5, 2.5], "prediction": [1.0, 2.0]}), number)
    assert (y - score == 0.5).all()


def test_foreign_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="no column 'score_no'"):
        labels_and_scores(pa.table({"label": ["no"]}), BINARY)
    with pytest.raises(DataError, match="'maybe' is none of the classes no, yes"):
        labels_and_scores(_predictions(["no", "maybe"], ["test"] * 2), BINARY)
    with pytest.raises(DataError, match="no column 'split'"):
        evaluate(pa.table({"label": ["no"]}), BINARY, resolve_scoring("auto", "binary"))
