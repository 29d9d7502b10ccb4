"""Costs by row against matrices a row, brute force and a plain torch loop."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import scenarios
from support.prepared import make_dataset, with_costs

from shoal.cluster.errors import DataError
from shoal.cluster.progress import Silent
from shoal.training.artifact import TrainedModel
from shoal.training.config import LinearConfig, MLPConfig, TrainingConfig
from shoal.training.costs import Costs
from shoal.training.decision import Calibration, Decision
from shoal.training.description import ModelDescription
from shoal.training.loop import Loop
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy

CPU = torch.device("cpu")
BINARY = ((-1.0, "fee"), ("loss", "gain"))
SEVERAL = ((0.0, "a", 2.0), ("b", 0.5, "a"), (3.0, "b", 0.0))


def amounts_of(cells, n, seed=0):
    rng = np.random.default_rng(seed)
    names = sorted({c for row in cells for c in row if isinstance(c, str)})
    return {name: rng.uniform(1, 9, n) * (-1 if name == "gain" else 1) for name in names}


def matrix_of(cells, amounts, row):
    """The matrix of one row, as one would write it down."""
    return [[amounts[c][row] if isinstance(c, str) else c for c in line] for line in cells]


@pytest.mark.parametrize("cells", [BINARY, SEVERAL])
def test_everything_follows_from_the_matrix_of_each_row(cells):
    n, k = 60, len(cells)
    amounts, costs = amounts_of(cells, n), Costs.of_cells(cells)
    rng = np.random.default_rng(1)
    y, d, p = rng.integers(0, k, n), rng.integers(0, k, n), rng.dirichlet(np.ones(k), n)
    matrices = np.array([matrix_of(cells, amounts, i) for i in range(n)])
    assert costs.cells == cells
    assert costs.of(y, d, amounts) == pytest.approx(matrices[np.arange(n), y, d])
    assert costs.expected(p, amounts) == pytest.approx(np.einsum("nk,nkj->nj", p, matrices))
    own = np.diagonal(matrices, axis1=1, axis2=2)
    mistakes = (matrices - own[:, :, None]).sum(axis=2) / (k - 1)
    assert costs.weights(amounts) == pytest.approx(mistakes)
    assert costs.own_weights(y, amounts) == pytest.approx(mistakes[np.arange(n), y])
    sums = {name: [values[y == c].sum() for c in range(k)] for name, values in amounts.items()}
    always = [matrices[np.arange(n), y, j].sum() for j in range(k)]
    assert costs.constant(np.bincount(y, minlength=k).tolist(), sums) == int(np.argmin(always))


def test_each_row_is_decided_where_the_cheaper_decision_changes():
    n = 400
    amounts = amounts_of(BINARY, n)
    p = np.random.default_rng(2).uniform(0.01, 0.99, n)
    cheaper = []
    for i in range(n):
        m = matrix_of(BINARY, amounts, i)
        cheaper.append(p[i] * m[1][1] + (1 - p[i]) * m[0][1] <= p[i] * m[1][0] + (1 - p[i]) * m[0][0])
    decision = Decision(costs=BINARY)
    assert decision.classes(p, amounts).tolist() == [int(c) for c in cheaper]
    assert len(set(decision.thresholds(amounts).round(6).tolist())) == n
    several = amounts_of(SEVERAL, n)
    scores = np.random.default_rng(3).dirichlet(np.ones(3), n)
    best = [int(np.argmin(scores[i] @ np.array(matrix_of(SEVERAL, several, i)))) for i in range(n)]
    assert Decision(costs=SEVERAL).classes(scores, several).tolist() == best


def test_rows_by_which_one_class_is_always_decided_are_found():
    costs = Costs.of_cells(((0.0, 1.0), ("loss", "right")))
    loss, right = np.array([5.0, 2.0, 1.0, 3.0]), np.array([0.0, 2.0, 4.0, -1.0])
    rows, mistake = costs.unreasonable({"loss": loss, "right": right})
    assert rows.tolist() == [False, True, True, False]
    assert mistake == (1, 0)  # actual event, left alone
    assert costs.unreasonable({"loss": loss[:1], "right": right[:1]}) == (pytest.approx([False]), None)
    assert costs.unreasonable({"loss": np.array([1e300]), "right": np.zeros(1)})[1] == (0, 1)


@pytest.mark.parametrize("cells", [BINARY, SEVERAL])
def test_weights_by_row_are_divided_out(cells):
    """Weighted cross-entropy is least at q_k proportional to w_k p_k, w of the row's own costs."""
    n, k = 50, len(cells)
    amounts = amounts_of(cells, n)
    p = np.random.default_rng(4).dirichlet(np.ones(k), n)
    w = Costs.of_cells(cells).weights(amounts)
    q = p * w / (p * w).sum(axis=1, keepdims=True)
    found = Calibration(cost_weights=cells)(q[:, 1] if k == 2 else q, amounts)
    assert found == pytest.approx(p[:, 1] if k == 2 else p)


