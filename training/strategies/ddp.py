"""Data parallelism by torch's DistributedDataParallel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shoal.training.config import TrainingConfig
from shoal.training.optimizers.searching import Closure, Searched
from shoal.training.strategies.base import Strategy


class DDP(Strategy):
    """Gradients averaged over the default process group, which exists already."""

    name = "ddp"

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """W."""
        return dist.get_world_size()

    def wrap(self, module: nn.Module, config: TrainingConfig, unused_parameters: bool) -> nn.Module:
        """Wrap for averaging; parameters that a step does not use count as zero gradients on every worker."""
        self.wrapped = super().wrap(module, config, unused_parameters)
        self._steps = 0
        if not any(p.requires_grad for p in module.parameters()):
            return module
        self.wrapped = DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
            find_unused_parameters=unused_parameters,
        )
        return self.wrapped

    def accumulate(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within the block, backward passes add to the local gradient; the first one after it reduces."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """DDP takes the mean over workers; the factor W makes it their sum."""
        super().backward(loss * self.world_size)

    def step(self) -> bool:
        """Clip where asked and take an optimiser step; return whether loss scaling let it be taken."""
        self._steps += 1
        return super().step()

    def search(self, closure: Closure) -> Searched:
        """Take a step of an optimiser that searches along lines."""
        found = super().search(closure)
        self._steps += found.evaluations
        return found

    def unwrap(self) -> None:
        """Give the module back without DDP's hooks, which would reduce the gradients of another wrap too."""
        if isinstance(self.wrapped, DistributedDataParallel):
            self.wrapped._remove_autograd_hooks()  # type: ignore[no-untyped-call]
            self.wrapped = self.module

    def communication_seconds(self) -> float:
        """Return the time that this worker's backward passes waited for gradients: DDP's mean over sampled steps."""
        if not isinstance(self.wrapped, DistributedDataParallel):
            return 0.0
        measured: dict[str, int] = self.wrapped._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        hidden = measured.get("avg_backward_compute_comm_overlap_time", 0)
        nanoseconds = max(0, measured.get("avg_backward_comm_time", 0) - hidden)
        return self._steps * nanoseconds * 1e-9

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over workers."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def maximum(self, value: float) -> float:
        """Return the largest of the workers' values; not a number counts as largest."""
        gathered = self.all_gather(torch.tensor(value, dtype=torch.float64, device=self.device))
        return float(torch.stack(gathered).max())

    def all_gather(self, values: Tensor) -> list[Tensor]:
        """Return each worker's tensor of the same shape, on every worker."""
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values.contiguous())
        return gathered

    def gather_objects(self, value: Any) -> list[Any] | None:
        """Return every worker's value on rank 0, None elsewhere."""
        gathered: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every worker."""
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]
