"""The cluster session: Ray for as long as a block runs; this module imports ray."""

import logging
import math
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray._private import services as ray_services
from ray._private import worker as ray_worker
from ray.exceptions import AuthenticationError

from shoal.cluster.address import checked_address
from shoal.cluster.config import ClusterConfig, format_duration
from shoal.cluster.errors import ResourceError
from shoal.cluster.machine import local_totals
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Demand, Totals, address_of, check

_SILENT = Silent()
_POLL_SECONDS = 0.5
# One a cluster, started by whoever needs it first, used again by every later run; it holds nothing.
_RAYS_OWN = ("_AutoscalingCoordinatorActor",)
_KNOCK_SECONDS = 15
_TURNED_AWAY = 77
_KNOCK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit(int(sys.argv[2]))
"""
_OBJECT_STORE = 1 << 30  # rows go through memory-mapped shards, not through Ray's store
_TOKEN = secrets.token_hex(32)  # Ray's loader keeps the first one it sees, so one a process


@dataclass(frozen=True)
class Session:
    """A connection to Ray.

    Parameters
    ----------
    address
        The cluster's, None for one that was started here.
    totals
        What the cluster has.
    started, connected
        Whether Ray was started, or connected to, by this session; what it found is left as it was.
    """

    address: str | None
    totals: Totals
    started: bool
    connected: bool


@contextmanager
def session(
    config: ClusterConfig, demand: Demand | Callable[[Totals], Demand], reporter: Reporter = _SILENT
) -> Iterator[Session]:
    """Connect to Ray, starting a local one where no address is given, until the block ends.

    An initialised Ray is used as it is and left as it is. The whole job's resources are compared first
    (contract 9): what the cluster can never give is refused; what others hold is waited for.

    Parameters
    ----------
    config
        The `cluster` section.
    demand
        The resource sum, or how to find it from what the cluster has.
    reporter
        Hears what is being waited for.

    Raises
    ------
    ResourceError
        If the cluster cannot be reached, has too little, or stays busy for longer than `cluster.wait`.
    """
    address = address_of(config)
    with ray_quiet(config.debug):
        if address is None and not ray.is_initialized():
            # Refused before Ray takes its seconds to start.
            local = local_totals()
            check(demand if isinstance(demand, Demand) else demand(local), local)
        before = ray.is_initialized()
        if not before:
            _start(config) if address is None else _connect(address, config)
        try:
            totals = _totals(address)
            wanted = demand if isinstance(demand, Demand) else demand(totals)
            maximum = _maximum(config, totals)
            check(wanted, totals, maximum)
            wait_for(wanted, config, reporter, growing=maximum is not None)
            yield Session(address, totals, started=not before and address is None, connected=not before)
        finally:
            if not before:
                ray.shutdown()


def cluster_totals(config: ClusterConfig) -> Totals:
    """Ask a cluster what it has.

    Raises
    ------
    ResourceError
        If it cannot be reached.
    """
    with session(config, Demand()) as connected:
        return connected.totals


def leftovers(within: float = 5.0) -> dict[str, int]:
    """Count the actors and placement groups that are alive in the cluster, from Ray's own state.

    Parameters
    ----------
    within
        Seconds to wait for those that are just ending.

    Returns
    -------
    dict of str to int
        ``actors`` and ``placement_groups`` of all jobs, so that a killed driver's are seen by the next one.
        Ray's own helpers that live as long as the cluster are not counted.
    """
    from ray._private.state import actors
    from ray.util import placement_group_table

    deadline = time.monotonic() + within
    while True:
        states: list[dict[str, Any]] = list(actors().values())
        alive = sum(a["State"] != "DEAD" and a["ActorClassName"] not in _RAYS_OWN for a in states)
        groups = sum(g["state"] != "REMOVED" for g in placement_group_table().values())
        if alive + groups == 0 or time.monotonic() > deadline:
            return {"actors": alive, "placement_groups": groups}
        time.sleep(0.05)


def wait_for(demand: Demand, config: ClusterConfig, reporter: Reporter, growing: bool = False) -> None:
    """Wait until the cluster has room for the demand, at most `cluster.wait`.

    Parameters
    ----------
    growing
        Whether an autoscaler may add nodes; it is then asked to.

    Raises
    ------
    ResourceError
        With what was missing until the end.
    """
    deadline = time.monotonic() + config.wait.total_seconds()
    said = ""
    try:
        while missing := _missing(demand):
            if growing and not said:
                from ray.autoscaler.sdk import request_resources

                request_resources(bundles=_bundles(demand))
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"waited {format_duration(config.wait)} for {missing}; others still hold them. Try later, "
                    "raise cluster.wait, or lower cluster.num_workers"
                )
            if missing != said:
                reporter.notice(f"waiting up to {format_duration(config.wait)} for {missing}")
                said = missing
            time.sleep(_POLL_SECONDS)
    finally:
        if growing and said:
            request_resources(bundles=[])


@contextmanager
def ray_quiet(debug: bool) -> Iterator[None]:
    """Keep Ray's own messages from the terminal within the block, unless debugging."""
    names = ("ray", "ray.train", "ray.tune", "ray.data", "ray.serve")
    before = {name: logging.getLogger(name).level for name in names}
    printed = ray_worker.print_to_stdstream
    if not debug:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        # What raylets say, of a node that died above all, goes to stdout whatever is asked: into the result of --json.
        ray_worker.print_to_stdstream = _log_raylets
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = printed
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _log_raylets(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001  Ray passes it by name
    logging.getLogger("ray").warning("%s", "\n".join(data["lines"]))


def _start(config: ClusterConfig) -> None:
    totals = local_totals()
    wanted: dict[str, str | None] = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": _import_path()}
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on the network and then asks for a token by itself. Ours is this process's own; without
        # it Ray would write one to the home folder. Ray sets the mode, which is taken back afterwards.
        wanted |= {"RAY_AUTH_TOKEN": _TOKEN, "RAY_AUTH_MODE": None}
    with environment(wanted), _process_groups_of_their_own():
        _init(
            "the local Ray",
            config,
            address="local",
            num_cpus=max(1, int(totals.cpus)),
            num_gpus=int(totals.gpus),
            object_store_memory=int(min(_OBJECT_STORE, 0.3 * (totals.memory or math.inf))),
            include_dashboard=False,
        )


@contextmanager
def _process_groups_of_their_own() -> Iterator[None]:
    """Keep signals to this process's group (`timeout`, a batch system, a shell) from the processes that Ray starts.

    They would end before a fit has written its checkpoint. Where this process ends, the kernel ends them all the same.
    """
    before = ray_services.ConsolePopen
    if sys.platform.startswith("linux"):  # elsewhere Ray's reaper ends them by their group
        ray_services.ConsolePopen = partial(before, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        ray_services.ConsolePopen = before  # type: ignore[misc]


def _import_path() -> str:
    """Return where this process imports from beside its installation: modules of the user's own lie there."""
    own = [os.path.abspath(path) for path in sys.path if not path.startswith((sys.prefix, sys.base_prefix))]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(p for p in (*own, *given) if os.path.isdir(p)))


def _connect(address: str, config: ClusterConfig) -> None:
    name = f"the cluster at {address}"
    checked = checked_address(address)
    with environment(
        {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE")}
    ):  # what is settled here is taken back
        try:
            _init(name, config, address=_settle_authentication(checked))
        except (AuthenticationError, ConnectionError) as error:
            raise ResourceError(f"cannot use {name}: {_reason(error)}") from error


def _settle_authentication(address: str) -> str:
    """Use a token where the cluster asks for one, and only there; return the address without ``auto``.

    With no mode set, Ray turns tokens on too late for a cluster that wants one, and then tries for 20 s; with tokens
    on, actors never start on a cluster that has none.
    """
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )
    from ray._private.services import canonicalize_bootstrap_address_or_die

    found = canonicalize_bootstrap_address_or_die(address)
    mode = os.environ.get("RAY_AUTH_MODE")
    if _lets_in(found, mode or "disabled"):
        os.environ["RAY_AUTH_MODE"] = mode or "disabled"
        return found
    if (
        mode is not None
        or not maybe_enable_token_auth_if_token_available(False)
        or not _lets_in(found, "token")
    ):
        raise AuthenticationError(f"{address} turns this token away")
    return found


def _lets_in(address: str, mode: str) -> bool:
    """Whether the cluster does not turn away a client of that mode; any other trouble is for Ray's start to tell.

    In a process of its own, for Ray's compiled part keeps the first mode that it was used with.
    """
    try:
        knock = subprocess.run(
            [sys.executable, "-c", _KNOCK, address, str(_TURNED_AWAY)],
            env=os.environ | {"RAY_AUTH_MODE": mode},
            capture_output=True,
            timeout=_KNOCK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"it does not answer within {_KNOCK_SECONDS} s") from error
    return knock.returncode != _TURNED_AWAY


def _init(name: str, config: ClusterConfig, **options: Any) -> None:
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            log_to_driver=config.debug,
            logging_level=logging.INFO if config.debug else logging.ERROR,
            configure_logging=config.debug,
            **options,
        )
    except (ConnectionError, AuthenticationError, RuntimeError, ValueError, OSError) as error:
        raise ResourceError(f"cannot use {name}: {_reason(error)}") from error
    finally:
        # Ray sets a handler of its own, which ends this process with exit code 15 and no word; better than none.
        own = terminated not in (None, signal.SIG_DFL)
        if own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        return f"{text}; install the cluster's versions of Ray and Python here, or the other way round"
    if isinstance(error, AuthenticationError):
        return (
            "its token is another, or none was given; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the cluster does, "
            "or keep its token in ~/.ray/auth_token"
        )
    return f"{text[:300]}; check cluster.address and that the cluster runs (ray status)"


