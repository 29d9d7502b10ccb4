"""Trains on a cluster of several raylets, one of which is killed after the first checkpoint; a process of its own."""

import os
import random
import re
import sys
import threading
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

from shoal.experiment import load_experiment
from shoal.verbs import train


def raylet_of_worker_one(run: Path) -> int:
    """Raylets start their workers, so the parent of a worker is its node."""
    text = (run / "logs" / "rank-00001.txt").read_text()
    (pid,) = re.findall(r"process (\d+)", text)
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main(config: str, lost: str, whole: str) -> None:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(**node) for _ in range(3)]  # one more than there are workers
    cluster.wait_for_nodes()
    settings = ["cluster.num_workers=2", f"cluster.address={cluster.address}", "cluster.wait=90s"]

    def kill() -> None:
        while not list(Path(lost).glob("checkpoints/*/step-*/rank-00001.json")):
            time.sleep(0.05)  # nothing tells of an upload but its files
        time.sleep(random.Random().random())
        raylet = raylet_of_worker_one(Path(lost))
        (victim,) = (n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet)
        cluster.remove_node(victim, allow_graceful=False)

    try:
        killer = threading.Thread(target=kill)
        killer.start()
        train(load_experiment(config, settings), lost)
        killer.join()
        train(load_experiment(config, settings), whole)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
