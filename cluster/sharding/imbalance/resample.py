"""`data.imbalance` carried out on the training rows of one dataset."""

import numpy as np
import numpy.typing as npt

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.machine import local_totals
from shoal.cluster.sharding.imbalance import under
from shoal.cluster.sharding.imbalance.config import (
    ADASYNConfig,
    ClusterCentroidsConfig,
    EditedNearestNeighboursConfig,
    NearMissConfig,
    RandomOverSamplerConfig,
    RandomUnderSamplerConfig,
    SMOTEConfig,
    SMOTEENNConfig,
    SMOTENCConfig,
    SMOTETomekConfig,
    TomekLinksConfig,
    named,
)
from shoal.cluster.sharding.imbalance.imported import imported, load
from shoal.cluster.sharding.imbalance.neighbours import Neighbourhood, points
from shoal.cluster.sharding.imbalance.rows import (
    Given,
    Index,
    Made,
    Resampled,
    TrainingRows,
    nominal_parts,
    nothing_made,
    stack,
    take,
)
from shoal.cluster.sharding.imbalance.smote import over_sample
from shoal.cluster.sharding.imbalance.strategy import Kind, targets
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import listed
from shoal.cluster.sharding.prepare import Prepared

_OVER = (RandomOverSamplerConfig, SMOTEConfig, ADASYNConfig)
_CLEAN = (TomekLinksConfig, EditedNearestNeighboursConfig)
_MAKERS = (SMOTEConfig, ADASYNConfig)
# Distances between all rows, or all rows in one matrix; the others hold one class, or nothing but labels.
_GATHERS_ALL = (
    *_CLEAN, NearMissConfig, ADASYNConfig, SMOTEENNConfig, SMOTETomekConfig, ClusterCentroidsConfig, Imported,
)  # fmt: skip


def wanted(config: Config, counts: Index, schema: Schema) -> dict[int, int]:
    """Refuse what cannot be resampled, and say what will be done to each class; see `strategy.targets`.

    Parameters
    ----------
    config
        `data.imbalance`.
    counts
        Training rows of each class, int64 ``[classes]``.
    schema
        Target and columns.

    Raises
    ------
    ConfigError
        If the method does not fit the task, the columns or the classes, or all rows are needed at once and do not fit into
        memory.
    """
    name, target = named(config), schema.target
    if target.task not in ("binary", "multiclass"):
        raise ConfigError(
            f"data.imbalance: {name} resamples classes, and the task is {target.task}: leave data.imbalance out"
        )
    if (counts > 0).sum() < 2:
        raise ConfigError("data.imbalance: the training rows are of one class; check data.split")
    if schema.media and not isinstance(config, RandomOverSamplerConfig | RandomUnderSamplerConfig):
        column = schema.media[0]
        raise ConfigError(
            f"data.imbalance: {name} looks at the numbers of rows, and column {column.name!r} is {column.of_kind}: use "
            "random_over_sampler or random_under_sampler, or leave the column out with data.drop"
        )
    nominal = [column.name for column in schema.columns if column.type in ("categorical", "boolean")]
    categories = [column.name for column in schema.categorical]
    some = f"{len(categories)} of the {len(schema.columns)} columns are categories ({listed(categories, 4)})"
    if type(config) is SMOTEConfig and categories:
        raise ConfigError(
            f"data.imbalance: smote makes rows between numbers, and {some}: use smotenc, or name other columns in data.features"
        )
    if isinstance(config, SMOTENCConfig) and not nominal:
        raise ConfigError(
            "data.imbalance: smotenc is for mixed columns, and all of these are numbers: use smote"
        )
    if isinstance(config, _MAKERS) and len(nominal) == len(schema.columns):
        raise ConfigError(
            f"data.imbalance: {name} makes rows between numbers, and all columns are categories: use random_over_sampler"
        )
    if isinstance(config, ClusterCentroidsConfig | Imported) and categories:
        raise ConfigError(
            f"data.imbalance: {name} sees numbers alone, and {some}: use near_miss or random_under_sampler, or name other "
            "columns in data.features"
        )
    if isinstance(config, _GATHERS_ALL):
        _require_memory(name, int(counts.sum()), schema)
    if isinstance(config, Imported):
        load(config, target)
        return {}
    kind: Kind = "over-sampling" if isinstance(config, _OVER) else "under-sampling"
    if isinstance(config, _CLEAN):
        kind = "clean-sampling"
    private = bool(set(schema.private) & set(target.columns))
    strategy: str | float | dict[str, int] = config.model_dump()["sampling_strategy"]
    asked = targets(f"data.imbalance.{name}.sampling_strategy", strategy, kind, counts, target, private)
    if kind == "over-sampling":
        _require_room(name, sum(asked.values()))
    return asked


def foreseen(config: Config, counts: Index, asked: dict[int, int]) -> Index | None:
    """Return the training rows of each class after resampling, where they are known before it; int64 ``[classes]``.

    ``asked`` is what `wanted` returns. Cleaning, ADASYN's rounding and samplers of others show only when they are done.
    """
    after = counts.copy()
    for code, n in asked.items():
        after[code] = after[code] + n if isinstance(config, _OVER) else n
    known = isinstance(config, RandomOverSamplerConfig | RandomUnderSamplerConfig) or (
        isinstance(config, SMOTEConfig) and not isinstance(config, SMOTEENNConfig | SMOTETomekConfig)
    )
    return after if known or (isinstance(config, NearMissConfig) and config.version < 3) else None


