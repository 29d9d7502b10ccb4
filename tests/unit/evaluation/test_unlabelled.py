"""Accuracy without labels: by definition, without a shift, and under shifts that keep what is assumed."""

import numpy as np
import pytest

from shoal.evaluation.unlabelled import confidences, estimate_accuracy

RNG = np.random.default_rng(0)


def calibrated(n: int, a: float, b: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Decisions that are right with the probability that they claim, of a Beta between .5 and 1."""
    rng = np.random.default_rng(seed)
    sure = 0.5 + rng.beta(a, b, n) / 2
    return rng.random(n) < sure, sure


def test_confidence_is_that_of_the_decision() -> None:
    event, decided = np.array([0.9, 0.2, 0.3]), np.array([1, 0, 1])
    np.testing.assert_allclose(confidences(event, decided), [0.9, 0.8, 0.3])
    several = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    np.testing.assert_allclose(confidences(several, np.array([1, 2])), [0.5, 0.1])


def test_the_threshold_leaves_as_many_held_out_rows_below_as_are_wrong() -> None:
    known = np.array([0.55, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999])
    right = np.array([False, True, False, True, True, True, True, True, True, True])
    new = np.array([0.5, 0.69, 0.7, 0.75, 0.99])  # two are wrong, so the threshold is .7
    found = estimate_accuracy(right, known, new)
    assert found.by_threshold.value == pytest.approx(3 / 5)
    assert found.by_difference.value == pytest.approx(0.8 + new.mean() - known.mean())
    assert (found.held_out, found.held_out_rows, found.rows) == (0.8, 10, 5)


def test_without_a_shift_the_accuracy_is_the_held_out_one() -> None:
    right, known = calibrated(4000, 2, 1, 1)
    found = estimate_accuracy(right, known, known)
    assert found.by_threshold.value == pytest.approx(right.mean())
    assert found.by_difference.value == pytest.approx(right.mean())


def test_a_shift_to_less_sure_rows_is_seen_and_its_interval_covers() -> None:
    right, known = calibrated(3000, 4, 1, 2)
    covered = {"by_threshold": 0, "by_difference": 0}
    for seed in range(40):
        truth, new = calibrated(3000, 1, 2, 100 + seed)
        found = estimate_accuracy(right, known, new, replicates=200, seed=seed)
        assert found.by_difference.value < right.mean() - 0.1
        expected = float(new.mean())  # what calibrated decisions come to
        covered["by_difference"] += found.by_difference.low <= expected <= found.by_difference.high
        assert abs(found.by_difference.value - truth.mean()) < 0.06
    assert covered["by_difference"] >= 34  # of 40 at 95 %: fewer than one in 10,000 times by chance


def test_draws_are_of_the_seed() -> None:
    right, known = calibrated(300, 4, 1, 2)
    new = RNG.random(200)
    assert estimate_accuracy(right, known, new, seed=3) == estimate_accuracy(right, known, new, seed=3)
    assert estimate_accuracy(right, known, new, seed=3) != estimate_accuracy(right, known, new, seed=4)


def test_decisions_that_are_all_wrong_leave_no_threshold() -> None:
    found = estimate_accuracy(np.zeros(20, bool), RNG.random(20), RNG.random(30))
    assert found.by_threshold.value == 0
