"""What a user is told: about values, files, scores and places that are not as they should be."""

import json
import os
import shutil
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score
from support.tabular import rows

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import RunError, StorageError
from shoal.cluster.progress import Silent
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.prepare import prepare
from shoal.verbs import digits
from shoal.verbs import rows as reading
from shoal.verbs.runs import claimed
from shoal.verbs.unknown import Unknown
from shoal.verbs.writable import require_writable


def strange(n=60):
    """Rows of which every seventh has a category that training never saw, and one has none."""
    table = rows(n, seed=7)
    kinds = [f"new {i}" if i % 7 == 3 else kind for i, kind in enumerate(table["kind"].to_pylist())]
    kinds[0] = None
    return table.set_column(2, "kind", pa.array(kinds)), sum(str(kind).startswith("new") for kind in kinds)


@pytest.mark.parametrize(
    ("key", "line"), [("target", 3), ("id", 4), ("drop", 5), ("positive", 6), ("split", 7)]
)
def test_what_the_data_do_not_have_is_refused_with_the_line_that_asks_for_it(shoal, folder, key, line):
    right = {"target": "y", "id": "key", "drop": "[x]", "positive": '"yes"', "split": "{test: 0.2}"}
    wrong = {"drop": "[nothing]", "split": "{column: nothing}"}
    written = right | {key: wrong.get(key, "nothing")}
    lines = [f"  {name}: {value}\n" for name, value in written.items()]
    file = folder / "lines.yaml"
    file.write_text(f"data:\n  path: {folder}/rows.parquet\n{''.join(lines)}")
    done = shoal("check", file)
    assert done.code == 2
    assert f"error: {file}:{line}: data.{key}" in done.err
    assert "nothing" in done.err
    override = f"data.{key}={wrong.get(key, 'nothing')}"
    given = shoal("check", folder / "small.yaml", "--set", override)
    assert f"error: --set {override}: data.{key}" in given.err


def test_a_file_in_the_place_of_a_run_is_named(shoal, folder):
    (folder / "a file").write_text("mine")
    done = shoal("train", folder / "small.yaml", "--out", folder / "a file")
    assert done.code == 2
    assert "a file is a file, and a run is a folder: give one that is not there yet" in done.err
    assert (folder / "a file").read_text() == "mine"


def test_numbers_that_look_like_identifiers_can_be_kept(shoal, tmp_path):
    numbers = np.arange(90)
    pq.write_table(
        pa.table({"a": numbers, "b": numbers[::-1].copy(), "y": numbers % 2}), tmp_path / "r.parquet"
    )
    (tmp_path / "e.yaml").write_text(f"data: {{path: {tmp_path}/r.parquet, target: y}}\n")
    done = shoal("check", tmp_path / "e.yaml")
    assert done.code == 2
    assert "where it is a feature, say so: data.types: {a: numeric}" in done.err
    assert shoal("check", tmp_path / "e.yaml", "--set", "data.types={a: numeric}").code == 0


def test_accuracy_is_estimated_without_labels(shoal, run, folder):
    held = pq.read_table(run / "predictions.parquet").to_pandas()
    held = held[held.split == "test"]
    names = [name for name in held if name.startswith("score_")]
    known = (held[names].idxmax(axis=1).str.removeprefix("score_") == held.label.astype(str)).mean()
    raw = rows()
    own = raw.filter(pa.array(np.isin(raw["key"].to_pylist(), held.row_id)))
    pq.write_table(own.drop_columns(["y"]), folder / "unlabelled.parquet")
    to = folder / "estimated.parquet"
    done = shoal("predict", run, "--data", folder / "unlabelled.parquet", "--to", to, "--estimate", "--json")
    assert done.code == 0, done.err
    found = done.json["estimate"]
    assert found["held_out"] == pytest.approx(known)
    assert found["by_threshold"]["value"] == pytest.approx(known)
    assert found["by_difference"]["value"] == pytest.approx(known, abs=1e-6)
    assert found["rows"] == found["held_out_rows"] == len(held)
    assert found["far_rows"] == 0
    far = own.set_column(0, "x", pa.array(np.full(len(own), 1e4)))
    pq.write_table(far, folder / "far.parquet")
    done = shoal("predict", run, "--data", folder / "far.parquet", "--to", to, "--estimate", "--force")
    assert "have a number more than 10 standard deviations from its mean in training" in done.err
    assert "an estimate, not a measurement: it assumes that" in " ".join(done.out.split())


