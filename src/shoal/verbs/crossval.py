"""crossval: the fits of all folds and alternatives as one queue, and what they say together."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shoal.cluster.components import load_imported
from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import FIT_MEMORY, Demand, Part, Shape, plan
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.reading import Reading
from shoal.experiment import Experiment, dump_yaml, given, to_dict
from shoal.verbs.axis import alternatives
from shoal.verbs.dealing import dealt
from shoal.verbs.fold_fit import FoldFit, attempt
from shoal.verbs.provenance import Stages, provenance
from shoal.verbs.runs import PROVENANCE, claimed, run_uri
from shoal.verbs.writable import require_cache

if TYPE_CHECKING:
    from shoal.evaluation.crossval.folds import Folds

FITS = "fits"
PART = "crossval"


@dataclass(frozen=True)
class CrossvalResult:
    """Scores over folds, by alternative; the first one is what the others are compared with.

    `nested` is empty unless `evaluation.cv` is nested: the scores of the alternative chosen inside each fold, and the choices.
    """

    run: str
    task: str
    reason: str
    scores: dict[str, dict[str, dict[str, Any]]]
    comparison: dict[str, dict[str, Any]]
    nested: dict[str, Any]
    seconds: dict[str, float]
    report: str
    was_complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "run": self.run,
            "cv": self.reason,
            PART: self.scores,
            "comparison": self.comparison,
            "nested": self.nested,
            "seconds": self.seconds,
            "report": self.report,
            "was_complete": self.was_complete,
        }


def crossval(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    compare: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> CrossvalResult:
    """Fit and judge each fold, of each alternative where some are compared; the results are in the run folder.

    Each fit is stored when it ends: the same command does what is missing, and nothing again. Test rows of the `data` section
    stay out of all folds.

    Parameters
    ----------
    experiment
        What to do, or the path of its file.
    out
        The run folder.
    compare
        Alternatives, ``{name: {key.key: value}}``, or a YAML file of them, which are judged on the same folds. Fits that an
        earlier call has stored are not done again, whatever other alternatives there were.
    name
        What the folder's name begins with; by default the experiment file's stem.
    reporter
        Hears of progress.
    command
        What to write down as the command.

    Raises
    ------
    ShoalError
        `RequestError` before anything started; a `RunError` that names the fits that failed, once all others are done.
    """
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.scikit.unused import refuse_estimator

    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    experiment = _without_fold_column(experiment)
    made = alternatives(experiment, compare)
    _require_a_choice(experiment, made)
    groups = False
    for alternative in made.values():
        load_imported(alternative, alternative.training, alternative.evaluation)
        groups |= needs_group(alternative.training)
    shape, demand = plan(experiment.cluster, groups)
    for alternative in made.values():
        refuse(alternative.training, shape)
        refuse_estimator(alternative.model, alternative.training, shape)
    require_cache(experiment.cluster, shape)
    uri = run_uri(experiment, "crossval", name, out) + ("" if out or compare is None else "-compare")
    run = RunFolder.open(uri, experiment.cluster.storage)
    with claimed(run, to_dict(experiment), reporter, "metrics.json") as heard:
        if run.is_complete and run.read_json("metrics.json")["alternatives"] == _alternatives(
            experiment, made
        ):
            heard.notice(f"this run is complete; nothing is computed again. Delete {run.uri} to repeat it")
            return _result(run, run.read_json("metrics.json"), was_complete=True)
        return _crossval(experiment, made, run, shape, demand, heard, command)


def _crossval(
    experiment: Experiment,
    made: Mapping[str, Experiment],
    run: RunFolder,
    shape: Shape,
    demand: Demand,
    reporter: Reporter,
    command: Sequence[str] | None,
) -> CrossvalResult:
    stages = Stages(reporter)
    with stages.stage("folds", "dealing folds"):
        found = dealt(made, shape, reporter)
        for notice in (*found.notices, found.folds.reason):
            reporter.notice(notice)
    tags = {name: entry["tag"] for name, entry in _alternatives(experiment, made).items()}
    fits = _fits(made, tags, found.folds, run, shape)
    todo = [fit for fit in fits if not fit.is_done]
    if len(todo) < len(fits):
        reporter.notice(f"{plural(len(fits) - len(todo), 'fit')} of {len(fits)} are there already")
    with stages.stage("fit", f"fitting {len(fits)} times"):
        failed = _run(todo, found.reading, experiment, shape, demand, reporter)
    if failed:
        raise RunError(_failure(fits, failed, tags, experiment, found.folds))
    return _finish(experiment, made, run, found.folds, fits, found.target, stages, command)


def _fits(
    made: Mapping[str, Experiment], tags: Mapping[str, str], folds: "Folds", run: RunFolder, shape: Shape
) -> list[FoldFit]:
    """Return the queue: all alternatives on a fold, after those on the folds inside it."""
    found, configs = [], {name: dump_yaml(alternative) for name, alternative in made.items()}
    for fold in range(len(folds)):
        inner = range(len(folds.inner[fold])) if folds.inner else ()
        for number in (*inner, None):
            for own, alternative in made.items():
                name = f"fold-{fold + 1:03d}"
                name += "" if number is None else f"-inner-{number + 1:03d}"
                name += f"-{tags[own]}" if tags[own] else ""
                uri = f"{run.uri.rstrip('/')}/{FITS}/{name}"
                found.append(FoldFit(own, alternative, configs[own], fold, number, uri, shape))
    return found


def _alternatives(experiment: Experiment, made: Mapping[str, Experiment]) -> dict[str, dict[str, Any]]:
    """Return, by alternative, in which values it differs, and what its fits' folders are called by."""
    from shoal.cluster.run_folder import difference

    found = {}
    for name, other in made.items():
        changes = difference(to_dict(experiment), to_dict(other))
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24]
        key = hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:8]
        found[name] = {"tag": f"{slug}-{key}".strip("-") if changes else "", "changes": changes}
    return found


