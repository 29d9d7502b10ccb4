"""Class shares of a target domain, against closed forms and simulated shifts."""

import numpy as np
import pytest

from shoal.cluster.errors import DataError
from shoal.transfer.adaptation.label_shift import label_shift


def drawn(shares: list[float], n: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the probabilities that a model with even shares gives to rows about three centres."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(3, n, p=shares)
    x = labels * 2.0 + spread * draw.normal(size=n)
    logits = -((x[:, None] - 2.0 * np.arange(3)) ** 2) / 2
    p = np.exp(logits)
    return labels, p / p.sum(1, keepdims=True)


EVEN = np.full(3, 1 / 3)


def test_two_classes_in_closed_form() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    decided = np.array([0] * 8 + [1] * 2 + [1] * 9 + [0])
    known = np.eye(2)[decided]
    new = np.eye(2)[[1] * 62 + [0] * 38]
    found = label_shift(labels, known, new, np.array([0.5, 0.5]), soft=False, replicates=50)
    share = (0.62 - 0.2) / (0.9 - 0.2)  # (answered 1 - false alarms) / (hits - false alarms)
    assert found.target[1] == pytest.approx(share)
    assert found.weights == pytest.approx(((1 - share) / 0.5, share / 0.5))


@pytest.mark.parametrize("soft", [True, False])
def test_a_simulated_shift_is_found_and_its_interval_holds_it(soft: bool) -> None:
    held, inside = [0.1, 0.2, 0.7], 0
    for seed in range(40):
        labels, known = drawn([1 / 3, 1 / 3, 1 / 3], 1500, seed)
        _, new = drawn(held, 1500, 1000 + seed)
        found = label_shift(labels, known, new, EVEN, soft=soft, replicates=100, seed=seed)
        inside += found.low[2] <= 0.7 <= found.high[2]
        if not seed:
            assert found.target == pytest.approx(held, abs=0.1)
            assert np.dot(found.weights, EVEN) == pytest.approx(1.0)
    assert 34 <= inside <= 40, "a 95 % interval holds it in 38 of 40, give or take"


def test_no_share_is_below_none() -> None:
    labels, known = drawn([1 / 3, 1 / 3, 1 / 3], 800, 1)
    _, new = drawn([0.0, 0.5, 0.5], 800, 2)
    found = label_shift(labels, known, new, EVEN, replicates=20)
    assert min(found.target) >= 0
    assert found.target[0] < 0.05


def test_a_model_that_tells_nothing_apart_is_refused() -> None:
    labels = np.arange(300) % 3
    same = np.tile([0.2, 0.3, 0.5], (300, 1))
    with pytest.raises(
        DataError, match="cannot be estimated: the source's model tells classes apart too badly"
    ):
        label_shift(labels, same, same, EVEN)
    with pytest.raises(DataError, match="or one has no such row"):
        label_shift(np.zeros(300, int), drawn([1.0, 0, 0], 300, 1)[1], same, EVEN)
