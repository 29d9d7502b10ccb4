"""The command line's front door, also as `python -m shoal`: from the first moment on, a signal ends it as it should.

Imports take a while; what ends the process in them says so, too, and leaves no traceback.
"""

import os
import signal
import sys
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130


def run() -> int:
    """Run one command and return its exit code."""
    ours = [n for n in _NUMBERS if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
    for number in ours:
        signal.signal(number, _end)
    from shoal.cli.main import main

    for number in ours:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = main()
    for number in ours:
        signal.signal(number, _end)
    return code


def _end(_number: int, _frame: FrameType | None) -> None:
    """End at once: there is nothing to give back yet, or any more."""
    os.write(2, b"error: interrupted\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run())
