import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.cluster import machine
from shoal.cluster.address import checked_address
from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import ConfigError, ResourceError
from shoal.cluster.resources import Demand, Part, Shape, Totals, _fits, check, plan, resolve_workers


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def workers(count: int, cpus: float = 1.0, gpus: float = 0.0) -> Part:
    return Part("workers", count, cpus, gpus)


@pytest.mark.parametrize(
    ("parts", "total", "message"),
    [
        (
            [workers(3)],
            Totals(2),
            "3 workers x 1 CPU = 3 CPUs; this machine has 2. "
            "Set cluster.num_workers: 2, or cluster.cpus_per_worker: 0.5",
        ),
        (
            [Part("fits", 2, 1.0), workers(4, 2.0)],
            Totals(6, where="the cluster at x:1"),
            "2 fits x 1 CPU + 4 workers x 2 CPUs = 10 CPUs; the cluster at x:1 has 6. "
            "Set cluster.num_workers: 2, or cluster.cpus_per_worker: 1",
        ),
        (
            [workers(2, 1.0, 1.0)],
            Totals(8, 0),
            "2 workers x 1 GPU = 2 GPUs; this machine has 0. Set cluster.gpus_per_worker: 0",
        ),
        (
            [workers(1, 3.0)],
            Totals(2),
            "1 worker x 3 CPUs = 3 CPUs; this machine has 2. Set cluster.cpus_per_worker: 2",
        ),
        (
            [Part("caches", 2, disk=3 * 2**30)],
            Totals(2, disk=2**30),
            "2 caches x 3.0 GiB = 6.0 GiB; this machine has 1.0 GiB. "
            "Set cluster.cache_path to a folder on a larger disk",
        ),
    ],
)
def test_beyond_the_total_is_refused_with_the_sum_and_the_fix(
    parts: list[Part], total: Totals, message: str
) -> None:
    with pytest.raises(ResourceError) as raised:
        check(Demand(tuple(parts)), total)
    assert str(raised.value) == message


def test_the_fix_that_is_offered_fits() -> None:
    for count, cpus, total in itertools.product([2, 3, 7, 40], [0.5, 1.0, 3.0, 8.0], [1.0, 2.0, 5.0, 16.0]):
        demand, totals = Demand((workers(count, cpus),)), Totals(total)
        if demand.total("cpus") <= total:
            check(demand, totals)
            continue
        with pytest.raises(ResourceError) as raised:
            check(demand, totals)
        offers = str(raised.value).partition("Set ")[2].split(", or ")
        assert offers
        for offer in offers:
            name, _, value = offer.rstrip(".").partition(": ")
            if name == "cluster.num_workers":
                check(Demand((workers(int(value), cpus),)), totals)
            else:
                assert name == "cluster.cpus_per_worker"
                check(Demand((workers(count, float(value)),)), totals)


def test_fractions_add_up() -> None:
    check(Demand((workers(10, 0.1),)), Totals(1))
    check(Demand((workers(3, 0.1),)), Totals(0.3))


def test_an_autoscalers_maximum_counts() -> None:
    check(Demand((workers(8),)), Totals(2, nodes=((2, 0),)), Totals(8))
    with pytest.raises(ResourceError, match="has 8 at most, with its autoscaler"):
        check(Demand((workers(9),)), Totals(2), Totals(8))


def test_a_worker_is_not_spread_over_nodes() -> None:
    nodes = Totals(4, where="the cluster", nodes=((2.0, 0.0), (2.0, 0.0)))
    check(Demand((workers(2, 2.0),)), nodes)
    with pytest.raises(ResourceError, match=r"2 workers of 1.5 CPUs .* fit|1 workers of 3 CPUs"):
        check(Demand((workers(1, 3.0),)), nodes)


def test_fitting_agrees_with_trying_everything() -> None:
    for cpus in itertools.product([1.0, 2.0, 3.0], repeat=3):
        for nodes in itertools.product([2.0, 3.0, 4.0], repeat=2):
            possible = any(
                all(
                    sum(c for c, home in zip(cpus, homes, strict=True) if home == n) <= nodes[n]
                    for n in range(len(nodes))
                )
                for homes in itertools.product(range(len(nodes)), repeat=3)
            )
            parts = [Part("workers", 1, c) for c in cpus]
            assert _fits(parts, [(n, 0.0) for n in nodes]) == possible, (cpus, nodes)


@pytest.mark.parametrize(
    ("cluster", "gpus", "shape"),
    [
        ({}, 0, Shape(1, 1.0, 0.0, "inline")),
        ({}, 1, Shape(1, 1.0, 1.0, "inline")),
        ({}, 4, Shape(4, 1.0, 1.0, "group")),
        ({"gpus_per_worker": 2}, 4, Shape(2, 1.0, 2.0, "group")),
        ({"gpus_per_worker": 0}, 4, Shape(1, 1.0, 0.0, "inline")),
        ({"num_workers": 2}, 0, Shape(2, 1.0, 0.0, "group")),
        ({"num_workers": 2, "cpus_per_worker": 0.5}, 0, Shape(2, 0.5, 0.0, "group")),
        ({"num_workers": 1}, 0, Shape(1, 1.0, 0.0, "inline")),
        ({"address": "host:1"}, 0, Shape(1, 1.0, 0.0, "group")),
        ({"address": "local"}, 0, Shape(1, 1.0, 0.0, "inline")),
        ({"placement": "task"}, 4, Shape(1, 1.0, 1.0, "task")),
        ({"placement": "group"}, 0, Shape(1, 1.0, 0.0, "group")),
        ({"num_workers": [2, 8]}, 0, Shape(2, 1.0, 0.0, "group", 8)),
        ({"num_workers": [1, 2]}, 4, Shape(1, 1.0, 1.0, "group", 2)),
    ],
)
def test_auto(cluster: dict[str, object], gpus: float, shape: Shape) -> None:
    assert resolve_workers(ClusterConfig(**cluster), Totals(8, gpus)) == shape


