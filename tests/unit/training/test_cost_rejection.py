"""Cost-proportionate rejection: which rows are kept, the plan over them, and what a model then learns."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from support.prepared import make_dataset, make_schema, with_costs

from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Silent
from shoal.training.batches import BatchReader
from shoal.training.config import LinearConfig, TrainingConfig
from shoal.training.costs import Costs
from shoal.training.decision import Calibration
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import build_model
from shoal.training.sampling.kept import KeptPlan
from shoal.training.sampling.rejection import draws, keep
from shoal.training.scores import scores_from_logits
from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")
BY_ROW = Costs.of_cells(((0.0, 1.0), ("amount", 0.0)))


def dataset(n=4000, n_shards=8, seed=0, order=None):
    """Rows whose number is their only feature, with costs and ids, in any order."""
    rng = np.random.default_rng(seed)
    order = np.arange(n) if order is None else order
    label = (rng.random(n) < 0.4).astype(np.int64)[order]
    cost = rng.choice([1.5, 2.0, 4.0, 8.0], (n, 1))[order]
    schema = make_schema(n_numeric=0, cardinalities=()).model_copy(update={"costs": ("amount",)})
    ids = pa.array([f"r{i}" for i in order])
    part = ArrayPart(order.astype(np.float32)[:, None], np.empty((n, 0), np.int32), label, cost, ids)
    return ArrayDataset(schema, {"train": part}, n_shards)


def shards_of(data, worker=0, workers=1):
    return {v: data.shard("train", v) for v in range(worker, data.n_shards, workers)}


def kept_of(data, costs=BY_ROW, seed=7):
    kept = keep(data, shards_of(data), costs, Strategy(CPU), seed)
    rows = [data.shard("train", v).numeric[own, 0].astype(int) for v, own in kept.rows.items()]
    return kept, np.sort(np.concatenate(rows))


def test_rows_are_kept_in_proportion_to_the_cost_of_their_class():
    data = dataset(40_000)
    part = data.parts["train"]
    kept, rows = kept_of(data)
    cost = np.where(part.label == 1, part.cost[:, 0], 1.0)
    expected = cost.sum() / cost.max()
    assert abs(len(rows) - expected) < 5 * np.sqrt((cost / 8 * (1 - cost / 8)).sum())
    assert sum(kept.of_shard) == len(rows)
    assert kept.notices == (f"training.sampling: cost_rejection keeps {len(rows):,} training rows of 40,000",)
    # Of each kind of row, as many as its summed cost says.
    kind = part.label * 100 + np.where(part.label == 1, part.cost[:, 0], 0)
    kinds = np.unique(kind)
    found = np.array([(kind[rows] == k).sum() for k in kinds])
    share = np.array([cost[kind == k].sum() for k in kinds])
    assert chisquare(found, share / share.sum() * found.sum()).pvalue > 0.001
    assert chisquare(np.bincount(rows // 4000, minlength=10)).pvalue > 0.001  # wherever they are
    assert (np.isin(np.flatnonzero(cost == 8), rows)).all()  # the dearest are all kept


def test_draws_are_even_and_of_the_seed_and_the_row():
    data = dataset(20_000, 1)
    shard = data.shard("train", 0)
    found = draws(shard, 7)
    assert ((found >= 0) & (found < 1)).all()
    assert chisquare(np.histogram(found, 50, (0, 1))[0]).pvalue > 0.001
    other = draws(shard, 8)
    assert abs(np.corrcoef(found, other)[0, 1]) < 0.03


def test_the_same_rows_for_any_shards_and_any_order():
    _, rows = kept_of(dataset())
    assert kept_of(dataset(n_shards=3))[1].tolist() == rows.tolist()
    shuffled = np.random.default_rng(5).permutation(4000)
    assert kept_of(dataset(n_shards=5, order=shuffled))[1].tolist() == rows.tolist()
    assert kept_of(dataset(), seed=8)[1].tolist() != rows.tolist()


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=3, max_size=9).filter(sum),
    batch=st.integers(1, 60),
    epoch=st.integers(0, 2),
)
def test_every_kept_row_once_an_epoch_in_even_batches_whoever_reads(sizes, batch, epoch):
    n_shards = len(sizes)
    data = dataset(40 * n_shards, n_shards)
    rng = np.random.default_rng(0)
    kept = {v: np.sort(rng.choice(40, size, replace=False)) for v, size in enumerate(sizes)}
    total = sum(sizes)
    wanted = np.concatenate([data.shard("train", v).numeric[own, 0] for v, own in kept.items()])
    alone = None
    for workers in (1, 2, 3):
        readers = [
            BatchReader(
                data,
                KeptPlan(
                    {v: kept[v] for v in range(w, n_shards, workers)}, tuple(sizes), min(batch, total), 3
                ),
                w,
                workers,
            )
            for w in range(workers)
        ]
        steps = []
        for parts in zip(*(reader.epoch(epoch) for reader in readers), strict=True):
            position = np.concatenate([p.position.numpy() for p in parts])
            rows = np.concatenate([p.numeric[:, 0].numpy() for p in parts]).astype(int)
            label, cost = (
                np.concatenate([getattr(p, what).numpy() for p in parts]) for what in ("label", "cost")
            )
            assert len(position) == parts[0].global_rows
            assert (label == data.parts["train"].label[rows]).all()
            assert (cost == data.parts["train"].cost[rows]).all()
            steps.append(rows[np.argsort(position)].tolist())
        assert sorted(r for s in steps for r in s) == sorted(wanted.astype(int).tolist())
        assert max(map(len, steps)) - min(map(len, steps)) <= 1
        assert max(map(len, steps)) <= batch
        alone = alone or steps
        assert steps == alone
        for w, reader in enumerate(readers):
            own = next(iter(reader.epoch(epoch))).position.numpy()
            ids = reader.row_ids(epoch, own)
            assert [int(i[1:]) for i in ids] == [alone[0][p] for p in own.tolist()]
            assert all(v % workers == w for v in reader.shards)


def test_a_step_has_its_part_of_every_shard():
    plan = KeptPlan({}, (100, 50, 10), 16, 0)
    counts = np.array([np.bincount(plan.shard[slice(*plan.bounds(s))], minlength=3) for s in range(10)])
    assert (np.abs(counts - [10, 5, 1]) <= 1).all()


def logistic(n, seed=0):
    """Rows of a known chance, costs that depend on what the model sees."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, size=(n, 2)).astype(np.float32)
    p = 1 / (1 + np.exp(-(1.2 * x[:, 0] - 0.8 * x[:, 1] - 1.0)))
    amount = np.exp(0.6 * x[:, 1] + 1.0)[:, None].astype(np.float64)
    label = (rng.random(n) < p).astype(np.int64)
    schema = make_schema(n_numeric=2, cardinalities=(), missing=False).model_copy(
        update={"costs": ("amount",)}
    )
    parts = {
        "train": ArrayPart(x, np.empty((n, 0), np.int32), label, amount, pa.array(np.arange(n))),
    }
    return ArrayDataset(schema, parts, 4), p, x, amount


