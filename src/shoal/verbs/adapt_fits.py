"""The fits of an adaptation: each is a run of its own, of the source's rows alone or of both domains'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.cluster.config import Config
from shoal.cluster.errors import RunError
from shoal.cluster.progress import Reporter
from shoal.cluster.resources import Demand, Shape
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, to_dict
from shoal.training.batches import Dataset
from shoal.transfer.adaptation.config import AlignmentConfig, BBSEConfig, ImportanceWeightingConfig
from shoal.verbs.dataset import ShardResult
from shoal.verbs.fit import fit_into
from shoal.verbs.provenance import Stages
from shoal.verbs.runs import claimed

if TYPE_CHECKING:
    from shoal.training.worker import FitJob
    from shoal.transfer.shift.labels import LabelShift

SOURCE_ONLY = "source_only"
FITS = "fits"
_SEEDS = 12  # first word of spawn keys: what a draw is for


@dataclass(frozen=True)
class Work:
    """What all fits of a run share.

    Attributes
    ----------
    source, target
        The rows of both domains.
    folder
        Of the fits, in the run's.
    part
        Which rows of ``target`` are the target's: its training rows, or the test rows of the source's own dataset, where one of
        several source domains is left out.
    label
        What to say before the name of a fit.
    cpus
        That this process may use; None for all that it sees, or for those of the shape.
    """

    experiment: Experiment
    run: RunFolder
    source: ShardResult
    target: ShardResult
    shape: Shape
    demand: Demand
    stages: Stages
    reporter: Reporter
    command: Sequence[str] | None
    folder: str = FITS
    part: str = "train"
    label: str = ""
    cpus: float | None = None

    @property
    def transfer(self) -> Any:
        """The section of that name."""
        return self.experiment.transfer

    def open(self, data: ShardResult) -> ShardedDataset:
        """Open rows in this process."""
        cluster = self.experiment.cluster
        cache = Path(cluster.cache_path) if cluster.cache_path else None
        return ShardedDataset.open(Storage.open(data.uri, cluster.storage), cache=cache)

    def open_target(self) -> Dataset:
        """Open the target's rows in this process, without labels."""
        from shoal.transfer.adaptation.reading import unlabelled

        return unlabelled(self.open(self.target), self.part)


def fit_seed(seed: int, number: int) -> int:
    """Return the seed of a fit, which counts from 0: the first one's is the experiment's own."""
    return (
        seed
        if not number
        else int(np.random.SeedSequence(seed, spawn_key=(_SEEDS, number)).generate_state(1)[0])
    )


def fit_kind(
    work: Work, kind: str, number: int, change: "Callable[[FitJob], FitJob]", adapts: bool = False
) -> str:
    """Fit one seed of one kind as a run of its own, unless it is there; return its folder."""
    experiment, config = work.experiment, work.transfer
    if not adapts:
        plain = config.model_copy(update={"adaptation": None, "candidates": (), "target_data": None})
        experiment = experiment.model_copy(update={"transfer": plain})
    uri = f"{work.run.uri.rstrip('/')}/{work.folder}/{kind}/{number}"
    folder = RunFolder.open(uri, experiment.cluster.storage)
    text = f"{work.label}{kind.replace('_', ' ')}, seed {number + 1} of {config.seeds}"
    with claimed(folder, to_dict(experiment), work.reporter, "metrics.json") as heard:
        if folder.is_complete:
            return uri
        heard.stage(text)
        own = Stages(heard)

        def seeded(job: "FitJob") -> "FitJob":
            cpus = job.cpus if work.cpus is None else work.cpus
            # All epochs, and alike in all fits, so that they differ by the adaptation alone. The source's validation rows say
            # nothing of the target: the best epoch by them may be one before the alignment.
            training = job.training.model_copy(update={"early_stopping": None})
            return change(replace(job, seed=fit_seed(experiment.seed, number), cpus=cpus, training=training))

        fit_into(folder, experiment, work.source, work.shape, work.demand, own, heard, work.command, seeded)
        work.stages.seconds[kind] = round(work.stages.seconds.get(kind, 0.0) + sum(own.seconds.values()), 3)
    return uri


