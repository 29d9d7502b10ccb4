"""Rows of a target domain beside those with labels, and what they add to the objective of a step.

The room `transfer` has the methods (`transfer/adaptation`); the loop only hands them a step's rows. Without labels of the source
in its objective, a method would be source-free: nothing here asks for more than the rows of both.

Shape legend: b source rows and c target rows of this worker, B and C over all workers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.training.batches import Batch, BatchReader, Dataset
from shoal.training.draws import combine
from shoal.training.losses.build import Loss
from shoal.training.models import Model
from shoal.training.plan import EpochPlan
from shoal.training.strategies.base import Strategy

_TARGET_STREAM = 11  # of the draws of target rows
TARGET_ROWS = (
    1 << 40
)  # added to positions, so that a target row's dropout is not that of the source row beside it


@dataclass(frozen=True)
class Sides:
    """A step's rows of both domains, as one worker sees them.

    Attributes
    ----------
    labels
        Of the source rows, ``[b]``.
    weights
        Of the source rows in the objective, ``[b]``, mean 1 over the training rows.
    costs
        Their cost columns, ``[b, C']``.
    rows
        Of the target rows: their numbers among all, counted shard by shard, int64 ``[c]``.
    n_source, n_target
        B and C.
    workers
        W.
    source, target
        Give all workers' rows of a side for this worker's: ``[b, …]`` to ``[B, …]``, in the order of the batch. The gradient of
        the worker's own part is W-fold, so that the mean over workers of a function of all rows has the right one.
    sum
        Gives the sum over workers; without a gradient.
    """

    labels: Tensor
    weights: Tensor
    costs: Tensor
    rows: Tensor
    n_source: int
    n_target: int
    workers: int
    source: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], Tensor]
    sum: Callable[[Tensor], Tensor]


class Adaptation(Protocol):
    """A method at work on one worker."""

    @property
    def still(self) -> frozenset[str]:
        """Names of modules that stay in evaluation mode."""

    @property
    def unlabelled(self) -> Dataset | None:
        """The target's rows: its training part, whose labels mean nothing; None where no step needs them."""

    def weighted(self, loss: Loss) -> Loss:
        """Return the loss with the weights that source rows have."""

    def begin(self, epoch: int, model: Model, strategy: Strategy) -> None:
        """Hear of an epoch before its first step, with the weights of now; on every worker."""

    def share(self, outputs: tuple[Tensor, ...], sides: Sides) -> Tensor:
        """Return this worker's share of what the step's rows add to the objective; shares are summed over workers.

        Parameters
        ----------
        outputs
            What the model gave in training mode, source rows first: logits ``[b + c, K]``, and what the module beside it gave.
        sides
            The rows.
        """

    def stepped(self, position: int) -> None:
        """Hear that so many steps are done."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beside weights, the same on every worker."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""

    def told(self, progress: float, rows: int) -> Any:
        """Return what the module beside the model is told in a step, whose pass has so many source rows first."""

    def finish(self) -> tuple[str, ...]:
        """Leave the model as its config builds it; return what to say aloud."""


class Adapt(Protocol):
    """Makes a fit adapt to a target domain; travels to other processes."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that determine what it does, with the model, the data and the `training` section."""

    def __call__(
        self, members: Callable[[int], Model], dataset: Dataset, seed: int
    ) -> tuple[Model, Adaptation, Dataset]:
        """Return the model to train, with what is trained beside it, the method and the source's rows; alike on every worker.

        ``members`` builds new models, the first of which is the fit's own.
        """


class TargetStream:
    """A worker's target rows of every step: the target's own epochs follow each other, whatever the source's do.

    Parameters
    ----------
    dataset
        The target's rows.
    batch_size
        Of the source; as many target rows are in a step, or all there are.
    seed
        Of the fit.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, strategy: Strategy) -> None:
        shard_rows = dataset.shard_rows("train")
        self.plan = EpochPlan(shard_rows, min(batch_size, sum(shard_rows)), combine(seed, _TARGET_STREAM))
        self.reader = BatchReader(dataset, self.plan, strategy.rank, strategy.world_size)
        self._offsets = np.concatenate([[0], np.cumsum(shard_rows)])
        self._next: int = -1
        self._batches: Iterator[Batch] = iter(())
        self._held: tuple[int, Batch] | None = None

    def at(self, position: int) -> Batch:
        """Return this worker's rows of a step."""
        if self._held is not None and self._held[0] == position:
            return self._held[1]
        epoch, step = divmod(position, self.plan.steps_per_epoch)
        if position != self._next or step == 0:
            self._batches = self.reader.epoch(epoch, step)
        batch = next(self._batches)
        self._next, self._held = position + 1, (position, batch)
        return batch

    def rows_of(self, position: int, batch: Batch) -> Tensor:
        """Return the numbers of a step's rows among all of the target, int64 ``[c]``."""
        epoch = position // self.plan.steps_per_epoch
        shard, row = self.plan.places(epoch, self.reader.shards).of(batch.position.numpy())
        return torch.from_numpy(self._offsets[shard] + row)


def owners(plan: EpochPlan, position: int, workers: int) -> NDArray[np.int64]:
    """Return which worker reads each row of a step's global batch, int64 ``[rows]``."""
    epoch, step = divmod(position, plan.steps_per_epoch)
    low, high = plan.bounds(step)
    found: NDArray[np.int64] = plan.shard_of(epoch, np.arange(low, high)) % workers
    return found


def everyones(own: Tensor, owner: NDArray[np.int64], strategy: Strategy) -> Tensor:
    """Return all workers' rows ``[rows, …]`` of a batch, in its order; see `Sides.source`.

    Every worker must call it, also one without rows.
    """
    workers, rank = strategy.world_size, strategy.rank
    if workers == 1:
        return own
    counts = np.bincount(owner, minlength=workers)
    padded = own.new_zeros(int(counts.max()), *own.shape[1:])
    padded[: len(own)] = own.detach()
    parts = [part[:n] for part, n in zip(strategy.all_gather(padded), counts.tolist(), strict=True)]
    parts[rank] = own * workers - own.detach() * (workers - 1)
    place = np.empty(len(owner), np.int64)
    place[np.argsort(owner, kind="stable")] = np.arange(len(owner))
    return torch.cat(parts)[torch.from_numpy(place).to(own.device)]
