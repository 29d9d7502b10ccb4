"""adapt with several source domains: a column says which, and each takes the target's place in turn."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score
from support.prepared import make_dataset
from support.tabular import rows

from shoal.cli.main import main
from shoal.training.artifact import TrainedModel
from shoal.transfer.adaptation.reading import unlabelled

BASE = """\
data: {{path: {folder}/source.parquet, target: y, id: key, domain: shop, split: {{test: 0}}}}
model: {{mlp: {{hidden: [8, 4]}}}}
training: {{epochs: 3, batch_size: 32, optimizer: {{adamw: {{learning_rate: 0.02}}}}}}
evaluation: {{replicates: 100, scoring: [accuracy]}}
transfer:
  adaptation: dann
  candidates: [mmd]
  target_data: {{path: {folder}/target.parquet}}
  seeds: 1
cluster: {{storage_path: {folder}/runs}}
"""
SHOPS = ("north", "south", "west")


def of_shop(name, n, seed):
    table = rows(n, seed=seed)
    table = table.set_column(0, "x", pa.array(table["x"].to_numpy() + 0.4 * seed))
    return table.append_column("shop", pa.array([name] * n))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    shops = [of_shop(name, 120 + 20 * i, i + 1) for i, name in enumerate(SHOPS)]
    together = pa.concat_tables(shops)
    order = np.random.default_rng(0).permutation(len(together))
    keys = pa.array([f"k{i}" for i in range(len(together))])
    together = together.set_column(together.column_names.index("key"), "key", keys)
    pq.write_table(together.take(order), folder / "source.parquet")
    pq.write_table(of_shop("new", 150, 6).drop(["shop", "y"]), folder / "target.parquet")
    (folder / "a.yaml").write_text(BASE.format(folder=folder))
    assert main(["adapt", str(folder / "a.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def test_a_left_out_domain_judges_models_of_the_others(place):
    found = json.loads((place / "run" / "metrics.json").read_text())
    judged = found["selection"]["left_out"]
    assert judged["domains"] == list(SHOPS)
    table = pq.read_table(place / "source.parquet")
    for kind, scores in judged["scores"].items():
        for number, shop in enumerate(SHOPS):
            model = TrainedModel.load(str(place / "run" / "left_out" / str(number + 1) / kind / "0"))
            own = table.filter(pa.compute.equal(table["shop"], shop))
            assert scores[number] == pytest.approx(accuracy_score(own["y"].to_pylist(), model.predict(own)))
        assert found["selection"]["scores"][kind]["leave_one_domain_out"] == pytest.approx(np.mean(scores))
    assert "west" in (place / "run" / "report.html").read_text()


def test_the_left_out_domain_trains_nothing(place):
    """Its rows are all among the predictions for judging, and none validates."""
    for number, shop in enumerate(SHOPS):
        run = place / "run" / "left_out" / str(number + 1) / "source_only" / "0"
        predictions = pq.read_table(run / "predictions.parquet")
        table = pq.read_table(place / "source.parquet")
        own = set(table.filter(pa.compute.equal(table["shop"], shop))["key"].to_pylist())
        parts = dict.fromkeys(("validation", "test"))
        for part in parts:
            ids = predictions.filter(pa.compute.equal(predictions["split"], part))["row_id"].to_pylist()
            parts[part] = set(ids)
        assert parts["test"] == own
        assert parts["validation"]
        assert not parts["validation"] & own


def test_the_domain_is_no_feature(place):
    model = TrainedModel.load(str(place / "run" / "fits" / "dann" / "0"))
    assert "shop" not in [column.name for column in model.schema.columns]
    assert model.schema.domains == SHOPS


def test_labels_of_the_left_out_domain_reach_no_fit():
    dataset = make_dataset("multiclass", 50)
    as_target = unlabelled(dataset, "test")
    assert sum(as_target.shard_rows("train")) == sum(dataset.shard_rows("test"))
    for v in range(dataset.n_shards):
        assert not as_target.shard("train", v).label.any()
        np.testing.assert_array_equal(as_target.shard("train", v).numeric, dataset.shard("test", v).numeric)
    assert any(dataset.shard("test", v).label.any() for v in range(dataset.n_shards))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["data.domain=null", "data.drop=[shop]", "transfer.leave_one_domain_out=true"],
            "name the column that tells them with data.domain",
        ),
        (["data.domain=shopp"], "shop"),
        (["data.domain=y"], "cannot also be a feature, dropped, a group, a domain"),
        (["data.split.validation=0", "data.split.test=0.2"], "needs validation rows of the other domains"),
        (["data.split.validation=0"], "needs rows of the source that train nothing"),
        (["transfer.adaptation={mmd: {batch_norm: frozen}}"], "there is none: give start"),
    ],
)
def test_what_does_not_go_together_is_refused(place, tmp_path, capsys, changes, said):
    given = [part for change in changes for part in ("--set", change)]
    assert main(["adapt", str(place / "a.yaml"), "--out", str(tmp_path / "refused"), *given]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_rows_without_a_domain_are_counted(place, tmp_path, capsys):
    table = pq.read_table(place / "source.parquet")
    shops = table["shop"].to_pylist()
    shops[:3] = [None] * 3
    pq.write_table(
        table.set_column(table.column_names.index("shop"), "shop", pa.array(shops)), tmp_path / "s.parquet"
    )
    assert main(["shard", str(place / "a.yaml"), "--set", f"data.path={tmp_path}/s.parquet"]) == 2
    assert "3 rows without a value in 'shop'" in " ".join(capsys.readouterr().err.split())


def test_check_counts_the_fits(place, capsys):
    assert main(["check", str(place / "a.yaml")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "9 fits with each of 3 source domains in the target's place" in said


def test_a_private_domain_has_a_number(place, tmp_path, capsys):
    given = ["--set", "data.private=[shop]", "--set", f"cluster.storage_path={tmp_path}/runs"]
    assert main(["adapt", str(place / "a.yaml"), "--out", str(tmp_path / "run"), *given]) == 0
    report = (tmp_path / "run" / "report.html").read_text()
    assert "domain 3" in report
    assert not any(shop in report or shop in capsys.readouterr().err for shop in SHOPS)
