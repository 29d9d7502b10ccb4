"""Resampling of training rows: imbalanced-learn's selections and rows, and what it never touches."""

import math
from pathlib import Path

import imblearn.combine
import imblearn.over_sampling
import imblearn.under_sampling
import numpy as np
import pytest
from scipy.stats import ks_2samp
from support.imbalance import config, real, skewed, training_rows

from shoal.cluster.errors import ConfigError, DataError, ShoalError
from shoal.cluster.resources import Totals
from shoal.cluster.sharding.imbalance import config as names
from shoal.cluster.sharding.imbalance import resample as resampling
from shoal.cluster.sharding.imbalance.neighbours import Neighbourhood
from shoal.cluster.sharding.imbalance.resample import resample, wanted
from shoal.cluster.sharding.imbalance.smote import draws, interpolate, over_sample, vote

# -- selections: the same rows as imbalanced-learn ---------------------------------------------------------------


SELECTIONS = [
    ({"near_miss": {}}, imblearn.under_sampling.NearMiss(version=1)),
    ({"near_miss": {"version": 2}}, imblearn.under_sampling.NearMiss(version=2)),
    ({"near_miss": {"version": 3}}, imblearn.under_sampling.NearMiss(version=3)),
    (
        {"near_miss": {"n_neighbors": 5, "sampling_strategy": {"k0": 55}}},
        imblearn.under_sampling.NearMiss(n_neighbors=5, sampling_strategy={0: 55}),
    ),
    ({"tomek_links": {}}, imblearn.under_sampling.TomekLinks()),
    (
        {"tomek_links": {"sampling_strategy": "all"}},
        imblearn.under_sampling.TomekLinks(sampling_strategy="all"),
    ),
    ({"edited_nearest_neighbours": {}}, imblearn.under_sampling.EditedNearestNeighbours()),
    (
        {"edited_nearest_neighbours": {"n_neighbors": 5, "kind_sel": "mode", "sampling_strategy": "all"}},
        imblearn.under_sampling.EditedNearestNeighbours(
            n_neighbors=5, kind_sel="mode", sampling_strategy="all"
        ),
    ),
]


@pytest.mark.filterwarnings("ignore:The number of the samples to be selected")
@pytest.mark.parametrize(("written", "theirs"), SELECTIONS, ids=[str(w) for w, _ in SELECTIONS])
@pytest.mark.parametrize("source", ["made", "binary", "multiclass"])
def test_the_selected_rows_are_those_of_imbalanced_learn(written, theirs, source):
    x, y = skewed() if source == "made" else real(source)
    rows = training_rows(x, y)
    found = resample(config(written), rows, 0)
    theirs.fit_resample(rows.rows.numeric, rows.labels)
    assert found.kept.tolist() == sorted(theirs.sample_indices_.tolist())
    assert 0 < len(found.kept) < len(rows) + (source != "made")  # some real sets have no row to clean away
    assert len(found.made) == 0


