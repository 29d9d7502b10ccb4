"""The learning-rate range test on curves whose answer is known."""

import numpy as np
import pytest
import torch

from shoal.training.config import TrainingConfig
from shoal.training.schedules.range_test import HIGHEST, LOWEST, RangeTestConfig, read
from shoal.training.schedules.schedule import Schedule
from shoal.verbs.range_test import _training

RATES = np.geomspace(LOWEST, HIGHEST, 400)


def curve(center: float, diverges: float = np.inf) -> np.ndarray:
    """A loss that falls from 1.1 to .1 around a rate, and explodes beyond another."""
    fallen = 0.1 + 1 / (1 + (RATES / center) ** 2)
    return np.where(diverges < RATES, fallen * (RATES / diverges) ** 9, fallen)


def test_the_suggestion_leaves_a_decade_below_the_lowest_loss() -> None:
    found = read(RATES, curve(1e-3, diverges=0.3))
    assert found.suggestion is not None
    lowest = found.rates[int(np.argmin(found.smoothed))]
    assert found.suggestion == pytest.approx(lowest / 10, rel=0.05)
    # The mean over some ten steps of a curve whose loss falls fastest at its center lags a little behind.
    steepest = float(found.reason.split("falls fastest at ")[1].split(",")[0])
    assert steepest == pytest.approx(1e-3, rel=1.0)
    assert "diverges from" in found.reason
    assert found.rates[-1] < 1.0


def test_a_fall_that_ends_at_once_is_taken_where_it_is_steepest() -> None:
    found = read(RATES, curve(0.01, diverges=0.03))
    assert found.suggestion is not None
    assert 0.005 < found.suggestion < 0.04
    assert found.reason.startswith("the rate of the steepest fall")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (np.ones(400), "falls by less than 5%"),
        (np.full(400, np.nan), "at the lowest rates already"),
        (np.where(RATES > 1e-6, np.nan, 1.0), "at the lowest rates already|falls by less"),
        (np.linspace(1, 3, 400), "falls by less than 5%|only rises"),
    ],
)
def test_without_a_fall_nothing_is_suggested(losses: np.ndarray, said: str) -> None:
    found = read(RATES, losses)
    assert found.suggestion is None
    assert any(part in found.reason for part in said.split("|"))


def test_a_loss_that_still_falls_at_the_end_is_said_to() -> None:
    rates = np.geomspace(1e-7, 10, 200)
    falls = read(rates, 2 - np.linspace(0, 1, 200))
    assert "it still falls where the test ends: a higher rate may be better" in falls.reason
    rises = read(rates, np.where(rates < 1, 2 - np.linspace(0, 1, 200), 1.9))
    assert "still falls" not in rises.reason


def test_a_loss_that_is_no_number_ends_the_curve() -> None:
    losses = curve(1e-3)
    losses[300] = np.inf
    found = read(RATES, losses)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == 300
    assert found.suggestion is not None


def test_on_a_quadratic_it_stays_below_the_known_limit_of_gradient_descent() -> None:
    # Steps of 2 / curvature and more diverge; the curvatures here are 1 to 50.
    curvatures, w = torch.linspace(1, 50, 20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    losses = []
    for rate in RATES:
        losses.append(float((curvatures * w * w).sum() / 2))
        w = w - float(rate) * curvatures * w
    found = read(RATES, np.array(losses))
    assert found.suggestion is not None
    assert 1e-4 < found.suggestion < 2 / 50


def test_the_rate_rises_to_the_optimisers_in_every_step() -> None:
    made = Schedule(RangeTestConfig(), steps_per_epoch=50, epochs=2)
    factors = [made.factor(step) for step in range(100)]
    np.testing.assert_allclose(np.array(factors) * HIGHEST, np.geomspace(LOWEST, HIGHEST, 100), rtol=1e-9)


def test_groups_keep_their_ratio_to_the_rate_that_is_looked_for() -> None:
    training = TrainingConfig.model_validate(
        {
            "optimizer": {"sgd": {"learning_rate": 0.1}},
            "parameter_groups": [{"match": "*.0.weight", "learning_rate": 1e-4}, {"match": "*", "l2": 0.1}],
        }
    )
    tested = _training(training, 30)
    assert tested.epochs == 4  # 100 steps at least
    assert tested.optimizer.learning_rate == HIGHEST  # type: ignore[attr-defined]
    rates = [group.learning_rate for group in tested.parameter_groups]
    assert rates == [pytest.approx(HIGHEST * 1e-3), None]
