"""`shoal check` refuses what `shoal train` refuses, in the same words, and sees the columns that it would see."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.sharding.service import shard
from shoal.cluster.storage import Storage
from shoal.experiment import load_experiment
from shoal.verbs.look import look

LOSS, SCHEDULE = "training.loss=", "training.schedule="

REFUSED = {
    "a loss of another task": ([f"{LOSS}huber"], "huber is not for binary; use auto or one of cross_entropy"),
    "no such class": (
        [f"{LOSS}{{focal: {{class_weights: {{yse: 2}}}}}}"],
        "name 'yse', which is no class; the nearest is 'yes', and all are: no, yes",
    ),
    "a warm-up of the whole fit": (
        [f"{SCHEDULE}{{cosine: {{warmup: 21}}}}"],
        "leaves nothing of this fit, which has 21",
    ),
    "a momentum that is not there": (
        [f"{SCHEDULE}{{one_cycle: {{cycle_momentum: true}}}}", "training.optimizer=adagrad"],
        "this optimiser has no momentum and no betas",
    ),
    "a plateau of nothing": (
        [f"{SCHEDULE}reduce_on_plateau", "data.split.validation=0"],
        "looks at the validation rows, and there are none",
    ),
    "a milestone beyond the fit": (
        [f"{SCHEDULE}{{multi_step: {{milestones: [1, 3]}}}}"],
        "milestones: 3 would never be reached: this fit lasts 3 epochs",
    ),
    "mixup of codes": (
        ["training.mixup={alpha: 0.2}"],
        "blends encoded rows, and this model takes numbers and categories apart",
    ),
    "a group of nothing": (
        ["training.parameter_groups=[{match: numbers, l2: 1}]"],
        "'numbers' is the first entry that matches for no trainable parameter; the nearest name is 'body.numbers.",
    ),
    "no places to compute again": (
        ["training.activation_checkpointing=true"],
        "there is nothing to compute again",
    ),
    "no such loss": ([f"{LOSS}{{import: 'nowhere:loss'}}"], "cannot import nowhere:loss"),
    "no such optimiser": (
        ["training.optimizer={import: 'nowhere:optimiser'}"],
        "cannot import nowhere:optimiser",
    ),
    "no such schedule": ([f"{SCHEDULE}{{import: 'nowhere:schedule'}}"], "cannot import nowhere:schedule"),
    "no such model": (["model={import: 'nowhere:model'}"], "cannot import nowhere:model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_train_refuses_check_refuses_in_the_same_words(shoal, folder, case):
    settings, said = REFUSED[case]
    changed = [part for setting in settings for part in ("--set", setting)]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    checked = shoal("check", folder / "small.yaml", *changed)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    trained = shoal("train", folder / "small.yaml", *changed)
    assert (checked.code, trained.code) == (2, 2)
    assert said in checked.err
    assert checked.err.splitlines()[-1] == trained.err.splitlines()[-1]


def test_counts_of_a_loss_of_counts_are_looked_at_in_every_shard(shoal, tmp_path):
    table = rows()
    counts = pa.array([-1.0 if i == 200 else i % 5 + 0.5 for i in range(len(table))])
    pq.write_table(
        table.set_column(table.schema.get_field_index("y"), "y", counts), tmp_path / "counts.parquet"
    )
    (tmp_path / "counts.yaml").write_text(
        f"data: {{path: {tmp_path}/counts.parquet, target: y, split: {{test: 0.02, validation: 0}}}}\n"
        f"model: linear\ntraining: {{loss: poisson}}\ncluster: {{storage_path: {tmp_path}/runs}}\n"
    )
    done = shoal("check", tmp_path / "counts.yaml")
    assert done.code == 2
    assert "the least training label is -1" in done.err


def test_more_workers_than_shards_are_refused(shoal, folder):
    few = ["--set", "data.shards=1", "--set", "cluster.placement=group"]
    done = shoal("check", folder / "small.yaml", *few, "--set", "cluster.num_workers=2")
    assert done.code == 2
    assert "2 workers cannot share 1 logical shard" in done.err
    # A group that may be smaller is.
    assert shoal("check", folder / "small.yaml", *few, "--set", "cluster.num_workers=[1, 2]").code == 0


def test_a_layer_that_many_workers_cannot_have_is_refused_for_many_alone(shoal, folder):
    normed = ["--set", f"model={{import: '{__name__}:normed'}}", "--set", "cluster.placement=group"]
    assert shoal("check", folder / "small.yaml", *normed, "--set", "cluster.num_workers=1").code == 0
    done = shoal("check", folder / "small.yaml", *normed, "--set", "cluster.num_workers=2")
    assert done.code == 2
    assert "is a BatchNorm1d, whose statistics differ between 2 workers" in done.err


def normed(n_inputs: int, n_outputs: int):
    from torch import nn

    return nn.Sequential(nn.BatchNorm1d(n_inputs), nn.Linear(n_inputs, n_outputs))


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        ("{step: {step_size: 3}}", "step.step_size"),
        ("{reduce_on_plateau: {patience: 1}}", "reduce_on_plateau.patience"),
    ],
)
def test_a_schedule_that_changes_nothing_is_said_aloud(shoal, folder, schedule, key):
    said = (
        f"training.schedule.{key} is so long that the learning rate stays as it is: this fit lasts 3 epochs"
    )
    one_less = schedule.replace("3", "2").replace("1", "0")
    assert said in shoal("check", folder / "small.yaml", "--set", f"{SCHEDULE}{schedule}").out
    assert said in shoal("train", folder / "small.yaml", "--set", f"{SCHEDULE}{schedule}").err
    assert "so long" not in shoal("check", folder / "small.yaml", "--set", f"{SCHEDULE}{one_less}").out


def test_classes_of_a_private_target_stay_out_of_refusals(shoal, folder):
    changed = ["--set", "data.private=[y]", "--set", f"{LOSS}{{focal: {{class_weights: {{maybe: 2}}}}}}"]
    for verb in ("check", "train"):
        done = shoal(verb, folder / "small.yaml", *changed)
        assert done.code == 2
        assert "name 'maybe', which is no class; the classes are private (data.private)" in done.err
        assert "yes" not in done.err


def test_the_columns_are_those_of_the_shards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.verbs.look.BATCH_ROWS", 70)  # several pieces
    table = rows(300)
    kinds = [None if i % 9 == 4 else f"kind {i % 70 if i % 2 else 0}" for i in range(300)]
    table = table.append_column("often", pa.array(kinds)).append_column("same", pa.array([3] * 300))
    pq.write_table(table, tmp_path / "more.parquet")
    experiment = load_experiment(folder / "small.yaml")
    data = experiment.data.model_copy(update={"path": (f"{tmp_path}/more.parquet",)})
    found = look(data, 0, experiment.cluster.storage)
    manifest = shard(data, 0, Storage.open(str(tmp_path / "shards")))
    assert len(found.schema.columns) == len(manifest.schema_.columns) > 2
    for ours, theirs in zip(found.schema.columns, manifest.schema_.columns, strict=True):
        assert ours.model_dump(exclude={"center", "scale"}) == theirs.model_dump(exclude={"center", "scale"})
        assert ours.center == pytest.approx(theirs.center)
        assert ours.scale == pytest.approx(theirs.scale)
    assert found.dropped == manifest.dropped
    assert found.dropped["same"] == "constant in the training rows"
    assert set(manifest.notices) == set(found.notices)
    assert found.parts == {name: split.rows for name, split in manifest.splits.items()}
    assert found.n_shards == manifest.n_shards
