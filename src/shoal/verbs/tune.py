"""tune: trials of other values, the best of which is fitted again and judged on rows that none of them saw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cluster.errors import RunError, StorageError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Demand, Totals
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.names import plural
from shoal.experiment import Experiment, dump_yaml, given, to_dict
from shoal.tuning.config import NoSchedulerConfig, OptunaConfig, PBTConfig
from shoal.tuning.drop import score_drop, sentence
from shoal.tuning.importance import importance
from shoal.tuning.population import POPULATION, Population
from shoal.tuning.sources import Listed, Parzen, Source
from shoal.tuning.space import Values
from shoal.tuning.stopping import rule_of, signed
from shoal.tuning.trials import (
    FOLDER,
    STATUSES,
    WORK,
    Trial,
    best_of,
    curves,
    read,
    rows_of,
    short,
    table,
    write,
)
from shoal.verbs.provenance import Stages, provenance
from shoal.verbs.runs import PROVENANCE, claimed, run_uri
from shoal.verbs.tune_path import PathResult, path_result, require_linear, tune_path
from shoal.verbs.tune_population import experiment_of, forget, member_fit
from shoal.verbs.tune_search import Search, settle_search, trial_part
from shoal.verbs.tune_space import changed, plain
from shoal.verbs.writable import require_cache

if TYPE_CHECKING:
    from shoal.evaluation.metrics import Metric
    from shoal.tuning.objective import Objective, TrialFit

TRIALS, CURVES, BEST, BEST_RUN = "trials.parquet", "curves.parquet", "best.yaml", "best"


@dataclass(frozen=True)
class TuneResult:
    """A finished search: the best trial, what its model comes to on the test rows, and all trials.

    Attributes
    ----------
    best
        The trial that was chosen: its number, values and score.
    scores
        Of its model, by part, with intervals; empty where it was not fitted again.
    drop
        How much worse the test rows find it than the rows that chose it, with an interval.
    sentence
        The same in words.
    """

    run: str
    metric: str
    trials: tuple[dict[str, Any], ...]
    best: dict[str, Any]
    scores: dict[str, Any]
    drop: dict[str, Any] | None
    sentence: str
    greater_is_better: bool
    task: str
    seconds: dict[str, float]
    report: str
    was_complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "run": self.run,
            "metric": self.metric,
            "best": self.best,
            "metrics": self.scores,
            "drop": self.drop,
            "sentence": self.sentence,
            "trials": list(self.trials),
            "seconds": self.seconds,
            "report": self.report,
            "was_complete": self.was_complete,
        }


def tune(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> TuneResult | PathResult:
    """Try values as the `tuning` section says, fit the best ones again and judge that model; the results are in the run folder.

    Trials are fitted with the experiment's own seed, and compared on the same rows. Each is stored when it ends: the same
    command does what is missing.

    Parameters
    ----------
    experiment
        What to do, or the path of its file.
    out
        The run folder; by default ``<storage_path>/<name>-tune-<hash of the experiment>``.
    name
        What the folder's name begins with; by default the experiment file's stem.
    reporter
        Hears of progress.
    command
        What to write down as the command.

    Raises
    ------
    ShoalError
        `RequestError` before anything started; a `RunError` with the first cause where no trial has a score.
    """
    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    along = experiment.tuning is not None and experiment.tuning.path is not None
    settled = None if along else settle_search(experiment)
    if along:
        require_linear(experiment)
    run = RunFolder.open(run_uri(experiment, "tune", name, out), experiment.cluster.storage)
    if settled is not None:
        require_cache(experiment.cluster, settled.shape)
    with claimed(run, to_dict(experiment), reporter, "metrics.json") as heard:
        if run.is_complete:
            heard.notice(f"this run is complete; nothing is computed again. Delete {run.uri} to repeat it")
            metrics = run.read_json("metrics.json")
            return (path_result if settled is None else _result)(run, metrics, was_complete=True)
        if settled is None:
            return tune_path(experiment, run, name, heard, command)
        return _tune(settled, run, name, heard, command)


def _tune(
    settled: Search, run: RunFolder, name: str, reporter: Reporter, command: Sequence[str] | None
) -> TuneResult:
    from shoal.verbs.fit import train

    stages = Stages(reporter)
    experiment, tuning = settled.experiment, settled.tuning
    with stages.stage("shard", "looking at the rows"):
        objective, experiment, shared = _objective(settled, run, name, reporter)
    base = plain(experiment)
    numbers = list(range(1, settled.count + 1))
    done = read(run, numbers)
    if done:
        reporter.notice(f"{plural(len(done), 'trial')} of {settled.count} are there already")
    population = None
    if isinstance(tuning.scheduler, PBTConfig):
        population = Population(
            tuning.scheduler,
            settled.space,
            experiment.seed,
            settled.values,
            experiment.training.epochs,
            objective.greater_is_better,
            done.values(),
        )
        reporter.notice(
            f"{population.members} members for {plural(population.generations, 'generation')} of "
            f"{plural(population.interval, 'epoch')}, each a trial; early stopping is off"
        )
    fits = plural(settled.count, "trial")
    with stages.stage("fit", f"{fits} of {', '.join(settled.space)}"):
        trials = _trials(settled, objective, base, done, shared, run, reporter, population)
    trials = objective.settled(trials)
    best = best_of(trials, objective.greater_is_better)
    if best is None:
        cause = next(t for t in trials if t.error)
        raise RunError(
            f"none of {fits} has a score ({_statuses(trials)}); the first cause, of trial {cause.trial} "
            f"({short(cause.values)}): {cause.error}. Delete {run.uri}/{FOLDER} to try them again"
        )
    run.write_table(TRIALS, table(trials))
    if population is None:
        run.write_table(CURVES, curves(trials))
        chosen = changed(base, best.values, f"trial {best.trial}")
    else:
        run.write_table(CURVES, curves(trials, population.first_epoch))
        run.write_table(POPULATION, population.table())
        chosen = experiment_of(population, base, best.trial)
    run.write_text(BEST, dump_yaml(chosen))
    scores: dict[str, Any] = {}
    task = said = ""
    if tuning.refit and tuning.objective == "target":
        from shoal.verbs.adapt import adapt

        with stages.stage("refit", f"adapting with the values of trial {best.trial}"):
            adapted = adapt(chosen, f"{run.uri.rstrip('/')}/{BEST_RUN}", name=name, reporter=Quiet(reporter))
        said = str(adapted.found["sentence"])
    elif tuning.refit:
        with stages.stage("refit", f"fitting trial {best.trial} again"):
            found = train(chosen, f"{run.uri.rstrip('/')}/{BEST_RUN}", name=name, reporter=Quiet(reporter))
        scores, task = found.scores, found.task
    return _finish(
        settled, objective, run, trials, best, population, scores, task, said, stages, reporter, command
    )


def _objective(
    settled: Search, run: RunFolder, name: str, reporter: Reporter
) -> "tuple[Objective, Experiment, Any]":
    """Return what trials are compared by, the experiment that they change, and what their processes share."""
    from shoal.evaluation.metrics import resolve_scoring
    from shoal.verbs.dealing import dealt
    from shoal.verbs.tune_objective import Datasets, OnValidation, OverFolds

    experiment, tuning = settled.experiment, settled.tuning
    costs = experiment.evaluation.costs is not None

    def metrics(task: str) -> "list[Metric]":
        return resolve_scoring(experiment.evaluation.scoring, task, costs=costs)

    if tuning.objective == "cv":
        found = dealt({"": experiment}, settled.shape, reporter)
        for notice in (*found.notices, found.folds.reason):
            reporter.notice(notice)
        return (
            OverFolds(metrics(found.target.task)[0], run, settled.shape, len(found.folds)),
            experiment,
            found.reading,
        )
    datasets = Datasets(name, reporter)
    if tuning.objective == "target":
        from shoal.verbs.tune_target import OnTarget

        return OnTarget(run, settled.shape, datasets, reporter), experiment, None
    manifest = datasets.of(experiment).manifest
    settled.shape.within(manifest.n_shards)
    task = manifest.schema_.target.task
    scored = metrics(task)
    if tuning.objective == "expected_cost":  # it stops trials early, too, and so the fit of the best values
        names = ["expected_cost", *(m.name for m in scored if m.name != "expected_cost")]
        evaluation = experiment.evaluation.model_copy(update={"scoring": tuple(names)})
        experiment = experiment.model_copy(update={"evaluation": evaluation})
        scored = resolve_scoring(names, task, costs=True)
    return OnValidation(scored[0], run, settled.shape, datasets), experiment, None


def _trials(
    settled: Search,
    objective: "Objective",
    base: Mapping[str, Any],
    done: Mapping[int, Trial],
    shared: Any,
    run: RunFolder,
    reporter: Reporter,
    population: Population | None,
) -> list[Trial]:
    """Do the trials that are missing; return all, by number."""
    tuning, found = settled.tuning, dict(done)
    rest = [number for number in range(1, settled.count + 1) if number not in done]
    if not rest:
        return [found[number] for number in sorted(found)]
    from shoal.cluster.session import session
    from shoal.cluster.tasks import room
    from shoal.tuning.sweep import Sweep, sweep

    rule = rule_of(tuning.scheduler, settled.experiment.training.epochs)
    for trial in (done[number] for number in sorted(done)):  # so that a rule knows them again
        kept = -math.inf
        for epoch, value in enumerate(trial.curve, 1):
            kept = max(kept, signed(math.nan if value is None else value, objective.greater_is_better))
            if rule is not None:
                rule.ends(trial.trial, epoch, kept)
    source: Source
    if population is not None:
        source = population
    elif isinstance(tuning.search, OptunaConfig):
        known = [done[number] for number in sorted(done)]
        seed = settled.experiment.seed
        source = Parzen(tuning.search, settled.space, seed, rest, known, objective.greater_is_better)
    else:
        source = Listed({number: settled.values[number - 1] for number in rest})
    asked = tuning.max_concurrent_trials
    most = len(rest) if asked == "auto" else min(len(rest), asked)
    part = trial_part(settled.shape, 1)

    def demand(totals: Totals) -> Demand:
        nonlocal part
        part = replace(part, count=room(settled.experiment.cluster, part, totals, most))
        return Demand((part,))

    def fit(trial: int, values: Values) -> "TrialFit":
        if population is not None:
            return member_fit(population, objective, base, run, trial + 1)
        return objective.fit(trial, changed(base, values, f"tuning.space: trial {trial + 1}"))

    def over(trial: Trial) -> None:
        trial = trial if population is None else population.marked(trial)
        found[trial.trial] = trial
        write(run, trial)
        if population is not None:
            forget(population, run)
        best = best_of(list(found.values()), objective.greater_is_better)
        reporter.notice(_line(trial, objective.name, best))
        reporter.advance(len(found), settled.count, "trials")

    grouped = settled.shape.placement == "group"
    with session(settled.experiment.cluster, demand, reporter):
        reporter.notice(f"{plural(part.count, 'trial')} at a time")
        sweep(
            Sweep(
                source=source,
                fit=fit,
                count=len(rest),
                at_once=part.count,
                part=replace(part, cpus=0.0, gpus=0.0) if grouped else part,
                by_epoch=not isinstance(tuning.scheduler, NoSchedulerConfig) or grouped,
                rule=rule,
                greater_is_better=objective.greater_is_better,
                max_failures=settled.experiment.cluster.max_failures,
                shared=shared,
                over=over,
            ),
            run.storage,
        )
    run.delete(WORK)
    return [found[number] for number in sorted(found)]


class Quiet(Silent):
    """Passes on what a fit inside a search has to say, but not that its own work is done."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.notice, self.stage = reporter.notice, reporter.stage  # type: ignore[method-assign]
        self.epoch, self.advance = reporter.epoch, reporter.advance  # type: ignore[method-assign]


