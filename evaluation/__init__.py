"""Judging a fit: metrics, intervals, calibration, curves and the report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.evaluation.config import EvaluationConfig
    from shoal.evaluation.metrics import METRICS, Metric, resolve_scoring
    from shoal.evaluation.report.page import write_report

__all__ = ["METRICS", "EvaluationConfig", "Metric", "resolve_scoring", "write_report"]

_HOMES = {
    "EvaluationConfig": "config",
    "METRICS": "metrics",
    "Metric": "metrics",
    "resolve_scoring": "metrics",
    "write_report": "report.page",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading a config must not import scikit-learn."""
    if name in _HOMES:
        return getattr(import_module(f"shoal.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
