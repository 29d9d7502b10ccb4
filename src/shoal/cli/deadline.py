"""``--time-limit``: the run ends with a clear error when its time is up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

from shoal.cluster.config import format_duration
from shoal.cluster.errors import RunError

# A library may swallow an exception that strikes in one of its callbacks; then it is raised again. Long
# enough for a clean-up that the first one began.
AGAIN = 60.0


@contextmanager
def deadline(limit: timedelta | None, kept: Callable[[], str] = str) -> Iterator[None]:
    """Raise in the block when `limit` has passed.

    Parameters
    ----------
    limit
        None for no limit.
    kept
        Says what remains, when the time is up.

    Raises
    ------
    RunError
        When the time is up.
    """
    if limit is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise RunError(
            f"the time limit of {format_duration(limit)} is reached; give more with --time-limit, or ask for less "
            f"(fewer training.epochs, more cluster.num_workers){kept()}"
        )

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit.total_seconds(), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