def _finish(
    settled: Search,
    objective: "Objective",
    run: RunFolder,
    trials: Sequence[Trial],
    best: Trial,
    population: Population | None,
    scores: dict[str, Any],
    task: str,
    said: str,
    stages: Stages,
    reporter: Reporter,
    command: Sequence[str] | None,
) -> TuneResult:
    """Write what a finished search has."""
    from shoal.tuning.page import write_tune_report

    shape = settled.shape
    seen: dict[str, Any] = {
        "seed": settled.experiment.seed,
        "data_key": "",
        "data_path": ", ".join(settled.experiment.data.path),
        "cluster": asdict(shape),
        "fit": {},
        "command": command,
    }
    facts = provenance(stages, **seen)
    run.write_json(PROVENANCE, facts)
    confidence = settled.experiment.evaluation.confidence
    drop = score_drop(objective.name, objective.greater_is_better, best, scores, confidence)
    metrics = {
        "tuning": {
            "metric": objective.name,
            "greater_is_better": objective.greater_is_better,
            "objective": settled.tuning.objective,
            "best": {"trial": best.trial, "values": best.values, "score": best.score},
            "trials": len(trials),
            "statuses": {s: sum(t.status == s for t in trials) for s in STATUSES},
            # Later generations are further trained, whatever their values.
            "importance": importance(
                trials if population is None else trials[: population.members],
                settled.space,
                objective.greater_is_better,
            ),
            "lineage": [] if population is None else [turn.trial for turn in population.lineage(best.trial)],
            "epochs": sum(t.epochs for t in trials),
            "drop": drop,
            "sentence": said or sentence(objective.name, best.score, drop, len(trials)),
            "space": {
                path: dimension.model_dump(mode="json", exclude_none=True)
                for path, dimension in settled.space.items()
            },
        },
        "best": scores,
        "task": task,
        "seconds": facts["seconds"],
    }
    with stages.stage("report", "writing the report"):
        write_tune_report(run, metrics, facts)
    run.write_json("metrics.json", metrics)  # last: it says that the run is complete
    reporter.done()
    return _result(run, metrics)


