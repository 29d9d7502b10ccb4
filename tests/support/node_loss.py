"""Trains on a cluster of several raylets, one of which is killed; a process of its own.

After the first checkpoint; or, with a notice, after the one that is written because of it: no other is due. Where capacity is
to be lost, no node is left to take the lost one's place.
"""

import os
import random
import re
import sys
import threading
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from shoal.cluster.errors import RunError
from shoal.experiment import load_experiment
from shoal.verbs import train


def raylet_of_worker_one(run: Path) -> int:
    """Raylets start their workers, so the parent of a worker is its node."""
    text = (run / "logs" / "rank-00001.txt").read_text()
    (pid,) = re.findall(r"process (\d+)", text)
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def give_notice(address: str, node_id: str, seconds: float = 60) -> None:
    """As a cloud that takes a machine back does, through Ray's autoscaler."""
    deadline = int((time.time() + seconds) * 1000)
    accepted, why = GcsClient(address=address).drain_node(
        node_id, DRAIN_NODE_REASON_PREEMPTION, "taken back", deadline
    )
    assert accepted, why


def main(config: str, lost: str, whole: str, how: str) -> None:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False}
    )
    spare = 0 if how == "capacity" else 1
    nodes = [cluster.add_node(**node) for _ in range(2 + spare)]
    cluster.wait_for_nodes()
    settings = [
        "cluster.num_workers=2",
        f"cluster.address={cluster.address}",
        f"cluster.wait={90 if spare else 15}s",
    ]
    if how == "notice":
        settings += ["training.checkpoint.every=1h"]

    def wait_for(file: str, text: str = "") -> None:
        """Nothing tells of an upload, or of an epoch, but its files."""
        while not any(text in found.read_text() for found in Path(lost).glob(file)):
            time.sleep(0.05)  # between two looks

    def kill() -> None:
        if how == "notice":
            wait_for("logs/rank-00000.txt", "epoch 1/")
        else:
            wait_for("checkpoints/*/step-*/rank-00001.json")
            time.sleep(random.Random().random())  # so that it is killed at any step after it
        raylet = raylet_of_worker_one(Path(lost))
        (victim,) = (n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet)
        if how == "notice":
            give_notice(cluster.address, victim.node_id)
            wait_for("checkpoints/*/step-*/rank-00001.json")
        cluster.remove_node(victim, allow_graceful=False)

    try:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            train(load_experiment(config, settings), lost)
        except RunError as error:
            print(error)
            return
        finally:
            killer.join()
        train(load_experiment(config, settings), whole)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