def test_a_bracket_that_is_not_closed_is_named(shoal, tmp_path):
    (tmp_path / "e.yaml").write_text("seed: 0\ndata: {path: x.parquet, target: y\nmodel: linear\n")
    done = shoal("check", tmp_path / "e.yaml")
    assert done.code == 2
    assert "close the bracket that was opened in line 2, and put a comma between entries" in done.err


def everything(folder):
    return {p: p.stat().st_mtime_ns for p in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_unknown_categories_are_counted_and_said_once(shoal, run, folder, monkeypatch, suffix):
    monkeypatch.setattr(reading, "BATCH_ROWS", 16)  # several batches
    table, count = strange()
    data = folder / f"strange kinds.{suffix}"
    pq.write_table(table, data) if suffix == "parquet" else csv.write_csv(table, data)
    said = f"values that the model does not know, treated as unknown: 'kind' in {count} of 60 rows (e.g. 'new 3')"
    done = shoal("predict", run, "--data", data, "--to", folder / "strange.csv", "--force", "--json")
    assert done.json["unknown"] == {"kind": count}
    assert done.err.count(said) == 1
    assert shoal("evaluate", run, "--data", data).err.count(said) == 1


def test_many_columns_make_one_short_notice():
    names = [f"c{i}" for i in range(11)]
    columns = [
        Column(name=name, type="categorical", arrow_type="string", categories=("a",), value_type="string")
        for name in names
    ]
    target = Target(columns=("y",), task="binary", classes=("no", "yes"))
    unknown = Unknown(Schema(columns=tuple(columns), target=target))
    for _ in range(2):
        table = pa.table({name: ["?"] * i + ["a"] * (10 - i) for i, name in enumerate(names)})
        unknown.see(table, prepare(table, unknown.schema).categorical)
    heard = []
    reporter = Silent()
    reporter.notice = heard.append
    unknown.say(reporter)
    assert unknown.rows == {f"c{i}": 2 * i for i in range(1, 11)}
    (notice,) = heard
    assert "'c10' in 20 of 20 rows (e.g. '?'), 'c9' in 18 of 20 rows" in notice
    assert notice.endswith("'c3' in 6 of 20 rows (e.g. '?') and 2 more")


def test_known_categories_are_no_news(shoal, run, folder):
    pq.write_table(rows(40, seed=2), folder / "known.parquet")
    done = shoal("predict", run, "--data", folder / "known.parquet", "--to", folder / "known.csv", "--json")
    assert done.json["unknown"] == {}
    assert "unknown" not in done.err


def test_values_of_private_columns_are_not_shown(shoal, folder):
    out = folder / "private"
    done = shoal("train", folder / "small.yaml", "--set", "data.private=[kind]", "--out", out, "--quiet")
    assert done.code == 0, done.err
    pq.write_table(strange()[0], folder / "private.parquet")
    done = shoal("predict", out, "--data", folder / "private.parquet", "--to", folder / "private.csv")
    assert "'kind' in 9 of 60 rows\n" in done.err
    assert "new" not in done.err + done.out


def test_the_classes_of_a_private_target_are_not_shown(shoal, folder):
    out, to = folder / "private target", folder / "private target.parquet"
    table = rows()
    labels = pa.array(["HUSH" if y == "yes" else "QUIET" for y in table["y"].to_pylist()])
    pq.write_table(table.set_column(4, "y", labels), folder / "hush.parquet")
    changed = ["--set", f"data.path={folder}/hush.parquet", "--set", "data.private=[y]"]
    told = [shoal("train", folder / "small.yaml", *changed, "--out", out)]
    for more in ([], ["--json"]):
        told.append(shoal("predict", out, "--data", folder / "hush.parquet", "--to", to, "--force", *more))
        told.append(shoal("evaluate", out, "--data", folder / "hush.parquet", *more))
        told.append(shoal("check", folder / "small.yaml", *changed, *more))
    assert [done.code for done in told] == [0] * 7
    said = "".join(done.out + done.err for done in told)
    assert "columns: key, prediction, score_*\n" in said
    for text in (said, (out / "log.txt").read_text(), (out / "report.html").read_text()):
        assert "HUSH" not in text
        assert "QUIET" not in text
    assert pq.read_schema(to).names == ["key", "prediction", "score_QUIET", "score_HUSH"]


def test_errors_name_the_argument_that_was_given(shoal, run, folder):
    for command in (
        ["predict", run, "--data", folder / "nowhere.parquet", "--to", folder / "o.csv"],
        ["evaluate", run, "--data", folder / "nowhere.parquet"],
        ["predict", run, "--data", folder / "nowhere*", "--to", folder / "o.csv"],
    ):
        done = shoal(*command)
        assert done.code == 2
        assert "--data: " in done.err
        assert "data.path" not in done.err
    done = shoal("init", folder / "nowhere.parquet", "--target", "y", "--out", folder / "nowhere.yaml")
    assert "error: DATA: there is no file or folder" in done.err
    done = shoal("check", folder / "small.yaml", "--set", "data.path=nowhere.parquet")
    assert "error: --set data.path=nowhere.parquet: data.path: there is no file or folder" in done.err


@pytest.fixture(scope="module")
def three_classes(folder):
    """An experiment file whose target has three classes."""
    table = rows()
    labels = np.where(np.array(table["x"]) > 0.7, "high", np.array(table["y"]))
    pq.write_table(table.set_column(4, "y", pa.array(labels)), folder / "three.parquet")
    text = (folder / "small.yaml").read_text().replace("rows.parquet", "three.parquet")
    (folder / "three.yaml").write_text(text)
    return folder / "three.yaml"


def test_macro_averages_are_called_so(shoal, folder, three_classes, run):
    out = folder / "three"
    text = shoal("train", three_classes, "--out", out).out
    for name in ("f1", "precision", "recall", "roc_auc", "average_precision"):
        assert f"  {name} (macro)  " in text
    for name in ("accuracy", "log_loss", "mcc"):
        assert f"  {name}  " in text
    assert "macro: the plain average over the classes" in text
    assert "F1 (macro)" in (out / "report.html").read_text()
    assert "f1 (macro)" in shoal("evaluate", out).out

    found = json.loads((out / "metrics.json").read_text())["test"]
    assert "f1" in found  # the name in files stays
    table = pq.read_table(out / "predictions.parquet").to_pandas().query("split == 'test'")
    names = [name for name in table if name.startswith("score_")]
    decided = table[names].idxmax(axis=1).str.removeprefix("score_")
    assert found["f1"]["value"] == pytest.approx(f1_score(table.label.astype(str), decided, average="macro"))

    assert "macro" not in shoal("evaluate", run).out  # binary: of the event
    assert "(macro)" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "out", "said"),
    [
        ("cluster.storage_path={folder}/rows.parquet/runs", None, "rows.parquet'; a file is where a folder"),
        ("seed=0", "rows.parquet/run", "rows.parquet'; a file is where a folder"),
        pytest.param(
            "cluster.storage_path=/sys/runs",
            None,
            "cannot write /sys/runs: ",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files on Linux"),
        ),
    ],
)
def test_check_finds_storage_that_cannot_be_written(shoal, folder, override, out, said):
    place = ["--out", folder / out] if out else []
    done = shoal("check", folder / "small.yaml", "--set", override.format(folder=folder), *place)
    assert done.code == 2
    assert said in done.err


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied", f"{dir}/tmpq3k2")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # root may write anywhere
    with pytest.raises(
        StorageError, match=r"cannot write .*/a/b: .*Permission denied: '[^']*': change|may not"
    ) as e:
        require_writable(str(tmp_path / "a" / "b"), StorageConfig())
    assert f"Permission denied: '{tmp_path}'" in str(e.value)


