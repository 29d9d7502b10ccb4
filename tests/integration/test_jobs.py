"""Jobs on a real head with a dashboard, by its job service."""

import json
import os
import platform
import secrets
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.job_server import SOURCES, job_server
from support.tabular import rows

from shoal.cli.main import main
from shoal.cluster.jobs import Jobs
from shoal.experiment import load_experiment
from shoal.verbs.runs import run_uri

pytestmark = pytest.mark.skipif(
    find_spec("aiohttp_cors") is None, reason="ray[default] is not installed: pip install 'shoal[jobs]'"
)

EXPERIMENT = """\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: linear
training: {{epochs: 3, batch_size: 32, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
evaluation: {{replicates: 100}}
cluster: {{storage_path: {folder}/runs, placement: inline, shared_paths: ["{folder}"]}}
"""

KNOWN = {}
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("jobs")
    pq.write_table(rows(), path / "rows.parquet")
    (path / "small.yaml").write_text(EXPERIMENT.format(folder=path))
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with job_server(tmp_path_factory.mktemp("head"), TOKEN) as found:
        yield found


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """This machine's token, and a variable by which Ray would go to another cluster."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.fixture(autouse=True)
def asked_once(monkeypatch):
    """The cluster's packages do not change while these tests run."""
    ask = Jobs.versions

    def versions(jobs, packages, modules=()):
        key = (jobs.address, *packages, *modules)
        if key not in KNOWN:
            KNOWN[key] = ask(jobs, packages, modules)
        return KNOWN[key]

    monkeypatch.setattr(Jobs, "versions", versions)


@pytest.fixture
def shoal(capfd):
    def run(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        return code, *capfd.readouterr()

    return run


def submit(shoal, address, folder, *words, verb="train"):
    return shoal("submit", verb, folder / "small.yaml", "--address", address, "--json", *words)


def test_a_job_is_found_again_and_its_run_is_the_one_that_train_names(shoal, address, folder, monkeypatch):
    code, out, err = submit(shoal, address, folder, "--follow")
    assert code == 0, err
    first = json.loads(out)
    assert (first["status"], first["exit_code"], first["started_now"]) == ("SUCCEEDED", 0, True)
    assert "epoch 3/3" in err  # what it printed
    assert "Uploading" not in err  # what Ray's client would say
    monkeypatch.delenv("RAY_ADDRESS")  # here, the same fit is done in this process
    assert first["run"] == run_uri(load_experiment(folder / "small.yaml"), "train", "small")
    assert shoal("train", folder / "small.yaml", "--out", folder / "here")[0] == 0
    weights = "model/model.safetensors"
    assert (Path(first["run"]) / weights).read_bytes() == (folder / "here" / weights).read_bytes()

    # Another number of workers is the same run.
    code, out, err = submit(shoal, address, folder, "--wait", "--set", "cluster.cpus_per_worker=2")
    again = json.loads(out)
    assert (code, again["id"], again["started_now"]) == (0, first["id"], False)
    code, out, err = shoal("jobs", "list", "--address", address, "--json")
    assert [job["id"] for job in json.loads(out)["jobs"]] == [first["id"]]
    code, out, err = shoal("jobs", "logs", first["id"], "--address", address)
    assert code == 0
    assert "epoch 3/3" in out

    code, out, err = submit(shoal, address, folder, "--again")
    assert (code, json.loads(out)["id"]) == (0, f"{first['id']}-2")
    assert shoal("jobs", "stop", f"{first['id']}-2", "--address", address)[0] == 0


def test_a_stopped_job_goes_on_where_it_was(shoal, address, folder):
    longer = {
        "training.epochs": 100_000,
        "training.early_stopping": "null",
        "training.checkpoint.every": "1s",
    }
    words = ["--out", folder / "long"]
    for key, value in longer.items():
        words += ["--set", f"{key}={value}"]
    code, out, err = submit(shoal, address, folder, *words)
    assert code == 0, err
    first = json.loads(out)
    deadline = time.monotonic() + 60
    while not (folder / "long" / "checkpoints").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1.5)  # so that a fit is under way when it is stopped
    # Others are told that it runs, and start no second one.
    code, out, err = submit(shoal, address, folder, *words)
    assert (json.loads(out)["id"], json.loads(out)["started_now"]) == (first["id"], False)
    code, _, err = submit(shoal, address, folder, *words, "--again")
    assert code == 2
    assert f"shoal jobs stop {first['id']}" in err
    code, out, err = shoal("jobs", "stop", first["id"], "--address", address, "--json")
    assert (code, json.loads(out)["status"]) == (0, "STOPPED")

    code, out, err = submit(shoal, address, folder, *words)
    second = json.loads(out)
    assert (second["id"], second["started_now"]) == (f"{first['id']}-2", True)
    deadline = time.monotonic() + 60
    while "resuming from step" not in (logs := Jobs(address).logs(second["id"])):
        assert time.monotonic() < deadline, logs
        time.sleep(0.3)
    assert shoal("jobs", "stop", second["id"], "--address", address)[0] == 0


