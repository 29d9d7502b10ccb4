"""Fits inline, in a task and in worker groups, on one Ray; equal results, errors by name, nothing left behind."""

import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from shoal.cluster.components import Imported
from shoal.cluster.config import ClusterConfig, Config
from shoal.cluster.errors import CollectiveTimeoutError, ResourceError, RunError, ShoalError
from shoal.cluster.progress import EpochRecord, Silent
from shoal.cluster.resources import Shape
from shoal.cluster.session import leftovers
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.evaluation.metrics import resolve_scoring
from shoal.training.config import MLPConfig, TrainingConfig
from shoal.training.outcome import FitOutcome
from shoal.training.trainer import fit
from shoal.training.worker import FitJob

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    columns: dict[str, Any] = {f"p{i}": data.data[:, i] for i in range(64)}
    pq.write_table(pa.table(columns | {"eight": data.target == 8}), folder / "digits.parquet")
    config = DataConfig(path=(str(folder / "digits.parquet"),), target=("eight",))
    shard(config, 0, Storage.open(str(folder / "shards")))
    return folder / "shards"


class Listener(Silent):
    def __init__(self) -> None:
        self.epochs: list[EpochRecord] = []
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)


def run(
    digits: Path,
    folder: Path,
    placement: str,
    workers: int = 1,
    model: Config | None = None,
    timeout: float = 60,
    listener: Silent | None = None,
    wait: float = 60,
    failures: int = 0,
    **training: Any,
) -> tuple[FitOutcome, dict[str, np.ndarray], pa.Table]:
    Storage.open(str(folder)).write_text("config.yaml", "data: {}\nseed: 0\n")
    job = FitJob(
        model=model or MLPConfig(hidden=(16,), dropout=0.2),
        training=TrainingConfig.model_validate(
            {"epochs": 2, "batch_size": 64, "precision": "fp64", **training}
        ),
        seed=1,
        data_uri=str(digits),
        run_uri=str(folder),
        monitor=resolve_scoring("auto", "binary")[0],
        cpus=1.0,
    )
    shape = Shape(num_workers=workers, cpus_per_worker=1.0, gpus_per_worker=0.0, placement=placement)
    cluster = ClusterConfig(
        collective_timeout=timedelta(seconds=timeout), wait=timedelta(seconds=wait), max_failures=failures
    )
    outcome = fit(job, shape, cluster, listener or Silent())
    return (
        outcome,
        load_file(folder / "model" / "model.safetensors"),
        pq.read_table(folder / "predictions.parquet"),
    )


@pytest.fixture(scope="module")
def inline(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(digits, tmp_path_factory.mktemp("inline"), "inline")


@pytest.mark.parametrize(("placement", "workers"), [("task", 1), ("group", 1), ("group", 2), ("group", 3)])
def test_any_placement_gives_the_same_model_and_predictions(
    digits: Path, tmp_path: Path, inline: Any, placement: str, workers: int
) -> None:
    listener = Listener()
    outcome, weights, predictions = run(digits, tmp_path, placement, workers, listener=listener)
    assert [r.epoch for r in listener.epochs] == [1, 2]
    assert outcome.best == pytest.approx(inline[0].best, abs=1e-10)
    for name, values in inline[1].items():
        np.testing.assert_allclose(weights[name], values, rtol=0, atol=1e-10, err_msg=name)
    assert predictions["row_id"].equals(inline[2]["row_id"])
    np.testing.assert_allclose(predictions["score_True"], inline[2]["score_True"], rtol=0, atol=1e-10)
    logs = sorted(p.name for p in (tmp_path / "logs").glob("*.txt"))
    assert logs == [f"rank-{r:05d}.txt" for r in range(workers)]
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def own(name: str) -> Imported:
    return Imported.model_validate({"import": f"support.modules:{name}"})


def test_a_module_of_ones_own_reaches_the_workers(digits: Path, tmp_path: Path) -> None:
    alone = run(digits, tmp_path / "one", "inline", model=own("small"))
    both = run(digits, tmp_path / "two", "group", 2, model=own("small"))
    for name, values in alone[1].items():
        np.testing.assert_allclose(both[1][name], values, rtol=0, atol=1e-10)


def test_a_workers_own_error_is_what_the_user_reads(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="this module cannot see row 17"):
        run(digits, tmp_path, "group", 2, model=own("FailsOnWorkerOne"), timeout=20)
    assert "this module cannot see row 17" in (tmp_path / "logs" / "rank-00001.txt").read_text()
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def test_a_stuck_worker_is_named_and_the_group_ended(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(CollectiveTimeoutError, match=r"Did not take part: worker 1 \(.*process \d+\)"):
        run(digits, tmp_path, "group", 2, model=own("SleepsOnWorkerOne"), timeout=4)
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def test_a_worker_that_dies_ends_the_run_with_a_message(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"worker 1"):
        run(digits, tmp_path, "group", 2, model=own("DiesOnWorkerOne"), timeout=20)
    assert leftovers() == {"actors": 0, "placement_groups": 0}
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("strategy", ["ddp", {"deepspeed": {"zero_stage": 2}}])
def test_a_killed_worker_costs_the_steps_since_the_checkpoint_and_changes_nothing(
    digits: Path,
    tmp_path: Path,
    strategy: str | dict[str, Any],
    record_property: Callable[[str, object], None],
) -> None:
    at = random.Random().randrange(55, 85)
    killed = Imported.model_validate(
        {
            "import": "support.modules:Killed",
            "marker": str(tmp_path / "marker"),
            "at": at,
            "rank": "1",
        }
    )
    settings = {"epochs": 5, "checkpoint": {"every": "0.2s"}, "early_stopping": None, "strategy": strategy}
    settings["precision"] = "fp32"  # ZeRO's own
    listener = Listener()
    outcome, weights, predictions = run(
        digits, tmp_path / "killed", "group", 2, model=killed, listener=listener, failures=1, **settings
    )
    assert (tmp_path / "marker").exists()
    (resumed,) = outcome.resumed_from
    # Two forward passes of the proof come before the first step.
    assert 0 < resumed < at - 2, f"killed in step {at - 2}"
    record_property("steps_repeated", at - 2 - resumed)
    assert 0 <= outcome.repeated <= at - 2 - resumed
    assert any("was lost; the group starts again" in text for text in listener.notices)
    whole = run(digits, tmp_path / "whole", "group", 2, model=killed, **settings)
    assert whole[0].resumed_from == ()
    for name, values in whole[1].items():
        np.testing.assert_array_equal(weights[name], values, err_msg=name)
    assert predictions.equals(whole[2])
    assert leftovers() == {"actors": 0, "placement_groups": 0}


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(20))
def test_a_worker_that_is_killed_many_times(
    digits: Path, tmp_path: Path, repeat: int, record_property: Callable[[str, object], None]
) -> None:
    strategy = "ddp" if repeat % 5 == 4 else {"deepspeed": {"zero_stage": repeat % 5}}
    test_a_killed_worker_costs_the_steps_since_the_checkpoint_and_changes_nothing(
        digits, tmp_path, strategy, record_property
    )


def test_a_group_that_does_not_start_ends_with_a_message(digits: Path, tmp_path: Path) -> None:
    # More than the cluster has: as where others took the room after the sum was compared.
    start = time.monotonic()
    with pytest.raises(ResourceError, match="the group of 5 workers did not start within 4s"):
        run(digits, tmp_path, "group", 5, wait=4)
    assert time.monotonic() - start < 30
    assert leftovers() == {"actors": 0, "placement_groups": 0}
