"""Fine-tuning in worker groups and under SIGKILL: what is resumed in any stage equals what was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from shoal.cli.main import main
from shoal.cluster.session import leftovers
from shoal.yaml_file import dump

TESTS = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
GRADUAL = {"unfreeze": {"gradual": {"epochs": 2}}, "rate_decay": 0.5, "l2_sp": {"start": 0.1}}


def write(folder: Path, digits: range, start: Path | None = None, **model: Any) -> Path:
    """An experiment on some digits; its model kills the driver where that is asked for."""
    data = load_digits()
    chosen = np.isin(data.target, digits)
    columns: dict[str, Any] = {f"p{i}": data.data[chosen, i] for i in range(64)}
    pq.write_table(
        pa.table(columns | {"digit": [f"d{c}" for c in data.target[chosen]]}), folder / f"{digits}.parquet"
    )
    model = {"marker": str(folder / "marker"), "at": 10**9, "pause": 0.0, **model}
    experiment = {
        "data": {"path": str(folder / f"{digits}.parquet"), "target": "digit"},
        "model": {"import": "support.modules:Killed", **model},
        "training": {"epochs": 6, "batch_size": 32, "early_stopping": None, "checkpoint": {"every": "0.2s"}},
        "cluster": {"storage_path": str(folder / "runs"), "cpus_per_worker": 0.5},
    }
    if start is not None:
        experiment["transfer"] = {"start": str(start), **GRADUAL}
    (folder / f"{digits}.yaml").write_text(dump(experiment))
    return folder / f"{digits}.yaml"


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    assert main(["train", str(write(folder, range(5))), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_driver_that_is_killed_in_the_second_stage(
    ray_cluster: object, tmp_path: Path, start: Path, workers: int
) -> None:
    del ray_cluster
    run, at = (
        tmp_path / "run",
        random.Random().randrange(70, 110),
    )  # of 6 x 23; the second stage begins with 47
    lease = {"lease": str(run / "lease.json")} if workers > 1 else {}
    config = write(tmp_path, range(5, 10), start, at=at, pause=0.02, **lease)
    arguments = ["train", str(config), "--quiet", "--set", f"cluster.num_workers={workers}"]
    first = subprocess.run(
        [*COMMAND, *arguments, "--out", str(run)], env=ENVIRONMENT, check=False, timeout=300
    )
    assert first.returncode == -signal.SIGKILL
    assert not (run / "metrics.json").exists()
    assert main([*arguments, "--out", str(run)]) == 0
    (resumed,) = json.loads((run / "provenance.json").read_text())["fit"]["resumed_from"]
    assert 0 < resumed < at
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    for name, values in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(weights(run)[name], values, err_msg=name)
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def test_two_workers_give_the_model_of_one(ray_cluster: object, tmp_path: Path, start: Path) -> None:
    del ray_cluster
    config = write(tmp_path, range(5, 10), start)
    for workers in (1, 2):
        arguments = ["train", str(config), "--quiet", "--out", str(tmp_path / f"run {workers}")]
        arguments += ["--set", f"cluster.num_workers={workers}", "--set", "training.precision=fp64"]
        assert main(arguments) == 0
    for name, values in weights(tmp_path / "run 1").items():
        np.testing.assert_allclose(
            weights(tmp_path / "run 2")[name], values, rtol=0, atol=1e-10, err_msg=name
        )
    log = (tmp_path / "run 2" / "log.txt").read_text()
    assert log.count("is trained too") == 1
    assert "stage 2 of 2: body.body.0 is trained too" in log


def test_frozen_layers_under_deepspeed(ray_cluster: object, tmp_path: Path, start: Path) -> None:
    del ray_cluster
    config = write(tmp_path, range(5, 10), start)
    section = json.dumps({"start": str(start), "freeze": "all_but_head"})
    for strategy in ("ddp", "{deepspeed: {zero_stage: 2}}"):
        arguments = ["train", str(config), "--quiet", "--out", str(tmp_path / strategy.strip("{")[:4])]
        arguments += ["--set", "cluster.num_workers=2", "--set", f"training.strategy={strategy}"]
        assert main([*arguments, "--set", f"transfer={section}"]) == 0
    for name, values in weights(tmp_path / "ddp").items():
        np.testing.assert_allclose(weights(tmp_path / "deep")[name], values, rtol=0, atol=1e-5, err_msg=name)
    assert np.array_equal(
        weights(tmp_path / "deep")["body.body.0.weight"], weights(start)["body.body.0.weight"]
    )
