import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import ray
from ray.util import placement_group

from shoal.cluster import session as session_module
from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import ResourceError
from shoal.cluster.progress import EpochRecord, Silent
from shoal.cluster.relay import RelayReporter, relay
from shoal.cluster.resources import Demand, Part
from shoal.cluster.session import Session, leftovers, session

RECORD = EpochRecord(1, 2, 10, 20, 0.5, "roc_auc", 0.75, True, 1.5, 1000.0)


class Heard(Silent):
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def notice(self, text: str) -> None:
        self.calls.append(("notice", text))

    def stage(self, text: str) -> None:
        self.calls.append(("stage", text))

    def epoch(self, record: EpochRecord) -> None:
        self.calls.append(("epoch", record))

    def advance(self, done: int, total: int, what: str) -> None:
        self.calls.append(("advance", done, total, what))


@pytest.fixture
def holder(ray_cluster: Session):
    """Three of the four CPUs are taken by somebody else."""

    @ray.remote(num_cpus=3)
    class Holder:
        def ready(self) -> bool:
            return True

    actor = Holder.remote()
    ray.get(actor.ready.remote())
    while ray.available_resources().get("CPU", 0) > 1:  # Ray's own count follows a moment later
        time.sleep(0.02)
    yield actor
    ray.kill(actor)
    assert leftovers() == {"actors": 0, "placement_groups": 0}


def workers(count: int, cpus: float = 1.0) -> Demand:
    return Demand((Part("workers", count, cpus),))


def test_an_initialised_ray_is_used_and_left_running(ray_cluster: Session) -> None:
    with session(ClusterConfig(), workers(4)) as inner:
        assert not inner.started
        assert not inner.connected
        assert inner.totals.cpus == 4
    assert ray.is_initialized()


def test_more_than_the_cluster_has_is_refused_with_the_sum(ray_cluster: Session) -> None:
    with (
        pytest.raises(
            ResourceError, match=r"5 workers x 1 CPU = 5 CPUs; .* has 4\. Set cluster.num_workers: 4"
        ),
        session(ClusterConfig(), workers(5)),
    ):
        pytest.fail("the block must not run")


def test_what_others_hold_is_waited_for_and_named(holder: object) -> None:
    heard = Heard()
    start = time.monotonic()
    config = ClusterConfig(wait=timedelta(seconds=1))
    with (
        pytest.raises(ResourceError, match=r"waited 1s for 2 CPUs \(1 free now\)"),
        session(config, workers(2), heard),
    ):
        pytest.fail("the block must not run")
    assert 1 <= time.monotonic() - start < 10
    assert heard.calls == [("notice", "waiting up to 1s for 2 CPUs (1 free now)")]


def test_what_an_autoscaler_may_make_of_the_cluster_is_waited_for(ray_cluster: Session) -> None:
    config = ClusterConfig.model_validate({"wait": "1s", "autoscaler": {"cpus": 8}})
    for count, said in (
        (8, r"waited 1s for 8 CPUs \(4 free now\)"),
        (9, "has 8 at most, with its autoscaler"),
    ):
        with pytest.raises(ResourceError, match=said), session(config, workers(count)):
            pytest.fail("the block must not run")


def test_waiting_ends_when_the_room_is_there(ray_cluster: Session) -> None:
    @ray.remote(num_cpus=3)
    def busy() -> None:
        time.sleep(2)

    reference = busy.remote()
    while ray.available_resources().get("CPU", 0) > 1:
        time.sleep(0.02)
    heard = Heard()
    with session(ClusterConfig(wait=timedelta(seconds=30)), workers(2), heard):
        assert ray.available_resources()["CPU"] == 4
    assert heard.calls == [("notice", "waiting up to 30s for 2 CPUs (1 free now)")]
    ray.get(reference)


def test_leftovers_counts_what_is_alive(holder: object) -> None:
    assert leftovers(within=0) == {"actors": 1, "placement_groups": 0}
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    assert leftovers(within=0) == {"actors": 1, "placement_groups": 1}
    ray.util.remove_placement_group(group)


