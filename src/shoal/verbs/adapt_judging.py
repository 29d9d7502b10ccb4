"""How adapted models are chosen without target labels, and judged with them at the very end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from shoal.cluster.errors import DataError
from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.listing import find
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural, require
from shoal.cluster.sharding.prepare import Prepared
from shoal.cluster.sharding.source import open_source
from shoal.cluster.storage import Storage
from shoal.evaluation.evaluate import amounts_of, labels_and_scores, part_of
from shoal.evaluation.metrics import METRICS
from shoal.evaluation.over_seeds import METHOD, over_seeds
from shoal.evaluation.unlabelled import ASSUMES, confidences, estimate_accuracy
from shoal.experiment import Experiment
from shoal.training.artifact import TrainedModel
from shoal.training.costs import Amounts
from shoal.transfer.adaptation.reading import Answers, answers
from shoal.transfer.adaptation.selection import LEFT_OUT, mean_ranks, selection_scores
from shoal.transfer.shift.compare import Shift, compare_prepared
from shoal.transfer.shift.domains import LIMIT
from shoal.verbs.decisions import PREDICTIONS, judging_of_run
from shoal.verbs.judge import metrics_of, rows_of
from shoal.verbs.rows import CSV, given_as

MOST_CELLS, FEWEST_ROWS = 2_000_000, 500  # numbers of a domain that its shift is looked for in, and rows
MOST_ROWS = 20_000  # of a domain, by which models are chosen and the shift is looked at
Fits = Mapping[str, Sequence[str]]


def held_out(source: ShardedDataset) -> str:
    """Return the part of the source whose labels no fit learned from, but perhaps the epoch that was kept."""
    return "validation" if source.rows("validation") else "test"


def load(experiment: Experiment, uri: str) -> TrainedModel:
    """Load the model of a fit of this run."""
    return TrainedModel.load(uri, allow_import=True, storage=experiment.cluster.storage)


def require_test_rows(experiment: Experiment, schema: Schema) -> None:
    """Look whether the files of the final test are there and have the columns; no row is read.

    Raises
    ------
    DataError
        If not.
    """
    assert experiment.transfer is not None
    assert experiment.transfer.target_data is not None
    given = experiment.transfer.target_data
    if given.test is None:
        return
    with given_as("transfer.target_data.test"):
        files = find(given.path if given.test == "same" else given.test, experiment.cluster.storage)
    if parquet := [file for file in files if not file.path.lower().endswith(CSV)]:
        names = open_source(parquet).schema.names
        for column in (*(c.name for c in schema.columns), *schema.target.columns):
            require(column, names, "transfer.target_data.test")


def final_test(
    experiment: Experiment, fits: Fits, chosen: str, in_domain: str | None, reporter: Reporter
) -> dict[str, Any]:
    """Judge all kinds of fits on labelled target rows, or on the source's test rows where there are none.

    Raises
    ------
    DataError
        If the labelled rows lack a column or a label.
    """
    from shoal.verbs.predictions import labelled_predictions

    assert experiment.transfer is not None
    assert experiment.transfer.target_data is not None
    given = experiment.transfer.target_data
    paths = given.path if given.test == "same" else given.test
    storage = experiment.cluster.storage
    models: dict[str, list[Any]] = {kind: [] for kind in fits}
    labels, target, rows = None, None, 0
    amounts: Amounts = {}
    for kind, uris in fits.items():
        for uri in uris:
            run, trained = Storage.open(uri, storage), load(experiment, uri)
            judging = judging_of_run(experiment, rows_of(run), trained)
            if paths is not None:
                table = labelled_predictions(trained, paths, storage, reporter, judging.rule.columns)
            else:
                table = run.read_table(PREDICTIONS)
                parts = [part_of(table, split) for split in ("test", "validation")]
                table = next((part for part in parts if part.num_rows), parts[0])
            if not table.num_rows:
                raise DataError(
                    "there are no rows to judge on: give transfer.target_data.test, or data.split.test"
                )
            target, rows = trained.schema.target, table.num_rows
            labels, scores = labels_and_scores(table, target)
            amounts = amounts_of(table, judging.rule.columns)
            models[kind].append((scores, judging.rule))
    assert labels is not None
    assert target is not None
    settings = experiment.evaluation
    found = over_seeds(
        labels,
        models,
        metrics_of(experiment, target.task),
        first=next(iter(fits)),
        confidence=settings.confidence,
        seed=experiment.seed,
        amounts=amounts,
    )
    plain, lead = next(iter(fits)), metrics_of(experiment, target.task)[0]
    if given.oracle:
        reporter.notice("oracle: the method is chosen by the target's labels (transfer.target_data.oracle)")
        known = {kind: found[kind][lead.name]["value"] for kind in fits if kind != plain}
        sign = 1 if lead.greater_is_better else -1
        chosen = max(known, key=lambda kind: -math.inf if known[kind] is None else sign * known[kind])
    result: dict[str, Any] = {
        plain: found[plain],
        "adapted": found[chosen],
        "methods": found,
        "judged_on": "target" if paths is not None else "source",
        "rows": rows,
        "method": METHOD,
        "confidence": settings.confidence,
        "in_domain": None,
        "oracle": given.oracle,
        "chosen": chosen,
    }
    if in_domain is not None:
        result["in_domain"] = Storage.open(in_domain, storage).read_json("metrics.json").get("test")
    result["sentence"] = sentence(result, chosen, lead.name)
    return result


def sentence(found: Mapping[str, Any], chosen: str, metric: str) -> str:
    """Say what adaptation did to the first metric."""
    name = METRICS[metric].name
    if found["judged_on"] == "source":
        return (
            f"no target labels were given (transfer.target_data.test), so nothing is known of the target: the scores are of "
            f"{plural(found['rows'], 'source row')}, and say only what adaptation cost there"
        )
    entry, plain = found["adapted"][metric], found["source_only"][metric]
    if entry["value"] is None or plain["value"] is None:
        return f"{name} is undefined on the target's labelled rows"
    difference = entry["difference"]
    better = difference["value"] > 0 if METRICS[metric].greater_is_better else difference["value"] < 0
    clear = difference["low"] > 0 or difference["high"] < 0
    says = "improved" if better else "worsened"
    on = plural(found["rows"], "target row")
    values = f"{name} on {on}: {plain['value']:.4f} source only, {entry['value']:.4f} with {chosen}"
    level = f"{100 * found['confidence']:g} % interval of the difference {difference['low']:+.4f} to {difference['high']:+.4f}"
    if not clear:
        return f"adaptation made no difference that can be told from chance; {values} ({level})"
    return f"adaptation {says} the target; {values} ({level})"


def chosen(
    experiment: Experiment,
    source: ShardedDataset,
    target: ShardedDataset,
    fits: Fits,
    plain: str,
    judged_without: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score every kind of fit without target labels; the adapted one that ranks first on average is chosen.

    Parameters
    ----------
    judged_without
        What `leave_domain_out.left_out` gave, where there are several source domains.

    Returns
    -------
    dict
        ``scores`` of each kind, means over seeds; ``ranks``, the mean over the scores, of all kinds; ``chosen``; ``by``; the
        ``estimates`` of the plain and the chosen one; a ``sentence``.
    """
    found: dict[str, dict[str, float]] = {}
    for kind, uris in fits.items():
        by_seed = []
        for uri in uris:
            by_seed.append(scores_without_labels(experiment, source, target, uri))
        found[kind] = {name: float(np.mean([one[name] for one in by_seed])) for name in by_seed[0]}
        if judged_without is not None:
            mean = judged_without["means"][kind]
            found[kind][LEFT_OUT] = math.nan if mean is None else mean
    kinds = list(fits)
    ranks = dict(zip(kinds, mean_ranks({n: [found[k][n] for k in kinds] for n in found[plain]}), strict=True))
    best = min((k for k in kinds if k != plain), key=lambda k: (ranks[k], kinds.index(k)))
    said = f"{best} was chosen, without target labels" if len(kinds) > 2 else f"{best} was the only method"
    if ranks[plain] < ranks[best]:
        said += f"; {plain.replace('_', ' ')} ranks before it, so do not count on its being better"
    return {
        "scores": {kind: {name: _finite(v) for name, v in of.items()} for kind, of in found.items()},
        "ranks": ranks,
        "chosen": best,
        "by": f"mean rank over {plural(len(found[plain]), 'score')}",
        "estimates": {kind: estimates(experiment, source, target, fits[kind][0]) for kind in (plain, best)},
        "left_out": judged_without,
        "sentence": said,
    }


