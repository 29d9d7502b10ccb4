"""Learning rates and penalties that change on the way, against a loop in plain torch; which changes are refused."""

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.by_hand import by_hand
from support.prepared import make_dataset
from support.scenarios import make_loop

from shoal.cluster.progress import Silent
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")
STEPS = 3  # an epoch: 121 rows in batches of 50


class Changing(torch.optim.Adam):
    """Adam by whose groups the values of each epoch are written down, with its own L2 and soft threshold."""

    def __init__(self, groups: list[dict[str, Any]], by_epoch: list[list[dict[str, float]]]) -> None:
        super().__init__(groups, foreach=False)
        self.by_epoch, self.taken = by_epoch, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, values in zip(self.param_groups, self.by_epoch[self.taken // STEPS], strict=True):
            group |= values
            for p in group["params"]:
                p.grad += group["l2"] * p
        super().step()
        self.taken += 1
        for group in self.param_groups:
            for p in group["params"] if group["l1"] else ():
                root = (self.state[p]["exp_avg_sq"] / (1 - 0.999**self.taken)).sqrt() + 1e-8
                p.copy_(torch.nn.functional.softshrink(p * root, group["lr"] * group["l1"]) / root)


def test_changes_equal_a_plain_loop_whose_groups_change() -> None:
    dataset = make_dataset("binary", rows=121)
    training = {
        "epochs": 3,
        "batch_size": 50,
        "precision": "fp64",
        "optimizer": {"adam": {"learning_rate": 0.01}},
        "l1": {"proximal": 0.001},
        "parameter_groups": [{"match": "body.0.weight", "learning_rate": 0.02}],
        "changes": [{"epoch": 2, "learning_rate": 0.03, "l2": 0.1}, {"epoch": 3, "l1": 0.05}],
    }
    model, oracle = (build_model(MLPConfig(hidden=(8,)), dataset.schema, 3) for _ in range(2))
    loop = Loop(model, dataset, TrainingConfig.model_validate(training), Strategy(CPU), None, 3, Silent())
    loop.run()
    named = dict(oracle.double().named_parameters())
    first = "body.0.weight"
    weights = [n for n in named if n.startswith("body.") and n.endswith("weight") and n != first]
    others = [n for n in named if n != first and n not in weights]
    groups = [{"params": [named[n] for n in names]} for names in ([first], weights, others)]

    def values(rate: float, l1: float, l2: float) -> list[dict[str, float]]:
        return [
            {"lr": 2 * rate, "l1": l1, "l2": l2},
            {"lr": rate, "l1": l1, "l2": l2},
            {"lr": rate, "l1": 0, "l2": 0},
        ]

    by_epoch = [values(0.01, 0.001, 0.0), values(0.03, 0.001, 0.1), values(0.03, 0.05, 0.1)]
    by_hand(dataset, Changing(groups, by_epoch), oracle, 3)
    assert (named[first] == 0).any()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=0, atol=1e-12, msg=name)
    rates = [row for row in loop.history.rows if row[3] == "learning_rate"]
    assert [rate for *_, rate, _ in rates] == [0.01] * STEPS + [0.03] * 2 * STEPS


def test_a_change_is_the_beginning_of_a_stage_and_patience_waits_for_the_last_one() -> None:
    loop = make_loop(
        Strategy(CPU), epochs=4, changes=[{"epoch": 3, "l2": 0.5}], early_stopping={"patience": 1}
    )
    assert [stage.first_epoch for stage in loop.stepper.tuning.stages] == [0, 2]
    assert loop.stepper.tuning.stages[1].label == "l2 0.5"
    assert loop.stopping.config is not None
    assert loop.stopping.config.warmup == 2


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"changes": [{"epoch": 2}]}, "the entry for epoch 2 changes nothing"),
        ({"changes": [{"epoch": 1, "l2": 1}]}, "greater than or equal to 2"),
        (
            {"changes": [{"epoch": 3, "l2": 1}, {"epoch": 3, "l2": 2}]},
            "changes.1.epoch: 3 does not come after 3",
        ),
        ({"epochs": 3, "changes": [{"epoch": 4, "l2": 1}]}, "changes.0.epoch: 4 is beyond epochs: 3"),
        ({"changes": [{"epoch": 2, "l1": 0.1}]}, "training.l1 does not say how it is applied"),
        (
            {"optimizer": "lbfgs", "changes": [{"epoch": 2, "l2": 1}]},
            "search for the optimum of one objective",
        ),
        ({"strategy": "deepspeed", "changes": [{"epoch": 2, "l2": 1}]}, "use strategy: ddp"),
        (
            {"optimizer": {"import": "a:b"}, "changes": [{"epoch": 2, "learning_rate": 1}]},
            "changes.0.learning_rate: this optimizer has none by that name",
        ),
    ],
)
def test_changes_that_cannot_be_are_refused(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        TrainingConfig.model_validate(training)
