"""The choice inside each fold, and what the choices say together."""

from typing import Any

import pytest

from shoal.cluster.errors import RunError
from shoal.evaluation.crossval.choosing import MARGIN, chosen, nested


def fits(*values: float | None, metric: str = "roc_auc") -> list[dict[str, Any]]:
    return [{"scores": {metric: value}, "seconds": {"fit": 1.0}} for value in values]


def test_the_best_mean_is_chosen_in_the_metrics_direction() -> None:
    assert chosen({"a": fits(0.7, 0.9), "b": fits(0.8, 0.9)}, 2) == {
        "fold": 3,
        "chosen": "b",
        "means": {"a": pytest.approx(0.8), "b": pytest.approx(0.85)},
    }
    inner = {"a": fits(0.7, 0.9, metric="log_loss"), "b": fits(0.8, 0.9, metric="log_loss")}
    assert chosen(inner, 0)["chosen"] == "a"


@pytest.mark.parametrize(("more", "name"), [(MARGIN / 2, "a"), (MARGIN * 2, "b")])
def test_float_noise_chooses_nothing(more: float, name: str) -> None:
    assert chosen({"a": fits(0.8), "b": fits(0.8 + more)}, 0)["chosen"] == name


def test_nothing_is_chosen_by_what_is_undefined() -> None:
    with pytest.raises(RunError, match="roc_auc of 'b' is undefined in 1 of 2 inner folds of fold 1"):
        chosen({"a": fits(0.7, 0.9), "b": fits(None, 0.9)}, 0)


def test_the_estimate_is_of_what_was_chosen_in_each_fold() -> None:
    outer = {"a": fits(0.1, 0.2, 0.3), "b": fits(0.6, 0.5, 0.4)}
    choices = [{"fold": i + 1, "chosen": name, "means": {}} for i, name in enumerate("bab")]
    found = nested(choices, outer, 0.5, 0.95)
    assert found["scores"]["roc_auc"]["by_fold"] == [0.6, 0.2, 0.4]
    assert (
        found["sentence"]
        == "chosen inside each fold: b in 2 of 3 folds, a in 1 of 3 folds; the choice hangs on the rows"
    )
