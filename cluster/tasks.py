"""Independent pieces of work as Ray tasks, whose room is reserved; this module imports ray."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.cluster.config import ClusterConfig, format_duration
from shoal.cluster.errors import ResourceError, RunError, ShoalError
from shoal.cluster.progress import Reporter
from shoal.cluster.resources import EPSILON, Demand, Part, Totals, asked_tasks
from shoal.cluster.session import session
from shoal.cluster.sharding.names import plural

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 1.0
_CANCEL_SECONDS = 10.0


class Tasks:
    """A `sharding.spread.Spread` of Ray tasks in a placement group; see `tasks`.

    Parameters
    ----------
    group
        A bundle a task.
    part
        What each task takes, and how messages call them.
    config
        How often a task whose process was lost is done again (`max_failures`), and how long to wait for room that
        was lost (`wait`).
    """

    def __init__(self, group: PlacementGroup, part: Part, config: ClusterConfig) -> None:
        self.count = group.bundle_count
        self._group, self._part, self._config = group, part, config
        self._remote: Any = ray.remote(
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            memory=part.memory,
            max_retries=config.max_failures,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )(_do)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of each item, in the order of the items; at most twice `count` are on their way.

        Raises
        ------
        ShoalError
            That of the first item, in their order, that has one; a RunError where a process was lost too often, or
            the room for it for too long.
        """
        shared = ray.put(work)  # once, not with every task
        rest, running = iter(items), deque[Any]()
        while True:
            room = 2 * self.count - len(running)
            running.extend(self._remote.remote(shared, item) for item in islice(rest, room))
            if not running:
                return
            try:
                result = self._result(running[0])
            except BaseException:
                # None of them writes anything any more when the error is heard.
                for reference in running:
                    ray.cancel(reference, force=True)
                ray.wait(list(running), num_returns=len(running), timeout=_CANCEL_SECONDS)
                raise
            running.popleft()
            yield result

    def _result(self, reference: Any) -> Any:
        wait, lost_since = self._config.wait, math.inf
        while not ray.wait([reference], timeout=_POLL_SECONDS)[0]:
            has_room = placement_group_table(self._group)["state"] == "CREATED"
            lost_since = math.inf if has_room else min(lost_since, time.monotonic())
            if time.monotonic() - lost_since > wait.total_seconds():
                raise RunError(
                    f"nodes were lost, and the cluster had no room for {self.count} {self._part.name} within "
                    f"{format_duration(wait)}; the same command goes on with what is missing"
                )
        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ShoalError):
                raise error.cause from None
            raise RunError(f"a task failed: {_last_line(error)}") from error
        except RayError as error:
            lost = plural(self._config.max_failures + 1, "time")
            raise RunError(
                f"a task was lost {lost}: its process crashed or was killed, often for want of memory "
                f"({_first_line(error)}); the same command goes on with what is missing"
            ) from error


@contextmanager
def tasks(config: ClusterConfig, part: Part, reporter: Reporter, most: int | None = None) -> Iterator[Tasks]:
    """Reserve room for tasks on the cluster until the block ends; nothing of them is left then.

    One task for each CPU that `cluster.num_workers` workers have; with ``auto``, or where there is a ``most``, as many as are
    free now.

    Parameters
    ----------
    config
        The `cluster` section.
    part
        What each task takes, and how messages call them.
    most
        Tasks that there is work for; None where there is always more.
    reporter
        Hears what is being waited for.

    Raises
    ------
    ResourceError
        If the cluster cannot be reached, has too little, or stays busy for longer than `cluster.wait`.
    """

    def demand(totals: Totals) -> Demand:
        nonlocal part
        part = replace(part, count=room(config, part, totals, most))
        return Demand((part,))

    with session(config, demand, reporter), reserved(config, part) as group:
        yield Tasks(group, part, config)


@contextmanager
def reserved(config: ClusterConfig, part: Part) -> Iterator[PlacementGroup]:
    """Reserve room for tasks on an initialised Ray.

    Raises
    ------
    ResourceError
        If there is none within `cluster.wait`.
    """
    each = {"CPU": part.cpus, "GPU": part.gpus, "memory": part.memory}
    group = placement_group(
        [{name: amount for name, amount in each.items() if amount}] * part.count, strategy="SPREAD"
    )
    try:
        if not group.wait(max(1.0, config.wait.total_seconds())):
            raise ResourceError(
                f"waited {format_duration(config.wait)} for room for {part.count} {part.name}; others still hold it. Try later, "
                "raise cluster.wait, or lower cluster.num_workers"
            )
        yield group
    finally:
        remove_placement_group(group)  # ends the tasks that are still in it


def room(config: ClusterConfig, part: Part, totals: Totals, most: int | None) -> int:
    """Return how many of equal processes there is room for, at most `most`; with None, as many as were asked for."""
    if most is None and (asked := asked_tasks(config)) is not None:
        return asked
    free = {"CPU": totals.cpus, "GPU": totals.gpus, "memory": totals.memory or 0.0}
    if ray.is_initialized():  # on a cluster that others use, too
        free = ray.available_resources()  # type: ignore[no-untyped-call]
    there = {"CPU": part.cpus, "GPU": part.gpus, "memory": part.memory if totals.memory else 0.0}
    counts = [int(free.get(name, 0.0) / each + EPSILON) for name, each in there.items() if each]
    return max(1, min(counts if most is None else [*counts, most]))


def _do(work: Callable[[T], R], item: T) -> R:
    return work(item)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
