"""What a report is made from: everything of a run folder, as plain values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.run_folder import CONFIG, RunFolder
from shoal.cluster.sharding.manifest import Manifest, Target
from shoal.evaluation.deciding.judging import Judging
from shoal.evaluation.evaluate import Scores, amounts_of, labels_and_scores, part_of
from shoal.evaluation.metrics import METRICS, Metric
from shoal.evaluation.report.markup import Html
from shoal.evaluation.tallies import Array, Floats
from shoal.training.config import TrainingConfig
from shoal.training.costs import Amounts
from shoal.training.early_stopping import EarlyStopping

HISTORY, PREDICTIONS, PROVENANCE = "history.parquet", "predictions.parquet", "provenance.json"
EXPLANATIONS, SUMMARY, EXPLAINED = "explanations", "explanations.json", "section.html"
STANDARD = "standard deviations of the target"
_MACRO = {"average_precision", "roc_auc", "f1", "precision", "recall"}


def is_macro(metric: str, task: str) -> bool:
    """Whether a value is the plain average over classes (multi-class) or labels (multi-label)."""
    if task == "multilabel":
        return metric in _MACRO | {"balanced_accuracy", "mcc"}
    return task == "multiclass" and metric in _MACRO


def class_names(target: Target, private: bool) -> list[str]:
    """Return the names of the classes or labels, numbers where the target is private."""
    return [f"class {k + 1}" if private else str(name) for k, name in enumerate(target.classes)]


def worded(metric: Metric, task: str, hides_units: bool, unit: str | None) -> Metric:
    """Let a metric's label and meaning tell macro averages, hidden units, and the unit of costs."""
    if is_macro(metric.name, task):
        return replace(metric, label=f"{metric.label} (macro)")
    if hides_units:
        return replace(metric, meaning=metric.meaning.replace("the target's units", STANDARD))
    if metric.name == "expected_cost" and unit:
        return replace(metric, label=f"{metric.label} ({unit})")
    return metric


