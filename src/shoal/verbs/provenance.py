"""Where a result comes from: `provenance.json`."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shoal.cluster.filesystems import redact
from shoal.cluster.progress import Reporter

PACKAGES = ("shoal", "torch", "ray", "deepspeed", "numpy", "pyarrow", "scikit-learn", "pandas", "pydantic")


@dataclass
class Stages:
    """Seconds of each part of the work; says aloud which one begins."""

    reporter: Reporter
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Time a block as `name`."""
        self.reporter.stage(text)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def provenance(
    stages: Stages,
    *,
    seed: int,
    data_key: str,
    data_path: str,
    cluster: dict[str, Any],
    fit: dict[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what has to be known to make a result again.

    Parameters
    ----------
    stages
        What was timed.
    seed
        Root of every draw.
    data_key, data_path
        Fingerprint of the sharded dataset, and where it is.
    cluster
        Its shape: workers, their resources, placement.
    fit
        How the fit went.
    command
        The command line; this process's own by default.
    """
    return {
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "seed": seed,
        "git": git_state(),
        "data": {"fingerprint": data_key, "path": redact(data_path)},
        "cluster": cluster,
        "fit": fit,
        "command": [redact(word) for word in (command if command is not None else _command())],
        "started": stages.began.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": stages.seconds,
    }


def git_state() -> dict[str, Any] | None:
    """Return commit and whether files differ from it, of the working directory; None outside a repository."""
    if shutil.which("git") is None:
        return None
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _command() -> list[str]:
    return [os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
