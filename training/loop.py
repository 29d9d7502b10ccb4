"""The training loop: plain torch, the same for one worker and for many."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError, DivergedError, StoppedError
from shoal.cluster.progress import EpochRecord, Reporter
from shoal.cluster.sharding.names import plural
from shoal.training.account import Account
from shoal.training.averaging import WeightAverage
from shoal.training.batches import BatchReader, Dataset
from shoal.training.checkpoints.files import Checkpoint, Part
from shoal.training.checkpoints.keeper import NONE_LEFT, Keeper
from shoal.training.checkpoints.lookout import Lookout
from shoal.training.config import SearchConfig, TrainingConfig
from shoal.training.costs import Costs, by_name
from shoal.training.device import DTYPES
from shoal.training.draws import DrawContext, combine, install_draws
from shoal.training.early_stopping import NOISE, EarlyStopping
from shoal.training.history import History
from shoal.training.losses.build import answered, build_loss
from shoal.training.losses.config import BY_COSTS
from shoal.training.losses.weights import RowWeights
from shoal.training.media import augment
from shoal.training.models import Model, recompute_activations
from shoal.training.optimizers.searching import REASONS
from shoal.training.outcome import FitOutcome, Monitor
from shoal.training.proof import prove_one_model, weights_hash
from shoal.training.refusals import idle, refuse_costs, refuse_data, refuse_model, unfitting, what_draws
from shoal.training.sampling.build import sample
from shoal.training.sampling.shares import seen
from shoal.training.schedules.config import PlateauConfig
from shoal.training.schedules.schedule import Schedule
from shoal.training.scores import Judge
from shoal.training.soundness import slower
from shoal.training.stages import FineTuning
from shoal.training.stepping import Stepper
from shoal.training.strategies.base import Fragment, Strategy
from shoal.training.two_domains import Adaptation, TargetStream

LOSS_POINTS = 50  # values of the training loss kept an epoch
ADVANCE_SECONDS = 0.25  # between two moves of the progress line
_DROPOUT_STREAM = 2


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
    keeper
        Where checkpoints go, and who may ask for one.
    fingerprint
        What a checkpoint must be of, and what it is called: the rows, and what is fitted to them how.
    loss_points
        Values of the training loss kept an epoch.
    costs
        What decisions cost, for what follows from it in the fit; its columns are those of the dataset.
    tuning
        What of the model is trained when, where not all of it is throughout.
    adaptation
        What rows of a target domain add to the objective.
    """

    model: Model
    dataset: Dataset
    config: TrainingConfig
    strategy: Strategy
    monitor: Monitor | None
    seed: int
    reporter: Reporter
    keeper: Keeper = field(default_factory=Keeper)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    history: History = field(default_factory=History)
    loss_points: int = LOSS_POINTS
    costs: Costs | None = None
    tuning: FineTuning | None = None
    adaptation: Adaptation | None = None

    def __post_init__(self) -> None:
        tuning = (self.tuning or FineTuning.whole(self.model, self.config)).changing(self.config.changes)
        target = self.dataset.schema.target
        self.notices: list[str] = []
        if self.costs is not None:
            refuse_costs(self.dataset, self.costs, self.strategy)
        sampled = sample(self.config, self.dataset, self.costs, self.strategy, self.seed)
        self.plan, self.said_first = sampled.plan, [*tuning.notices, *sampled.notices]
        self.reader = BatchReader(
            self.dataset,
            self.plan,
            self.strategy.rank,
            self.strategy.world_size,
            partners=self.config.mixup is not None,
        )
        if self.config.augment is not None:
            augment(self.model, self.config.augment)
        draws = DrawContext(seed=combine(self.seed, _DROPOUT_STREAM))
        outside = install_draws(self.model, draws)
        self.notices += [
            f"{name} draws its dropout by itself: results depend on the number of workers" for name in outside
        ]
        self.validates = sum(self.dataset.shard_rows("validation")) > 0 and self.monitor is not None
        refuse_model(self.model, self.config, self.strategy.world_size, tuning.always_still)
        refuse_data(self.dataset, self.config, self.strategy, self.reader.shards.values(), self.validates)
        if self.config.activation_checkpointing:
            recompute_activations(self.model)
        self.model.to(self.strategy.device, DTYPES[self.config.precision])
        private = bool(set(target.columns) & set(self.dataset.schema.private))
        loss = build_loss(
            self.config.loss,
            target,
            self.dataset.class_rows("train"),
            sum(self.dataset.shard_rows("train")),
            self.config.epochs,
            private,
            self._row_weights(),
        )
        self.target = answered(
            seen(target, self.dataset.class_rows("train"), sampled.shares), self.config.loss
        )
        if self.adaptation is not None:
            loss = self.adaptation.weighted(loss)
        self.stepper = Stepper(
            self.model, self.config, self.strategy, self.plan, self.reader, loss, draws, tuning
        )
        if self.adaptation is not None and self.adaptation.unlabelled is not None:
            rows = TargetStream(self.adaptation.unlabelled, self.plan.batch_size, self.seed, self.strategy)
            self.stepper.adapt(self.adaptation, rows)
        self.judge = Judge(self.dataset, self.strategy, self.target)
        stopping, last = self.config.early_stopping, tuning.stages[-1].first_epoch
        if stopping is not None and stopping.warmup < last:  # no stage is left out for want of patience
            stopping = stopping.model_copy(update={"warmup": last})
        self.stopping = EarlyStopping(stopping, self.monitor.greater_is_better if self.monitor else True)
        self.restores = self.config.early_stopping is not None and self.config.early_stopping.restore_best
        self.best: dict[str, Tensor] | None = None
        self.average: WeightAverage | None = None
        if self.config.averaging is not None:
            self.average = WeightAverage(
                self.config.averaging, self.strategy, self.plan.steps_per_epoch, self.config.epochs
            )
            self.notices += self.average.notices
        optimizer = self.config.optimizer
        self.schedule = Schedule(
            self.config.schedule,
            self.plan.steps_per_epoch,
            self.config.epochs,
            momentum=bool(getattr(optimizer, "momentum", 0.0))
            or hasattr(optimizer, "betas")
            or isinstance(optimizer, Imported),
            greater_is_better=self.stopping.greater_is_better,
            learning_rate=getattr(optimizer, "learning_rate", 1.0),
        )
        self.notices += self.schedule.notices
        self._draws = what_draws(self.model, self.config)
        self.notices += unfitting(self.config, self.plan, self._draws)
        self._factors: list[float] = []  # of the epoch's steps so far, where they differ
        self._scores: list[float] = []  # of all epochs, on the validation rows
        self.lookout = Lookout(self.strategy, self.keeper)
        self.account = Account()
        self._waited = 0.0  # for other workers, before this start
        self.position = self._began = 0
        self._before: str | None = None
        self.resumed_from: list[int] = []
        self.repeated = 0  # steps that were done before, in this run
        self.train_seconds = self.epoch_seconds = 0.0
        self._losses = np.empty(0)  # of the epoch's steps so far, over all workers
        self._clock: list[float] = []  # seconds of training at the end of each of them
        self._own_losses: list[Tensor] = []  # of the steps after those, this worker's share
        self._added = np.empty(0)  # to the objective by the target's rows, in the epoch's steps so far
        self._own_added: list[Tensor] = []

    def _row_weights(self) -> RowWeights | None:
        """Return what rows weigh by their own costs, with mean 1 over the training rows; None where costs are not by row."""
        names = self.dataset.schema.costs
        by_costs = getattr(self.config.loss, "class_weights", None) == BY_COSTS
        if self.costs is None or not self.costs.columns or not by_costs:
            return None
        of_shard = torch.zeros(self.dataset.n_shards, dtype=torch.float64)
        for v, shard in self.reader.shards.items():
            of_shard[v] = self.costs.own_weights(shard.label, by_name(shard.cost, names)).sum()
        of_shard = self.strategy.sum(of_shard.to(self.strategy.device))
        return RowWeights.of(self.costs, names, float(of_shard.sum()) / sum(self.dataset.shard_rows("train")))

    def run(self) -> FitOutcome:
        """Fit, from the newest checkpoint where there is one; keep the best epoch's weights where asked.

        Raises
        ------
        ContractError
            If the workers do not train one model.
        DivergedError
            If the gradient stops being a number.
        StoppedError
            If the fit was asked to stop; it wrote a checkpoint first.
        StorageError
            If a checkpoint could not be written.
        """
        try:
            for _ in self.epochs():
                pass
            return self.finish()
        finally:
            self.keeper.finish()

    def epochs(self) -> Iterator[float]:
        """Start, from the newest checkpoint where there is one, and train an epoch at each turn; `finish` comes after the last.

        Yields
        ------
        float
            The epoch's score on the validation rows; NaN without one.

        Raises
        ------
        ShoalError
            As `run`.
        """
        self._start()
        first = self.position // self.plan.steps_per_epoch
        self._before, self._began = self._own_work(), self.position
        for epoch in range(first, self.config.epochs):
            if self.validates and self.stopping.should_stop:
                break
            with self.account.measure_rest():
                self._epoch(epoch)
                if not self._converged:  # no checkpoint comes after it, so that a resumed fit ends here too
                    self._look()
            yield self._scores[-1] if self.validates else math.nan
            if self._converged:
                break

    @property
    def kept(self) -> float:
        """The score of the weights that would be kept if the fit ended now; NaN where there is none."""
        if self.restores:
            return self.stopping.best
        return self._scores[-1] if self._scores else math.nan

    def finish(self) -> FitOutcome:
        """End a fit after any of its epochs: the model has the weights that are kept.

        Raises
        ------
        ShoalError
            As `run`.
        """
        if (
            not self._converged and self.lookout.deserves_one()
        ):  # what judges the model may still be interrupted
            self.save(last=False)
        if self.position > self._began:
            self.notices += idle(
                self.config, self.schedule, self._before is not None and self._before == self._own_work()
            )
        if self.best is not None:
            for name, fragment in self.strategy.weights().items():
                fragment.tensor.copy_(self.best[name])
            self.strategy.weights_changed()
        elif self.average is not None:
            self.average.finish()
        self.strategy.unwrap()
        self.model.eval()
        return self._outcome()

    def _own_work(self) -> str | None:
        """Return a hash of the weights where code of the user's own trains them; None otherwise, or where workers hold parts."""
        parts = (self.config.optimizer, self.config.schedule, self.config.loss)
        weights = self.strategy.weights()
        whole = all(fragment.start is None for fragment in weights.values())
        return weights_hash(weights) if whole and any(isinstance(p, Imported) for p in parts) else None

    def _epoch(self, epoch: int) -> None:
        """Train an epoch, or the rest of one, and judge it."""
        started = time.perf_counter()
        self._turn(epoch)
        if self.adaptation is not None and self.position == epoch * self.plan.steps_per_epoch:
            self.adaptation.begin(epoch, self.model, self.strategy)
        train_loss = self._train_epoch(epoch)
        prove_one_model(self.strategy, self.position)
        with self.average.in_place() if self.average else nullcontext():
            value = self._validate(epoch) if self.validates else math.nan
            improved = self.validates and self.stopping.update(epoch, value)
            if improved and self.restores:
                self.best = {n: f.tensor.clone() for n, f in self.strategy.weights().items()}
        self._record_time(epoch)
        self._report_epoch(epoch, train_loss, value, improved, started)

    def _turn(self, epoch: int) -> None:
        """Begin the stage that an epoch lies in."""
        tuning = self.stepper.tuning
        at = tuning.at(epoch)
        if at == self.stepper.at:
            return
        self._count_communication()
        self._waited = self.account.seconds["communication"]
        self.stepper.turn(at, self.position)
        self.reporter.notice(f"stage {at + 1} of {len(tuning.stages)}: {self.stepper.stage.label}")

    def _outcome(self) -> FitOutcome:
        done = self.position // self.plan.steps_per_epoch
        if self.validates and self.stopping.best_epoch < 0 and self.monitor is not None:
            stays = isinstance(self.config.schedule, PlateauConfig)
            plateau = " and reduce_on_plateau left the learning rate as it was" if stays else ""
            self.notices.append(
                f"{self.monitor.name} is undefined on the validation rows (one class only, or no finite predictions?): no best "
                f"epoch was chosen, nothing stopped early{plateau}; give more validation rows (data.split), or another first "
                "metric in evaluation.scoring"
            )
        if self.config.early_stopping is not None and self.monitor is not None and not self.validates:
            self.notices.append(
                "early stopping: there are no validation rows to stop or to choose an epoch by, so the last weights are kept; "
                "give some (data.split), or set training.early_stopping: null"
            )
        kept = self.stopping.best_epoch + 1 if self.best is not None else done
        if self.average is not None and not self.average.covers(kept * self.plan.steps_per_epoch):
            self.notices.append(
                f"training.averaging: the weights that are kept are those of epoch {kept}, before the average begins; lower "
                "start, or set training.early_stopping: null"
            )
        skipped = len(self.stepper.skipped)
        if skipped == self.position:
            raise DivergedError(
                f"nothing was trained: each of the {skipped} steps was left out, because its gradient was no finite number. "
                "Look at the model, its loss and the data, or set training.non_finite: stop to see the first such rows"
            )
        if skipped:
            shown = ", ".join(str(s + 1) for s in self.stepper.skipped[:10])
            most = 2 * skipped > self.position
            self.notices.append(
                f"{skipped} of {self.position} steps were left out, because their gradient was no finite number: "
                f"{shown}{' …' if skipped > 10 else ''}"
                + (
                    f". That is most of them, so the model is hardly trained: {slower(self.config)}"
                    if most
                    else ""
                )
            )
        return FitOutcome(
            steps=self.position,
            epochs=done,
            best_epoch=self.stopping.best_epoch + 1 if self.restores else 0,
            best=self.kept,
            stopped=self._why(done),
            rows_per_second=done * self.plan.rows / self.train_seconds,
            seconds=self.train_seconds,
            batch_size=self.plan.batch_size,
            gradient_error=self.stepper.gradient_error,
            skipped=skipped,
            resumed_from=tuple(self.resumed_from),
            repeated=self.repeated,
            time=self.account.summary(self.strategy, self.repeated),
            notices=tuple(self.notices),
            rows=self.plan.rows,
        )

    def _why(self, done: int) -> str:
        if self._converged and self.stepper.searched is not None:
            return f"converged: {REASONS[self.stepper.searched.reason]}"
        if self.validates and self.stopping.should_stop and self.monitor is not None:
            margin = self.stopping.margin
            by = f" by more than {margin:g}" if margin > NOISE else ""
            return (
                f"{self.monitor.name} had not improved{by} for {plural(self.stopping.epochs_since, 'epoch')}"
            )
        return f"all {plural(done, 'epoch')} done"

    def _start(self) -> None:
        """Go on from the newest checkpoint, which worker 0 chooses; wrap the model, with its proof."""
        found, problems = self.keeper.latest() if self.strategy.rank == 0 else (None, [])
        for problem in problems:
            self.reporter.notice(f"a checkpoint is left out: {problem}")
        if problems and found is None:
            self.reporter.notice(NONE_LEFT)
        where = self.strategy.broadcast(found.folder if found else None)
        checkpoint = found if self.strategy.rank == 0 or where is None else Checkpoint.open(where)
        if checkpoint is not None:
            self._take_over(checkpoint)
        if self.strategy.rank == 0:
            for notice in self.said_first:
                self.reporter.notice(notice)
            reached, before = self.keeper.reached()
            self.repeated = before + max(0, reached - self.position)
        total = self.config.epochs * self.plan.steps_per_epoch
        self.stepper.prepare(min(self.position, total - 1))
        if checkpoint is not None:
            self._restore(checkpoint)
        self.lookout.start(self.position)
        self._advance(self.position // self.plan.steps_per_epoch)  # from here on a stop is worth a checkpoint

    def _take_over(self, checkpoint: Checkpoint) -> None:
        """Read the plain state of a checkpoint: all but tensors."""
        facts: dict[str, Any] = checkpoint.facts() or {}
        for what, known in self.fingerprint.items():
            if facts["fingerprint"].get(what) != known:
                raise ConfigError(
                    f"{checkpoint.folder.uri} is not of this run: it is of {what}. Choose another --out, or delete the run's "
                    "checkpoints folder to begin anew"
                )
        self.position = checkpoint.position
        self.resumed_from = [*facts["resumed_from"], self.position]
        self.train_seconds = facts["train_seconds"]
        self.history.rows = [tuple(row) for row in facts["history"]]
        self.stopping.state = facts["stopping"]
        self.stepper.skipped, self.stepper.at = facts["skipped"], facts.get("stage", 0)
        self._losses = np.array(facts["losses"], dtype=np.float64)
        self._added = np.array(facts.get("added", []), dtype=np.float64)
        self._clock = facts["clock"]
        self._factors, self._scores = facts["factors"], facts["scores"]
        self.schedule.hear(self._scores)
        total = self.config.epochs * self.plan.steps_per_epoch
        self.reporter.notice(
            f"resuming from step {self.position:,} of {total:,} (epoch {self.position // self.plan.steps_per_epoch + 1})"
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Read the tensors of a checkpoint into model and optimiser."""
        facts = checkpoint.facts() or {}
        weights = self.strategy.weights()
        for name, fragment in weights.items():
            fragment.tensor.copy_(checkpoint.read(f"model/{name}", *fragment.bounds))
        self.strategy.weights_changed()

        def read(name: str, start: int, stop: int | None) -> Tensor:
            return checkpoint.read(f"optimizer/{name}", start, stop)

        self.strategy.load_optimizer_state(checkpoint.names("optimizer/"), read, facts["optimizer"])
        if checkpoint.names("best/"):
            self.best = {
                n: checkpoint.read(f"best/{n}", *f.bounds).to(f.tensor.device, copy=True)
                for n, f in weights.items()
            }
        if self.average is not None:
            self.average.values = {
                n: checkpoint.read(f"average/{n}", *weights[n].bounds).to(weights[n].tensor.device, copy=True)
                for n in checkpoint.names("average/")
            }
        if self.adaptation is not None:
            names = checkpoint.names("adaptation/")
            self.adaptation.load({n: checkpoint.read(f"adaptation/{n}", 0, None) for n in names})
        own = checkpoint.facts(self.strategy.rank)
        if own is not None:
            self.account.add(own["time"])
            self._waited = self.account.seconds["communication"]
            # A layer that draws by itself goes on where it was.
            torch.set_rng_state(torch.tensor(own["random_state"], dtype=torch.uint8))

    def _look(self) -> None:
        """Look up with all workers where that is due: write a checkpoint or stop, where one is due or asked."""
        if self.position < self.lookout.due_at:
            return
        orders = self.lookout.look(self.position)
        if not orders.checkpoint:
            return
        with self.account.measure("checkpoint"):
            self.save(last=orders.stop)
        self.lookout.saved()
        if orders.stop:
            raise StoppedError(
                f"stopped after step {self.position:,} of {self.config.epochs * self.plan.steps_per_epoch:,}, with a "
                "checkpoint; the same command goes on from there"
            )

    def save(self, last: bool) -> None:
        """Give the keeper a checkpoint of the position; with ``last``, return when it is stored.

        Raises
        ------
        StorageError
            If it could not be written.
        """
        prove_one_model(self.strategy, self.position)
        self._settle()
        weights = self.strategy.weights()
        tensors = {f"model/{n}": f for n, f in weights.items()}
        for name, kept in (("best", self.best), ("average", self.average and self.average.values)):
            tensors |= {
                f"{name}/{n}": Fragment(values, weights[n].start) for n, values in (kept or {}).items()
            }
        state, optimizer = self.strategy.optimizer_state()
        self._count_communication()
        facts: dict[str, Any] = {
            "random_state": torch.get_rng_state().tolist(),
            "time": self.account.seconds,
        }
        if self.strategy.rank == 0:
            facts |= {
                "fingerprint": dict(self.fingerprint),
                "optimizer": optimizer,
                "resumed_from": self.resumed_from,
                "train_seconds": self.train_seconds,
                "history": self.history.rows,
                "stopping": self.stopping.state,
                "skipped": self.stepper.skipped,
                "stage": self.stepper.at,
                "losses": self._losses.tolist(),
                "added": self._added.tolist(),
                "clock": self._clock,
                "factors": self._factors,
                "scores": self._scores,
            }
        tensors |= {f"optimizer/{n}": f for n, f in state.items()}
        if self.adaptation is not None:
            tensors |= {f"adaptation/{n}": Fragment(t) for n, t in self.adaptation.state().items()}
        part = Part(self.position, self.strategy.rank, self.strategy.world_size, tensors, facts)
        self.keeper.save(part, self.strategy.broadcast(self.keeper.name(self.position)), last)

    def _train_epoch(self, epoch: int) -> float:
        """Train an epoch, or the rest of one, and return its mean loss over the global batches."""
        self.stepper.stage.train_mode(self.model)
        started = told = time.perf_counter()
        before, steps = self.train_seconds, self.plan.steps_per_epoch
        self._first_row = self.plan.bounds(self.position - epoch * steps)[0]
        batches = self.reader.epoch(epoch, self.position - epoch * steps)
        while self.position < (epoch + 1) * steps:
            with self.account.measure("data"):
                batch = next(batches)
            self._set_rate()
            with self.account.measure("step"):
                self._own_losses.append(self.stepper.step(batch, self.position))
            self.position += 1
            if self.stepper.adaptation is not None:
                self._own_added.append(self.stepper.added)
            if self.adaptation is not None:
                self.adaptation.stepped(self.position)
            if self.average is not None:
                self.average.update(self.position)
            now = time.perf_counter()
            self.train_seconds = before + now - started
            self._clock.append(self.train_seconds)
            self._record_search(epoch)
            if now - told > ADVANCE_SECONDS:
                told = now
                self._advance(epoch)
            if self.position < (epoch + 1) * steps:  # the epoch's end comes after its validation
                self._look()
        self._settle()
        self.epoch_seconds = time.perf_counter() - started
        self.train_seconds = before + self.epoch_seconds
        by_step, self._losses = self._losses, np.empty(0)
        added, self._added = self._added, np.empty(0)
        factors, self._factors = self._factors or [1.0] * steps, []
        clock, self._clock = self._clock, []
        self._record_losses(epoch, by_step, factors, clock)
        if len(added) and np.isfinite(added).any():
            mean = float(added[np.isfinite(added)].mean())
            self.history.add(self.position, epoch + 1, "train", "adaptation_loss", mean, self.train_seconds)
        sizes = np.diff([self.plan.bounds(s)[0] for s in range(steps)] + [self.plan.rows])
        taken = np.isfinite(by_step)
        return float((by_step * sizes)[taken].sum() / sizes[taken].sum()) if taken.any() else math.nan

    def _advance(self, epoch: int) -> None:
        total = self.config.epochs * self.plan.steps_per_epoch
        self.reporter.advance(self.position, total, f"epoch {epoch + 1}")
        if self.strategy.rank == 0:
            self.keeper.note(self.position, self.repeated)

    def _settle(self) -> None:
        """Make the losses of the last steps those of all workers."""
        if not self._own_losses:
            return
        shares = self.strategy.sum(torch.stack(self._own_losses).double()).cpu().numpy()
        self._losses, self._own_losses = np.concatenate([self._losses, shares]), []
        if self._own_added:
            added = self.strategy.sum(torch.stack(self._own_added).double()).cpu().numpy()
            self._added, self._own_added = np.concatenate([self._added, added]), []
        first = self.position - len(self._losses)
        left_out = np.isin(np.arange(first, self.position), self.stepper.skipped)
        wrong = np.flatnonzero(~np.isfinite(self._losses) & ~left_out)
        if len(wrong) and self.config.non_finite == "stop":
            at = first + int(wrong[0])
            raise DivergedError(
                f"the loss became {self._losses[wrong[0]]} at step {at + 1} though its gradient is finite: "
                f"{self.stepper.rows_without_loss(at)}. Look at the model and its loss, or set training.non_finite: skip"
            )

    def _set_rate(self) -> None:
        """Give the optimiser the learning rate of the next step."""
        if self.schedule.is_constant:
            first = self.strategy.rates[0]
            if isinstance(self.config.optimizer, Imported) and first:  # which may change it by itself
                self._factors.append(self.strategy.rate / first)
            return
        factor = self.schedule.factor(self.position)
        self._factors.append(factor)
        self.strategy.set_rate(factor, self.schedule.momentum if self.schedule.cycles_momentum else None)

    @property
    def _converged(self) -> bool:
        """Whether the optimiser would do nothing more, on the same rows in every step."""
        searched = self.stepper.searched
        if searched is None or not searched.has_converged or self.plan.steps_per_epoch > 1:
            return False
        changes = self.stepper.loss.weighted_from * self.plan.steps_per_epoch >= self.position
        return not (self._draws or changes)

    def _record_search(self, epoch: int) -> None:
        """Write what a step did whose optimiser searches along lines."""
        searched = self.stepper.searched
        if searched is None:
            return
        for metric, value in (
            ("iterations", searched.iterations),
            ("evaluations", searched.evaluations),
            (f"stopped_by_{searched.reason}", 1),
        ):
            self.history.add(self.position, epoch + 1, "train", metric, float(value), self.train_seconds)

    def _record_losses(
        self, epoch: int, by_step: np.ndarray, factors: list[float], clock: list[float]
    ) -> None:
        searches = isinstance(self.config.optimizer, SearchConfig)  # which finds its own step
        # Not that of a parameter group with one of its own.
        base = getattr(self.stepper.settled.optimizer, "learning_rate", self.strategy.rates[0])
        first = epoch * len(by_step)
        for block in np.array_split(np.arange(len(by_step)), min(self.loss_points, len(by_step))):
            step = first + int(block[-1]) + 1
            seconds = clock[block[-1]]
            known = by_step[block][np.isfinite(by_step[block])]
            if len(known):
                self.history.add(step, epoch + 1, "train", "loss", float(known.mean()), seconds)
            if not searches:
                rate = base * factors[block[-1]]
                self.history.add(step, epoch + 1, "train", "learning_rate", rate, seconds)

    def _record_time(self, epoch: int) -> None:
        """Write each worker's seconds so far, by what they went to."""
        self._count_communication()
        for rank, seconds in enumerate(self.strategy.gather_objects(dict(self.account.seconds)) or []):
            for what, value in seconds.items():
                self.history.add(
                    self.position, epoch + 1, f"worker {rank}", f"{what}_seconds", value, self.train_seconds
                )

    def _count_communication(self) -> None:
        """Bring the account up to date with what the strategy has measured since this start."""
        # It is a mean over few sampled passes, times all of them, and a part of the steps.
        waited = self._waited + self.strategy.communication_seconds()
        self.account.seconds["communication"] = min(waited, self.account.seconds["step"])

    def _validate(self, epoch: int) -> float:
        """Score the validation rows; the same value on every worker."""
        self.model.eval()
        with self.account.measure("validation"):
            judged = self.judge(self.model, "validation")
            value = None
            if judged is not None and self.monitor is not None:
                value = float(self.monitor.value(judged.label, judged.score, amounts=judged.amounts))
                self.history.add(
                    self.position, epoch + 1, "validation", self.monitor.name, value, self.train_seconds
                )
            self._scores.append(float(self.strategy.broadcast(value)))
            self.schedule.hear(self._scores)
            return self._scores[-1]

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
                best=improved and self.restores,
                seconds=time.perf_counter() - started,
                rows_per_second=(self.plan.rows - self._first_row) / self.epoch_seconds,
            )
        )
