"""Explanations by Ray tasks: the same numbers as in one process, and nothing left behind."""

import json
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
METHODS = "permutation,partial_dependence,shap,lime,integrated_gradients,gradient_shap"


def explained(folder: Path, workers: int) -> dict[str, bytes]:
    out = folder / f"explained-{workers}"
    sets = [
        f"cluster.num_workers={workers}",
        "cluster.cpus_per_worker=0.5",
        f"cluster.storage_path={folder}/runs",
    ]
    given = [part for value in sets for part in ("--set", value)]
    verb = [
        "explain",
        str(folder / "run"),
        "--out",
        str(out),
        "--rows",
        "25",
        "--methods",
        METHODS,
        "--quiet",
    ]
    assert main([*verb, *given]) == 0
    assert json.loads((out / "explanations.json").read_text())["explained_rows"] == 25
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_tasks_find_the_same_and_leave_nothing(tmp_path: Path) -> None:
    pq.write_table(rows(300), tmp_path / "rows.parquet")
    (tmp_path / "e.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    assert main(["train", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    here = explained(tmp_path, 1)
    assert explained(tmp_path, 2) == here
    assert explained(tmp_path, 3) == here
    assert leftovers() == {"actors": 0, "placement_groups": 0}
