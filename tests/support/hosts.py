"""Hosts that are none: each with a network, processes, a name and shared memory of its own, on a bridge of their own.

Linux, root, iproute2 and util-linux. Nothing outside can be reached from them, nor they from outside; the file system is
the same, as a shared one is.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]
# A lost host is noticed within seconds, not minutes.
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}


def missing():
    """Why there can be none here; empty where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "simulated hosts need Linux and root"
    tools = [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not installed (iproute2, util-linux)"
    name = f"shoal-{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Hosts:
    """Hosts 0, 1 … as 10.99.0.1, 10.99.0.2 …; `start` makes each a node of one Ray cluster, of which 0 is the head."""

    def __init__(self, count, folder):
        self.count, self.folder = count, Path(folder)
        self.prefix = f"shoal-{os.getpid()}"
        self.processes = {}

    def address(self, host):
        return f"10.99.0.{host + 1}"

    @property
    def cluster(self):
        return f"{self.address(0)}:6379"

    def build(self):
        switch = f"{self.prefix}-sw"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        for host in range(self.count):
            name, port = self._name(host), f"port{host}"
            _ip("netns", "add", name)
            # Gloo and Ray look for eth0; the default route is what Ray learns its own address from.
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "route", "add", "default", "dev", "eth0")

    def start(self, host, cpus):
        """Boot a host: its first process is Ray's."""
        place = "--head --port=6379 --include-dashboard=false" if host == 0 else f"--address={self.cluster}"
        script = (
            f"hostname host{host} && mkdir -p /tmp/ray && mount -t tmpfs -o size=1g shm /dev/shm && "
            "mount -t tmpfs tmp /tmp/ray && "
            f"exec {sys.executable} -m ray.scripts.scripts start {place} --node-ip-address={self.address(host)} "
            f"--num-cpus={cpus} --object-store-memory=100000000 --disable-usage-stats --block"
        )
        words = ["ip", "netns", "exec", self._name(host), "unshare", "-m", "-u", "-i", "-p", "--fork"]
        words += ["--kill-child", "--mount-proc", "bash", "-c", script]
        with open(self.folder / f"host{host}.log", "w") as log:
            self.processes[host] = subprocess.Popen(
                words, env=_environment(), stdout=log, stderr=log, cwd=self.folder
            )

    def inside(self, host, words, **options):
        """Start a command inside a host."""
        first = self._first_process(host)
        entered = ["nsenter", "-t", str(first), "-m", "-u", "-i", "-n", "-p", *words]
        return subprocess.Popen(entered, env=_environment(), cwd=self.folder, **options)

    def reaches(self, host, address, port):
        """Whether a connection from a host to an address succeeds."""
        code = f"import socket; socket.create_connection(({address!r}, {port}), timeout=3)"
        done = self.inside(host, [sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        return done.wait(60) == 0

    def processes_of(self, host):
        """Command lines of what runs on a host."""
        pids = _ip("netns", "pids", self._name(host)).split()
        return [_read(f"/proc/{pid}/cmdline").replace("\0", " ") for pid in pids]

    def kill(self, host):
        """Take its power away: all its processes end at once."""
        self.processes[host].send_signal(signal.SIGKILL)
        self.processes[host].wait()

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        for name in [*(self._name(host) for host in range(self.count)), f"{self.prefix}-sw"]:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _name(self, host):
        return f"{self.prefix}-{host}"

    def _first_process(self, host):
        parent = self.processes[host].pid
        children = []
        wait_for(
            lambda: children.extend(_read(f"/proc/{parent}/task/{parent}/children").split()) or children, 60
        )
        return int(children[0])


@contextmanager
def hosts(count, folder):
    made = Hosts(count, folder)
    try:
        made.build()
        yield made
    finally:
        made.close()


def wait_for(is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _environment():
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {
        "PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}",  # of all nodes, which import what a fit does
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "1",
    }
    return {**mine, **WATCHFUL, **own}


def _ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def _read(path):
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