def test_a_workers_progress_reaches_the_drivers_reporter(ray_cluster: Session) -> None:
    @ray.remote
    def work(key: str) -> int:
        reporter = RelayReporter(key)
        reporter.stage("training")
        reporter.notice("nothing odd")
        for done in range(1, 501):
            reporter.advance(done, 500, "rows")
        reporter.epoch(RECORD)
        reporter.done()
        return os.getpid()

    heard = Heard()
    with relay("runs/one", heard):
        assert ray.get(work.remote("runs/one")) != os.getpid()
    assert [c for c in heard.calls if c[0] != "advance"] == [
        ("stage", "training"),
        ("notice", "nothing odd"),
        ("epoch", RECORD),
    ]
    advances = [c for c in heard.calls if c[0] == "advance"]
    assert advances[-1] == ("advance", 500, 500, "rows")
    assert len(advances) < 50, "the store is not flooded with every step"


def test_progress_of_another_run_or_an_earlier_one_is_not_told(ray_cluster: Session) -> None:
    RelayReporter("runs/b").notice("from before")
    heard = Heard()
    with relay("runs/b", heard):
        RelayReporter("runs/bb").notice("another's")
        RelayReporter("runs/b").notice("mine")
    assert heard.calls == [("notice", "mine")]


def test_what_the_reporter_raises_is_raised_by_the_driver(ray_cluster: Session) -> None:
    class Full(Silent):
        def notice(self, text: str) -> None:
            raise ResourceError("the log's disk is full")

    with pytest.raises(ResourceError, match="disk is full"), relay("runs/c", Full()):
        RelayReporter("runs/c").notice("x")


KILLED = """
import time, ray
from ray.util import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Strategy
from shoal.cluster.config import ClusterConfig
from shoal.cluster.resources import Demand
from shoal.cluster.session import session

@ray.remote(num_cpus=1)
class Worker:
    def ready(self):
        return True

with session(ClusterConfig(), Demand()):
    group = placement_group([{"CPU": 1}] * 2)
    workers = [Worker.options(scheduling_strategy=Strategy(group, i)).remote() for i in range(2)]
    ray.get([worker.ready.remote() for worker in workers])
    print("up", flush=True)
    time.sleep(60)
"""


def test_a_killed_driver_leaves_nothing_in_the_cluster(ray_cluster: Session) -> None:
    before = leftovers(within=0)
    assert before == {"actors": 0, "placement_groups": 0}
    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
    }
    with subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"up\n"
            assert leftovers(within=0) == {"actors": 2, "placement_groups": 1}
        finally:
            driver.kill()
    assert leftovers(within=20) == before


LIFE = """
import json, os, sys, ray
from shoal.cluster.config import ClusterConfig
from shoal.cluster.resources import Demand
from shoal.cluster.session import session
seen = {"before": sorted(k for k in os.environ if k.startswith("RAY_") and k != "RAY_CLIENT_MODE")}
@ray.remote
def inside():
    import psutil
    tree = [p.pid for p in psutil.Process(os.getppid()).children(recursive=True)]
    return {"stats": os.environ.get("RAY_USAGE_STATS_ENABLED"), "cpus": ray.cluster_resources()["CPU"],
            "path": "EXTRA" in "".join(sys.path), "raylet": os.getppid(), "tree": tree}
import signal
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with session(ClusterConfig(), Demand()):
        seen |= ray.get(inside.remote())
        seen["sigterm"] = signal.getsignal(signal.SIGTERM) == signal.default_int_handler
        raise KeyboardInterrupt
except KeyboardInterrupt:
    seen["interrupted"] = True
seen["after"] = sorted(k for k in os.environ if k.startswith("RAY_") and k != "RAY_CLIENT_MODE")
seen["initialised"] = ray.is_initialized()
print("SEEN" + json.dumps(seen))
"""


