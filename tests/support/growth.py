"""Trains on a cluster to which a node comes and from which one goes, with one or two workers; a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

# Looks every 2 s whether the group could have another size, not every 30.
COMMAND = """
import sys
from shoal.training import placements
placements._RESIZE_SECONDS = 2.0
from shoal.cli.main import main
raise SystemExit(main())
"""


def main(config: str, run: str) -> None:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False}
    )
    cluster.add_node(**node)
    cluster.wait_for_nodes()
    arguments = ["train", config, "--out", run, "--quiet", "--set", f"cluster.address={cluster.address}"]
    arguments += ["--set", "cluster.num_workers=[1, 2]", "--set", "cluster.wait=60s"]
    driver = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments])

    def wait_for(name: str) -> None:
        while not list(Path(run).glob(f"checkpoints/*/step-*/{name}")) and driver.poll() is None:
            time.sleep(0.05)  # nothing tells of an upload but its files

    try:
        wait_for("rank-00000.json")
        second = cluster.add_node(**node)
        wait_for("rank-00001.json")
        cluster.remove_node(second, allow_graceful=False)
        if driver.wait() != 0:
            raise SystemExit(f"the driver ended with {driver.returncode}")
    finally:
        driver.kill()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
