"""Texts and images on a cluster: tasks write the same shards, and two workers give what one does."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.media import image_table, save_tokenizer, text_table

from shoal.cli.main import main
from shoal.cluster.config import ClusterConfig
from shoal.cluster.resources import SHARDING, Part
from shoal.cluster.session import leftovers
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.cluster.tasks import Tasks, reserved

pytestmark = pytest.mark.usefixtures("ray_cluster")

EXPERIMENT = """\
data:
  path: {folder}/rows.parquet
  target: y
  id: key
  types: {types}
model: {model}
training: {{epochs: 3, batch_size: 20, precision: fp64{more}}}
evaluation: {{replicates: 100}}
cluster: {{storage_path: {folder}/runs, cpus_per_worker: 0.5}}
"""


def predictions(folder: Path, workers: int) -> tuple[pa.Table, np.ndarray]:
    out = folder / f"run-{workers}"
    given = ("--set", f"cluster.num_workers={workers}", "--out", str(out), "--quiet")
    assert main(["train", str(folder / "e.yaml"), *given]) == 0
    found = pq.read_table(out / "predictions.parquet").sort_by("row_id")
    return found["row_id"], np.array(found["score_yes"])


@pytest.mark.parametrize("kind", ["image", "text"])
def test_two_workers_give_what_one_does(tmp_path: Path, kind: str) -> None:
    if kind == "image":
        table, types, model = (
            image_table(120),
            "{photo: {image: {size: 8}}}",
            "{cnn: {channels: [4], hidden: 8, dropout: 0.2}}",
        )
    else:
        save_tokenizer(tmp_path / "tok")
        table, model = text_table(120), "{embedding_bag: {width: 4, hidden: 8, dropout: 0.2}}"
        types = f"{{review: {{text: {{tokenizer: {tmp_path}/tok, max_length: 8}}}}}}"
    more = ", augment: {flip: true, crop: 2}" if kind == "image" else ""
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "e.yaml").write_text(EXPERIMENT.format(folder=tmp_path, types=types, model=model, more=more))
    ids, alone = predictions(tmp_path, 1)
    same, together = predictions(tmp_path, 2)
    assert ids.equals(same)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-10)
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def test_tasks_decode_and_tokenise_the_same_bytes(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tok")
    both = image_table(300).append_column("review", text_table(300)["review"])
    pq.write_table(both, tmp_path / "rows.parquet", row_group_size=50)
    data = DataConfig.model_validate(
        {
            "path": str(tmp_path / "rows.parquet"),
            "target": "y",
            "id": "key",
            "types": {
                "photo": {"image": {"size": 8}},
                "review": {"text": {"tokenizer": str(tmp_path / "tok"), "max_length": 8}},
            },
        }
    )
    part, cluster = Part(SHARDING, 2, 0.2, memory=1 << 20), ClusterConfig(wait=timedelta(seconds=60))
    here, there = (Storage.open(str(tmp_path / name)) for name in ("here", "there"))
    expected = shard(data, 0, here)
    with reserved(cluster, part) as group:
        found = shard(data, 0, there, spread=Tasks(group, part, cluster), budget=60_000)
    assert found.splits == expected.splits  # with the hash of each shard
    assert found.schema_ == expected.schema_
