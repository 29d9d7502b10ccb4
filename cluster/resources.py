"""The resource sum: what a job takes, added up and compared before anything starts. Plain arithmetic, no Ray."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shoal.cluster.config import ClusterConfig
from shoal.cluster.errors import ConfigError, ResourceError
from shoal.cluster.sharding.names import plural

Placement = Literal["inline", "task", "group"]
THIS_PROCESS = "this process"  # a part that reserves nothing
SHARDING = "sharding tasks"
EPSILON = 1e-9  # 3 x 0.1 CPUs are not more than 0.3
_GIB_FROM = 0.1 * 2**30  # smaller sizes are shown in MiB, not as 0.0 GiB
_MIB_FROM = 0.1 * 2**20
_SHARES = (0.5, 0.25, 0.1, 0.01)


@dataclass(frozen=True)
class Totals:
    """What a machine or a cluster has.

    Parameters
    ----------
    cpus, gpus
        Counts; None in `memory` (bytes) and `disk` (bytes) stands for unknown.
    where
        How messages call it: ``this machine``, ``the cluster at 10.0.0.1:6379``.
    nodes
        CPUs and GPUs of each node; empty for one machine.
    """

    cpus: float
    gpus: float = 0.0
    memory: float | None = None
    disk: float | None = None
    where: str = "this machine"
    nodes: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Part:
    """Equal processes of a job: its workers, its controller, its concurrent fits.

    Parameters
    ----------
    name
        In the plural: ``workers``.
    count
        How many there are at a time.
    cpus, gpus, memory, disk
        What each takes; memory and disk in bytes.
    most
        How many there may come to be; 0 for `count`.
    """

    name: str
    count: int
    cpus: float = 0.0
    gpus: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    most: int = 0


@dataclass(frozen=True)
class Demand:
    """All parts of a job that hold resources at the same time."""

    parts: tuple[Part, ...] = ()

    def total(self, what: str) -> float:
        """Add up ``cpus``, ``gpus``, ``memory`` or ``disk`` over all parts."""
        return math.fsum(part.count * getattr(part, what) for part in self.parts)

    def __add__(self, other: "Demand") -> "Demand":
        return Demand(self.parts + other.parts)

    def __str__(self) -> str:
        """Write the sum as a short table."""
        rows: list[tuple[str, ...]] = [("part", "count", "CPUs", "GPUs", "memory", "disk")]
        rows += [_row(p.name, p.count, *(p.count * getattr(p, w) for w in _WHAT)) for p in self.parts]
        rows.append(_row("sum", sum(p.count for p in self.parts), *(self.total(w) for w in _WHAT)))
        shown = [i for i in range(6) if i < 3 or any(row[i] not in ("0", "-") for row in rows[1:])]
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return "\n".join(
            "  ".join(row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in shown)
            for row in rows
        )


@dataclass(frozen=True)
class Shape:
    """How a fit is spread: the `cluster` section with nothing left open.

    Attributes
    ----------
    num_workers
        How many; the least that will do, where ``max_workers`` is more.
    max_workers
        The most that a group may grow to; 0 for `num_workers`.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    placement: Placement
    max_workers: int = 0

    @property
    def is_elastic(self) -> bool:
        """Whether the group may shrink and grow."""
        return self.max_workers > self.num_workers

    def within(self, shards: int) -> "Shape":
        """Return a shape that does not grow beyond a worker a logical shard.

        Raises
        ------
        ConfigError
            If even the least workers are more than that.
        """
        refuse_idle(self.num_workers, shards)
        return replace(self, max_workers=min(self.max_workers, shards))

    @property
    def workers(self) -> str:
        """How many workers, for reading."""
        if self.is_elastic:
            return f"{self.num_workers} to {self.max_workers} workers"
        return f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"

    @property
    def demand(self) -> Demand:
        """The fit's own part of the resource sum; Ray Train's controller takes no CPU."""
        each = (self.cpus_per_worker, self.gpus_per_worker)
        return Demand((Part("workers", self.num_workers, *each, most=self.max_workers),))


FIT_MEMORY = 512 << 20  # bytes of a fit in a task, beyond which Ray is not told
_WHAT = ("cpus", "gpus", "memory", "disk")
_UNITS = {"cpus": "CPU", "gpus": "GPU"}


