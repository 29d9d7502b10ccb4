"""Cross-validation as Ray tasks, and killed with SIGKILL: the same rows, weights and scores as in one go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from support.tabular import rows

from shoal.cluster.session import leftovers
from shoal.experiment import load_experiment
from shoal.verbs.crossval import CrossvalResult, crossval

COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]


def experiment(folder: Path, epochs: int = 4) -> Path:
    pq.write_table(rows(400), folder / "rows.parquet")
    (folder / "small.yaml").write_text(
        f"""\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [16], dropout: 0.1}}}}
training: {{epochs: {epochs}, batch_size: 16, early_stopping: null, optimizer: {{adam: {{learning_rate: 0.01}}}}}}
evaluation: {{cv: {{repeated_stratified: {{n_splits: 2, n_repeats: 2}}}}, calibration: temperature}}
cluster: {{storage_path: {folder}/runs, cpus_per_worker: 0.5}}
"""
    )
    return folder / "small.yaml"


def files(run: Path) -> dict[str, bytes]:
    names = ("predictions.parquet", "model.safetensors")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.name in names}


def by_fold(result: CrossvalResult) -> dict[str, object]:
    (scores,) = result.scores.values()
    return {name: entry["by_fold"] for name, entry in scores.items() if name != "seconds"}


def test_tasks_and_one_process_give_the_same(ray_cluster: object, tmp_path: Path) -> None:
    del ray_cluster
    config = str(experiment(tmp_path))
    here = crossval(load_experiment(config, ["cluster.placement=inline"]), str(tmp_path / "here"))
    there = crossval(load_experiment(config, ["cluster.placement=task"]), str(tmp_path / "there"))
    assert by_fold(there) == by_fold(here)
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert len(files(tmp_path / "here")) == 9  # two a fit, and the whole run's
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def test_a_killed_driver_leaves_what_is_done(tmp_path: Path) -> None:
    config, run = experiment(tmp_path, epochs=30), tmp_path / "run"
    arguments = ["crossval", str(config), "--quiet", "--set", "cluster.placement=inline"]
    with subprocess.Popen([*COMMAND, *arguments, "--out", str(run)], env=os.environ) as driver:
        deadline = time.monotonic() + 120
        while not (run / "fits" / "fold-002" / "metrics.json").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    done = sorted(p.parent.name for p in run.glob("fits/*/metrics.json"))
    assert "fold-002" in done
    assert "fold-004" not in done
    before = {name: (run / "fits" / name / "metrics.json").stat().st_mtime_ns for name in done}
    again = crossval(load_experiment(str(config), ["cluster.placement=inline"]), str(run))
    assert {name: (run / "fits" / name / "metrics.json").stat().st_mtime_ns for name in done} == before
    whole = crossval(load_experiment(str(config), ["cluster.placement=inline"]), str(tmp_path / "whole"))
    assert by_fold(again) == by_fold(whole)
    assert files(run) == files(tmp_path / "whole")
    assert json.loads((run / "metrics.json").read_text())["crossval"] is not None