def test_trying_storage_leaves_no_file(tmp_path):
    before = everything(tmp_path)
    require_writable(str(tmp_path), StorageConfig())
    require_writable(str(tmp_path / "new" / "er"), StorageConfig())
    assert everything(tmp_path) == before
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/old/x", b"1")
    try:
        for place in ("memory://bucket/old", "memory://bucket/new/er", "memory://bucket"):
            require_writable(place, StorageConfig())
        assert memory.find("/bucket") == ["/bucket/old/x"]
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(("size", "said"), [(1000, True), (210, False), ("full", False)])
def test_check_says_that_a_batch_is_larger_than_the_data(shoal, folder, size, said):
    done = shoal("check", folder / "small.yaml", "--set", f"training.batch_size={size}", "--json")
    notices = [text for text in done.json["data"]["notices"] if "batch_size" in text]
    assert done.json["data"]["split"]["rows"]["train"] == 210
    assert (
        notices
        == ["training.batch_size is 1,000, but there are 210 training rows: every step takes them all"] * said
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[: len(b) // 2], "is cut short: "),
        (lambda b: b[:-60] + b"\xff" * 52 + b[-8:], "is a damaged Parquet file ("),
        (lambda _: b"", "is empty (0 bytes)"),
        (lambda _: b"a,b\n1,2\n", "is not a Parquet file"),
    ],
)
def test_damaged_parquet_is_said_alike_by_every_verb(shoal, run, folder, damage, said):
    data = folder / "hurt.parquet"
    data.write_bytes(damage((folder / "rows.parquet").read_bytes()))
    errors = set()
    for command in (
        ["check", folder / "small.yaml", "--set", f"data.path='{data}'"],
        ["predict", run, "--data", data, "--to", folder / "hurt.csv"],
        ["evaluate", run, "--data", data],
    ):
        done = shoal(*command)
        assert done.code == 2
        errors.add(done.err[done.err.index("error: ") :])
    assert len(errors) == 1
    (error,) = errors
    assert said in error
    assert error.strip().isprintable()
    assert "footer. Either" not in error
    assert not (folder / "hurt.csv").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "its 0 bytes are not JSON"),
        (b'{"key": ', "its 8 bytes are not JSON"),
        (b"\xda\xff", "its 2 bytes are not JSON"),
        (b"{}", "key: field required"),
    ],
)
def test_a_damaged_manifest_ends_with_2_and_the_fix(shoal, run, folder, text, said):
    dataset = Path(json.loads((run / "provenance.json").read_text())["data"]["path"])
    for file, commands, fix in (
        (
            dataset / "manifest.json",
            [["shard", folder / "small.yaml"], ["train", folder / "small.yaml", "--out", folder / "never"]],
            "delete that folder, and the same command writes it again",
        ),
        (run / "data.json", [["report", run]], "train again with another --out"),
    ):
        whole = file.read_bytes()
        file.write_bytes(text)
        try:
            for command in commands:
                done = shoal(*command)
                assert done.code == 2
                assert f"{file.name} in {file.parent} is damaged or of another version (" in done.err
                assert said in done.err
                assert done.err.rstrip().endswith(fix)
        finally:
            file.write_bytes(whole)
    assert not (folder / "never").exists()


