"""Samplers of imbalanced-learn, or like them, by import."""

import imblearn.combine
import imblearn.over_sampling
import imblearn.under_sampling
import numpy as np
import pytest
from support.imbalance import skewed, training_rows

from shoal.cluster.components import Imported
from shoal.cluster.errors import DataError
from shoal.cluster.sharding.imbalance.resample import resample


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
            case "memory":
                return np.zeros((10**6, 10**9)), y
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
        (
            "memory",
            r"needs more memory for the [\d,]+ training rows than there is \(Unable to allocate 7.\d+ PiB",
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
