"""What is refused before anything is sent to another machine."""

import http.server
import socket
import threading
import time
from datetime import timedelta

import pytest
from typer.main import get_command

from shoal.cli.app import app
from shoal.cluster.errors import ConfigError
from shoal.experiment import from_dict, load_experiment
from shoal.verbs.axis import alternatives
from shoal.verbs.elsewhere import Errand, Options, modules_of, refuse_local, resolved
from shoal.verbs.jobs import _command
from shoal.verbs.runs import run_uri

REMOTE = {
    "data": {"path": "s3://lake/rows.parquet", "target": "y"},
    "cluster": {"storage_path": "s3://bucket/runs", "cache_path": "/tmp/shards"},
}


def experiment(**sections):
    return from_dict({**REMOTE, **sections})


def errand(verb="train", out=None, compare=None, find_learning_rate=False, list_layers=False, **more):
    options = Options(compare, find_learning_rate, list_layers)
    return Errand(verb, experiment(**more), "small", out, options)


def submit(shoal, folder, *words, address="http://127.0.0.1:1", verb="train"):
    return shoal("submit", verb, folder / "small.yaml", "--address", address, *words)


def test_paths_of_this_machine_are_named_with_their_keys(shoal, folder):
    done = submit(shoal, folder)
    assert done.code == 2
    assert (
        f"data.path: {folder}/rows.parquet, cluster.storage_path: {folder}/runs are paths of this machine"
        in done.err
    )
    assert "cluster.shared_paths" in done.err


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        (
            {"data": {"path": ["s3://a/b.parquet", "file:///tmp/x.parquet"], "target": "y"}},
            "data.path: file:///tmp/x",
        ),
        ({"cluster": {"storage_path": "runs", "shared_paths": ["/mnt/all"]}}, "cluster.storage_path: runs"),
        # A folder that only begins like a shared one, and one that leaves it again.
        (
            {"cluster": {"storage_path": "/mnt/all2/r", "shared_paths": ["/mnt/all"]}},
            "storage_path: /mnt/all2/r",
        ),
        (
            {"cluster": {"storage_path": "/mnt/all/../r", "shared_paths": ["/mnt/all"]}},
            "storage_path: /mnt/all/../r",
        ),
        ({"transfer": {"start": "runs/earlier"}}, "transfer.start: runs/earlier"),
        ({"model": {"pretrained": {"path": "/models/bert"}}}, "model.pretrained.path: /models/bert"),
        (
            {
                "transfer": {
                    "adaptation": "dann",
                    "target_data": {"path": "s3://t/a.parquet", "test": "t.parquet"},
                }
            },
            "transfer.target_data.test: t.parquet",
        ),
    ],
)
def test_every_place_is_looked_at(sections, key):
    with pytest.raises(Exception, match="of this machine") as refused:
        refuse_local(experiment(**sections))
    assert key in str(refused.value)


def test_what_the_cluster_reaches_is_let_through():
    refuse_local(experiment())
    there = {"storage_path": "/mnt/all/runs", "shared_paths": ["/mnt/all/"]}
    refuse_local(
        experiment(data={"path": "/mnt/all/rows.parquet", "target": "y"}, cluster=there), out="/mnt/all/out"
    )
    with pytest.raises(Exception, match="--out: here"):
        refuse_local(experiment(), out="here")


def test_what_is_sent_is_the_same_run(tmp_path):
    here = experiment(
        cluster={"storage_path": "s3://bucket/runs", "address": "10.0.0.1:6379", "num_workers": 3}
    )
    (tmp_path / "small.yaml").write_text(resolved(here))
    there = load_experiment(tmp_path / "small.yaml")
    assert there.cluster.address is None  # it runs inside the cluster
    assert there.cluster.num_workers == 3
    assert run_uri(there, "train", "small") == run_uri(here, "train", "small")


def test_credentials_are_not_sent():
    with pytest.raises(Exception, match=r"data\.path: s3://\*\*\*@lake/rows\.parquet carries credentials"):
        errand(data={"path": "s3://me:hidden@lake/rows.parquet", "target": "y"}).refuse()
    with pytest.raises(Exception, match=r"--out: s3://\*\*\*@b/run carries credentials"):
        errand(out="s3://me:hidden@b/run").refuse()
    storage = {"storage_path": "s3://b/runs", "storage": {"endpoint": "http://me:hidden@minio:9000"}}
    with pytest.raises(Exception, match=r"endpoint: http://\*\*\*@minio:9000 carries credentials"):
        errand(cluster=storage).refuse()


def test_shards_in_object_storage_need_a_place_for_copies():
    there = {"storage_path": "s3://bucket/runs"}
    with pytest.raises(Exception, match="give cluster.cache_path"):
        errand(cluster=there).refuse()
    errand("shard", cluster=there).refuse()  # reads none