def test_the_commands_of_demo_can_be_pasted(tmp_path, monkeypatch):
    own = tmp_path / "a project" / ".venv" / "bin" / "shoal"
    own.parent.mkdir(parents=True)
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(own.parent / "python"))
    monkeypatch.chdir(tmp_path / "a project")

    monkeypatch.setenv("PATH", str(own.parent))
    assert digits._program() == "shoal"
    monkeypatch.setenv("PATH", "")
    assert digits._program() == ".venv/bin/shoal"
    other = tmp_path / "other" / "shoal"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))  # another installation's
    assert digits._program() == ".venv/bin/shoal"
    monkeypatch.chdir(tmp_path)
    train = type("Trained", (), {"run": str(tmp_path / "my runs" / "r")})()
    commands = digits.DemoResult("d", "d/digits.parquet", "d/digits.yaml", train).next_commands
    assert commands[0] == (
        "'a project/.venv/bin/shoal' predict 'my runs/r' --data d/digits.parquet --to d/predictions.csv"
    )
    monkeypatch.chdir("/")
    assert Path("/", digits._program()) == own
    own.unlink()
    assert digits._program() == "shoal"


@pytest.mark.parametrize("name", ["", " "])
def test_a_class_without_a_name_is_refused(shoal, folder, name):
    table = rows()
    labels = [name if label == "no" else label for label in table["y"].to_pylist()]
    pq.write_table(table.set_column(4, "y", pa.array(labels)), folder / "nameless.parquet")
    before = set(os.listdir(folder / "runs"))
    choice = ["--set", f"data.path='{folder}/nameless.parquet'"]
    for command in (
        ["check", folder / "small.yaml", *choice],
        ["shard", folder / "small.yaml", *choice],
        ["train", folder / "small.yaml", *choice],
        ["init", folder / "nameless.parquet", "--target", "y", "--out", folder / "nameless.yaml"],
    ):
        done = shoal(*command)
        assert done.code == 2
        assert f"data.target: 'y' has a class called {name!r}, which is no name" in done.err
        assert "make those labels null (such rows are left out), or name the class" in done.err
    assert set(os.listdir(folder / "runs")) == before
    assert not (folder / "nameless.yaml").exists()


