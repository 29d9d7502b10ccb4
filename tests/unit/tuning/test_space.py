"""Spaces: draws by their distribution, grids by scikit-learn's, and what is refused before anything starts."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare, kstest
from sklearn.model_selection import ParameterGrid

from shoal.cluster.errors import ConfigError
from shoal.experiment import dump_yaml, from_dict, run_name, to_dict
from shoal.tuning.config import DimensionConfig
from shoal.tuning.space import active, draw, grid, ordered, share_of
from shoal.verbs.tune_space import changed, drawn, plain, space_of

BASE = {"data": {"path": "rows.parquet", "target": "y"}}
RATE = "training.optimizer.learning_rate"


def experiment(space=None, more=None, **tuning):
    found = {**BASE, **(more or {}), "tuning": {**tuning, **({} if space is None else {"space": space})}}
    return from_dict(found)


def space(**dimensions):
    return ordered({name: DimensionConfig(**given) for name, given in dimensions.items()})


def test_draws_follow_their_domains():
    made = space(
        u={"uniform": [-2, 3]},
        l={"loguniform": [1e-5, 1e-1]},
        i={"integer": [2, 5]},
        c={"choice": ["a", "b"]},
    )
    found = [draw(made, 3, trial) for trial in range(4000)]
    assert kstest([f["u"] for f in found], "uniform", (-2, 5)).pvalue > 0.01
    logs = [math.log10(f["l"]) for f in found]
    assert kstest(logs, "uniform", (-5, 4)).pvalue > 0.01
    assert chisquare(np.bincount([f["i"] for f in found])[2:]).pvalue > 0.01
    assert {f["i"] for f in found} == {2, 3, 4, 5}
    assert chisquare([sum(f["c"] == v for f in found) for v in "ab"]).pvalue > 0.01


def test_a_draw_is_of_the_seed_and_the_trial():
    made = space(u={"uniform": [0, 1]})
    assert draw(made, 1, 7) == draw(made, 1, 7)
    assert len({draw(made, seed, trial)["u"] for seed in (1, 2) for trial in range(50)}) > 98


def test_conditions_hold_and_move_no_other_draw():
    free = {"o": {"choice": ["a", "b"]}, "x": {"uniform": [0, 1]}, "z": {"uniform": [0, 1]}}
    bound = space(**{**free, "x": {**free["x"], "when": {"o": "b"}}})
    for trial in range(50):
        values = draw(bound, 0, trial)
        assert ("x" in values) == (values["o"] == "b")
        assert values == active(bound, draw(space(**free), 0, trial))
    chain = space(
        z={"integer": [0, 9], "when": {"y": 1}}, y={"choice": [1, 2], "when": {"x": 1}}, x={"choice": [1, 2]}
    )
    assert list(chain) == ["x", "y", "z"]
    assert active(chain, {"x": 2, "y": 1, "z": 4}) == {"x": 2}


def test_a_grid_is_scikit_learns():
    made = space(c={"choice": [1, "two"]}, i={"integer": [1, 9]}, l={"loguniform": [1e-4, 1.0]})
    expected = ParameterGrid({"c": [1, "two"], "i": [1, 5, 9], "l": [1e-4, 1e-2, 1.0]})
    assert sorted(map(repr, grid(made, 3))) == sorted(repr(dict(sorted(p.items()))) for p in expected)
    assert len(grid(space(o={"choice": ["a", "b"]}, x={"integer": [1, 3], "when": {"o": "b"}}), 3)) == 4


def test_shares_go_from_0_to_1():
    assert share_of(DimensionConfig(loguniform=[1e-4, 1.0]), 1e-2) == pytest.approx(0.5)
    assert share_of(DimensionConfig(choice=["a", "b", "c"]), "b") == 0.5
    assert share_of(DimensionConfig(integer=[2, 6]), 3) == 0.25


def test_usual_spaces_are_those_of_the_network():
    assert set(space_of(experiment())) == {"model.dropout", RATE, "training.optimizer.weight_decay"}
    lbfgs = {"training": {"optimizer": "lbfgs", "l1": {"subgradient": 1e-4}}, "model": "linear"}
    assert set(space_of(experiment(more=lbfgs))) == {"training.l2", "training.l1.subgradient"}
    rate = space_of(experiment(more={"training": {"optimizer": "sgd"}}))[RATE]
    assert rate.loguniform == (pytest.approx(0.1 / 30), 1.0)


def test_a_key_leaves_the_names_of_components_out():
    made = experiment(
        {
            RATE: {"loguniform": [1e-4, 1e-2]},
            "training.optimizer": {"choice": ["adamw", "sgd"]},
            "training.optimizer.sgd.momentum": {"uniform": [0, 0.9], "when": {"training.optimizer": "sgd"}},
        }
    )
    for values in drawn(made, space_of(made)):
        optimizer = changed(plain(made), values, "here").training.optimizer
        assert (
            type(optimizer).__name__
            == {"adamw": "AdamWConfig", "sgd": "SGDConfig"}[values["training.optimizer"]]
        )
        assert optimizer.learning_rate == values[RATE]
        assert getattr(optimizer, "momentum", None) == values.get("training.optimizer.sgd.momentum")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"training.optimizer.learning_rat": {"uniform": [1, 2]}},
            "learning_rat is not a key; did you mean learning_rate",
        ),
        (
            {RATE: {"uniform": [0, 1]}},
            f"tuning.space: {RATE}: 0: training.optimizer.adamw.learning_rate: 0.0 is not allowed",
        ),
        (
            {"model.dropout": {"uniform": [0, 1]}},
            "tuning.space: model.dropout: 1: model.mlp.dropout: 1.0 is not allowed",
        ),
        ({"training.epochs": {"uniform": [1, 4]}}, "training.epochs: 2.5 is not allowed"),
        ({"model.hidden": {"choice": [[8], [0]]}}, "tuning.space: model.hidden: [0]: model.mlp.hidden[0]: 0"),
        (
            {
                "training.optimizer": {"choice": ["adam", "lbfgs"]},
                "training.optimizer.weight_decay": {"uniform": [0, 1]},
            },
            "training.optimizer.lbfgs.weight_decay is not a key",
        ),
        (
            {
                "training.optimizer": {"choice": ["adamw", "sgd"]},
                "training.optimizer.sgd.momentum": {"uniform": [0, 0.9]},
            },
            "momentum is of sgd, and training.optimizer may be adamw: vary it only with when: {training.optimizer: sgd}",
        ),
        (
            {RATE: {"uniform": [0.1, 1]}, "training.optimizer.adamw.learning_rate": {"uniform": [0.1, 1]}},
            "are the same key, training.optimizer.adamw.learning_rate; leave one of them out",
        ),
        ({"data.drop": {"choice": [["x"]]}}, "data.drop cannot be varied: it decides which rows there are"),
        ({"evaluation.scoring": {"choice": ["f1"]}}, "evaluation.scoring cannot be varied"),
        ({"seed": {"integer": [0, 3]}}, "seed cannot be varied"),
        (
            {RATE: {"uniform": [0.1, 1], "when": {"model": "mlp"}}},
            "when names model, which the space does not have",
        ),
        (
            {"model": {"choice": ["mlp"]}, RATE: {"uniform": [0.1, 1], "when": {"model": "linear"}}},
            "model is never 'linear'",
        ),
        (
            {
                RATE: {"uniform": [0.1, 1], "when": {"training.l2": 0.1}},
                "training.l2": {"choice": [0.1], "when": {RATE: 0.1}},
            },
            "go round in a circle",
        ),
        ({}, "tuning.space is empty"),
    ],
)
def test_wrong_spaces_are_refused_with_path_and_value(given, said):
    made = experiment(given)
    with pytest.raises(ConfigError) as error:
        space_of(made)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"space": {RATE: {"uniform": [2, 1]}}}, "the first value must be below the second, got [2, 1]"),
        ({"space": {RATE: {"loguniform": [0, 1]}}}, "both values must be above 0"),
        ({"space": {RATE: {"uniform": [1, 2], "choice": [1]}}}, "got uniform and choice"),
        ({"space": {RATE: {}}}, "got none"),
        ({"space": {RATE: {"unifrm": [1, 2]}}}, "did you mean uniform"),
        ({"trials": 0}, "tuning.trials: 0 is not allowed"),
        ({"search": "tpe"}, "tuning.search: there is no 'tpe'"),
        ({"objective": "cv", "scheduler": "asha"}, "use scheduler: none, or objective: validation"),
        ({"objective": "expected_cost"}, "needs evaluation.costs"),
    ],
)
def test_wrong_sections_are_refused(tuning, said):
    with pytest.raises(ConfigError) as error:
        from_dict({**BASE, "tuning": tuning})
    assert said in str(error.value)


def test_what_only_shows_together_is_refused_before_anything_starts():
    made = experiment(
        {"training.epochs": {"integer": [3, 9]}, "training.early_stopping.warmup": {"integer": [0, 8]}}
    )
    with pytest.raises(
        ConfigError, match=r"tuning.space: training.early_stopping.warmup|tuning.space: trial \d+"
    ):
        drawn(made, space_of(made))
    few = experiment({"training.epochs": {"integer": [1, 9]}}, search="grid", trials=2)
    with pytest.raises(ConfigError, match="2 are fewer than the 3 points of the grid"):
        drawn(few, space_of(few))


def test_an_estimator_has_no_usual_space():
    trees = {"model": {"import": "sklearn.ensemble:RandomForestClassifier"}}
    with pytest.raises(ConfigError, match="name a space"):
        space_of(experiment(more=trees))
    named = experiment({"model.max_depth": {"integer": [2, 12]}}, more=trees)
    assert changed(plain(named), {"model.max_depth": 3}, "").model.kwargs == {"max_depth": 3}


def test_runs_without_tuning_are_called_what_they_were():
    alone, tuned = from_dict(BASE), experiment(trials=3)
    assert "tuning" not in to_dict(alone)
    assert run_name("a", "tune", tuned) != run_name("a", "tune", alone)
    assert run_name("a", "tune", tuned) == run_name(
        "a", "tune", experiment(trials=3, max_concurrent_trials=2)
    )
    assert from_dict(to_dict(tuned)) == tuned
    assert "tuning:" in dump_yaml(tuned)