def _result(run: RunFolder, metrics: dict[str, Any], was_complete: bool = False) -> TuneResult:
    try:
        rows = rows_of(run.read_table(TRIALS))
        found = metrics["tuning"]
    except (KeyError, StorageError) as error:
        raise StorageError(f"{run.uri} holds no finished shoal tune; choose another --out") from error
    return TuneResult(
        run.uri,
        found["metric"],
        tuple(rows),
        found["best"],
        metrics["best"],
        found["drop"],
        found["sentence"],
        found["greater_is_better"],
        metrics["task"],
        metrics["seconds"],
        f"{run.uri.rstrip('/')}/report.html",
        was_complete,
    )


def _line(trial: Trial, metric: str, best: Trial | None) -> str:
    score = (
        ("ranked at the end" if trial.parts else "no score")
        if trial.score is None
        else f"{metric} {trial.score:.4f}"
    )
    epochs = f"  {plural(trial.epochs, 'epoch')}" if trial.epochs else ""
    so_far = "" if best is None else f"  best {best.score:.4f} (trial {best.trial})"
    ended = (
        ""
        if trial.status in ("finished", "continued")
        else f"  {trial.status}{': ' + trial.error if trial.error else ''}"
    )
    return (
        f"trial {trial.trial}  {short(trial.values)}  {score}{epochs}  {trial.seconds:.1f} s{ended}{so_far}"
    )


def _statuses(trials: Sequence[Trial]) -> str:
    count: dict[str, int] = {}
    for trial in trials:
        count[trial.status] = count.get(trial.status, 0) + 1
    return ", ".join(f"{n} {status}" for status, n in count.items())
