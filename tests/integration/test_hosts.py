"""Three hosts, one of which loses power in the middle of an epoch: the fit ends on the others, with the same model."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from support.hosts import hosts, missing, wait_for

from shoal.yaml_file import dump

pytestmark = pytest.mark.slow

# One task a host, or none at all.
SPREAD = """
import json, socket, sys
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
ray.init(address=sys.argv[1], log_to_driver=False)
group = placement_group([{"CPU": 1}] * int(sys.argv[2]), strategy="STRICT_SPREAD")
assert group.wait(120), "no room for one a host"
where = ray.remote(num_cpus=1)(lambda: (socket.gethostname(), ray.util.get_node_ip_address()))
strategies = [PlacementGroupSchedulingStrategy(group, i) for i in range(int(sys.argv[2]))]
print(json.dumps(ray.get([where.options(scheduling_strategy=one).remote() for one in strategies])))
remove_placement_group(group)
"""
HOSTS = 3
WORKERS = 2  # a CPU a host, so no two workers are on one; the third host takes the place of the lost one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    with hosts(HOSTS, tmp_path_factory.mktemp("hosts")) as made:
        made.start(0, cpus=1)
        wait_for(lambda: made.reaches(0, made.address(0), 6379), 120)
        for host in range(1, HOSTS):
            made.start(host, cpus=1)
        yield made


@pytest.fixture
def experiment(tmp_path):
    data = load_digits()
    columns = {f"p{i}": data.data[:, i] for i in range(64)}
    pq.write_table(pa.table(columns | {"eight": data.target == 8}), tmp_path / "digits.parquet")
    (tmp_path / "digits.yaml").write_text(
        dump(
            {
                "data": {"path": str(tmp_path / "digits.parquet"), "target": "eight"},
                "model": {
                    "import": "support.modules:Killed",
                    "at": 10**9,
                    "pause": 0.05,
                    "marker": str(tmp_path / "mark"),
                },
                "training": {
                    "epochs": 6,
                    "batch_size": 64,
                    "early_stopping": None,
                    "checkpoint": {"every": "0.2s"},
                },
                "cluster": {"storage_path": str(tmp_path / "runs"), "num_workers": WORKERS, "wait": "120s"},
            }
        )
    )
    return tmp_path / "digits.yaml"


def test_hosts_reach_each_other_and_nothing_else(cluster):
    for host in range(HOSTS):
        assert cluster.reaches(host, cluster.address(0), 6379)
    # Reserved for documentation (RFC 5737): nobody's address, and there is no way out to it.
    assert not cluster.reaches(1, "192.0.2.1", 80)


def test_work_is_spread_strictly(cluster):
    done = cluster.inside(
        0, [sys.executable, "-c", SPREAD, cluster.cluster, str(HOSTS)], stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.communicate(timeout=300)[0].splitlines()[-1])
    assert sorted(map(tuple, found)) == [(f"host{host}", cluster.address(host)) for host in range(HOSTS)]


def test_a_host_that_loses_power_in_an_epoch(cluster, experiment, tmp_path):
    lost, whole = tmp_path / "lost", tmp_path / "whole"
    driver = train(cluster, experiment, lost)
    wait_for(
        lambda: list(lost.glob("checkpoints/*/step-*/rank-00001.json")) or driver.poll() is not None, 600
    )
    assert driver.poll() is None
    at_work = [
        host for host in range(HOSTS) if any("RayTrainWorker" in c for c in cluster.processes_of(host))
    ]
    assert len(at_work) == WORKERS
    victim = at_work[-1]
    assert victim != 0  # the head, and the driver on it, stay
    cluster.kill(victim)
    assert driver.wait(600) == 0
    fit = json.loads((lost / "provenance.json").read_text())["fit"]
    (start,) = fit["resumed_from"]
    assert 0 < start < fit["steps"]
    assert start % (fit["steps"] // fit["epochs"]), "between two epochs"
    assert "was lost; the group starts again" in (lost / "log.txt").read_text()

    assert train(cluster, experiment, whole).wait(600) == 0  # on the hosts that are left
    assert json.loads((whole / "provenance.json").read_text())["fit"]["resumed_from"] == []
    weights = [load_file(run / "model" / "model.safetensors") for run in (lost, whole)]
    for name, values in weights[1].items():
        np.testing.assert_array_equal(weights[0][name], values, err_msg=name)
    predictions = [pq.read_table(run / "predictions.parquet") for run in (lost, whole)]
    assert predictions[0].equals(predictions[1])


def train(cluster, experiment, run):
    words = [sys.executable, "-m", "shoal", "train", str(experiment), "--out", str(run), "--quiet"]
    words += ["--set", f"cluster.address={cluster.cluster}"]
    return cluster.inside(0, words)
