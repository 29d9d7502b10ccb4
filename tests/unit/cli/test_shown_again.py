"""What is shown of a run in a place that nothing can be written to, and of classes that a part lacks."""

import pyarrow as pa
import pyarrow.parquet as pq
from support.tabular import rows

import shoal.verbs.runs as runs
from shoal.cluster.run_folder import RunFolder


def test_a_complete_run_is_shown_from_a_read_only_place(shoal, folder, monkeypatch):
    """A mount that nothing can be written to: neither lease nor log is tried."""
    assert shoal("train", folder / "small.yaml", "--out", folder / "done").code == 0

    def refused(*_, **__):
        raise AssertionError("nothing is claimed in a read-only place")

    monkeypatch.setattr(RunFolder, "claim", refused)
    monkeypatch.setattr(runs, "_is_read_only", lambda run: True)
    again = shoal("train", folder / "small.yaml", "--out", folder / "done")
    assert again.code == 0
    assert "test rows" in again.out
    other = shoal("train", folder / "small.yaml", "--out", folder / "done", "--set", "seed=9")
    assert other.code == 2
    assert "belongs to another experiment" in other.err


def test_a_class_without_test_rows_is_said(shoal, folder):
    table = rows(300)
    labels = table["y"].to_pylist()
    labels[:2] = ["rare", "rare"]
    pq.write_table(table.set_column(4, "y", pa.array(labels)), folder / "rare.parquet")
    given = (
        "--set",
        "data.split={hash: {}}",
        "--set",
        f"data.path={folder}/rare.parquet",
        "--set",
        "data.positive=null",
    )
    found = shoal("check", folder / "small.yaml", *given)
    assert found.code == 0, found.err
    assert "row is of class rare" in found.out
