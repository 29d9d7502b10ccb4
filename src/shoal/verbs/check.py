"""check: read the data and say what would be done; nothing is written and nothing runs."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cluster.progress import Reporter
from shoal.cluster.resources import Shape, asked_tasks
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.names import plural
from shoal.evaluation.crossval.config import AutoConfig
from shoal.evaluation.crossval.recorder import Recorder
from shoal.experiment import Experiment, given, to_dict
from shoal.verbs.dataset import sharding_part
from shoal.verbs.look import Look, look
from shoal.verbs.starting import starting

if TYPE_CHECKING:
    from shoal.training.stages import Reuse


@dataclass(frozen=True)
class CheckResult:
    """The resolved experiment, the data and the resources it would take."""

    experiment: Experiment
    data: Look
    resources: dict[str, Any]
    resource_lines: tuple[str, ...] = field(default=())
    space_lines: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "experiment": to_dict(self.experiment),
            "data": self.data.as_dict(),
            "resources": self.resources,
        }


def check(
    experiment: Experiment | str | Path, out: str | None = None, *, reporter: Reporter | None = None
) -> CheckResult:
    """Validate an experiment against its data, its storage and the cluster; run nothing, leave nothing.

    Parameters
    ----------
    experiment
        What would be done, or the path of its file.
    out
        The run folder that is meant; by default one under `cluster.storage_path`, which is needed anyway.
    reporter
        Hears of progress.

    Raises
    ------
    ShoalError
        For what would stop the run before it starts.
    """
    from shoal.cluster.components import load_imported
    from shoal.cluster.resources import plan
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.scikit.unused import refuse_estimator
    from shoal.verbs.decisions import judge_of
    from shoal.verbs.writable import require_cache, require_writable

    experiment, _ = given(experiment)
    load_imported(experiment, experiment.training)
    shape, demand = plan(experiment.cluster, needs_group(experiment.training))
    refuse(experiment.training, shape)
    refuse_estimator(experiment.model, experiment.training, shape)
    start = starting(experiment)
    require_cache(experiment.cluster, shape)
    for place in (experiment.cluster.storage_path, *([out] if out else [])):
        require_writable(place, experiment.cluster.storage)
    if out:
        RunFolder.open(out, experiment.cluster.storage).is_of(to_dict(experiment))
    # Folds that nobody asked for need not fit.
    cv, folds = experiment.evaluation.cv, None
    if cv != AutoConfig():
        folds = Recorder(cv, experiment.data, experiment.cluster.storage)
    found = look(
        experiment.data,
        experiment.seed,
        experiment.cluster.storage,
        reporter,
        experiment.cost_columns,
        ids=experiment.evaluation.costs is not None,  # by which rows are drawn, and named
        resplit=folds,
        known=start.known,
        judge=judge_of(experiment),
    )
    if folds is not None:
        found = replace(found, notices=(*found.notices, folds.folds.reason))
    found = replace(found, notices=(*found.notices, *rehearsed(experiment, found, shape, start.reuse)))
    if experiment.transfer is not None and experiment.transfer.adaptation is not None:
        from shoal.verbs.adapt import check_target

        found = replace(found, notices=(*found.notices, *check_target(experiment, found, shape)))
    shape = shape.within(found.n_shards)
    lines = [f"{shape.workers}, placed {shape.placement}", str(demand)]
    if (part := sharding_part(experiment.cluster)) is not None:
        count = asked_tasks(experiment.cluster)
        many = "as many tasks as are free" if count is None else plural(count, "task")
        lines.append(f"before the fit, for sharding: {many} of 1 CPU and {int(part.memory) >> 20} MiB")
    space: tuple[str, ...] = ()
    if experiment.tuning is not None:
        from shoal.verbs.tune_search import described

        space, needs = described(experiment)
        lines += needs
    return CheckResult(experiment, found, asdict(shape), tuple(lines), space)


def rehearsed(experiment: Experiment, found: Look, shape: Shape, reuse: "Reuse | None") -> list[str]:
    """Build all that a fit to the rows found would have before its first step; return what it would say aloud.

    Parameters
    ----------
    found
        With the ids of the rows, where there are costs.
    shape
        How the fit would be spread.
    reuse
        What makes it start from another model.

    Raises
    ------
    ShoalError
        What the fit would refuse.
    """
    from shoal.evaluation.metrics import resolve_scoring
    from shoal.training.ensembles.members import member_seed, member_training
    from shoal.training.rehearsal import labels_alone, rehearse
    from shoal.verbs.decisions import costs_of, plan_of, steering, training_of
    from shoal.verbs.fit import capped

    costs = experiment.evaluation.costs
    scored = resolve_scoring(experiment.evaluation.scoring, found.target.task, costs=costs is not None)[0]
    decisions = plan_of(experiment, found.schema, found.known)
    notices = list(decisions.start.notices)
    if shape.within(found.n_shards) != shape:
        notices.append(capped(found.n_shards))
    asked, rows = experiment.training.batch_size, found.parts["train"]
    if isinstance(asked, int) and asked > rows:
        notices.append(
            f"training.batch_size is {asked:,}, but there are {rows:,} training rows: every step takes them all"
        )
    training, several = training_of(experiment, found.schema), experiment.training.ensemble is not None
    said = rehearse(
        experiment.model,
        member_training(training),
        member_seed(experiment.seed, 1) if several else experiment.seed,
        labels_alone(found.schema, found.labels, found.n_shards, found.costs, found.row_ids),
        steering(scored, decisions, experiment, found.schema, found.known).monitor,
        shape.within(found.n_shards),
        costs_of(experiment, found.schema),
        reuse,
    )
    notices += [f"member 1: {text}" for text in said] if several else said
    return notices