def _failure(
    fits: Sequence[FoldFit],
    failed: Mapping[str, str],
    tags: Mapping[str, str],
    experiment: Experiment,
    folds: "Folds",
) -> str:
    """Say which fits failed, and what is known of the alternatives that are whole."""
    from shoal.evaluation.crossval.comparing import summed_up

    lines = [
        f"{plural(len(failed), 'fit')} of {len(fits)} failed, the others are kept; the same command tries them again"
        + (", and without such an alternative it fits nothing again" if len(tags) > 1 else "")
    ]
    lines += [f"{uri.rpartition('/')[2]}: {error}" for uri, error in list(failed.items())[:5]]
    lines += [f"and {len(failed) - 5} more"] if len(failed) > 5 else []
    for name in tags:
        own = [fit for fit in fits if fit.alternative == name and fit.inner is None]
        if len(tags) > 1 and all(fit.uri not in failed for fit in own):
            facts = [fit.run.read_json("metrics.json") for fit in own]
            metric, entry = next(
                iter(summed_up(facts, _ratio(folds), experiment.evaluation.confidence).items())
            )
            value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
            lines.append(f"whole: {name}: {metric} {value} over {plural(len(own), 'fold')}")
    return "\n".join(lines)


def _ratio(folds: "Folds") -> float:
    """Return the test rows over the training rows of a fold, the mean over folds."""
    return float(np.mean([len(fold.test) / len(fold.train) for fold in folds.folds]))


def _require_a_choice(experiment: Experiment, made: Mapping[str, Experiment]) -> None:
    """Refuse nested folds where there is nothing to choose among."""
    from shoal.evaluation.crossval.config import NestedConfig

    if isinstance(experiment.evaluation.cv, NestedConfig) and len(made) == 1:
        raise ConfigError(
            "evaluation.cv: nested chooses among alternatives inside each fold, and there are none; give some with --compare "
            "FILE, or choose other folds"
        )


def _run(
    fits: Sequence[FoldFit],
    reading: Reading | None,
    experiment: Experiment,
    shape: Shape,
    demand: Demand,
    reporter: Reporter,
) -> dict[str, str]:
    """Do the fits where their shape says; return the errors of those that failed, by folder."""
    failed: dict[str, str] = {}
    with _map(fits, reading, experiment, shape, demand, reporter) as errors:
        for done, (fit, error) in enumerate(zip(fits, errors, strict=True), 1):
            if error:
                failed[fit.uri] = error
                reporter.notice(f"{fit.uri.rpartition('/')[2]} failed: {error}")
            else:
                reporter.notice(_line(fit))
            reporter.advance(done, len(fits), "fits")
    return failed


@contextmanager
def _map(
    fits: Sequence[FoldFit],
    reading: Reading | None,
    experiment: Experiment,
    shape: Shape,
    demand: Demand,
    reporter: Reporter,
) -> Iterator[Iterator[str]]:
    """Give the error, or nothing, of each fit in turn."""
    if not fits:
        yield iter(())
        return
    if shape.placement == "task":
        from shoal.cluster.tasks import tasks

        part = Part("fits", 1, shape.cpus_per_worker, shape.gpus_per_worker, float(FIT_MEMORY))
        with tasks(experiment.cluster, part, reporter, most=len(fits)) as several:
            reporter.notice(f"{plural(several.count, 'fit')} at a time")
            yield several.map(partial(attempt, reading=reading), fits)  # which goes to the object store once
    elif shape.placement == "group":
        from shoal.cluster.session import session

        with session(experiment.cluster, demand, reporter):
            yield (_here(fit, reading, experiment, shape) for fit in fits)
    else:
        yield (_here(fit, reading, experiment, shape) for fit in fits)


