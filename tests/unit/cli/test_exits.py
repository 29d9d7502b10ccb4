import json
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cli.deadline import deadline
from shoal.cli.main import main
from shoal.cluster.errors import DataError, RunError
from shoal.experiment import from_dict
from shoal.verbs.dataset import shard

HEAVY = ["torch", "ray", "pandas", "sklearn", "pyarrow", "matplotlib", "scipy", "deepspeed"]


def in_process_of_its_own(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, **options
    )


def test_help_imports_nothing_heavy():
    done = in_process_of_its_own(
        "import sys; from shoal.cli.main import main; import shoal; code = main(['--help']);"
        f"print([m for m in {HEAVY} if m in sys.modules], code)"
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
    for verb in ("schema", "init", "check", "shard", "train", "evaluate", "predict", "report", "demo"):
        assert verb in done.stdout


def test_an_inline_run_does_not_import_ray(folder):
    done = in_process_of_its_own(
        "import sys; from shoal.cli.main import main; code = main(sys.argv[1:]);"
        "print([m for m in ('ray', 'deepspeed') if m in sys.modules], code)",
        *("train", str(folder / "small.yaml"), "--out", str(folder / "own process"), "--quiet"),
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], ["Missing argument 'CONFIG'", "see: shoal train --help"]),
        (["trian", "x"], ["No such command 'trian'", "verbs: demo, init, check, shard, train"]),
        (["train", "x.yaml", "--sett", "a=b"], ["No such option: --sett"]),
        (["train", "none.yaml"], ["none.yaml does not exist", "shoal init DATA --target COLUMN"]),
        (["schema", "--set", "a=b"], ["--set changes nothing for shoal schema"]),
        (["report", "r", "--out", "x"], ["--out changes nothing for shoal report"]),
        (
            ["predict", "r", "--data", "x", "--to", "y", "--set", "seed=1"],
            ["--set changes nothing for shoal predict"],
        ),
        (["init", "x", "--target", "y", "--cluster", "c.yaml"], ["--cluster changes nothing for shoal init"]),
        (["check", "x.yaml", "--time-limit", "soon"], ["--time-limit soon: a duration is"]),
        (["check", "x.yaml", "--time-limit", "0"], ["must be above 0"]),
    ],
)
def test_a_wrong_request_ends_with_2_and_a_few_lines(shoal, arguments, said):
    done = shoal(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) <= 4
    for text in said:
        assert text in done.err


@pytest.mark.parametrize(
    ("verb", "absent"),
    [
        ("train", []),
        ("check", []),
        ("demo", []),
        ("evaluate", []),
        ("init", ["--cluster"]),
        ("predict", ["--set", "--out"]),
        ("report", ["--set", "--out"]),
        ("schema", ["--set", "--cluster", "--out"]),
    ],
)
def test_help_shows_the_options_that_matter(shoal, verb, absent):
    shown = set(shoal(verb, "--help").out.split())
    every = {"--set", "--cluster", "--out", "--time-limit", "--json", "--quiet", "--debug"}
    assert every - shown == set(absent)


def test_python_m_shoal_is_the_same_command():
    command = [sys.executable, "-m", "shoal"]
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.startswith("shoal ")
    wrong = subprocess.run([*command, "chekc"], capture_output=True, text=True, check=False, timeout=60)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")


def test_version_and_schema(shoal):
    assert shoal("--version").out.startswith("shoal 0.")
    assert shoal("schema").out == shoal("schema", "--json").out
    assert shoal("schema").json["title"] == "Shoal experiment"
    assert shoal().out.startswith(shoal("--help").out[:20])


def test_json_gives_one_object_also_for_a_failure(shoal, folder):
    done = shoal("train", folder / "small.yaml", "--set", "training.epochs=0", "--json")
    assert done.code == 2
    assert done.json["exit_code"] == 2
    assert "training.epochs: 0 is not allowed" in done.json["error"]
    assert "error: --set training.epochs=0" in done.err
    assert shoal("train", "--json").json["exit_code"] == 2


def break_check(monkeypatch, error):
    from shoal.verbs import check

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(check, "check", broken)


