"""Adaptation with DeepSpeed: parted optimiser states, gradients and parameters, and two workers for one."""

from pathlib import Path

import numpy as np
import pytest
from support import adapted_zero
from support.together import run_together


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_two_workers_agree_with_a_plain_one_and_go_on(stage: int, tmp_path: Path) -> None:
    found = run_together(tmp_path / "results", 2, adapted_zero.stage, stage, str(tmp_path / "run"))
    for name in adapted_zero.TRIED:
        alone = adapted_zero.alone(name)
        for worker in found:
            np.testing.assert_allclose(worker[name], alone, rtol=0, atol=5e-6, err_msg=name)
            assert worker[f"{name}: error"] < 1e-6
    for worker in found:
        assert worker["resumed at"] == (7,)
        np.testing.assert_array_equal(worker["resumed"], worker["self_training"])
