"""train --find-learning-rate: a short fit of rising rates, in a folder of its own."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cluster.components import Choice, Imported
from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import plan
from shoal.cluster.run_folder import RunFolder
from shoal.experiment import Experiment, given, to_dict
from shoal.training.config import OPTIMIZERS, SearchConfig
from shoal.verbs.dataset import shard
from shoal.verbs.fit import copies, job_of, place
from shoal.verbs.provenance import Stages
from shoal.verbs.runs import claimed, run_uri

if TYPE_CHECKING:
    from shoal.training.config import TrainingConfig
    from shoal.training.schedules.range_test import RangeTest
    from shoal.training.worker import FitJob

RESULT, TABLE, PLOT = "learning_rate.json", "learning_rate.parquet", "learning_rate.png"


@dataclass(frozen=True)
class RangeTestResult:
    """What a range test suggests, why, and where its table and plot are."""

    run: str
    suggestion: float | None
    reason: str
    key: str
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dict(self.__dict__)


def find_learning_rate(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
) -> RangeTestResult:
    """Train over an epoch, or 100 steps, with a rate that grows from 1e-7 to 10, and suggest one for the experiment.

    Parameters
    ----------
    experiment
        What to train, or the path of its file; its own learning rate and schedule are not looked at.
    out
        Folder of the table and the plot; by default ``<storage_path>/<name>-find-learning-rate-<hash>``. The run of the fit
        itself is not touched.
    name, reporter
        As `train`.

    Raises
    ------
    ShoalError
        With the cause and the fix.
    """
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.scikit.unused import names_estimator

    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    optimizer = str(Choice(OPTIMIZERS).name_of(experiment.training.optimizer))
    if isinstance(experiment.training.optimizer, SearchConfig | Imported):
        raise ConfigError(
            f"--find-learning-rate: training.optimizer: {optimizer} has no learning rate of Shoal's to find; use a first-order "
            "optimiser by name"
        )
    if names_estimator(experiment.model):
        raise ConfigError(
            "--find-learning-rate: models of scikit-learn's have no learning rate of Shoal's to find"
        )
    run = RunFolder.open(run_uri(experiment, "find-learning-rate", name, out), experiment.cluster.storage)
    key = f"training.optimizer.{optimizer}.learning_rate"
    shape, demand = plan(experiment.cluster, needs_group(experiment.training))
    refuse(experiment.training, shape)
    with claimed(run, to_dict(experiment), reporter, RESULT) as heard:
        if run.exists(RESULT):
            heard.notice(f"this test is complete; nothing is computed again. Delete {run.uri} to repeat it")
            return RangeTestResult(run.uri, key=key, **run.read_json(RESULT))
        stages = Stages(heard)
        with stages.stage("shard", "sharding"):
            data = shard(experiment, name=name, reporter=heard, verify=False)
        shape = shape.within(data.manifest.n_shards)
        job = job_of(_at_once(experiment), data, shape, run)
        job = job.of_losses_alone(_training(experiment.training, _steps_per_epoch(job)))
        demand += copies(experiment, data, shape)
        place(job, shape, demand, experiment, stages, heard)
        found, steps = _read(run)
        run.write_bytes(PLOT, _plot(found))
        run.write_json(RESULT, {"suggestion": found.suggestion, "reason": found.reason, "steps": steps})
        heard.done()
    return RangeTestResult(run.uri, found.suggestion, found.reason, key, steps)


def _at_once(experiment: Experiment) -> Experiment:
    """Return an experiment that trains in one stage: rates of several would not compare."""
    transfer = experiment.transfer
    if transfer is None:
        return experiment
    return experiment.model_copy(update={"transfer": transfer.model_copy(update={"unfreeze": None})})


def _steps_per_epoch(job: "FitJob") -> int:
    """Count the steps that the fit's own sampling plans: rejection and copies by chance leave rows out."""
    import torch

    from shoal.training.ensembles.members import dataset_of, member_training
    from shoal.training.sampling.build import sample
    from shoal.training.strategies.base import Strategy

    alone = Strategy(torch.device("cpu"))
    return sample(
        member_training(job.training), dataset_of(job), job.costs, alone, job.seed
    ).plan.steps_per_epoch


def _training(training: "TrainingConfig", per_epoch: int) -> "TrainingConfig":
    """Return the fit of the test: the same steps, but for their rates and what looks at validation rows."""
    from shoal.training.ensembles.members import member_training
    from shoal.training.schedules.range_test import HIGHEST, LEAST_STEPS, RangeTestConfig

    optimizer = training.optimizer.model_copy(update={"learning_rate": HIGHEST})
    times = HIGHEST / getattr(training.optimizer, "learning_rate", HIGHEST)  # groups keep their ratio to it
    groups = tuple(
        g if g.learning_rate is None else g.model_copy(update={"learning_rate": g.learning_rate * times})
        for g in training.parameter_groups
    )
    return member_training(training).model_copy(
        update={
            "epochs": math.ceil(LEAST_STEPS / per_epoch),
            "optimizer": optimizer,
            "parameter_groups": groups,
            "schedule": RangeTestConfig(),
            "early_stopping": None,
            "checkpoint": None,
            "averaging": None,
            "non_finite": "skip",
        }
    )


def _read(run: RunFolder) -> tuple["RangeTest", int]:
    """Read the losses and rates that the fit left, and write them as the test's table."""
    import numpy as np
    import pyarrow as pa

    from shoal.training.schedules.range_test import read

    rows = run.read_table("history.parquet").to_pylist()
    rates = {row["step"]: row["value"] for row in rows if row["metric"] == "learning_rate"}
    losses = {row["step"]: row["value"] for row in rows if row["metric"] == "loss"}
    by_step = np.array([losses.get(step, math.nan) for step in rates])
    found = read(np.array(list(rates.values())), by_step)
    columns = {"learning_rate": found.rates, "loss": found.losses, "smoothed": found.smoothed}
    run.write_table(TABLE, pa.table(columns))
    run.delete("history.parquet")
    return found, len(rates)


def _plot(found: "RangeTest") -> bytes:
    """Draw the losses over the rates, the suggestion marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="0.75", lw=1, label="loss of each step")
    axes.plot(found.rates, found.smoothed, color="tab:blue", label="its running mean")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="tab:orange", ls="--", label=f"suggested: {found.suggestion:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    if len(found.smoothed):
        low, high = float(min(found.smoothed.min(), found.losses.min())), float(found.smoothed.max())
        axes.set_ylim(low - 0.1 * (high - low), high + 0.15 * (high - low))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    return target.getvalue()