def check(demand: Demand, total: Totals, maximum: Totals | None = None) -> None:
    """Refuse a job that can never run here.

    Parameters
    ----------
    demand
        The whole job's.
    total
        What there is.
    maximum
        What an autoscaler may make of it; without one, `total` is all there will ever be.

    Raises
    ------
    ResourceError
        With the sum, what there is, and what to change.
    """
    limit = maximum or total
    for what in _WHAT:
        there = getattr(limit, what)
        if there is not None and demand.total(what) > there + EPSILON:
            raise ResourceError(
                f"{_sum(demand, what)}; {_has(limit, what, maximum)}. {_fix(demand, limit, what)}"
            )
    nodes = limit.nodes if maximum is None else ()
    if nodes and not _fits(demand.parts, nodes):
        each = "; ".join(sorted({f"{_number(c)} CPUs, {_number(g)} GPUs" for c, g in nodes}))
        largest = max(demand.parts, key=lambda part: (part.gpus, part.cpus))
        raise ResourceError(
            f"{largest.count} {largest.name} of {_number(largest.cpus)} CPUs and {_number(largest.gpus)} GPUs do not "
            f"fit on the {len(nodes)} nodes of {limit.where} (nodes of {each}): a worker cannot be spread over nodes. "
            "Lower cluster.cpus_per_worker, cluster.gpus_per_worker or cluster.num_workers"
        )


def refuse_idle(workers: int, shards: int) -> None:
    """Refuse more workers than there are logical shards, of which each reads its own.

    Raises
    ------
    ConfigError
        With the numbers, and what to change.
    """
    if workers > shards:
        raise ConfigError(
            f"{workers} workers cannot share {plural(shards, 'logical shard')}: set cluster.num_workers to at most {shards}, or "
            f"data.shards to at least {workers}"
        )


