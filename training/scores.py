"""From logits to scores, and the judging pass over a part: every row once, whoever reads it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from shoal.cluster.sharding.manifest import Target
from shoal.training.batches import Dataset, evaluation_rows
from shoal.training.costs import COST, Amounts, by_name
from shoal.training.strategies.base import Strategy

Scores = NDArray[np.float64]


def scores_from_logits(logits: NDArray[np.floating], target: Target) -> Scores:
    """Turn logits ``[n, K]`` into float64 scores, corrected for training rows that were resampled.

    Returns
    -------
    numpy.ndarray
        binary: ``[n]`` probability of the event; multiclass and multi-label: ``[n, K]`` probabilities;
        regression: ``[n]`` in the target's own units.
    """
    wide = logits.astype(np.float64)
    if target.task == "regression" and target.link == "log":
        return np.asarray(target.center * np.exp(wide[:, 0]))
    if target.task == "regression":
        return np.asarray(wide[:, 0] * target.scale + target.center)
    if target.prior_correction:
        # Saerens, Latinne and Decaestecker (2002), equation 4, in log odds: the model learned from other class shares.
        shift = np.array(target.prior_correction)
        wide = wide + (shift if target.task == "multiclass" else shift[1] - shift[0])
    if target.task == "multiclass":
        wide = np.exp(wide - wide.max(axis=1, keepdims=True))
        return np.asarray(wide / wide.sum(axis=1, keepdims=True))
    with np.errstate(over="ignore"):  # exp overflows to infinity, whose reciprocal is the right 0
        probability = 1.0 / (1.0 + np.exp(-wide))
    return probability[:, 0] if target.task == "binary" else probability


@torch.no_grad()  # and not inference mode: parameters that ZeRO-3 gathers here are trained on later
def forward_rows(
    model: nn.Module, numeric: NDArray[np.float32], categorical: NDArray[np.int32], device: torch.device
) -> NDArray[np.floating]:
    """Return logits ``[n, K]`` of prepared rows, in blocks of bounded memory."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    blocks = []
    most = evaluation_rows(categorical.shape[1])
    for start in range(0, len(numeric), most):
        rows = slice(start, start + most)
        # A copy: shards are mapped read-only, and torch wants memory that it may write.
        numbers = torch.from_numpy(np.array(numeric[rows])).to(device, dtype)
        codes = torch.from_numpy(np.array(categorical[rows])).to(device)
        blocks.append(model(numbers, codes).cpu().numpy())
    return np.concatenate(blocks) if blocks else np.empty((0, 1), np.float32)


@dataclass(frozen=True)
class Judged:
    """A part's rows in shard order, on rank 0; `amounts` are their cost columns."""

    row_id: pa.ChunkedArray
    label: NDArray[np.generic]
    score: Scores
    amounts: Amounts = field(default_factory=dict)


class Judge:
    """Scores a part of the data over all workers, without padding a row or dropping one.

    Each worker takes its shards, shard by shard, so that the arithmetic of a row does not depend on W. ``target`` says how
    logits become answers.
    """

    def __init__(self, dataset: Dataset, strategy: Strategy, target: Target) -> None:
        self.dataset, self.strategy, self.target = dataset, strategy, target
        self._constant: dict[str, tuple[pa.ChunkedArray, NDArray[np.generic], Scores] | None] = {}

    def _own(self, split: str) -> range:
        return range(self.strategy.rank, len(self.dataset.shard_rows(split)), self.strategy.world_size)

    def _keep_pace(self, model: nn.Module, split: str) -> None:
        """Make as many passes as the worker with the most, where parameters travel in each of them."""
        if not self.strategy.lockstep:
            return
        passes, schema = [0] * self.strategy.world_size, self.dataset.schema
        most = evaluation_rows(schema.codes_width)
        for v, rows in enumerate(self.dataset.shard_rows(split)):
            passes[v % self.strategy.world_size] += math.ceil(rows / most)
        numeric = np.zeros((1, sum(c.width for c in schema.numeric)), np.float32)
        categorical = np.zeros((1, schema.codes_width), np.int32)
        for _ in range(max(passes) - passes[self.strategy.rank]):
            forward_rows(model, numeric, categorical, self.strategy.device)

    def _in_order(self, own: dict[int, Any]) -> list[Any] | None:
        gathered = self.strategy.gather_objects(own)
        if gathered is None:
            return None
        merged = {v: value for part in gathered for v, value in part.items()}
        return [merged[v] for v in sorted(merged)]

    def __call__(self, model: nn.Module, split: str) -> Judged | None:
        """Score a part with a model in evaluation mode; the result is on rank 0, None elsewhere."""
        shards = {v: self.dataset.shard(split, v) for v in self._own(split)}
        if split not in self._constant:  # labels, ids and costs travel once
            constant = self._in_order(
                {v: (s.row_id, np.array(s.label), np.array(s.cost)) for v, s in shards.items()}
            )
            self._constant[split] = None if constant is None else _join(constant)
        own = {
            v: forward_rows(model, s.numeric, s.categorical, self.strategy.device) for v, s in shards.items()
        }
        self._keep_pace(model, split)
        logits = self._in_order(own)
        known = self._constant[split]
        if logits is None or known is None:
            return None
        joined = np.concatenate([block for block in logits if len(block)])
        ids, labels, costs = known
        amounts = by_name(costs, self.dataset.schema.costs)
        return Judged(ids, labels, scores_from_logits(joined, self.target), amounts)


def _join(
    parts: list[tuple[pa.Array, NDArray[np.generic], Scores]],
) -> tuple[pa.ChunkedArray, NDArray[np.generic], Scores]:
    ids, labels, costs = zip(*parts, strict=True)
    return pa.chunked_array(ids), np.concatenate(labels), np.concatenate(costs)


def predictions_table(parts: dict[str, Judged], target: Target) -> pa.Table:
    """Return the table of `predictions.parquet`: row_id, split, label, the scores, and ``cost_<column>`` where there are costs.

    Class labels are text; regression labels and predictions are in the target's own units. Multi-label
    labels have a column each, ``label_<name>``.
    """
    tables = []
    for split, judged in parts.items():
        columns: dict[str, object] = {
            "row_id": judged.row_id,
            "split": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(judged.label), np.int32)), [split]),
        }
        names = [str(c) for c in target.classes]
        if target.task == "regression":
            columns["label"] = judged.label
            columns["prediction"] = judged.score
        elif target.task == "multilabel":
            columns |= {f"label_{name}": judged.label[:, k].astype(np.int8) for k, name in enumerate(names)}
            columns |= {f"score_{name}": judged.score[:, k] for k, name in enumerate(names)}
        else:
            columns["label"] = pa.DictionaryArray.from_arrays(
                pa.array(judged.label.astype(np.int32)), pa.array(names)
            )
            score = judged.score
            if target.task == "binary":
                score = np.stack([1.0 - score, score], axis=1)
            columns |= {f"score_{name}": score[:, k] for k, name in enumerate(names)}
        columns |= {f"{COST}{name}": values for name, values in judged.amounts.items()}
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)
