"""Categories that a model does not know, counted over batches of raw rows and said once."""

import reprlib
from typing import Any

import pyarrow as pa

from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.prepare import unknown_values

LISTED = 8


class Unknown:
    """Rows with categories that the model does not know, by column.

    Parameters
    ----------
    schema
        The model's.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rows: dict[str, int] = {}
        self._of = 0
        self._first: dict[str, Any] = {}

    def see(self, batch: pa.Table) -> None:
        """Count a batch."""
        self._of += batch.num_rows
        for name, (rows, value) in unknown_values(batch, self.schema).items():
            self.rows[name] = self.rows.get(name, 0) + rows
            self._first.setdefault(name, value)

    def say(self, reporter: Reporter) -> None:
        """Say it in one notice, the most affected columns first; values of private columns are not shown."""
        if not self.rows:
            return
        ordered = sorted(self.rows.items(), key=lambda item: -item[1])
        parts = [
            f"{name!r} in {rows:,} of {self._of:,} rows{self._example(name)}"
            for name, rows in ordered[:LISTED]
        ]
        more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
        reporter.notice(
            f"columns with values that the model does not know, treated as unknown: {', '.join(parts)}{more}"
        )

    def _example(self, name: str) -> str:
        return "" if name in self.schema.private else f" (e.g. {reprlib.repr(self._first[name])})"
