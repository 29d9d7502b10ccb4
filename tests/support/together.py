"""Processes that form one gloo group, without Ray."""

import os
import pickle
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(
    rank: int,
    workers: int,
    port: int,
    timeout: float,
    folder: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=timeout),
    )
    result = function(*args)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(result))
    # Skips the destructors of torch's groups, which abort where another process has gone first.
    os._exit(0)


def run_together(
    folder: Path, workers: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0
) -> list[Any]:
    """Run a function in `workers` processes of one gloo group; return what each returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_enter, (workers, port, timeout, str(folder), function, args), nprocs=workers)
    return [pickle.loads((folder / f"{r}.pickle").read_bytes()) for r in range(workers)]
