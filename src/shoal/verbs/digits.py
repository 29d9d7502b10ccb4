"""demo: the whole path on real data that come with scikit-learn."""

import importlib.util
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.cluster.machine import local_totals
from shoal.cluster.progress import Reporter
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, load_experiment
from shoal.verbs.fit import TrainResult, train
from shoal.verbs.runs import shown

FOLDER = "shoal-demo"
DIGIT = 8

_FILE = """\
# Is this handwritten digit an eight? 1,797 scans of 8 x 8 pixels (Alpaydin and Kaynak 1998); one in ten is.
data:
  path: {folder}/digits.parquet
  target: is_eight
  positive: "yes"
model:
  mlp: {{hidden: [64, 32], dropout: 0.1}}
training:
  epochs: 30
  batch_size: 64
  optimizer: {{adamw: {{learning_rate: 3e-3}}}}
  early_stopping: {{patience: 6}}
  strategy: {strategy}
cluster:
  num_workers: 2
  cpus_per_worker: {cpus}
  storage_path: {folder}/runs
"""


@dataclass(frozen=True)
class DemoResult:
    """The demonstration's files and its run."""

    folder: str
    data: str
    config: str
    train: TrainResult

    @property
    def next_commands(self) -> tuple[str, str, str]:
        """Return three commands to try."""
        predictions = f"{self.folder.rstrip('/')}/predictions.csv"
        commands = (
            ("predict", shown(self.train.run), "--data", self.data, "--to", predictions),
            ("train", self.config, "--set", "training.optimizer.learning_rate=1e-3"),
            ("init", "YOUR.parquet", "--target", "COLUMN"),
        )
        predict, train, init = (shlex.join([_program(), *command]) for command in commands)
        return predict, train, init

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**self.train.as_dict(), "config": self.config, "next": list(self.next_commands)}


def _program() -> str:
    """Return how to call the command line from here; a virtual environment need not be active."""
    own, found = Path(sys.executable).parent / "shoal", shutil.which("shoal")
    if not own.exists() or (found is not None and own.samefile(found)):
        return "shoal"
    return min(os.path.relpath(own), str(own), key=len)


def prepare_demo(folder: str = FOLDER) -> tuple[str, str]:
    """Write the demonstration's data and experiment file, where they are not there yet.

    Returns
    -------
    data, config : str
        Paths of the Parquet file and the YAML file.
    """
    place = Storage.open(folder)
    if not place.exists("digits.parquet"):
        place.write_table("digits.parquet", digits_table())
    if not place.exists("digits.yaml"):
        cpus = min(1.0, int(50 * local_totals().cpus) / 100)  # two workers fit on one CPU too
        # Where DeepSpeed is, the workers share the optimiser's state and the gradients.
        strategy = "{deepspeed: {zero_stage: 2}}" if importlib.util.find_spec("deepspeed") else "ddp"
        text = _FILE.format(folder=folder.rstrip("/"), cpus=f"{cpus:g}", strategy=strategy)
        place.write_text("digits.yaml", text)
    return str(Path(folder) / "digits.parquet"), str(Path(folder) / "digits.yaml")


def digits_table() -> Any:
    """Return scikit-learn's digits as an Arrow table: 64 pixels (0 to 16), and whether it is an eight."""
    import numpy as np
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = {f"pixel_{i // 8}_{i % 8}": pa.array(digits.data[:, i].astype(np.int8)) for i in range(64)}
    return pa.table({**pixels, "is_eight": pa.array(np.where(digits.target == DIGIT, "yes", "no"))})


def demo(
    folder: str = FOLDER,
    *,
    overrides: tuple[str, ...] = (),
    cluster_file: Path | None = None,
    reporter: Reporter | None = None,
) -> DemoResult:
    """Write data and an experiment file, train with two workers, judge and report.

    Parameters
    ----------
    folder
        Where everything goes.
    overrides, cluster_file
        As for `load_experiment`.
    reporter
        Hears of progress.

    Raises
    ------
    ShoalError
        As `train`.
    """
    data, config = prepare_demo(folder)
    experiment: Experiment = load_experiment(config, overrides, cluster_file)
    return DemoResult(folder, data, config, train(experiment, name="digits", reporter=reporter))