def test_alternatives_go_with_it_and_are_looked_at_too(tmp_path):
    (tmp_path / "others.yaml").write_text(
        "wide: {model.mlp.hidden: [64]}\nown: {model: {import: 'json:loads'}}\n"
    )
    sent = errand("crossval", compare=tmp_path / "others.yaml")
    sent.refuse()
    assert sent.run == errand("crossval").run + "-compare"
    for name, text in sent.files().items():
        (tmp_path / name).write_text(text)
    words = sent.words(f"{tmp_path}/")
    assert words[words.index("--out") + 1] == sent.run
    there = alternatives(load_experiment(words[4]), words[words.index("--compare") + 1])
    assert there == alternatives(sent.experiment, tmp_path / "others.yaml")
    assert modules_of(*sent.experiments.values()) == ["json"]
    (tmp_path / "others.yaml").write_text("other: {model: {pretrained: {path: /models/bert}}}\n")
    with pytest.raises(Exception, match="model.pretrained.path: /models/bert is a path of this machine"):
        sent.refuse()


def test_what_a_verb_is_told_makes_another_job(tmp_path):
    (tmp_path / "others.yaml").write_text("wide: {model.mlp.hidden: [64]}\n")
    sent = [
        errand("crossval"),
        errand("crossval", compare=tmp_path / "others.yaml"),
        errand("crossval", compare={"wide": {"model.mlp.hidden": [32]}}),
        errand(),
        errand(find_learning_rate=True),
        errand("features"),
        errand("features", list_layers=True),
    ]
    assert len({_command(one, None).key for one in sent}) == len(sent)
    limited = _command(errand(), timedelta(hours=6))
    assert limited.key == _command(errand(), None).key
    assert limited.words == [*errand().words(), "--time-limit", "6h"]
    with pytest.raises(Exception, match="--compare is of shoal crossval, not of shoal train"):
        errand(compare={"wide": {"model.mlp.hidden": [32]}}).refuse()


def test_every_option_of_a_verb_that_runs_an_experiment_is_sent_or_left_out_on_purpose():
    commands = get_command(app).commands

    def flags(command):
        return {flag for option in command.params for flag in option.opts if flag.startswith("--")}

    own = set().union(
        *(flags(commands[name]) for name in ("adapt", "crossval", "features", "shard", "train", "tune"))
    )
    for command in (commands["submit"], commands["k8s"].commands["render"]):
        assert own - flags(command) == {"--settle"}  # asks a finished run, with a file of this machine


def test_modules_of_ones_own_are_found_wherever_they_are():
    found = experiment(
        model={"import": "my.models:build"},
        training={"optimizer": {"import": "optimisers:make"}},
    )
    assert modules_of(found) == ["my.models", "optimisers"]
    assert modules_of(experiment()) == []


def test_only_verbs_that_run_an_experiment_are_sent(shoal, folder):
    done = submit(shoal, folder, verb="report")
    assert done.code == 2
    assert "use one of adapt, crossval, features, shard, train, tune" in done.err


class Dumb(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_):
        pass


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_that_does_not_answer_is_told_in_a_line(shoal, folder, silent):
    shared = ("--set", f'cluster.shared_paths=["{folder}"]')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dumb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    other = f"http://127.0.0.1:{server.server_address[1]}"
    began = time.monotonic()
    for address, reason in (
        ("http://127.0.0.1:1", "refused"),
        (silent, "no answer"),
        (other, "something else"),
    ):
        done = submit(shoal, folder, *shared, address=address)
        assert done.code == 2
        assert reason in done.err
        assert "check --address" in done.err
        assert len(done.err.splitlines()) == 1
    assert time.monotonic() - began < 30
    server.shutdown()
    for address in (
        "ray://127.0.0.1:10001",
        "http://127.0.0.1:1/api",
        "http://me:pw@127.0.0.1:1",
        "me:pw@127.0.0.1:1",
        "http://[::1",
        "http://127.0.0.1:1?x",
        " ",
        "",
    ):
        done = submit(shoal, folder, *shared, address=address)
        assert done.code == 2
        assert "http://host:8265" in done.err
        assert "pw@" not in done.err


def test_a_client_that_is_not_installed_is_named_with_the_command(shoal, folder, monkeypatch):
    from shoal.cluster import jobs

    monkeypatch.setattr(jobs, "checked_dashboard", lambda address: (address, False))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "aiohttp" else name)
    done = shoal("jobs", "list", "--address", "http://127.0.0.1:1")
    assert done.code == 2
    assert "pip install 'shoal[jobs]'" in done.err
    assert "aiohttp" in done.err


@pytest.mark.parametrize(
    ("token", "is_one"), [("ab12\n", True), ("ab\ncd", False), ("süß", False), ("", True)]
)
def test_what_cannot_be_a_token_is_not_sent(monkeypatch, token, is_one):
    from shoal.cluster import jobs

    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    if is_one:
        assert jobs._token() == token.strip()
    else:
        with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN"):
            jobs._token()


def test_jobs_needs_a_verb_of_its_own(shoal):
    done = shoal("jobs", "lst", "--address", "http://127.0.0.1:1")
    assert done.code == 2
    assert "see: shoal jobs --help" in done.err
    assert "jobs" in shoal("nothing").err
