"""What costs, calibration and threshold mean for an experiment: the loss, the model and the predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from shoal.cluster.components import Choice
from shoal.cluster.config import Config
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.costs import Judge
from shoal.cluster.sharding.manifest import Manifest, Schema, Target
from shoal.evaluation.deciding.costs import resolve_costs
from shoal.evaluation.deciding.judging import Deciding, Judging
from shoal.evaluation.deciding.plan import Known, Plan, judging_of, plan
from shoal.evaluation.evaluate import amounts_of, labels_and_scores, part_of
from shoal.evaluation.metrics import METRICS, Metric
from shoal.experiment import Experiment
from shoal.training.config import TrainingConfig
from shoal.training.costs import Costs, Floats, by_name
from shoal.training.decision import Calibration, Decision
from shoal.training.description import DESCRIPTION, write_decision
from shoal.training.ensembles.config import CostingConfig, MetaCostConfig
from shoal.training.losses.config import (
    BY_COSTS,
    LOSSES,
    BCEConfig,
    CrossEntropyConfig,
    FocalConfig,
    LDAMConfig,
    LogitAdjustedConfig,
    LossConfig,
)
from shoal.training.reasonable import refuse_unreasonable
from shoal.training.sampling.config import CostRejectionConfig

PREDICTIONS = "predictions.parquet"


class Trained(Protocol):
    """A trained model, or its description."""

    @property
    def calibration(self) -> Calibration:
        """What is done to its scores."""

    @property
    def decision(self) -> Decision:
        """Which class it decides."""


def costs_of(experiment: Experiment, schema: Schema) -> Costs | None:
    """Return what decisions cost, None where nothing says so."""
    config = experiment.evaluation.costs
    return None if config is None else resolve_costs(config, schema)


def judge_of(experiment: Experiment) -> Judge | None:
    """Return what refuses rows whose costs are none to decide by; None where no cost stands in a column."""
    if not experiment.cost_columns:
        return None

    def judge(schema: Schema, values: Floats, named: Callable[[int], str]) -> None:
        costs = costs_of(experiment, schema)
        assert costs is not None
        refuse_unreasonable(costs, by_name(values, schema.costs), schema, named)

    return judge


def plan_of(experiment: Experiment, schema: Schema, known: Known, resampled: Sequence[int] = ()) -> Plan:
    """Settle how an experiment's model will decide.

    ``resampled`` are the training rows of each class after resampling.

    Raises
    ------
    ConfigError
        As `plan`.
    """
    weights: tuple[float, ...] = ()
    loss = training_of(experiment, schema).loss
    given = (
        loss.class_weights if isinstance(loss, CrossEntropyConfig | BCEConfig | LogitAdjustedConfig) else None
    )
    seen = resampled or known.train
    costs, by_row = costs_of(experiment, schema), False
    ensemble = experiment.training.ensemble
    by_choice = isinstance(experiment.training.sampling, CostRejectionConfig) or isinstance(
        ensemble, CostingConfig
    )
    if costs is not None and by_choice:
        by_row = bool(costs.columns)
        weights = () if by_row else tuple(costs.class_weights.tolist())
    elif costs is not None and costs.columns and given == BY_COSTS:
        given, by_row = None, True
    if given is not None and schema.target.task != "multilabel" and seen and all(seen):
        import torch

        from shoal.training.losses.weights import class_weights

        weights = tuple(class_weights(given, torch.tensor(seen), schema.target.classes).tolist())
    if isinstance(loss, LogitAdjustedConfig) and schema.target.task != "multilabel" and seen and all(seen):
        # Menon et al. 2021, equation 10: softmax(z + tau log share) is p, so softmax(z) is as if weighted by share ** -tau.
        own = (np.array(seen) / sum(seen)) ** -loss.tau
        weights = tuple((own * (weights or 1.0)).tolist())
    found = plan(
        experiment.evaluation,
        schema,
        known,
        weights,
        costs.cells if costs and by_row else (),
        decides_itself(experiment),
    )
    if said := _bends(loss, found):
        found = replace(found, start=replace(found.start, notices=(*found.start.notices, said)))
    unseen = [name for name in schema.costs if name not in {column.name for column in schema.columns}]
    if not by_row or not unseen:
        return found
    said = (
        f"rows weigh by {', '.join(unseen)}, which the model does not see: what it learns is only divided out in part, so "
        "probabilities may be wrong; make it a feature (not in data.drop), or set evaluation.calibration: isotonic"
    )
    return replace(found, start=replace(found.start, notices=(*found.start.notices, said)))


def decides_itself(experiment: Experiment) -> bool:
    """Whether what the model learns are decisions, in which costs are counted already."""
    return isinstance(experiment.training.ensemble, MetaCostConfig)


@dataclass(frozen=True)
class Steering:
    """What a fit is steered by: a metric of its classes, and for a model that learns decisions one of these."""

    monitor: Deciding
    of_decisions: Deciding | None = None


def steering(
    metric: Metric, decisions: Plan, experiment: Experiment, schema: Schema, known: Known
) -> Steering:
    """Return the metrics that choose epochs.

    The members of MetaCost learn classes, and decide as costs say; the model that learns their decisions is steered by what these
    cost, since metrics of probabilities would take its probabilities for those of classes.
    """
    if not decides_itself(experiment):
        return Steering(Deciding(metric, decisions.start))
    config = experiment.evaluation.model_copy(update={"calibration": "none"})
    return Steering(
        Deciding(metric, plan(config, schema, known).start),
        Deciding(METRICS["expected_cost"], decisions.start),
    )


def steering_of(experiment: Experiment, manifest: Manifest, metric: Metric, decisions: Plan) -> Steering:
    """Return the metrics that choose epochs of a sharded dataset's fit, as `steering`."""
    return steering(metric, decisions, experiment, manifest.schema_, known_rows(manifest))


