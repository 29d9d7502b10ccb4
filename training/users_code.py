"""Where in code of the user's own an error arose."""

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shoal.cluster.errors import RunError, ShoalError


@contextmanager
def users(what: str, kind: type[ShoalError] = RunError) -> Iterator[None]:
    """Name the file and line of an error that code of the user's own raises within the block; other errors go on.

    Raises
    ------
    ShoalError
        Of this kind, beginning with ``what``.
    """
    try:
        yield
    except Exception as error:  # whatever code that is not ours may raise
        if place := _line(error):
            raise kind(f"{what} failed at {place}: {type(error).__name__}: {error}") from error
        raise


def _line(error: Exception) -> str:
    """Return where in a module of the user's own an error arose; empty where it is another's, or no memory was left."""
    if isinstance(error, ShoalError | MemoryError | torch.OutOfMemoryError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    ours = os.path.dirname(os.path.dirname(__file__))
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    others = tuple(f"{folder}{os.sep}" for folder in (ours, *libraries))
    own = [i for i, f in enumerate(frames) if not f.filename.startswith(others)]
    # A collective operation that fails inside a layer (ZeRO-3 gathers weights there) is no fault of the layer's.
    if not own or any(
        "distributed" in f.filename or "deepspeed" in f.filename for f in frames[own[-1] + 1 :]
    ):
        return ""
    return f"{frames[own[-1]].filename}, line {frames[own[-1]].lineno}"
