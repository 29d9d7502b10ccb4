"""The training loop: plain torch, the same for one worker and for many."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.progress import EpochRecord, Reporter
from shoal.training.batches import Batch, BatchReader, Dataset
from shoal.training.config import TrainingConfig
from shoal.training.device import DTYPES
from shoal.training.draws import DrawContext, combine, install_draws
from shoal.training.early_stopping import EarlyStopping
from shoal.training.history import History
from shoal.training.losses import row_loss
from shoal.training.models import Model
from shoal.training.optimizers import build_optimizer
from shoal.training.plan import EpochPlan, resolve_batch_size
from shoal.training.proof import prove_gradient, prove_one_model, prove_slots
from shoal.training.scores import Judge, Scores
from shoal.training.strategies.base import Strategy

LOSS_POINTS = 50  # values of the training loss kept an epoch
ADVANCE_SECONDS = 0.25  # between two moves of the progress line
_DROPOUT_STREAM = 2

_BATCH_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)


class Monitor(Protocol):
    """A metric that drives early stopping."""

    @property
    def name(self) -> str:
        """The metric's name."""

    @property
    def greater_is_better(self) -> bool:
        """The metric's direction."""

    def value(self, y: np.ndarray, scores: Scores) -> float:
        """Score labels ``[n]`` or ``[n, K]`` against scores as `scores_from_logits` gives them."""


@dataclass(frozen=True)
class FitOutcome:
    """How a fit went.

    Attributes
    ----------
    steps, epochs
        What was done; ``best_epoch`` counts from 1, 0 where no validation rows were there to choose by.
    best
        The monitored score of the kept weights, NaN without one.
    stopped
        Why it ended, in a few words.
    rows_per_second
        Training rows over all workers per second of training, validation left out.
    seconds
        Training alone.
    gradient_error
        Largest relative difference found by the proof of the first step; 0 for one worker.
    """

    steps: int
    epochs: int
    best_epoch: int
    best: float
    stopped: str
    rows_per_second: float
    seconds: float
    batch_size: int
    gradient_error: float
    notices: tuple[str, ...] = ()


