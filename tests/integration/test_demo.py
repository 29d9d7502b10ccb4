"""The demonstration, end to end, on the session's Ray; and the same experiment in this process."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shoal.cli.main import main
from shoal.experiment import load_experiment
from shoal.verbs import train


@pytest.fixture(scope="module")
def demo(ray_cluster, tmp_path_factory):
    """Runs the demonstration in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder), "--quiet", "--set", "training.epochs=4"]) == 0
    (run,) = (folder / "runs").glob("digits-train-*")
    return folder, run


def test_the_demo_trains_with_two_workers_and_says_where_its_report_is(demo, capsys):
    folder, run = demo
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["cluster"]["num_workers"] == 2
    assert facts["cluster"]["placement"] == "group"
    assert (run / "logs" / "rank-00001.txt").exists()
    assert main(["demo", "--out", str(folder), "--set", "training.epochs=4"]) == 0
    text = capsys.readouterr().out
    assert "average_precision" in text
    assert f"{run}/report.html" in text
    assert text.count("shoal ") >= 3
    assert "digits-train" in text.split("next:")[1]


def test_its_data_are_scikit_learns_digits(demo):
    folder, _ = demo
    table = pq.read_table(folder / "digits.parquet")
    assert table.num_rows == 1797
    assert table["is_eight"].to_pylist().count("yes") == 174


def test_one_process_gives_the_same_results(demo, tmp_path):
    folder, run = demo
    experiment = load_experiment(
        folder / "digits.yaml", ["training.epochs=4", "training.strategy=ddp", "cluster.num_workers=1"]
    )
    alone = train(experiment, str(tmp_path / "alone"))
    ours, theirs = (pq.read_table(Path(r) / "predictions.parquet").to_pandas() for r in (alone.run, run))
    assert (ours.row_id == theirs.row_id).all()
    # Contract 5: fp32 within 1e-5 over the first 50 steps; here are 80.
    assert np.abs(ours.score_yes - theirs.score_yes).max() < 1e-4
    assert alone.scores["test"]["roc_auc"]["value"] == pytest.approx(
        json.loads((run / "metrics.json").read_text())["test"]["roc_auc"]["value"], abs=1e-3
    )
