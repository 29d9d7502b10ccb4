"""Scores without target labels, against their formulas in plain loops."""

import numpy as np
import pytest

from shoal.transfer.adaptation import selection
from shoal.transfer.adaptation.density import density_ratio
from shoal.transfer.adaptation.selection import (
    bnm,
    corr_c,
    dev,
    entropy,
    importance_weighted,
    mean_ranks,
    selection_scores,
    snd,
)

DRAW = np.random.default_rng(4)
P = DRAW.dirichlet([0.5, 1.0, 2.0], 57)


def test_entropy_is_its_formula() -> None:
    assert entropy(P) == pytest.approx(np.mean([sum(v * np.log(v) for v in row) for row in P]))
    assert entropy(np.eye(3)) == pytest.approx(0.0, abs=1e-9)


def test_bnm_is_the_sum_of_singular_values_over_rows() -> None:
    assert bnm(P) == pytest.approx(np.sqrt(np.linalg.eigvalsh(P.T @ P)).sum() / 57)
    sure_and_even = np.eye(3)[np.arange(57) % 3]
    assert bnm(sure_and_even) > bnm(np.eye(3)[np.zeros(57, int)]) > bnm(np.full((57, 3), 1 / 3))


def test_snd_is_its_definition_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = [row / np.sqrt((row**2).sum()) for row in P]
    expected = []
    for i, a in enumerate(unit):
        s = np.array([np.exp(a @ b / 0.05) for j, b in enumerate(unit) if j != i])
        s /= s.sum()
        expected.append(-(s * np.log(s)).sum())
    whole = snd(P)
    assert whole == pytest.approx(np.mean(expected))
    monkeypatch.setattr(selection, "BLOCK", 10)
    assert snd(P) == pytest.approx(whole, abs=1e-12)


def test_class_correlation_is_its_cosine_with_the_identity() -> None:
    c = sum(np.outer(row, row) for row in P)
    assert corr_c(P) == pytest.approx((c * np.eye(3)).sum() / np.sqrt((c**2).sum()))


def test_importance_weighting_and_its_control_variate() -> None:
    weights, losses = DRAW.gamma(2.0, 0.5, 400), DRAW.exponential(size=400)
    assert importance_weighted(losses, weights) == pytest.approx(-np.mean(weights * losses))
    z = weights * losses
    eta = -np.cov(z, weights)[0, 1] / np.var(weights, ddof=1)
    assert dev(losses, weights) == pytest.approx(-(z.mean() + eta * weights.mean() - eta))
    assert dev(losses, np.ones(400)) == pytest.approx(-losses.mean())


def test_the_control_variate_narrows_the_spread() -> None:
    """Over repetitions DEV varies less about the risk than the plain weighted mean."""
    plain, controlled = [], []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        x = draw.normal(size=500)
        weights = np.exp(x - 0.5)  # of N(1, 1) over N(0, 1)
        losses = 1.0 + 0.2 * x
        plain.append(importance_weighted(losses, weights))
        controlled.append(dev(losses, weights))
    assert np.mean(plain) == pytest.approx(-1.2, abs=0.03)
    assert np.mean(controlled) == pytest.approx(-1.2, abs=0.03)
    assert np.std(controlled) < 0.7 * np.std(plain)


def test_density_ratio_of_two_gaussians() -> None:
    draw = np.random.default_rng(0)
    source, target = draw.normal(size=(4000, 1)), draw.normal(0.7, 1.0, size=(6000, 1))
    found = density_ratio(source, target, clip=1e9)
    true = np.exp(0.7 * source[:, 0] - 0.245)
    assert np.corrcoef(np.log(found), np.log(true))[0, 1] > 0.99
    assert np.abs(np.log(found) - np.log(true)).mean() < 0.1
    assert found.mean() == pytest.approx(1.0)
    clipped = density_ratio(source, target, clip=2.0)
    assert clipped.max() <= 2.0 * clipped.mean() / np.minimum(found, 2.0).mean() + 1e-9
    np.testing.assert_array_equal(found, density_ratio(source, target, clip=1e9))


def test_all_scores_of_a_good_model_beat_those_of_a_bad_one() -> None:
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 300)
    good = np.eye(3)[labels] * 0.9 + 0.1 / 3
    bad = draw.dirichlet([2, 2, 2], 300)
    found = [
        selection_scores(p, draw.normal(size=(300, 2)), losses, draw.normal(size=(200, 2)))
        for p, losses in ((good, np.full(200, 0.1)), (bad, np.full(200, 1.1)))
    ]
    assert set(found[0]) == {"importance_weighted", "dev", "entropy", "snd", "bnm", "corr_c"}
    # But for SND, which likes any dense neighbourhood: the reason why several are asked.
    assert all(found[0][name] > found[1][name] for name in found[0] if name != "snd")
    ranks = mean_ranks({name: [found[0][name], found[1][name]] for name in found[0]})
    assert ranks[0] < ranks[1]
    assert set(selection_scores(None, good, np.ones(200), draw.normal(size=(200, 3)))) == {
        "importance_weighted",
        "dev",
    }


def test_ranks_share_ties_and_put_undefined_last() -> None:
    assert mean_ranks({"snd": [1.0, 1.0, 0.0], "bnm": [float("nan"), 2.0, 3.0]}) == [
        (1.5 + 3) / 2,
        (1.5 + 2) / 2,
        (3 + 1) / 2,
    ]


def test_scores_by_source_labels_are_half_of_the_rank() -> None:
    scores = {"dev": [2.0, 1.0], "snd": [0.0, 1.0], "bnm": [0.0, 1.0], "entropy": [0.0, 1.0]}
    assert mean_ranks(scores) == [1.5, 1.5]
