"""What each member of an ensemble is: a fit of its own rows and seed, in a folder of its own."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from shoal.cluster.progress import Silent
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel
from shoal.training.checkpoints.files import FOLDER
from shoal.training.checkpoints.keeper import Asked
from shoal.training.config import TrainingConfig
from shoal.training.device import pick_device
from shoal.training.ensembles.config import CostingConfig, MetaCostConfig
from shoal.training.outcome import FitOutcome
from shoal.training.sampling.config import BootstrapConfig, CostRejectionConfig
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, keeper_of, run_worker

MEMBERS = "members"
OUTCOME = "outcome.json"
_SEEDS = 6  # first word of spawn keys: what a draw is for


class Each(Protocol):
    """Does work for each of some jobs, here or in tasks, and yields what it returns, in the order of the jobs."""

    def __call__(self, work: Callable[[FitJob], FitOutcome], jobs: list[FitJob], /) -> Iterator[FitOutcome]:
        """Start the work."""


def not_asked() -> Asked:
    """Say that nobody asks for anything."""
    return ""


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member, which counts from 1: root of its rows, its first weights and its batches."""
    return int(np.random.SeedSequence(seed, spawn_key=(_SEEDS, member)).generate_state(1)[0])


def member_training(training: TrainingConfig) -> TrainingConfig:
    """Return how a member is fitted; the section itself where there is no ensemble."""
    if training.ensemble is None:
        return training
    costing = isinstance(training.ensemble, CostingConfig)
    sampling = CostRejectionConfig() if costing else BootstrapConfig()
    return training.model_copy(update={"ensemble": None, "sampling": sampling})


def members_of(job: FitJob) -> list[FitJob]:
    """Return the fit of each member."""
    ensemble = job.training.ensemble
    assert isinstance(ensemble, CostingConfig | MetaCostConfig)
    return [
        replace(
            job,
            training=member_training(job.training),
            seed=member_seed(job.seed, member),
            run_uri=f"{job.run_uri.rstrip('/')}/{MEMBERS}/{member:04d}",
            scores=False,
        )
        for member in range(1, ensemble.members + 1)
    ]


def dataset_of(job: FitJob) -> ShardedDataset:
    """Open the rows of a fit."""
    cache = Path(job.cache_path) if job.cache_path else None
    return ShardedDataset.open(Storage.open(job.data_uri, job.storage), cache=cache)


def fit_member(job: FitJob, asked: Callable[[], Asked] = not_asked) -> FitOutcome:
    """Fit a member in this process, unless it is stored already; `outcome.json` in its folder comes last."""
    run, key = Storage.open(job.run_uri, job.storage), dataset_of(job).manifest.key
    if not is_stored(job, key):
        run.write_text("config.yaml", f"# a member of the run in the folder above\nseed: {job.seed}\n")
        strategy = Strategy(pick_device(job.gpus))
        outcome = run_worker(job, strategy, Silent(), keeper_of(job, asked))
        plain = asdict(outcome)
        plain["best"] = None if math.isnan(outcome.best) else outcome.best
        run.write_json(OUTCOME, {"data": key, "fit": plain})
        run.delete(FOLDER)
    return outcome_of(job)


def outcome_of(job: FitJob) -> FitOutcome:
    """Return how the fit of a stored member went."""
    found = Storage.open(job.run_uri, job.storage).read_json(OUTCOME)["fit"]
    found["best"] = math.nan if found["best"] is None else found["best"]
    lists = {f.name: tuple(found[f.name]) for f in fields(FitOutcome) if isinstance(found[f.name], list)}
    return FitOutcome(**{**found, **lists})


def is_stored(job: FitJob, key: str) -> bool:
    """Whether a member was stored whole, fitted to the rows of this key and not to files that have changed since."""
    run = Storage.open(job.run_uri, job.storage)
    return run.exists(OUTCOME) and bool(run.read_json(OUTCOME)["data"] == key)


def load_member(job: FitJob) -> TrainedModel:
    """Return a stored member; a model of the user's own is imported, as its fit did."""
    return TrainedModel.load(Storage.open(job.run_uri, job.storage), allow_import=True)


def here(asked: Callable[[], Asked] = not_asked) -> Each:
    """Return what does the jobs in this process, one after another."""

    def each(work: Callable[..., FitOutcome], jobs: list[FitJob]) -> Iterator[FitOutcome]:
        return map(partial(work, asked=asked), jobs)

    return each
