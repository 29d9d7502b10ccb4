"""Requests to stop: SIGTERM and the first Ctrl-C let a fit write a checkpoint first; a second one does not wait."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests(heeded: bool) -> Iterator[Callable[[], bool]]:
    """Take the process's stop signals as requests within the block.

    Parameters
    ----------
    heeded
        Whether the block looks at them; otherwise signals do what they did before.

    Yields
    ------
    callable
        Says whether a stop was asked for.

    Raises
    ------
    KeyboardInterrupt
        At the second signal, or at the end of a block that ended well without having heeded the first.
    """
    asked = threading.Event()
    if not heeded or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

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