def test_ray_address_makes_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "host:1")
    assert resolve_workers(ClusterConfig(), Totals(8)).placement == "group"


@pytest.mark.parametrize("placement", ["inline", "task"])
def test_several_workers_need_a_group(placement: str) -> None:
    with pytest.raises(
        ConfigError, match=f"placement: {placement} holds one worker, got cluster.num_workers: 2"
    ):
        resolve_workers(ClusterConfig(placement=placement, num_workers=2), Totals(8))


def test_a_group_of_several_sizes_needs_room_for_the_least() -> None:
    shape = Shape(2, 1.0, 0.0, "group", 8)
    assert shape.demand.total("cpus") == 2
    assert (shape.is_elastic, shape.workers) == (True, "2 to 8 workers")
    assert (Shape(2, 1.0, 0.0, "group", 2).workers, Shape(1, 1.0, 0.0, "inline").workers) == (
        "2 workers",
        "1 worker",
    )
    with pytest.raises(ValueError, match="the least and the most workers"):
        ClusterConfig(num_workers=(3, 2))
    with pytest.raises(ConfigError, match=r"holds one worker, got cluster.num_workers: \[1, 2\]"):
        resolve_workers(ClusterConfig(placement="task", num_workers=(1, 2)), Totals(8))


def test_the_sum_is_a_short_table() -> None:
    demand = Demand((workers(3, 1.0, 1.0),)) + Demand((Part("controller", 1), Part("caches", 1, disk=2**31)))
    assert str(demand).splitlines() == [
        "part        count  CPUs  GPUs     disk",
        "workers         3     3     3        -",
        "controller      1     0     0        -",
        "caches          1     0     0  2.0 GiB",
        "sum             5     3     3  2.0 GiB",
    ]


def test_a_plan_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "local_totals", lambda: Totals(2))
    assert plan(ClusterConfig(num_workers=2))[1].total("cpus") == 2
    assert plan(ClusterConfig(cpus_per_worker=64))[0].placement == "inline", "nothing is reserved inline"
    with pytest.raises(ResourceError, match="cluster.num_workers: 2"):
        plan(ClusterConfig(num_workers=3))


def test_control_groups_and_affinity_bound_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    here = machine.local_totals(tmp_path)
    assert (here.cpus, here.gpus) == (8.0, 2.0)
    assert here.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    second = machine.local_totals(tmp_path)
    assert (second.cpus, second.memory) == (1.5, 1_000_000)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000")
    first = machine.local_totals(tmp_path)
    assert (first.cpus, first.memory) == (4.0, 2_000_000)


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("-1", 0), ("2", 1), ("0,1,2", 3)])
def test_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.local_totals(tmp_path).gpus == gpus


@pytest.mark.parametrize(
    "address", ["http://head:8265", "head", "head:", "head:0", "head:99999", "a b:1", "x://y:1"]
)
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(ResourceError, match=f"{address!r} is no address of a Ray cluster"):
        checked_address(address)


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                if answer is None:
                    done.wait(10)
                else:
                    connection.sendall(answer)

        done = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        thread.join()


def test_an_address_that_answers_with_settings_is_good() -> None:
    with server(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6)) as port:
        assert checked_address(f"127.0.0.1:{port}") == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("answer", "says"),
    [(None, "no answer"), (b"", "closed"), (b"HTTP/1.1 400 Bad Request\r\n", "something else")],
)
def test_somebody_else_at_the_address_is_noticed_soon(answer: bytes | None, says: str) -> None:
    with server(answer) as port, pytest.raises(ResourceError, match=f"no Ray cluster answers at .*{says}"):
        checked_address(f"127.0.0.1:{port}", seconds=0.3)


def test_a_closed_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at 127.0.0.1:{port} .*refused"):
        checked_address(f"127.0.0.1:{port}")
    assert checked_address("auto") == "auto"


def test_a_group_is_capped_at_the_shards_there_are() -> None:
    pair = Shape(2, 1.0, 0.0, "group", max_workers=8)
    assert pair.within(4) == Shape(2, 1.0, 0.0, "group", max_workers=4)
    assert pair.within(16) == pair
    assert not pair.within(2).is_elastic
    with pytest.raises(
        ConfigError, match=r"2 workers cannot share 1 logical shard.*data\.shards to at least 2"
    ):
        pair.within(1)


@pytest.mark.parametrize(
    ("cpus", "fix"),
    [
        (8, "Set cluster.num_workers: [1, 8], or cluster.num_workers: 8, or cluster.cpus_per_worker: 0.5"),
        (1, "Set cluster.num_workers: 1, or cluster.cpus_per_worker: 0.1"),
    ],
)
def test_who_asked_for_a_range_is_offered_one_that_fits(cpus: int, fix: str) -> None:
    with pytest.raises(ResourceError) as raised:
        check(Shape(9, 1.0, 0.0, "group", max_workers=12).demand, Totals(cpus))
    assert str(raised.value).endswith(fix)
    if "[1, 8]" in fix:
        check(Shape(1, 1.0, 0.0, "group", max_workers=8).demand, Totals(cpus))