@dataclass(frozen=True)
class Part:
    """Labels, scores and cost columns of one part's rows, as `Metric.value` takes them."""

    y: Array
    scores: Floats
    amounts: Amounts = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The epoch whose weights the model has."""

    epoch: int
    value: float
    restored: bool


@dataclass(frozen=True)
class ReportFacts:
    """One run, ready to be rendered.

    Parameters
    ----------
    name
        The run's name, for the title.
    metrics
        As `evaluate` gives them: part to metric name to value, low, high, method.
    parts
        Test and validation rows; a part without rows is left out.
    history
        The long table of a fit, None where there is none.
    config, config_text
        The resolved experiment, as values and as YAML.
    explained
        The section of `shoal explain`; empty where there is none.
    """

    name: str
    manifest: Manifest
    metrics: Scores
    parts: dict[str, Part]
    history: pa.Table | None
    config: dict[str, Any]
    config_text: str
    provenance: dict[str, Any]
    judging: Judging = field(default_factory=Judging)
    explained: Html = field(default_factory=Html)

    @property
    def target(self) -> Target:
        """What is predicted."""
        return self.manifest.schema_.target

    @property
    def judged(self) -> str:
        """The part that the headline is about: test where there is one."""
        return "test" if "test" in self.parts else "validation"

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return float(self.config.get("evaluation", {}).get("confidence", 0.95))

    @property
    def private(self) -> bool:
        """Whether the target's values must not be shown."""
        return any(name in self.manifest.schema_.private for name in self.target.columns)

    @property
    def hides_units(self) -> bool:
        """Whether the target's numbers are given in standard deviations, because they are private."""
        return self.private and self.target.task == "regression"

    @property
    def hides_costs(self) -> bool:
        """Whether costs of single rows must not be shown, because a column that they stand in is private."""
        return bool(set(self.judging.rule.columns) & set(self.manifest.schema_.private))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes or labels, numbers where the target is private."""
        return class_names(self.target, self.private)

    @property
    def chosen(self) -> list[Metric]:
        """The metrics of this run, the one that drove choices first; labels tell macro averages and units."""
        names: dict[str, None] = {}
        for part in self.metrics.values():
            names |= dict.fromkeys(part)
        costs = self.judging.rule.costs
        unit = costs.unit if costs else None
        return [worded(METRICS[name], self.target.task, self.hides_units, unit) for name in names]

    @property
    def steered(self) -> Metric:
        """The metric by which the epoch was chosen: the first one, or what decisions cost where these are what is learned."""
        own = self.judging.threshold == "own"
        return next(
            (metric for metric in self.chosen if own and metric.name == "expected_cost"), self.chosen[0]
        )

    @property
    def best(self) -> Best | None:
        """The best epoch by `steered`, as early stopping saw it; None without validation scores."""
        if self.history is None or not self.chosen:
            return None
        training = TrainingConfig.model_validate(self.config.get("training", {}))
        rule = EarlyStopping(training.early_stopping, self.steered.greater_is_better)
        for row in self.history.to_pylist():
            if row["split"] == "validation" and row["metric"] == self.steered.name:
                rule.update(row["epoch"], row["value"])
        if math.isnan(rule.best):
            return None
        restored = training.early_stopping is not None and training.early_stopping.restore_best
        return Best(rule.best_epoch, rule.best, restored)


def collect(
    run: RunFolder,
    manifest: Manifest,
    metrics: Scores,
    provenance: Mapping[str, Any] | None = None,
    judging: Judging | None = None,
) -> ReportFacts:
    """Read a run folder.

    Parameters
    ----------
    metrics
        What will be, or is, in `metrics.json`.
    provenance
        What will be in `provenance.json`; None reads it, and goes without where it is not written yet.
    judging
        How the model decides; None for the usual way.

    Raises
    ------
    DataError
        If the predictions do not belong to the manifest's target.
    StorageError
        If the run has no predictions, or they cannot be read.
    """
    predictions = run.read_table(PREDICTIONS)
    parts = {}
    for split in ("test", "validation"):
        rows = part_of(predictions, split)
        if rows.num_rows:
            amounts = amounts_of(rows, judging.rule.columns if judging is not None else ())
            parts[split] = Part(*labels_and_scores(rows, manifest.schema_.target), amounts)
    if provenance is None:
        provenance = run.read_json(PROVENANCE) if run.exists(PROVENANCE) else {}
    facts = ReportFacts(
        name=run.uri.rstrip("/").rpartition("/")[2],
        manifest=manifest,
        metrics=metrics,
        parts=parts,
        history=run.read_table(HISTORY) if run.exists(HISTORY) else None,
        config=run.config() or {},
        config_text=run.read_bytes(CONFIG).decode() if run.exists(CONFIG) else "",
        provenance=dict(provenance),
        judging=judging or Judging(),
        explained=_explained(run),
    )
    return _standardised(facts) if facts.hides_units else facts


def _explained(run: RunFolder) -> Html:
    """Read the section that `shoal explain` has left for the report; empty until all of it was written."""
    names = (f"{EXPLANATIONS}/{SUMMARY}", f"{EXPLANATIONS}/{EXPLAINED}")
    return Html(run.read_bytes(names[1]).decode() if all(map(run.exists, names)) else "")


def _standardised(facts: ReportFacts) -> ReportFacts:
    """Turn every number in the target's units into standard deviations from the mean, both of the training rows."""
    target, history, provenance = facts.target, facts.history, dict(facts.provenance)
    center, scale = target.center, target.scale
    in_units = [name for name, metric in METRICS.items() if metric.in_units]

    def scaled(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        bounds = ("value", "low", "high") if name in in_units else ()
        return {k: v / scale if k in bounds and v is not None else v for k, v in entry.items()}

    if history is not None:
        of_them = pc.is_in(pc.cast(history["metric"], pa.string()), pa.array(in_units))
        values = pc.if_else(of_them, pc.divide(history["value"], scale), history["value"])
        history = history.set_column(history.column_names.index("value"), "value", values)
    first = next(iter(facts.metrics.get(facts.judged, {})), "")
    if (best := provenance.get("fit", {}).get("best")) is not None and first in in_units:
        provenance["fit"] = {**provenance["fit"], "best": best / scale}
    hidden = target.model_copy(update={"center": 0.0, "scale": 1.0})
    schema = facts.manifest.schema_.model_copy(update={"target": hidden})
    return replace(
        facts,
        manifest=facts.manifest.model_copy(update={"schema_": schema}),
        metrics={
            p: {n: scaled(n, entry) for n, entry in found.items()} for p, found in facts.metrics.items()
        },
        parts={p: Part((r.y - center) / scale, (r.scores - center) / scale) for p, r in facts.parts.items()},
        history=history,
        provenance=provenance,
    )
