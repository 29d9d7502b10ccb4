"""The table of what may be combined."""

from pathlib import Path

import pytest
import torch

import shoal
from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Shape
from shoal.experiment import from_dict
from shoal.training.allowed import AXES, REFUSED, cell_of, cells, needs_group, page, refusal, refuse
from shoal.training.config import TrainingConfig
from shoal.training.optimizers.build import build_optimizer
from shoal.verbs.check import check


def test_every_refusal_speaks_of_values_that_exist_and_says_what_to_change() -> None:
    for found in REFUSED:
        for axis, values in found.where.items():
            assert set(values) <= set(AXES[axis])
        assert "use " in found.why or "set " in found.why
    assert {r.why for c in cells() if (r := refusal(c))} == {r.why for r in REFUSED}


@pytest.mark.parametrize("placement", AXES["placement"])
def test_fp16_on_a_cpu_is_refused(placement: str) -> None:
    shape = Shape(1, 1.0, 0.0, placement)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fp16 needs GPUs"):
        refuse(TrainingConfig(precision="fp16"), shape)
    refuse(TrainingConfig(precision="bf16"), shape)
    refuse(TrainingConfig(precision="fp16"), Shape(1, 1.0, 1.0, placement))  # type: ignore[arg-type]


def test_a_fit_knows_its_cell() -> None:
    training = TrainingConfig.model_validate({"optimizer": "sgd", "precision": "bf16"})
    assert cell_of(training, Shape(2, 1.0, 0.0, "group")) == {
        "strategy": "ddp",
        "optimizer": "sgd",
        "precision": "bf16",
        "l1": "none",
        "placement": "group",
        "device": "cpu",
    }
    shrinking = TrainingConfig.model_validate({"l1": {"proximal": 1.0}})
    assert cell_of(shrinking, Shape(1, 1.0, 0.0, "inline"))["l1"] == "proximal"
    assert cell_of(TrainingConfig(), Shape(1, 1.0, 0.0, "inline"))["precision"] == "fp32"


def test_a_refused_fit_writes_nothing(tmp_path: Path) -> None:
    data = {"path": str(tmp_path / "none.parquet"), "target": "y"}
    experiment = from_dict(
        {"data": data, "training": {"precision": "fp16"}, "cluster": {"storage_path": str(tmp_path / "runs")}}
    )
    for verb in (shoal.train, check):
        with pytest.raises(ConfigError, match="fp16 needs GPUs"):
            verb(experiment)
    assert list(tmp_path.iterdir()) == []


def test_a_cell_of_the_page_does_not_contradict_itself() -> None:
    assert "| `adam` | everywhere | everywhere | everywhere | on GPUs alone |" in page()
    assert "| `adam` | group | refused | group | group, on GPUs alone |" in page()


def test_the_page_is_of_this_table() -> None:
    written = Path(__file__).parents[3] / "docs" / "allowed.md"
    assert written.read_text() == page(), "run make docs"


@pytest.mark.parametrize("placement", ["inline", "task"])
def test_deepspeed_runs_in_groups_alone(placement: str) -> None:
    training = TrainingConfig.model_validate({"strategy": "deepspeed"})
    with pytest.raises(ConfigError, match="set cluster.placement: auto or group"):
        refuse(training, Shape(1, 1.0, 0.0, placement))  # type: ignore[arg-type]
    refuse(training, Shape(1, 1.0, 0.0, "group"))
    assert needs_group(training)
    assert not needs_group(TrainingConfig())


def test_deepspeed_in_fp64_is_refused() -> None:
    training = TrainingConfig.model_validate({"strategy": "deepspeed", "precision": "fp64"})
    with pytest.raises(ConfigError, match="keeps its weights in fp32"):
        refuse(training, Shape(2, 1.0, 0.0, "group"))


@pytest.mark.parametrize("name", ["lbfgs", "nonlinear_cg"])
@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"strategy": "deepspeed"}, "shares among workers; use training.strategy: ddp"),
        ({"precision": "bf16"}, "use training.precision: fp32 or fp64"),
        ({"l1": {"subgradient": 1.0}}, "use training.l2, or another optimiser"),
        ({"l1": {"proximal": 1.0}}, "use training.l2, or another optimiser"),
        ({"clip_norm": 1.0}, "training.clip_norm: a clipped gradient"),
    ],
)
def test_what_spoils_a_line_search_is_refused(name: str, training: dict[str, object], said: str) -> None:
    shape = Shape(2, 1.0, 0.0, "group")
    refuse(TrainingConfig.model_validate({"optimizer": name}), shape)
    with pytest.raises(ConfigError, match=said):
        refuse(TrainingConfig.model_validate({"optimizer": name, **training}), shape)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"strategy": "deepspeed"}, "no worker has both; use training.strategy: ddp"),
        ({"optimizer": "nadam"}, "use training.optimizer: sgd, adagrad, rmsprop, adam or adamw, or"),
    ],
)
def test_proximal_l1_is_refused_where_a_step_is_not_known(training: dict[str, object], said: str) -> None:
    shape = Shape(2, 1.0, 0.0, "group")
    refuse(TrainingConfig.model_validate(training | {"l1": {"subgradient": 1.0}}), shape)
    with pytest.raises(ConfigError, match=said):
        refuse(TrainingConfig.model_validate(training | {"l1": {"proximal": 1.0}}), shape)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"zero_stage": 4}, "3"),
        ({"zero_stage": 0, "offload_optimizer": True}, "offload_optimizer needs zero_stage 1, 2 or 3, got 0"),
        ({"zero_stage": 2, "offload_parameters": True}, "offload_parameters needs zero_stage 3, got 2"),
    ],
)
def test_what_a_stage_does_not_share_cannot_be_offloaded(strategy: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate({"strategy": {"deepspeed": strategy}})


def test_a_group_of_several_sizes_needs_checkpoints() -> None:
    shape = Shape(1, 1.0, 0.0, "group", 2)
    with pytest.raises(ConfigError, match="needs training.checkpoint"):
        refuse(TrainingConfig(checkpoint=None), shape)
    refuse(TrainingConfig(), shape)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"epochs": 4, "early_stopping": {"warmup": 4}},
            "early_stopping.warmup: 4 leaves no epoch of epochs: 4",
        ),
        ({"parameter_groups": [{"match": "*"}]}, r"the entry for '\*' changes nothing"),
        ({"l2": 1e300}, "less than or equal to 1000000"),
    ],
)
def test_what_would_change_nothing_or_all_is_refused(training: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate(training)


def test_patience_may_run_in_the_last_epoch() -> None:
    TrainingConfig.model_validate({"epochs": 4, "early_stopping": {"warmup": 3}})


def rosen(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.LBFGS([p for group in groups for p in group["params"]])  # type: ignore[attr-defined]


def test_a_search_of_ones_own_is_refused() -> None:
    training = TrainingConfig.model_validate({"optimizer": {"import": f"{__name__}:rosen"}})
    with pytest.raises(ConfigError, match="use training.optimizer: lbfgs"):
        build_optimizer(training, torch.nn.Linear(2, 1))