def test_what_the_model_holds_are_numbers_and_names():
    made = make_dataset(rows=20)
    description = ModelDescription(
        schema=made.schema,
        model={"linear": {}},
        calibration=Calibration(cost_weights=BINARY),
        costs=BINARY,
        weights_sha256="",
    )
    again = ModelDescription.model_validate_json(description.model_dump_json(by_alias=True))
    assert again.decision.costs == BINARY
    assert again.decision.columns == ("fee", "gain", "loss")
    assert again.calibration.cost_weights == BINARY


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_weighted_loss_equals_a_plain_torch_loop_with_sample_weights(task):
    cells = (
        ((0.0, 2.0), ("amount", 0.0))
        if task == "binary"
        else ((0.0, 1.0, 2.0), ("amount", 0.0, 1.0), (1.0, "amount", 0.0))
    )
    dataset, costs = with_costs(make_dataset(task, rows=203)), Costs.of_cells(cells)
    model = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3)
    config = TrainingConfig.model_validate(
        {"epochs": 3, "batch_size": 50, "precision": "fp64", "optimizer": {"sgd": {"learning_rate": 0.05, "momentum": 0.0}},
         "loss": {"cross_entropy": {"class_weights": "costs"}}}
    )  # fmt: skip
    loop = Loop(model, dataset, config, Strategy(CPU), None, 3, Silent(), costs=costs)
    oracle = build_model(MLPConfig(hidden=(8,)), dataset.schema, 3).double()
    part = dataset.parts["train"]
    own = np.array([matrix_of(cells, {"amount": part.cost[:, 0]}, i)[y] for i, y in enumerate(part.label)])
    weight = torch.from_numpy(own.sum(axis=1) / (own.shape[1] - 1))  # deciding right costs nothing here
    weights = loop.stepper.loss.weights(torch.from_numpy(part.label), torch.from_numpy(part.cost))
    torch.testing.assert_close(weights, weight / weight.mean(), rtol=1e-12, atol=0)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.05)
    loop.run()
    plan, v = loop.plan, dataset.n_shards
    for epoch in range(3):
        for step in range(plan.steps_per_epoch):
            rows = [plan.permutation(epoch, p % v)[p // v] * v + p % v for p in range(*plan.bounds(step))]
            z = oracle(
                torch.from_numpy(part.numeric)[rows].double(), torch.from_numpy(part.categorical)[rows]
            )
            z = torch.cat([torch.zeros_like(z), z], 1) if task == "binary" else z
            nll = torch.nn.functional.cross_entropy(z, torch.from_numpy(part.label)[rows], reduction="none")
            optimizer.zero_grad()
            ((nll * weight[rows]).sum() / weight[rows].sum()).backward()
            optimizer.step()
    for ours, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


class Costly:
    """Mean cost of deciding the event everywhere, as a monitor that looks at the rows' own costs."""

    name, greater_is_better = "cost", False

    def __init__(self):
        self.seen = []

    def value(self, y, scores, amounts):
        self.seen.append((np.array(y), amounts["amount"].copy()))
        return float(amounts["amount"].mean())


def test_the_monitor_sees_each_row_beside_its_costs():
    dataset, monitor = with_costs(make_dataset(rows=100)), Costly()
    model = build_model(LinearConfig(), dataset.schema, 0)
    config = TrainingConfig.model_validate({"epochs": 1, "batch_size": 50})
    Loop(model, dataset, config, Strategy(CPU), monitor, 3, Silent(), costs=scenarios.BY_ROW).run()
    part = dataset.parts["validation"]
    order = np.concatenate([np.arange(len(part))[v :: dataset.n_shards] for v in range(dataset.n_shards)])
    assert monitor.seen[0][0].tolist() == part.label[order].tolist()
    assert monitor.seen[0][1].tolist() == part.cost[order, 0].tolist()


def test_rows_of_any_part_without_reason_are_refused_before_the_first_step():
    dataset = with_costs(make_dataset(rows=100))
    dataset.parts["test"].cost[[3, 11], 0] = 0.0, -2.0
    with pytest.raises(DataError) as refused:
        Loop(
            build_model(LinearConfig(), dataset.schema, 0), dataset, TrainingConfig(epochs=1), Strategy(CPU), None, 0,
            Silent(), costs=scenarios.BY_ROW,
        )  # fmt: skip
    said = str(refused.value)
    assert "in 2 rows, such as id test-000" in said
    assert "deciding 'no' where 'yes' is actual" in said
    hidden = dataset.schema.model_copy(update={"private": ("y",)})
    object.__setattr__(dataset, "schema", hidden)
    with pytest.raises(DataError, match="deciding another class"):
        Loop(
            build_model(LinearConfig(), hidden, 0), dataset, TrainingConfig(epochs=1), Strategy(CPU), None, 0, Silent(),
            costs=scenarios.BY_ROW,
        )  # fmt: skip


def trained(**parts):
    schema = make_dataset(rows=20, cardinalities=(), missing=False).schema.model_copy(
        update={"costs": ("amount",), "id": "key"}
    )
    return TrainedModel(build_model(LinearConfig(), schema, 0).eval(), schema, LinearConfig(), **parts)


def test_a_trained_model_needs_the_costs_that_it_decides_by():
    cells = ((0.0, 1.0), ("amount", 0.0))
    model, plain = trained(decision=Decision(costs=cells)), trained()
    rng = np.random.default_rng(0)
    raw = {f"x{i}": rng.normal(size=30) for i in range(6)}
    amount = rng.uniform(0.2, 5, 30)
    p = plain.predict_proba(raw)[:, 1]
    assert model.predict_proba(raw)[:, 1].tolist() == p.tolist()  # probabilities do not depend on them here
    expected = np.where(p >= 1 / (1 + amount), "yes", "no").tolist()
    for data in (raw | {"amount": amount}, pa.table(raw | {"amount": amount})):
        assert model.predict(data).tolist() == expected
    assert len(set(expected)) == 2
    with pytest.raises(DataError, match="no column 'amount', in which the costs stand"):
        model.predict(raw)
    broken = raw | {
        "amount": np.where(np.arange(30) == 7, np.inf, amount),
        "key": [f"k{i}" for i in range(30)],
    }
    with pytest.raises(DataError, match="1 row without a finite cost in column 'amount', such as id k7"):
        model.predict(broken)
    with pytest.raises(DataError, match="in 1 row, such as row 4, from 0"):
        model.predict(raw | {"amount": np.where(np.arange(30) == 4, 0.0, amount)})
    with pytest.raises(DataError, match="the costs in it must be numbers"):
        model.predict(raw | {"amount": ["much"] * 30})
    assert model.with_threshold(0.5).predict(raw).tolist() == np.where(p >= 0.5, "yes", "no").tolist()
    tilted = trained(calibration=Calibration(cost_weights=cells))
    q = tilted.predict_proba(raw | {"amount": amount})[:, 1]
    assert q == pytest.approx((p / amount) / (p / amount + (1 - p)))
    with pytest.raises(DataError, match="no column 'amount'"):
        tilted.predict_proba(raw)