@pytest.mark.parametrize(
    "way", [{"sampling": "cost_rejection"}, {"loss": {"cross_entropy": {"class_weights": "costs"}}}]
)
def test_divided_out_probabilities_are_the_truth(way):
    """The log odds of what is learned are those of the truth plus log w, linear in x here: a linear model can hold them."""
    data, p, x, amount = logistic(60_000)
    model = build_model(LinearConfig(), data.schema, 0)
    config = TrainingConfig.model_validate(
        {
            "epochs": 1,
            "batch_size": "full",
            "precision": "fp64",
            "optimizer": {"lbfgs": {"max_iter": 60}},
            **way,
        }
    )
    loop = Loop(model, data, config, Strategy(CPU), None, 0, Silent(), costs=BY_ROW)
    loop.run()
    with torch.no_grad():
        logits = model(torch.from_numpy(x).double(), torch.empty((len(x), 0), dtype=torch.int32)).numpy()
    q = scores_from_logits(logits, loop.target)
    tilted = amount[:, 0] * p / (amount[:, 0] * p + 1 - p)
    found = Calibration(cost_weights=BY_ROW.cells)(q, {"amount": amount[:, 0]})
    assert np.abs(found - p).mean() < 0.01
    assert np.abs(q - tilted).mean() < 0.015
    assert np.abs(q - p).mean() > 0.1  # it is not the truth by itself


def test_costs_by_class_keep_all_of_the_dearer_class():
    data = dataset()
    _, rows = kept_of(data, Costs(np.array([[0.0, 1.0], [25.0, 0.0]])))
    label = data.parts["train"].label
    assert (label[rows] == 1).sum() == (label == 1).sum()
    assert abs((label[rows] == 0).sum() - (label == 0).sum() / 25) < 5 * np.sqrt(2400 / 25)


def test_a_class_of_which_nothing_is_kept_is_refused_and_few_rows_are_said():
    data = dataset()
    with pytest.raises(
        ConfigError, match=r"and none of no, on which mistakes cost little beside the dearest"
    ):
        kept_of(data, Costs(np.array([[0.0, 1.0], [1e7, 0.0]])))
    few, _ = kept_of(dataset(200))
    assert "so few tell little" in few.notices[0]
    config = TrainingConfig.model_validate({"sampling": "cost_rejection"})
    plain = make_dataset(rows=50)
    with pytest.raises(ConfigError, match=r"needs an experiment with evaluation\.costs"):
        Loop(build_model(LinearConfig(), plain.schema, 0), plain, config, Strategy(CPU), None, 0, Silent())


def test_the_batch_size_is_of_the_kept_rows():
    data = with_costs(make_dataset(rows=400))
    config = TrainingConfig.model_validate({"sampling": "cost_rejection", "batch_size": "full", "epochs": 1})
    loop = Loop(
        build_model(LinearConfig(), data.schema, 0),
        data,
        config,
        Strategy(CPU),
        None,
        0,
        Silent(),
        costs=BY_ROW,
    )
    assert loop.plan.steps_per_epoch == 1
    assert loop.plan.batch_size == loop.plan.rows < 400
