"""Train, tune, adapt, validate and explain models on a Ray cluster, with numbers you can defend."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.cluster.errors import ShoalError
    from shoal.experiment import Experiment, load_experiment
    from shoal.training.artifact import TrainedModel
    from shoal.training.estimators import TorchClassifier, TorchRegressor
    from shoal.verbs.adapt import adapt
    from shoal.verbs.check import check
    from shoal.verbs.crossval import crossval
    from shoal.verbs.explanations import explain
    from shoal.verbs.fit import train
    from shoal.verbs.judge import evaluate
    from shoal.verbs.predictions import predict
    from shoal.verbs.tune import tune

__all__ = [
    "Experiment",
    "ShoalError",
    "TorchClassifier",
    "TorchRegressor",
    "TrainedModel",
    "adapt",
    "check",
    "crossval",
    "evaluate",
    "explain",
    "load_experiment",
    "predict",
    "train",
    "tune",
]

_HOMES = {
    "Experiment": "experiment",
    "ShoalError": "cluster.errors",
    "TorchClassifier": "training.estimators",
    "TorchRegressor": "training.estimators",
    "TrainedModel": "training.artifact",
    "adapt": "verbs.adapt",
    "check": "verbs.check",
    "crossval": "verbs.crossval",
    "evaluate": "verbs.judge",
    "explain": "verbs.explanations",
    "load_experiment": "experiment",
    "predict": "verbs.predictions",
    "train": "verbs.fit",
    "tune": "verbs.tune",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import shoal` must not wait for torch or ray."""
    if name in _HOMES:
        return getattr(import_module(f"shoal.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Show what can be imported, before it is."""
    return sorted({*globals(), *__all__})
