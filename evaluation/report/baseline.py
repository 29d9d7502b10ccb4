"""What every metric would be without a model, which is what makes a value large or small."""

import math

import numpy as np

from shoal.cluster.sharding.manifest import Manifest
from shoal.evaluation.deciding.costs import Rule
from shoal.evaluation.metrics import Metric
from shoal.evaluation.report.facts import Part
from shoal.evaluation.tallies import Floats

WORDS = {
    "binary": "always answering with the share of events among the training rows",
    "multiclass": "always answering with the class shares of the training rows",
    "multilabel": "always answering with each label's share among the training rows",
    "regression": "always predicting the mean of the training rows",
}


def know_nothing(manifest: Manifest, n: int) -> Floats | None:
    """Return the scores of a model that knows the training labels only, for n rows; None without counts."""
    target, train = manifest.schema_.target, manifest.splits["train"]
    if target.task == "regression":
        return np.full(n, target.center)
    counts = manifest.resampling.class_counts_before if manifest.resampling else train.class_counts
    if not sum(counts):
        return None
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    return np.full(n, shares[1]) if target.task == "binary" else np.tile(shares, (n, 1))


def baselines(metrics: list[Metric], manifest: Manifest, part: Part, rule: Rule) -> dict[str, float]:
    """Compute each metric of that model on a part, and costs of the best constant decision; undefined ones are left out."""
    scores = know_nothing(manifest, len(part.y))
    if scores is None:
        return {}
    if rule.costs is not None:
        row = np.eye(len(rule.costs.matrix))[rule.constant]
        certain = np.full(len(part.y), row[1]) if part.scores.ndim == 1 else np.tile(row, (len(part.y), 1))
        of_metric = {m.name: certain if m.needs == "cost" else scores for m in metrics}
    else:
        of_metric = {m.name: scores for m in metrics}
    values = {m.name: m.value(part.y, of_metric[m.name], rule, amounts=part.amounts) for m in metrics}
    return {name: value for name, value in values.items() if math.isfinite(value)}