def test_copies_of_remote_shards_must_fit_on_their_disk(shoal, folder, tmp_path, monkeypatch):
    remote = ("--set", "cluster.storage_path=memory://lake/runs", "--out", tmp_path / "run")
    cache = tmp_path / "cache" / "of shards"
    command = ("train", folder / "small.yaml", *remote, "--set", f"cluster.cache_path={cache}")
    memory = fsspec.filesystem("memory")
    try:
        monkeypatch.setattr("shoal.verbs.fit.free_disk", lambda _: 10.0)
        refused = shoal(*command)
        assert refused.code == 2
        assert (
            f"the disk of {cache} has 0.0 KiB. Set cluster.cache_path to a folder on a larger disk"
            in refused.err
        )
        assert not cache.exists()
        monkeypatch.undo()
        assert shoal(*command).code == 0
        assert any(cache.rglob("*.arrow"))
        monkeypatch.setattr("shoal.verbs.fit.free_disk", lambda _: 0.0)
        again = shoal(*command[:-3], tmp_path / "again", *command[-2:])
        assert again.code == 0, "copies that are there need no room"
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


def test_predictions_never_replace_what_is_read_or_the_run(shoal, run, folder, tmp_path):
    data = tmp_path / "in.parquet"
    pq.write_table(rows(), data)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.parquet").symlink_to(data)
    before = everything(run) | everything(tmp_path)
    for to, said in (
        (data, "is one of the files of --data, which would be lost"),
        (tmp_path / "link.parquet", "is one of the files of --data"),
        (run / "predictions.parquet", "lies in the run folder"),
        (tmp_path / "folder.csv", "is a folder; name a file"),
    ):
        refused = shoal("predict", run, "--data", data, "--to", to, "--force")
        assert refused.code == 2
        assert said in refused.err
    assert everything(run) | everything(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"test": {}}', '{"test": 3}', '{"test": {"roc_auc": {"value": "x"}}}'],
)
def test_damaged_scores_are_no_finished_run(shoal, run, folder, tmp_path, content):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "metrics.json").write_text(content)
    for command in (("report", broken), ("train", folder / "small.yaml", "--out", broken)):
        refused = shoal(*command)
        assert refused.code == 2
        assert "delete metrics.json, and the same command computes the run again" in refused.err


@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": 99}, "version: Input should be 1"), ({"schema": None}, "schema: Input should be")],
)
def test_a_model_of_another_version_is_refused(shoal, run, folder, tmp_path, change, said):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    file = broken / "model" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused = shoal("predict", broken, "--data", folder / "rows.parquet", "--to", tmp_path / "p.csv")
    assert refused.code == 2
    assert f"is damaged or of another version ({said}" in refused.err


