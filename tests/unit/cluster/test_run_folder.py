import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import lease as lease_module
from shoal.cluster.errors import ConfigError, InUseError, RunError, ShoalError, StorageError
from shoal.cluster.lease import LEASE, held, process_start
from shoal.cluster.progress import Silent
from shoal.cluster.run_folder import CONFIG, RunFolder, difference, to_yaml
from shoal.cluster.storage import Storage

EXPERIMENT: dict[str, Any] = {
    "seed": 0,
    "data": {"path": ["a.parquet"], "target": ["y"], "positive": "no", "types": {}},
    "training": {"optimizer": {"adam": {"learning_rate": 1e-3}}, "epochs": 3},
    "cluster": {"num_workers": 2},
}


def changed(**sections: Any) -> dict[str, Any]:
    return {**EXPERIMENT, **sections}


class Heard(Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(str(tmp_path / "run"))


def test_the_first_claim_writes_the_experiment_and_ends_without_a_lease(run: RunFolder) -> None:
    with run.claim(EXPERIMENT):
        assert run.list() == [CONFIG, LEASE]
        lease = run.read_json(LEASE)
        assert (lease["host"], lease["pid"]) == (socket.gethostname(), os.getpid())
    assert run.list() == [CONFIG]
    assert run.config() == EXPERIMENT
    assert "positive: no" in run.read_bytes(CONFIG).decode(), "YAML 1.2: no is a string"
    assert "learning_rate: 0.001" in run.read_bytes(CONFIG).decode()


def test_the_same_experiment_on_another_cluster_is_the_same_run(run: RunFolder) -> None:
    for cluster in ({"num_workers": 2}, {"num_workers": 3, "address": "x:1"}):
        with run.claim(changed(cluster=cluster)):
            pass
    assert run.config() == EXPERIMENT


def test_a_tuple_is_a_list(run: RunFolder) -> None:
    for path in (("a.parquet",), ["a.parquet"]):
        with run.claim(changed(data={"path": path, "target": ["y"]})):
            pass


def test_a_changed_experiment_is_refused_with_the_difference(run: RunFolder) -> None:
    with run.claim(EXPERIMENT):
        run.write_text("metrics.json", "{}")
    other = changed(
        training={"optimizer": {"sgd": {"learning_rate": 0.1}}, "epochs": 5},
        data={**EXPERIMENT["data"], "path": ["s3://KEY:SECRET@b/x"]},
    )
    with pytest.raises(ConfigError) as raised, run.claim(other):
        pytest.fail("the block must not run")
    lines = str(raised.value).splitlines()
    assert "belongs to another experiment" in lines[0]
    assert lines[1:-1] == [
        "  data.path: ['a.parquet'] -> ['s3://***@b/x']",
        "  training.epochs: 3 -> 5",
        "  training.optimizer.adam.learning_rate: 0.001 -> (absent)",
        "  training.optimizer.sgd.learning_rate: (absent) -> 0.1",
    ]
    assert "--out" in lines[-1]
    assert run.list() == [CONFIG, "metrics.json"], "earlier results stay, and the lease is released"
    assert run.config() == EXPERIMENT


def test_a_run_that_came_to_nothing_gives_its_folder_to_the_next_experiment(run: RunFolder) -> None:
    with run.claim(EXPERIMENT):
        run.write_text("log.txt", "training\n")
        run.write_text("logs/worker-0.txt", "error\n")
    with run.claim(changed(seed=1)):
        assert run.config() == changed(seed=1)
        assert not run.exists("logs"), "they are of the other experiment"
        run.write_text("checkpoints/1/state.json", "{}")
    with pytest.raises(ConfigError, match="another experiment"), run.claim(EXPERIMENT):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name: site\n",
        "- a\n",
        "a: [",
        "data: {path: [a.parquet]}\n",
        "data: train.csv\nseed: 1\n",
        "data: {path: [a.parquet], target: [y]}\ncluster: {}\nseed: x\n",
        "data: {path: a.csv, target: y}\ncluster: k8s\nseed: 1\n",
    ],
)
def test_a_config_that_is_not_of_a_run_is_kept(run: RunFolder, text: str) -> None:
    run.write_text(CONFIG, text)
    with pytest.raises(
        StorageError, match=r"not Shoal's, .* stays as it is: restore it, or use another"
    ) as raised:
        run.claim(EXPERIMENT).__enter__()
    assert "--out" not in str(raised.value), "report and predict have no such option"
    assert "delete" not in str(raised.value)
    assert run.read_bytes(CONFIG).decode() == text


