"""When a collective operation fails: which worker did not take part.

Gloo and NCCL only say that something timed out. The process group's store still answers, so every worker that
fails says so there, and those that stay silent are the stuck ones.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from shoal.cluster.errors import CollectiveTimeoutError

GRACE_SECONDS = 5.0  # between the first worker's time-out and the last one's
_SIGNS = (
    "timed out",
    "timeout",
    "connection closed",
    "connection reset",
    "broken pipe",
    "connection refused",
)


@contextmanager
def stuck_workers_named(timeout_seconds: float) -> Iterator[None]:
    """Turn a failed collective within the block into an error that names the worker that is stuck or gone.

    Raises
    ------
    CollectiveTimeoutError
        Naming rank, host and process of each worker that did not take part.
    """
    store = dist.distributed_c10d._get_default_store()
    rank, workers = dist.get_rank(), dist.get_world_size()
    store.set(f"shoal/where/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        try:
            silent = _silent_workers(store, rank, workers)
        except (RuntimeError, OSError) as unreachable:
            raise CollectiveTimeoutError(
                f"worker 0, which holds the store of the group, is gone; worker {rank} was waiting for it. "
                "See logs/ in the run folder for its last words"
            ) from unreachable
        who = "; ".join(silent) if silent else "every worker answered: the network between them failed"
        raise CollectiveTimeoutError(
            f"worker {rank} waited {timeout_seconds:g} s for the others in one operation. Did not take part: {who}. See "
            "its log in the run folder under logs/; if it was only slow, raise cluster.collective_timeout"
        ) from error


def _silent_workers(store: Store, rank: int, workers: int) -> list[str]:
    store.set(f"shoal/failed/{rank}", "1")
    deadline = time.monotonic() + GRACE_SECONDS
    waiting = [r for r in range(workers) if r != rank]
    while waiting and time.monotonic() < deadline:
        waiting = [r for r in waiting if not store.check([f"shoal/failed/{r}"])]
        if waiting:
            time.sleep(0.1)
    return [f"worker {r} ({_where(store, r)})" for r in waiting]


def _where(store: Store, rank: int) -> str:
    key = f"shoal/where/{rank}"
    return store.get(key).decode() if store.check([key]) else "never started"
