"""Cost columns beside the rows: as they are in the data, beside the right row, whatever way it took."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.listing import find, fingerprint
from shoal.cluster.sharding.service import shard, sharding_key
from shoal.cluster.storage import Storage
from shoal.verbs.look import look

NONE = "without a finite cost in column 'amount', such as"
PARTS = ("train", "validation", "test")


def rows(n=900, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return pa.table(
        {
            "key": [f"k{i:04d}" for i in range(n)],
            "x": x,
            "kind": rng.choice(["a", "b"], n),
            "amount": np.round(np.exp(x) * 100, 2),  # follows from x, so that a wrong row shows
            "fee": pa.array(rng.integers(1, 9, n)),
            "y": np.where(rng.random(n) < 0.3, "yes", "no"),
        }
    )


def sharded(folder: Path, table, costs=("amount", "fee"), budget=512 << 20, name="out", **data):
    path = folder / f"{name}.parquet"
    pq.write_table(table, path, row_group_size=100)
    section = DataConfig.model_validate({"path": str(path), "target": "y", "id": "key", "shards": 4, **data})
    out = Storage.open(str(folder / name))
    shard(section, 3, out, reporter=Silent(), budget=budget, costs=costs)
    return ShardedDataset.open(out), section


def by_key(table, name):
    return dict(zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True))


@pytest.mark.parametrize("data", [{}, {"drop": ["amount", "fee"]}, {"features": ["x"]}])
@pytest.mark.parametrize("budget", [512 << 20, 20_000])
def test_each_row_keeps_its_costs(tmp_path, data, budget):
    table = rows()
    dataset, _ = sharded(tmp_path, table, budget=budget, **data)
    assert dataset.schema.costs == ("amount", "fee")
    features = {column.name for column in dataset.schema.columns}
    assert ("amount" in features) == (not data)
    wanted = {name: by_key(table, name) for name in ("amount", "fee", "y")}
    seen, sums = [], {name: np.zeros(2) for name in ("amount", "fee")}
    for part in PARTS:
        for v in range(dataset.n_shards):
            found = dataset.shard(part, v)
            assert found.cost.dtype == np.float64
            for key, cost, label in zip(found.row_id.to_pylist(), found.cost, found.label, strict=True):
                assert cost.tolist() == [wanted["amount"][key], wanted["fee"][key]]
                assert ("no", "yes")[label] == wanted["y"][key]
                seen.append(key)
                if part == "train":
                    sums["amount"][label] += cost[0]
                    sums["fee"][label] += cost[1]
    assert sorted(seen) == table["key"].to_pylist()
    for name, by_class in sums.items():
        assert dataset.manifest.cost_sums[name] == pytest.approx(by_class.tolist())


def test_datasets_without_costs_keep_their_key_and_their_bytes(tmp_path):
    table = rows()
    plain, section = sharded(tmp_path, table, (), drop=["amount", "fee"])
    costly, _ = sharded(tmp_path, table, ("fee",), name="out2", drop=["amount", "fee"])
    assert plain.manifest.cost_sums == {}
    files = find(section.path, StorageConfig())
    assert plain.manifest.key == fingerprint(files, section.model_dump(mode="json"), 3, "format 4")
    assert sharding_key(section, 3, StorageConfig(), ("fee",)) not in {
        plain.manifest.key,
        sharding_key(section, 3, StorageConfig(), ("amount",)),
    }
    for part in PARTS:
        for v in range(plain.n_shards):
            one, other = plain.shard(part, v), costly.shard(part, v)
            assert one.cost.shape == (len(one), 0)
            for what in ("numeric", "categorical", "label"):
                assert np.array_equal(getattr(one, what), getattr(other, what), equal_nan=True)
            assert one.row_id.equals(other.row_id)
    batch = pa.ipc.open_file(tmp_path / "out" / plain.manifest.splits["train"].shards[0].path).get_batch(0)
    assert batch.schema.names == ["numeric", "categorical", "label", "row_id"]


@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_the_same_bytes_for_any_order_of_the_input(tmp_path, order):
    table = rows()
    place = (
        np.random.default_rng(1).permutation(len(table))
        if order == "shuffled"
        else np.argsort(table["y"].to_numpy())
    )
    one, _ = sharded(tmp_path, table)
    other, _ = sharded(tmp_path, table.take(pa.array(place)), name="other", budget=20_000)
    for part in PARTS:
        mine, theirs = (d.manifest.splits[part].shards for d in (one, other))
        assert [s.sha256 for s in mine] == [s.sha256 for s in theirs]


@pytest.mark.parametrize("method", ["random_under_sampler", "random_over_sampler", {"smotenc": {}}])
def test_resampled_rows_keep_the_costs_of_the_row_that_they_are(tmp_path, method):
    table = rows()
    dataset, _ = sharded(tmp_path, table, imbalance=method, drop=["amount", "fee"])
    plain, _ = sharded(tmp_path, table, name="plain", drop=["amount", "fee"])
    wanted = by_key(table, "amount")
    made = 0
    for v in range(dataset.n_shards):
        found = dataset.shard("train", v)
        for key, cost in zip(found.row_id.to_pylist(), found.cost[:, 0], strict=True):
            if key.startswith("synthetic"):
                assert np.isnan(cost)
                made += 1
            else:
                assert cost == wanted[key]
    assert bool(made) == isinstance(method, dict)
    assert dataset.manifest.cost_sums == plain.manifest.cost_sums  # of the rows before


def test_damaged_shards_are_rebuilt_with_their_costs(tmp_path):
    dataset, section = sharded(tmp_path, rows())
    file = tmp_path / "out" / dataset.manifest.splits["test"].shards[1].path
    before = file.read_bytes()
    file.unlink()
    shard(section, 3, Storage.open(str(tmp_path / "out")), reporter=Silent(), costs=("amount", "fee"))
    assert file.read_bytes() == before


def changed(name, values, where):
    table = rows()
    column = table[name].to_pylist()
    for row, value in zip(where, values, strict=True):
        column[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(column))


@pytest.mark.parametrize(
    ("table", "data", "costs", "said"),
    [
        (changed("amount", [None, float("nan")], [5, 9]), {"drop": ["amount"]}, ("amount",), f"2 rows {NONE} id k000"),
        (changed("amount", [float("inf")], [5]), {"drop": ["amount"]}, ("amount",), f"1 row {NONE} id k0005"),
        (changed("amount", [float("inf")], [5]), {}, ("amount",), f"1 row {NONE} id k0005 in row 6 of "),
        (changed("fee", [None], [5]), {"private": ["key"]}, ("fee",), "such as one whose id is private"),
        (changed("fee", [None], [5]), {"id": None, "drop": ["key"]}, ("fee",), "such as row 6 of "),
        (rows(), {}, ("y",), "column 'y' is the target"),
        (rows(), {}, ("key",), "column 'key' is the id"),
        (rows(), {}, ("kind",), "column 'kind' is text; costs stand in a column of numbers"),
        (rows(), {}, ("amonut",), "evaluation.costs: the data have no column 'amonut'; did you mean 'amount'?"),
    ],
)  # fmt: skip
def test_what_is_no_cost_is_refused_by_sharding_and_by_looking(tmp_path, table, data, costs, said):
    with pytest.raises(DataError) as refused:
        sharded(tmp_path, table, costs, **data)
    assert said in str(refused.value)
    assert "0.0" not in str(refused.value)
    section = DataConfig.model_validate(
        {"path": str(tmp_path / "out.parquet"), "target": "y", "id": "key", "shards": 4, **data}
    )
    with pytest.raises(DataError) as looked:
        look(section, 3, StorageConfig(), costs=costs)
    assert str(looked.value) == str(refused.value)


def test_rows_without_a_label_need_no_cost(tmp_path):
    table = changed("amount", [None], [5])
    labels = table["y"].to_pylist()
    labels[5] = None
    table = table.set_column(table.column_names.index("y"), "y", pa.array(labels))
    dataset, _ = sharded(tmp_path, table, ("amount",), drop=["amount"])
    assert dataset.manifest.left_out == {"without a label": 1}


def test_looking_finds_the_rows_with_their_costs_and_ids(tmp_path):
    table = rows()
    dataset, section = sharded(tmp_path, table)
    found = look(section, 3, StorageConfig(), costs=("amount", "fee"), ids=True)
    wanted = by_key(table, "amount")
    for part in PARTS:
        keys = found.row_ids[part].to_pylist()
        assert sorted(keys) == sorted(k for v in range(4) for k in dataset.shard(part, v).row_id.to_pylist())
        assert found.costs[part][:, 0].tolist() == [wanted[key] for key in keys]
    assert found.known.sums == dataset.manifest.cost_sums
    assert any("'amount' is a cost and a feature" in notice for notice in found.notices)
    assert json.dumps(found.as_dict())
