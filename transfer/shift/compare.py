"""Two tables of raw rows to all that is known of their shift."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.prepare import Prepared, prepare
from shoal.transfer.shift.columns import (
    Carriers,
    ColumnShift,
    Distribution,
    carriers,
    compare_columns,
    distribution,
)
from shoal.transfer.shift.domains import LIMIT, Separation, pair, separate
from shoal.transfer.shift.labels import LabelShift
from shoal.transfer.shift.verdict import Verdict, conclude

DRAWN = 4  # columns whose distributions are drawn


@dataclass(frozen=True)
class Shift:
    """What is known of the shift between two domains.

    Attributes
    ----------
    separations
        How well ``trees`` and a ``linear`` classifier tell the domains apart.
    columns, carried
        Each column, and the separation without those that differ most.
    drawn
        Values of the columns of the largest effects, by name; private ones are left out.
    labels, classes
        Class shares, and names of the classes; None without a model.
    verdict
        All of it in words.
    """

    separations: dict[str, Separation]
    columns: tuple[ColumnShift, ...]
    carried: Carriers
    drawn: dict[str, Distribution]
    labels: LabelShift | None
    classes: tuple[str, ...]
    verdict: Verdict


def compare_domains(
    source: pa.Table,
    target: pa.Table,
    schema: Schema,
    labels: LabelShift | None = None,
    *,
    limit: int | None = LIMIT,
    confidence: float = 0.95,
    seed: int = 0,
) -> Shift:
    """Compare the raw rows of two domains.

    Parameters
    ----------
    source, target
        Raw columns. Target columns (labels), ids and columns that the source's preparation dropped are not looked at.
    schema
        Of the source.
    labels
        From `estimate_label_shift`, where there is a model.
    limit, seed
        Rows of each domain that are looked at, drawn by their content.

    Raises
    ------
    DataError
        If a domain has fewer than 20 rows, no column is in both, or a column is of an unsuitable type.
    """
    roles = {*schema.target.columns, *schema.costs, *([schema.id] if schema.id else [])}
    lacking = [c.name for c in schema.columns if c.name not in target.column_names]
    extra = [n for n in target.column_names if n not in source.column_names and n not in roles]
    shared = schema.model_copy(update={"columns": tuple(c for c in schema.columns if c.name not in lacking)})
    if not shared.columns:
        raise DataError(
            f"the target has none of the source's feature columns ({', '.join(lacking[:8])}): name them alike"
        )
    return compare_prepared(
        prepare(source, shared),
        prepare(target, shared),
        shared,
        labels,
        limit=limit,
        confidence=confidence,
        seed=seed,
        only_source=lacking,
        only_target=extra,
    )


def compare_prepared(
    source: Prepared,
    target: Prepared,
    shared: Schema,
    labels: LabelShift | None = None,
    *,
    limit: int | None = LIMIT,
    confidence: float = 0.95,
    seed: int = 0,
    only_source: Sequence[str] = (),
    only_target: Sequence[str] = (),
) -> Shift:
    """Compare prepared rows of two domains, as `compare_domains`; ``shared`` is the schema of both."""
    rows = pair(source, target, limit=limit, seed=seed)
    separations = {
        "trees": separate(rows, "trees", confidence=confidence),
        "linear": separate(rows, "linear", confidence=confidence),
    }
    columns = compare_columns(rows, shared, confidence=confidence)
    carried = carriers(rows, shared, columns, separations["trees"])
    classes = _class_names(shared, labels)
    verdict = conclude(
        separations,
        columns,
        carried,
        labels,
        classes=classes,
        only_source=only_source,
        only_target=only_target,
    )
    drawn = {c.name: distribution(rows, shared, c.name) for c in columns[:DRAWN] if not c.skipped}
    shown = {name: values for name, values in drawn.items() if values is not None}
    return Shift(separations, tuple(columns), carried, shown, labels, classes, verdict)


def _class_names(schema: Schema, labels: LabelShift | None) -> tuple[str, ...]:
    """Return the names of the classes; a private target's are not shown."""
    if labels is None:
        return ()
    if set(schema.target.columns) & set(schema.private):
        return tuple(f"class {k}" for k in range(len(labels.source)))
    return tuple(map(str, schema.target.classes))
