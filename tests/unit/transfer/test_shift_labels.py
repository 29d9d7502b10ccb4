"""Class shares of a target: exact where expectations are given, covered where sampled, refused where they cannot be told."""

import numpy as np
import pytest

from shoal.cluster.errors import DataError
from shoal.transfer.shift.labels import class_weights, confusion, estimate_label_shift, weighted_distance

SOURCE, TARGET = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])


def rows(n: int, shares: np.ndarray, seed: int, moved: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of a model that knows the source: classes are Gaussians around 0, 2 and 4."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=shares)
    x = 2.0 * y + rng.standard_normal(n) + moved
    density = np.exp(-0.5 * (x[:, None] - np.array([0.0, 2.0, 4.0])) ** 2) * SOURCE
    return y, density / density.sum(axis=1, keepdims=True)


def test_the_confusion_matrix_by_the_loop() -> None:
    y, p = rows(200, SOURCE, 0)
    for soft in (True, False):
        c = np.zeros((3, 3))
        for label, row in zip(y, p, strict=True):
            c[:, label] += row if soft else np.eye(3)[row.argmax()]
        np.testing.assert_allclose(confusion(p, y, 3, soft=soft), c / np.bincount(y))


def test_the_weights_are_those_of_the_joint_confusion_matrix() -> None:
    """Lipton's w = C^-1 mu, with C the joint one; exact where mu is the target's mixture."""
    y, p = rows(500, SOURCE, 1)
    c = confusion(p, y, 3, soft=True)
    shares = np.bincount(y) / 500
    joint = np.stack([(p * (y == j)[:, None]).mean(axis=0) for j in range(3)], axis=1)
    mu = c @ TARGET
    np.testing.assert_allclose(class_weights(c, shares, mu), np.linalg.solve(joint, mu))
    np.testing.assert_allclose(class_weights(c, shares, mu), TARGET / shares)
    np.testing.assert_allclose(class_weights(c, shares, c @ shares), 1)


def test_what_is_below_0_is_clipped() -> None:
    c = np.array([[0.8, 0.3], [0.2, 0.7]])
    np.testing.assert_allclose(class_weights(c, np.array([0.5, 0.5]), np.array([0.1, 0.9])), [0, 2])


@pytest.mark.parametrize("soft", [True, False])
def test_intervals_cover_the_true_shares(soft: bool) -> None:
    covered = np.zeros(3)
    for seed in range(60):
        y, p = rows(400, SOURCE, seed)
        q = rows(500, TARGET, 1000 + seed)[1]
        found = estimate_label_shift(p, y, q, soft=soft, replicates=200)
        assert found.seen
        covered += (found.low <= TARGET) & (found.high >= TARGET)
    assert covered.min() >= 51  # of 60 at 95 %: fewer than one in 1,000 times by chance


def test_many_rows_are_drawn_in_groups_with_the_same_spread() -> None:
    """The interval's width falls with the root of the rows, over the size at which groups begin."""
    widths = []
    for n in (2000, 8000):
        y, p = rows(n, SOURCE, 1)
        found = estimate_label_shift(p, y, rows(n, TARGET, 2)[1])
        widths.append(float((found.high - found.low).mean()))
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)


def test_soft_predictions_are_the_less_noisy_ones() -> None:
    y, p = rows(400, SOURCE, 0)
    q = rows(400, TARGET, 1)[1]
    wide = [
        np.ptp([f.low, f.high], axis=0).mean()
        for f in (estimate_label_shift(p, y, q, soft=s) for s in (True, False))
    ]
    assert wide[0] < wide[1]


@pytest.mark.parametrize("soft", [True, False])
def test_without_a_shift_none_is_seen(soft: bool) -> None:
    seen = 0
    for seed in range(60):
        y, p = rows(300, SOURCE, seed)
        seen += estimate_label_shift(p, y, rows(300, SOURCE, 500 + seed)[1], soft=soft, replicates=100).seen
    assert seen <= 8  # of 60 at 5 %: more happens fewer than one in 100 times


def test_label_shift_explains_its_scores_and_a_moved_class_does_not() -> None:
    y, p = rows(2000, SOURCE, 0)
    only = estimate_label_shift(p, y, rows(2000, TARGET, 1)[1])
    assert only.misfit_p > 0.05
    assert only.condition < 5
    more = estimate_label_shift(p, y, rows(2000, TARGET, 1, moved=0.8)[1])
    assert more.misfit_p < 0.01
    assert more.misfit > only.misfit


def test_the_distance_of_weighted_samples() -> None:
    a, w, b = np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 0.0, 1.0]), np.array([2.0, 3.0, 4.0])
    expected = max(abs(w[a <= x].sum() / 4 - (b <= x).mean()) for x in (1, 2, 3, 4))
    assert weighted_distance(a, w, b) == pytest.approx(expected)
    assert weighted_distance(b, np.ones(3), b) == 0


def test_the_order_of_rows_means_nothing() -> None:
    y, p = rows(300, SOURCE, 0)
    q = rows(200, TARGET, 1)[1]
    p[100:130], y[100:115] = p[100], y[100]  # equal rows, and rows equal but for the label
    first = estimate_label_shift(p, y, q)
    a, b = np.random.default_rng(1).permutation(300), np.random.default_rng(2).permutation(200)
    again = estimate_label_shift(p[a], y[a], q[b])
    np.testing.assert_allclose(
        np.stack([first.low, first.high]), np.stack([again.low, again.high]), rtol=1e-9
    )
    assert estimate_label_shift(p, y, q, seed=1).low[0] != first.low[0]


def test_a_model_that_tells_nothing_is_refused() -> None:
    y, p = rows(300, SOURCE, 0)
    flat = np.tile(SOURCE, (300, 1)) + 1e-9 * p
    found = estimate_label_shift(flat, y, flat)
    assert "close to singular" in found.reason
    assert np.isnan(found.target).all()
    assert not found.seen
    with pytest.raises(DataError, match="condition number"):
        class_weights(confusion(flat, y, 3, soft=True), SOURCE, SOURCE)


def test_a_class_without_source_rows_is_named() -> None:
    y, p = rows(300, SOURCE, 0)
    found = estimate_label_shift(p[y != 1], y[y != 1], p, classes=("no", "maybe", "yes"))
    assert "'maybe'" in found.reason


@pytest.mark.parametrize(
    ("p", "y", "q"),
    [
        (np.ones((4, 2)), np.zeros(4, int), np.ones((4, 3))),
        (np.ones((4, 1)), np.zeros(4, int), np.ones((4, 1))),
        (np.ones((4, 2)), np.zeros(3, int), np.ones((4, 2))),
        (np.ones((4, 2)), np.full(4, 2), np.ones((4, 2))),
        (np.ones((4, 2)), np.zeros(4, int), np.ones((0, 2))),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(p, y, q) -> None:
    with pytest.raises(ValueError, match="rows|labels"):
        estimate_label_shift(p, y, q)
