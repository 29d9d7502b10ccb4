"""Resampling by the sharding service: what is written, what is not touched, and what is said."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.training.scores import scores_from_logits
from shoal.verbs.look import look


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
    assert manifest.resampling.method == {"imblearn.under_sampling:OneSidedSelection": {"n_neighbors": 2}}


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