@dataclass
class Loop:
    """Fits a model on one worker's share of a dataset.

    Parameters
    ----------
    model
        Built from the same seed on every worker.
    dataset
        The rows.
    config
        The `training` section.
    strategy
        How gradients become one.
    monitor
        Metric over the validation rows, None to train all epochs.
    seed
        Root of every draw.
    reporter
        Hears of every epoch; on rank 0 only.
    """

    model: Model
    dataset: Dataset
    config: TrainingConfig
    strategy: Strategy
    monitor: Monitor | None
    seed: int
    reporter: Reporter
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        rows = self.dataset.shard_rows("train")
        self.plan = EpochPlan(rows, resolve_batch_size(self.config.batch_size, sum(rows)), self.seed)
        self.reader = BatchReader(self.dataset, self.plan, self.strategy.rank, self.strategy.world_size)
        self.draws = DrawContext(seed=combine(self.seed, _DROPOUT_STREAM))
        outside = install_draws(self.model, self.draws)
        self.notices = [
            f"{name} draws its dropout by itself: results depend on the number of workers" for name in outside
        ]
        self._refuse_batch_norm()
        self.dtype = DTYPES[self.config.precision]
        self.model.to(self.strategy.device, self.dtype)
        self.row_loss = row_loss(self.dataset.schema.target)
        self.judge = Judge(self.dataset, self.strategy)
        self.validates = sum(self.dataset.shard_rows("validation")) > 0 and self.monitor is not None
        self.position = 0
        self.train_seconds = self.epoch_seconds = 0.0
        self.gradient_error = 0.0

    def _refuse_batch_norm(self) -> None:
        if self.strategy.world_size == 1:
            return
        for name, module in self.model.named_modules():
            if isinstance(module, _BATCH_NORMS) and not isinstance(module, torch.nn.SyncBatchNorm):
                frozen = (
                    not any(p.requires_grad for p in module.parameters()) and not module.track_running_stats
                )
                if not frozen:
                    raise ConfigError(
                        f"model: {name} is a {type(module).__name__}, whose statistics differ between "
                        f"{self.strategy.world_size} workers: use LayerNorm or GroupNorm, torch.nn.SyncBatchNorm on "
                        "GPUs, or cluster.num_workers: 1"
                    )

    def run(self) -> FitOutcome:
        """Fit, keep the best epoch's weights where asked, and say how it went.

        Raises
        ------
        ContractError
            If the workers do not train one model.
        RunError
            If the loss stops being a number.
        """
        self._prepare()
        stopping = EarlyStopping(
            self.config.early_stopping, self.monitor.greater_is_better if self.monitor else True
        )
        best_state: dict[str, Tensor] | None = None
        restore = self.config.early_stopping is not None and self.config.early_stopping.restore_best
        done = 0
        for epoch in range(self.config.epochs):
            started = time.perf_counter()
            train_loss = self._train_epoch(epoch)
            prove_one_model(self.strategy, self.model, epoch)
            done = epoch + 1
            value = self._validate(epoch) if self.validates else math.nan
            improved = self.validates and stopping.update(epoch, value)
            if improved and restore:
                best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            self._report_epoch(epoch, train_loss, value, improved, started)
            if self.validates and stopping.should_stop:
                break
        if best_state is not None:
            self.model.load_state_dict(best_state)
        self.model.eval()
        if self.validates and stopping.best_epoch < 0 and self.monitor is not None:
            self.notices.append(
                f"{self.monitor.name} is undefined on the validation rows (one class only?): no best epoch was chosen and "
                "nothing stopped early; give more validation rows (data.split), or another first metric in evaluation.scoring"
            )
        return FitOutcome(
            steps=self.position,
            epochs=done,
            best_epoch=stopping.best_epoch + 1,
            best=stopping.best,
            stopped=self._why(stopping, done),
            rows_per_second=done * self.plan.rows / self.train_seconds,
            seconds=self.train_seconds,
            batch_size=self.plan.batch_size,
            gradient_error=self.gradient_error,
            notices=tuple(self.notices),
        )

    def _why(self, stopping: EarlyStopping, done: int) -> str:
        if self.validates and stopping.should_stop and self.monitor is not None:
            return f"{self.monitor.name} had not improved for {stopping.epochs_since} epochs"
        return f"all {done} epochs done"

    def _prepare(self) -> None:
        """Prove the first step on the bare model, then wrap it and build the optimiser."""
        local: dict[str, Tensor] = {}
        many = self.strategy.world_size > 1
        if many:
            first = next(self.reader.epoch(0))
            prove_slots(self.strategy, first.position, *self.plan.bounds(0))
            random_state = torch.get_rng_state()  # layers with draws of their own must draw the same again
            self._backward(self.model, first, reduce=False)
            torch.set_rng_state(random_state)
            local = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
            self.model.zero_grad(set_to_none=True)
        missing = [n for n, p in self.model.named_parameters() if p.requires_grad and n not in local]
        # Every worker must wrap alike, even where only one of them saw a parameter unused.
        unused = many and self.strategy.maximum(float(bool(missing))) > 0
        self.wrapped = self.strategy.wrap(self.model, unused)
        self.optimizer = build_optimizer(self.config.optimizer, self.model.parameters())
        self._local_gradient = local if many else None

    def _train_epoch(self, epoch: int) -> float:
        """Train one epoch and return its mean loss over the global batches."""
        self.model.train()
        started, told = time.perf_counter(), time.perf_counter()
        losses: list[Tensor] = []
        steps = self.plan.steps_per_epoch
        for step, batch in enumerate(self.reader.epoch(epoch)):
            losses.append(self._step(batch))
            self.position += 1
            if (now := time.perf_counter()) - told > ADVANCE_SECONDS:
                told = now
                self.reporter.advance(
                    epoch * steps + step + 1, self.config.epochs * steps, f"epoch {epoch + 1}"
                )
        by_step = self.strategy.sum(torch.stack(losses).double()).cpu().numpy()
        self.epoch_seconds = time.perf_counter() - started
        self.train_seconds += self.epoch_seconds
        self._record_losses(epoch, by_step)
        sizes = np.diff([self.plan.bounds(s)[0] for s in range(steps)] + [self.plan.rows])
        return float((by_step * sizes).sum() / self.plan.rows)

    def _record_losses(self, epoch: int, by_step: np.ndarray) -> None:
        first = epoch * len(by_step)
        wrong = np.flatnonzero(~np.isfinite(by_step))
        if len(wrong):
            raise RunError(
                f"the loss became {by_step[wrong[0]]} at step {first + int(wrong[0]) + 1} (epoch {epoch + 1}): lower "
                "training.optimizer.learning_rate, or set training.clip_norm"
            )
        for block in np.array_split(np.arange(len(by_step)), min(LOSS_POINTS, len(by_step))):
            step = first + int(block[-1]) + 1
            seconds = self.train_seconds * step / (first + len(by_step))
            self.history.add(step, epoch + 1, "train", "loss", float(by_step[block].mean()), seconds)

    def _step(self, batch: Batch) -> Tensor:
        """Take one optimiser step and return this worker's share of the global loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(self.wrapped, batch, reduce=True)
        if self._local_gradient is not None:
            self.gradient_error = prove_gradient(self.strategy, self.model, self._local_gradient)
            self._local_gradient = None
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss

    def _backward(self, module: torch.nn.Module, batch: Batch, reduce: bool) -> Tensor:
        """Add the gradient of the global batch's mean loss, or without ``reduce`` this worker's share of it."""
        total = torch.zeros((), device=self.strategy.device, dtype=self.dtype)
        parts = list(self._parts(batch))
        for i, (part, weight) in enumerate(parts):
            part = part.to(self.strategy.device, self.dtype)
            self.draws.step, self.draws.rows = self.position, part.position
            last = i == len(parts) - 1
            if reduce and not last:
                with self.strategy.accumulate(module):
                    loss = self._share(module, part, batch.global_rows, weight)
                    self.strategy.backward(loss)
            else:
                loss = self._share(module, part, batch.global_rows, weight)
                if reduce:
                    self.strategy.backward(loss)
                else:
                    loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _share(self, module: torch.nn.Module, part: Batch, global_rows: int, weight: float) -> Tensor:
        logits = module(part.numeric, part.categorical)
        return self.row_loss(logits, part.label).sum() * (weight / global_rows)

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield the parts of a step; a worker without rows takes part with a row of weight 0."""
        if len(batch) == 0:
            yield self.reader.filler(), 0.0
            return
        edges = np.linspace(0, len(batch), min(self.config.gradient_accumulation, len(batch)) + 1).astype(int)
        for start, stop in pairwise(edges):
            yield batch.part(int(start), int(stop)), 1.0

    def _validate(self, epoch: int) -> float:
        """Score the validation rows; the same value on every worker."""
        self.model.eval()
        judged = self.judge(self.model, "validation")
        value = None
        if judged is not None and self.monitor is not None:
            value = float(self.monitor.value(judged.label, judged.score))
            self.history.add(
                self.position, epoch + 1, "validation", self.monitor.name, value, self.train_seconds
            )
        return float(self.strategy.broadcast(value))

    def _report_epoch(
        self, epoch: int, train_loss: float, value: float, improved: bool, started: float
    ) -> None:
        steps = self.plan.steps_per_epoch
        self.reporter.epoch(
            EpochRecord(
                epoch=epoch + 1,
                epochs=self.config.epochs,
                step=self.position,
                steps=self.config.epochs * steps,
                train_loss=train_loss,
                metric=self.monitor.name if self.monitor and self.validates else "",
                value=value if self.validates else None,
                best=improved,
                seconds=time.perf_counter() - started,
                rows_per_second=self.plan.rows / self.epoch_seconds,
            )
        )