def _bends(loss: Config, found: Plan) -> str:
    """Say that a loss learns other numbers than chances, where decisions go by them and no isotonic steps mend them."""
    if found.start.threshold != "optimal" or found.calibration == "isotonic":
        return ""
    bends = isinstance(loss, LDAMConfig) or (isinstance(loss, FocalConfig) and loss.gamma > 0)
    smooths = isinstance(loss, CrossEntropyConfig | BCEConfig) and loss.label_smoothing > 0
    if not bends and not smooths:
        return ""
    name = f"{Choice(LOSSES).name_of(loss)}{' with label_smoothing' if smooths else ''}"
    mended = (
        "and a temperature mends them in part"
        if found.calibration == "temperature"
        else "and nothing mends them"
    )
    return (
        f"training.loss: what {name} learns are not the chances of the classes, {mended}, so decisions of lowest expected cost "
        "may be wrong; set evaluation.calibration: isotonic, or evaluation.threshold: empirical"
    )


def plan_of_rows(experiment: Experiment, manifest: Manifest) -> Plan:
    """Settle how the model of a sharded dataset will decide.

    Raises
    ------
    ConfigError
        As `plan`.
    """
    resampled = manifest.splits["train"].class_counts if manifest.resampling else ()
    return plan_of(experiment, manifest.schema_, known_rows(manifest), resampled)


def known_rows(manifest: Manifest) -> Known:
    """Return what the manifest says of the rows."""
    train, validation = (class_rows(manifest, part) for part in ("train", "validation"))
    return Known(train, validation, manifest.cost_sums)


def class_rows(manifest: Manifest, part: str) -> Sequence[int]:
    """Return the rows of each class in a part, of training rows before resampling; zeros where there is no such part."""
    if part == "train" and manifest.resampling is not None:
        return manifest.resampling.class_counts_before
    split = manifest.splits.get(part)  # type: ignore[call-overload]  # any text may be asked for
    found: Sequence[int] = split.class_counts if split is not None else ()
    return found or (0,) * len(manifest.schema_.target.classes)


def training_of(experiment: Experiment, schema: Schema) -> TrainingConfig:
    """Return the training section with numbers for ``class_weights: costs``, where costs are not by row."""
    loss, costs = experiment.training.loss, costs_of(experiment, schema)
    if not isinstance(loss, LossConfig) or loss.class_weights != BY_COSTS or costs is None or costs.columns:
        return experiment.training
    weights = costs.class_weights
    named = {str(name): float(w) for name, w in zip(schema.target.classes, weights, strict=True)}
    return experiment.training.model_copy(update={"loss": loss.model_copy(update={"class_weights": named})})


def settle(run: RunFolder, found: Plan, target: Target) -> Judging:
    """Fit what a plan fits on the validation rows, and give it to the run's model and predictions."""
    if not found.changes or not run.exists(PREDICTIONS):
        return found.start
    predictions = run.read_table(PREDICTIONS)
    rows = part_of(predictions, "validation")
    judging = found.start
    if rows.num_rows:
        columns = {*judging.rule.columns, *judging.calibration.columns}
        judging = found.fit(*labels_and_scores(rows, target), amounts_of(rows, columns))
    calibrated = _calibrated(predictions, target, judging.calibration)
    run.write_table(PREDICTIONS, with_decisions(calibrated, target, judging))
    if run.exists(DESCRIPTION):  # folds of scikit-learn's models store none
        write_decision(run, judging.calibration, judging.rule.decision)
    return judging


def with_decisions(predictions: pa.Table, target: Target, judging: Judging) -> pa.Table:
    """Add the column ``decision``, the class as text, where decisions are other than usual."""
    if not judging.decides:
        return predictions
    _, scores = labels_and_scores(predictions, target)
    decision = judging.rule.decision
    decided = decision.classes(scores, amounts_of(predictions, decision.columns))
    codes = pa.array(decided.astype(np.int32))
    names = pa.array([str(name) for name in target.classes])
    at = predictions.column_names.index("label") + 1
    return predictions.add_column(at, "decision", pa.DictionaryArray.from_arrays(codes, names))


def _calibrated(predictions: pa.Table, target: Target, calibration: Calibration) -> pa.Table:
    _, scores = labels_and_scores(predictions, target)
    scores = calibration(scores, amounts_of(predictions, calibration.columns))
    if target.task == "binary":
        scores = np.stack([1.0 - scores, scores], axis=1)
    for k, name in enumerate(target.classes):
        column = f"score_{name}"
        at = predictions.column_names.index(column)
        predictions = predictions.set_column(at, column, pa.array(np.ascontiguousarray(scores[:, k])))
    return predictions


def judging_of_run(experiment: Experiment, manifest: Manifest, trained: Trained) -> Judging:
    """Return how a finished run's model decides."""
    return judging_of(
        experiment.evaluation,
        manifest.schema_,
        known_rows(manifest),
        trained.calibration,
        trained.decision,
        decides_itself(experiment),
    )
