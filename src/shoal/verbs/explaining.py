"""The pieces of an explanation, in their order, put together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from shoal.cluster.progress import Reporter
from shoal.cluster.resources import Part, Shape, plan
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Schema
from shoal.evaluation.explain.config import ExplainConfig
from shoal.evaluation.explain.outcome import Outcome, Rows
from shoal.evaluation.explain.permutation import importance
from shoal.evaluation.explain.shapley import Attributions
from shoal.evaluation.explain.together import groups, rank_correlation
from shoal.evaluation.explain.trained import (
    DRAWABLE,
    numbers,
    of_trained,
    ordered_numbers,
    values,
)
from shoal.evaluation.explain.work import (
    Explain,
    Piece,
    Sample,
    answers_of,
)
from shoal.evaluation.metrics import METRICS
from shoal.experiment import Experiment
from shoal.training.artifact import TrainedModel
from shoal.training.device import own_threads
from shoal.verbs.explained_rows import Drawn

if TYPE_CHECKING:
    from shoal.cluster.sharding.spread import Spread
    from shoal.evaluation.explain.work import Dependences

_TASK_MEMORY = 512 << 20  # bytes of a task, beyond which Ray is not told
_ROWS = 10  # of a piece
_MOST = 6  # columns of partial dependence, where none are named


@contextmanager
def _on_threads(cpus: float) -> Iterator[None]:
    """Compute with as many threads as a task has, here too: their number moves the last digits."""
    before = torch.get_num_threads()
    own_threads(cpus)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _spread(experiment: Experiment, shape: Shape, most: int, reporter: Reporter) -> "Iterator[Spread]":
    """Work in this process, or in tasks: as many as there are workers asked for, or CPUs free."""
    from shoal.cluster.sharding.spread import Here

    if shape.placement == "inline":
        yield Here()
        return
    from shoal.cluster.tasks import tasks

    part = Part("explanations", 1, shape.cpus_per_worker, 0.0, float(_TASK_MEMORY))
    asked = most if experiment.cluster.num_workers == "auto" else min(most, shape.num_workers)
    with tasks(experiment.cluster, part, reporter, most=asked) as several:
        yield several


def explained(
    explaining: Explain,
    trained: TrainedModel,
    found: Drawn,
    experiment: Experiment,
    folder: RunFolder,
    reporter: Reporter,
) -> Outcome:
    """Do all pieces, in this process or in tasks, and put them together.

    Parameters
    ----------
    explaining
        Does a piece.
    trained, found, experiment, folder
        The model, the rows, how they are explained, and the run.
    reporter
        Hears of progress.

    Raises
    ------
    ShoalError
        That of the first piece that has one; `ResourceError` where there is no room for the tasks.
    """
    shape, _ = plan(experiment.cluster)
    with _on_threads(shape.cpus_per_worker):
        return _explained(explaining, trained, found, experiment, shape, folder, reporter)


def _explained(
    explaining: Explain,
    trained: TrainedModel,
    found: Drawn,
    experiment: Experiment,
    shape: Shape,
    folder: RunFolder,
    reporter: Reporter,
) -> Outcome:
    settings, schema, sample = explaining.settings, trained.schema, explaining.sample
    subject = of_trained(trained)
    names = [column.name for column in schema.columns]
    answers = answers_of(subject, sample)
    correlated = _correlated(trained, sample, answers)
    outcome = Outcome(
        folder.uri,
        schema,
        _outputs(subject.outputs, schema),
        found.part,
        len(sample.cells),
        len(sample.background),
        _rows(schema, subject.columns, found, sample),
        correlated=tuple(correlated),
        confidence=experiment.evaluation.confidence,
        sample=_values(schema, subject.columns, sample),
    )
    by_rows = [(s, min(s + _ROWS, len(sample.explained))) for s in range(0, len(sample.explained), _ROWS)]
    with _spread(experiment, shape, max(len(names), len(by_rows)), reporter) as spread:
        work = replace(explaining, cpus=shape.cpus_per_worker)

        def done(method: str, title: str, items: Sequence[tuple[Any, ...]], what: str) -> list[Any]:
            reporter.stage(title)
            pieces: list[Piece] = [(method, item) for item in items]
            results = []
            for result in spread.map(work, pieces):
                results.append(result)
                reporter.advance(len(results), len(pieces), what)
            reporter.done()
            return results

        if "permutation" in settings.methods:
            together = dict(settings.groups) | {" + ".join(group): group for group in correlated}
            of = {name: (name,) for name in names} | together
            scores = done(
                "permutation", "permutation importance", [(columns,) for columns in of.values()], "columns"
            )
            baseline = explaining.score(answers)
            made = [
                importance(name, columns, baseline, falls, outcome.confidence)
                for (name, columns), falls in zip(of.items(), scores, strict=True)
            ]
            ranked = sorted(made[: len(names)], key=lambda one: -one.mean)
            outcome = replace(
                outcome,
                metric=METRICS[explaining.metric],
                baseline=baseline,
                importances=tuple(ranked),
                groups=tuple(made[len(names) :]),
            )
        for method in [m for m in settings.methods if m not in ("permutation", "partial_dependence")]:
            parts = done(method, method.replace("_", " "), by_rows, "blocks of rows")
            if method == "lime":
                locals_ = [one for part in parts for one in part]
                joined = Attributions(
                    np.stack([one.coefficients for one in locals_]),
                    np.stack([one.intercept for one in locals_]),
                    answers[sample.explained],
                )
                outcome = replace(outcome, fidelity=np.stack([one.fidelity for one in locals_]))
            else:
                joined = _joined(parts)
            outcome = replace(outcome, attributions={**outcome.attributions, method: joined})
        if "partial_dependence" in settings.methods:
            chosen = _chosen(settings, schema, outcome)
            drawn: list[Dependences] = done("partial_dependence", "partial dependence", chosen, "columns")
            outcome = replace(outcome, dependences=tuple(drawn))
    return outcome


def _chosen(settings: ExplainConfig, schema: Schema, outcome: Outcome) -> list[tuple[str, ...]]:
    """Return the columns of partial dependence: those that were named, or the most important ones that may be shown."""
    if settings.columns != "auto":
        return [(name,) if isinstance(name, str) else tuple(name) for name in settings.columns]
    may = [c.name for c in schema.columns if c.type in DRAWABLE and c.name not in schema.private]
    if outcome.importances:
        order = [one.name for one in outcome.importances]
    elif outcome.attributions:
        size = np.abs(next(iter(outcome.attributions.values())).values).mean(axis=(0, 2))
        order = [outcome.columns[i] for i in np.argsort(-size, kind="stable")]
    else:
        order = may
    found: list[tuple[str, ...]] = [(name,) for name in order if name in may]
    return found[:_MOST]


def _joined(parts: Sequence[Attributions]) -> Attributions:
    sampling = [part.sampling for part in parts if part.sampling is not None]
    return Attributions(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.base for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        np.concatenate(sampling) if sampling else None,
    )


def _correlated(trained: TrainedModel, sample: Sample, answers: Any) -> list[tuple[str, ...]]:
    """Return groups of columns that go together; categories are ordered by the mean answer of their rows."""
    subject = of_trained(trained)
    telling = answers[:, int(answers.var(axis=0).argmax())]
    found = {
        column.name: ordered_numbers(column, sample.cells[:, list(subject.columns[column.name])], telling)
        for column in trained.schema.columns
    }
    known = {name: numbers for name, numbers in found.items() if numbers is not None}
    if len(known) < 2:
        return []
    return groups(list(known), rank_correlation(np.stack(list(known.values()), axis=1)))


def _outputs(names: Sequence[str], schema: Schema) -> tuple[str, ...]:
    """Name the outputs; the classes of a private target by their numbers."""
    if not set(schema.target.columns) & set(schema.private) or schema.target.task in (
        "regression",
        "multilabel",
    ):
        return tuple(names)
    return ("event",) if len(names) == 1 else tuple(f"class {k}" for k in range(len(names)))


def _rows(schema: Schema, places: Any, found: Drawn, sample: Sample) -> Rows:
    """Read the explained rows' values; private ones are not."""
    cells = sample.cells[sample.explained]
    texts, ordered = [], []
    for column in schema.columns:
        own, hidden = cells[:, list(places[column.name])], column.name in schema.private
        texts.append([""] * len(own) if hidden else values(column, own))
        has_order = column.type in DRAWABLE and column.type != "categorical" and not hidden
        ordered.append(numbers(column, own) if has_order else None)
    hide = schema.id is not None and schema.id in schema.private
    ids = pa.array(sample.numbers[sample.explained]) if hide else found.ids.take(pa.array(sample.explained))
    return Rows(ids, texts, ordered)


def _values(schema: Schema, places: Any, sample: Sample) -> dict[str, Any]:
    """Return the numbers of the sample's columns that may be shown, for rugs."""
    return {
        c.name: numbers(c, sample.cells[:, list(places[c.name])])
        for c in schema.columns
        if c.type in ("numeric", "timestamp") and c.name not in schema.private
    }
