"""Categories that a model does not know, counted over batches of raw rows and said once."""

import reprlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.manifest import OTHER, Schema

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

    def see(self, batch: pa.Table, codes: NDArray[np.int32]) -> None:
        """Count a batch of raw rows, given the codes ``[n, C + W]`` that `prepare` gave its categories."""
        self._of += batch.num_rows
        columns = self.schema.categorical
        for column, unknown in zip(columns, (codes[:, : len(columns)] == OTHER).T, strict=True):
            if rows := int(unknown.sum()):
                self.rows[column.name] = self.rows.get(column.name, 0) + rows
                self._first.setdefault(column.name, batch.column(column.name)[int(unknown.argmax())].as_py())

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
