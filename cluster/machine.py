"""What this machine lets this process use: CPU affinity, control groups, GPUs, memory."""

import os
import re
import shutil
from pathlib import Path

from shoal.cluster.resources import Totals

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 writes a huge number where there is no limit


def local_totals(root: Path = _CGROUP) -> Totals:
    """Count what this process may use of this machine.

    Parameters
    ----------
    root
        Where the control groups are mounted.

    Returns
    -------
    Totals
        CPUs within affinity and quota, GPUs within ``CUDA_VISIBLE_DEVICES``, memory in bytes within the limit.
    """
    return Totals(cpus=_cpus(root), gpus=float(_gpus()), memory=_memory(root), where="this machine")


def free_disk(folder: Path) -> float:
    """Return the free bytes on the disk of a folder that need not be there yet."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return float(shutil.disk_usage(there).free)


def _cpus(root: Path) -> float:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return float(affinity) if quota is None else min(float(affinity), quota)


def _quota(root: Path) -> float | None:
    quotas = []
    for folder in _folders(root, "cpu"):
        if (both := _words(folder / "cpu.max")) and both[0] != "max":
            quotas.append(int(both[0]) / int(both[1]))
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            quotas.append(int(quota[0]) / int(period[0]))
    return min(quotas, default=None)


def _memory(root: Path) -> int:
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (limit := _words(folder / name)) and limit[0] != "max" and int(limit[0]) < _UNLIMITED:
                limits.append(int(limit[0]))
    return min(limits)


def _folders(root: Path, controller: str) -> list[Path]:
    """Return this process's group and those above it: version 2 in `root`, version 1 in a folder a controller."""
    folders = {root, root / controller}
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no control groups on this system
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = (
            root if not controllers else root / controller if controller in controllers.split(",") else None
        )
        if base is not None:
            inner = base / path.lstrip("/")
            folders |= {inner, *(p for p in inner.parents if p.is_relative_to(base))}
    return sorted(folders)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # this version or level of control groups has no such file
        return []


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [device for device in visible.split(",") if device.strip()]
        return 0 if named[:1] == ["-1"] else len(named)
    return sum(bool(re.fullmatch(r"nvidia\d+", entry)) for entry in os.listdir("/dev"))
