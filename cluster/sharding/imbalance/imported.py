"""Any sampler of imbalanced-learn, or one like it, by import: on the prepared numbers of all training rows."""

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.imbalance.neighbours import points
from shoal.cluster.sharding.imbalance.rows import Given, Index, Resampled, TrainingRows, nothing_made
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import listed
from shoal.cluster.sharding.prepare import Prepared

_STATE = 14  # first word of the spawn key: what the draw is for


def load(config: Imported, target: Target) -> Any:
    """Return the sampler.

    Parameters
    ----------
    config
        Where it is, and its arguments; a ``sampling_strategy`` may name classes.
    target
        For the class names: the sampler knows them by their place.

    Raises
    ------
    ConfigError
        If it is not there, takes other arguments, or does not resample.
    """
    factory = config.load()
    arguments = dict(config.kwargs)
    strategy, names = arguments.get("sampling_strategy"), [str(name) for name in target.classes]
    if isinstance(strategy, dict):
        arguments["sampling_strategy"] = {
            names.index(str(name)) if str(name) in names else name: n for name, n in strategy.items()
        }
    try:
        sampler = factory(**arguments)
    except TypeError as error:
        known = listed(inspect.signature(factory).parameters, 20)
        raise ConfigError(f"data.imbalance: {config.path}: {error}; it takes {known}") from error
    if not hasattr(sampler, "fit_resample"):
        raise ConfigError(
            f"data.imbalance: {config.path} has no fit_resample; name a sampler of imbalanced-learn, such as "
            "imblearn.under_sampling:OneSidedSelection"
        )
    return sampler


def imported(config: Imported, rows: TrainingRows, seed: int) -> Resampled:
    """Resample with it. A row that comes back with its numbers and its class is the row that went in.

    Raises
    ------
    DataError
        If it refuses the rows, has too little memory for them, or gives back what are no rows of these columns and classes.
    """
    sampler = load(config, rows.schema.target)
    if "random_state" in getattr(sampler, "get_params", dict)() and "random_state" not in config.kwargs:
        state = np.random.SeedSequence(seed, spawn_key=(_STATE,)).generate_state(1)[0]
        sampler.set_params(random_state=int(state))
    numbers, before = points(rows.rows, []), rows.labels
    try:
        found, labels = sampler.fit_resample(numbers, before)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"data.imbalance: {config.path} refused the training rows: {error}") from error
    except MemoryError as error:
        # What a sampler of others needs shows only when it asks for it; NumPy says how much that was.
        raise DataError(
            f"data.imbalance: {config.path} needs more memory for the {len(before):,} training rows than there is"
            f"{f' ({error})' if str(error) else ''}; random_under_sampler and smote do not, or use fewer rows"
        ) from error
    after, labels = np.asarray(found), np.asarray(labels)
    _require_rows(config, after, labels, rows)
    index = getattr(sampler, "sample_indices_", None)
    if index is not None:
        return Resampled(_selected(config, np.asarray(index), labels, before), nothing_made(rows), labels[:0])
    labels = labels.astype(np.int64)
    after = np.ascontiguousarray(after, np.float32)
    kept, new = _known_again(numbers, before, after, labels)
    order = new[np.argsort(labels[new], kind="stable")]
    made = Prepared(after[order], np.empty((len(order), 0), np.int32))
    return Resampled(kept, Given(made, np.full((len(order), 2), -1, np.int64)), labels[order])


def _require_rows(
    config: Imported, found: npt.NDArray[Any], labels: npt.NDArray[Any], rows: TrainingRows
) -> None:
    width = rows.rows.numeric.shape[1]
    if found.ndim != 2 or found.shape[1] != width or labels.shape != found.shape[:1]:
        raise DataError(
            f"data.imbalance: {config.path} gave rows of shape {list(found.shape)} and labels of shape {list(labels.shape)}; "
            f"they must be [n, {width}] and [n]"
        )
    if found.dtype.kind not in "fiub" or not np.isfinite(found).all():
        raise DataError(f"data.imbalance: {config.path} gave values that are no finite numbers")
    strange = sorted(set(np.unique(labels).tolist()) - set(np.flatnonzero(rows.counts).tolist()))
    if strange:
        raise DataError(
            f"data.imbalance: {config.path} gave {listed(strange, 5)} as labels; they must be those it was given, 0 to "
            f"{len(rows.counts) - 1}"
        )


def _selected(config: Imported, index: npt.NDArray[Any], labels: npt.NDArray[Any], before: Index) -> Index:
    inside = index.dtype.kind in "iu" and ((index >= 0) & (index < len(before))).all()
    if not inside or index.shape != labels.shape or (before[index] != labels).any():
        raise DataError(
            f"data.imbalance: {config.path} has sample_indices_ that are not those of the rows it gave back"
        )
    return np.sort(index.astype(np.int64))


def _known_again(
    before: npt.NDArray[np.float32], labels: Index, after: npt.NDArray[np.float32], new_labels: Index
) -> tuple[Index, Index]:
    """Return which rows of before are among those after, and which of those after are new.

    Rows are known by their numbers and class. The second of equal rows after is the second of equal rows before.
    """
    old, young = _keys(before, labels), _keys(after, new_labels)
    order, place = np.argsort(old, kind="stable"), np.argsort(young, kind="stable")
    nth = np.arange(len(young)) - np.searchsorted(young[place], young[place])
    at = np.searchsorted(old[order], young[place]) + nth
    known = (at < len(old)) & (old[order][np.minimum(at, len(old) - 1)] == young[place])
    return np.sort(order[at[known]]), np.sort(place[~known])


def _keys(numbers: npt.NDArray[np.float32], labels: Index) -> npt.NDArray[Any]:
    both = np.concatenate(
        [np.ascontiguousarray(numbers).view(np.int32), labels[:, None].astype(np.int32)], axis=1
    )
    return np.ascontiguousarray(both).view(np.dtype((np.void, both.itemsize * both.shape[1])))[:, 0]
