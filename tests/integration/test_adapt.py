"""adapt in worker groups, and killed: the same models as in one process, the same as uninterrupted ones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from support.tabular import rows

from shoal.cli.main import main
from shoal.cluster.session import leftovers
from shoal.cluster.storage import Storage
from shoal.training.checkpoints.keeper import RunKeeper
from shoal.yaml_file import dump

COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]


def write(folder: Path, epochs: int = 3, **cluster: Any) -> Path:
    """An experiment whose target is moved."""
    target = rows(200, seed=1)
    pq.write_table(rows(300), folder / "source.parquet")
    pq.write_table(
        target.set_column(0, "x", pa.array(target["x"].to_numpy() + 0.8)), folder / "target.parquet"
    )
    experiment = {
        "data": {"path": str(folder / "source.parquet"), "target": "y", "id": "key"},
        "model": {"mlp": {"hidden": [8, 4]}},
        "training": {
            "epochs": epochs,
            "batch_size": 32,
            "precision": "fp64",
            "checkpoint": {"every": "0.1s"},
        },
        "evaluation": {"replicates": 100},
        "transfer": {
            "adaptation": "dann",
            "target_data": {"path": str(folder / "target.parquet"), "test": "same"},
            "seeds": 1,
            "in_domain": False,
        },
        "cluster": {"storage_path": str(folder / "runs"), **cluster},
    }
    (folder / "a.yaml").write_text(dump(experiment))
    return folder / "a.yaml"


def weights(run: Path, kind: str) -> dict[str, np.ndarray]:
    return load_file(run / "fits" / kind / "0" / "model" / "model.safetensors")


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_adapt_as_one(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert main(["adapt", str(path), "--out", str(tmp_path / "one"), "--quiet"]) == 0
    before = leftovers()
    group = ["--set", "cluster.num_workers=2", "--set", "cluster.placement=group"]
    assert main(["adapt", str(path), "--out", str(tmp_path / "two"), *group, "--quiet"]) == 0
    assert leftovers() == before
    for kind in ("source_only", "dann"):
        ours, theirs = weights(tmp_path / "one", kind), weights(tmp_path / "two", kind)
        for name in ours:
            np.testing.assert_allclose(theirs[name], ours[name], rtol=0, atol=1e-6, err_msg=name)
    found = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two")]
    assert found[0]["adapted"]["accuracy"]["value"] == pytest.approx(found[1]["adapted"]["accuracy"]["value"])


def test_a_killed_adaptation_goes_on_where_it_was(tmp_path: Path) -> None:
    path, run = write(tmp_path, epochs=60), tmp_path / "run"
    command = [*COMMAND, "adapt", str(path), "--out", str(run), "--quiet"]
    driver = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    under_way, deadline = (
        RunKeeper(Storage.open(str(run / "fits" / "dann" / "0")), 1e9, 1),
        time.monotonic() + 120,
    )
    while under_way.latest()[0] is None:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (run / "fits" / "dann" / "0" / "metrics.json").exists()
    kept = (run / "fits" / "source_only" / "0" / "metrics.json").stat().st_mtime_ns
    assert main(["adapt", str(path), "--out", str(run), "--quiet"]) == 0
    assert (run / "fits" / "source_only" / "0" / "metrics.json").stat().st_mtime_ns == kept
    log = (run / "fits" / "dann" / "0" / "log.txt").read_text()
    assert "resuming from step" in log
    assert main(["adapt", str(path), "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    for kind in ("source_only", "dann"):
        ours, theirs = weights(run, kind), weights(tmp_path / "whole", kind)
        for name in ours:
            np.testing.assert_array_equal(theirs[name], ours[name])
