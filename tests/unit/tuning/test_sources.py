"""Where values come from: a list, and Optuna's estimator, which finds a minimum and knows trials of an earlier start."""

import math
import sys

import numpy as np
import pytest

from shoal.cluster.errors import ConfigError
from shoal.tuning.config import DimensionConfig, OptunaConfig
from shoal.tuning.sources import Listed, Parzen
from shoal.tuning.space import draw, ordered
from shoal.tuning.trials import Trial

SPACE = ordered(
    {
        "kind": DimensionConfig(choice=("flat", ["round", 1])),
        "x": DimensionConfig(uniform=(-3, 3)),
        "size": DimensionConfig(integer=(1, 9), when={"kind": "flat"}),
        "rate": DimensionConfig(loguniform=(1e-5, 1e-1)),
    }
)


def score(values):
    return (values["x"] - 1) ** 2 + abs(math.log10(values["rate"]) + 3) + (values["kind"] != "flat")


def ended(number, values):
    return Trial(number, values, "finished", score(values))


def run(source):
    found = []
    while (given := source.next()) is not None:
        found.append(ended(*given))
        source.tell(found[-1])
    return found


def test_a_list_is_handed_out_in_order():
    source = Listed({3: {"x": 1}, 5: {"x": 2}})
    assert [source.next(), source.next(), source.next()] == [(3, {"x": 1}), (5, {"x": 2}), None]


def test_optuna_does_better_than_draws():
    pytest.importorskip("optuna")
    found = run(Parzen(OptunaConfig(), SPACE, 1, range(1, 61), (), greater_is_better=False))
    assert [trial.trial for trial in found] == list(range(1, 61))
    for trial in found:
        assert ("size" in trial.values) == (trial.values["kind"] == "flat")
        assert -3 <= trial.values["x"] <= 3
        assert 1e-5 <= trial.values["rate"] <= 1e-1
    late = np.median([trial.score for trial in found[30:]])
    assert late < 0.6 * np.median([score(draw(SPACE, 1, i)) for i in range(60)])
    again = run(Parzen(OptunaConfig(), SPACE, 1, range(1, 61), (), greater_is_better=False))
    assert again == found


def test_optuna_knows_the_trials_of_an_earlier_start():
    pytest.importorskip("optuna")
    first = run(Parzen(OptunaConfig(), SPACE, 1, range(1, 41), (), greater_is_better=False))
    failed = Trial(41, first[0].values, "diverged", None)
    rest = run(Parzen(OptunaConfig(), SPACE, 1, (42, 43, 44, 45), [*first, failed], greater_is_better=False))
    assert [trial.trial for trial in rest] == [42, 43, 44, 45]
    anew = run(Parzen(OptunaConfig(), SPACE, 1, (42, 43, 44, 45), (), greater_is_better=False))
    assert np.mean([t.score for t in rest]) < np.mean([t.score for t in anew])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'shoal\[tune\]'"):
        Parzen(OptunaConfig(), SPACE, 1, (1,), (), True)
