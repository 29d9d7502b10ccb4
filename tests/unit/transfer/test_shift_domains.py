"""Telling domains apart: the AUC by counting pairs, its variance by DeLong's sums, intervals that cover."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.prepare import Prepared
from shoal.evaluation.influence import roc_auc_influence, standard_error
from shoal.transfer.content import content_keys, draw
from shoal.transfer.shift.domains import Pair, delong, judge, pair, separate

RNG = np.random.default_rng(0)


def rows(n: int, shift: float = 0.0, seed: int = 0, likely: float = 0.5, missing: float = 0.1) -> Prepared:
    rng = np.random.default_rng(seed)
    numeric = rng.standard_normal((n, 3)).astype(np.float32)
    numeric[:, 0] += shift
    numeric[rng.random(n) < missing, 1] = np.nan
    return Prepared(numeric, (2 + (rng.random((n, 1)) < likely)).astype(np.int32))


def test_the_area_counts_pairs_and_its_variance_is_delongs() -> None:
    events, scores = RNG.random(60) < 0.4, np.round(RNG.standard_normal(60), 1)
    x, y = scores[events], scores[~events]
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    variance = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    area, found = delong(events, scores)
    assert area == pytest.approx(wins.mean()) == pytest.approx(roc_auc_score(events, scores))
    assert found == pytest.approx(variance)
    error = standard_error(roc_auc_influence(events, scores), events.astype(np.int64))
    assert np.sqrt(found) == pytest.approx(error)


def test_folds_count_by_their_pairs() -> None:
    in_target = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0], bool)
    fold = np.array([0] * 6 + [1] * 6 + [2])  # the last one has no pair
    scores = RNG.standard_normal(13)
    areas = [roc_auc_score(in_target[fold == k], scores[fold == k]) for k in (0, 1)]
    assert judge(in_target, scores, fold).auc == pytest.approx((9 * areas[0] + 8 * areas[1]) / 17)


def test_scores_of_two_folds_are_not_compared() -> None:
    """Of other classifiers, they may be on another scale."""
    in_target, fold = np.tile([False, True], 20), np.repeat([0, 1], 20)
    scores = in_target + 100.0 * fold
    assert judge(in_target, scores, fold).auc == 1


def test_an_error_free_result_has_the_bound_of_its_rows() -> None:
    in_target = np.repeat([False, True], [30, 50])
    found = judge(in_target, in_target.astype(float), np.arange(80) % 2)
    assert (found.auc, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 30))
    assert judge(in_target, -in_target.astype(float), np.arange(80) % 2).high == pytest.approx(1 - found.low)


def test_intervals_cover_a_known_area() -> None:
    """Gaussians one standard deviation apart: AUC = Phi(1 / sqrt 2)."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        in_target = np.repeat([False, True], [60, 90])
        found = judge(in_target, rng.standard_normal(150) + in_target, np.arange(150) % 3)
        covered += found.low <= 0.76025 <= found.high
    assert covered >= 181  # of 200 at 95 %: fewer than one in 300 times by chance


@pytest.mark.parametrize("kind", ["trees", "linear"])
def test_without_a_shift_chance_is_what_is_found(kind) -> None:
    seen = 0
    for seed in range(8):
        found = separate(pair(rows(150, seed=seed), rows(150, seed=100 + seed), seed=seed), kind)
        seen += found.seen
        assert 0.35 < found.auc < 0.65
    assert seen <= 2  # of 8 at 2.5 %: more happens less than once in 1,000 times


@pytest.mark.parametrize("kind", ["trees", "linear"])
@pytest.mark.parametrize(
    "other", [{"shift": 1.0}, {"likely": 0.9}, {"missing": 0.6}], ids=["number", "category", "missing"]
)
def test_each_kind_of_shift_is_seen(kind, other) -> None:
    assert separate(pair(rows(300), rows(300, seed=1, **other)), kind).seen


def test_a_shift_of_spread_is_for_trees() -> None:
    wide = rows(400, seed=1)
    wide.numeric[:, 0] *= 3
    both = pair(rows(400), wide)
    assert separate(both, "trees").auc > separate(both, "linear").auc + 0.1


@pytest.mark.filterwarnings("error")
def test_many_categories_and_a_column_without_values() -> None:
    source = Prepared(np.full((200, 1), np.nan, np.float32), RNG.integers(0, 900, (200, 1)).astype(np.int32))
    target = Prepared(np.full((200, 1), np.nan, np.float32), RNG.integers(0, 900, (200, 1)).astype(np.int32))
    for kind in ("trees", "linear"):
        assert 0.3 < separate(pair(source, target), kind).auc < 0.7


def shuffled(of: Prepared) -> Prepared:
    order = RNG.permutation(len(of.numeric))
    return Prepared(of.numeric[order], of.categorical[order])


def test_the_order_of_rows_means_nothing() -> None:
    source, target = rows(200), rows(230, 0.3, seed=1)
    source.numeric[50:90] = source.numeric[0]  # equal rows
    source.categorical[50:90] = source.categorical[0]
    for limit in (None, 120):
        first = pair(source, target, limit=limit)
        again = pair(shuffled(source), shuffled(target), limit=limit)
        for a, b in zip(vars(first).values(), vars(again).values(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert separate(first) is not None
    assert separate(first).auc == separate(again).auc


def test_equal_rows_are_drawn_one_by_one() -> None:
    x = np.repeat([[1.0], [2.0]], 500, axis=0)
    taken = x[draw(content_keys(x), 200), 0]
    assert 60 < (taken == 1).sum() < 140


def test_keys_are_of_content() -> None:
    a = np.array([[0.0, np.nan], [-0.0, np.nan], [np.nan, 0.0]])
    keys = content_keys(a)
    assert keys[0] == keys[1] != keys[2]
    assert content_keys(a, seed=1)[0] != keys[0]


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="the target has 19 rows"):
        pair(rows(50), rows(19))
    nothing = Prepared(np.zeros((50, 0), np.float32), np.zeros((50, 0), np.int32))
    with pytest.raises(DataError, match="without columns"):
        pair(nothing, nothing)


def test_a_sample_is_of_both_domains_with_folds_in_each() -> None:
    found = pair(rows(100), rows(60, seed=1), limit=50, n_folds=5)
    assert isinstance(found, Pair)
    assert found.in_target.sum() == 50
    assert np.unique(found.fold[found.in_target], return_counts=True)[1].tolist() == [10] * 5
