"""Resampling of training rows: imbalanced-learn's selections and rows, and what it never touches."""

import math
from pathlib import Path

import imblearn.combine
import imblearn.over_sampling
import imblearn.under_sampling
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp
from sklearn.datasets import load_breast_cancer, load_wine

from shoal.cluster.components import Imported
from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError, ShoalError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.imbalance import config as names
from shoal.cluster.sharding.imbalance.neighbours import Neighbourhood
from shoal.cluster.sharding.imbalance.resample import resample, wanted
from shoal.cluster.sharding.imbalance.rows import TrainingRows
from shoal.cluster.sharding.imbalance.smote import draws, interpolate, over_sample, vote
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.prepare import Prepared
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.training.scores import scores_from_logits
from shoal.verbs.look import look


def training_rows(x, y, codes=None, boolean=()):
    """Rows in dealing order, as the service hands them over."""
    order = np.argsort(y, kind="stable")
    x, y = np.asarray(x, np.float32)[order], np.asarray(y)[order]
    codes = np.empty((len(x), 0), np.int32) if codes is None else np.asarray(codes, np.int32)[order]
    columns = [
        Column(
            name=f"x{i}",
            type="boolean" if i in boolean else "numeric",
            arrow_type="double",
            parts=(f"x{i}",),
        )
        for i in range(x.shape[1])
    ]
    columns += [
        Column(name=f"c{i}", type="categorical", arrow_type="string", categories=tuple("abcdef"))
        for i in range(codes.shape[1])
    ]
    classes = tuple(f"k{c}" for c in range(int(y.max()) + 1))
    task = "binary" if len(classes) == 2 else "multiclass"
    schema = Schema(columns=tuple(columns), target=Target(columns=("y",), task=task, classes=classes))
    counts = np.bincount(y, minlength=len(classes))
    return TrainingRows(Prepared(x, codes), np.concatenate([[0], np.cumsum(counts)]), schema)


def skewed(seed=0, sizes=(300, 40, 25), width=6, spread=1.5):
    """Overlapping classes of different sizes, no two rows alike."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = generator.normal(size=(len(y), width)) + spread * generator.normal(size=(len(sizes), width))[y]
    return x.astype(np.float32), y


def real(kind):
    """scikit-learn's sets, standardised, with the smaller classes thinned."""
    data = load_breast_cancer() if kind == "binary" else load_wine()
    x = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    keep = np.concatenate(
        [np.flatnonzero(data.target == c)[: 200 // (1 + 2 * c)] for c in np.unique(data.target)]
    )
    return x[keep].astype(np.float32), data.target[keep]


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


def config(written):
    return DataConfig.model_validate({"path": "p", "target": "y", "imbalance": written}).imbalance


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


@pytest.mark.parametrize(
    ("path", "theirs"),
    [
        ("imblearn.under_sampling:OneSidedSelection", imblearn.under_sampling.OneSidedSelection),
        ("imblearn.under_sampling:AllKNN", imblearn.under_sampling.AllKNN),
        ("imblearn.over_sampling:SVMSMOTE", imblearn.over_sampling.SVMSMOTE),
    ],
)
def test_any_sampler_of_imbalanced_learn_by_name(path, theirs):
    x, y = skewed(sizes=(300, 60))
    rows = training_rows(x, y)
    seeded = {"random_state": 3} if "random_state" in theirs().get_params() else {}
    found = resample(Imported(**{"import": path}, **seeded), rows, 0)
    expected, labels = theirs(**seeded).fit_resample(rows.rows.numeric, rows.labels)
    assert found.counts(rows).tolist() == np.bincount(labels).tolist()
    got = np.concatenate([rows.rows.numeric[found.kept], found.made.rows(np.arange(len(found.made))).numeric])
    assert sorted(map(bytes, got)) == sorted(map(bytes, expected.astype(np.float32)))


class Returning:
    """A sampler that gives back what it is told to."""

    def __init__(self, what):
        self.what = what

    def fit_resample(self, x, y):
        match self.what:
            case "other columns":
                return x[:, :2], y
            case "nan":
                return np.full_like(x, np.nan), y
            case "other classes":
                return x, y + 7
            case "short labels":
                return x, y[1:]
            case "wrong indices":
                self.sample_indices_ = np.arange(len(x)) + 1
                return x, y
            case "other labels":
                return x[::2], 1 - y[::2]
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            "other columns",
            r"gave rows of shape \[360, 2\] and labels of shape \[360\]; they must be \[n, 6\] and \[n\]",
        ),
        ("nan", "no finite numbers"),
        ("other classes", "gave 7, 8 as labels; they must be those it was given, 0 to 1"),
        ("short labels", r"labels of shape \[359\]"),
        ("wrong indices", "sample_indices_ that are not those"),
        ("refuse", "refused the training rows: no"),
    ],
)
def test_what_an_imported_sampler_must_not_give(monkeypatch, what, said):
    monkeypatch.setattr(imblearn, "returning", Returning, raising=False)
    x, y = skewed(sizes=(300, 60))
    with pytest.raises(DataError, match=said):
        resample(Imported(**{"import": "imblearn:returning"}, what=what), training_rows(x, y), 0)


