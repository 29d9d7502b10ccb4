"""The network of a trained model, from its encoded rows on, for methods by gradients.

Shape legend: n rows, E encoded features, K outputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.cluster.sharding.prepare import Prepared
from shoal.evaluation.explain.gradients import Differentiable
from shoal.training.ensembles.model import EnsembleModel
from shoal.training.models import Linear, Model


class _Behind(nn.Module):
    """What comes behind the encoder: encoded rows to logits, of several members as the ensemble joins them."""

    def __init__(self, members: Sequence[Model], widths: Sequence[int], target: Target) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(member.body for member in members)
        self.widths = list(widths)
        is_linear = target.task == "regression" and target.link == "identity"
        self.scale, self.center = (target.scale, target.center) if is_linear else (1.0, 0.0)

    def forward(self, encoded: Tensor) -> Tensor:
        """Return ``[n, K]``: logits, or numbers in the target's units."""
        logits = [
            self._body(body, part)
            for body, part in zip(self.bodies, torch.split(encoded, self.widths, dim=1), strict=True)
        ]
        found = logits[0] if len(logits) == 1 else EnsembleModel.joined(torch.stack(logits).double())
        return found * self.scale + self.center

    @staticmethod
    def _body(body: nn.Module, encoded: Tensor) -> Tensor:
        logits: Tensor
        if isinstance(body, Linear):
            width = body.numbers.in_features
            logits = body.numbers(encoded[:, :width])
            if body.categories is not None:
                looked_up = encoded[:, width:].reshape(len(encoded), -1, logits.shape[1])
                logits = logits + looked_up.sum(1)
        else:
            logits = body(encoded)
        return logits


def refuse_gradients(model: Model, schema: Schema, method: str) -> None:
    """Refuse a model that gives no gradients of its encoded rows.

    Raises
    ------
    ConfigError
        Saying why, and what to use.
    """
    reason = ""
    if model.is_estimator:
        reason = "the model is scikit-learn's and has no gradients"
    elif schema.media:
        reason = f"column {schema.media[0].name!r} is {schema.media[0].of_kind}, whose tokens or pixels add up to no value"
    elif any(m.by_type and not isinstance(m.body, Linear) for m in _members(model)):
        reason = (
            "the model reads columns by type, so that there is no one matrix of numbers to take gradients of"
        )
    if reason:
        raise ConfigError(f"{method}: {reason}; use permutation or shap")


def differentiable(model: Model, schema: Schema) -> Differentiable:
    """Return the network behind the encoder, and which raw column each encoded feature belongs to.

    Embeddings, indicators of missing values and parts of time stamps belong to their columns.
    """
    members = _members(model)
    number = {column.name: i for i, column in enumerate(schema.columns)}
    owners = [_owner(member, schema, number) for member in members]
    network = _Behind(members, [len(owner) for owner in owners], schema.target)
    return Differentiable(network, np.concatenate(owners))


def encoded(model: Model, prepared: Prepared) -> Tensor:
    """Return encoded rows ``[n, E]``, what `differentiable` takes."""
    dtype = next(p.dtype for p in model.parameters())
    numeric = torch.from_numpy(np.array(prepared.numeric)).to(dtype)
    codes = torch.from_numpy(np.array(prepared.categorical))
    with torch.no_grad():
        return torch.cat([_encoded(member, numeric, codes) for member in _members(model)], dim=1)


def _members(model: Model) -> list[Model]:
    if not isinstance(model, EnsembleModel):
        return [model]
    return [member for member in model.members if isinstance(member, Model)]


def _encoded(model: Model, numeric: Tensor, codes: Tensor) -> Tensor:
    if not isinstance(model.body, Linear):
        found: Tensor = model.encoder(numeric, codes)
        return found
    filled, body = model.encoder.fill(numeric), model.body
    if body.categories is None:
        return filled
    looked_up = body.categories(codes[:, : model.encoder.n_codes] + body.first)
    return torch.cat([filled, looked_up.flatten(1)], dim=1)


def _owner(model: Model, schema: Schema, number: dict[str, int]) -> NDArray[np.int64]:
    numeric = [number[c.name] for c in schema.numeric for _ in range(c.width)]
    found = [*numeric, *(numeric[i] for i in model.encoder.indicators.tolist())]
    if isinstance(model.body, Linear):
        found += [number[c.name] for c in schema.categorical for _ in range(model.n_outputs)]
    else:
        for column, table in zip(schema.categorical, model.encoder.embeddings, strict=False):
            assert isinstance(table, nn.Embedding)
            found += [number[column.name]] * table.embedding_dim
    return np.array(found, np.int64)
