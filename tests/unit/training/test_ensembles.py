"""Costing and MetaCost: which rows, whose probabilities, which labels; against numpy by hand."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import chisquare, poisson
from support.prepared import make_dataset, with_costs

from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Silent
from shoal.training.config import LinearConfig, MLPConfig, TrainingConfig
from shoal.training.costs import Costs
from shoal.training.ensembles.members import member_seed, member_training
from shoal.training.ensembles.metacost import Relabelled, relabelled
from shoal.training.ensembles.model import EnsembleModel
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import build_model
from shoal.training.sampling.bootstrap import times
from shoal.training.sampling.build import sample
from shoal.training.scores import forward_rows, scores_from_logits
from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")
SMALL = MLPConfig(hidden=(8,))
COSTS = {
    "binary": Costs.of_cells(((0.0, 1.0), ("amount", 0.0))),
    "multiclass": Costs.of_cells(((0.0, 1.0, 5.0), (9.0, 0.0, "amount"), (3.0, "amount", 0.5))),
}


def softmaxed(model, part, task):
    """Class probabilities by numpy alone, from the network's own logits."""
    with torch.no_grad():
        logits = model(torch.from_numpy(part.numeric), torch.from_numpy(part.categorical)).double().numpy()
    if task == "binary":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("members", [1, 3])
def test_the_answer_is_the_mean_probability(task, members):
    data = make_dataset(task)
    models = [build_model(SMALL, data.schema, seed) for seed in range(members)]
    for model in models:
        with torch.no_grad():
            model.body[-1].weight.mul_(30)  # probabilities near 0 and 1, too
    part = data.parts["test"]
    logits = forward_rows(EnsembleModel(models).eval(), part.numeric, part.categorical, CPU)
    found = scores_from_logits(logits, data.schema.target)
    wanted = np.mean([softmaxed(model, part, task) for model in models], axis=0)
    wanted = wanted[:, 1] if task == "binary" else wanted
    assert any(softmaxed(model, part, task).min() < 1e-3 for model in models)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=0)


def keyed(n=30_000, n_shards=1, order=None):
    order = np.arange(n) if order is None else order
    schema = make_dataset(rows=4).schema
    ids = pa.array([f"r{i}" for i in order])
    part = ArrayPart(
        np.zeros((n, schema.numeric_width), np.float32),
        np.zeros((n, 2), np.int32),
        (order % 3 == 0).astype(np.int64),
        None,
        ids,
    )
    return ArrayDataset(schema, {"train": part}, n_shards)


def drawn(data, seed):
    shards = [data.shard("train", v) for v in range(data.n_shards)]
    pairs = [(k, int(t)) for s in shards for k, t in zip(s.row_id.to_pylist(), times(s, seed), strict=True)]
    return dict(pairs)


def test_rows_are_drawn_as_often_as_a_bootstrap_draws_them():
    counts = np.array(list(drawn(keyed(), 5).values()))
    found = np.bincount(np.minimum(counts, 5), minlength=6)
    law = poisson.pmf(np.arange(5), 1)
    assert chisquare(found, len(counts) * np.append(law, 1 - law.sum())).pvalue > 0.001
    other = np.array(list(drawn(keyed(), 6).values()))
    assert abs(np.corrcoef(counts, other)[0, 1]) < 0.03


def test_draws_are_of_the_row_whatever_the_shards_and_the_order():
    wanted = drawn(keyed(2000), 5)
    shuffled = np.random.default_rng(0).permutation(2000)
    assert drawn(keyed(2000, 7, shuffled), 5) == wanted
    config = TrainingConfig(sampling={"bootstrap": {}}, batch_size=64)
    data = keyed(2000, 3)
    sampled = sample(config, data, None, Strategy(CPU), 5)
    assert sampled.plan.rows == sum(wanted.values())
    seen: dict[str, int] = {}
    shards = {v: data.shard("train", v) for v in range(3)}
    for v, _, rows in sampled.plan.places(0, shards).groups(np.arange(sampled.plan.rows)):
        for row in rows.tolist():
            key = shards[v].row_id[row].as_py()
            seen[key] = seen.get(key, 0) + 1
    assert seen == {key: count for key, count in wanted.items() if count}
    assert f"draws {sampled.plan.rows:,} rows, {len(seen):,} of them different" in sampled.notices[0]


