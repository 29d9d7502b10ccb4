"""Any optimiser with any schedule, penalty and loss: a plain torch loop, one worker, two workers and a resumed fit agree."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import combined
from support.by_hand import OPTIMIZERS
from support.combined import Combination
from support.together import run_together

from shoal.cluster.errors import StoppedError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import RunKeeper
from shoal.training.config import SEARCHING
from shoal.training.strategies.base import Strategy

ALL = [
    made
    for axes in itertools.product(OPTIMIZERS, combined.SCHEDULES, combined.PENALTIES, combined.LOSSES)
    if (made := Combination(*axes)).is_allowed
]
CPU = torch.device("cpu")


def tolerance(made: Combination) -> float:
    """A search amplifies rounding; adagrad and kin divide by what starts near zero."""
    return 1e-6 if made.optimizer in SEARCHING else 1e-9


@settings(max_examples=40)
@given(st.sampled_from(ALL))
def test_one_worker_equals_a_plain_torch_loop(made: Combination) -> None:
    np.testing.assert_allclose(
        combined.fit(made, Strategy(CPU)), combined.by_hand(made), rtol=0, atol=tolerance(made)
    )


@settings(max_examples=25)
@given(st.sampled_from(ALL), st.integers(1, 14))
def test_a_resumed_fit_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, made: Combination, stop: int
) -> None:
    run = Storage.open(str(tmp_path_factory.mktemp("run")))
    whole = combined.loop_of(made, Strategy(CPU))
    outcome = whole.run()
    left = iter(range(min(stop, outcome.steps - 1) - 1))
    keeper = RunKeeper(run, 0.0, 2, lambda: "" if next(left, None) is not None else "stop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookout, "LOOK_SECONDS", 0.0)
        if outcome.steps > 1:
            with pytest.raises(StoppedError):
                combined.loop_of(made, Strategy(CPU), keeper).run()
        again = combined.loop_of(made, Strategy(CPU), RunKeeper(run, 1e9, 2))
        again.run()
    np.testing.assert_array_equal(combined.flat(again.model), combined.flat(whole.model))


def test_two_workers_agree_with_one(tmp_path: Path) -> None:
    draw = random.Random(0)
    chosen = [made for name in OPTIMIZERS for made in draw.sample([m for m in ALL if m.optimizer == name], 4)]
    for made, found in zip(chosen, run_together(tmp_path, 2, combined.fits, chosen)[0], strict=True):
        np.testing.assert_allclose(
            found, combined.fit(made, Strategy(CPU)), rtol=0, atol=tolerance(made), err_msg=str(made)
        )
