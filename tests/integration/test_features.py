"""Features by Ray tasks: the same bytes as in one process, and nothing left behind."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cli.main import main
from shoal.cluster.session import leftovers

pytestmark = pytest.mark.usefixtures("ray_cluster")

EXPERIMENT = """\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [8, 4]}}}}
training: {{epochs: 2, batch_size: 32}}
evaluation: {{replicates: 100}}
cluster: {{storage_path: {folder}/runs}}
"""


def features(folder: Path, workers: int) -> dict[str, bytes]:
    out = folder / f"features-{workers}"
    sets = [
        f"transfer={{start: {folder}/run, features: {{layers: ['body.*', last]}}}}",
        f"cluster.num_workers={workers}",
        "cluster.cpus_per_worker=0.5",
    ]
    given = [part for value in sets for part in ("--set", value)]
    assert main(["features", str(folder / "e.yaml"), "--out", str(out), "--quiet", *given]) == 0
    return {path.name: path.read_bytes() for path in (out / "features").iterdir()}


def test_tasks_write_the_same_bytes_and_leave_nothing(tmp_path: Path) -> None:
    pq.write_table(rows(300), tmp_path / "rows.parquet")
    (tmp_path / "e.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    assert main(["train", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    here = features(tmp_path, 1)
    assert features(tmp_path, 2) == here
    assert features(tmp_path, 3) == here
    assert leftovers() == {"actors": 0, "placement_groups": 0}
