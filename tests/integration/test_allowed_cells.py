"""Every cell of the table that is allowed on CPUs, against a training loop in plain torch.

Inline and task fits run one code; the placement itself is tested in test_placements.
"""

from pathlib import Path

import numpy as np
import pytest
from support import cells
from support.together import run_together

from shoal.training.config import OPTIMIZERS

# Workers sum in another order, which bf16 rounds to 3 digits at each step.
ATOL = {
    ("inline", "fp64"): 1e-12,
    ("inline", "fp32"): 1e-6,
    ("inline", "bf16"): 1e-6,
    ("group", "fp64"): 1e-10,
    ("group", "fp32"): 1e-5,
    ("group", "bf16"): 2e-3,
}
# A search interpolates differences of objectives; the loop by hand has only 7 digits of them.
SEARCHED = 5e-3


@pytest.mark.parametrize("placement", ["inline", "group"])
def test_every_allowed_cell_equals_a_plain_torch_loop(placement: str, tmp_path: Path) -> None:
    found = (
        cells.fits("inline") if placement == "inline" else run_together(tmp_path, 2, cells.fits, "group")[0]
    )
    assert {optimizer for _, optimizer, _ in found} == set(OPTIMIZERS)
    plain = {key[1:]: cells.plain(*key[1:]) for key in found}
    for (strategy, optimizer, precision), fits in found.items():
        for stage, weights in enumerate(fits):
            np.testing.assert_allclose(
                weights,
                plain[optimizer, precision],
                rtol=0,
                atol=SEARCHED
                if (optimizer, precision) == ("nonlinear_cg", "fp32")
                else ATOL[placement, precision],
                err_msg=f"{strategy} {stage} {optimizer} {precision}",
            )


def test_tasks_allow_what_inline_allows() -> None:
    assert set(cells.allowed("task")) == set(cells.allowed("inline"))
