"""Trials: a network's scores are those of its fit, records survive a round trip, and the choice has a margin."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.prepared import make_dataset

from shoal.cluster.progress import Silent
from shoal.cluster.storage import Storage
from shoal.evaluation.metrics import METRICS
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.tuning.config import DimensionConfig
from shoal.tuning.drop import score_drop, sentence
from shoal.tuning.importance import importance
from shoal.tuning.trials import Running, Trial, best_of, curves, ranked, read, rows_of, short, table, write


def loop(epochs=4):
    dataset = make_dataset(rows=200)
    config = TrainingConfig(epochs=epochs, batch_size=32)
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 1)
    return Loop(model, dataset, config, Strategy(torch.device("cpu")), METRICS["roc_auc"], 1, Silent())


def test_a_fit_by_turns_is_the_fit_in_one_go():
    whole, turned = loop(), loop()
    outcome = whole.run()
    scores = list(turned.epochs())
    assert turned.finish().best == outcome.best == turned.kept == max(scores)
    known = [row[4] for row in turned.history.rows if row[2] == "validation"]
    assert scores == known == [row[4] for row in whole.history.rows if row[2] == "validation"]
    for one, other in zip(whole.model.parameters(), turned.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_fit_that_is_left_early_has_the_weights_of_then():
    left, short_ = loop(), loop(2)
    turns = left.epochs()
    assert [next(turns), next(turns)] == list(short_.epochs())
    turns.close()
    assert left.finish().epochs == short_.finish().epochs == 2
    for one, other in zip(left.model.parameters(), short_.model.parameters(), strict=True):
        assert torch.equal(one, other)


def trial(number, score, status="finished", values=None, **more):
    return Trial(number, values or {"a": number}, status, score, **more)


def test_records_survive(tmp_path):
    run = Storage.open(str(tmp_path))
    made = [trial(1, 0.5, curve=(0.1, None, 0.5)), trial(2, None, "failed", error="no")]
    for one in made:
        write(run, one)
    assert read(run, [1, 2, 3]) == dict(zip((1, 2), made, strict=True))
    (tmp_path / "trials" / "000002.json").write_text("{")
    assert read(run, [1, 2]) == {1: made[0]}
    assert rows_of(table(made))[0]["values"] == {"a": 1}
    assert curves(made).to_pylist()[1] == {"trial": 1, "epoch": 2, "score": None}
    assert curves([]).num_rows == 0


def test_the_best_is_better_by_more_than_noise():
    scored = [trial(2, 0.9 + 1e-9), trial(1, 0.9), trial(3, math.nan, "diverged"), trial(4, 0.8)]
    assert best_of(scored, True).trial == 1
    assert best_of(scored, False).trial == 4
    assert best_of([trial(3, None, "failed")], True) is None
    assert [row["trial"] for row in ranked(rows_of(table(scored[:2] + scored[3:])), True)] == [2, 1, 4]
    running = Running(1, {}, kept=math.nan, curve=[math.nan])
    assert running.over("finished").status == "diverged"
    assert running.over("finished").curve == (None,)
    assert short({"a.b": 0.123456, "c": [1], "d": "x"}) == "b 0.123, c [1], d x"


@pytest.mark.parametrize("greater", [True, False])
def test_the_drops_interval_is_the_normal_one_where_both_are_normal(greater):
    z, (a, sa), (b, sb) = norm.ppf(0.975), (0.9, 0.02), (0.85, 0.03)
    part = lambda value, s: {"m": {"value": value, "low": value - z * s, "high": value + z * s}}  # noqa: E731
    found = score_drop("m", greater, trial(1, a), {"test": part(b, sb), "validation": part(a, sa)}, 0.95)
    sign = 1 if greater else -1
    assert found["value"] == pytest.approx(sign * (a - b))
    half = z * math.hypot(sa, sb)
    assert (found["low"], found["high"]) == pytest.approx((sign * (a - b) - half, sign * (a - b) + half))
    alone = score_drop("m", greater, trial(1, a), {"test": part(b, sb)}, 0.95)
    assert alone["high"] - alone["low"] == pytest.approx(2 * z * sb)
    assert ("worse" if greater else "better") in sentence("m", a, found, 9)
    assert score_drop("m", greater, trial(1, a), {}, 0.95) is None
    assert "flatter" in sentence("m", a, None, 9)


def test_the_key_that_decides_is_the_important_one():
    draws = np.random.default_rng(0)
    space = {k: DimensionConfig(uniform=(0, 1)) for k in "ab"} | {"c": DimensionConfig(choice=("x", "y"))}
    made = [
        trial(i, a**2 + 0.01 * b, values={"a": a, "b": b, "c": c})
        for i, (a, b, c) in enumerate(
            zip(draws.random(60), draws.random(60), draws.choice(["x", "y"], 60), strict=True)
        )
    ]
    found = importance(made, space, True)
    assert next(iter(found["keys"])) == "a"
    assert found["keys"]["a"]["mean"] > 20 * max(found["keys"][k]["mean"] for k in "bc")
    assert found["fit"] > 0.8
    noise = [trial(t.trial, float(draws.random()), values=t.values) for t in made]
    assert importance(noise, space, True)["fit"] < 0.2
    assert importance(made[:4], space, True) == {}
