"""Which source domain a row is of: a number that travels with it, behind its cost columns."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.arrays import indices, normalise
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.names import plural

MOST = 1_000


def domains_of(table: pa.Table, data: DataConfig) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Return the domains, in the order of their names, and each row's number among them, ``[n]``.

    Raises
    ------
    DataError
        If a row is of none, or the column does not name domains.
    """
    assert data.domain is not None
    column = normalise(table.column(data.domain))
    if column.null_count:
        raise DataError(
            f"data.domain: {plural(column.null_count, 'row')} without a value in {data.domain!r}; give each row its domain"
        )
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    used, codes = np.unique(indices(column), return_inverse=True)
    names = [str(name) for name in column.dictionary.take(pa.array(used)).to_pylist()]
    if len(names) > MOST:
        raise DataError(
            f"data.domain: {data.domain!r} has {len(names):,} values; it must name the domain of each row, of which there are at "
            f"most {MOST:,}"
        )
    order = np.argsort(names, kind="stable")
    number = np.empty(len(order))
    number[order] = np.arange(len(order))
    return tuple(names[i] for i in order), number[codes]
