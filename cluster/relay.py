"""Progress from a worker to the driver through Ray's key-value store; this module imports ray.

A worker's reporter lives in another process than the driver's. Rank 0 puts what happened under the
run's key, an entry an event, and the driver takes the entries out and tells its own reporter.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RpcError
from ray.experimental import internal_kv

from shoal.cluster.progress import EpochRecord, Reporter

_NAMESPACE = b"shoal-progress"
_POLL_SECONDS = 0.2


def publish(key: str, event: str, *arguments: Any) -> None:
    """Put one event of a run where its driver finds it; called in a worker.

    Parameters
    ----------
    key
        The run's.
    event, arguments
        The reporter's method and its arguments, as JSON can hold them.
    """
    # The time keeps the order, also after a worker was replaced by another.
    name = f"{key}#{time.time_ns():020d}".encode()
    internal_kv._internal_kv_put(name, json.dumps([event, *arguments]).encode(), namespace=_NAMESPACE)


@contextmanager
def relay(
    key: str,
    reporter: Reporter,
    stopping: Callable[[], bool] = lambda: False,
    heard: threading.Event | None = None,
) -> Iterator[None]:
    """Tell the driver's reporter of a run's events within the block, and its workers of a wish to stop.

    Needs an initialised Ray. ``heard`` is set at the first event of a worker.

    Whatever was published is told when the block ends. What the reporter raises is raised there, too.
    """
    for name in [*_names(key), _stop(key), _checkpoint(key)]:
        internal_kv._internal_kv_del(name, namespace=_NAMESPACE)
    poller = _Poller(key, reporter, stopping, heard or threading.Event())
    poller.start()
    try:
        yield
    finally:
        poller.stop.set()
        poller.join()
        if poller.error is None and ray.is_initialized():
            with suppress(RpcError):  # a cluster that is gone must not hide the fit's own error
                poller.forward()
    if poller.error is not None:
        raise poller.error


def told_to_stop(key: str) -> bool:
    """Whether the driver wants the run to stop; called in a worker."""
    return bool(internal_kv._internal_kv_exists(_stop(key), namespace=_NAMESPACE))


def ask_for_checkpoint(key: str) -> None:
    """Let the run's workers write a checkpoint soon; called by whoever is about to stop them."""
    internal_kv._internal_kv_put(_checkpoint(key), b"1", namespace=_NAMESPACE)


def asked_for_checkpoint(key: str) -> bool:
    """Whether someone wants a checkpoint; called in a worker, and true once for each time it was asked."""
    return bool(internal_kv._internal_kv_del(_checkpoint(key), namespace=_NAMESPACE))


class RelayReporter:
    """A reporter in a worker that sends everything to the driver.

    Parameters
    ----------
    key
        The run's; that of the driver's `relay`.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._advanced = 0.0

    def notice(self, text: str) -> None:
        """Send a notice."""
        publish(self.key, "notice", text)

    def stage(self, text: str) -> None:
        """Send a stage."""
        publish(self.key, "stage", text)

    def epoch(self, record: EpochRecord) -> None:
        """Send an epoch's record."""
        publish(self.key, "epoch", asdict(record))

    def advance(self, done: int, total: int, what: str) -> None:
        """Send how far the stage is, at most as often as the driver looks."""
        now = time.monotonic()
        if done >= total or now - self._advanced >= _POLL_SECONDS:
            self._advanced = now
            publish(self.key, "advance", done, total, what)

    def done(self) -> None:
        """Send nothing: the driver knows when its work is done."""


class _Poller(threading.Thread):
    def __init__(
        self, key: str, reporter: Reporter, stopping: Callable[[], bool], heard: threading.Event
    ) -> None:
        super().__init__(name="shoal-relay", daemon=True)
        self.key, self.reporter, self.stopping, self.heard = key, reporter, stopping, heard
        self.stop = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        while not self.stop.wait(_POLL_SECONDS):
            try:
                self.forward()
            except RpcError:  # the cluster does not answer: the fit itself will say so, or it comes back
                continue
            except Exception as error:  # the reporter's, raised again in the driver's own thread
                self.error = error
                return

    def forward(self) -> None:
        if self.stopping():
            internal_kv._internal_kv_put(_stop(self.key), b"1", namespace=_NAMESPACE)
        for name in _names(self.key):
            entry = internal_kv._internal_kv_get(name, namespace=_NAMESPACE)
            internal_kv._internal_kv_del(name, namespace=_NAMESPACE)
            if entry is not None:
                self.heard.set()
                _tell(self.reporter, *json.loads(entry))


def _names(key: str) -> list[bytes]:
    return sorted(internal_kv._internal_kv_list(f"{key}#".encode(), namespace=_NAMESPACE))


def _stop(key: str) -> bytes:
    return f"stop/{key}".encode()


def _checkpoint(key: str) -> bytes:
    return f"checkpoint/{key}".encode()


def _tell(reporter: Reporter, event: str, *arguments: Any) -> None:
    match event:
        case "epoch":
            reporter.epoch(EpochRecord(**arguments[0]))
        case "advance":
            reporter.advance(*arguments)
        case "stage":
            reporter.stage(*arguments)
        case _:
            reporter.notice(*arguments)