@contextmanager
def environment(wanted: dict[str, str | None]) -> Iterator[None]:
    """Set variables around Ray's start; the processes that it starts keep them, this one does not."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _totals(address: str | None) -> Totals:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in found if node["Alive"]]
    return Totals(
        cpus=math.fsum(n.get("CPU", 0.0) for n in nodes),
        gpus=math.fsum(n.get("GPU", 0.0) for n in nodes),
        memory=math.fsum(n.get("memory", 0.0) for n in nodes),
        where="this machine" if address is None else f"the cluster at {address}",
        nodes=tuple((n.get("CPU", 0.0), n.get("GPU", 0.0)) for n in nodes),
    )


def _maximum(config: ClusterConfig, totals: Totals) -> Totals | None:
    """Return what the autoscaler may make of the cluster, as the user says, or Ray; None where nobody does."""
    if config.autoscaler is not None:
        said = config.autoscaler
        return Totals(max(said.cpus, totals.cpus), max(said.gpus, totals.gpus), where=totals.where)
    from ray._private.state import state

    most = state.get_max_resources_from_cluster_config()
    if not most:
        return None
    return Totals(most.get("CPU", 0), most.get("GPU", 0), most.get("memory"), where=totals.where)


def _missing(demand: Demand) -> str:
    """Say what is not free now; empty where all is."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    short = []
    for what, ours, unit in (
        ("CPU", "cpus", "CPUs"),
        ("GPU", "gpus", "GPUs"),
        ("memory", "memory", "bytes of memory"),
    ):
        needed, there = demand.total(ours), free.get(what, 0.0)
        if needed > there + 1e-9:
            short.append(f"{needed:g} {unit} ({there:g} free now)")
    return " and ".join(short)


def _bundles(demand: Demand) -> list[dict[str, float]]:
    bundles = []
    for part in demand.parts:
        amounts = {"CPU": part.cpus, "GPU": part.gpus, "memory": part.memory}
        bundles += [{k: v for k, v in amounts.items() if v}] * part.count
    return [bundle for bundle in bundles if bundle]
