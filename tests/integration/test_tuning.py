"""Searches on Ray: the same for any number of trials at a time, killed with SIGKILL, with groups, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray.tune.schedulers.async_hyperband import _Bracket
from support.tabular import rows

from shoal.cli.main import main
from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.progress import Silent
from shoal.cluster.resources import Part
from shoal.cluster.session import leftovers
from shoal.cluster.storage import Storage
from shoal.experiment import load_experiment
from shoal.tuning.config import ASHAConfig
from shoal.tuning.objective import Held, Score
from shoal.tuning.sources import Listed
from shoal.tuning.stopping import Halving
from shoal.tuning.sweep import Sweep, sweep
from shoal.tuning.trials import Trial
from shoal.verbs.fit import train
from shoal.verbs.tune import tune

COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; raise SystemExit(main())"]
RATE = "training.optimizer.learning_rate"


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def config(folder: Path, tuning: str = "{trials: 4}", more: str = "", epochs: int = 3) -> Path:
    pq.write_table(rows(400), folder / "rows.parquet")
    (folder / "small.yaml").write_text(
        f"""\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [8]}}}}
training: {{epochs: {epochs}, batch_size: 64}}
tuning: {tuning.replace("{", "{max_concurrent_trials: 1, ", 1)}
cluster: {{storage_path: {folder}/runs, cpus_per_worker: 0.5}}
{more}"""
    )
    return folder / "small.yaml"


def trials(run: Path) -> list[dict[str, object]]:
    return pq.read_table(run / "trials.parquet").drop_columns("seconds").to_pylist()


def test_any_number_of_trials_at_a_time_gives_the_same(ray_cluster: object, tmp_path: Path, capsys) -> None:
    del ray_cluster
    file = config(tmp_path)
    done = {}
    for count in (1, 3):
        values = load_experiment(file, [f"tuning.max_concurrent_trials={count}"])
        done[count] = tune(values, str(tmp_path / str(count)), name="small")
    assert trials(tmp_path / "1") == trials(tmp_path / "3")
    assert len({row["values"] for row in trials(tmp_path / "1")}) == 4
    found = done[3]
    scores = [row["score"] for row in found.trials]
    assert found.best["score"] == max(scores)
    # The fit that was made again is the trial's, to the bit, and best.yaml is that fit.
    curves = pq.read_table(tmp_path / "3" / "curves.parquet").to_pylist()
    history = pq.read_table(tmp_path / "3" / "best" / "history.parquet").to_pylist()
    again = [row["value"] for row in history if row["split"] == "validation"]
    assert [row["score"] for row in curves if row["trial"] == found.best["trial"]] == again
    alone = load_experiment(tmp_path / "3" / "best.yaml")
    assert alone.tuning is None
    assert train(alone, str(tmp_path / "alone")).scores == found.scores
    test = found.scores["test"][found.metric]["value"]
    assert found.drop is not None
    assert found.drop["value"] == pytest.approx(found.best["score"] - test)
    assert "looks better than it is" in found.sentence
    assert not (tmp_path / "3" / "work").exists()
    assert not (tmp_path / "3" / "tune").exists()
    assert "Importance" not in (tmp_path / "3" / "report.html").read_text()  # of four trials nothing is said
    assert leftovers() == {"actors": 0, "placement_groups": 0}
    assert tune(file, str(tmp_path / "3"), name="small").was_complete
    known_to_other_verbs(tmp_path / "3", tmp_path, capsys)


def known_to_other_verbs(run: Path, folder: Path, capsys) -> None:
    """The command line shows a search again, builds its page again, and says where its model is."""
    capsys.readouterr()
    assert (
        main(
            ["tune", str(folder / "small.yaml"), "--set", "tuning.max_concurrent_trials=3", "--out", str(run)]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "the best of 4 trials" in said
    assert "best.yaml, its run:" in said
    page = (run / "report.html").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == page
    pq.write_table(rows(20), folder / "new.parquet")
    predict = ["--data", str(folder / "new.parquet"), "--to", str(folder / "out.parquet")]
    capsys.readouterr()
    assert main(["predict", str(run), *predict]) == 2
    assert "the model of its best trial is a run of its own" in capsys.readouterr().err
    assert main(["predict", f"{run}/best", *predict]) == 0


def test_trials_that_leave_the_numbers_are_the_worst(ray_cluster: object, tmp_path: Path, capsys) -> None:
    del ray_cluster
    space = f"{{{RATE}: {{choice: [0.01, 1e30]}}}}"
    tuning = f"{{search: grid, space: {space}, refit: false}}"
    found = tune(config(tmp_path, tuning, "seed: 1\n"), str(tmp_path / "run"))
    assert [row["status"] for row in found.trials] == ["finished", "diverged"]
    assert "no finite number" in str(found.trials[1]["error"])
    assert found.best["values"] == {RATE: 0.01}
    assert found.scores == {}
    file = config(tmp_path, f"{{search: grid, space: {{{RATE}: {{choice: [1e29, 1e30]}}}}}}")
    assert main(["tune", str(file), "--out", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "none of 2 trials has a score (2 diverged); the first cause, of trial 1" in said
    assert "Traceback" not in said


def test_a_stopped_group_gives_its_room_back(ray_cluster: object, tmp_path: Path) -> None:
    """Four CPUs hold two groups of two workers; the third trial starts only where a stopped one has left."""
    del ray_cluster
    space = f"{{{RATE}: {{choice: [0.05, 1e-6, 1e-5]}}}}"
    tuning = f"{{search: grid, space: {space}, scheduler: asha, refit: false}}"
    file, heard = config(tmp_path, tuning, epochs=40), Heard()
    values = load_experiment(
        file,
        [
            "cluster.num_workers=2",
            "cluster.cpus_per_worker=1",
            "cluster.wait=60s",
            "tuning.max_concurrent_trials=auto",
        ],
    )
    found = tune(values, str(tmp_path / "run"), reporter=heard)
    assert "2 trials at a time" in heard.notices
    statuses = {json.loads(json.dumps(row["values"]))[RATE]: row["status"] for row in found.trials}
    assert statuses[0.05] == "finished"
    assert "stopped" in statuses.values()
    assert leftovers() == {"actors": 0, "placement_groups": 0}
    assert ray.available_resources()["CPU"] == 4.0


def killed(file: Path, run: Path, trial: str) -> dict[str, bytes]:
    """Start a search, kill it once a trial's file is there, and return the files of all that are."""
    environment = {**os.environ, "RAY_ADDRESS": ""}
    command = [*COMMAND, "tune", str(file), "--out", str(run), "--quiet"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (run / "trials" / trial).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "trials.parquet").exists()
    return {p.name: p.read_bytes() for p in (run / "trials").glob("*.json")}


