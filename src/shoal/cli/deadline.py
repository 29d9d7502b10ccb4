"""``--time-limit``: the run ends with a clear error when its time is up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

from shoal.cluster.config import format_duration
from shoal.cluster.errors import RunError, StoppedError

# The alarm interrupts as Ctrl-C does: Ray's own wait lets no other exception pass, and every clean-up of an
# interrupted run is then that of a late one. A library may still swallow it; then it is sent again, after a time
# that is long enough for a clean-up that the first one began.
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

    def message() -> str:
        return (
            f"the time limit of {format_duration(limit)} is reached; give more with --time-limit, or ask for less"
            f"{kept()}"
        )

    struck = False

    def ring(_number: int, _frame: FrameType | None) -> None:
        nonlocal struck
        struck = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, ring)
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt == signal.SIG_IGN:  # as in a shell script's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, limit.total_seconds(), AGAIN)
    try:
        yield
    except (KeyboardInterrupt, StoppedError) as stopped:
        if not struck:
            raise
        if isinstance(stopped, StoppedError):
            raise RunError(f"the time limit of {format_duration(limit)} is reached: {stopped}") from None
        raise RunError(message()) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, interrupt)
