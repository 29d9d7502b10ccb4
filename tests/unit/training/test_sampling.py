"""Quotas of the classes in every step, whoever reads them."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.training.batches import BatchReader
from shoal.training.config import TrainingConfig
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.sampling.plan import ClassPlan
from shoal.training.sampling.shares import class_shares, seen
from shoal.training.scores import scores_from_logits


def dataset(sizes, n_shards):
    """Rows dealt by class, as the sharding service deals them: the number of a row is its only feature."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    part = ArrayPart(
        np.arange(len(labels), dtype=np.float32)[:, None], np.empty((len(labels), 0), np.int32), labels
    )
    return ArrayDataset(Schema(columns=(), target=target(len(sizes))), {"train": part}, n_shards)


def target(classes):
    names = tuple(f"k{c}" for c in range(classes))
    return Target(columns=("y",), task="binary" if classes == 2 else "multiclass", classes=names)


def sampling(written):
    return TrainingConfig.model_validate({"sampling": written}).sampling


def plan_of(data, written, batch_size, seed=3):
    sizes = data.class_rows("train")
    shares = class_shares(sampling(written), data.schema.target, sizes, batch_size)
    return ClassPlan(data.shard_class_rows("train"), shares, batch_size, seed)


def steps(data, plan, epoch, workers):
    """The rows of each step: their numbers, over all workers."""
    readers = [BatchReader(data, plan, w, workers) for w in range(workers)]
    found = []
    for batches in zip(*(reader.epoch(epoch) for reader in readers), strict=True):
        rows = np.concatenate([b.numeric[:, 0].numpy() for b in batches]).astype(int)
        positions = np.concatenate([b.position.numpy() for b in batches])
        labels = np.concatenate([b.label.numpy() for b in batches])
        assert (labels == data.parts["train"].label[rows]).all()
        assert len(np.unique(positions)) == len(positions) == batches[0].global_rows
        found.append(rows[np.argsort(positions)])
    return found


WRITTEN = [
    "proportional",
    "class_balanced",
    {"weighted": {"weights": {"k1": 7.5}}},
    {"quotas": {"rows": {"k1": 2}}},
]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=2, max_size=4),
    n_shards=st.integers(1, 7),
    batch=st.integers(5, 40),
    written=st.sampled_from(WRITTEN),
    epoch=st.integers(0, 2),
)
def test_every_step_has_its_quota_whoever_reads(sizes, n_shards, batch, written, epoch):
    data = dataset(sizes, min(n_shards, sum(sizes)))
    batch = min(batch, sum(sizes))
    assume(batch > 2)  # quotas of two rows leave no other place in a smaller one, which is refused
    plan = plan_of(data, written, batch)
    alone = steps(data, plan, epoch, 1)
    labels = data.parts["train"].label
    counts = np.array([np.bincount(labels[rows], minlength=len(sizes)) for rows in alone])
    mean = plan.totals / plan.steps_per_epoch
    assert (counts >= np.floor(mean)).all()
    assert (counts <= np.ceil(mean)).all()
    assert counts.sum(axis=0).tolist() == plan.totals.tolist()
    assert counts.sum(axis=1).tolist() == [np.diff(plan.bounds(s))[0] for s in range(plan.steps_per_epoch)]
    for workers in {2, data.n_shards}:
        if workers <= data.n_shards:
            for one, several in zip(alone, steps(data, plan, epoch, workers), strict=True):
                np.testing.assert_array_equal(one, several)


def test_proportional_reads_every_row_once_an_epoch():
    data = dataset([700, 50, 13], 8)
    plan = plan_of(data, "proportional", 64)
    orders = [np.concatenate(steps(data, plan, epoch, 2)) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(763))
    assert not np.array_equal(orders[0], orders[1])


def test_a_rare_class_is_in_every_step_where_its_quota_is_one():
    data = dataset([990, 10], 4)
    labels = data.parts["train"].label
    plan = plan_of(data, "proportional", 100)
    assert [int(labels[rows].sum()) for rows in steps(data, plan, 0, 1)] == [1] * 10
    # Left to chance, some of these steps hold none.
    left = plan_of(data, {"weighted": {"weights": {"k1": 0.9}}}, 100)
    assert min(int(labels[rows].sum()) for rows in steps(data, left, 0, 1)) == 0


