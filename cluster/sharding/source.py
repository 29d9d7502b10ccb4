"""The input as one table: files of equal or reconcilable schema, read in pieces."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from shoal.cluster.errors import DataError
from shoal.cluster.filesystems import redact
from shoal.cluster.sharding.arrays import is_bytes, is_text, normalise
from shoal.cluster.sharding.listing import InputFile


@dataclass(frozen=True)
class Source:
    """Input files under one schema.

    Parameters
    ----------
    files
        In the order in which rows are read; no result depends on it.
    schema
        What every file is read as. Strings are plain strings here, dictionaries when read.
    groups
        Rows of each row group of each file.
    stored_bytes
        Uncompressed size of each column over all files.
    notices
        Which columns were unified.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    groups: tuple[tuple[int, ...], ...]
    stored_bytes: dict[str, int]
    notices: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows of all files."""
        return sum(map(sum, self.groups))

    def without(self, names: Collection[str]) -> "Source":
        """Return the same files, of which some columns are never read."""
        return replace(self, schema=pa.schema([field for field in self.schema if field.name not in names]))

    def row_bytes(self, names: Sequence[str]) -> int:
        """Estimate the memory of one row of these columns, in bytes."""
        total = 0.0
        for name in names:
            kind = self.schema.field(name).type
            if is_text(kind):
                total += 4 + self.stored_bytes[name] / max(1, self.n_rows)
            elif is_bytes(kind) or pa.types.is_nested(kind):
                total += 8 + self.stored_bytes[name] / max(1, self.n_rows)
            else:
                total += max(1, kind.bit_width // 8) if not pa.types.is_null(kind) else 0
        return max(1, math.ceil(total))


def open_source(files: Sequence[InputFile]) -> Source:
    """Read every file's footer and unify the schemas.

    Raises
    ------
    DataError
        If a file is not Parquet, is damaged, or has other columns or types than the rest; if there are no
        rows.
    """
    footers = [_footer(file) for file in files]
    schema, notices = _unify([(file.uri, schema) for file, (_, schema) in zip(files, footers, strict=True)])
    stored: dict[str, int] = dict.fromkeys(schema.names, 0)
    for metadata, _ in footers:
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                stored[_top_level(chunk.path_in_schema, stored)] += chunk.total_uncompressed_size
    groups = tuple(
        tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        for metadata, _ in footers
    )
    if sum(map(sum, groups)) == 0:
        raise DataError(f"data.path: {_some(files)} has no rows; give data with rows")
    return Source(tuple(files), schema, groups, stored, tuple(notices))


def read(
    source: Source,
    index: int,
    names: Sequence[str],
    batch_rows: int | None,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """Read columns of one file, strings as dictionaries.

    Parameters
    ----------
    source
        The input.
    index
        Which file.
    names
        The columns.
    batch_rows
        Rows at a time; None for the whole file at once.
    groups
        The row groups to read, where rows are read some at a time; None for all.

    Yields
    ------
    pyarrow.Table
        Each column in one chunk.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    file = source.files[index]
    strings = [name for name in names if is_text(source.schema.field(name).type)]
    try:
        with pq.ParquetFile(
            file.filesystem.open_input_file(file.path), read_dictionary=strings, pre_buffer=batch_rows is None
        ) as parquet:
            if batch_rows is None:
                yield _as_one(parquet.read(columns=list(names)), source.schema, names, file)
            else:
                chosen = None if groups is None else list(groups)
                for batch in parquet.iter_batches(batch_rows, row_groups=chosen, columns=list(names)):
                    yield _as_one(pa.Table.from_batches([batch]), source.schema, names, file)
    except MemoryError:
        raise  # Arrow's is an ArrowException too, and says nothing of the file
    except (OSError, pa.ArrowException) as error:
        raise damaged(file, error) from error


def _as_one(table: pa.Table, schema: pa.Schema, names: Sequence[str], file: InputFile) -> pa.Table:
    arrays = []
    for name in names:
        array = normalise(table.column(name))
        kind = schema.field(name).type
        if is_text(kind) and pa.types.is_null(array.type):
            array = normalise(array.cast(kind))
        elif not is_text(kind) and array.type != kind:
            try:
                array = array.cast(kind)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"column {name!r} of {file.uri} is {array.type} and cannot be read as {kind}, the type that "
                    "holds the other files' values, without loss; write it with one type in all files"
                ) from error
        arrays.append(array)
    return pa.table(arrays, names=list(names))


