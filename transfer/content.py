"""Rows known by their content: samples that do not depend on the order in which rows come."""

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.sharding.hashing import U64, mix, salt, seeded
from shoal.cluster.sharding.plan import row_ids

Ints = NDArray[np.int64]


def content_keys(*blocks: NDArray[np.generic], seed: int = 0) -> U64:
    """Hash each row over all blocks; equal rows have equal keys.

    Parameters
    ----------
    blocks
        Numbers ``[n]`` or ``[n, d]``; NaN equals NaN, and -0 equals 0.
    seed
        Another seed gives keys in another order.

    Returns
    -------
    uint64 ``[n]``
    """
    total = np.zeros(len(blocks[0]), np.uint64)
    for b, block in enumerate(blocks):
        columns = block.reshape(len(block), -1)
        for j in range(columns.shape[1]):
            values = np.asarray(columns[:, j], np.float64) + 0.0
            values[np.isnan(values)] = np.nan  # one of its many bit patterns
            total += mix(values.view(np.uint64) ^ salt(f"{b}/{j}"))
    return seeded(total, seed)


def draw(keys: U64, limit: int | None = None) -> Ints:
    """Return which rows are in a sample of at most `limit`, in an order of their own, int64 ``[min(n, limit)]``.

    The sample and its order are the same for all orders of the rows, up to rows of equal content, and look drawn at random:
    equal rows are drawn one by one.
    """
    order = np.argsort(keys, kind="stable")
    return np.asarray(
        order[np.argsort(row_ids(keys[order]).view(np.uint64), kind="stable")][:limit], np.int64
    )
