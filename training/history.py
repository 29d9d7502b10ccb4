"""The history of a fit: a long table of what was measured when."""

from dataclasses import dataclass, field

import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("seconds", pa.float64()),
    ]
)


@dataclass
class History:
    """Rows of `history.parquet`, in the order in which they were measured."""

    rows: list[tuple[int, int, str, str, float, float]] = field(default_factory=list)

    def add(self, step: int, epoch: int, split: str, metric: str, value: float, seconds: float) -> None:
        """Add a value; ``step`` and ``epoch`` count what was finished, ``seconds`` the training so far."""
        self.rows.append((step, epoch, split, metric, float(value), seconds))

    def table(self) -> pa.Table:
        """Return the long table."""
        columns = zip(*self.rows, strict=True) if self.rows else [[]] * len(SCHEMA)
        return pa.table(
            [pa.array(list(c), t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA
        )
