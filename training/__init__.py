"""One fit: model, input encoder, plan, loop, optimisers, strategies, placements, and the trained model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.training.artifact import TrainedModel
    from shoal.training.estimators import TorchClassifier, TorchRegressor
    from shoal.training.trainer import fit
    from shoal.training.worker import FitJob

__all__ = ["FitJob", "TorchClassifier", "TorchRegressor", "TrainedModel", "fit"]

_HOMES = {
    "FitJob": "worker",
    "TorchClassifier": "estimators",
    "TorchRegressor": "estimators",
    "TrainedModel": "artifact",
    "fit": "trainer",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading a config must not import torch."""
    if name in _HOMES:
        return getattr(import_module(f"shoal.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
