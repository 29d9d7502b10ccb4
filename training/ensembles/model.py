"""A costing ensemble as one model.

Shape legend: M members, B rows, D numeric features, C categorical columns, K outputs.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

from shoal.training.models import Model


class EnsembleModel(Model):
    """The mean of the members' probabilities, as logits; each member has an input encoder of its own.

    The mean is taken in float64: the logits of one member are its own, to the last bits.

    Parameters
    ----------
    members
        Models of the same columns and classes; one output for two classes, otherwise one a class.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        nn.Module.__init__(self)
        self.members = nn.ModuleList(members)
        self.n_outputs = members[0].n_outputs
        self.by_type = members[0].by_type
        self.beside = None

    def forward(
        self,
        numeric: Tensor,
        categorical: Tensor,
        share: float = 1.0,
        others: tuple[Tensor, Tensor] | None = None,
        told: Any = None,
    ) -> Any:
        """Return float64 ``[B, K]``: the log odds of the event, or log probabilities, of ``[B, D]`` and ``[B, C]``.

        With ``told``, return a tuple: these, and what the module beside makes of them and of each member's logits ``[M, B, K]``.
        """
        del share, others  # it sees no blends
        logits = torch.stack([member(numeric, categorical).double() for member in self.members])  # [M, B, K]
        mean = self.joined(logits)
        return mean if told is None or self.beside is None else (mean, *self.beside(mean, told, logits))

    @staticmethod
    def joined(logits: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of the mean probability of members' logits ``[M, B, K]``."""
        if logits.shape[-1] == 1:
            return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)
        return log_softmax(logits, dim=-1).logsumexp(0) - math.log(len(logits))
