"""Messages about columns: the nearest name, and lists that stay short."""

import difflib
from collections.abc import Iterable, Sequence

from shoal.cluster.errors import DataError


def listed(values: Iterable[object], limit: int = 8) -> str:
    """Join values with commas; beyond the limit only say how many more there are."""
    items = [str(value) for value in values]
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def nearest(name: str, names: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` or the names that there are."""
    lowered = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean {lowered[near[0]]!r}?" if near else f"; there are {listed(names, 12)}"


def require(name: str, names: Sequence[str], key: str) -> None:
    """Refuse a column that is not there.

    Raises
    ------
    DataError
        With the key that named it and the nearest name.
    """
    if name not in names:
        raise DataError(f"{key}: the data have no column {name!r}{nearest(name, names)}")


def plural(count: int, what: str) -> str:
    """Return ``1 row``, ``1,204 rows``; ``class`` and the like become ``classes``."""
    if count == 1:
        return f"1 {what}"
    return f"{count:,} {what}{'es' if what.endswith('s') else 's'}"
