"""How an experiment's model will decide: what is settled before its fit, and what the validation rows then settle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.evaluation.config import EvaluationConfig
from shoal.evaluation.deciding.config import MaximiseConfig
from shoal.evaluation.deciding.costs import Rule, resolve_costs
from shoal.evaluation.deciding.judging import Judging
from shoal.evaluation.deciding.threshold import best_threshold, cheapest_threshold
from shoal.evaluation.metrics import METRICS
from shoal.evaluation.tallies import Array, Floats
from shoal.training.costs import NO_AMOUNTS, Amounts, Cells, Costs
from shoal.training.decision import Calibration, Decision

OWN = (
    "decisions: the model's likeliest class, since metacost taught it decisions: its probabilities are of these, not of classes, "
    "so log_loss, brier and calibration say little"
)
_ROWS = "set data.split: {validation: …}, or put such rows into its column"


@dataclass(frozen=True)
class Known:
    """The rows of each class in two parts, and the cost columns of the training rows.

    Parameters
    ----------
    train, validation
        ``[K]`` each; of training rows before resampling.
    sums
        Each cost column, summed over the training rows of each class, ``[K]``.
    """

    train: Sequence[int]
    validation: Sequence[int] = ()
    sums: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is known before a fit.

    Parameters
    ----------
    start
        How the model decides while it is fitted: nothing of it comes from validation rows.
    calibration
        What is to be fitted on them.
    """

    start: Judging
    calibration: Literal["none", "temperature", "isotonic"]

    @property
    def changes(self) -> bool:
        """Whether the model is to answer in another way than its fit leaves it."""
        return self.start.decides or self.start.calibration != Calibration() or self.calibration != "none"

    def fit(self, y: Array, scores: Floats, amounts: Amounts = NO_AMOUNTS) -> Judging:
        """Fit what is to be fitted on the validation rows.

        Parameters
        ----------
        y, scores, amounts
            Their labels, the model's scores and their cost columns, as `Metric.value` takes them.
        """
        if not np.isfinite(scores).all():
            return replace(
                self.start,
                notices=("scores of validation rows are NaN or infinite: nothing is fitted to them",),
            )
        calibration, notices = self._calibrate(y, self.start.calibration(scores, amounts))
        judging = replace(self.start, calibration=calibration, notices=tuple(notices))
        if not judging.chosen_on_validation:
            return judging
        calibrated, costs = calibration(scores, amounts), self.start.rule.costs
        if judging.threshold == "empirical" and costs is not None:
            threshold = cheapest_threshold(y, calibrated, costs, amounts)
        else:
            threshold = best_threshold(y, calibrated, self._worth)
        best = "lowest cost" if judging.threshold == "empirical" else f"highest {judging.threshold}"
        said = f"decisions: the event where its probability is at least {threshold:.4g}, of {best} on the validation rows"
        decision = Decision(threshold=threshold)
        return replace(
            judging, rule=replace(judging.rule, decision=decision), notices=(*judging.notices, said)
        )

    def _calibrate(self, y: Array, scores: Floats) -> tuple[Calibration, list[str]]:
        from shoal.evaluation.deciding.calibrate import fit_isotonic, fit_temperature

        start, rows = self.start.calibration, f"{len(y):,} validation rows"
        if self.calibration == "isotonic":
            fitted = start.model_copy(update={"isotonic": fit_isotonic(y, scores)})
            return fitted, [f"calibration: isotonic, fitted on {rows}"]
        if self.calibration == "none":
            return start, []
        temperature = fit_temperature(y, scores)
        if temperature is None:
            return start, [
                f"calibration: the model is right about all {rows}, so no temperature is the best; probabilities stay as they are"
            ]
        fitted = start.model_copy(update={"temperature": temperature})
        return fitted, [f"calibration: temperature {temperature:.4g}, fitted on {rows}"]

    def _worth(self, sums: Floats) -> Floats:
        finish = METRICS[self.start.threshold].finish
        assert finish is not None
        return finish(sums, "binary")


def plan(
    config: EvaluationConfig,
    schema: Schema,
    known: Known,
    class_weights: Sequence[float] = (),
    cost_weights: Cells = (),
    own: bool = False,
) -> Plan:
    """Settle how a model will decide.

    Parameters
    ----------
    known
        What the rows are.
    class_weights, cost_weights
        By class or by row, of a loss or of a choice of rows whose probabilities are proportional to them.
    own
        Whether the model learns decisions: then its likeliest class is decided, and nothing is done to its probabilities.

    Raises
    ------
    ConfigError
        If costs, calibration or threshold do not go with the task or each other, or need validation rows that are not there.
    """
    task = schema.target.task
    costs = None if config.costs is None else resolve_costs(config.costs, schema)
    _refuse_unfitting(config, task)
    calibration = config.calibration
    if calibration == "auto":
        calibration = "none" if costs is None or own else "temperature"
    judging = judging_of(config, schema, known, Calibration(), _decision(config, costs, own), own)
    if calibration != "none":
        _need_classes(schema, known.validation, calibration)
    elif judging.chosen_on_validation:
        _need_classes(schema, known.validation, "")
    if calibration != "none" or costs is not None:
        weights = Calibration(class_weights=tuple(class_weights), cost_weights=cost_weights)
        judging = replace(judging, calibration=weights)
    return Plan(replace(judging, notices=tuple(_said(config, judging))), calibration)