def test_a_killed_search_goes_on(ray_cluster: object, tmp_path: Path) -> None:
    del ray_cluster
    file = config(tmp_path, "{trials: 5}", epochs=12)
    run = tmp_path / "run"
    there = killed(file, run, "000002.json")
    assert 2 <= len(there) < 5
    environment = {**os.environ, "RAY_ADDRESS": ""}
    subprocess.run([*COMMAND, "tune", str(file), "--out", str(run), "--quiet"], env=environment, check=True)
    kept = {p.name: p.read_bytes() for p in (run / "trials").glob("*.json")}
    assert there == {name: kept[name] for name in there}
    tune(file, str(tmp_path / "whole"))
    assert trials(run) == trials(tmp_path / "whole")
    assert (run / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()


@dataclass(frozen=True)
class Slow:
    """Work of a few seconds that leaves the number of its process behind."""

    folder: str
    trial: int

    def scores(self, held: Held) -> Iterator[Score]:
        del held
        (Path(self.folder) / f"{self.trial}.txt").write_text(str(os.getpid()))
        time.sleep(3)  # more than one process takes longer to start than another
        yield Score(float(self.trial), float(self.trial))


def test_actors_start_together_and_are_used_again(ray_cluster: object, tmp_path: Path) -> None:
    """Trials that are shorter than the start of a process must not keep all others from ever being up."""
    del ray_cluster
    ended: list[Trial] = []
    sweep(
        Sweep(
            source=Listed({number: {} for number in range(1, 7)}),
            fit=lambda trial, values: Slow(str(tmp_path), trial),
            count=6,
            at_once=2,
            part=Part("trials", 2, 1.0, 0.0, 1e8),
            by_epoch=False,
            rule=None,
            greater_is_better=True,
            max_failures=0,
            shared=None,
            over=ended.append,
        ),
        Storage.open(str(tmp_path / "run")),
    )
    assert sorted(trial.score for trial in ended) == [0, 1, 2, 3, 4, 5]
    processes = [(tmp_path / f"{trial}.txt").read_text() for trial in range(6)]
    assert len(set(processes)) == 2


def population(folder: Path, epochs: int = 6) -> Path:
    """A search by a population of four that moves the learning rate, the decay and an L1 penalty."""
    space = (
        f"{{{RATE}: {{loguniform: [1e-3, 0.1]}}, training.optimizer.weight_decay: {{uniform: [0, 0.5]}}, "
        "training.l1.proximal: {loguniform: [1e-5, 1e-2]}}"
    )
    file = config(
        folder,
        f"{{trials: 4, scheduler: {{pbt: {{interval: 2, quantile: 0.5}}}}, space: {space}}}",
        epochs=epochs,
    )
    file.write_text(
        file.read_text().replace("batch_size: 64", "batch_size: 64, l1: {proximal: 1e-4}, schedule: cosine")
    )
    return file


def test_a_population_is_the_same_for_any_number_at_a_time_and_its_schedule_is_a_fit(
    ray_cluster: object, tmp_path: Path
) -> None:
    del ray_cluster
    file = population(tmp_path)
    for count in (1, 3):
        values = load_experiment(file, [f"tuning.max_concurrent_trials={count}"])
        found = tune(values, str(tmp_path / str(count)), name="small")
    assert trials(tmp_path / "1") == trials(tmp_path / "3")
    run = tmp_path / "3"
    turns = {row["trial"]: row for row in pq.read_table(run / "population.parquet").to_pylist()}
    assert len(turns) == len(found.trials) == 12
    assert any(turn["start"] not in (None, turn["trial"] - 4) for turn in turns.values())
    lineage = [turns[found.best["trial"]]]
    while lineage[0]["start"] is not None:
        lineage.insert(0, turns[lineage[0]["start"]])
    # best.yaml trains that model from its first epoch, with all changes on the way: the same scores, to the bit.
    curves = pq.read_table(run / "curves.parquet").to_pylist()
    through = {turn["trial"] for turn in lineage}
    history = pq.read_table(run / "best" / "history.parquet").to_pylist()
    again = [row["value"] for row in history if row["split"] == "validation"]
    assert [row["score"] for row in curves if row["trial"] in through] == again
    assert [row["epoch"] for row in curves if row["trial"] in through] == [1, 2, 3, 4, 5, 6]
    best = load_experiment(run / "best.yaml")
    assert best.training.optimizer.learning_rate == lineage[0][RATE]
    changes = {change.epoch: change.learning_rate for change in best.training.changes}
    moved = {b["first_epoch"]: b[RATE] for a, b in pairwise(lineage) if a[RATE] != b[RATE]}
    assert {epoch: rate for epoch, rate in changes.items() if rate is not None} == moved
    assert not (run / "work").exists()
    assert "Values on the way" in (run / "report.html").read_text()


def test_a_killed_population_goes_on(ray_cluster: object, tmp_path: Path) -> None:
    del ray_cluster
    file = population(tmp_path, epochs=8)
    run = tmp_path / "run"
    there = killed(file, run, "000006.json")
    assert 6 <= len(there) < 16
    shutil.rmtree(run / "work")  # states that are lost are trained again, from the first epoch
    environment = {**os.environ, "RAY_ADDRESS": ""}
    subprocess.run([*COMMAND, "tune", str(file), "--out", str(run), "--quiet"], env=environment, check=True)
    assert there == {name: (run / "trials" / name).read_bytes() for name in there}
    tune(file, str(tmp_path / "whole"))
    assert trials(run) == trials(tmp_path / "whole")
    assert (run / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "tuning.space={model.dropout: {uniform: [0, 0.5]}}",
            "model.dropout cannot change while a fit goes on",
        ),
        (f"tuning.space={{{RATE}: {{choice: [0.1, 0.2]}}}}", "give it uniform or loguniform"),
        ("tuning.trials=3", "3 members are too few"),
        ("tuning.scheduler.pbt.factors=[1, 1]", "give one below 1 and one above"),
        (
            f"tuning.space={{{RATE}: {{uniform: [0.1, 1]}}, training.optimizer.sgd.learning_rate: {{uniform: [0.1, 1]}}}}",
            "they are of one fit",
        ),
        ("tuning.scheduler.pbt.interval=6", "leaves no second one of training.epochs: 6"),
        ("cluster.num_workers=2", "trains each member in one process"),
        ("training.changes=[{epoch: 2, l2: 0.1}]", "finds training.changes itself"),
        ("tuning.search=grid", "use search: random"),
        ("tuning.objective=cv", "use scheduler: none"),
    ],
)
def test_a_population_that_cannot_be_is_refused(tmp_path: Path, change: str, said: str, capsys) -> None:
    file = population(tmp_path)
    assert main(["tune", str(file), "--set", change, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folds_and_models_of_scikit_learns(ray_cluster: object, tmp_path: Path) -> None:
    """A trial's score over folds is that of `shoal crossval`; an estimator's, that of its run."""
    del ray_cluster
    from shoal.verbs.crossval import crossval

    space = "{model.C: {loguniform: [1e-3, 10]}}"
    file = config(
        tmp_path,
        f"{{search: {{grid: {{points: 2}}}}, space: {space}, objective: cv}}",
        "evaluation: {cv: 3}\n",
    )
    text = file.read_text().replace(
        "{mlp: {hidden: [8]}}", "{import: 'sklearn.linear_model:LogisticRegression'}"
    )
    file.write_text(text.replace("training: {epochs: 3, batch_size: 64}\n", ""))
    found = tune(file, str(tmp_path / "cv"))
    values = load_experiment(file, ["model.C=0.001"])
    folds = crossval(values.model_copy(update={"tuning": None}), str(tmp_path / "folds"))
    expected = folds.scores["as it is"]["average_precision"]["value"]
    assert [row["epochs"] for row in found.trials] == [3, 3]
    assert found.trials[0]["score"] == pytest.approx(expected, abs=1e-12)
    chosen = tune(load_experiment(file, ["tuning.objective=validation"]), str(tmp_path / "validation"))
    entry = chosen.scores["validation"]["average_precision"]["value"]
    assert chosen.best["score"] == pytest.approx(entry, abs=1e-12)


def test_costs_are_what_trials_are_compared_by(ray_cluster: object, tmp_path: Path) -> None:
    del ray_cluster
    costs = "evaluation: {costs: {false_positive: 1, false_negative: 9}, calibration: none}\n"
    found = tune(config(tmp_path, "{trials: 2, objective: expected_cost}", costs), str(tmp_path / "run"))
    assert found.metric == "expected_cost"
    assert found.best["score"] == min(row["score"] for row in found.trials)
    entry = found.scores["validation"]["expected_cost"]["value"]
    assert found.best["score"] == pytest.approx(entry, rel=1e-6)


def test_rungs_are_ray_tunes() -> None:
    """The rule decides as Ray Tune's own bracket does, where no score lies within float noise of a cutoff."""
    draws = np.random.default_rng(0)
    bracket = _Bracket(min_t=2, max_t=1000, reduction_factor=3, s=0)
    rule, differ = Halving(ASHAConfig(grace=2, reduction=3)), 0

    class Named:
        def __init__(self, trial_id: int) -> None:
            self.trial_id = trial_id

    alive = {trial: draws.normal() for trial in range(60)}
    for epoch in range(1, 40):
        for trial, level in list(alive.items()):
            score = float(level + draws.normal() / epoch)
            theirs = bracket.on_result(Named(trial), epoch, score) == "STOP"
            assert rule.ends(trial, epoch, score) == theirs
            differ += theirs
            if theirs:
                del alive[trial]
    assert 20 < differ < 60


def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, capsys, monkeypatch) -> None:
    file = config(tmp_path)
    with pytest.raises(ConfigError, match="placement: inline fits in this process"):
        tune(load_experiment(file, ["cluster.placement=inline"]))
    with pytest.raises(ConfigError, match=r"\[1, 2\] lets a group grow"):
        tune(load_experiment(file, ["cluster.num_workers=[1, 2]"]))
    with pytest.raises(ConfigError, match="there are no validation rows"):
        tune(load_experiment(file, ["data.split={test: 0.2, validation: 0}"]))
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", str(file), "--set", "tuning.search=optuna"]) == 2
    assert "pip install 'shoal[tune]'" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*tune*"))
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "# the space of shoal tune" in said
    assert f"{RATE}: loguniform: [3.3333333333333335e-05, 0.03]" in said
    assert "4 trials, at most 1 at a time, each:" in said


def test_a_fault_of_the_report_is_not_ray_tunes(ray_cluster: object, tmp_path: Path) -> None:
    """What the driver's own side raises ends the search with its own error."""
    del ray_cluster

    class Broken(Heard):
        def notice(self, text: str) -> None:
            if text.startswith("trial "):
                raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        tune(config(tmp_path, "{trials: 2}"), str(tmp_path / "run"), reporter=Broken())
    assert leftovers() == {"actors": 0, "placement_groups": 0}
