"""Scores without target labels: by naive loops over their formulas, and by what they must prefer."""

import numpy as np
import pytest
from scipy.stats import norm

from shoal.transfer.adaptation.selection import (
    bnm,
    corr_c,
    density_ratio,
    dev,
    ensemble_rank,
    entropy,
    importance_weighted,
    mean_ranks,
    selection_scores,
    snd,
)

RNG = np.random.default_rng(0)
P = RNG.dirichlet([0.5, 1.0, 0.8], size=60)
ON_PROBABILITIES = [entropy, snd, bnm, corr_c]


def test_entropy_is_that_of_the_loop() -> None:
    total = 0.0
    for row in P:
        for p in row:
            total += p * np.log(p)
    assert entropy(P) == pytest.approx(total / 60)
    assert entropy(np.eye(3)) == 0  # 0 log 0
    assert entropy(np.full((4, 3), 1 / 3)) == pytest.approx(-np.log(3))


def test_neighbourhood_density_is_that_of_the_loop() -> None:
    tau, total = 0.05, 0.0
    for i, a in enumerate(P):
        others = np.array(
            [np.exp(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) / tau) for j, b in enumerate(P) if j != i]
        )
        share = others / others.sum()
        total -= (share * np.log(share)).sum()
    assert snd(P) == pytest.approx(total / 60)
    assert snd(np.tile([[1.0, 0.0]], (9, 1))) == pytest.approx(np.log(8))  # all alike: the largest there is


def test_neighbourhood_density_in_blocks_is_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = snd(P)
    monkeypatch.setattr("shoal.transfer.adaptation.selection._BLOCK", 60 * 7)
    assert snd(P) == pytest.approx(whole, rel=1e-12)


def test_neighbourhood_density_of_a_sample_is_near_that_of_all() -> None:
    p = RNG.dirichlet([0.5, 1.0, 0.8], size=2000)
    # Entropies grow by the logarithm of the rows.
    assert snd(p, limit=500) == pytest.approx(snd(p) - np.log(4), abs=0.05)
    assert snd(p, limit=500, seed=1) != snd(p, limit=500)


def test_nuclear_norm_by_eigenvalues() -> None:
    assert bnm(P) == pytest.approx(np.sqrt(np.linalg.eigvalsh(P.T @ P)).sum() / 60)
    assert bnm(np.tile(np.eye(3), (4, 1))) == pytest.approx(np.sqrt(3 / 12))  # sure and balanced: sqrt(K / n)
    assert bnm(np.full((12, 3), 1 / 3)) == pytest.approx(1 / np.sqrt(36))


def test_class_correlation_by_the_loop() -> None:
    c = np.zeros((3, 3))
    for row in P:
        c += np.outer(row, row) / 60
    cosine = (c * np.eye(3)).sum() / (np.sqrt((c**2).sum()) * np.sqrt(3))
    assert corr_c(P) == pytest.approx(cosine)
    assert corr_c(np.tile(np.eye(3), (4, 1))) == pytest.approx(1)
    assert corr_c(np.full((4, 3), 1 / 3)) == pytest.approx(1 / np.sqrt(3))


def test_what_diversity_is_worth() -> None:
    """A collapsed model wins by entropy and density, and loses by the two scores that ask for diversity."""
    collapsed, good = np.tile([[1.0, 0.0, 0.0]], (60, 1)), 0.9 * np.tile(np.eye(3), (20, 1)) + 0.1 / 3
    assert entropy(collapsed) > entropy(good)
    assert snd(collapsed) > snd(good)
    assert bnm(collapsed) < bnm(good)
    assert corr_c(collapsed) < corr_c(good)


@pytest.mark.parametrize("score", ON_PROBABILITIES)
def test_the_order_of_rows_means_nothing(score) -> None:
    order = RNG.permutation(60)
    assert score(P[order]) == pytest.approx(score(P), rel=1e-12)


@pytest.mark.parametrize("score", ON_PROBABILITIES)
@pytest.mark.parametrize("wrong", [P[:, :1], P[:0], P * 2, P - 1, np.where(P > 0.5, np.nan, P), P[0]])
def test_no_probabilities_are_refused(score, wrong) -> None:
    with pytest.raises(ValueError, match="probabilities are"):
        score(wrong)


def gaussians(m: int, n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, 1)), rng.standard_normal((n, 1)) + shift


def test_the_density_ratio_is_that_of_two_gaussians() -> None:
    source, target = gaussians(4000, 8000, 0.7, 1)
    known = norm.pdf(source[:, 0], 0.7) / norm.pdf(source[:, 0])
    found = density_ratio(source, target)
    assert np.quantile(np.abs(np.log(found / known)), 0.9) < 0.2
    assert found.mean() == pytest.approx(1, abs=0.05)
    assert density_ratio(source, target, clip=2.0).max() == 2.0


