"""Two and three workers against one, and runs that must stop because the workers do not train one model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import scenarios
from support.together import run_together

from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return scenarios.fits(Strategy(CPU))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_together(tmp_path_factory.mktemp("two"), 2, scenarios.all_of_it)


def assert_equal_fits(found: dict[str, np.ndarray], alone: dict[str, np.ndarray]) -> None:
    assert found.keys() == alone.keys()
    for name, values in alone.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-10, err_msg=name)


def test_two_workers_and_one_agree(two: list[dict[str, Any]], alone: dict[str, np.ndarray]) -> None:
    assert_equal_fits(two[0]["fits"], alone)
    np.testing.assert_array_equal(two[1]["fits"]["plain"], two[0]["fits"]["plain"])


def test_three_workers_and_one_agree(tmp_path: Path, alone: dict[str, np.ndarray]) -> None:
    assert_equal_fits(run_together(tmp_path, 3, scenarios.only_fits)[0], alone)


def test_a_reduction_that_is_switched_off_is_caught_on_every_worker(two: list[dict[str, Any]]) -> None:
    for worker in two:
        assert worker["failures"]["reduction off"].startswith(
            "ContractError: the workers' reduced gradient is not"
        )
        assert worker["failures"]["other weights"].startswith(
            "ContractError: the workers' reduced gradient is not"
        )


def test_a_worker_whose_model_drifts_is_named(two: list[dict[str, Any]]) -> None:
    for worker in two:
        assert (
            "after step 5 the models of workers [1] are not that of worker 0"
            in worker["torn"]["one worker drifts"]
        )


def test_overlapping_slots_are_caught(two: list[dict[str, Any]]) -> None:
    for worker in two:
        assert worker["torn"]["slots overlap"].startswith(
            "ContractError: workers do not share a batch rightly"
        )


def test_batch_norm_over_several_workers_is_refused_by_name(two: list[dict[str, Any]]) -> None:
    assert "body.1 is a BatchNorm1d" in two[0]["failures"]["batch norm"]


def test_a_stuck_worker_is_named(tmp_path: Path) -> None:
    said = run_together(tmp_path, 2, scenarios.one_worker_sleeps, 2.0, timeout=2.0)
    assert said[0].startswith("CollectiveTimeoutError: worker 0 waited 2 s")
    assert "Did not take part: worker 1 (" in said[0]
    assert "process " in said[0]


def test_the_reference_problem_agrees_over_its_first_50_steps_in_fp32_and_1000_in_fp64(
    tmp_path: Path,
) -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "reference.py"
    module = scenarios.load_reference(str(path))
    fp32, fp64 = run_together(tmp_path, 2, scenarios.reference, str(path))[0]
    one = Strategy(CPU)
    np.testing.assert_allclose(fp32, module.train_reference(one, "fp32", 50), rtol=0, atol=1e-5)
    np.testing.assert_allclose(fp64, module.train_reference(one, "fp64", 1000), rtol=0, atol=1e-10)
