"""What costs, calibration and threshold mean for an experiment: the loss, the model and the predictions."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Manifest, Schema, Target
from shoal.evaluation.deciding.costs import resolve_costs
from shoal.evaluation.deciding.judging import Judging
from shoal.evaluation.deciding.plan import Plan, judging_of, plan
from shoal.evaluation.evaluate import labels_and_scores, part_of
from shoal.experiment import Experiment
from shoal.training.config import TrainingConfig
from shoal.training.decision import Calibration, Decision
from shoal.training.description import write_decision
from shoal.training.losses.config import BY_COSTS, BCEConfig, CrossEntropyConfig, LossConfig

PREDICTIONS = "predictions.parquet"


class Trained(Protocol):
    """A trained model, or its description."""

    @property
    def calibration(self) -> Calibration:
        """What is done to its scores."""

    @property
    def decision(self) -> Decision:
        """Which class it decides."""


def plan_of(
    experiment: Experiment,
    schema: Schema,
    train: Sequence[int],
    validation: Sequence[int],
    resampled: Sequence[int] = (),
) -> Plan:
    """Settle how an experiment's model will decide.

    ``train`` and ``validation`` are the rows of each class, ``resampled`` the training rows of each after resampling.

    Raises
    ------
    ConfigError
        As `plan`.
    """
    weights: tuple[float, ...] = ()
    loss = training_of(experiment, schema).loss
    given = loss.class_weights if isinstance(loss, CrossEntropyConfig | BCEConfig) else None
    seen = resampled or train
    if given is not None and schema.target.task != "multilabel" and seen and all(seen):
        import torch

        from shoal.training.losses.weights import class_weights

        weights = tuple(class_weights(given, torch.tensor(seen), schema.target.classes).tolist())
    return plan(experiment.evaluation, schema, train, validation, weights)


def plan_of_rows(experiment: Experiment, manifest: Manifest) -> Plan:
    """Settle how the model of a sharded dataset will decide.

    Raises
    ------
    ConfigError
        As `plan`.
    """
    train, validation = (class_rows(manifest, part) for part in ("train", "validation"))
    resampled = manifest.splits["train"].class_counts if manifest.resampling else ()
    return plan_of(experiment, manifest.schema_, train, validation, resampled)


def class_rows(manifest: Manifest, part: str) -> Sequence[int]:
    """Return the rows of each class in a part, of training rows before resampling; zeros where there is no such part."""
    if part == "train" and manifest.resampling is not None:
        return manifest.resampling.class_counts_before
    split = manifest.splits.get(part)  # type: ignore[call-overload]  # any text may be asked for
    found: Sequence[int] = split.class_counts if split is not None else ()
    return found or (0,) * len(manifest.schema_.target.classes)


def training_of(experiment: Experiment, schema: Schema) -> TrainingConfig:
    """Return the training section with numbers for ``class_weights: costs``."""
    loss, costs = experiment.training.loss, experiment.evaluation.costs
    if not isinstance(loss, LossConfig) or loss.class_weights != BY_COSTS or costs is None:
        return experiment.training
    weights = resolve_costs(costs, schema).class_weights
    named = {str(name): float(w) for name, w in zip(schema.target.classes, weights, strict=True)}
    return experiment.training.model_copy(update={"loss": loss.model_copy(update={"class_weights": named})})


def settle(run: RunFolder, found: Plan, target: Target) -> Judging:
    """Fit what a plan fits on the validation rows, and give it to the run's model and predictions."""
    if not found.changes or not run.exists(PREDICTIONS):
        return found.start
    predictions = run.read_table(PREDICTIONS)
    rows = part_of(predictions, "validation")
    judging = found.fit(*labels_and_scores(rows, target)) if rows.num_rows else found.start
    calibrated = _calibrated(predictions, target, judging.calibration)
    run.write_table(PREDICTIONS, with_decisions(calibrated, target, judging))
    write_decision(run, judging.calibration, judging.rule.decision)
    return judging


def with_decisions(predictions: pa.Table, target: Target, judging: Judging) -> pa.Table:
    """Add the column ``decision``, the class as text, where decisions are other than usual."""
    if not judging.decides:
        return predictions
    _, scores = labels_and_scores(predictions, target)
    codes = pa.array(judging.rule.decision.classes(scores).astype(np.int32))
    names = pa.array([str(name) for name in target.classes])
    at = predictions.column_names.index("label") + 1
    return predictions.add_column(at, "decision", pa.DictionaryArray.from_arrays(codes, names))


def _calibrated(predictions: pa.Table, target: Target, calibration: Calibration) -> pa.Table:
    _, scores = labels_and_scores(predictions, target)
    scores = calibration(scores)
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
        class_rows(manifest, "train"),
        trained.calibration,
        trained.decision,
    )