def test_a_session_starts_its_own_ray_quietly_and_takes_all_of_it_down(tmp_path: Path) -> None:
    # Starts its own Ray: start and stop are what it is about.
    (tmp_path / "EXTRA").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(tmp_path / "EXTRA"), "HOME": str(home)}
    done = _python(LIFE, environment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.partition("SEEN")[2])
    assert done.stdout.startswith("SEEN"), "Ray printed to stdout"
    assert done.stderr == ""
    assert seen["stats"] == "0"
    assert seen["cpus"] == len(os.sched_getaffinity(0))
    assert seen["path"]
    assert seen["interrupted"]
    assert seen["sigterm"], "the process's own answer to SIGTERM stays"
    assert not seen["initialised"]
    assert seen["before"] == seen["after"]
    assert not list(home.rglob("*token*")), "no token is written to the home folder"
    deadline = time.monotonic() + 10
    while (
        alive := [p for p in [seen["raylet"], *seen["tree"]] if _alive(p)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive == []


def _alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ray_address_counts_as_an_address(ray_cluster: Session, tmp_path: Path) -> None:
    # A second process connects to the shared Ray; it starts none.
    code = """
import os, ray
from shoal.cluster.config import ClusterConfig
from shoal.cluster.resources import Demand, plan
from shoal.cluster.session import session
with session(ClusterConfig(), Demand()) as found:
    print(found.connected, found.started, found.totals.cpus)
print(ray.is_initialized(), plan(ClusterConfig(num_workers=1, gpus_per_worker=0))[0].placement)
"""
    address = ray.get_runtime_context().gcs_address
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    environment = os.environ | {"RAY_ADDRESS": address} | token
    done = _python(code, environment)
    assert done.stdout.splitlines() == ["True False 4.0", "False group"], done.stderr


CONNECTS = """
import ray
from shoal.cluster.config import ClusterConfig
from shoal.cluster.resources import Demand
from shoal.cluster.session import session

@ray.remote(num_cpus=0)
class Actor:
    def number(self):
        return 7

with session(ClusterConfig(), Demand()):
    print(ray.get(Actor.remote().number.remote(), timeout=30))
"""


def _connect(address: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return _python(CONNECTS, environment | {"HOME": str(home), "RAY_ADDRESS": address, **variables})


def _home_with_token(folder: Path, token: str) -> Path:
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(token)
    return folder


def test_a_token_in_the_home_folder_is_found_without_a_mode(ray_cluster: Session, tmp_path: Path) -> None:
    done = _connect(ray.get_runtime_context().gcs_address, _home_with_token(tmp_path, _token()))
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@pytest.mark.parametrize(
    "variables",
    [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}, {}],
    ids=["wrong", "disabled", "none"],
)
def test_a_wrong_or_missing_token_is_named_at_once(
    ray_cluster: Session, tmp_path: Path, variables: dict[str, str]
) -> None:
    address = ray.get_runtime_context().gcs_address
    start = time.monotonic()
    denied = _connect(address, tmp_path, **variables)
    assert time.monotonic() - start < 15, "Ray's own twenty tries are not waited for"
    assert denied.returncode == 1
    last = denied.stderr.strip().splitlines()[-1]
    assert last.startswith("shoal.cluster.errors.ResourceError: cannot use the cluster at " + address)
    assert "RAY_AUTH_TOKEN" in last


def test_a_server_that_greets_and_then_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_KNOCK_SECONDS", 2)
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            kept = []
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:  # the listener is closed: the test is over
                    break
                kept[-1].sendall(settings)
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            with pytest.raises(
                ResourceError, match=f"{address}: it does not answer within 2 s; check cluster.address"
            ):
                session_module._connect(address, ClusterConfig())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.slow  # starts a second cluster
def test_a_cluster_without_tokens_is_used_though_a_token_lies_at_home(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # its sockets' paths must be
        _use_a_cluster_without_tokens(Path(short), _home_with_token(tmp_path, "0" * 64))


def _use_a_cluster_without_tokens(folder: Path, home: Path) -> None:
    # With tokens on, Ray connects to such a cluster and its actors then never start.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    options = [
        "--head",
        "--port=0",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--block",
    ]
    command = [str(Path(sys.executable).with_name("ray")), "start", *options]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        written = folder / "ray" / "ray_current_cluster"
        deadline = time.monotonic() + 60
        while not written.exists():
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(0.2)  # `ray start` writes it when the head is up, and tells in no other way
        done = _connect(written.read_text(), home)
        assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
    finally:
        head.terminate()
        head.wait(30)


def _python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _token() -> str:
    return session_module._TOKEN
