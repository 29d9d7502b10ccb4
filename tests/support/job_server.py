"""A Ray head with a dashboard, on loopback, for as long as a test module runs."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from shoal.cluster.address import checked_dashboard
from shoal.cluster.errors import ResourceError

SOURCES = Path(__file__).parents[2] / "src"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def job_server(folder, token):
    """Start a head that asks for a token; yield the address of its dashboard."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,  # by default the same for every Ray of a machine
        "num-cpus": 2,
        "object-store-memory": 100 << 20,
        "temp-dir": folder,
    }
    words += [f"--{name}={value}" for name, value in options.items()]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # a fit writes its checkpoint first
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)  # what a job imports is what was sent with it
    with open(Path(folder) / "head.log", "w") as log:
        head = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address, head)
        yield address
    finally:
        head.terminate()
        try:
            head.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _wait_for(address, head):
    deadline = time.monotonic() + 60
    while True:
        try:
            checked_dashboard(address)
        except ResourceError:
            assert head.poll() is None, "the head ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return
