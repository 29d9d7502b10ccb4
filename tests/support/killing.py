"""Pieces of work that kill the process they are done in."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class KilledOnce:
    """Work whose process is killed, the first time, at one of its items."""

    work: Callable[[Any], Any]
    mark: Path
    nth: int

    def __call__(self, item: tuple[int, Any]) -> Any:
        number, own = item
        if number == self.nth:
            try:
                self.mark.touch(exist_ok=False)
            except FileExistsError:
                return self.work(own)
            self.work(own)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work(own)


@dataclass
class KilledFrom:
    """Work whose processes are killed at all items from one on, each time."""

    work: Callable[[Any], Any]
    first: int

    def __call__(self, item: tuple[int, Any]) -> Any:
        if item[0] >= self.first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work(item[1])
