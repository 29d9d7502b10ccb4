"""Which target rows to label so that the plain and the adapted model can be told apart, and what their labels say."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from shoal.cluster.errors import ConfigError, DataError, StorageError
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, given
from shoal.transfer.adaptation.label_plan import LabelPlan, judge_labels, plan_labels
from shoal.transfer.adaptation.reading import answers
from shoal.verbs.adapt_judging import load
from shoal.verbs.runs import run_uri

PLAN = "label_plan.parquet"
_MOST_ROWS = 1_000_000  # of the target, among which rows are chosen


@dataclass(frozen=True)
class SettleResult:
    """What the labels of a plan say of the two models."""

    run: str
    settled: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"run": self.run, **self.settled}


def planned(
    experiment: Experiment, run: RunFolder, target: ShardedDataset, plain: str, adapted: str
) -> dict[str, Any] | None:
    """Plan labels, and write the rows with both models' decisions; None where there are no decided classes, or rows have no ids.

    Parameters
    ----------
    plain, adapted
        Runs of the two models.
    """
    trained = [load(experiment, uri) for uri in (plain, adapted)]
    schema = target.schema
    if schema.target.task not in ("binary", "multiclass") or any(one.cost_columns for one in trained):
        return None
    if schema.id is None:
        return {"message": "no label plan: rows have no id to name them by (data.id)", "rows": 0}
    read = [answers(one, target, "train", _MOST_ROWS) for one in trained]
    names = np.array([str(c) for c in schema.target.classes])
    decided = [names[one.decision.classes(found.scores)] for one, found in zip(trained, read, strict=True)]
    try:
        plan = plan_labels(decided[0], decided[1], pa.array(read[0].row_id), seed=experiment.seed)
    except DataError as error:
        return {"message": f"no label plan: {error}", "rows": 0}
    place = {name: i for i, name in enumerate(read[0].row_id)}
    at = [place[name] for name in plan.row_ids]
    run.write_table(
        PLAN,
        pa.table(
            {
                schema.id: list(plan.row_ids),
                "source_only": decided[0][at],
                "adapted": decided[1][at],
            }
        ),
    )
    facts = {k: v for k, v in asdict(plan).items() if k != "row_ids"}
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in facts.items()}


def settle(
    experiment: Experiment | str | Path, labels: str, out: str | None = None, *, name: str | None = None
) -> SettleResult:
    """Say which model the labels of a finished run's plan speak for; nothing learns from them.

    Parameters
    ----------
    experiment
        Of the run.
    labels
        A Parquet or CSV file with the id column and the target column.
    out, name
        Of the run, as for `adapt`.

    Raises
    ------
    StorageError
        If there is no finished run with a plan.
    DataError
        If the labels are not of its rows.
    """
    experiment, name = given(experiment, name)
    run = Storage.open(run_uri(experiment, "adapt", name, out), experiment.cluster.storage)
    if not run.exists("metrics.json") or not run.exists(PLAN):
        raise StorageError(
            f"{run.uri} has no finished run with a label plan; run shoal adapt first, with data.id"
        )
    table = run.read_table(PLAN)
    key, target = table.column_names[0], experiment.data.target[0]
    facts: dict[str, Any] = run.read_json("metrics.json")["label_plan"]
    try:
        given_labels = (
            pq.read_table(labels) if labels.lower().endswith((".parquet", ".pq")) else csv.read_csv(labels)
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"--settle: {labels} cannot be read: {str(error).splitlines()[0]}") from error
    for column in (key, target):
        if column not in given_labels.column_names:
            raise ConfigError(f"--settle: {labels} has no column {column!r}; it needs {key!r} and {target!r}")
    ids = table[key].to_pylist()
    known = {
        i: str(y)
        for i, y in zip(given_labels[key].to_pylist(), given_labels[target].to_pylist(), strict=True)
        if y is not None
    }
    smallest = facts["detectable"]
    plan = LabelPlan(
        **{**facts, "row_ids": tuple(ids), "detectable": np.nan if smallest is None else smallest}
    )
    plain, adapted = (
        dict(zip(ids, table[side].to_pylist(), strict=True)) for side in ("source_only", "adapted")
    )
    found = judge_labels(plan, known, plain, adapted, confidence=experiment.evaluation.confidence)
    return SettleResult(run.uri, asdict(found))