def test_equal_domains_have_a_ratio_of_one_whatever_their_sizes() -> None:
    found = density_ratio(*gaussians(1000, 5000, 0.0, 2))
    assert found.mean() == pytest.approx(1, abs=0.05)


def test_the_density_ratio_of_a_row_stays_with_it() -> None:
    source, target = gaussians(300, 400, 1.0, 3)
    source = np.round(source, 1)  # equal rows
    a, b = RNG.permutation(300), RNG.permutation(400)
    np.testing.assert_allclose(
        density_ratio(source[a], target[b]), density_ratio(source, target)[a], rtol=1e-9
    )


def test_importance_weights_estimate_the_target_risk() -> None:
    """Under covariate shift: a loss that rises with x, exact weights, against the risk on target rows."""
    source, target = gaussians(6000, 6000, 0.5, 4)
    losses, truth = source[:, 0] ** 2, float((target**2).mean())
    weights = density_ratio(source, target)
    assert -importance_weighted(losses, weights) == pytest.approx(truth, abs=0.12)
    assert -dev(losses, weights) == pytest.approx(truth, abs=0.12)
    assert abs(losses.mean() - truth) > 0.2  # what the weights mend


def test_the_control_variate_is_that_of_the_paper_and_has_less_variance() -> None:
    rng, plain, controlled = np.random.default_rng(5), [], []
    for _ in range(300):
        x = rng.standard_normal(200)
        weights = np.exp(0.7 * x - 0.245)  # of a Gaussian moved by .7
        losses = 1 + 0.2 * np.sin(x)
        plain.append(-importance_weighted(losses, weights))
        controlled.append(-dev(losses, weights))
    assert np.std(controlled) < np.std(plain) / 3
    assert np.mean(controlled) == pytest.approx(np.mean(plain), abs=0.02)
    weighted = weights * losses
    cov = np.cov(np.stack([weighted, weights]), rowvar=True)
    eta = -cov[0, 1] / cov[1, 1]
    assert controlled[-1] == pytest.approx(weighted.mean() + eta * weights.mean() - eta)


def test_equal_weights_leave_the_mean_loss() -> None:
    losses = RNG.random(50)
    for score in (importance_weighted, dev):
        assert score(losses, np.ones(50)) == pytest.approx(-losses.mean())


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "one d"),
        (np.zeros((3, 2)), np.zeros((9, 2)), "too few"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), "finite"),
    ],
)
def test_features_that_do_not_go_together_are_refused(source, target, message) -> None:
    with pytest.raises(ValueError, match=message):
        density_ratio(source, target)


def test_losses_and_weights_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="one of each"):
        dev(np.zeros(3), np.ones(4))


def test_the_mean_rank_shares_ties_and_puts_what_is_no_number_last() -> None:
    ranks = ensemble_rank({"a": np.array([3.0, 1.0, 1.0, np.nan]), "b": np.array([0.0, -1.0, 5.0, -np.inf])})
    np.testing.assert_allclose(ranks, [(1 + 2) / 2, (2.5 + 3) / 2, (2.5 + 1) / 2, 4.0])


def test_scores_of_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="one value a model"):
        ensemble_rank({"a": np.zeros(3), "b": np.zeros(2)})
    with pytest.raises(ValueError, match="one value a model"):
        ensemble_rank({})


def test_scores_by_source_labels_are_half_of_the_mean_rank() -> None:
    scores = {"dev": [2.0, 1.0], "snd": [0.0, 1.0], "bnm": [0.0, 1.0], "entropy": [0.0, 1.0]}
    assert mean_ranks(scores) == [1.5, 1.5]
    assert mean_ranks({"snd": [1.0, 1.0, 0.0], "bnm": [float("nan"), 2.0, 3.0]}) == [2.25, 1.75, 2.0]


def test_all_scores_together() -> None:
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 300)
    good, bad = np.eye(3)[labels] * 0.9 + 0.1 / 3, draw.dirichlet([2, 2, 2], 300)
    features, known = draw.normal(size=(300, 2)), draw.normal(size=(200, 2))
    found = [selection_scores(p, features, np.full(200, e), known) for p, e in ((good, 0.1), (bad, 0.6))]
    assert set(found[0]) == {"importance_weighted", "dev", "entropy", "snd", "bnm", "corr_c"}
    assert all(found[0][name] > found[1][name] for name in found[0] if name != "snd")
    weights = density_ratio(known, features)
    assert found[0]["dev"] == dev(np.full(200, 0.1), weights)
    assert set(selection_scores(None, features, np.ones(200), known)) == {"importance_weighted", "dev"}
