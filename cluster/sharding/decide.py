"""Everything that pass 1 settles: target, features, parts, and the plan of where each row goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.assign import Assignment, Resplit, Rows, assign
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.costs import costs_of
from shoal.cluster.sharding.domain import domains_of
from shoal.cluster.sharding.features import Features, infer_features, known_features
from shoal.cluster.sharding.hashing import U64, seeded
from shoal.cluster.sharding.manifest import SPLITS, Schema, Target
from shoal.cluster.sharding.names import listed, plural
from shoal.cluster.sharding.plan import Plan, count_shards, make_plan, row_ids
from shoal.cluster.sharding.scan import Scan
from shoal.cluster.sharding.targets import code_labels, infer_target, no_labels


@dataclass
class Decided:
    """What pass 1 settles.

    Parameters
    ----------
    target, features
        Without statistics yet, unless they are those of an earlier fit.
    plan
        Where each row goes.
    labels
        In final order: int64 ``[n]``, float32 ``[n, K]`` or float64 ``[n]``.
    costs
        The cost columns in final order, float64 ``[n, C]``; finite once `costs.refuse_costs` has looked. With domains, the last
        one is the number of a row's domain.
    split_kind, left_out, notices
        For the manifest.
    known
        The schema of an earlier fit, from which the statistics are.
    domains
        The names of the source's domains, where `data.domain` says them.
    """

    target: Target
    features: Features
    plan: Plan
    labels: npt.NDArray[Any]
    costs: npt.NDArray[np.float64]
    split_kind: str
    left_out: dict[str, int]
    notices: list[str]
    known: Schema | None = None
    domains: tuple[str, ...] = ()


def decide(
    scan: Scan,
    schema: pa.Schema,
    data: DataConfig,
    seed: int,
    chosen: list[str],
    costs: Sequence[str] = (),
    resplit: Resplit | None = None,
    known: Schema | None = None,
) -> Decided:
    """Settle everything that does not need the rows themselves.

    Parameters
    ----------
    scan
        Of all rows.
    schema
        Of the input.
    data, seed
        As given.
    chosen
        Names of the feature columns.
    costs
        Names of the cost columns.
    resplit
        Gives rows the parts of a fold.
    known
        The schema of an earlier fit, whose columns and statistics are those of this one; without a target in the section, that of
        the rows too, which have no labels then and all train.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    """
    private = bool(set(data.target) & set(data.private))
    notices: list[str] = []
    if known is not None and not data.target:
        target = known.target
    else:
        target, notices = infer_target(scan.roles, data)
    features = (
        infer_features(schema, chosen, scan.facts, data, costs)
        if known is None
        else known_features(known, chosen, schema.names, unlabelled=not data.target)
    )
    amounts, domains = costs_of(scan.roles, costs), tuple[str, ...]()
    if data.domain is not None:
        domains, numbers = domains_of(scan.roles, data)
        amounts = np.column_stack([amounts, numbers])
    if data.target:
        labels, missing = code_labels(scan.roles, target, private=private)
    else:
        labels, missing = no_labels(target, len(scan.keys)), np.zeros(len(scan.keys), bool)
    left_out = {}
    if missing.any():
        left_out["without a label"] = int(missing.sum())
        notices.append(f"left out {plural(int(missing.sum()), 'row')} without a label")
    order, ids = draw(scan.keys, ~missing, seed)
    rows = Rows(
        labels[order],
        scan.roles.take(pa.array(order)),
        scan.keys[order],
        {name: values[order] for name, values in scan.hashes.items()},
    )
    rows_read = len(scan.keys)
    del scan  # long arrays; the caller keeps none of them
    result = (
        assign(rows, data, target, seed, resplit)
        if data.target
        else Assignment(np.zeros(len(rows), np.int8), "all rows, without labels")
    )
    n_train = int((result.parts == 0).sum())
    n_shards = count_shards(n_train, data.shards, 4 * sum(c.block for c in features.columns))
    if isinstance(data.shards, int) and n_shards < data.shards:
        raise DataError(
            f"data.shards is {data.shards}, more than the {plural(n_train, 'training row')}; use fewer"
        )
    notices += result.notices
    notices += _say_absent(rows.labels, target, private, result) if data.target else []
    notices += _say_twins(rows, data, result.parts)
    strata = _strata(rows.labels, target)
    del rows
    plan = make_plan(order, ids, result.parts, strata, n_shards, rows_read)
    del order, ids, strata
    left_out |= result.left_out
    arranged = plan.arrange(labels)
    amounts = plan.arrange(amounts)
    return Decided(target, features, plan, arranged, amounts, result.kind, left_out, notices, known, domains)


def draw(
    keys: U64, labelled: npt.NDArray[np.bool_], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Put the labelled rows into key order: a random order that depends on their content and the seed only.

    Parameters
    ----------
    keys
        Content key of each row in the order of reading, ``[rows read]``.
    labelled
        Which rows take part, ``[rows read]``.
    seed
        Another seed, another order.

    Returns
    -------
    Index in the order of reading, and id (`row_ids`), of each row in key order: int64 ``[n]`` each.
    """
    order = np.flatnonzero(labelled)
    order = order[np.argsort(keys[order])]
    ids = row_ids(keys[order])
    # By id and not by key: copies of a row share the key, and would all fall into one part.
    drawn = np.argsort(seeded(ids.view(np.uint64), seed))
    return order[drawn], ids[drawn]


def _say_absent(labels: npt.NDArray[Any], target: Target, private: bool, found: Assignment) -> list[str]:
    """Say which classes have no row in a part that has others; a split by class has said so itself."""
    if target.task not in ("binary", "multiclass") or found.kind.startswith("stratified"):
        return []
    said = []
    for part, name in enumerate(SPLITS):
        counts = np.bincount(labels[found.parts == part], minlength=len(target.classes))
        absent = [str(target.classes[i]) for i in np.flatnonzero(counts == 0)]
        if counts.sum() and absent:
            which = (
                plural(len(absent), "class")
                if private
                else f"{'class' if len(absent) == 1 else 'classes'} {listed(absent)}"
            )
            said.append(
                f"no {name} row is of {which}: scores of {name} rows say nothing of it"
                if part
                else f"no training row is of {which}: no model can learn it"
            )
    return said


def _say_twins(rows: Rows, data: DataConfig, parts: npt.NDArray[np.int8]) -> list[str]:
    """Say how many test rows are copies of a training row: their score is partly memory."""
    contents = rows.keys
    # A key is a sum over the columns, so the columns that no model sees can be taken out of it.
    for name in {data.id, data.split.column} - {None}:
        contents = contents - rows.hashes[str(name)]
    tests = parts == 2
    # Sorted and searched: np.isin's hash table takes five times the memory.
    trained, tested = np.sort(contents[parts == 0]), contents[tests]
    places = np.minimum(np.searchsorted(trained, tested), len(trained) - 1)
    twins = int((trained[places] == tested).sum())
    if twins == 0:
        return []
    return [
        f"{plural(twins, 'test row')} of {int(tests.sum()):,} equal a training row in every column, target included; "
        "data.split: {hash: {}} keeps equal rows together"
    ]


def _strata(labels: npt.NDArray[Any], target: Target) -> npt.NDArray[np.int64]:
    """Return what the rows of a part are dealt by: class, set of labels, or nothing."""
    if target.task == "regression":
        return np.zeros(len(labels), np.int64)
    if target.task == "multilabel":
        return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return np.asarray(labels, np.int64)
