"""Requests to stop: SIGTERM and the first Ctrl-C let a fit write a checkpoint first; a second one does not wait."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SAME_SECONDS = 0.5  # `timeout` signals its command and then its group, which its command is in


@contextmanager
def stop_requests(heeded: bool, begun: Callable[[], bool] = lambda: True) -> Iterator[Callable[[], bool]]:
    """Take the process's stop signals as requests within the block.

    Parameters
    ----------
    heeded
        Whether the block looks at them; otherwise signals do what they did before.
    begun
        Says whether there is anything to write a checkpoint of yet; until then the first signal does not wait either.

    Yields
    ------
    callable
        Says whether a stop was asked for.

    Raises
    ------
    KeyboardInterrupt
        At the first signal before the work has begun, at a second one half a second or more after the first, or at the end
        of a block that ended well without having heeded the first.
    """
    asked, since = threading.Event(), 0.0
    if not heeded or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal since
        if not begun():
            raise KeyboardInterrupt
        if not asked.is_set():
            since = time.monotonic()
            asked.set()
        elif time.monotonic() - since > _SAME_SECONDS:
            raise KeyboardInterrupt

    # A signal that is ignored stays so (a script's background job); a handler that is not Python's has no name to
    # be given back by.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.is_set():
        raise KeyboardInterrupt
