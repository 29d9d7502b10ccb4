"""ZeRO 0 to 3 against one plain torch worker; resume under the same and another number of workers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import resuming, zero
from support.together import run_together

from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")
ATOL = {"bf16": 2e-3, "fp16": 2e-3}
FP32 = 1e-6


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return zero.fits(lambda: Strategy(CPU))


@pytest.fixture(scope="module", params=zero.STAGES)
def two(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    return request.param, run_together(folder, 2, zero.stage, request.param, str(folder / "runs"))


def assert_equal_fits(found: dict[str, np.ndarray], alone: dict[str, np.ndarray]) -> None:
    assert found.keys() == alone.keys()
    for name, values in alone.items():
        atol = ATOL.get(name.partition(":")[0], FP32)
        rtol = 1e-4 if name == "non-finite steps left out" else 0  # its weights are about 1e27
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=atol, err_msg=name)


def test_two_workers_agree_with_one_plain_one(
    two: tuple[int, list[dict[str, Any]]], alone: dict[str, np.ndarray]
) -> None:
    assert alone["non-finite steps left out: best"][1] > 0
    for worker in two[1]:
        for fits in worker["fits"]:  # the second time with the optimiser's state offloaded
            assert_equal_fits(fits, alone)
    for first, second in zip(*(worker["fits"] for worker in two[1]), strict=True):
        for name, values in first.items():
            np.testing.assert_array_equal(second[name], values, err_msg=name)


def test_a_reduction_that_is_switched_off_is_caught(two: tuple[int, list[dict[str, Any]]]) -> None:
    for worker in two[1]:
        assert worker["reduction off"].startswith("ContractError: the workers' reduced gradient is not")


def test_unused_parameters_are_refused_where_they_cannot_be_shared(
    two: tuple[int, list[dict[str, Any]]],
) -> None:
    number, (worker, _) = two
    expected = "ConfigError: training.strategy: deepspeed cannot share" if number else "nothing failed"
    assert worker["unused"].startswith(expected)


def assert_goes_on_bitwise(worker: dict[str, Any]) -> None:
    for name, (whole, stopped, resumed) in worker.items():
        assert stopped is None
        assert resumed["resumed_from"] == (7,)
        np.testing.assert_array_equal(resumed["weights"], whole["weights"], err_msg=name)


def test_a_stopped_fit_goes_on_bitwise(two: tuple[int, list[dict[str, Any]]]) -> None:
    for worker in two[1]:
        assert_goes_on_bitwise(worker["resumed"])


OTHERS = tuple(name for name in zero.RESUMED if name not in zero.FEW)


@pytest.mark.slow
@pytest.mark.parametrize("stage", zero.STAGES)
def test_a_stopped_fit_of_every_optimiser_goes_on_bitwise(stage: int, tmp_path: Path) -> None:
    for worker in run_together(tmp_path, 2, zero.resumed, stage, str(tmp_path / "runs"), OTHERS):
        assert_goes_on_bitwise(worker)


@pytest.mark.parametrize("names", [zero.FEW, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_another_number_of_workers_goes_on(tmp_path: Path, names: tuple[str, ...]) -> None:
    run_together(tmp_path / "stopped", 2, zero.all_stages, str(tmp_path / "runs"), 7, names)
    for workers in (1, 3):
        runs = str(tmp_path / f"runs of {workers}")
        shutil.copytree(tmp_path / "runs", runs)
        found = run_together(tmp_path / f"{workers}", workers, zero.all_stages, runs, None, names)[0]
        for name in names:
            plain = resuming.fit(None, None, Strategy(CPU), **zero.RESUMED[name], precision="fp32")
            assert plain is not None
            for number in zero.STAGES:
                fit = found[f"{number} {name}"]
                assert fit["resumed_from"] == (7,)
                np.testing.assert_allclose(
                    fit["weights"], plain["weights"], rtol=0, atol=1e-5, err_msg=f"{number} {name}"
                )


def test_a_stuck_worker_is_named(tmp_path: Path) -> None:
    said = run_together(tmp_path, 2, zero.one_worker_sleeps, 3, 4.0, timeout=4.0)
    assert said[0].startswith("CollectiveTimeoutError: worker 0 waited 4 s")
    assert "worker 1 (" in said[0]