def test_a_target_too_large_to_learn_is_refused(shoal, folder, tmp_path):
    table = rows()
    huge = pa.array(np.linspace(1e200, 2e200, len(table)))
    pq.write_table(table.set_column(table.column_names.index("y"), "y", huge), tmp_path / "huge.parquet")
    refused = shoal(
        "train",
        folder / "small.yaml",
        "--set",
        f"data.path={tmp_path / 'huge.parquet'}",
        "--out",
        tmp_path / "r",
    )
    assert refused.code == 2
    assert "'y' has numbers too large to learn" in refused.err


def test_one_is_no_plural(shoal, folder):
    out = folder / "one"
    done = shoal("train", folder / "small.yaml", "--set", "training.epochs=1", "--out", out)
    assert "fit:    1 epoch, " in done.out
    assert "all 1 epoch done" in done.out
    pq.write_table(rows(1), folder / "one.parquet")
    done = shoal("predict", out, "--data", folder / "one.parquet", "--to", folder / "one.csv")
    assert "1 row written" in done.out


def test_values_that_are_long_are_cut(shoal, folder):
    long = "x" * 5000
    for key in ("training.optimizer", "training.epochs", "training.precision", "model"):
        done = shoal("check", folder / "small.yaml", "--set", f"{key}={long}")
        assert done.code == 2
        assert "xxx…" in done.err
        assert len(done.err) < 600
    (folder / "long.yaml").write_text((folder / "small.yaml").read_text().replace("linear", long))
    assert len(shoal("check", folder / "long.yaml").err) < 400


def test_check_says_how_far_a_group_grows(shoal, folder):
    done = shoal("check", folder / "small.yaml", "--set", "cluster.num_workers=[1, 999999999999]")
    assert done.code == 0
    # 210 training rows: as many shards as shoal shard makes of them.
    made = shoal("shard", folder / "small.yaml", "--json").json
    shards = made["shards"]
    assert (
        f"the group grows to {shards} workers at most, one for each logical shard (data.shards)" in done.out
    )
    assert f"1 to {shards} workers, placed group" in done.out
    one = ["--set", "cluster.num_workers=2", "--set", "data.shards=1"]
    for verb in ("check", "train"):
        refused = shoal(verb, folder / "small.yaml", *one)
        assert refused.code == 2
        assert "2 workers cannot share 1 logical shard: set cluster.num_workers to at most 1" in refused.err


def test_what_turns_checkpoints_off_is_said(shoal, folder):
    done = shoal("check", folder / "small.yaml", "--set", "training.checkpoint=false")
    assert "false is not allowed; it must be a section of keys: every, keep (null writes none)" in done.err


def test_places_that_are_not_there_are_called_so(shoal, run, folder):
    for command in (
        ["report", folder / "nope"],
        ["predict", folder / "nope", "--data", "x", "--to", "x.csv"],
    ):
        assert f"{folder}/nope does not exist; runs there: {folder}/" in shoal(*command).err
    done = shoal("train", folder / "small.yaml", "--out", "/proc/x")
    assert done.code == 2
    assert "cannot write /proc/x: its folder is not there, or cannot be made; check the path" in done.err


def test_remote_shards_need_a_cache_before_anything_starts(shoal, folder, tmp_path):
    remote = ("--set", "cluster.storage_path=memory://lake2/runs", "--out", tmp_path / "run")
    for verb in ("check", "train"):
        done = shoal(verb, folder / "small.yaml", *remote)
        assert done.code == 2
        assert "is remote: give cluster.cache_path, a local folder" in done.err
        assert "reading" not in done.err
    assert not (tmp_path / "run").exists()


def test_the_first_cause_is_told_where_storage_is_lost(tmp_path, monkeypatch):
    folder = RunFolder.open(str(tmp_path / "run"))

    def gone(*_):
        raise StorageError("cannot delete: the server is gone")

    def lose():
        with claimed(folder, {"data": {}}, Silent(), "metrics.json"):
            monkeypatch.setattr("shoal.cluster.storage.Storage.delete", gone)
            raise RunError("cannot write the checkpoint: the server is gone")

    with pytest.raises(RunError, match="cannot write the checkpoint"):
        lose()
