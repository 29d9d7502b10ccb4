"""One optimiser step over a global batch, and the proof that it is one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.cluster.errors import DivergedError
from shoal.cluster.sharding.names import plural
from shoal.training.batches import Batch, BatchReader
from shoal.training.config import SearchConfig, TrainingConfig
from shoal.training.device import AUTOCAST, DTYPES
from shoal.training.draws import DrawContext
from shoal.training.losses.build import Loss
from shoal.training.optimizers.penalties import pull_to_start
from shoal.training.optimizers.searching import Searched
from shoal.training.plan import EpochPlan
from shoal.training.proof import prove_gradient, prove_slots
from shoal.training.soundness import slower
from shoal.training.stages import FineTuning, Stage
from shoal.training.strategies.base import Strategy
from shoal.training.two_domains import TARGET_ROWS, Adaptation, Sides, TargetStream, everyones, owners

_SHOWN_ROWS = 10  # row ids in a message
_MIXUP = 1  # stream of its draws


class Stepper:
    """Takes the steps of a fit on one worker.

    Parameters
    ----------
    model
        On the strategy's device, the same weights on every worker.
    config
        Accumulation, precision, clipping, what to do where a gradient is not finite.
    strategy
        How gradients become one.
    plan, reader
        Which rows, and where this worker's are.
    loss
        Value and weight of each row.
    draws
        Told of the step and its rows before every forward pass.
    tuning
        What of the model is trained when.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        strategy: Strategy,
        plan: EpochPlan,
        reader: BatchReader,
        loss: Loss,
        draws: DrawContext,
        tuning: FineTuning,
    ) -> None:
        self.model, self.config, self.strategy = model, config, strategy
        self.tuning, self.at = tuning, 0  # the stage's number
        self.settled = config  # as the stage has it
        self.plan, self.reader, self.loss, self.draws = plan, reader, loss, draws
        self.dtype = DTYPES[config.precision]
        self.gradient_error = 0.0
        self.skipped: list[int] = []
        self.searched: Searched | None = None  # of the last step, where the optimiser searches along lines
        self.wrapped = model
        self.adaptation: Adaptation | None = None
        self.added = torch.zeros(
            ()
        )  # this worker's share of what target rows added to the objective of the last step

    def adapt(self, adaptation: Adaptation, rows: TargetStream) -> None:
        """Let rows of a target domain take part in every step from here on."""
        self.adaptation, self.target_rows = adaptation, rows

    def prepare(self, position: int) -> None:
        """Wrap the model, after a step of the bare one whose gradient is kept to prove that of the wrapped one.

        Every start of a group proves itself, and every stage; none changes weights, buffers or random states.
        """
        config = self.settled = self.stage.begin(self.model, self.config)
        self.stage.train_mode(self.model)
        many = self.strategy.world_size > 1
        local: dict[str, Tensor] = {}
        if many:
            batch = self._batch(position)
            prove_slots(
                self.strategy, batch.position, *self.plan.bounds(position % self.plan.steps_per_epoch)
            )
            with self._untouched():
                self._backward(self.model, batch, position, reduce=False)
            local = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
            self.model.zero_grad(set_to_none=True)
        missing = [n for n, p in self.model.named_parameters() if p.requires_grad and n not in local]
        # Every worker must wrap alike, even where only one of them saw a parameter unused.
        unused = many and self.strategy.maximum(float(bool(missing))) > 0
        shapes = {n: (p.shape, p.dtype) for n, p in self.model.named_parameters() if p.requires_grad}
        self.wrapped = self.strategy.wrap(self.model, config, unused)
        if self.tuning.pull:
            pulled = [
                (p, self.tuning.start[n]) for n, p in self.model.named_parameters() if n in self.tuning.start
            ]
            starts = [start.to(p.device, p.dtype) for p, start in pulled]
            pull_to_start(
                self.strategy.optimizer,
                [(p, start) for (p, _), start in zip(pulled, starts, strict=True)],
                self.tuning.pull,
            )
        if many:
            # This also makes DDP settle its buckets, so that sums of a resumed group keep their order.
            with self._untouched():
                self._backward(self.wrapped, batch, position, reduce=True)
            own = {n: local.get(n, torch.zeros(shape, dtype=dtype)) for n, (shape, dtype) in shapes.items()}
            error = prove_gradient(
                self.strategy, self.strategy.reduced_gradients(), own, self.config.precision
            )
            self.gradient_error = max(self.gradient_error, error)
            self.strategy.zero_grad()

    @property
    def stage(self) -> Stage:
        """What is trained now."""
        return self.tuning.stages[self.at]

    def turn(self, at: int, position: int) -> None:
        """Begin a stage: wrap the model anew, with its proof; parameters that were trained keep their optimiser's state."""
        before, scaler = self.strategy.optimizer.state, self.strategy.scaler.state_dict()
        self.strategy.zero_grad()
        self.strategy.unwrap()
        self.at = at
        self.prepare(position)
        optimizer = self.strategy.optimizer
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if p in before:
                optimizer.state[p] = before[p]
            elif isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
                # torch's fused step wants a momentum of all parameters of a group, or of none.
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        if scaler:
            self.strategy.scaler.load_state_dict(scaler)

    def step(self, batch: Batch, position: int) -> Tensor:
        """Take one step and return this worker's share of the global loss.

        Raises
        ------
        DivergedError
            If the gradient is not finite and `non_finite` is ``stop``.
        """
        if isinstance(self.config.optimizer, SearchConfig):
            return self._search(batch, position)
        self.strategy.zero_grad()
        loss = self._backward(self.wrapped, batch, position, reduce=True)
        norm = self.strategy.gradient_norm()
        if not math.isfinite(norm) and not self._is_scaling(loss):
            self.non_finite(batch, position, norm)
            self.skipped.append(position)
        elif not self.strategy.step():
            self.skipped.append(position)
        return loss

    def _search(self, batch: Batch, position: int) -> Tensor:
        """Take a step of an optimiser that looks at the objective several times; return the loss at its start."""
        shares: list[Tensor] = []

        def closure() -> Tensor:
            self.strategy.zero_grad()
            shares.append(self._backward(self.wrapped, batch, position, reduce=True))
            return self.strategy.sum(shares[-1])

        self.searched = self.strategy.search(closure)
        if self.searched.reason == "non_finite":
            self.non_finite(batch, position, math.nan)
            self.skipped.append(position)
        return shares[0]

    def non_finite(self, batch: Batch, position: int, norm: float) -> None:
        """Say which rows have a loss that is no finite number, unless such steps are to be skipped; on every worker.

        Raises
        ------
        DivergedError
            With the step, the rows and the norm of the gradient.
        """
        if self.config.non_finite == "skip":
            return
        epoch, step = divmod(position, self.plan.steps_per_epoch)
        found = self._ids_without_loss(batch, position)
        text = None
        if found is not None:
            text = (
                f"the gradient is no finite number at step {position + 1} (epoch {epoch + 1}, batch {step + 1}): its norm "
                f"is {norm}; {self._which(found, batch.global_rows)}. Or set "
                "training.non_finite: skip to leave such steps out and count them"
            )
        raise DivergedError(self.strategy.broadcast(text))

    def rows_without_loss(self, position: int) -> str:
        """Say which rows of a step have a loss that is no finite number, by the weights of now; on every worker."""
        batch = self._batch(position)
        found = self._ids_without_loss(batch, position)
        text = None
        if found is not None:
            text = self._which(found, batch.global_rows) if found else "its rows have finite losses again"
        return str(self.strategy.broadcast(text))

    def _ids_without_loss(self, batch: Batch, position: int) -> list[Any] | None:
        """Gather the ids of the rows whose loss is not finite, on worker 0."""
        with torch.no_grad():
            wrong = self._wrong_rows(batch, position)
        ids = self.reader.row_ids(position // self.plan.steps_per_epoch, wrong)
        found = self.strategy.gather_objects(ids)
        return None if found is None else [i for part in found for i in part]

    def _which(self, ids: list[Any], rows: int) -> str:
        """Say which rows are wrong, and what to do about it."""
        fix = slower(self.config)
        if not ids:
            return f"the loss of each of its {plural(rows, 'row')} is finite: {fix}"
        schema = self.reader.dataset.schema
        if schema.id in schema.private:
            shown = "their ids are private"
        else:
            first = ", ".join(str(i) for i in ids[:_SHOWN_ROWS])
            shown = f"id {first}{' and more' if len(ids) > _SHOWN_ROWS else ''}"
        if len(ids) == rows:  # the weights, rather than the rows
            return f"so is the loss of all {rows} rows of the batch ({shown}): {fix}"
        return f"{len(ids)} of its {rows} rows have such a loss ({shown}): mend them, or {fix}"

    def _wrong_rows(self, batch: Batch, position: int) -> np.ndarray:
        """Return this worker's positions whose loss is not finite."""
        found = []
        for part, weight in self._parts(batch):
            part = part.to(self.strategy.device, self.dtype)
            losses = self._row_losses(self.wrapped, part, position)
            if weight:
                found.append(part.position[~torch.isfinite(losses).cpu()].numpy())
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _is_scaling(self, loss: Tensor) -> bool:
        """Whether only the scale of fp16 gradients is too large, which loss scaling mends by itself."""
        if self.config.precision != "fp16":
            return False
        return bool(torch.isfinite(self.strategy.sum(loss.double())))

    def _batch(self, position: int) -> Batch:
        epoch, step = divmod(position, self.plan.steps_per_epoch)
        return next(self.reader.epoch(epoch, step, step + 1))

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Give back random states and buffers as they were."""
        with torch.random.fork_rng():
            before = {n: b.clone() for n, b in self.model.named_buffers()}
            try:
                yield
            finally:
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(before[name])

    def _backward(self, module: nn.Module, batch: Batch, position: int, reduce: bool) -> Tensor:
        """Add the gradient of the global batch's mean loss, or without ``reduce`` this worker's share of it."""
        if self.adaptation is not None:
            return self._backward_both(module, batch, position, reduce)
        totals: list[Tensor] = []
        parts, of_step = list(self._parts(batch)), self._weight(batch, position)
        for i, (part, weight) in enumerate(parts):
            part = part.to(self.strategy.device, self.dtype)
            share = weight / of_step
            if not reduce:
                losses = self._row_losses(module, part, position)
                (losses.sum() * share).backward()  # type: ignore[no-untyped-call]
            elif i < len(parts) - 1:
                with self.strategy.accumulate(module):
                    losses = self._row_losses(module, part, position)
                    self.strategy.backward(losses.sum() * share)
            else:
                losses = self._row_losses(module, part, position)
                self.strategy.backward(losses.sum() * share)
            # In fp64 the rounding of a sum over rows is not what a line search, or the order of workers, is decided by.
            totals.append(losses.detach().sum(dtype=torch.float64) * share)
        return totals[0] if len(totals) == 1 else torch.stack(totals).sum()

    def _backward_both(self, module: nn.Module, batch: Batch, position: int, reduce: bool) -> Tensor:
        """Do as `_backward` with the rows of both domains, which take one pass together."""
        assert self.adaptation is not None
        strategy, target = self.strategy, self.target_rows.at(position)
        epoch = position // self.plan.steps_per_epoch
        progress = position / (self.config.epochs * self.plan.steps_per_epoch)
        of_step, n = self._weight(batch, position), len(batch)
        own, other = batch.to(strategy.device, self.dtype), target.to(strategy.device, self.dtype)
        self.draws.step, self.draws.rows = position, torch.cat([own.position, other.position + TARGET_ROWS])
        lower = AUTOCAST.get(self.config.precision)
        with torch.autocast(strategy.device.type, lower) if lower is not None else nullcontext():
            outputs = module(
                torch.cat([own.numeric, other.numeric]),
                torch.cat([own.categorical, other.categorical]),
                told=self.adaptation.told(progress, n),
            )
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = (outputs[0].to(self.dtype), *outputs[1:])
        losses = self.loss.rows(outputs[0][:n], own.label, epoch, own.cost)
        weights = torch.ones(n, dtype=self.dtype, device=strategy.device)
        if self.loss.weights is not None and self.loss.is_weighted(epoch) and own.label.dim() == 1:
            weights = self.loss.weights(own.label, own.cost).to(self.dtype)
        of_source = owners(self.plan, position, strategy.world_size)
        of_target = owners(self.target_rows.plan, position, strategy.world_size)
        added = self.adaptation.share(
            outputs,
            Sides(
                own.label,
                weights,
                own.cost,
                self.target_rows.rows_of(position, target),
                len(of_source),
                len(of_target),
                strategy.world_size,
                lambda x: everyones(x, of_source, strategy),
                lambda x: everyones(x, of_target, strategy),
                strategy.sum,
            ),
        )
        total = losses.sum() / of_step + added
        if reduce:
            strategy.backward(total)
        else:
            total.backward()  # type: ignore[no-untyped-call]
        self.added = added.detach()
        return losses.detach().sum(dtype=torch.float64) / of_step

    def _row_losses(self, module: nn.Module, part: Batch, position: int) -> Tensor:
        self.draws.step, self.draws.rows = position, part.position
        lower = AUTOCAST.get(self.config.precision)
        other, share = part.partner, self._share(position)
        with torch.autocast(self.strategy.device.type, lower) if lower is not None else nullcontext():
            if other is None:
                logits = module(part.numeric, part.categorical)
            else:
                logits = module(part.numeric, part.categorical, share, (other.numeric, other.categorical))
        logits = logits.to(self.dtype)
        epoch = position // self.plan.steps_per_epoch
        losses = self.loss.rows(logits, part.label, epoch, part.cost)
        if other is not None:
            losses = share * losses + (1.0 - share) * self.loss.rows(logits, other.label, epoch, other.cost)
        return losses

    def _weight(self, batch: Batch, position: int) -> float:
        """Return the weight of the step's rows over all workers: how many they are, unless classes weigh differently."""
        epoch = position // self.plan.steps_per_epoch
        if not self.loss.is_weighted(epoch):
            return float(batch.global_rows)
        own = self.loss.weight(batch.label, epoch, batch.cost)
        if batch.partner is not None:
            share = self._share(position)
            own = share * own + (1.0 - share) * self.loss.weight(
                batch.partner.label, epoch, batch.partner.cost
            )
        return float(self.strategy.sum(torch.tensor(own, dtype=torch.float64, device=self.strategy.device)))

    def _share(self, position: int) -> float:
        """Return how much of each row mixup leaves in a step: a draw of the seed and the step."""
        if self.config.mixup is None:
            return 1.0
        draw = np.random.default_rng(np.random.SeedSequence(self.draws.seed, spawn_key=(_MIXUP, position)))
        return float(draw.beta(self.config.mixup.alpha, self.config.mixup.alpha))

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield the parts of a step; a worker without rows takes part with a row of weight 0."""
        # In step with the others, the number of parts must be known to all: none has more rows than the step.
        most = batch.global_rows if self.strategy.lockstep else len(batch)
        n = max(1, min(self.config.gradient_accumulation, most))
        if n == 1 and len(batch):
            yield batch, 1.0
            return
        for start, stop in pairwise(np.linspace(0, len(batch), n + 1).astype(int)):
            if start < stop:
                yield batch.part(int(start), int(stop)), 1.0
            else:
                yield self.reader.filler(), 0.0
