"""A small table that a linear model can learn."""

import numpy as np
import pyarrow as pa


def rows(n=300, seed=0, order=None):
    """A table that a linear model can learn: two numbers, a category, an id."""
    generator = np.random.default_rng(seed)
    x, z = generator.normal(size=(2, n))
    kind = generator.choice(["a", "b", "c"], n)
    score = 2 * x - z + (kind == "a") + generator.logistic(size=n) * 0.3
    table = pa.table(
        {
            "x": x,
            "z": z,
            "kind": kind,
            "key": [f"k{i:04d}" for i in range(n)],
            "y": np.where(score > 0.8, "yes", "no"),
        }
    )
    return table if order is None else table.take(pa.array(order))