def test_rows_that_come_back_with_another_class_are_made_rows(monkeypatch):
    monkeypatch.setattr(imblearn, "returning", Returning, raising=False)
    x, y = skewed(sizes=(300, 60))
    rows = training_rows(x, y)
    found = resample(Imported(**{"import": "imblearn:returning"}, what="other labels"), rows, 0)
    assert len(found.kept) == 0
    assert found.counts(rows).tolist() == [30, 150]


def test_equal_rows_of_different_classes_keep_their_classes():
    generator = np.random.default_rng(1)
    x, y = generator.integers(0, 3, (400, 2)).astype(np.float32), np.repeat([0, 1], [330, 70])
    rows = training_rows(x, y)
    found = resample(Imported(**{"import": "imblearn.combine:SMOTEENN"}, random_state=0), rows, 0)
    _, labels = imblearn.combine.SMOTEENN(random_state=0).fit_resample(rows.rows.numeric, rows.labels)
    assert found.counts(rows).tolist() == np.bincount(labels).tolist()


def test_an_imported_sampler_may_be_told_classes_by_name():
    x, y = skewed(sizes=(300, 60))
    rows = training_rows(x, y)
    config = Imported(**{"import": "imblearn.over_sampling:SMOTE"}, sampling_strategy={"k1": 100})
    assert resample(config, rows, 0).counts(rows).tolist() == [300, 100]


def test_more_rows_than_there_is_memory_for_are_refused():
    x, y = skewed()
    rows = training_rows(x, y)
    with pytest.raises(
        ConfigError, match=r"would make 2,999,999,999,960 rows, whose plan alone takes [\d,.]+ GiB"
    ):
        wanted(config({"smote": {"sampling_strategy": {"k1": 3_000_000_000_000}}}), rows.counts, rows.schema)


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


# -- the service --------------------------------------------------------------------------------------------------


