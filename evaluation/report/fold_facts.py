"""What a report of folds is made from: everything of a cross-validation's run folder, as plain values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.errors import StorageError
from shoal.cluster.run_folder import CONFIG, RunFolder
from shoal.cluster.sharding.manifest import Manifest, Target, read_manifest
from shoal.evaluation.crossval.comparing import sentences
from shoal.evaluation.evaluate import labels_and_scores
from shoal.evaluation.metrics import METRICS, Metric
from shoal.evaluation.report.facts import PREDICTIONS, PROVENANCE, Part, class_names, worded
from shoal.evaluation.tallies import Array

FITS, DATA = "fits", "data.json"
_OUTER = re.compile(r"fold-\d+(?:-(?!inner-)(.+))?")
_NUMBERS = ("value", "low", "high")


@dataclass(frozen=True)
class Judged:
    """Rows that a fold judges, and the class that was decided for each, -1 where decisions are no classes: int64 ``[n]``."""

    fold: int
    part: Part
    decided: Array


@dataclass(frozen=True)
class FoldFacts:
    """One cross-validation, ready to be rendered.

    Parameters
    ----------
    name
        The run's name.
    manifest
        Of the first fold's rows; its target and private columns are those of all.
    found
        What is in `metrics.json`.
    fits
        The facts of each outer fit, with its ``alternative``, by fold.
    judged
        The rows of each fold, scored by the choice inside it, or by the first alternative.
    """

    name: str
    manifest: Manifest
    found: dict[str, Any]
    fits: list[dict[str, Any]]
    judged: list[Judged]
    config: dict[str, Any]
    config_text: str
    provenance: dict[str, Any]

    @property
    def target(self) -> Target:
        """What is predicted."""
        return self.manifest.schema_.target

    @property
    def scores(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Metrics over folds, by alternative."""
        return dict(self.found["crossval"])

    @property
    def names(self) -> list[str]:
        """The alternatives, the one that the others are compared with first."""
        return list(self.scores)

    @property
    def nested(self) -> dict[str, Any]:
        """The choices and their scores; empty where nothing was chosen inside the folds."""
        return dict(self.found["nested"])

    @property
    def headline(self) -> dict[str, dict[str, Any]]:
        """The scores that the page is about: those of the choice, or of the first alternative."""
        return dict(self.nested["scores"]) if self.nested else self.scores[self.names[0]]

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return float(self.config.get("evaluation", {}).get("confidence", 0.95))

    @property
    def private(self) -> bool:
        """Whether the target's values must not be shown."""
        return bool(set(self.target.columns) & set(self.manifest.schema_.private))

    @property
    def hides_units(self) -> bool:
        """Whether the target's numbers are given in standard deviations, because they are private."""
        return self.private and self.target.task == "regression"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes or labels, numbers where the target is private."""
        return class_names(self.target, self.private)

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of this run, the one that drives choices first."""
        costs = self.config.get("evaluation", {}).get("costs") or {}
        names = [name for name in self.headline if name in METRICS]
        return [
            worded(METRICS[name], self.target.task, self.hides_units, costs.get("unit")) for name in names
        ]


def collect_folds(run: RunFolder, found: Mapping[str, Any], provenance: Mapping[str, Any]) -> FoldFacts:
    """Read the run folder of a cross-validation.

    Parameters
    ----------
    found
        What will be, or is, in `metrics.json`.
    provenance
        What is in `provenance.json`.

    Raises
    ------
    StorageError
        If its fits or predictions are not there any more.
    DataError
        If the predictions do not belong to the fits' target.
    """
    names = list(found["crossval"])
    named = {entry["tag"]: name for name, entry in found["alternatives"].items()}
    fits, first = [], ""
    for folder in run.list(FITS):
        matched = _OUTER.fullmatch(folder)
        if matched and (matched[1] or "") in named:  # others are of alternatives that were compared before
            first = first or folder
            one = run.read_json(f"{FITS}/{folder}/metrics.json")
            fits.append({**one, "alternative": named[matched[1] or ""]})
    if not first:
        raise StorageError(
            f"{run.uri} has no {FITS}/ any more, from which a report is made: put them back, or delete that folder and "
            "cross-validate again"
        )
    manifest = read_manifest(run.child(f"{FITS}/{first}"), DATA, "cross-validate again with another --out")
    facts = FoldFacts(
        name=run.uri.rstrip("/").rpartition("/")[2],
        manifest=manifest,
        found=dict(found),
        fits=sorted(fits, key=lambda fit: (fit["fold"], names.index(fit["alternative"]))),
        judged=_judged(run.read_table(PREDICTIONS), manifest.schema_.target, names[0]),
        config=run.config() or {},
        config_text=run.read_bytes(CONFIG).decode() if run.exists(CONFIG) else "",
        provenance=dict(provenance),
    )
    return _standardised(facts) if facts.hides_units else facts


