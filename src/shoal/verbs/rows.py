"""Raw rows for a trained model, from Parquet or CSV, a batch at a time and in their order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import DataError
from shoal.cluster.filesystems import explained, redact
from shoal.cluster.sharding.listing import InputFile, find
from shoal.cluster.sharding.manifest import Column, Schema
from shoal.cluster.sharding.names import nearest
from shoal.cluster.sharding.prepare import prepare
from shoal.cluster.sharding.source import damaged

BATCH_ROWS = 65_536
PREPARED_BYTES = 64 << 20  # of texts and images
CSV_BLOCK = 8 << 20
CSV = (".csv", ".csv.gz")


def raw_batches(
    files: Sequence[InputFile], schema: Schema, *, labels: bool = False, costs: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yield the columns that a model needs, and the id where it is there.

    Parameters
    ----------
    files
        From `input_files`.
    schema
        The model's.
    labels
        Whether the target columns are needed too.
    costs
        Cost columns that are needed too.

    Yields
    ------
    pyarrow.Table
        At most `BATCH_ROWS` rows of Parquet, or a block of CSV; fewer of texts and images, which are larger when prepared.

    Raises
    ------
    DataError
        If a file is damaged, or lacks a column.
    """
    wanted = [column.name for column in schema.columns]
    if labels:
        wanted += [name for name in schema.target.columns if name not in wanted]
    wanted += [name for name in costs if name not in wanted]
    optional = [schema.id] if schema.id and schema.id not in wanted else []
    size = 4 * sum(column.block for column in schema.columns)  # of a row's texts and images
    most = max(1, min(BATCH_ROWS, PREPARED_BYTES // size)) if size else CSV_BLOCK  # no block has as many rows
    for file in files:
        read = _csv if file.path.lower().endswith(CSV) else _parquet
        for batch in read(file, schema, wanted, optional, costs):
            for start in range(0, max(1, batch.num_rows), most):
                yield batch.slice(start, most)


def input_files(paths: str | Sequence[str], config: StorageConfig) -> list[InputFile]:
    """List the files of ``--data``: Parquet files, folders and globs, or CSV files (ending in .csv or .csv.gz).

    Raises
    ------
    DataError
        If there are none.
    """
    with given_as("--data"):
        return find([paths] if isinstance(paths, str) else paths, config)


@contextmanager
def given_as(argument: str) -> Iterator[None]:
    """Let messages about ``data.path`` name the argument that it came from instead."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("data.path", argument)) from error


def _parquet(
    file: InputFile, schema: Schema, wanted: list[str], optional: list[str], costs: Sequence[str]
) -> Iterator[pa.Table]:
    with explained("read", file.uri), file.filesystem.open_input_file(file.path) as source:
        try:
            reader = pq.ParquetFile(source)
            found = reader.schema_arrow
            _require(file, found, schema, wanted, costs)
            names = [*wanted, *(name for name in optional if name in found.names)]
            for batch in reader.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False):
                yield pa.Table.from_batches([batch])
        except MemoryError:
            raise  # Arrow's is an ArrowException too
        except (OSError, pa.ArrowException) as error:
            raise damaged(file, error) from error


def _csv(
    file: InputFile, schema: Schema, wanted: list[str], optional: list[str], costs: Sequence[str]
) -> Iterator[pa.Table]:
    types = dict.fromkeys(costs, pa.float64()) | {
        column.name: _csv_type(file, column) for column in schema.columns
    }
    types |= dict.fromkeys(schema.target.columns, _label_type(schema))
    if schema.id:
        types.setdefault(schema.id, pa.string())  # carried as it is written
    with explained("read", file.uri), file.filesystem.open_input_stream(file.path) as source:
        try:
            reader = csv.open_csv(
                source,
                read_options=csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
                convert_options=csv.ConvertOptions(column_types=types),
            )
            _require(file, reader.schema, schema, wanted, costs)
            names = [*wanted, *(name for name in optional if name in reader.schema.names)]
            for batch in reader:
                yield _empty_is_missing(pa.Table.from_batches([batch]).select(names))
        except pa.ArrowException as error:
            raise DataError(
                f"{file.uri} does not read as CSV with the model's types: {_line(error)}"
            ) from error


def _require(
    file: InputFile, found: pa.Schema, schema: Schema, wanted: list[str], costs: Sequence[str]
) -> None:
    if any(column.name not in found.names for column in schema.columns):
        prepare(found.empty_table(), schema)  # says which one, and what is most like it
    if absent := [name for name in costs if name not in found.names]:
        raise DataError(
            f"{file.uri} has no column {absent[0]!r}, in which the costs stand that decisions follow"
            f"{nearest(absent[0], found.names)}"
        )
    missing = [name for name in wanted if name not in found.names]
    if missing:
        raise DataError(
            f"{file.uri} has no target column {', '.join(map(repr, missing))}; evaluating needs labels. "
            "For predictions alone: shoal predict"
        )


def _csv_type(file: InputFile, column: Column) -> pa.DataType:
    if column.type == "tensor":
        raise DataError(f"{file.uri}: CSV cannot hold the list column {column.name!r}; give Parquet")
    if column.type == "categorical":
        return {"integer": pa.int64(), "boolean": pa.bool_(), "float": pa.float64()}.get(
            column.value_type, pa.string()
        )
    if column.type == "boolean":
        return pa.bool_()
    if column.type == "numeric":
        exact = pa.uint64() if column.arrow_type == "uint64" else pa.int64()
        return exact if column.origin else pa.float64()
    if column.arrow_type.startswith("date"):
        return pa.date32()
    if column.arrow_type.startswith("timestamp"):
        return pa.timestamp("us", tz="UTC" if "tz=" in column.arrow_type else None)
    return pa.string()  # ISO dates that were strings in training


def _label_type(schema: Schema) -> pa.DataType:
    if schema.target.task in ("regression", "multilabel"):
        return pa.float64()
    first = schema.target.classes[0]
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(type(first), pa.string())


def _empty_is_missing(table: pa.Table) -> pa.Table:
    """CSV cannot tell an empty text from a missing one; words such as NA stay texts, as they are in Parquet."""
    for i, name in enumerate(table.column_names):
        column = table.column(i)
        if pa.types.is_string(column.type):
            null = pa.scalar(None, pa.string())
            table = table.set_column(i, name, pc.if_else(pc.equal(column, ""), null, column))
    return table


def _line(error: Exception) -> str:
    return redact((str(error).strip().splitlines() or [type(error).__name__])[0])
