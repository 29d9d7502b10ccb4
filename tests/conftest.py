"""Tests share the machine: one thread a process, and none that spins while it waits. Set before torch is loaded."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import settings

settings.register_profile("shoal", settings(deadline=None))  # a busy machine is no failure
settings.load_profile("shoal")
