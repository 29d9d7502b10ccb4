"""Columns that alone tell the target, against a look at every value."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sharded import Run

from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.leakage import Leakage
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.prepare import Prepared


def told(dataset: ShardedDataset) -> list[str]:
    return [n.split("'")[1] for n in dataset.manifest.notices if "alone tells the target" in n]


@pytest.mark.parametrize("budget", [512 << 20, 20_000], ids=["in memory", "spilled"])
def test_what_tells_the_target_is_named_and_nothing_else(table: pa.Table, run: Run, budget: int) -> None:
    yes = np.array(table["label"].to_pylist()) == "yes"
    draw = np.random.default_rng(3)
    almost = np.where(yes, 1.0, 0.0)
    almost[np.flatnonzero(yes)[:3]] = 0.0
    added = {
        "copy": pa.array(np.where(yes, "Y", "N")),
        "flag": pa.array(yes),
        "above": pa.array(draw.random(len(yes)) + 2 * yes),
        "when": pa.array([1.0 if y else None for y in yes]),
        "reason": pa.array([str(draw.choice(["a", "b"])) if y else None for y in yes]),
        "almost": pa.array(almost),
    }
    for name, values in added.items():
        table = table.append_column(name, values)
    table = table.drop_columns(["order"])
    assert told(run(table, budget=budget)) == ["copy", "flag", "above", "when", "reason"]


def test_a_regression_target_up_to_scale(table: pa.Table, run: Run) -> None:
    amount = pc.fill_null(table["amount"], 100.0)
    table = table.drop_columns(["order", "amount"]).append_column("amount", amount)
    table = table.append_column("net", pc.multiply(amount, -0.8))
    noise = np.random.default_rng(0).normal(size=len(table)) * 0.5
    table = table.append_column("near", pc.add(amount, pa.array(noise)))
    assert told(run(table, target="amount")) == ["net"]


def test_classes_of_few_rows_prove_nothing(table: pa.Table, run: Run) -> None:
    rows = [*range(596), 0, 1, 2, 3]
    label = pa.array(["rare" if i >= 596 else "usual" for i in range(600)])
    table = table.take(rows).drop_columns(["order", "label"]).append_column("label", label)
    assert told(run(table.append_column("copy", label))) == []


values = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 2, 3]), st.sampled_from([0.0, 1.0, 2.0, np.nan])
    ),
    min_size=1,
    max_size=12,
)


@given(values, st.integers(1, 5))
def test_against_a_look_at_every_value(rows: list[tuple[int, int, float]], shards: int) -> None:
    schema = Schema(
        columns=(
            Column(name="n", type="numeric", arrow_type="double", parts=("n",)),
            Column(name="c", type="categorical", arrow_type="string", categories=("a", "b")),
        ),
        target=Target(columns=("y",), task="multiclass", classes=("x", "y", "z")),
    )
    rows = rows * 5  # so that every class and code has enough of them
    frame = pd.DataFrame(rows, columns=["y", "c", "n"]).astype({"n": np.float32})
    leakage = Leakage(schema)
    for part in np.array_split(np.arange(len(frame)), shards):
        own = frame.iloc[part]
        numbers = Prepared(own[["n"]].to_numpy(np.float32), own[["c"]].to_numpy(np.int32))
        leakage.add(numbers, own["y"].to_numpy(np.int64))

    expected = []
    if frame.y.nunique() == 3:
        known = frame[frame.n.notna()]
        one_run = known.sort_values("n", kind="stable").y
        in_runs = (one_run != one_run.shift()).sum() == known.y.nunique() and (
            known.groupby("n").y.nunique() <= 1
        ).all()
        without = frame[frame.n.isna()].y.unique()
        apart = len(without) == 0 or (len(without) == 1 and without[0] not in known.y.unique())
        expected += ["n"] if in_runs and apart else []
        expected += ["c"] if (frame.groupby("c").y.nunique() <= 1).all() else []
    assert leakage.columns() == expected
