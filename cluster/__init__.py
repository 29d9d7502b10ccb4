"""Where work and data go: errors, config, storage, run folders, resources, the Ray session, sharding."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.cluster.config import ClusterConfig, StorageConfig
    from shoal.cluster.errors import ShoalError
    from shoal.cluster.resources import Demand
    from shoal.cluster.run_folder import RunFolder
    from shoal.cluster.sharding.dataset import ShardedDataset
    from shoal.cluster.sharding.manifest import Manifest
    from shoal.cluster.sharding.service import shard
    from shoal.cluster.storage import Storage

__all__ = [
    "ClusterConfig",
    "Demand",
    "Manifest",
    "RunFolder",
    "ShardedDataset",
    "ShoalError",
    "Storage",
    "StorageConfig",
    "shard",
]

_HOMES = {
    "ClusterConfig": "config",
    "Demand": "resources",
    "Manifest": "sharding.manifest",
    "RunFolder": "run_folder",
    "ShardedDataset": "sharding.dataset",
    "ShoalError": "errors",
    "Storage": "storage",
    "StorageConfig": "config",
    "shard": "sharding.service",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading a config must not import pyarrow or ray."""
    if name in _HOMES:
        return getattr(import_module(f"shoal.cluster.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
