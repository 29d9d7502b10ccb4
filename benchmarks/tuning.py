"""A search of `shoal tune` and the same trials by Ray Tune and Optuna, written by hand; and what ASHA saves.

Usage: python benchmarks/tuning.py FILE.parquet [--rows 20000] [--trials 32] [--epochs 3] [--asha-epochs 27] [--sides ...]

FILE has a 0/1 `label` and a `split` column with train and test (census_income has). Every side fits the network of `handwritten`
with two layers of 64 at batch 128 to the same rows, with the same learning rates and weight decays, and scores the validation
rows after each epoch. What is timed begins when Ray and the rows are there, and ends with the last trial; Shoal's side writes
its trials, and neither side fits the best again. `trainers` (a TorchTrainer a trial) is timed on a few trials and multiplied.
In brackets: times the first side.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 128
SIDES = ("shoal", "shoal_asha", "actors", "optuna", "trainers")
SPACE = {"training.optimizer.learning_rate": [1e-4, 1e-2], "training.optimizer.weight_decay": [1e-6, 1e-1]}
CONFIG = """
data: {{path: {path}, target: label, split: {{column: split}}}}
model: {{mlp: {{hidden: [64, 64]}}}}
training: {{epochs: {epochs}, batch_size: 128, early_stopping: {early_stopping}}}
evaluation: {{scoring: average_precision}}
tuning:
  trials: {trials}
  scheduler: {scheduler}
  refit: false
  space:
    training.optimizer.learning_rate: {{loguniform: [1e-4, 1e-2]}}
    training.optimizer.weight_decay: {{loguniform: [1e-6, 1e-1]}}
