"""What the loop asks of a strategy, and the strategy of one worker.

A strategy knows how gradients become one over the workers; the loop does not. Collectives go through it too, so
that the loop runs without a process group when there is one worker.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Strategy:
    """One worker: every operation over "all workers" is the identity."""

    name = "single"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return 0

    @property
    def world_size(self) -> int:
        """W."""
        return 1

    def wrap(self, module: nn.Module, unused_parameters: bool) -> nn.Module:  # noqa: ARG002
        """Return the module whose forward and backward the loop calls."""
        return module

    def accumulate(self, module: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002
        """Within the block, backward passes add to the local gradient; the first one after it reduces."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, this worker's share of the global loss, to the parameters."""
        loss.backward()  # type: ignore[no-untyped-call]

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over workers."""
        return values

    def maximum(self, value: float) -> float:
        """Return the largest of the workers' values."""
        return value

    def all_gather(self, values: Tensor) -> list[Tensor]:
        """Return each worker's tensor of the same shape, on every worker."""
        return [values]

    def gather_objects(self, value: Any) -> list[Any] | None:
        """Return every worker's value on rank 0, None elsewhere."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every worker."""
        return value