def resample(config: Config, rows: TrainingRows, seed: int) -> Resampled:
    """Resample the training rows.

    Parameters
    ----------
    config
        `data.imbalance`.
    rows
        In dealing order.
    seed
        Root of every draw.

    Raises
    ------
    ConfigError
        As `wanted`.
    DataError
        If a class has too few rows.
    """
    asked = wanted(config, rows.counts, rows.schema)
    found = _resample(config, rows, asked, seed)
    for code, (before, after) in enumerate(zip(rows.counts, found.counts(rows), strict=True)):
        if before and not after:
            raise DataError(
                f"data.imbalance: {named(config)} leaves no training row of {rows.name(code)}; leave the class out of "
                "sampling_strategy, or use another method"
            )
    return found


def _resample(config: Config, rows: TrainingRows, asked: dict[int, int], seed: int) -> Resampled:
    everything = np.arange(len(rows))
    none = np.empty(0, np.int64)
    if isinstance(config, RandomOverSamplerConfig):
        return Resampled(under.copied(rows, asked, seed), nothing_made(rows), none)
    if isinstance(config, RandomUnderSamplerConfig):
        kept = under.at_random(rows, asked, seed, copies=config.replacement)
        return Resampled(kept, nothing_made(rows), none)
    if isinstance(config, NearMissConfig):
        return Resampled(under.near_miss(rows, config, asked), nothing_made(rows), none)
    if isinstance(config, _CLEAN):
        notices: list[str] = []
        stay = _clean(config, rows.rows, rows.schema, rows.labels, set(asked), seed, notices)
        return Resampled(everything[stay], nothing_made(rows), none, tuple(notices))
    if isinstance(config, ClusterCentroidsConfig):
        return Resampled(*under.cluster_centroids(rows, config, asked, seed))
    if isinstance(config, SMOTEConfig | ADASYNConfig):
        made, labels, said = over_sample(rows, config, asked, seed)
        if isinstance(config, SMOTEENNConfig | SMOTETomekConfig):
            return _cleaned(config, rows, made, labels, said, seed)
        return Resampled(everything, made, labels, tuple(said))
    if isinstance(config, Imported):
        return imported(config, rows, seed)
    raise AssertionError(config)


def _clean(
    config: Config,
    rows: Prepared,
    schema: Schema,
    labels: Index,
    classes: set[int],
    seed: int,
    notices: list[str],
) -> npt.NDArray[np.bool_]:
    """Return which of some rows stay, bool ``[n]``."""
    assert isinstance(config, _CLEAN)
    lie = points(rows, nominal_parts(schema))
    among = Neighbourhood(lie, "all classes", config.exact_up_to, seed, notices, mixed=True)
    if isinstance(config, TomekLinksConfig):
        return under.without_tomek_links(among, labels, classes)
    return under.without_disagreeing(among, labels, classes, config.n_neighbors, config.kind_sel)


def _cleaned(
    config: SMOTEENNConfig | SMOTETomekConfig,
    rows: TrainingRows,
    made: Made,
    labels: Index,
    notices: list[str],
    seed: int,
) -> Resampled:
    """Clean what SMOTE has made together with what was there, in every class."""
    new = made.rows(np.arange(len(made)))
    both = stack([take(rows.rows, slice(None)), new])
    step: Config
    if isinstance(config, SMOTEENNConfig):
        step = EditedNearestNeighboursConfig(
            n_neighbors=config.n_neighbors, kind_sel=config.kind_sel, exact_up_to=config.exact_up_to
        )
    else:
        step = TomekLinksConfig(exact_up_to=config.exact_up_to)
    classes = set(range(len(rows.counts)))
    stay = _clean(step, both, rows.schema, np.concatenate([rows.labels, labels]), classes, seed, notices)
    old, young = np.flatnonzero(stay[: len(rows)]), np.flatnonzero(stay[len(rows) :])
    return Resampled(old, Given(take(new, young), made.parents[young]), labels[young], tuple(notices))


def _require_room(name: str, made: int) -> None:
    # Which row, which neighbour, how far, the class, and the order in which all are dealt.
    need, there = made * 64, local_totals().memory
    if there is not None and need > there / 2:
        raise ConfigError(
            f"data.imbalance: {name} would make {made:,} rows, whose plan alone takes {need / 2**30:,.1f} GiB, more than half of "
            f"the {there / 2**30:.1f} GiB of this machine; ask for fewer in sampling_strategy"
        )


def _require_memory(name: str, rows: int, schema: Schema) -> None:
    width = schema.numeric_width + 2 * len(schema.categorical)
    # The matrix, what the search makes of it in float64, and neighbours.
    need, there = rows * (width * 12 + 64), local_totals().memory
    if there is not None and need > there / 2:
        raise ConfigError(
            f"data.imbalance: {name} needs all {rows:,} training rows at once, about "
            f"{need / 2**30:.1f} GiB, more than half of the {there / 2**30:.1f} GiB of this machine; "
            "random_under_sampler and smote do not, or use fewer rows"
        )