# -- rows that are made -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smote_with_the_draws_of_imbalanced_learn_makes_the_same_bits(dtype):
    x, y = skewed(sizes=(200, 30))
    x = x.astype(dtype)
    rows = training_rows(x, y)
    theirs, labels = imblearn.over_sampling.SMOTE(random_state=7, k_neighbors=4).fit_resample(x, y)
    state = np.random.RandomState(7)
    picks = state.randint(low=0, high=30 * 4, size=170)
    steps = state.uniform(size=170)
    own = x[200:]
    near = Neighbourhood(rows.rows.numeric[200:], "k1", 1000, 0, []).of_members(np.arange(30), 4)
    ours = interpolate(own[picks // 4], own[near[picks // 4, picks % 4]], steps)
    assert ours.dtype == dtype
    assert (labels[230:] == 1).all()
    np.testing.assert_array_equal(ours, theirs[230:])


@pytest.mark.parametrize(
    ("written", "theirs"),
    [
        ({"smote": {}}, imblearn.over_sampling.SMOTE),
        ({"borderline_smote": {}}, imblearn.over_sampling.BorderlineSMOTE),
        ({"borderline_smote": {"kind": "borderline-2"}}, imblearn.over_sampling.BorderlineSMOTE),
        ({"adasyn": {}}, imblearn.over_sampling.ADASYN),
    ],
    ids=str,
)
def test_made_rows_are_distributed_as_those_of_imbalanced_learn(written, theirs):
    x, y = skewed(sizes=(4000, 120, 300), spread=0.8)
    kwargs = {"kind": "borderline-2"} if "borderline-2" in str(written) else {}
    theirs_x, theirs_y = theirs(random_state=1, **kwargs).fit_resample(x, y)
    rows = training_rows(x, y)
    found = resample(config(written), rows, 1)
    counts = found.counts(rows)
    np.testing.assert_allclose(counts, np.bincount(theirs_y), rtol=0.01)
    made = found.made.rows(np.arange(len(found.made)))
    assert len(made.numeric) == len(found.made) == len(found.made_labels)
    for code in (1, 2):
        ours = made.numeric[found.made_labels == code]
        reference = theirs_x[len(x) :][theirs_y[len(x) :] == code]
        for feature in range(x.shape[1]):
            # Half of a million tests would not bring this p-value about by chance.
            assert ks_2samp(ours[:, feature], reference[:, feature]).pvalue > 1e-6


def test_the_two_sample_test_can_fail():
    x, y = skewed(sizes=(4000, 120), spread=0.8)
    rows = training_rows(x, y)
    made = resample(config({"smote": {}}), rows, 1).made.rows(np.arange(3000))
    assert ks_2samp(made.numeric[:, 0] + 1, x[y == 1][:, 0]).pvalue < 1e-6


def test_every_made_row_lies_between_its_parents():
    x, y = skewed()
    rows = training_rows(x, y)
    found = resample(config({"smote": {}}), rows, 3)
    made, parents = found.made.rows(np.arange(len(found.made))), found.made.parents
    first, second = rows.rows.numeric[parents[:, 0]], rows.rows.numeric[parents[:, 1]]
    assert (rows.labels[parents] == found.made_labels[:, None]).all()
    assert (parents[:, 0] != parents[:, 1]).all()
    step = np.linalg.norm(made.numeric - first, axis=1) / np.linalg.norm(second - first, axis=1)
    assert ((step >= 0) & (step <= 1)).all()
    np.testing.assert_allclose(made.numeric, first + step[:, None] * (second - first), atol=1e-5)


def test_made_rows_do_not_depend_on_which_are_asked_for_together():
    x, y = skewed(sizes=(9000, 20, 30))
    rows = training_rows(x, y)
    made = resample(config({"smote": {}}), rows, 3).made
    whole = made.rows(np.arange(len(made)))
    for parts in (2, 5, 15):
        for part in range(parts):
            index = np.arange(part, len(made), parts)
            np.testing.assert_array_equal(made.rows(index).numeric, whole.numeric[index])


def test_draws_are_chunks_of_one_stream_per_class():
    whole, step, _ = draws(5, 1, 10_000, 77)
    again, other = draws(5, 1, 4096, 77), draws(5, 2, 10_000, 77)
    np.testing.assert_array_equal(again[0], whole[:4096])
    assert not np.array_equal(other[0], whole)
    assert whole.min() == 0
    assert whole.max() == 76
    assert 0 <= step.min() < step.max() < 1


def test_duplicates_may_be_neighbours_but_never_the_row_itself():
    points = np.repeat(np.arange(4, dtype=np.float32)[:, None], [3, 1, 1, 8], axis=0)
    found = Neighbourhood(points, "all", 100, 0, []).of_members(np.arange(13), 2)
    assert (found != np.arange(13)[:, None]).all()
    assert (points[found[:3], 0] == 0).all()
    assert (points[found[5:], 0] == 3).all()


@pytest.mark.parametrize("limit", [1000, 10])  # exact, and approximate
def test_duplicates_of_two_classes_favour_neither(limit):
    """Groups of identical rows, as many of each class: which class is removed must not hang on which is named first."""
    generator = np.random.default_rng(0)
    places = np.repeat(generator.normal(size=(60, 3)), 8, axis=0).astype(np.float32)
    labels = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 60)
    order = np.argsort(labels, kind="stable")
    settings = {"sampling_strategy": "all", "kind_sel": "mode", "exact_up_to": limit}
    kept = np.zeros(2)
    for seed in range(10):
        rows = training_rows(places[order], labels[order])
        found = resample(config({"edited_nearest_neighbours": settings}), rows, seed)
        kept += np.bincount(rows.labels[found.kept], minlength=2)
    assert 0.8 < kept[0] / kept[1] < 1.25  # in the order of classes it would be 2.4


def test_all_rows_alike():
    rows = training_rows(np.concatenate([np.zeros((50, 3)), np.ones((10, 3))]), np.repeat([0, 1], [50, 10]))
    found = resample(config({"smote": {}}), rows, 0)
    made = found.made.rows(np.arange(len(found.made)))
    assert len(made.numeric) == 40
    assert (made.numeric == 1).all()


def test_missing_numbers_keep_the_value_of_the_row():
    x, y = skewed(sizes=(100, 20))
    x[np.flatnonzero(y == 1)[::2], 0] = np.nan
    rows = training_rows(x, y)
    found = resample(config({"smote": {}}), rows, 0)
    made, parents = found.made.rows(np.arange(len(found.made))), found.made.parents
    first, second = rows.rows.numeric[parents[:, 0], 0], rows.rows.numeric[parents[:, 1], 0]
    either = np.isnan(first) | np.isnan(second)
    assert 0 < either.sum() < len(either)
    np.testing.assert_array_equal(made.numeric[either, 0], first[either])
    assert not np.isnan(made.numeric[~either]).any()


def test_neighbours_vote_on_categories():
    codes = np.array([[2, 3, 3, 4, 4], [2, 2, 2, 5, 6], [5, 4, 3, 2, 6]], np.int32)
    assert vote(codes, np.array([0.0, 0.9, 0.0])).tolist() == [3, 2, 2]
    assert vote(codes, np.array([0.5, 0.0, 0.99])).tolist() == [4, 2, 6]


def test_smotenc_is_that_of_imbalanced_learn_in_distribution():
    x, y = skewed(sizes=(1500, 100), width=3)
    generator = np.random.default_rng(4)
    codes = np.stack([generator.integers(2, 4 + y), generator.integers(2, 5, len(y))], axis=1)
    flag = generator.integers(0, 2, len(y)) * (y + 1) % 2
    x = np.concatenate([x, flag[:, None]], axis=1).astype(np.float32)
    rows = training_rows(x, y, codes, boolean=(3,))
    found = resample(config({"smotenc": {}}), rows, 2)
    made = found.made.rows(np.arange(len(found.made)))
    both = np.concatenate([x, codes], axis=1).astype(np.float64)
    theirs = imblearn.over_sampling.SMOTENC([3, 4, 5], random_state=0).fit_resample(both, y)[0][len(x) :]
    for feature in range(3):
        assert ks_2samp(made.numeric[:, feature], theirs[:, feature]).pvalue > 1e-6
    assert set(np.unique(made.numeric[:, 3])) <= {0.0, 1.0}
    for i, ours in enumerate((made.numeric[:, 3], made.categorical[:, 0], made.categorical[:, 1])):
        for value in np.unique(theirs[:, 3 + i]):
            share, reference = (ours == value).mean(), (theirs[:, 3 + i] == value).mean()
            assert abs(share - reference) < 5 * math.sqrt(0.5 / len(theirs))


def test_smotenc_finds_the_neighbours_of_imbalanced_learn():
    x, y = skewed(sizes=(400, 60), width=4)
    codes = np.random.default_rng(1).integers(2, 6, (len(y), 3))
    rows = training_rows(x, y, codes)
    made, _, _ = over_sample(rows, config({"smotenc": {}}), {1: 10}, 0)
    theirs = imblearn.over_sampling.SMOTENC([4, 5, 6], random_state=0)
    theirs.fit_resample(np.concatenate([x, codes], axis=1), y)
    (recipe,) = made.recipes
    own = x[400:].astype(np.float64)
    median = np.median(own.std(axis=0))
    assert theirs.median_std_[1] == pytest.approx(median, rel=1e-5)
    # Chawla et al. (2002), section 6.1, by brute force.
    far = ((own[:, None] - own[None]) ** 2).sum(-1)
    far += median**2 * (codes[400:, None] != codes[None, 400:]).sum(-1)
    np.fill_diagonal(far, np.inf)
    expected = np.sort(far, axis=1)[:, :5]
    got = np.take_along_axis(far, recipe.neighbours - 400, axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("written", [{"smoteenn": {}}, {"smotetomek": {}}])
def test_cleaning_after_smote_is_that_of_imbalanced_learn(written):
    x, y = skewed(sizes=(300, 40), spread=0.5)
    rows = training_rows(x, y)
    found = resample(config(written), rows, 0)
    smote = resample(config({"smote": {}}), rows, 0)
    both = np.concatenate([rows.rows.numeric, smote.made.rows(np.arange(len(smote.made))).numeric])
    labels = np.concatenate([rows.labels, smote.made_labels])
    cleaner = (
        imblearn.under_sampling.EditedNearestNeighbours(sampling_strategy="all")
        if "smoteenn" in written
        else imblearn.under_sampling.TomekLinks(sampling_strategy="all")
    )
    expected, _ = cleaner.fit_resample(both, labels)
    got = np.concatenate([rows.rows.numeric[found.kept], found.made.rows(np.arange(len(found.made))).numeric])
    assert len(got) < len(both)
    assert set(map(bytes, got)) == set(map(bytes, expected))
    assert (found.made.parents >= 0).all()


def test_random_samplers_give_the_counts_of_imbalanced_learn():
    x, y = skewed()
    rows = training_rows(x, y)
    over = resample(config({"random_over_sampler": {}}), rows, 0)
    assert over.counts(rows).tolist() == [300, 300, 300]
    assert np.bincount(over.kept, minlength=len(rows)).min() == 1
    under = resample(config({"random_under_sampler": {}}), rows, 0)
    assert under.counts(rows).tolist() == [25, 25, 25]
    assert len(np.unique(under.kept)) == 75
    drawn = resample(config({"random_under_sampler": {"replacement": True}}), rows, 0)
    assert len(np.unique(drawn.kept)) < 75
    assert not np.array_equal(under.kept, resample(config({"random_under_sampler": {}}), rows, 1).kept)


def test_cluster_centroids():
    x, y = skewed(sizes=(300, 20))
    rows = training_rows(x, y)
    soft = resample(config({"cluster_centroids": {}}), rows, 0)
    assert soft.counts(rows).tolist() == [20, 20]
    made = soft.made.rows(np.arange(20)).numeric
    # The centres of k-means: each is the mean of the rows that are nearest to it (Lloyd's fixed point).
    near = ((rows.rows.numeric[:300, None] - made[None]) ** 2).sum(-1).argmin(axis=1)
    means = np.stack([rows.rows.numeric[:300][near == c].mean(axis=0) for c in range(20)])
    np.testing.assert_allclose(made, means, atol=0.05)
    hard = resample(config({"cluster_centroids": {"voting": "hard"}}), rows, 0)
    assert len(hard.made) == 0
    assert 15 <= hard.counts(rows)[0] <= 20


def test_more_rows_than_there_is_memory_for_are_refused():
    x, y = skewed()
    rows = training_rows(x, y)
    with pytest.raises(
        ConfigError, match=r"would make 2,999,999,999,960 rows, whose plan alone takes [\d,.]+ GiB"
    ):
        wanted(config({"smote": {"sampling_strategy": {"k1": 3_000_000_000_000}}}), rows.counts, rows.schema)


@pytest.mark.parametrize(
    "written", ["near_miss", "tomek_links", "adasyn", {"import": "imblearn.under_sampling:AllKNN"}]
)
def test_what_needs_all_rows_at_once_is_refused_with_its_memory_before_they_are_read(monkeypatch, written):
    machine = Totals(cpus=1, gpus=0, memory=float(6 << 30), where="this machine")
    monkeypatch.setattr(resampling, "local_totals", lambda: machine)
    x, y = skewed()
    schema, few = training_rows(x, y).schema, np.array([30_000_000, 500_000])
    # 6 columns: as float32 and float64, and eight numbers of 8 bytes a row.
    need = few.sum() * (6 * (4 + 8) + 8 * 8) / 2**30
    said = f"needs all 30,500,000 training rows at once, about {need:.1f} GiB, more than half of the 6.0 GiB"
    counts = np.zeros(len(schema.target.classes), np.int64)
    counts[:2] = few
    with pytest.raises(ConfigError, match=said):
        wanted(config(written), counts, schema)
    wanted(config("random_under_sampler"), counts, schema)


# -- approximate neighbours ---------------------------------------------------------------------------------------


def test_approximate_neighbours_are_said_and_mostly_right():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6000, 8)).astype(np.float32)
    said = []
    exact = Neighbourhood(x, "all", 6000, 0, said).of_members(np.arange(6000), 5)
    some = Neighbourhood(x, "all", 600, 0, said).of_members(np.arange(60), 5)
    assert said == []
    np.testing.assert_array_equal(some, exact[:60])
    found = Neighbourhood(x, "all", 5999, 0, said).of_members(np.arange(6000), 5)
    assert len(said) == 1
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, found, strict=True)])
    assert 0.85 < recall < 1
    assert (found != np.arange(6000)[:, None]).all()
    y = np.repeat([0, 1], [5000, 1000])
    said = resample(config({"smote": {"exact_up_to": 999}}), training_rows(x, y), 0).notices
    assert said == (
        "neighbours among the 1,000 rows of class k1 are approximate; exact_up_to: 1000 makes them exact",
    )


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"smote": {"sampling_strategy": "most"}}, "'most' is none of auto, minority"),
        ({"smote": {"sampling_strategy": 1.5}}, "above 0 and at most 1"),
        ({"smote": {"sampling_strategy": {"k1": -3}}}, "the rows wanted of each class"),
        ({"smote": {"k_neighbors": 0}}, "greater than or equal to 1"),
        ({"smote": {"sampling_strategy": {"k9": 500}}}, "no class 'k9'; there are k0, k1, k2"),
        ({"smote": {"sampling_strategy": {"k1": 5}}}, "k1: 5 rows are wanted and 40 are there"),
        ({"near_miss": {"sampling_strategy": {"k1": 50}}}, "k1: 50 rows are wanted and 40 are there"),
        ({"smote": {"sampling_strategy": 0.5}}, "a ratio is for two classes, and there are 3"),
        ({"smote": {"sampling_strategy": "majority"}}, "majority cannot be over-sampled"),
        ({"near_miss": {"sampling_strategy": "minority"}}, "minority cannot be under-sampled"),
        ({"smotenc": {}}, "use smote"),
        ({"import": "imblearn.over_sampling:Nope"}, "cannot import"),
        ({"import": "imblearn.over_sampling:SMOTE", "neighbours": 3}, "it takes"),
        ({"import": "collections:OrderedDict"}, "no fit_resample"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(written, said):
    x, y = skewed()
    rows = training_rows(x, y)
    with pytest.raises((ShoalError, ValueError)) as refusal:
        wanted(config(written), rows.counts, rows.schema)
    assert said in str(refusal.value)


def test_a_ratio_below_what_is_there_is_refused_with_it():
    x, y = skewed(sizes=(300, 60))
    rows = training_rows(x, y)
    with pytest.raises(ConfigError, match=r"it is 0\.2 already"):
        wanted(config({"smote": {"sampling_strategy": 0.1}}), rows.counts, rows.schema)


def test_a_class_with_one_row_is_refused_and_one_with_few_is_said():
    x, y = skewed(sizes=(50, 1, 4))
    rows = training_rows(x, y)
    with pytest.raises(DataError, match="k1 has 1 training row, and a new row needs two"):
        resample(config({"smote": {}}), rows, 0)
    found = resample(config({"smote": {"sampling_strategy": {"k2": 30}}}), rows, 0)
    assert found.notices == ("class k2 has 4 training rows, so each has 3 neighbours, not 5",)
    assert found.counts(rows).tolist() == [50, 1, 30]


def test_one_class_only_is_refused():
    rows = training_rows(np.zeros((5, 2)), np.ones(5, int))
    with pytest.raises(ConfigError, match="of one class"):
        wanted(config({"smote": {}}), rows.counts, rows.schema)


def test_columns_that_a_method_cannot_take_are_named():
    x, y = skewed()
    rows = training_rows(x, y, np.full((len(y), 1), 2))
    with pytest.raises(ConfigError, match=r"1 of the 7 columns are categories \(c0\): use smotenc"):
        wanted(config({"smote": {}}), rows.counts, rows.schema)
    bare = training_rows(np.empty((len(y), 0)), y, np.full((len(y), 1), 2))
    with pytest.raises(ConfigError, match="all columns are categories: use random_over_sampler"):
        wanted(config({"smotenc": {}}), bare.counts, bare.schema)


def test_every_method_has_a_test_here():
    text = Path(__file__).read_text()
    assert [name for name in names.IMBALANCE if f'"{name}"' not in text] == []
