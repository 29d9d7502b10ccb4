"""Small prepared data sets, as the shards hold them."""

from typing import Any

import numpy as np
import pyarrow as pa

from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.training.memory import ArrayDataset, ArrayPart


def make_schema(
    task: str = "binary", n_numeric: int = 6, cardinalities: tuple[int, ...] = (5, 9), missing: bool = True
) -> Schema:
    numbers = tuple(
        Column(
            name=f"x{i}",
            type="numeric",
            arrow_type="double",
            parts=(f"x{i}",),
            center=(0.0,),
            scale=(1.0,),
            has_missing=missing and i == 0,
        )
        for i in range(n_numeric)
    )
    codes = tuple(
        Column(
            name=f"c{i}",
            type="categorical",
            arrow_type="string",
            categories=tuple(f"v{j}" for j in range(n - 2)),
            value_type="string",
        )
        for i, n in enumerate(cardinalities)
    )
    classes = {
        "binary": ("no", "yes"),
        "multiclass": ("a", "b", "c"),
        "multilabel": ("p", "q"),
        "regression": (),
    }[task]
    target = Target(
        columns=("y",),
        task=task,
        classes=classes,
        center=2.0 if task == "regression" else 0.0,
        scale=3.0 if task == "regression" else 1.0,
    )
    return Schema(columns=numbers + codes, target=target)


def make_part(schema: Schema, rows: int, seed: int) -> ArrayPart:
    rng = np.random.default_rng(seed)
    n_numeric = schema.numeric_width
    numeric = rng.normal(size=(rows, n_numeric)).astype(np.float32)
    codes = (
        np.stack([rng.integers(0, c.cardinality, rows) for c in schema.categorical], 1)
        if schema.categorical
        else np.zeros((rows, 0))
    )
    signal = (
        numeric @ np.linspace(-1, 1, n_numeric)
        + 0.3 * (codes.sum(1) - codes.sum(1).mean())
        + 0.3 * rng.normal(size=rows)
    )
    if schema.numeric and schema.numeric[0].has_missing:
        numeric[rng.random(rows) < 0.1, 0] = np.nan
    label: np.ndarray = {
        "binary": lambda: (signal > 1).astype(np.int64),
        "multiclass": lambda: np.digitize(signal, [-1, 1]).astype(np.int64),
        "multilabel": lambda: np.stack([signal > 0, signal < -1], 1).astype(np.float32),
        "regression": lambda: signal.astype(np.float64) * 3 + 2,
    }[schema.target.task]()
    return ArrayPart(numeric, codes.astype(np.int32), label)


def make_dataset(task: str = "binary", rows: int = 403, n_shards: int = 8, **schema: Any) -> ArrayDataset:
    made = make_schema(task, **schema)
    sizes = {"train": rows, "validation": rows // 3, "test": rows // 4}
    return ArrayDataset(made, {s: make_part(made, n, i) for i, (s, n) in enumerate(sizes.items())}, n_shards)


def with_costs(dataset: ArrayDataset, seed: int = 5) -> ArrayDataset:
    """The same rows with costs in a column, ``amount``, and ids."""
    rng = np.random.default_rng(seed)
    parts = {
        split: ArrayPart(
            part.numeric,
            part.categorical,
            part.label,
            rng.lognormal(1.0, 1.0, (len(part), 1)),
            pa.array([f"{split}-{i:05d}" for i in range(len(part))]),
        )
        for split, part in dataset.parts.items()
    }
    schema = dataset.schema.model_copy(update={"costs": ("amount",)})
    return ArrayDataset(schema, parts, dataset.n_shards)


def dealt_by_class(dataset: ArrayDataset) -> ArrayDataset:
    """The same training rows dealt class after class, as the sharding service deals them."""
    part = dataset.parts["train"]
    order = np.argsort(part.label, kind="stable")
    train = ArrayPart(part.numeric[order], part.categorical[order], part.label[order])
    return ArrayDataset(dataset.schema, {**dataset.parts, "train": train}, dataset.n_shards)
