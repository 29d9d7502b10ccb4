"""Leave-one-domain-out: each of several source domains takes the target's place, where its labels can judge the methods."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.storage import Storage
from shoal.evaluation.crossval.config import ColumnConfig
from shoal.evaluation.crossval.folds import OneFold
from shoal.evaluation.metrics import Metric
from shoal.experiment import Experiment
from shoal.verbs.adapt_fits import SOURCE_ONLY, Work, fit_adapted, fit_kind
from shoal.verbs.dataset import ShardResult, shard
from shoal.verbs.judge import metrics_of

FOLDER = "left_out"
FOREWORD = "leave-one-domain-out: "


def leaves_out(experiment: Experiment, schema: Schema, validation: int) -> bool:
    """Whether source domains are left out in turn; ``validation`` is how many such rows there are.

    Raises
    ------
    ConfigError
        If that is asked for, and there are no several domains; or if there are no validation rows.
    """
    assert experiment.transfer is not None
    asked = experiment.transfer.leave_one_domain_out
    if asked is True and len(schema.domains) < 2:
        raise ConfigError(
            "transfer.leave_one_domain_out needs several source domains: name the column that tells them with data.domain"
            if experiment.data.domain is None
            else f"transfer.leave_one_domain_out: all rows have one value in {experiment.data.domain!r}"
        )
    wanted = len(schema.domains) > 1 and (
        asked is True or (asked == "auto" and bool(experiment.transfer.candidates))
    )
    if wanted and not validation:
        raise ConfigError(
            f"{FOREWORD}it needs validation rows of the other domains, since those that judge are none: set "
            "data.split.validation, or transfer.leave_one_domain_out: false"
        )
    return wanted


def left_out(work: Work, methods: Mapping[str, Config], name: str) -> dict[str, Any]:
    """Fit all kinds once with each source domain in the target's place.

    Its labels are read by no fit, and judge them at the end. Test rows of the source take no part.

    Returns
    -------
    dict
        ``domains``: what each left out domain is called; ``metric``, by which they are judged; ``scores`` of each kind, one a
        domain; ``means`` of each kind, the larger, the better.

    Raises
    ------
    ShoalError
        As a fit.
    """
    experiment = work.experiment
    data = experiment.data
    assert data.domain is not None
    metric = metrics_of(experiment, work.source.manifest.schema_.target.task)[0]
    hidden = data.domain in data.private
    kinds = (SOURCE_ONLY, *methods)
    scores: dict[str, list[float | None]] = {kind: [] for kind in kinds}
    domains = []
    for number in range(len(work.source.manifest.schema_.domains)):
        try:
            rows = shard(
                experiment,
                name=f"{name}-without-{number + 1}",
                reporter=work.reporter,
                verify=False,
                resplit=OneFold(ColumnConfig(name=data.domain), number),
            )
        except DataError as error:
            raise DataError(f"{FOREWORD}{error}; or set transfer.leave_one_domain_out: false") from error
        called = f"domain {number + 1}" if hidden else _domain_of(work, rows)
        domains.append(called)
        own = replace(
            work,
            source=rows,
            target=rows,
            part="test",
            shape=work.shape.within(rows.manifest.n_shards),
            folder=f"{FOLDER}/{number + 1}",
            label=f"{called} as target: ",
        )
        plain = fit_kind(own, SOURCE_ONLY, 0, lambda job: job)
        scores[SOURCE_ONLY].append(_judged(own, plain, metric))
        for kind, method in methods.items():
            scores[kind].append(_judged(own, fit_adapted(own, kind, method, 0, plain), metric))
    sign = 1.0 if metric.greater_is_better else -1.0
    means = {
        kind: None if None in values else sign * float(np.mean(np.array(values, np.float64)))
        for kind, values in scores.items()
    }
    return {"domains": domains, "metric": metric.name, "scores": scores, "means": means}


def _domain_of(work: Work, rows: ShardResult) -> str:
    """Return the name of the domain whose rows are the test rows."""
    dataset = work.open(rows)
    numbers = np.concatenate([dataset.shard("test", v).cost[:, -1] for v in range(dataset.n_shards)])
    (number,) = np.unique(numbers)
    return rows.manifest.schema_.domains[int(number)]


def _judged(work: Work, uri: str, metric: Metric) -> float | None:
    """Return what a fit scores on the domain that was left out."""
    found = Storage.open(uri, work.experiment.cluster.storage).read_json("metrics.json")
    value: float | None = found["test"][metric.name]["value"]
    return value
