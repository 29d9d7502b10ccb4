"""Drivers and nodes that are killed at random steps: what is resumed equals what was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
from shoal.experiment import load_experiment
from shoal.verbs import train
from shoal.yaml_file import dump

TESTS = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


def experiment(folder: Path, **killed: Any) -> Path:
    killed = {"marker": str(folder / "marker"), **killed} if killed else {}
    data = load_digits()
    columns: dict[str, Any] = {f"p{i}": data.data[:, i] for i in range(64)}
    pq.write_table(pa.table(columns | {"eight": data.target == 8}), folder / "digits.parquet")
    (folder / "killed.yaml").write_text(
        dump(
            {
                "data": {"path": str(folder / "digits.parquet"), "target": "eight"},
                "model": {"import": "support.modules:Killed", **killed},
                "training": {
                    "epochs": 6,
                    "batch_size": 64,
                    "early_stopping": None,
                    "checkpoint": {"every": "0.2s"},
                },
                "cluster": {"storage_path": str(folder / "runs")},
            }
        )
    )
    return folder / "killed.yaml"


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def fit_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "provenance.json").read_text())["fit"]  # type: ignore[no-any-return]


def resumed_from(run: Path) -> list[int]:
    return fit_of(run)["resumed_from"]  # type: ignore[no-any-return]


def assert_equal(run: Path, whole: Path) -> None:
    for name, values in weights(whole).items():
        np.testing.assert_array_equal(weights(run)[name], values, err_msg=name)
    assert pq.read_table(run / "predictions.parquet").equals(pq.read_table(whole / "predictions.parquet"))
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("workers", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "{deepspeed: {zero_stage: 3}}")]
)
def test_a_killed_driver(
    ray_cluster: object,
    tmp_path: Path,
    workers: int,
    strategy: str,
    capsys: Any,
    record_property: Callable[[str, object], None],
) -> None:
    del ray_cluster
    at = random.Random().randrange(60, 100)
    run = tmp_path / "run"
    lease = {"lease": str(run / "lease.json")} if workers > 1 else {}
    config = experiment(tmp_path, at=at, **lease)
    arguments = ["train", str(config), "--quiet", "--set", f"cluster.num_workers={workers}"]
    arguments += ["--set", "cluster.cpus_per_worker=0.5", "--set", f"training.strategy={strategy}"]
    first = subprocess.run(
        [*COMMAND, *arguments, "--out", str(run)], env=ENVIRONMENT, check=False, timeout=120
    )
    assert first.returncode == -signal.SIGKILL
    assert (tmp_path / "marker").exists()
    assert not (run / "metrics.json").exists()

    assert main([*arguments[:2], "--out", str(run), *arguments[3:]]) == 0
    assert "resuming from step" in (run / "log.txt").read_text()
    (start,) = resumed_from(run)
    done = at - (2 if workers > 1 else 0)  # the proof of a group passes forward twice
    assert 0 < start < done, f"killed in step {done}"
    record_property("steps_repeated", done - start)
    # The steps of the last moment are not known of.
    assert 0 <= fit_of(run)["repeated"] <= done - start
    assert not (run / "logs" / "steps.json").exists()

    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert resumed_from(tmp_path / "whole") == []
    assert_equal(run, tmp_path / "whole")
    assert leftovers() == {"actors": 0, "placement_groups": 0}
    capsys.readouterr()


def test_sigterm_to_all_processes_of_a_group(ray_cluster: object, tmp_path: Path, capsys: Any) -> None:
    """As `timeout` and batch systems send it: to the whole process group, Ray's processes too, twice to the driver."""
    del ray_cluster
    run = tmp_path / "run"
    arguments = ["train", str(experiment(tmp_path, at=10**9, pause=0.05)), "--out", str(run), "--quiet"]
    arguments += ["--set", "cluster.num_workers=2", "--set", "cluster.cpus_per_worker=0.5"]
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        while driver.poll() is None and "epoch 1" not in _said(run):
            time.sleep(0.1)
        driver.terminate()
        os.killpg(driver.pid, signal.SIGTERM)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert said.startswith("error: stopped after step "), said
    assert "with a checkpoint" in said
    assert not (run / "lease.json").exists()
    assert main(arguments) == 0
    assert resumed_from(run) == [int(said.split()[4])]
    capsys.readouterr()


def _said(run: Path) -> str:
    log = run / "log.txt"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("how", ["kill", "notice"])
def test_a_killed_node(tmp_path: Path, how: str) -> None:
    # With a notice the steps take longer: Ray Train looks for notices every 5 s.
    config = experiment(tmp_path, at=10**9, pause=0.1 if how == "notice" else 0.02)
    lose_a_node(tmp_path, config, how)
    (start,) = resumed_from(tmp_path / "lost")
    assert start > 0
    assert resumed_from(tmp_path / "whole") == []
    assert_equal(tmp_path / "lost", tmp_path / "whole")


@pytest.mark.slow
def test_lost_capacity_is_not_waited_for_without_end(tmp_path: Path) -> None:
    said = lose_a_node(tmp_path, experiment(tmp_path, at=10**9, pause=0.1), "capacity")
    assert "workers were lost, and the cluster had no room for 2 within 15s; the same command goes on" in said
    assert list((tmp_path / "lost").glob("checkpoints/*/step-*"))
    assert not (tmp_path / "lost" / "metrics.json").exists()


def lose_a_node(tmp_path: Path, config: Path, how: str) -> str:
    script = TESTS / "support" / "node_loss.py"
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, str(script), str(config), str(tmp_path / "lost"), str(tmp_path / "whole"), how],
        env=environment,
        check=False,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "aylet" not in ended.stdout + ended.stderr, "Ray's own messages stay away"
    return ended.stdout


def test_a_group_grows_and_shrinks_with_its_cluster(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    text = config.read_text().replace("modules:Killed", "modules:Slow").replace("epochs: 6", "epochs: 60")
    config.write_text(text.replace("batch_size: 64", "batch_size: 64\n  precision: fp64"))
    script = TESTS / "support" / "growth.py"
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, str(script), str(config), str(tmp_path / "run")],
        env=environment,
        check=False,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    first, second = resumed_from(tmp_path / "run")
    assert 0 < first < second
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "there is room for 2 workers: they go on in place of 1, from a checkpoint" in said
    assert "was lost; the group starts again" in said
    train(load_experiment(str(config), ["cluster.num_workers=1"]), str(tmp_path / "whole"))
    for name, values in weights(tmp_path / "whole").items():
        np.testing.assert_allclose(weights(tmp_path / "run")[name], values, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(20))
def test_a_driver_that_is_killed_many_times(
    ray_cluster: object,
    tmp_path: Path,
    repeat: int,
    capsys: Any,
    record_property: Callable[[str, object], None],
) -> None:
    stage = repeat // 2 % 5  # of ZeRO; the last stands for DDP
    strategy = f"{{deepspeed: {{zero_stage: {stage}}}}}" if repeat % 2 and stage < 4 else "ddp"
    test_a_killed_driver(ray_cluster, tmp_path, 1 + repeat % 2, strategy, capsys, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(20))
def test_a_node_that_is_killed_many_times(tmp_path: Path, repeat: int) -> None:
    test_a_killed_node(tmp_path, "notice" if repeat % 4 == 3 else "kill")