def write(folder, n=3000, seed=0, order=None, files=1):
    generator = np.random.default_rng(seed)
    y = (generator.random(n) < 0.06).astype(int)
    table = pa.table(
        {
            "a": generator.normal(size=n) + y,
            "b": generator.normal(size=n),
            "kind": generator.choice(["u", "v", "w"], n),
            "id": [f"r{i}" for i in range(n)],
            "y": np.where(y == 1, "yes", "no"),
        }
    )
    if order == "sorted":
        table = table.sort_by("y")
    elif order == "shuffled":
        table = table.take(pa.array(generator.permutation(n)))
    folder.mkdir()
    for i in range(files):
        pq.write_table(
            table.slice(i * n // files, (i + 1) * n // files - i * n // files), folder / f"{i}.parquet"
        )
    return folder


def config_of(folder, written, **data):
    return DataConfig.model_validate(
        {"path": str(folder), "target": "y", "positive": "yes", "imbalance": written, **data}
    )


def sharded(folder, out, written, budget=512 << 20, **data):
    section = config_of(folder, written, **data)
    destination = Storage.open(str(out))
    manifest = shard(section, 7, destination, reporter=Silent(), budget=budget)
    return manifest, ShardedDataset.open(destination)


def test_only_training_rows_change_and_parents_are_training_rows(tmp_path):
    source = write(tmp_path / "in")
    plain, before = sharded(source, tmp_path / "plain", None, id="id")
    manifest, after = sharded(source, tmp_path / "smote", {"smotenc": {}}, id="id")
    for part in ("validation", "test"):
        assert manifest.splits[part].class_counts == plain.splits[part].class_counts
        assert [s.sha256 for s in manifest.splits[part].shards] == [
            s.sha256 for s in plain.splits[part].shards
        ]
    counts = plain.splits["train"].class_counts
    assert manifest.resampling.class_counts_before == counts
    assert manifest.splits["train"].class_counts == (counts[0], counts[0])
    assert manifest.resampling.synthetic == counts[0] - counts[1]
    real = {i for v in range(before.n_shards) for i in before.shard("train", v).row_id.to_pylist()}
    made = pq.read_table(tmp_path / "smote" / "shards" / "synthetic.parquet")
    assert len(made) == manifest.resampling.synthetic == len(set(made["row_id"].to_pylist()))
    assert set(made["parent"].to_pylist()) | set(made["neighbour"].to_pylist()) <= real
    assert set(made["label"].to_pylist()) == {"yes"}
    # Every real row is there with its own numbers and label.
    columns = {}
    for v in range(before.n_shards):
        rows = before.shard("train", v)
        for i, name in enumerate(rows.row_id.to_pylist()):
            columns[name] = (rows.numeric[i].tobytes(), rows.categorical[i].tobytes(), int(rows.label[i]))
    for v in range(after.n_shards):
        rows = after.shard("train", v)
        for i, name in enumerate(rows.row_id.to_pylist()):
            if name in columns:
                assert columns[name] == (
                    rows.numeric[i].tobytes(),
                    rows.categorical[i].tobytes(),
                    int(rows.label[i]),
                )
            else:
                assert rows.label[i] == 1
    there = [i for v in range(after.n_shards) for i in after.shard("train", v).row_id.to_pylist()]
    assert set(there) == real | set(made["row_id"].to_pylist())
    assert len(there) == manifest.splits["train"].rows
    per_shard = np.array([s.class_counts for s in manifest.splits["train"].shards])
    assert (per_shard.max(axis=0) - per_shard.min(axis=0) <= 1).all()
    assert (
        max(s.rows for s in manifest.splits["train"].shards)
        - min(s.rows for s in manifest.splits["train"].shards)
        <= 1
    )


@pytest.mark.parametrize(
    "written", [{"smotenc": {}}, {"random_under_sampler": {}}, {"smoteenn": {}}, {"adasyn": {}}]
)
def test_the_same_bytes_in_any_order_and_budget(tmp_path, written):
    hashes = set()
    for i, (order, files, budget) in enumerate(
        [(None, 1, 512 << 20), ("sorted", 5, 512 << 20), ("shuffled", 3, 200_000)]
    ):
        source = write(tmp_path / f"in{i}", order=order, files=files)
        manifest, _ = sharded(source, tmp_path / f"out{i}", written, budget=budget)
        hashes.add(tuple(s.sha256 for part in manifest.splits.values() for s in part.shards))
        left = [p.name for p in (tmp_path / f"out{i}").iterdir()]
        assert sorted(left) == ["manifest.json", "shards"]
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "written",
    [
        "random_over_sampler",
        "random_under_sampler",
        "smotenc",
        {"near_miss": {"version": 2}},
        {"near_miss": {"version": 3}},
    ],
)
def test_what_is_foreseen_comes_true(tmp_path, written):
    source = write(tmp_path / "in")
    section = config_of(source, written)
    said = look(section, 7, StorageConfig()).notices[-1]
    manifest, _ = sharded(source, tmp_path / "out", written)
    before, after = manifest.resampling.class_counts_before, manifest.splits["train"].class_counts
    changed = [f"{n} {a:,} to {b:,}" for n, a, b in zip(("no", "yes"), before, after, strict=True) if a != b]
    if written == {"near_miss": {"version": 3}}:
        assert "training rows of" not in said  # it may find fewer than are wanted
    else:
        assert said == f"data.imbalance: training rows of {', '.join(changed)}"


def test_probabilities_are_corrected_back(tmp_path):
    source = write(tmp_path / "in")
    manifest, _ = sharded(source, tmp_path / "out", {"random_over_sampler": {"sampling_strategy": 0.5}})
    (no, yes), after = manifest.resampling.class_counts_before, manifest.splits["train"].class_counts
    target = manifest.schema_.target
    p = scores_from_logits(np.array([[-1.0], [0.0], [3.0]]), target)
    learned = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 3.0])))
    # Bayes: the densities of the classes stay, their shares go back.
    event = learned * (yes / after[1])
    np.testing.assert_allclose(p, event / (event + (1 - learned) * (no / after[0])), rtol=1e-12)


def test_an_import_needs_numbers_and_leaves_its_seed_in_the_manifest(tmp_path):
    source = write(tmp_path / "in")
    written = {"import": "imblearn.under_sampling:OneSidedSelection", "n_neighbors": 2}
    with pytest.raises(ConfigError, match="are categories"):
        sharded(source, tmp_path / "out", written)
    manifest, _ = sharded(source, tmp_path / "out", written, drop=["kind", "id"])
    assert manifest.resampling.method == {"import": written}


def test_lost_parents_are_written_again(tmp_path):
    source = write(tmp_path / "in")
    manifest, _ = sharded(source, tmp_path / "out", {"smotenc": {}})
    parents = tmp_path / "out" / manifest.resampling.parents
    before = parents.read_bytes()
    parents.unlink()
    again, _ = sharded(source, tmp_path / "out", {"smotenc": {}})
    assert (tmp_path / "out" / again.resampling.parents).read_bytes() == before


def test_fewer_rows_than_shards_are_refused(tmp_path):
    source = write(tmp_path / "in", n=200)
    with pytest.raises(DataError, match="fewer than the 16 shards: set data.shards to at most"):
        sharded(
            source, tmp_path / "out", {"random_under_sampler": {"sampling_strategy": {"no": 2, "yes": 2}}}
        )
    assert not (tmp_path / "out" / "manifest.json").exists()