def test_types_matter_to_the_difference() -> None:
    assert difference({"a": 1}, {"a": "1"}) == ["a: 1 -> 1"]
    assert difference({"a": {}}, {"a": {}}) == []
    assert difference({"a": {}}, {"a": {"b": 1}}) == ["a: {} -> (absent)", "a.b: (absent) -> 1"]


def test_credentials_are_not_stored_but_the_run_is_found_again(run: RunFolder) -> None:
    for secret in ("SECRET", "ROTATED"):
        with run.claim(changed(data={"path": [f"s3://KEY:{secret}@bucket/x"], "target": ["y"]})):
            pass
    assert "SECRET" not in run.read_bytes(CONFIG).decode()
    assert "SECRET" not in to_yaml({"p": "s3://KEY:SECRET@bucket/x"})


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(StorageError, match=r"is no run folder: .*thesis\.tex"),
        RunFolder.open(str(tmp_path)).claim(EXPERIMENT),
    ):
        pytest.fail("the block must not run")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["metrics.json", "manifest.json"])
def test_the_last_file_says_complete(run: RunFolder, name: str) -> None:
    with run.claim(EXPERIMENT):
        assert not run.is_complete
        run.write_text(name, "{}")
    assert RunFolder.open(run.uri).is_complete
    assert type(run.storage) is Storage


def test_a_claim_that_fails_releases_the_lease(run: RunFolder) -> None:
    def fails() -> None:
        with run.claim(EXPERIMENT):
            raise RunError("mid-run")

    with pytest.raises(RunError, match="mid-run"):
        fails()
    assert run.list() == [CONFIG]


HELD: dict[str, Any] = {"data": {"path": ["a"], "target": ["y"]}, "cluster": {}, "seed": 0}
HOLD = """
import sys, time
from shoal.cluster.run_folder import RunFolder
with RunFolder.open(sys.argv[1]).claim({"data": {"path": ["a"], "target": ["y"]}, "cluster": {}, "seed": 0}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_live_driver_keeps_others_out_and_a_killed_one_is_taken_over(run: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, run.uri], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with (
                pytest.raises(
                    StorageError, match=rf"in use by process {other.pid} on {socket.gethostname()} \(since 20"
                ),
                run.claim(HELD),
            ):
                pytest.fail("the block must not run")
        finally:
            other.kill()
    heard = Heard()
    with run.claim(HELD, heard):
        pass
    assert len(heard.notices) == 1
    assert f"taking over from process {other.pid}" in heard.notices[0]


RACE = """
import sys
from shoal.cluster.errors import StorageError
from shoal.cluster.run_folder import RunFolder
print("ready", flush=True)
sys.stdin.readline()
try:
    with RunFolder.open(sys.argv[1]).claim({"data": {"path": ["a"], "target": ["y"]}, "cluster": {}, "seed": 0}):
        print("won", flush=True)
        sys.stdin.read()
except StorageError:
    print("refused", flush=True)
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_drivers_at_once_one_wins(run: RunFolder, stale: bool) -> None:
    if stale:
        run.write_json(
            LEASE, {"host": socket.gethostname(), "pid": 2**22 + 1, "process_start": "1", "token": "x"}
        )
        run.write_text(CONFIG, to_yaml(HELD))
    command = [sys.executable, "-c", RACE, run.uri]
    drivers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    try:
        assert [driver.stdout.readline() for driver in drivers if driver.stdout] == ["ready\n"] * 3
        for driver in drivers:
            assert driver.stdin is not None
            driver.stdin.write("go\n")
            driver.stdin.flush()
        # The winner holds its lease until all have answered.
        assert sorted(driver.stdout.readline() for driver in drivers if driver.stdout) == (
            ["refused\n"] * 2 + ["won\n"]
        )
        for driver in drivers:
            driver.communicate(timeout=60)
    finally:
        for driver in drivers:
            driver.kill()