def _here(fit: FoldFit, reading: Reading | None, experiment: Experiment, shape: Shape) -> str:
    """Fit in this process, or in a worker group that it starts; storage that fails is tried once more."""
    from shoal.training.trainer import fit as train

    return attempt(fit, lambda job: train(job, shape, experiment.cluster, Silent()), reading)


def _line(fit: FoldFit) -> str:
    facts = fit.run.read_json("metrics.json")
    first, value = next(iter(facts["scores"].items()))
    shown = "undefined" if value is None else f"{value:.4f}"
    return f"{fit.uri.rpartition('/')[2]}  {first} {shown}  {sum(facts['seconds'].values()):.1f} s"


def _finish(
    experiment: Experiment,
    made: Mapping[str, Experiment],
    run: RunFolder,
    folds: "Folds",
    fits: Sequence[FoldFit],
    target: Target,
    stages: Stages,
    command: Sequence[str] | None,
) -> CrossvalResult:
    """Put the folds together, and write what a finished run has."""
    from shoal.evaluation.crossval.choosing import chosen, nested
    from shoal.evaluation.crossval.comparing import compared, summed_up
    from shoal.evaluation.report.fold_facts import write_fold_report

    read = [(fit, fit.run.read_json("metrics.json")) for fit in fits]
    by_fit = [(fit, facts) for fit, facts in read if fit.inner is None]
    names = list(made)
    of = {name: [facts for fit, facts in by_fit if fit.alternative == name] for name in names}
    choices = []
    for i in range(len(folds.inner)):
        inside = [(fit, facts) for fit, facts in read if fit.inner is not None and fit.fold == i]
        inner = {name: [facts for fit, facts in inside if fit.alternative == name] for name in names}
        choices.append(chosen(inner, i))
    ratio = _ratio(folds)
    confidence = experiment.evaluation.confidence
    scores = {name: summed_up(facts, ratio, confidence) for name, facts in of.items()}
    comparison = {
        name: compared(of[names[0]], of[name], names[0], name, ratio, confidence) for name in names[1:]
    }
    run.write_table("predictions.parquet", _predictions(by_fit, made, choices))
    seen: dict[str, Any] = {
        "seed": experiment.seed,
        "data_key": "",
        "data_path": ", ".join(experiment.data.path),
        "cluster": {"placement": fits[0].shape.placement, "num_workers": fits[0].shape.num_workers},
        "fit": {},
        "command": command,
    }
    facts = provenance(stages, **seen)
    run.write_json(PROVENANCE, facts)
    metrics = {
        PART: scores,
        "comparison": comparison,
        "nested": nested(choices, of, ratio, confidence) if choices else {},
        "alternatives": _alternatives(experiment, made),
        "cv": folds.reason,
        "task": target.task,
        "seconds": facts["seconds"],
    }
    write_fold_report(run, metrics, facts)
    run.write_json("metrics.json", metrics)  # last: it says that the run is complete
    return _result(run, metrics)


def _predictions(
    by_fit: Sequence[tuple[FoldFit, dict[str, Any]]],
    made: Mapping[str, Experiment],
    choices: Sequence[Mapping[str, Any]],
) -> pa.Table:
    """Return each row's scores by the models that had not seen it, and whether theirs was the choice inside its fold."""
    import pyarrow.compute as pc

    tables = []
    for fit, facts in by_fit:
        table = fit.run.read_table("predictions.parquet")
        table = table.filter(pc.equal(pc.cast(table["split"], pa.string()), "test"))
        n = table.num_rows
        table = table.set_column(
            table.column_names.index("split"), "split", pa.array([PART] * n, pa.string())
        )
        table = table.add_column(1, "fold", pa.array(np.full(n, facts["fold"] + 1, np.int32)))
        if len(made) > 1:
            table = table.add_column(1, "alternative", pa.array([fit.alternative] * n, pa.string()))
            if choices:
                chosen = choices[fit.fold]["chosen"] == fit.alternative
                table = table.add_column(2, "chosen", pa.array([chosen] * n))
        tables.append(table)
    return pa.concat_tables(tables, promote_options="default")


def _result(run: RunFolder, metrics: dict[str, Any], was_complete: bool = False) -> CrossvalResult:
    return CrossvalResult(
        run.uri,
        metrics["task"],
        metrics["cv"],
        metrics[PART],
        metrics["comparison"],
        metrics["nested"],
        metrics["seconds"],
        f"{run.uri.rstrip('/')}/report.html",
        was_complete,
    )


def _without_fold_column(experiment: Experiment) -> Experiment:
    """Leave a column that names the folds out of the features."""
    from shoal.evaluation.crossval.folds import columns_of

    data = experiment.data
    more = tuple(name for name in columns_of(experiment.evaluation.cv) if name not in data.drop)
    if not more or data.features is not None:
        return experiment
    return experiment.model_copy(update={"data": data.model_copy(update={"drop": (*data.drop, *more)})})
