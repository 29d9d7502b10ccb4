"""tune for a target domain: trials are adapted models, ranked without the target's labels."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cli.main import main
from shoal.cluster.progress import Silent
from shoal.cluster.resources import Shape
from shoal.cluster.run_folder import RunFolder
from shoal.experiment import load_experiment
from shoal.tuning.objective import Held
from shoal.tuning.trials import Running, Trial, best_of, table
from shoal.verbs.tune_objective import Datasets
from shoal.verbs.tune_target import OnTarget, by_mean_rank

BASE = """\
data: {{path: {folder}/source.parquet, target: y, id: key}}
model: {{mlp: {{hidden: [8, 4]}}}}
training: {{epochs: 10, batch_size: 32, optimizer: {{adamw: {{learning_rate: 0.02}}}}}}
evaluation: {{replicates: 100, scoring: [accuracy]}}
transfer:
  adaptation: {{mmd: {{label_shift: true}}}}
  target_data: {{path: {folder}/target.parquet}}
  seeds: 1
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    target = rows(200, seed=1)
    pq.write_table(rows(300), folder / "source.parquet")
    pq.write_table(
        target.set_column(0, "x", pa.array(target["x"].to_numpy() + 0.8)).drop(["y"]),
        folder / "target.parquet",
    )
    (folder / "a.yaml").write_text(BASE.format(folder=folder))
    return folder


def test_a_trial_has_the_scores_of_an_adapted_model(place):
    assert main(["adapt", str(place / "a.yaml"), "--out", str(place / "run"), "--quiet"]) == 0
    selection = json.loads((place / "run" / "metrics.json").read_text())["selection"]["scores"]
    experiment = load_experiment(str(place / "a.yaml"))
    run = RunFolder.open(str(place / "sweep"), experiment.cluster.storage)
    objective = OnTarget(
        run,
        Shape(placement="task", num_workers=1, cpus_per_worker=1.0, gpus_per_worker=0.0),
        Datasets("a", Silent()),
        Silent(),
    )
    (score,) = objective.fit(0, experiment).scores(Held())
    assert dict(score.parts) == pytest.approx(selection["mmd"])
    assert not run.exists("work/000001"), "its folder is gone"


def test_trials_are_ranked_among_each_other():
    def over(number, **parts):
        running = Running(number, {"training.epochs": number})
        running.parts = parts
        return running.over("finished")

    worst = over(1, dev=-0.5, importance_weighted=-0.5, entropy=-0.6, snd=None)
    best = over(2, dev=-0.2, importance_weighted=-0.1, entropy=-0.1, snd=2.0)
    middle = over(3, dev=-0.3, importance_weighted=-0.3, entropy=-0.4, snd=1.0)
    failed = Trial(4, {"training.epochs": 4}, "failed", None, error="so")
    found = by_mean_rank([worst, best, middle, failed])
    assert [trial.score for trial in found] == [3.0, 1.0, 2.0, None]
    chosen = best_of(found, greater_is_better=False)
    assert chosen is not None
    assert chosen.trial == 2
    assert table(found)["snd"].to_pylist() == [None, 2.0, 1.0, None]
    assert worst.status == "finished", "without a score of its own"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["tuning={objective: target, scheduler: asha}"], "use scheduler: none"),
        (["tuning={objective: target, search: optuna}"], "use search: random or grid"),
        (["tuning={objective: target}", "transfer.candidates=[dann]"], "vary transfer.adaptation by a choice"),
        (["tuning={objective: target}", "transfer=null"], "give transfer: {adaptation: mmd"),
        (["tuning={space: {transfer.adaptation.weight: {uniform: [0.1, 1]}}}"], "matters with tuning.objective: target"),
        (["tuning={objective: target, space: {transfer.seeds: {integer: [1, 2]}}}"], "is for shoal adapt"),
        (["tuning={objective: target}", "cluster.num_workers=2"], "fits each trial in one process"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(place, tmp_path, capsys, changes, said):
    given = [part for change in changes for part in ("--set", change)]
    assert main(["tune", str(place / "a.yaml"), "--out", str(tmp_path / "refused"), *given]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_check_shows_the_usual_space(place, capsys):
    assert main(["check", str(place / "a.yaml"), "--set", "tuning={objective: target, trials: 4}"]) == 0
    assert "transfer.adaptation.weight: loguniform: [0.1, 10.0]" in " ".join(capsys.readouterr().out.split())
