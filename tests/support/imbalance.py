"""Skewed training rows for the tests of resampling."""

import numpy as np
from sklearn.datasets import load_breast_cancer, load_wine

from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.imbalance.rows import TrainingRows
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.prepare import Prepared


def training_rows(x, y, codes=None, boolean=()):
    """Rows in dealing order, as the service hands them over."""
    order = np.argsort(y, kind="stable")
    x, y = np.asarray(x, np.float32)[order], np.asarray(y)[order]
    codes = np.empty((len(x), 0), np.int32) if codes is None else np.asarray(codes, np.int32)[order]
    columns = [
        Column(
            name=f"x{i}",
            type="boolean" if i in boolean else "numeric",
            arrow_type="double",
            parts=(f"x{i}",),
        )
        for i in range(x.shape[1])
    ]
    columns += [
        Column(name=f"c{i}", type="categorical", arrow_type="string", categories=tuple("abcdef"))
        for i in range(codes.shape[1])
    ]
    classes = tuple(f"k{c}" for c in range(int(y.max()) + 1))
    task = "binary" if len(classes) == 2 else "multiclass"
    schema = Schema(columns=tuple(columns), target=Target(columns=("y",), task=task, classes=classes))
    counts = np.bincount(y, minlength=len(classes))
    return TrainingRows(Prepared(x, codes), np.concatenate([[0], np.cumsum(counts)]), schema)


def skewed(seed=0, sizes=(300, 40, 25), width=6, spread=1.5):
    """Overlapping classes of different sizes, no two rows alike."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = generator.normal(size=(len(y), width)) + spread * generator.normal(size=(len(sizes), width))[y]
    return x.astype(np.float32), y


def real(kind):
    """scikit-learn's sets, standardised, with the smaller classes thinned."""
    data = load_breast_cancer() if kind == "binary" else load_wine()
    x = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    keep = np.concatenate(
        [np.flatnonzero(data.target == c)[: 200 // (1 + 2 * c)] for c in np.unique(data.target)]
    )
    return x[keep].astype(np.float32), data.target[keep]


def config(written):
    return DataConfig.model_validate({"path": "p", "target": "y", "imbalance": written}).imbalance
