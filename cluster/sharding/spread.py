"""An ordered map over independent pieces of work: in this process, or wherever there is room."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Spread(Protocol):
    """Where pieces of work are done; no result depends on it."""

    @property
    def count(self) -> int:
        """How many are done at a time; above 1 they may be in other processes, on other machines."""

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of each item, in the order of the items.

        Parameters
        ----------
        work
            Done once or more for an item, with the same result.
        items
            Taken only as far as there is room for them.
        """


class Here:
    """One after the other in this process."""

    count = 1

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of each item."""
        return map(work, items)
