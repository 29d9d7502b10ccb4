"""A linear probe of each layer: what a linear model reads from its features, judged on validation rows.

References
----------
Alain and Bengio (2017), "Understanding intermediate layers using linear classifier probes".
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from shoal.cluster.config import StorageConfig
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.storage import Storage
from shoal.transfer.features.extract import path_of

MOST_ROWS = 20_000  # that a probe is fitted to, the first of every shard alike


@dataclass(frozen=True)
class Probed:
    """What a probe made of one layer.

    Attributes
    ----------
    layer, width
        Its name, and F.
    rows
        That it was fitted to.
    labels, scores
        Of the validation rows, as `Metric.value` takes them.
    seconds
        It took.
    """

    layer: str
    width: int
    rows: int
    labels: np.ndarray
    scores: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Fits a linear model to one layer's features of training rows, standardised.

    Parameters
    ----------
    run_uri, storage
        Where the features are.
    target, n_shards
        Of the rows.
    """

    run_uri: str
    storage: StorageConfig
    target: Target
    n_shards: int

    def __call__(self, layer: str) -> Probed:
        """Fit and score: logistic regression (C = 1) for classes, one for each of several labels, ridge for numbers."""
        started = time.perf_counter()
        x, y = self._read("train", layer, MOST_ROWS)
        x_validation, y_validation = self._read("validation", layer, None)
        model = make_pipeline(StandardScaler(), self._linear())
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        if self.target.task == "regression":
            scores = np.asarray(model.predict(x_validation))
        else:
            scores = np.asarray(model.predict_proba(x_validation))
            if self.target.task == "multiclass":  # classes that no row of the sample has
                full = np.zeros((len(scores), len(self.target.classes)))
                full[:, model.classes_] = scores
                scores = full
            elif self.target.task == "binary":
                scores = scores[:, 1]
        return Probed(layer, x.shape[1], len(x), y_validation, scores, time.perf_counter() - started)

    def _linear(self) -> Any:
        if self.target.task == "regression":
            return Ridge()
        logistic = LogisticRegression(max_iter=1000)
        return OneVsRestClassifier(logistic) if self.target.task == "multilabel" else logistic

    def _read(self, split: str, layer: str, most: int | None) -> tuple[np.ndarray, np.ndarray]:
        run, target = Storage.open(self.run_uri, self.storage), self.target
        names = [str(c) for c in target.classes] if target.task == "multilabel" else [target.columns[0]]
        tables = []
        for v in range(self.n_shards):
            if not run.exists(path_of(split, v)):  # a shard without rows
                continue
            with run.open_input(path_of(split, v)) as source:
                table = pq.read_table(source, columns=[layer, *names])
            tables.append(table if most is None else table.slice(0, -(-most // self.n_shards)))
        table = pa.concat_tables(tables).combine_chunks()
        column = table.column(layer).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        x = column.values.to_numpy().reshape(len(table), -1)
        return np.asarray(x, np.float64), self._codes(table, names)

    def _codes(self, table: pa.Table, names: list[str]) -> np.ndarray:
        if self.target.task == "multilabel":
            return np.column_stack([table.column(name).to_numpy() for name in names]).astype(np.float32)
        values = table.column(names[0]).to_pylist()
        if self.target.task == "regression":
            return np.asarray(values, np.float64)
        codes = {name: code for code, name in enumerate(self.target.classes)}
        return np.array([codes[value] for value in values], np.int64)
