"""The fit of a scikit-learn estimator: all training rows at once, in one process."""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import has_fit_parameter
from threadpoolctl import threadpool_limits

from shoal.cluster.errors import ConfigError, RunError
from shoal.cluster.progress import Reporter
from shoal.cluster.sharding.names import plural
from shoal.training.batches import Dataset
from shoal.training.config import TrainingConfig
from shoal.training.costs import Costs, by_name
from shoal.training.losses.config import BY_COSTS
from shoal.training.losses.weights import class_weights
from shoal.training.outcome import FitOutcome, Monitor
from shoal.training.scikit.model import EstimatorModel, failure
from shoal.training.scores import Judge


def fit_estimator(
    model: EstimatorModel,
    dataset: Dataset,
    training: TrainingConfig,
    costs: Costs | None,
    seed: int,
    threads: int,
    monitor: Monitor | None,
    judge: Judge,
    reporter: Reporter,
) -> FitOutcome:
    """Fit to the training rows, in the order of the shards.

    Raises
    ------
    ConfigError
        If the estimator refuses its parameters or the rows.
    RunError
        If the rows do not fit into memory.
    """
    reporter.stage(f"fitting {type(model.estimator).__name__}")
    _settle(model.estimator, seed, threads)
    shards = [dataset.shard("train", v) for v in range(dataset.n_shards)]
    labels = np.concatenate([np.asarray(s.label) for s in shards])
    cost = by_name(np.concatenate([s.cost for s in shards]), dataset.schema.costs)
    weights = row_weights(model, training, dataset, costs, labels, cost)
    started = time.perf_counter()
    # More threads than CPUs that the process owns make trees of histograms many times slower.
    with warnings.catch_warnings(record=True) as heard, threadpool_limits(threads):
        warnings.simplefilter("always")
        try:
            x = model.matrix(
                np.concatenate([s.numeric for s in shards]), np.concatenate([s.categorical for s in shards])
            )
            model.fit(x, labels, weights)
        except MemoryError as error:
            raise RunError(
                f"{plural(len(labels), 'row')} do not fit into memory as one matrix; use fewer columns (data.drop, "
                "data.max_categories), a model of Shoal's own, or a larger machine"
            ) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(failure(model.path, "could not be fitted", error)) from error
        except Exception as error:  # whatever an estimator may raise
            raise RunError(failure(model.path, "could not be fitted", error)) from error
    seconds = time.perf_counter() - started
    judged = judge(model, "validation") if sum(dataset.shard_rows("validation")) else None
    best = float("nan")
    if judged is not None and monitor is not None:
        best = float(monitor.value(judged.label, judged.score, amounts=judged.amounts))
    notices = dict.fromkeys(f"{w.category.__name__}: {' '.join(str(w.message).split())}" for w in heard)
    return FitOutcome(
        steps=0,
        epochs=0,
        best_epoch=0,
        best=best,
        stopped=f"{type(model.estimator).__name__} fitted to {plural(len(labels), 'row')} in {seconds:.1f} s",
        rows_per_second=len(labels) / seconds,
        seconds=seconds,
        batch_size=len(labels),
        gradient_error=0.0,
        time=f"{seconds:.1f} s in one process with {plural(threads, 'thread')}",
        notices=tuple(f"scikit-learn: {text[:300]}" for text in notices),
    )


def row_weights(
    model: EstimatorModel,
    training: TrainingConfig,
    dataset: Dataset,
    costs: Costs | None,
    labels: NDArray[Any],
    cost: Mapping[str, NDArray[np.float64]],
) -> NDArray[np.float64] | None:
    """Return the weight of each training row ``[n]``, with mean 1, None where all weigh the same.

    Raises
    ------
    ConfigError
        If there are no classes, or the estimator takes no weights.
    """
    given = getattr(training.loss, "class_weights", None)
    if given is None:
        return None
    target = dataset.schema.target
    if target.task not in ("binary", "multiclass"):
        raise ConfigError(
            f"training.loss: class_weights are for classes, and the task is {target.task}; leave them out"
        )
    if not has_fit_parameter(model.estimator, "sample_weight"):
        raise ConfigError(
            f"training.loss: class_weights: {model.path} takes no weights (sample_weight); leave them out, or use another model"
        )
    if given == BY_COSTS and costs is not None:
        weights = costs.own_weights(labels, cost)
    else:
        private = bool(set(target.columns) & set(dataset.schema.private))
        of_class = class_weights(given, torch.tensor(dataset.class_rows("train")), target.classes, private)
        weights = of_class.numpy()[labels]
    return np.asarray(weights / weights.mean())


def parameters_of(estimator: BaseEstimator) -> Mapping[str, str]:
    """Return an estimator's parameters as text, nested ones too."""
    return {name: repr(value) for name, value in sorted(estimator.get_params().items())}


def _settle(estimator: BaseEstimator, seed: int, threads: int) -> None:
    """Give every part that draws the experiment's seed, where it has none; and no more processes than there are CPUs."""
    found: dict[str, Any] = {}
    for name, value in estimator.get_params().items():
        if name.endswith("random_state") and value is None:
            found[name] = seed % 2**32
        if name.endswith("n_jobs") and value is not None:
            found[name] = threads if value < 0 else min(value, threads)
    estimator.set_params(**found)