def test_a_job_that_fails_says_why_and_may_be_sent_again(shoal, address, folder):
    wrong = ("--set", "data.target=absent")
    code, out, err = submit(shoal, address, folder, "--wait", *wrong, verb="shard")
    assert code == 2  # as it would be here
    assert "absent" in err
    assert "whole log: shoal jobs logs small-shard-" in err
    code, out, err = submit(shoal, address, folder, *wrong, verb="shard")
    assert json.loads(out)["id"].endswith("-2")


@pytest.mark.parametrize(
    ("name", "version"), [("python", "3.8.1"), ("torch", "1.0.0"), ("ray", "2.1.0"), ("shoal", "9.9.9")]
)
def test_other_versions_are_refused_with_both(shoal, address, folder, monkeypatch, name, version):
    from shoal.verbs import jobs as module

    real = module._version
    if name == "python":
        monkeypatch.setattr(module.platform, "python_version", lambda: version)
    else:
        monkeypatch.setattr(module, "_version", lambda asked: version if asked == name else real(asked))
    code, _, err = submit(shoal, address, folder, "--set", "seed=1")
    there = {"python": sys.version.split()[0], "shoal": real("shoal")}.get(name) or real(name)
    if name == "shoal" and there is None:
        pytest.skip("shoal is not installed, only on the path")
    assert code == 2
    assert f"{name} {version} here and {there} there" in err
    assert "seed" not in err


def test_a_module_that_the_cluster_lacks_is_named(shoal, address, folder, monkeypatch):
    own = folder / "mine" / "my_own_model.py"
    own.parent.mkdir()
    own.write_text("def build(schema, n_outputs):\n    raise AssertionError\n")
    monkeypatch.syspath_prepend(str(own.parent))
    code, _, err = submit(shoal, address, folder, "--set", "model={import: 'my_own_model:build'}")
    assert code == 2
    assert "has no module my_own_model" in err


@pytest.mark.parametrize("name", ["small-train-0", "", "../version", "a/b c?x=ü"])
def test_an_unknown_job_is_answered_with_the_known_ones(shoal, address, folder, name):
    code, _, err = shoal("jobs", "status", name, "--address", address)
    assert code == 2
    assert "small-" in err.split("jobs there:")[1]


def test_alternatives_are_sent(shoal, address, folder):
    (folder / "others.yaml").write_text("wide: {model: {mlp: {hidden: [4]}}}\n")
    words = ("--compare", folder / "others.yaml", "--set", "evaluation.cv={stratified: {n_splits: 2}}")
    code, out, err = submit(shoal, address, folder, *words, "--wait", verb="crossval")
    assert code == 0, err
    metrics = json.loads((Path(json.loads(out)["run"]) / "metrics.json").read_text())
    assert list(metrics["alternatives"]) == ["as it is", "wide"]


def test_without_a_token_it_is_turned_away(address, folder, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "shoal", "jobs", "list", "--address", address],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "turns this token away, or none was given" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_python_that_is_compared_is_that_of_the_cluster(address):
    found = Jobs(address).versions(["torch", "no-such-package"], ["json", "no_such_module"])
    assert found.python == platform.python_version()
    assert found.packages["torch"].startswith("2.")
    assert found.packages["no-such-package"] is None
    assert found.modules == {"json": True, "no_such_module": False}