def test_a_pid_given_to_another_process_is_not_the_driver(run: RunFolder) -> None:
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "process_start": "not mine", "token": "x"}
    run.write_json(LEASE, lease)
    with run.claim(EXPERIMENT):
        pass
    assert process_start(os.getpid()) == process_start(os.getpid()) is not None


def test_a_process_that_is_gone_has_no_start(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while process_start(done.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_start(done.pid) is None, "a zombie runs no more"
    done.wait()
    assert process_start(done.pid) is None


def _elsewhere(age: float) -> dict[str, Any]:
    seen = time.time() - age
    return {"host": "elsewhere", "pid": 1, "since": 0.0, "seen": seen, "token": "x"}


@pytest.mark.parametrize(("age", "seconds"), [(130.0, 0.0), (118.0, 2.0)])
def test_another_hosts_lease_ends_two_minutes_after_its_last_sign_and_is_waited_for(
    run: RunFolder, age: float, seconds: float
) -> None:
    run.write_json(LEASE, _elsewhere(age))
    began = time.monotonic()
    with run.claim(EXPERIMENT):
        assert seconds - 0.2 <= time.monotonic() - began < seconds + 3


def test_another_hosts_driver_that_shows_a_sign_of_life_is_not_waited_for(run: RunFolder) -> None:
    run.write_json(LEASE, _elsewhere(100.0))
    sign = threading.Timer(0.5, lambda: run.write_json(LEASE, _elsewhere(0.0)))
    sign.start()
    began = time.monotonic()
    with (
        pytest.raises(StorageError, match="in use by process 1 on elsewhere .*120 s"),
        run.claim(EXPERIMENT),
    ):
        pytest.fail("the block must not run")
    assert 0.4 < time.monotonic() - began < 10
    sign.join()


def test_a_lease_is_renewed(run: RunFolder) -> None:
    with held(run, renew=0.05):
        first = run.read_json(LEASE)
        deadline = time.monotonic() + 10
        while (now := run.read_json(LEASE))["seen"] == first["seen"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert now["seen"] > first["seen"]
        assert now["since"] == first["since"]


def test_a_driver_that_lost_its_lease_says_so_and_leaves_the_others_alone(run: RunFolder) -> None:
    theirs = {"host": "elsewhere", "pid": 7, "token": "theirs", "since": time.time(), "seen": time.time()}

    def loses() -> None:
        with held(run, renew=0.05) as lease:
            run.write_json(LEASE, theirs)
            deadline = time.monotonic() + 10
            while lease.lost_to is None and time.monotonic() < deadline:
                time.sleep(0.01)

    with pytest.raises(RunError, match="process 7 on elsewhere .* took over"):
        loses()
    assert run.read_json(LEASE) == theirs


def test_on_an_object_store_the_last_writer_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RunFolder.open("memory://runs/one")
    with remote.claim(EXPERIMENT):
        pass
    other = {"host": "elsewhere", "pid": 7, "token": "theirs", "since": time.time(), "seen": time.time()}
    monkeypatch.setattr(lease_module.time, "sleep", lambda _: remote.write_json(LEASE, other))
    with pytest.raises(ShoalError, match="in use by process 7 on elsewhere"), remote.claim(EXPERIMENT):
        pytest.fail("the block must not run")
    assert json.loads(remote.read_bytes(LEASE)) == other
    remote.delete()


def test_a_folder_in_use_is_waited_for(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path / "run"))
    first = held(storage)
    first.__enter__()
    with pytest.raises(InUseError, match="is in use by process"), held(storage):
        pytest.fail("two hold one folder")
    release = threading.Timer(0.6, first.__exit__, (None, None, None))
    release.start()
    began = time.monotonic()
    with held(storage, wait=30):
        assert 0.3 < time.monotonic() - began < 20
    release.join()
    assert not storage.exists("lease.json")


def test_checkpoints_are_no_difference_and_values_are_shown_as_in_yaml() -> None:
    old = {"training": {"checkpoint": None, "epochs": 3}, "seed": None}
    new = {"training": {"checkpoint": {"keep": 2}, "epochs": 3}, "seed": True}
    assert difference(old, new) == ["seed: null -> true"]
