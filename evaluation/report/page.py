"""The page: facts in, one HTML file out."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Manifest
from shoal.evaluation.deciding.judging import Judging
from shoal.evaluation.evaluate import Scores
from shoal.evaluation.report import costs, inputs, judgement, overview
from shoal.evaluation.report.facts import ReportFacts, collect
from shoal.evaluation.report.markup import Html, text

REPORT = "report.html"


def render(facts: ReportFacts) -> str:
    """Write a run as one self-contained HTML page: no script, nothing fetched.

    Returns
    -------
    str
        A whole HTML document, the same for the same facts.
    """
    body = "\n".join(
        block
        for block in (
            overview.headline(facts),
            overview.warnings(facts),
            inputs.data(facts),
            judgement.learning(facts),
            judgement.ranking(facts),
            judgement.decisions(facts),
            costs.costs(facts),
            judgement.errors(facts),
            judgement.scores(facts),
            facts.explained,
            judgement.method(facts),
            inputs.provenance(facts),
        )
        if block
    )
    return document(overview.title(facts.target), overview.subtitle(facts.name, facts.provenance), body)


def document(title: str, subtitle: Html, body: str) -> str:
    """Put a title and sections into a whole HTML document, with the style of all reports."""
    style = files("shoal.evaluation.report").joinpath("style.css").read_text()
    return Html(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)} · Shoal report</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
{subtitle}
</header>
<main>
{body}
</main>
<footer>Written by Shoal. This file is complete in itself and fetches nothing.</footer>
</body>
</html>
"""
    )


def write_report(
    run: RunFolder,
    manifest: Manifest,
    metrics: Scores,
    provenance: Mapping[str, Any] | None = None,
    judging: Judging | None = None,
) -> None:
    """Write `report.html` into a run folder.

    Parameters
    ----------
    run
        Has `config.yaml`, `predictions.parquet` and, for a fit, `history.parquet`.
    manifest
        Of the sharded dataset.
    metrics
        What will be, or is, in `metrics.json`.
    provenance
        What will be in `provenance.json`; None reads it where it is written already.
    judging
        How the model decides; None for the usual way.

    Raises
    ------
    StorageError, DataError
        If the run cannot be read, its predictions do not belong to the manifest, or it cannot be written.
    """
    run.write_text(REPORT, render(collect(run, manifest, metrics, provenance, judging)))