def test_members_differ_in_seed_and_rows_alone():
    config = TrainingConfig(ensemble={"costing": {"members": 3}}, epochs=7)
    assert member_training(config) == TrainingConfig(sampling={"cost_rejection": {}}, epochs=7)
    config = TrainingConfig(ensemble={"metacost": {}}, epochs=7)
    assert member_training(config) == TrainingConfig(sampling={"bootstrap": {}}, epochs=7)
    assert member_training(TrainingConfig(epochs=7)) == TrainingConfig(epochs=7)
    seeds = [member_seed(seed, member) for seed in (0, 1) for member in range(1, 51)]
    assert len(set(seeds)) == 100
    wanted = np.random.SeedSequence(1, spawn_key=(6, 2)).generate_state(1)[0]
    assert member_seed(1, 2) == wanted


@pytest.mark.parametrize("out_of_bag", [True, False])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_new_labels_are_those_of_brute_force(task, out_of_bag):
    data = with_costs(make_dataset(task, rows=500, n_shards=3))
    costs, seeds = COSTS[task], [member_seed(4, m) for m in (1, 2, 3)]
    models = [build_model(SMALL, data.schema, seed).eval() for seed in seeds]
    for model in models:
        with torch.no_grad():
            model.body[-1].weight.mul_(8)
    loaders = [lambda model=model: model for model in models]
    found = relabelled(data, loaders, seeds, costs, out_of_bag, CPU)
    several = 0
    for v in range(3):
        shard = data.shard("train", v)
        part = ArrayPart(shard.numeric, shard.categorical, shard.label)
        p = [softmaxed(model, part, task) for model in models]
        often = [times(shard, seed) for seed in seeds]
        for row in range(len(shard)):
            using = [m for m in range(3) if not out_of_bag or often[m][row] == 0] or [0, 1, 2]
            several += len(using) < 3
            mean = sum(p[m][row] for m in using) / len(using)
            amount = float(shard.cost[row, 0])
            cells = [[amount if cell == "amount" else cell for cell in line] for line in costs.cells]
            expected = [sum(mean[i] * cells[i][j] for i in range(len(mean))) for j in range(len(mean))]
            assert found.labels[v][row] == int(np.argmin(expected))
    labels = np.concatenate([found.labels[v] for v in range(3)])
    old = np.concatenate([data.shard("train", v).label for v in range(3)])
    assert f"gives {(labels != old).sum():,} training rows of 500 another label" in found.notices[0]
    assert ("drawn by all members" in found.notices[0]) == out_of_bag
    assert (several > 0) == out_of_bag
    assert found.class_rows("test") == data.class_rows("test")


def test_a_fit_to_new_labels_is_that_of_rows_that_have_them():
    data = make_dataset(rows=300, n_shards=4)
    new = np.random.default_rng(1).integers(0, 2, 300)
    changed = replace(
        data, parts={**data.parts, "train": replace(data.parts["train"], label=new)}, _shards={}
    )
    by_shard = {v: changed.shard("train", v).label for v in range(4)}
    config = TrainingConfig(epochs=2, batch_size=32, loss={"cross_entropy": {"class_weights": "balanced"}})
    weights = []
    for rows in (changed, Relabelled(data, by_shard), data):
        model = build_model(SMALL, data.schema, 0)
        Loop(model, rows, config, Strategy(CPU), None, 0, Silent()).run()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    relabelled_rows = Relabelled(data, by_shard)
    assert relabelled_rows.class_rows("train") == tuple(np.bincount(new).tolist())
    assert (relabelled_rows.shard_class_rows("train") == changed.shard_class_rows("train")).all()
    assert (relabelled_rows.shard("test", 0).label == data.shard("test", 0).label).all()


def test_one_class_for_all_rows_is_refused():
    data = make_dataset(rows=60)
    costs = Costs(np.array([[0.0, 1.0], [1e9, 0.0]]))
    model = build_model(LinearConfig(), data.schema, 0)
    with pytest.raises(ConfigError, match="'yes' is the cheapest decision for every training row"):
        relabelled(data, [lambda: model], [1], costs, True, CPU)