def test_interrupting_ends_with_130_and_says_what_is_kept(shoal, folder, monkeypatch):
    break_check(monkeypatch, KeyboardInterrupt())
    done = shoal("check", folder / "small.yaml")
    assert (done.code, done.err) == (130, "error: interrupted; nothing was written\n")

    from shoal.verbs import fit

    monkeypatch.setattr(fit, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    done = shoal("train", folder / "small.yaml", "--out", folder / "kept")
    assert done.code == 130
    assert f"kept: {folder / 'kept'}" in done.err


def test_the_unexpected_ends_with_1_and_one_line_unless_debugging(shoal, folder, monkeypatch):
    break_check(monkeypatch, ValueError("odd\nand long"))
    done = shoal("check", folder / "small.yaml")
    assert done.code == 1
    assert done.err.splitlines() == [
        "error: unexpected ValueError: odd",
        "       this is a fault of Shoal's; run again with --debug for the traceback",
    ]
    assert "Traceback" in shoal("check", folder / "small.yaml", "--debug").err


def test_secrets_are_masked_in_messages(shoal, folder, monkeypatch):
    break_check(monkeypatch, RunError("cannot read s3://KEY:secret@bucket/x"))
    done = shoal("check", folder / "small.yaml", "--json")
    assert done.code == 1
    assert "secret" not in done.err + done.out


def test_the_deadline_strikes_and_leaves_no_timer():
    started = time.monotonic()
    with (
        pytest.raises(RunError, match=r"time limit of 0\.05s is reached; give more with --time-limit"),
        deadline(timedelta(seconds=0.05), lambda: "; kept"),
    ):
        time.sleep(5)
    assert time.monotonic() - started < 2
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with deadline(timedelta(seconds=0.05)):
        pass
    time.sleep(0.1)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with pytest.raises(KeyboardInterrupt), deadline(timedelta(seconds=60)):
        signal.raise_signal(signal.SIGINT)  # the user's own, not the deadline's
    with deadline(None):
        pass


def test_a_run_that_meets_its_time_limit_fails_cleanly(shoal, folder, monkeypatch):
    from shoal.verbs import check

    monkeypatch.setattr(check, "check", lambda *_, **__: time.sleep(5))
    done = shoal("check", folder / "small.yaml", "--time-limit", "0.1s", "--json")
    assert done.code == 1
    assert "time limit of 0.1s" in json.loads(done.out)["error"]


def test_sigterm_ends_a_command_as_ctrl_c_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shoal.verbs.check

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray leaves its own where other tests started it

    def terminated(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("nobody heeded SIGTERM")

    monkeypatch.setattr(shoal.verbs.check, "check", terminated)
    file = tmp_path / "a.yaml"
    file.write_text("data: {path: x.parquet, target: y}\n")
    try:
        assert main(["check", str(file)]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("key", ["test_from", "validation_from"])
def test_a_time_split_that_begins_after_the_data_is_refused(key: str, tmp_path: Path) -> None:
    table = pa.table({"t": range(40), "x": [0.5, 1.5] * 20, "y": [0, 1] * 20})
    pq.write_table(table, tmp_path / "a.parquet")
    experiment = from_dict(
        {
            "data": {
                "path": str(tmp_path / "a.parquet"),
                "target": "y",
                "time": "t",
                "split": {"time": {key: 99}},
            },
            "cluster": {"storage_path": str(tmp_path / "runs")},
        }
    )
    with pytest.raises(DataError, match=f"{key} 99.* is after the last time stamp of column 't'"):
        shard(experiment)
    assert not list((tmp_path / "runs").glob("*"))


def test_rays_answer_to_sigterm_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shoal.verbs.check

    def ended(*_: object, **__: object) -> None:
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr(shoal.verbs.check, "check", ended)
    file = tmp_path / "a.yaml"
    file.write_text("data: {path: x.parquet, target: y}\n")
    assert main(["check", str(file)]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_among_the_first_imports_leaves_no_traceback(number: signal.Signals) -> None:
    code = f"""
import os, signal, sys
from shoal import __main__ as door
signal.signal({int(number)}, signal.SIG_DFL)  # one that is ignored, as in the background, stays so
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "shoal.cli.main":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
door.run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_a_run_whose_folder_was_deleted_under_way_has_failed(shoal, folder, monkeypatch, tmp_path) -> None:
    from shoal.training import worker

    whole = worker.run_worker

    def deletes(*arguments):
        outcome = whole(*arguments)
        (tmp_path / "run" / "config.yaml").unlink()
        return outcome

    monkeypatch.setattr("shoal.training.trainer.run_worker", deletes)
    done = shoal("train", folder / "small.yaml", "--out", tmp_path / "run")
    assert done.code == 1
    assert "was deleted, or moved, while it was trained in" in done.err
    assert not (tmp_path / "run" / "metrics.json").exists()