def test_rows_of_a_small_class_come_round_equally_often():
    data = dataset([960, 40], 8)
    plan = plan_of(data, "class_balanced", 50)
    read = np.concatenate([np.concatenate(steps(data, plan, epoch, 1)) for epoch in range(4)])
    times = np.bincount(read, minlength=1000)
    assert plan.totals.tolist() == [500, 500]
    assert times[960:].tolist() == [50] * 40
    assert set(times[:960]) == {2, 3}  # 2,000 of 960


def test_a_class_smaller_than_the_shards_is_in_another_order_each_time():
    data = dataset([500, 5], 16)
    plan = plan_of(data, {"quotas": {"rows": {"k1": 1}}}, 25)
    rare = [row for rows in steps(data, plan, 0, 1) for row in rows if row >= 500]
    rounds = [tuple(rare[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(r) == list(range(500, 505)) for r in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize("quota", [1, 8])
def test_a_quota_is_held_in_every_step_where_rows_do_not_divide_by_the_batch(quota):
    sizes = (935, 65)
    data = dataset(sizes, 16)
    for batch in (16, 37, 257):
        plan = plan_of(data, {"quotas": {"rows": {"k1": quota}}}, batch)
        labels = data.parts["train"].label
        for epoch in (0, 3):
            assert {int((labels[rows] == 1).sum()) for rows in steps(data, plan, epoch, 1)} == {quota}


def test_quotas_and_weights_give_the_shares_that_they_say():
    sizes = (900, 90, 10)
    shares = class_shares(sampling({"quotas": {"rows": {"k2": 8}}}), target(3), sizes, 64)
    step = 1000 / 16  # rows of each of 16 steps
    np.testing.assert_allclose(
        shares, [(step - 8) / step * 900 / 990, (step - 8) / step * 90 / 990, 8 / step]
    )
    shares = class_shares(sampling({"weighted": {"weights": {"k2": 9}}}), target(3), sizes, 64)
    np.testing.assert_allclose(shares, np.array([900, 90, 90]) / 1080)
    assert class_shares(sampling("shuffle"), target(3), sizes, 64) is None


def test_probabilities_are_those_of_the_data():
    sizes = (900, 100)
    shares = class_shares(sampling("class_balanced"), target(2), sizes, 64)
    corrected = seen(target(2), sizes, shares)
    learned = np.array([0.2, 0.5, 0.9])
    p = scores_from_logits(np.log(learned / (1 - learned))[:, None], corrected)
    expected = learned * 0.1 / 0.5 / (learned * 0.1 / 0.5 + (1 - learned) * 0.9 / 0.5)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    assert seen(target(2), sizes, class_shares(sampling("proportional"), target(2), sizes, 64)) == target(2)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"quotas": {"rows": {"k7": 3}}}, "there is no class 'k7'; there are k0, k1"),
        ({"quotas": {"rows": {"k1": 65}}}, "add up to 65 and a step has 64 rows, which leaves 0 rows"),
        ({"quotas": {"rows": {"k1": 64}}}, "which leaves 0 rows for the classes without a quota"),
        ({"quotas": {"rows": {"k0": 3, "k1": 4}}}, "which leaves 57 rows"),
        ({"weighted": {"weights": {"K1": 3}}}, "did you mean 'k1'"),
    ],
)
def test_what_cannot_be_is_refused(written, said):
    with pytest.raises(ConfigError) as refusal:
        class_shares(sampling(written), target(2), (90, 10), 64)
    assert said in str(refusal.value)


def test_numbers_have_no_classes():
    numbers = Target(columns=("y",), task="regression")
    with pytest.raises(ConfigError, match="the task is regression; use shuffle"):
        class_shares(sampling("class_balanced"), numbers, (), 64)


@pytest.mark.parametrize("other", [{"mixup": {}}, {"loss": "logit_adjusted"}])
def test_what_corrects_or_mixes_twice_is_refused(other):
    with pytest.raises(ValueError, match=r"logit_adjusted|mixup"):
        TrainingConfig.model_validate({"sampling": "class_balanced", **other})


def test_uneven_classes_are_refused():
    with pytest.raises(DataError, match="shard the data again"):
        ClassPlan(np.array([[5, 0], [3, 2]]), np.array([0.5, 0.5]), 4, 0)


def test_shares_are_rounded_to_the_size_of_the_epoch():
    rows = np.array([[34, 33, 33]])
    plan = ClassPlan(rows, np.full(3, 1 / 3), 100, 0)
    assert plan.totals.sum() == 100
    assert math.isclose(plan.totals.max() - plan.totals.min(), 1)
