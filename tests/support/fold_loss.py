"""Cross-validates on a cluster of several raylets, one of which is killed after the first fit; a process of its own."""

import os
import sys
import threading
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

from shoal.experiment import load_experiment
from shoal.verbs.crossval import crossval


def main(config: str, compare: str, lost: str) -> None:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(**node) for _ in range(2)]
    cluster.wait_for_nodes()
    settings = ["cluster.placement=task", f"cluster.address={cluster.address}", "cluster.wait=90s"]

    def kill() -> None:
        while not list(Path(lost).glob("fits/*/metrics.json")):
            time.sleep(0.05)  # nothing tells of a stored fit but its file
        cluster.remove_node(nodes[0], allow_graceful=False)
        print("killed", len(list(Path(lost).glob("fits/*/metrics.json"))))

    try:
        killer = threading.Thread(target=kill)
        killer.start()
        crossval(load_experiment(config, settings), lost, compare=compare)
        killer.join()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
