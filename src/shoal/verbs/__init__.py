"""What each verb does, from an `Experiment`; the command line and Python use the same functions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.verbs.check import check
    from shoal.verbs.dataset import shard
    from shoal.verbs.digits import demo
    from shoal.verbs.explanations import explain
    from shoal.verbs.first_file import init
    from shoal.verbs.fit import train
    from shoal.verbs.judge import evaluate, report
    from shoal.verbs.predictions import predict

# No module is called like its verb: importing it would put the module where the function belongs.
_HOME = {
    "check": "look",
    "demo": "digits",
    "evaluate": "judge",
    "explain": "explanations",
    "init": "first_file",
    "predict": "predictions",
    "report": "judge",
    "shard": "dataset",
    "train": "fit",
}
__all__ = ["check", "demo", "evaluate", "explain", "init", "predict", "report", "shard", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