def resolve_workers(config: ClusterConfig, totals: Totals, group: bool = False) -> Shape:
    """Settle what `auto` leaves open.

    One worker a GPU that is there, otherwise one. ``placement: auto`` is inline for one worker without an
    address, and a group otherwise, or where ``group`` says that the fit needs one.

    Raises
    ------
    ConfigError
        If several workers are to share one process (``inline``) or one task.
    """
    there = 1.0 if totals.gpus >= 1 else 0.0
    gpus = there if config.gpus_per_worker == "auto" else float(config.gpus_per_worker)
    most = 0
    if isinstance(config.num_workers, tuple):
        workers, most = config.num_workers
    elif config.num_workers != "auto":
        workers = config.num_workers
    elif config.placement in ("inline", "task") or gpus == 0:
        workers = 1
    else:
        workers = max(1, int((totals.gpus + EPSILON) // gpus))
    placement = config.placement
    if placement == "auto":
        alone = workers == 1 and most <= 1 and address_of(config) is None and not group
        placement = "inline" if alone else "group"
    if placement != "group" and max(workers, most) > 1:
        asked = list(config.num_workers) if isinstance(config.num_workers, tuple) else workers
        raise ConfigError(
            f"cluster.placement: {placement} holds one worker, got cluster.num_workers: {asked}; "
            "set cluster.placement: group, or cluster.num_workers: 1"
        )
    return Shape(workers, float(config.cpus_per_worker), gpus, placement, most)


def plan(config: ClusterConfig, group: bool = False) -> tuple[Shape, Demand]:
    """Settle the shape of a fit and its resource sum, and refuse what this machine can never give.

    ``group`` says that the fit needs a worker group. A cluster is only asked where something is left open; otherwise
    the session that runs the fit checks it.

    Raises
    ------
    ConfigError, ResourceError
        As `resolve_workers` and `check`; or the cluster cannot be reached.
    """
    if address_of(config) is None or config.placement == "inline":
        from shoal.cluster.machine import local_totals

        totals = local_totals()
        shape = resolve_workers(config, totals, group)
        # An inline fit takes the threads that there are: nothing is reserved.
        demand = (
            shape.demand
            if shape.placement != "inline"
            else Demand((Part(THIS_PROCESS, 1, 0.0, shape.gpus_per_worker),))
        )
        check(demand, totals)
        return shape, demand
    if "auto" in (config.num_workers, config.gpus_per_worker):
        from shoal.cluster.session import cluster_totals

        shape = resolve_workers(config, cluster_totals(config), group)
    else:
        shape = resolve_workers(config, Totals(math.inf, math.inf), group)
    return shape, shape.demand


def address_of(config: ClusterConfig) -> str | None:
    """Return the address of the cluster to use: `cluster.address`, or ``RAY_ADDRESS`` in the environment."""
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def asked_tasks(config: ClusterConfig) -> int | None:
    """Return how many tasks of a CPU are asked for, one for each CPU of the workers; None for as many as are free."""
    if config.num_workers == "auto":
        return None
    workers = config.num_workers[0] if isinstance(config.num_workers, tuple) else config.num_workers
    return max(1, int(workers * config.cpus_per_worker))


def _sum(demand: Demand, what: str) -> str:
    parts = [part for part in demand.parts if part.count * getattr(part, what)]
    terms = " + ".join(f"{_counted(p)} {_amount(getattr(p, what), what)}" for p in parts)
    return f"{terms} = {_amount(demand.total(what), what)}"


def _counted(part: Part) -> str:
    if part.name == THIS_PROCESS:
        return f"{part.name}:"
    return f"{part.count} {part.name.removesuffix('s') if part.count == 1 else part.name} x"


def _has(limit: Totals, what: str, maximum: Totals | None) -> str:
    grown = " at most, with its autoscaler" if maximum else ""
    return f"{limit.where} has {_amount(getattr(limit, what), what, unit=what not in _UNITS)}{grown}"


def _fix(demand: Demand, limit: Totals, what: str) -> str:
    there = getattr(limit, what)
    part = max(demand.parts, key=lambda p: p.count * getattr(p, what))
    each, rest = getattr(part, what), demand.total(what) - part.count * getattr(part, what)
    left = max(0.0, there - rest)
    if part.name == THIS_PROCESS and what == "gpus":
        return "Set cluster.gpus_per_worker: 0, or choose a cluster that has some with cluster.address"
    if part.name == SHARDING:
        return "Lower cluster.num_workers or cluster.cpus_per_worker: there is a task for each CPU of the workers"
    if part.name != "workers" or what not in _UNITS:
        if what == "disk":
            return "Set cluster.cache_path to a folder on a larger disk"
        return f"Use fewer {part.name}, or lower {'cluster.num_workers' if what == 'memory' else 'what each takes'}"
    fixes = []
    if (workers := int((left + EPSILON) // each)) >= 1:
        fixes.append(f"cluster.num_workers: {workers}")
        if workers > 1 and part.most > part.count:  # a range was asked for
            fixes.insert(0, f"cluster.num_workers: [1, {workers}]")
    name = "cluster.cpus_per_worker" if what == "cpus" else "cluster.gpus_per_worker"
    if (share := _share(left / part.count)) is not None:
        fixes.append(f"{name}: {share:g}")
    elif what == "gpus":
        fixes.append(f"{name}: 0")
    return f"Set {', or '.join(fixes)}" if fixes else "Choose a larger cluster with cluster.address"


def _share(most: float) -> float | None:
    """Return the largest usual amount that is at most this one: a whole number, a half, a quarter …."""
    if most >= 1:
        return float(int(most + EPSILON))
    return next((share for share in _SHARES if share <= most + EPSILON), None)


def _fits(parts: Sequence[Part], nodes: Sequence[tuple[float, float]]) -> bool:
    """Whether every single process finds a node, largest first."""
    free = [list(node) for node in nodes]
    for part in sorted(parts, key=lambda p: (p.gpus, p.cpus), reverse=True):
        for _ in range(part.count if part.cpus or part.gpus else 0):
            # The tightest node first keeps room for what is still to come.
            homes = [n for n in free if n[0] + EPSILON >= part.cpus and n[1] + EPSILON >= part.gpus]
            if not homes:
                return False
            home = min(homes, key=lambda n: (n[1] - part.gpus, n[0] - part.cpus))
            home[0], home[1] = home[0] - part.cpus, home[1] - part.gpus
    return True


def _row(name: str, count: int, cpus: float, gpus: float, memory: float, disk: float) -> tuple[str, ...]:
    sizes = [_amount(size, "memory") if size else "-" for size in (memory, disk)]
    return (name, str(count), _number(cpus), _number(gpus), *sizes)


def _amount(value: float, what: str, unit: bool = True) -> str:
    if what in _UNITS:
        return _number(value) + (f" {_UNITS[what]}{'' if value == 1 else 's'}" if unit else "")
    return format_size(value)


def format_size(value: float) -> str:
    """Write a number of bytes for reading."""
    if value >= _GIB_FROM:
        return f"{value / 2**30:.1f} GiB"
    return f"{value / 2**20:.1f} MiB" if value >= _MIB_FROM else f"{value / 2**10:.1f} KiB"


def _number(value: float) -> str:
    return f"{round(value, 4):g}"