def _footer(file: InputFile) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with pq.ParquetFile(file.filesystem.open_input_file(file.path)) as parquet:
            return parquet.metadata, parquet.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise damaged(file, error) from error


def damaged(file: InputFile, error: Exception) -> DataError:
    """Say what is wrong with a file that does not read as Parquet, and what to do."""
    try:
        with file.filesystem.open_input_file(file.path) as raw:
            size = raw.size()
            start, end = raw.read_at(4, 0), raw.read_at(4, max(0, size - 4))
    except OSError as gone:
        return DataError(f"cannot read {file.uri}: {_line(gone)}; check that it is there and may be read")
    if not size:
        return DataError(f"{file.uri} is empty (0 bytes), not a Parquet file; write it again")
    if start != b"PAR1":
        return DataError(
            f"{file.uri} is not a Parquet file (it starts with {start!r}, not b'PAR1'); convert it, for example with "
            "pandas.read_csv(…).to_parquet(…)"
        )
    if end != b"PAR1":
        return DataError(
            f"{file.uri} is cut short: {size:,} bytes without the footer that ends a Parquet file; write or copy it again"
        )
    return DataError(
        f"{file.uri} is a damaged Parquet file ({size:,} bytes): {_line(error)}; write or copy it again"
    )


def _line(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    return redact("".join(filter(str.isprintable, first)).rstrip(" .:"))


def _some(files: Sequence[InputFile]) -> str:
    return files[0].uri if len(files) == 1 else f"{files[0].uri} and {len(files) - 1} more"


def _top_level(path: str, names: dict[str, int]) -> str:
    """Return the top-level column of a Parquet leaf; its name may hold dots itself."""
    while path not in names and "." in path:
        path = path.rpartition(".")[0]
    return path


def _unify(schemas: Sequence[tuple[str, pa.Schema]]) -> tuple[pa.Schema, list[str]]:
    first_file, first = schemas[0]
    duplicates = {name for name in first.names if first.names.count(name) > 1}
    if duplicates:
        raise DataError(f"{first_file} has several columns named {sorted(duplicates)[0]!r}; rename them")
    types: dict[str, pa.DataType] = {field.name: _plain(field.type) for field in first}
    changed: dict[str, tuple[pa.DataType, pa.DataType, str]] = {}
    for file, schema in schemas[1:]:
        for has, lacks, having, lacking in (
            (schema, first, file, first_file),
            (first, schema, first_file, file),
        ):
            odd = [name for name in has.names if name not in lacks.names]
            if odd:
                raise DataError(
                    f"the files differ: column {odd[0]!r} is in {having} but not in {lacking}; give files of one "
                    "schema, or name the ones that belong together in data.path"
                )
        for field in schema:
            old, new = types[field.name], _plain(field.type)
            if old == new:
                continue
            both = _common(old, new)
            if both is None:
                raise DataError(
                    f"the files differ: column {field.name!r} is {new} in {file} but {old} in {first_file}; write it "
                    "with one type"
                )
            types[field.name] = both
            changed[field.name] = (old, new, file)
    # Where the files disagree on the order of the columns, the order of the files must not decide.
    agreed = all(schema.names == first.names for _, schema in schemas)
    fields = [pa.field(name, types[name]) for name in (first.names if agreed else sorted(first.names))]
    notices = [
        f"column {name!r} is {old} in some files and {new} in others: read as {types[name]}"
        for name, (old, new, _) in changed.items()
    ]
    return pa.schema(fields), notices


def _plain(kind: pa.DataType) -> pa.DataType:
    """Take off what does not change the values: extensions, dictionaries of strings, wide offsets, views."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if is_text(kind):
        return pa.string()
    if is_bytes(kind):
        return pa.binary()
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the type that holds both without loss, if there is one."""
    if pa.types.is_null(a):
        return b
    if pa.types.is_null(b):
        return a
    if pa.types.is_integer(a) and pa.types.is_floating(b):
        return pa.float64()
    if pa.types.is_floating(a) and pa.types.is_integer(b):
        return pa.float64()
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and (a.tz is None) != (b.tz is None):
        return None
    if pa.types.is_date(a) and pa.types.is_timestamp(b):
        return b
    if pa.types.is_timestamp(a) and pa.types.is_date(b):
        return a
    try:
        fields = [pa.schema([pa.field("x", kind)]) for kind in (a, b)]
        merged = pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    same = all(pa.types.is_integer(k) for k in (a, b)) or all(pa.types.is_floating(k) for k in (a, b))
    other = all(pa.types.is_temporal(k) or pa.types.is_decimal(k) for k in (a, b))
    return merged if same or other else None
