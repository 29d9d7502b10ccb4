"""The table of what may be combined."""

from pathlib import Path

import pytest

import shoal
from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Shape
from shoal.experiment import from_dict
from shoal.training.allowed import AXES, REFUSED, cell_of, cells, refusal, refuse
from shoal.training.config import TrainingConfig
from shoal.verbs.look import check


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
        "placement": "group",
        "device": "cpu",
    }
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