def judging_of(
    config: EvaluationConfig,
    schema: Schema,
    known: Known,
    calibration: Calibration,
    decision: Decision,
    own: bool = False,
) -> Judging:
    """Return how a model decides that has this calibration and decision; ``own`` as in `plan`.

    Raises
    ------
    ConfigError
        As `resolve_costs`; or if costs stand in columns that were not carried from the data.
    """
    costs = None if config.costs is None else resolve_costs(config.costs, schema)
    if costs is not None and (absent := [name for name in costs.columns if name not in known.sums]):
        raise ConfigError(
            f"evaluation.costs: the rows of this run have no costs of column {absent[0]!r}: they are sharded with the cost "
            "columns that the experiment names, so train with it"
        )
    constant = 0 if costs is None else costs.constant(known.train, known.sums)
    threshold = config.threshold
    if own:
        kind = "own"
    elif isinstance(threshold, MaximiseConfig):
        kind = threshold.maximise
    elif threshold == "auto":
        kind = "usual" if costs is None else "optimal"
    else:
        kind = threshold if isinstance(threshold, str) else "given"
    return Judging(schema.target.task, Rule(decision, costs, constant), calibration, kind)


def judging_again(
    before: EvaluationConfig, after: EvaluationConfig, schema: Schema, rows: Known, known: Judging
) -> Judging:
    """Return how a finished model decides when it is asked for by other costs, or with another threshold.

    Parameters
    ----------
    before, after
        What it was trained with, and what is asked for.
    rows
        What the rows are.
    known
        How it decides.

    Raises
    ------
    ConfigError
        If that needs something to be fitted.
    """
    _refuse_unfitting(after, schema.target.task)
    fitted = "is fitted on validation rows when the model is; train again (the shards are reused)"
    if after.calibration != before.calibration:
        raise ConfigError(f"evaluation.calibration {fitted}")
    own = known.threshold == "own"
    asked = judging_of(after, schema, rows, known.calibration, known.rule.decision, own)
    if after.threshold != before.threshold and asked.chosen_on_validation:
        raise ConfigError(f"evaluation.threshold: {asked.threshold} {fitted}, or give a number")
    if (after.threshold, after.costs) == (before.threshold, before.costs) or asked.chosen_on_validation:
        return asked
    return replace(asked, rule=replace(asked.rule, decision=_decision(after, asked.rule.costs, own)))


def _decision(config: EvaluationConfig, costs: Costs | None, own: bool) -> Decision:
    """Return the decision that needs no rows."""
    if isinstance(config.threshold, float):
        return Decision(threshold=config.threshold)
    if costs is None or own:
        return Decision()
    if len(costs.matrix) == 2 and not costs.columns:
        return Decision(threshold=float(costs.thresholds()))
    return Decision(costs=costs.cells)


def _refuse_unfitting(config: EvaluationConfig, task: str) -> None:
    threshold = config.threshold
    if task not in ("binary", "multiclass"):
        if config.calibration not in ("auto", "none") or threshold != "auto":
            key = "threshold" if threshold != "auto" else "calibration"
            raise ConfigError(
                f"evaluation.{key} is for one class a row, and the task is {task}; leave it out"
            )
        return
    if task == "multiclass" and threshold not in ("auto", "optimal"):
        raise ConfigError(
            "evaluation.threshold is for two classes, and the task is multiclass, where the class of lowest expected cost is "
            "decided if there are evaluation.costs; leave it out"
        )
    if threshold in ("optimal", "empirical") and config.costs is None:
        other = ", or write {maximise: f1}" if threshold == "empirical" else ", or a number"
        raise ConfigError(
            f"evaluation.threshold: {threshold} needs evaluation.costs, such as {{false_positive: 1, false_negative: 25}}{other}"
        )


def _need_classes(schema: Schema, validation: Sequence[int], calibration: str) -> None:
    """Refuse what is fitted on validation rows where these cannot tell."""
    key = f"evaluation.calibration: {calibration}" if calibration else "evaluation.threshold"
    fix = f"{_ROWS}; or evaluation.calibration: none" if calibration else f"{_ROWS}; or give a number"
    if not sum(validation):
        raise ConfigError(f"{key} is fitted on validation rows, and there are none; {fix}")
    empty = [str(name) for name, rows in zip(schema.target.classes, validation, strict=True) if not rows]
    if empty and (schema.target.task == "binary" or calibration == "isotonic"):
        hidden = set(schema.target.columns) & set(schema.private)
        which = "of some classes" if hidden else f"of {', '.join(empty[:10])}"
        raise ConfigError(f"{key} needs validation rows of every class, and there are none {which}; {fix}")


def _said(config: EvaluationConfig, judging: Judging) -> list[str]:
    """Say what follows from costs without being asked for."""
    if judging.rule.costs is None:
        return []
    if judging.threshold == "own":
        return [OWN]
    said = []
    if config.calibration == "auto":
        said.append(
            "calibration: by temperature on the validation rows, because there are costs; set evaluation.calibration to change it"
        )
    if judging.threshold == "optimal" and judging.rule.decision.columns:
        said.append("decisions: of lowest expected cost, by each row's own costs")
    elif judging.threshold == "optimal" and judging.task == "binary":
        threshold = judging.rule.decision.threshold
        said.append(
            f"decisions: the event where its probability is at least {threshold:.4g}, which the costs make the threshold"
        )
    elif judging.threshold == "optimal":
        said.append("decisions: the class of lowest expected cost")
    return said
