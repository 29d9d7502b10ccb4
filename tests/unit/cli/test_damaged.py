"""Runs, shards and disks that are damaged: named by every verb, and nothing half-written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cluster.errors import StorageError


def test_a_corrupt_shard_ends_the_run_with_1(shoal, folder):
    made = shoal("shard", folder / "small.yaml", "--set", "seed=9", "--json").json
    shard = sorted(Path(made["run"]).glob("shards/train-*"))[3]
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    done = shoal("train", folder / "small.yaml", "--set", "seed=9", "--out", folder / "corrupt")
    assert done.code == 1
    assert shard.name in done.err
    assert "shoal shard" in done.err
    assert not (folder / "corrupt" / "metrics.json").exists()


def test_a_shard_that_a_dataset_lost_is_written_again(shoal, folder):
    command = ["shard", folder / "small.yaml", "--set", "seed=10"]
    made = shoal(*command, "--json").json
    (lost,) = Path(made["run"]).glob("shards/test-00000.arrow")
    before = lost.read_bytes()
    lost.unlink()
    again = shoal(*command, "--json")
    assert not again.json["reused"]
    assert again.json["run"] == made["run"]
    assert "1 file to rebuild, missing or damaged: shards/test-00000.arrow" in again.err
    (written,) = Path(made["run"]).glob("shards*/test-00000.arrow")
    assert written.read_bytes() == before
    assert shoal(*command, "--json").json["reused"]


def test_a_disk_that_fills_up_under_way_ends_the_run_with_1(shoal, folder, monkeypatch):
    def full(*_):
        raise StorageError("cannot write report.html: No space left on device; free some")

    monkeypatch.setattr("shoal.evaluation.report.write_report", full)
    done = shoal("train", folder / "small.yaml", "--out", folder / "full")
    assert done.code == 1
    assert "No space left" in done.err
    assert (folder / "full" / "model" / "model.json").exists()
    assert not (folder / "full" / "metrics.json").exists()


def test_a_finished_run_without_its_model_is_named_by_every_verb(shoal, folder):
    out = folder / "hollow"
    assert shoal("train", folder / "small.yaml", "--out", out, "--quiet").code == 0
    (out / "model" / "model.safetensors").unlink()
    for command in (["train", folder / "small.yaml", "--out", out], ["evaluate", out]):
        done = shoal(*command)
        assert done.code == 2
        assert (
            "model/model.safetensors is gone since: put back what was deleted, or delete that folder"
            in done.err
        )


DAMAGES = {
    "truncated weights": ("model/model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors"),
    "one bit of the weights": (
        "model/model.safetensors",
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        "model.safetensors",
    ),
    "description": ("model/model.json", lambda b: b[:50], "model.json"),
    "a class less": (
        "model/model.json",
        lambda b: b.replace(b'"no",', b""),
        "binary with 1 classes; it needs 2",
    ),
    "provenance": ("provenance.json", lambda b: b"[]", "provenance.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_run_that_is_damaged_is_refused_by_every_verb(shoal, run, folder, tmp_path, damage):
    name, change, said = DAMAGES[damage]
    out = tmp_path / "damaged"
    shutil.copytree(run, out)
    (out / name).write_bytes(change((run / name).read_bytes()))
    commands = [["train", folder / "small.yaml", "--out", out], ["report", out]]
    if name != "provenance.json":
        commands += [
            ["evaluate", out],
            ["predict", out, "--data", folder / "rows.parquet", "--to", tmp_path / "p.csv"],
        ]
    for command in commands:
        done = shoal(*command)
        assert done.code == 2, command
        assert said in done.err
        assert "damaged" in done.err
        assert "delete " in done.err
        assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("name", ["history.parquet", "predictions.parquet", "config.yaml"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(shoal, run, tmp_path, name):
    out = tmp_path / "damaged"
    shutil.copytree(run, out)
    (out / name).write_text("junk: [")
    done = shoal("report", out, "--quiet")
    assert done.code == 2
    assert f"{name} is no" in done.err
    assert "was changed or damaged" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["history.parquet", "predictions.parquet", "provenance.json", "data.json"])
def test_a_poorer_report_takes_no_good_ones_place(shoal, run, folder, tmp_path, name):
    out = tmp_path / "lacking"
    shutil.copytree(run, out)
    (out / name).unlink()
    before = (out / "report.html").read_bytes()
    commands = [["report", out], ["train", folder / "small.yaml", "--out", out]]
    for command in commands + [["evaluate", out]] * (name == "predictions.parquet"):
        done = shoal(*command)
        assert done.code == 2, command
        assert f"{name} is gone since" in done.err
    assert (out / "report.html").read_bytes() == before


SMALL = """
import resource, sys
from shoal.cli.main import main
import shoal.verbs.predictions, shoal.verbs.fit, shoal.evaluation.report  # compiled files are no part of it
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["shard", "train", "evaluate", "predict", "report"])
def test_a_full_disk_ends_every_verb_with_1_and_no_wrong_advice(run, folder, tmp_path, verb):
    made = ["--set", "seed=12", "--set", f"cluster.storage_path={tmp_path}/runs"]
    arguments = {
        "shard": [folder / "small.yaml", *made],
        "train": [folder / "small.yaml", *made],
        "evaluate": [run, "--out", tmp_path / "judged"],
        "predict": [run, "--data", folder / "rows.parquet", "--to", tmp_path / "p.csv"],
        "report": [run],
    }[verb]
    command = [sys.executable, "-c", SMALL, verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1, done.stderr
    assert "free some space, or choose another place" in done.stderr
    assert "--out" not in done.stderr
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("non_finite", "left_out"), [("skip", "; 20 of 21 steps had been left out"), ("stop", "")]
)
def test_predictions_that_are_no_numbers_are_no_success(shoal, folder, non_finite, left_out):
    out = folder / f"wild-{non_finite}"
    wild = ["model=mlp", "training.optimizer={sgd: {learning_rate: 1e30}}"]
    wild += [f"training.non_finite={non_finite}"]
    if non_finite == "stop":  # the gradient of the only step is finite
        wild += ["training.batch_size=full", "training.epochs=1"]
    options = [argument for value in wild for argument in ("--set", value)]
    done = shoal("train", folder / "small.yaml", *options, "--out", out)
    assert done.code == 1
    assert (
        "30 of 30 validation predictions and 60 of 60 test predictions are no finite numbers"
        f"{left_out}. Nothing of it is kept: lower training.optimizer.sgd.learning_rate or set training.clip_norm"
    ) in done.err
    assert {p.name for p in out.iterdir()} == {"config.yaml", "log.txt", "logs"}
    assert shoal("train", folder / "small.yaml", "--quiet", "--out", out).code == 0, (
        "the folder is free again"
    )
