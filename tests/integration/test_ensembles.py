"""Ensembles as Ray tasks, and killed with SIGKILL: the same weights and predictions as in one go in one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.session import leftovers
from shoal.experiment import load_experiment
from shoal.verbs.fit import train

COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]
ENSEMBLES = ("costing", "metacost")


def experiment(folder: Path, ensemble: str, epochs: int = 3) -> Path:
    pq.write_table(rows(400), folder / "rows.parquet")
    (folder / "small.yaml").write_text(
        f"""\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [16], dropout: 0.1}}}}
training:
  epochs: {epochs}
  batch_size: 16
  early_stopping: null
  optimizer: {{adam: {{learning_rate: 0.01}}}}
  ensemble: {{{ensemble}: {{members: 4}}}}
  checkpoint: {{every: 1s}}
evaluation: {{replicates: 100, costs: {{false_positive: 1, false_negative: 4}}}}
cluster: {{storage_path: {folder}/runs, cpus_per_worker: 1, placement: inline}}
"""
    )
    return folder / "small.yaml"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a task of one CPU has."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def started(config: Path, run: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*COMMAND, "train", str(config), "--quiet", "--out", str(run)], env=os.environ.copy()
    )


def wait_for(path: Path, driver: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(run: Path) -> dict[str, bytes]:
    names = ("predictions.parquet", "model/model.safetensors", "model/model.json")
    return {name: (run / name).read_bytes() for name in names}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_tasks_and_one_process_give_the_same(ray_cluster: object, tmp_path: Path, ensemble: str) -> None:
    del ray_cluster
    config = str(experiment(tmp_path, ensemble))
    for placement in ("inline", "task"):
        train(load_experiment(config, [f"cluster.placement={placement}"]), str(tmp_path / placement))
    assert files(tmp_path / "task") == files(tmp_path / "inline")
    log = (tmp_path / "task" / "log.txt").read_text()
    assert "members at a time" in log
    assert leftovers() == {"actors": 0, "placement_groups": 0}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path, ensemble: str) -> None:
    config, run = experiment(tmp_path, ensemble, epochs=30), tmp_path / "run"
    with started(config, run) as driver:
        wait_for(run / "members" / "0002" / "outcome.json", driver)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    assert not (run / "members" / "0004" / "outcome.json").exists()
    done = {p.parent.name for p in run.glob("members/*/outcome.json")}
    train(load_experiment(str(config)), str(run))
    log = (run / "log.txt").read_text()
    assert f"{len(done)} of 4 members are there already" in log
    train(load_experiment(str(config)), str(tmp_path / "whole"))
    assert files(run) == files(tmp_path / "whole")


def test_a_member_that_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config, run = experiment(tmp_path, "costing", epochs=100), tmp_path / "run"
    with started(config, run) as driver:
        wait_for(run / "members" / "0002" / "logs" / "steps.json", driver)
        driver.send_signal(signal.SIGTERM)
    assert driver.returncode == 130
    assert (run / "members" / "0001" / "outcome.json").exists()
    assert not (run / "members" / "0002" / "outcome.json").exists()
    assert list(run.glob("members/0002/checkpoints/*"))
    train(load_experiment(str(config)), str(run))
    assert "1 of 4 members are there already" in (run / "log.txt").read_text()
    train(load_experiment(str(config)), str(tmp_path / "whole"))
    assert files(run) == files(tmp_path / "whole")
