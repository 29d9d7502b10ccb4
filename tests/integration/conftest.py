"""One Ray for all integration tests: starting it costs seconds."""

from collections.abc import Iterator

import pytest

from shoal.cluster import session as session_module
from shoal.cluster.config import ClusterConfig
from shoal.cluster.resources import Demand, Totals
from shoal.cluster.session import Session, session


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Session]:
    """Four logical CPUs, however many the machine has, so that groups of three workers can start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "local_totals", lambda: Totals(cpus=4.0, memory=4 << 30))
        patch.delenv("RAY_ADDRESS", raising=False)
        with session(ClusterConfig(), Demand()) as started:
            yield started
