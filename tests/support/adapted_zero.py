"""Fits that adapt with DeepSpeed, for tests; in processes of their own."""

from typing import Any

import numpy as np
import torch

from shoal.cluster.errors import StoppedError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import Keeper
from shoal.training.config import MLPConfig
from support.adapted import METHODS, make_loop, run
from support.resuming import SharedKeeper
from support.zero import zero

TRIED = ("dann", "mmd", "self_training", "co_training")
# Wide enough for a layer that stage 3 parts, rather than leaving it whole on each worker.
SETTINGS: dict[str, Any] = {
    "precision": "fp32",
    "model": MLPConfig(hidden=(400, 300), dropout=0.3),
    "epochs": 2,
}


def method(name: str) -> Any:
    """Without a teacher, whose weights stage 3 does not part."""
    return {"self_training": {"start": 0.25}} if name == "self_training" else METHODS[name]


def stage(number: int, folder: str) -> dict[str, Any]:
    """Whole fits of a ZeRO stage, and one that is stopped and gone on with."""
    torch.set_num_threads(1)
    lookout.LOOK_SECONDS = 0.0
    found: dict[str, Any] = {}
    for name in TRIED:
        loop = make_loop(method(name), zero(number), **SETTINGS)
        found[name] = run(loop)
        found[f"{name}: error"] = loop.stepper.gradient_error
    for stop in (7, None):
        left = iter(range((stop or 10**9) - 1))
        keeper: Keeper = SharedKeeper(
            Storage.open(folder),
            0.0 if stop else 1e9,
            2,
            lambda left=left, stop=stop: "" if next(left, None) is not None or stop is None else "stop",
        )
        loop = make_loop(method("self_training"), zero(number), keeper=keeper, **SETTINGS)
        try:
            found["resumed"] = run(loop)
            found["resumed at"] = tuple(loop.resumed_from)
        except StoppedError:
            loop.strategy.sum(torch.zeros(1))  # all have written their parts
    return found


def alone(name: str) -> np.ndarray:
    """The fit of one plain worker."""
    return run(make_loop(method(name), **SETTINGS))