def write_fold_report(
    run: RunFolder, found: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
) -> None:
    """Write `report.html` into the run folder of a cross-validation.

    Parameters
    ----------
    found, provenance
        As `collect_folds`; None reads `provenance.json`.

    Raises
    ------
    StorageError, DataError
        As `collect_folds`.
    """
    from shoal.evaluation.report.fold_page import render_folds
    from shoal.evaluation.report.page import REPORT

    if provenance is None:
        provenance = run.read_json(PROVENANCE)
    run.write_text(REPORT, render_folds(collect_folds(run, found, provenance)))


def _judged(predictions: pa.Table, target: Target, first: str) -> list[Judged]:
    if "chosen" in predictions.column_names:
        predictions = predictions.filter(predictions["chosen"])
    elif "alternative" in predictions.column_names:
        predictions = predictions.filter(pc.equal(pc.cast(predictions["alternative"], pa.string()), first))
    found = []
    for fold in sorted(set(predictions["fold"].to_pylist())):
        rows = predictions.filter(pc.equal(predictions["fold"], fold))
        y, scores = labels_and_scores(rows, target)
        found.append(Judged(fold, Part(y, scores), _decided(rows, target, scores)))
    return found


def _decided(rows: pa.Table, target: Target, scores: Array) -> Array:
    """Return decisions as they were stored, otherwise the usual ones."""
    usual = np.full(len(scores), -1)
    if target.task == "binary":
        usual = (scores >= 0.5).astype(np.int64)
    elif target.task == "multiclass":
        usual = scores.argmax(axis=1)
    if "decision" not in rows.column_names:
        return usual
    codes = {str(name): code for code, name in enumerate(target.classes)}
    given = pc.cast(
        rows["decision"], pa.string()
    ).to_pylist()  # empty for an alternative that decides as usual
    return np.array(
        [own if name is None else codes[name] for name, own in zip(given, usual, strict=True)], np.int64
    )


def _standardised(facts: FoldFacts) -> FoldFacts:
    """Turn every number in the target's units into standard deviations from the mean, both of the first fold's training rows."""
    center, scale = facts.target.center, facts.target.scale
    metric = facts.metrics[0].name

    def scaled(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        if name not in METRICS or not METRICS[name].in_units:
            return dict(entry)
        by = entry.get("by_fold")
        more = {} if by is None else {"by_fold": [None if v is None else v / scale for v in by]}
        return {k: v / scale if k in _NUMBERS and v is not None else v for k, v in entry.items()} | more

    def every(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {name: scaled(name, entry) for name, entry in entries.items()}

    comparison = {}
    for name, one in facts.found["comparison"].items():
        differences = every(one["differences"])
        says = sentences(name, facts.names[0], differences, one["slower"])
        comparison[name] = {**one, "differences": differences, "sentence": says}
    nested = facts.nested
    if nested:
        by = scale if METRICS[metric].in_units else 1.0
        choices = [
            {**choice, "means": {name: mean / by for name, mean in choice["means"].items()}}
            for choice in nested["choices"]
        ]
        nested = {**nested, "scores": every(nested["scores"]), "choices": choices}
    scores = {name: every(entries) for name, entries in facts.scores.items()}
    fits = [
        {**fit, "scores": {name: scaled(name, {"value": value})["value"] for name, value in fit["scores"].items()}}
        for fit in facts.fits
    ]  # fmt: skip
    judged = [
        replace(one, part=Part((one.part.y - center) / scale, (one.part.scores - center) / scale))
        for one in facts.judged
    ]
    found = {**facts.found, "crossval": scores, "comparison": comparison, "nested": nested}
    return replace(facts, found=found, fits=fits, judged=judged)
