"""Where the time of a fit went, on each worker."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.cluster.sharding.names import plural
from shoal.training.strategies.base import Strategy

WHATS = ("data", "step", "communication", "validation", "checkpoint", "other")
_CLEARLY = 1.25  # times the others
_NAMES = {"data": "waiting for data", "step": "steps", "checkpoint": "checkpoints"}


class Account:
    """Seconds by what they went to.

    ``step`` holds ``communication``, the time within steps in which a worker waited for the others; NaN where that is
    not known.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(WHATS, 0.0)

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the block's wall time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    @contextmanager
    def measure_rest(self) -> Iterator[None]:
        """Add what of the block's wall time nothing within it has measured."""
        started, before = time.perf_counter(), self._known()
        try:
            yield
        finally:
            self.seconds["other"] += time.perf_counter() - started - (self._known() - before)

    def _known(self) -> float:
        return sum(
            seconds for what, seconds in self.seconds.items() if what not in ("communication", "other")
        )

    def add(self, seconds: dict[str, float]) -> None:
        """Add what was spent before a restart."""
        for what, value in seconds.items():
            self.seconds[what] += value

    def summary(self, strategy: Strategy, repeated: int = 0) -> str:
        """Return one line about worker 0, the worker that waited least for the others, and steps that were done again.

        Called by every worker; the line is worker 0's.
        """
        everyone = strategy.gather_objects(self.seconds)
        if everyone is None:
            return ""
        own, total = everyone[0], sum(v for k, v in everyone[0].items() if k != "communication")
        shares = []
        for what in ("step", "data", "validation", "checkpoint", "other"):
            share = f"{_NAMES.get(what, what)} {own[what] / max(total, 1e-9):.0%}"
            if what == "step" and len(everyone) > 1 and math.isfinite(own["communication"]):
                share += f" ({own['communication'] / max(total, 1e-9):.0%} communication)"
            shares.append(share)
        again = f"; at least {plural(repeated, 'step')} done again after a restart" if repeated else ""
        return f"{total:.1f} s: {', '.join(shares)}{_slowest(everyone)}{again}"


def _slowest(everyone: list[dict[str, float]]) -> str:
    """Name the worker whose own work takes clearly longer than the others'."""
    busy = [s["step"] - s["communication"] + s["data"] for s in everyone]
    slowest = max(range(len(busy)), key=busy.__getitem__)
    others = sorted(b for r, b in enumerate(busy) if r != slowest)
    usual = others[len(others) // 2] if others else math.inf
    if busy[slowest] < _CLEARLY * usual:
        return ""
    return (
        f"; worker {slowest} is the slowest: {busy[slowest]:.1f} s of its own work, the others {usual:.1f} s"
    )