cluster: {{storage_path: {storage}}}
"""


def values(trials: int) -> list[tuple[float, float]]:
    """Return the learning rate and weight decay of each trial, as Shoal draws them."""
    from shoal.tuning.config import DimensionConfig
    from shoal.tuning.space import draw, ordered

    space = ordered({path: DimensionConfig(loguniform=tuple(ends)) for path, ends in SPACE.items()})
    return [tuple(draw(space, 0, trial)[path] for path in SPACE) for trial in range(trials)]  # type: ignore[misc]


def rows(file: str) -> dict[str, Any]:
    """Encode the rows once, as tensors."""
    import pandas as pd
    import torch
    from handwritten import Encoder

    frame = pd.read_parquet(file)
    parts = {name: frame[frame["split"] == name] for name in ("train", "validation")}
    encoder = Encoder(parts["train"].drop(columns=["label", "split"]))
    found: dict[str, Any] = {"cardinalities": encoder.cardinalities, "numbers": len(encoder.numeric)}
    for name, part in parts.items():
        found[name] = (*encoder(part), torch.tensor(part["label"].to_numpy(np.float32)))
    return found


def by_hand(data: dict[str, Any], rate: float, decay: float, epochs: int, threads: int) -> float:
    """Fit, and return the average precision of the last epoch."""
    import torch
    from handwritten import Net, scores_of
    from sklearn.metrics import average_precision_score
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Net(data["numbers"], data["cardinalities"])
    width = model.body[0].in_features
    model.body = nn.Sequential(
        nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    loss_of, (numbers, codes, labels), score = nn.BCEWithLogitsLoss(), data["train"], 0.0
    held, held_codes, truth = data["validation"]
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(BATCH):
            loss = loss_of(model(numbers[index], codes[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = float(average_precision_score(truth, scores_of(model, held, held_codes)))
    return score


def shoal(file: str, trials: int, epochs: int, scheduler: str, keep: str = "null") -> dict[str, float]:
    from shoal.cluster.config import ClusterConfig
    from shoal.cluster.resources import Demand
    from shoal.cluster.session import session
    from shoal.experiment import load_experiment
    from shoal.verbs.dataset import shard
    from shoal.verbs.tune import tune

    with tempfile.TemporaryDirectory() as folder, session(ClusterConfig(), Demand()):
        config = Path(folder) / "search.yaml"
        config.write_text(
            CONFIG.format(
                path=file,
                epochs=epochs,
                trials=trials,
                scheduler=scheduler,
                storage=folder,
                early_stopping=keep,
            )
        )
        shard(load_experiment(config), name="search")
        started = time.perf_counter()
        found = tune(config)
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "score": found.best["score"],
        "epochs": sum(row["epochs"] for row in found.trials),
    }


def ray_tune(file: str, trials: int, epochs: int, trainers: bool) -> dict[str, float]:
    import ray
    from ray import tune

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    data = rows(file)

    def plain(config: dict[str, Any], data: Any = None) -> None:
        tune.report({"score": by_hand(data, *config["values"], epochs, 1)})

    def group(config: dict[str, Any], data: Any = None) -> None:
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        def loop(given: dict[str, Any]) -> float:
            return by_hand(given["data"], *given["values"], epochs, 1)

        trainer = TorchTrainer(
            loop,
            train_loop_config={"data": data, "values": config["values"]},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        )
        tune.report({"score": trainer.fit().return_value})

    cpus = {"cpu": 0.01} if trainers else {"cpu": 1}
    at_once = max(1, (os.cpu_count() or 1) - 1) if trainers else os.cpu_count()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = tune.Tuner(
            tune.with_resources(tune.with_parameters(group if trainers else plain, data=data), cpus),
            param_space={"values": tune.grid_search(values(trials))},
            tune_config=tune.TuneConfig(
                metric="score", mode="max", reuse_actors=not trainers, max_concurrent_trials=at_once
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        seconds = time.perf_counter() - started
        score = max(float(one.metrics["score"]) for one in found if one.metrics and "score" in one.metrics)
    ray.shutdown()
    return {"seconds": seconds, "score": score, "epochs": trials * epochs}


def optuna(file: str, trials: int, epochs: int) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = rows(file)

    def objective(trial: Any) -> float:
        rate = trial.suggest_float("rate", *SPACE["training.optimizer.learning_rate"], log=True)
        decay = trial.suggest_float("decay", *SPACE["training.optimizer.weight_decay"], log=True)
        return by_hand(data, rate, decay, epochs, os.cpu_count() or 1)

    started = time.perf_counter()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return {
        "seconds": time.perf_counter() - started,
        "score": study.best_value,
        "epochs": trials * epochs,
    }


def sample(file: str, n: int, target: Path) -> None:
    """Write some of the rows, a fifth of the training ones as validation."""
    import pandas as pd

    frame = pd.read_parquet(file).sample(frac=1.0, random_state=0)
    train, test = (frame[frame["split"] == name].copy() for name in ("train", "test"))
    train = train.head(n)
    train.loc[train.index[: n // 5], "split"] = "validation"
    pd.concat([train, test.head(n // 5)]).to_parquet(target, index=False)


def one_side(side: str, file: str, trials: int, epochs: int, few: int) -> dict[str, float]:
    if side == "shoal":
        return shoal(file, trials, epochs, "none")
    if side in ("shoal_full", "shoal_asha"):
        best_epoch = f"{{patience: {epochs}}}"  # all are trained, and the best one counts
        return shoal(file, trials, epochs, "none" if side == "shoal_full" else "asha", best_epoch)
    if side == "actors":
        return ray_tune(file, trials, epochs, trainers=False)
    if side == "optuna":
        return optuna(file, trials, epochs)
    found = ray_tune(file, few, epochs, trainers=True)
    return {**found, "seconds": found["seconds"] * trials / few}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--asha-epochs", type=int, default=27)
    parser.add_argument("--few", type=int, default=4, help="trials of the side with a TorchTrainer each")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        with contextlib.redirect_stdout(sys.stderr):
            found = one_side(given.only, given.file, given.trials, given.epochs, given.few)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        sample(given.file, given.rows, file)

        def run(side: str, epochs: int) -> dict[str, float]:
            os.environ.setdefault(
                "RAY_worker_niceness", "0"
            )  # else other work starves the sides on Ray alone
            command = [sys.executable, __file__, str(file), "--only", side, "--epochs", str(epochs)]
            command += ["--trials", str(given.trials), "--few", str(given.few)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        print(
            f"{given.trials} trials of {given.epochs} epochs, {given.rows:,} rows, batch {BATCH}, {os.cpu_count()} CPUs"
        )
        ours: dict[str, float] = {}
        for side in (s for s in SIDES if s in given.sides and s != "shoal_asha"):
            found = run(side, given.epochs)
            ours = ours or found
            times = f"{found['seconds']:8.1f} s ({found['seconds'] / ours['seconds']:.2f})"
            print(f"{side:10}  {times}  average precision {found['score']:.4f}", flush=True)
        if "shoal_asha" in given.sides:
            full, asha = (run(side, given.asha_epochs) for side in ("shoal_full", "shoal_asha"))
            print(
                f"asha, {given.asha_epochs} epochs: {asha['score']:.4f} against {full['score']:.4f} of all, with "
                f"{asha['epochs'] / full['epochs']:.3f} of the epochs and {asha['seconds'] / full['seconds']:.2f} of the seconds"
            )


if __name__ == "__main__":
    main()
