"""Cross-validation as Ray tasks, and killed with SIGKILL: the same rows, weights and scores as in one go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.session import leftovers
from shoal.experiment import load_experiment
from shoal.verbs.crossval import CrossvalResult, crossval

COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]


REPEATED = "{repeated_stratified: {n_splits: 2, n_repeats: 2}}"
NESTED = "{nested: {outer: 2, inner: 2}}"


def axis(folder: Path, cv: str) -> Path | None:
    if cv != NESTED:
        return None
    trees = '{import: "sklearn.ensemble:RandomForestClassifier", n_estimators: 5}'
    (folder / "axis.yaml").write_text(f"wide: {{model.mlp.hidden: [64]}}\ntrees: {{model: {trees}}}\n")
    return folder / "axis.yaml"


def experiment(folder: Path, epochs: int = 4, cv: str = REPEATED) -> Path:
    pq.write_table(rows(400), folder / "rows.parquet")
    (folder / "small.yaml").write_text(
        f"""\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [16], dropout: 0.1}}}}
training: {{epochs: {epochs}, batch_size: 16, early_stopping: null, optimizer: {{adam: {{learning_rate: 0.01}}}}}}
evaluation: {{cv: {cv}, calibration: temperature}}
cluster: {{storage_path: {folder}/runs, cpus_per_worker: 0.5}}
"""
    )
    return folder / "small.yaml"


def files(run: Path) -> dict[str, bytes]:
    names = ("predictions.parquet", "model.safetensors")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.name in names}


def by_fold(result: CrossvalResult) -> dict[str, object]:
    return {
        (alternative, name): entry["by_fold"]
        for alternative, scores in result.scores.items()
        for name, entry in scores.items()
        if name != "seconds"
    }


def without_seconds(nested: dict[str, Any]) -> dict[str, Any]:
    scores = {name: entry for name, entry in nested.get("scores", {}).items() if name != "seconds"}
    return {**nested, "scores": scores}


@pytest.mark.parametrize(("cv", "fits"), [(REPEATED, 4), (NESTED, 3 * 2 * (2 + 1))])
def test_tasks_and_one_process_give_the_same(ray_cluster: object, tmp_path: Path, cv: str, fits: int) -> None:
    del ray_cluster
    config, done = str(experiment(tmp_path, cv=cv)), {}
    for placement in ("inline", "task"):
        values = load_experiment(config, [f"cluster.placement={placement}"])
        done[placement] = crossval(values, str(tmp_path / placement), compare=axis(tmp_path, cv))
    assert by_fold(done["task"]) == by_fold(done["inline"])
    assert without_seconds(done["task"].nested) == without_seconds(done["inline"].nested)
    assert files(tmp_path / "task") == files(tmp_path / "inline")
    stored = files(tmp_path / "inline")
    assert sum("predictions" in name for name in stored) == fits + 1  # the whole run's, too
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def test_any_number_of_workers_gives_the_same(ray_cluster: object, tmp_path: Path) -> None:
    del ray_cluster
    config, found = str(experiment(tmp_path, cv="2")), []
    for workers in (1, 2, 4):
        values = [f"cluster.num_workers={workers}", "training.precision=fp64", "cluster.cpus_per_worker=0.25"]
        result = crossval(load_experiment(config, values), str(tmp_path / str(workers)))
        found.append(result.scores["as it is"]["log_loss"]["by_fold"])
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=0, atol=1e-9)
    assert leftovers() == {"actors": 0, "placement_groups": 0}


@pytest.mark.slow
def test_a_killed_node_changes_nothing(tmp_path: Path) -> None:
    config, compare = experiment(tmp_path, epochs=10, cv=NESTED), axis(tmp_path, NESTED)
    config.write_text(config.read_text().replace("cpus_per_worker: 0.5", "cpus_per_worker: 1"))
    script = Path(__file__).parent.parent / "support" / "fold_loss.py"
    ended = subprocess.run(
        [sys.executable, str(script), str(config), str(compare), str(tmp_path / "lost")],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        check=False,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    fits = 3 * 2 * (2 + 1)
    assert 0 < int(ended.stdout.rpartition("killed ")[2]) < fits
    whole = crossval(
        load_experiment(str(config), ["cluster.placement=inline"]), str(tmp_path / "whole"), compare=compare
    )
    assert files(tmp_path / "lost") == files(tmp_path / "whole")
    lost = json.loads((tmp_path / "lost" / "metrics.json").read_text())
    assert without_seconds(lost["nested"]) == without_seconds(whole.nested)


@pytest.mark.parametrize("cv", [REPEATED, NESTED])
def test_a_killed_driver_leaves_what_is_done(tmp_path: Path, cv: str) -> None:
    config, run, compare = experiment(tmp_path, epochs=30, cv=cv), tmp_path / "run", axis(tmp_path, cv)
    arguments = ["crossval", str(config), "--quiet", "--set", "cluster.placement=inline"]
    arguments += [] if compare is None else ["--compare", str(compare)]
    first, last = ("fold-002", "fold-004") if compare is None else ("fold-001", "fold-002")
    with subprocess.Popen([*COMMAND, *arguments, "--out", str(run)], env=os.environ) as driver:
        deadline = time.monotonic() + 120
        while not (run / "fits" / first / "metrics.json").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    done = sorted(p.parent.name for p in run.glob("fits/*/metrics.json"))
    assert first in done
    assert last not in done
    before = {name: (run / "fits" / name / "metrics.json").stat().st_mtime_ns for name in done}
    again = crossval(load_experiment(str(config), ["cluster.placement=inline"]), str(run), compare=compare)
    assert {name: (run / "fits" / name / "metrics.json").stat().st_mtime_ns for name in done} == before
    whole = crossval(
        load_experiment(str(config), ["cluster.placement=inline"]), str(tmp_path / "whole"), compare=compare
    )
    assert by_fold(again) == by_fold(whole)
    assert without_seconds(again.nested) == without_seconds(whole.nested)
    assert files(run) == files(tmp_path / "whole")
    assert json.loads((run / "metrics.json").read_text())["crossval"] is not None
