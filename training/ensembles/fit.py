"""The fit of an ensemble: its members, each stored when it ends, and what becomes of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.sharding.names import plural
from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel
from shoal.training.batches import Dataset
from shoal.training.checkpoints.keeper import Asked
from shoal.training.device import own_threads, pick_device
from shoal.training.ensembles.config import CostingConfig, MetaCostConfig
from shoal.training.ensembles.members import (
    Each,
    dataset_of,
    fit_member,
    is_stored,
    load_member,
    members_of,
    not_asked,
    outcome_of,
)
from shoal.training.ensembles.metacost import Relabelled, relabelled
from shoal.training.ensembles.model import EnsembleModel
from shoal.training.history import History
from shoal.training.models import Model
from shoal.training.outcome import FitOutcome
from shoal.training.scores import Judge
from shoal.training.strategies.base import Strategy
from shoal.training.worker import FitJob, judged_parts, keeper_of, run_worker, write_parts


def fit_ensemble(job: FitJob, each: Each, reporter: Reporter) -> FitOutcome:
    """Fit what is missing of the members, then the model of the run.

    The draws of a member depend on the seed, its number and the rows: results are the same whoever does the work, in which
    order, and after any interruption.

    Parameters
    ----------
    job
        With `training.ensemble`.
    each
        Does the work, here or in tasks.
    reporter
        Hears a line of each member.

    Raises
    ------
    ShoalError
        As a member's own fit.
    """
    members, manifest = members_of(job), dataset_of(job).manifest
    todo = [member for member in members if not is_stored(member, manifest.key)]
    if len(todo) < len(members):
        reporter.notice(f"{len(members) - len(todo)} of {plural(len(members), 'member')} are there already")
    rows = manifest.splits["train"].rows
    reporter.advance(len(members) - len(todo), len(members), "members")
    for done, (member, outcome) in enumerate(zip(todo, each(fit_member, todo), strict=True), 1):
        reporter.notice(_line(job, members.index(member) + 1, outcome, rows))
        reporter.advance(len(members) - len(todo) + done, len(members), "members")
    costing = isinstance(job.training.ensemble, CostingConfig)
    reporter.stage("joining the members" if costing else "fitting to the labels of least expected cost")
    last = join_members if costing else fit_relabelled
    (outcome,) = each(last, [job])
    return outcome


def _line(job: FitJob, member: int, outcome: FitOutcome, rows: int) -> str:
    assert isinstance(job.training.ensemble, CostingConfig | MetaCostConfig)
    does = "keeps" if isinstance(job.training.ensemble, CostingConfig) else "draws"
    best = f", best epoch {outcome.best_epoch}" if outcome.best_epoch else ""
    score = (
        ""
        if outcome.best != outcome.best or job.monitor is None
        else f", {job.monitor.name} {outcome.best:.4f}"
    )
    return (
        f"member {member}/{job.training.ensemble.members} {does} {plural(outcome.rows, 'row')} of {rows:,}: "
        f"{plural(outcome.epochs, 'epoch')}{best}{score}, {outcome.seconds:.1f} s"
    )


def join_members(job: FitJob, asked: Callable[[], Asked] = not_asked) -> FitOutcome:
    """Make one model of the members of a costing ensemble, and score its held-out rows."""
    del asked  # it takes moments
    own_threads(job.cpus)
    members = members_of(job)
    trained, outcomes = [load_member(member) for member in members], [outcome_of(m) for m in members]
    run, dataset, strategy = (
        Storage.open(job.run_uri, job.storage),
        dataset_of(job),
        Strategy(pick_device(job.gpus)),
    )
    model = EnsembleModel([one.module for one in trained]).to(strategy.device).eval()
    target = trained[0].schema.target
    parts = judged_parts(Judge(dataset, strategy, target), model, dataset)
    TrainedModel(model, trained[0].schema, job.model, provenance=trained[0].provenance).save(run)
    write_parts(run, parts, History(), dataset)
    best = float("nan")
    if job.monitor is not None and (held := parts.get("validation")) is not None:
        best = float(job.monitor.value(held.label, held.score, amounts=held.amounts))
    said = {f"member {i}: {text}": None for i, one in enumerate(outcomes, 1) for text in one.notices if text}
    seconds = sum(one.seconds for one in outcomes)
    return FitOutcome(
        steps=sum(one.steps for one in outcomes),
        epochs=sum(one.epochs for one in outcomes),
        best_epoch=0,
        best=best,
        stopped=f"the mean probability of {plural(len(members), 'member')}",
        rows_per_second=sum(one.rows * one.epochs for one in outcomes) / seconds if seconds else 0.0,
        seconds=seconds,
        batch_size=outcomes[0].batch_size,
        gradient_error=0.0,
        skipped=sum(one.skipped for one in outcomes),
        time=f"{seconds:.1f} s of training, over {plural(len(members), 'member')}",
        notices=tuple(said),
        rows=sum(one.rows for one in outcomes),
    )


def fit_relabelled(job: FitJob, asked: Callable[[], Asked] = not_asked) -> FitOutcome:
    """Fit the model of a MetaCost run to the rows that its members give other labels."""
    assert job.costs is not None
    assert isinstance(job.training.ensemble, MetaCostConfig)
    own_threads(job.cpus)
    members, device = members_of(job), pick_device(job.gpus)
    notices: list[str] = []

    def relabel(dataset: Dataset) -> Relabelled:
        assert job.costs is not None
        assert isinstance(job.training.ensemble, MetaCostConfig)
        found = relabelled(
            dataset,
            [partial(_module, member) for member in members],
            [member.seed for member in members],
            job.costs,
            job.training.ensemble.out_of_bag,
            device,
        )
        notices.extend(found.notices)
        return found

    own = replace(job, monitor=job.decision_monitor or job.monitor)
    outcome = run_worker(own, Strategy(device), Silent(), keeper_of(own, asked), relabel)
    return replace(outcome, notices=(*notices, *outcome.notices))


def _module(job: FitJob) -> Model:
    return load_member(job).module