def needs_plain(method: Config) -> bool:
    """Whether a method weighs rows by what a plain model answers."""
    return isinstance(method, BBSEConfig) or (isinstance(method, AlignmentConfig) and method.label_shift)


def fit_adapted(work: Work, kind: str, method: Config, number: int, plain: str) -> str:
    """Fit one seed of an adapted model; ``plain`` is the run of the source's rows alone with that seed."""
    from shoal.transfer.adaptation.service import AdaptTo

    by_class: tuple[float, ...] = ()
    if needs_plain(method):
        soft = method.soft if isinstance(method, BBSEConfig) else True
        shift = estimated_shift(work.experiment, work.open(work.source), work.open_target(), plain, soft)
        if shift.reason:
            raise RunError(
                f"transfer.adaptation: {kind}: class shares of the target cannot be estimated: {shift.reason}"
            )
        by_class = tuple(shift.weights.tolist())
    by_row = ""
    if isinstance(method, ImportanceWeightingConfig):
        by_row = _write_importance(work, method)

    def change(job: "FitJob") -> "FitJob":
        to = AdaptTo(
            method,
            work.target.uri,
            work.target.manifest.key,
            job.training.epochs,
            job.storage,
            job.cache_path,
            by_class,
            by_row,
            work.part,
        )
        return replace(job, adapt=to)

    return fit_kind(work, kind, number, change, adapts=True)


def estimated_shift(
    experiment: Experiment, source: ShardedDataset, target: Dataset, plain: str, soft: bool
) -> "LabelShift":
    """Estimate how common the classes are in the target, by a model of the source's rows.

    Where that cannot be, there is a reason in the place of numbers.
    """
    from shoal.training.artifact import TrainedModel
    from shoal.transfer.adaptation.reading import answers
    from shoal.transfer.shift.labels import estimate_label_shift
    from shoal.verbs.adapt_judging import MOST_ROWS, held_out

    trained = TrainedModel.load(plain, allow_import=True, storage=experiment.cluster.storage)
    known = answers(trained, source, held_out(source), MOST_ROWS)
    new = answers(trained, target, "train", MOST_ROWS)
    return estimate_label_shift(
        known.probabilities,
        known.labels,
        new.probabilities,
        soft=soft,
        classes=trained.classes
        if not set(source.schema.target.columns) & set(source.schema.private)
        else None,
        confidence=experiment.evaluation.confidence,
        seed=experiment.seed,
    )


def _write_importance(work: Work, method: ImportanceWeightingConfig) -> str:
    """Write what each of the source's training rows weighs, once a run; return where."""
    from shoal.transfer.adaptation.selection import density_ratio
    from shoal.transfer.adaptation.service import IMPORTANCE, importance_table
    from shoal.transfer.shift.domains import CODES, classifier

    folder = work.run.storage.child(f"{work.folder}/importance-{method.clip:g}")
    if not folder.exists(IMPORTANCE):
        rows, n_codes = [], len(work.source.manifest.schema_.categorical)
        for dataset in (work.open(work.source), work.open_target()):
            shards = [dataset.shard("train", v) for v in range(dataset.n_shards)]
            codes = [np.minimum(s.categorical[:, :n_codes], CODES - 1) for s in shards]
            rows.append([np.column_stack([s.numeric, own]) for s, own in zip(shards, codes, strict=True)])
        numbers, width = rows[0][0].shape[1], work.source.manifest.schema_.numeric_width
        ratio = density_ratio(
            np.concatenate(rows[0]),
            np.concatenate(rows[1]),
            make=partial(classifier, "trees", width, numbers),
            seed=work.experiment.seed,
        )
        ratio = np.minimum(ratio, method.clip * ratio.mean())
        ratio /= ratio.mean()
        ends = np.cumsum([len(part) for part in rows[0]])[:-1]
        folder.write_table(IMPORTANCE, importance_table(np.split(ratio, ends)))
    return folder.uri