def scores_without_labels(
    experiment: Experiment, source: ShardedDataset, target: ShardedDataset, uri: str
) -> dict[str, float]:
    """Return the scores of the model of a run that need no label of the target, the larger, the better."""
    trained = load(experiment, uri)
    known = answers(trained, source, held_out(source), MOST_ROWS)
    new = answers(trained, target, "train", MOST_ROWS)
    classes = trained.task in ("binary", "multiclass")
    return selection_scores(
        new.probabilities if classes else None,
        new.features.astype(np.float64),
        _losses(known, trained.task),
        known.features.astype(np.float64),
        seed=experiment.seed,
    )


def shifted(
    experiment: Experiment, source: ShardedDataset, target: ShardedDataset, plain: str
) -> Shift | None:
    """Look at how the domains differ, before anything is adapted; ``plain`` is a run of the source's rows.

    None where there are texts or images alone, which are not compared.
    """
    from shoal.verbs.adapt_fits import estimated_shift

    width = source.schema.numeric_width + len(source.schema.categorical)
    if not width:
        return None
    labels = None
    if source.schema.target.task in ("binary", "multiclass"):
        labels = estimated_shift(experiment, source, target, plain, True)
    return compare_prepared(
        _some_rows(source),
        _some_rows(target),
        source.schema,
        labels,
        limit=max(FEWEST_ROWS, min(LIMIT, MOST_CELLS // width)),
        confidence=experiment.evaluation.confidence,
        seed=experiment.seed,
    )


def _some_rows(dataset: ShardedDataset) -> Prepared:
    """Return training rows, the first ones of every shard: as good as drawn at random, since shards are."""
    sizes = dataset.shard_rows("train")
    share = min(1.0, LIMIT / max(1, sum(sizes)))
    shards = [(dataset.shard("train", v), math.ceil(share * size)) for v, size in enumerate(sizes)]
    return Prepared(
        np.concatenate([s.numeric[:n] for s, n in shards]),
        np.concatenate([s.categorical[:n, : len(dataset.schema.categorical)] for s, n in shards]),
    )


def summary(shift: Shift | None) -> dict[str, Any]:
    """Return what `metrics.json` says of a shift."""
    if shift is None:
        return {
            "sentences": [
                "texts and images are not compared: nothing is said of the shift between the domains"
            ]
        }
    labels = shift.labels
    return {
        "sentences": list(shift.verdict.sentences),
        "kind": shift.verdict.kind,
        "alignment_may_hurt": shift.verdict.alignment_may_hurt,
        "domain_auc": {
            kind: {"value": _finite(one.auc), "low": _finite(one.low), "high": _finite(one.high)}
            for kind, one in shift.separations.items()
        },
        "columns": {
            c.name: {"effect": _finite(c.effect), "p_value": _finite(c.p_value)} for c in shift.columns
        },
        "labels": None
        if labels is None or labels.reason
        else {
            name: getattr(labels, name).tolist() for name in ("source", "target", "low", "high", "weights")
        },
    }


def estimates(
    experiment: Experiment, source: ShardedDataset, target: ShardedDataset, uri: str
) -> dict[str, Any] | None:
    """Estimate, without labels, how many target rows a model decides rightly; None for other tasks than classes."""
    trained = load(experiment, uri)
    if trained.task not in ("binary", "multiclass") or trained.cost_columns:
        return None
    known, new = (
        answers(trained, data, split, MOST_ROWS)
        for data, split in ((source, held_out(source)), (target, "train"))
    )
    sure = []
    right = np.zeros(0, bool)
    for one in (known, new):
        decided = trained.decision.classes(one.scores)
        sure.append(confidences(one.scores, decided))
        if one is known:
            right = decided == one.labels
    settings = experiment.evaluation
    found = estimate_accuracy(
        right, *sure, confidence=settings.confidence, replicates=settings.replicates, seed=experiment.seed
    )
    return {**asdict(found), "assumes": ASSUMES}


def _losses(one: Answers, task: str) -> np.ndarray:
    """Return the loss of each row: 1 for a wrong class (networks are too sure for cross-entropy to rank them), squared errors."""
    if task == "regression":
        return np.asarray(np.square(one.scores - one.labels))
    if task == "multilabel":
        return np.asarray(((one.scores >= 0.5) != one.labels).mean(1))
    return np.asarray(one.probabilities.argmax(1) != one.labels, np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
