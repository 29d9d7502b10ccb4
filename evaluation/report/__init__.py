"""The report: one self-contained HTML file for a run."""

from shoal.evaluation.report.facts import ReportFacts, collect
from shoal.evaluation.report.page import REPORT, render, write_report

__all__ = ["REPORT", "ReportFacts", "collect", "render", "write_report"]
