"""The lease that keeps two drivers out of one run folder.

A file in the folder names the driver: host, process, when that process began, and when it was last
seen alive. On this host a lease ends with its process; another host's lease ends when it has not been
renewed for two minutes, for which the next driver waits: one that is alive shows it within seconds.
Local disks decide under a lock of the folder; object stores have none, so there the writer looks again
after a moment whether the lease is still its own.
"""

import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from shoal.cluster.errors import InUseError, RunError, StorageError
from shoal.cluster.filesystems import explained
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.storage import Storage

LEASE = "lease.json"
STALE_SECONDS = 120.0
RENEW_SECONDS = 20.0
SETTLE_SECONDS = 0.5
_LOOK_SECONDS = 0.2  # between two looks whether a folder was released: no file system tells of it
_LOOK_ELSEWHERE_SECONDS = (
    1.0  # the same of a folder that another host's driver holds, maybe in object storage
)
_SILENT = Silent()


@dataclass
class Lease:
    """A lease that this process holds."""

    storage: Storage
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    since: float = field(default_factory=time.time)
    lost_to: dict[str, Any] | None = None

    def write(self) -> None:
        """Write or renew it."""
        self.storage.write_json(
            LEASE,
            {
                "token": self.token,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process_start": process_start(os.getpid()),
                "since": self.since,
                "seen": time.time(),
            },
        )

    def is_mine(self) -> bool:
        """Look whether somebody else has taken it; a lease that was deleted by hand is still ours."""
        found = read(self.storage)
        if found is not None and found.get("token") != self.token:
            self.lost_to = found
        return self.lost_to is None


@contextmanager
def held(
    storage: Storage, reporter: Reporter = _SILENT, renew: float = RENEW_SECONDS, wait: float = 0.0
) -> Iterator[Lease]:
    """Hold the lease of a folder within the block, renewing it from a thread.

    Parameters
    ----------
    renew
        Seconds between two signs of life.
    wait
        Seconds to wait for a live driver that holds it. One on another host that shows no sign of life is waited for until
        its lease ends.

    Raises
    ------
    InUseError
        If a live driver holds it; the message names host, process and since when.
    RunError
        At the end, if another driver took the lease meanwhile (this host looked dead to it).
    """
    lease = Lease(storage)
    _wait_for_release(storage, reporter, wait)
    with _locked(storage):
        before = read(storage)
        if before is not None:
            if _is_live(before):
                raise InUseError(_held_message(before, storage))
            reporter.notice(
                f"taking over from {describe(before)}, which ended without releasing {storage.uri}"
            )
        lease.write()
    if before is not None or not storage.is_local:
        time.sleep(SETTLE_SECONDS)
        if not lease.is_mine():
            raise InUseError(_held_message(lease.lost_to or {}, storage))
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lease, stop, renew), name="shoal-lease", daemon=True)
    renewing.start()
    try:
        yield lease
        if lease.lost_to is not None:
            raise RunError(f"{describe(lease.lost_to)} took over {storage.uri} meanwhile; this run stops")
    finally:
        stop.set()
        renewing.join()
        if lease.is_mine():
            storage.delete(LEASE)


def _wait_for_release(storage: Storage, reporter: Reporter, wait: float) -> None:
    """Return when no live driver holds the folder, or when the time is over: taking it then says who does."""
    began, first, said = time.monotonic(), None, False
    while (found := read(storage)) is not None and _is_live(found):
        first = first or found
        is_silent = _is_elsewhere(found) and found == first
        limit = max(wait, STALE_SECONDS) if is_silent else wait
        if time.monotonic() >= began + limit:
            return
        if not said:
            either = ", or did when its machine was lost" if is_silent else ""
            reporter.notice(
                f"waiting up to {limit:g} s for {describe(found)}, which uses {storage.uri}{either}"
            )
        said = True
        time.sleep(_LOOK_ELSEWHERE_SECONDS if is_silent else _LOOK_SECONDS)


def read(storage: Storage) -> dict[str, Any] | None:
    """Return what the lease file says; None where there is none or it says nothing that can be used."""
    if not storage.exists(LEASE):
        return None
    try:
        found = storage.read_json(LEASE)
    except StorageError:  # released between the two looks, or not a lease: nobody can be named as its holder
        return None
    return found if isinstance(found, dict) else None


def _is_live(found: dict[str, Any]) -> bool:
    """Whether the lease's driver is, or may be, alive."""
    if not _is_elsewhere(found):
        pid = found.get("pid")
        return isinstance(pid, int) and process_start(pid) == found.get("process_start") is not None
    seen = found.get("seen")
    return isinstance(seen, int | float) and time.time() - seen < STALE_SECONDS


def _is_elsewhere(found: dict[str, Any]) -> bool:
    return found.get("host") != socket.gethostname()


def describe(found: dict[str, Any]) -> str:
    """Name a lease's holder."""
    since = found.get("since")
    stamp = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int | float) else "?"
    )
    return f"process {found.get('pid', '?')} on {found.get('host', '?')} (since {stamp})"


def process_start(pid: int) -> str | None:
    """Return when a process of this machine began, as text to compare; None where there is none.

    The pid alone is not enough: it may have been given to another process.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            # The name in parentheses may hold spaces and parentheses; field 22 is the start in clock ticks.
            state, *rest = stat.read().rpartition(")")[2].split()
            return None if state in "ZX" else rest[18]
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() or None


def _held_message(found: dict[str, Any], storage: Storage) -> str:
    return f"{storage.uri} is in use by {describe(found)}; wait for it, stop it, or choose another --out" + (
        f"; should that machine be gone, its lease ends {STALE_SECONDS:.0f} s after its last sign of life"
        if _is_elsewhere(found)
        else ""
    )


def _renew(lease: Lease, stop: threading.Event, every: float) -> None:
    while not stop.wait(every):
        # A place that cannot be written for a moment must not end the run: the next renewal may pass.
        with suppress(StorageError):
            if not lease.is_mine():
                return
            lease.write()


@contextmanager
def _locked(storage: Storage) -> Iterator[None]:
    """Lock a local folder against this machine's other processes while the lease is decided."""
    if not storage.is_local:
        yield
        return
    import fcntl

    with explained("write", storage.uri):
        storage.local().mkdir(parents=True, exist_ok=True)
        folder = os.open(storage.local(), os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks lock no folders; the second look then has to do
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
