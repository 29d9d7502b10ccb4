"""What makes a fit adapt: a `training.two_domains.Adapt`, sent to its workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from shoal.cluster.components import Choice
from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.cluster.storage import Storage
from shoal.training.batches import Dataset
from shoal.training.config import DeepSpeedConfig, SearchConfig, TrainingConfig
from shoal.training.models import Model
from shoal.transfer.adaptation.config import (
    ADAPTATIONS,
    AlignmentConfig,
    CDANConfig,
    CoTrainingConfig,
    MCCConfig,
    RoundsConfig,
    SelfTrainingConfig,
)
from shoal.transfer.adaptation.methods import Alignment, ClassConfusion, Method
from shoal.transfer.adaptation.reading import unlabelled
from shoal.transfer.adaptation.self_training import SelfTraining
from shoal.transfer.adaptation.several import several
from shoal.transfer.adaptation.weights import Weighted, Weights
from shoal.transfer.shift.domains import FEWEST

IMPORTANCE = "importance.parquet"  # of a run: shard, weight


@dataclass(frozen=True)
class AdaptTo:
    """Makes a fit adapt to a target domain.

    Parameters
    ----------
    config
        The method.
    target_uri, target_key
        The target's rows, sharded without labels.
    storage, cache_path
        How to reach them.
    epochs
        Of the fit.
    by_class
        What source rows of each class weigh; empty for 1.
    run_uri
        Where `IMPORTANCE` is, for the weight of each row; empty for none.
    part
        Which rows of the dataset are the target's.
    """

    config: Config
    target_uri: str
    target_key: str
    epochs: int
    storage: StorageConfig = field(default_factory=StorageConfig)
    cache_path: str | None = None
    by_class: tuple[float, ...] = ()
    run_uri: str = ""
    part: str = "train"

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that determine what it does, with the model, the data and the `training` section."""
        method = Choice(ADAPTATIONS).plain(self.config)
        return {
            "method": method,
            "target": self.target_key,
            "by_class": list(self.by_class),
            "by_row": bool(self.run_uri),
            **({} if self.part == "train" else {"part": self.part}),
        }

    def __call__(
        self, members: Callable[[int], Model], dataset: Dataset, seed: int
    ) -> tuple[Model, Method, Dataset]:
        """Return the model to train, with what is trained beside it, the method and the source's rows."""
        cache = Path(self.cache_path) if self.cache_path else None
        rows = ShardedDataset.open(Storage.open(self.target_uri, self.storage), cache=cache)
        target = unlabelled(rows, self.part)
        weights = Weights(self.by_class, bool(self.run_uri)) if self.by_class or self.run_uri else None
        if self.run_uri:
            table = Storage.open(self.run_uri, self.storage).read_table(IMPORTANCE)
            shard, weight = table.column("shard"), table.column("weight").to_numpy()
            of_shard = [
                weight[pc.equal(shard, v).to_numpy(zero_copy_only=False)] for v in range(dataset.n_shards)
            ]
            dataset = Weighted(dataset, of_shard)
        return at_work(self.config, members, dataset, target, weights, seed, self.epochs)


def at_work(
    config: Config,
    members: Callable[[int], Model],
    source: Dataset,
    target: Dataset,
    weights: Weights | None,
    seed: int,
    epochs: int,
) -> tuple[Model, Method, Dataset]:
    """Return the model to train, a method at work on it, and the source's rows.

    Parameters
    ----------
    members
        Builds new models, by number; most methods take the first one alone.
    source, target
        The rows of both domains.
    weights
        Of the source's.
    seed, epochs
        Of the fit.

    Raises
    ------
    ConfigError
        If the model has no such layer, or the rows no such columns.
    """
    if isinstance(config, RoundsConfig):
        n = 2 if isinstance(config, CoTrainingConfig) else 3
        return several(config, [members(i) for i in range(n)], source, target, epochs, seed)
    model = members(0)
    method: Method
    match config:
        case AlignmentConfig():
            method = Alignment(model, source.schema, target, weights, config, seed)
        case MCCConfig():
            method = ClassConfusion(model, target, config)
        case SelfTrainingConfig():
            method = SelfTraining(model, target, config, epochs)
        case _:
            method = Method(model, None, weights)
    return model, method, source


def refuse(config: Config, training: TrainingConfig, schema: Schema, target_rows: int, workers: int) -> None:
    """Refuse what cannot be adapted so, before anything is trained.

    Raises
    ------
    ConfigError
        With the reason and what to change.
    """
    name, task = Choice(ADAPTATIONS).name_of(config), schema.target.task
    of_features = (
        isinstance(config, AlignmentConfig) and not isinstance(config, CDANConfig) and not config.label_shift
    )
    if task not in ("binary", "multiclass") and not of_features and name != "importance_weighting":
        raise ConfigError(
            f"transfer.adaptation: {name} is about classes, and the task is {task}; use dann, deep_coral, mmd or "
            "importance_weighting"
        )
    if (
        isinstance(config, SelfTrainingConfig)
        and config.teacher is not None
        and isinstance(training.strategy, DeepSpeedConfig)
        and training.strategy.zero_stage == 3
    ):
        raise ConfigError(
            "transfer.adaptation: self_training: a teacher's weights are whole on each worker, and those of zero_stage: 3 are in "
            "parts; use zero_stage: 2, or leave teacher out"
        )
    in_steps = isinstance(config, AlignmentConfig | MCCConfig | SelfTrainingConfig | RoundsConfig)
    for given, key in (
        (isinstance(training.optimizer, SearchConfig), "optimizer: one that searches along lines"),
        (training.gradient_accumulation > 1, "gradient_accumulation"),
        (training.mixup is not None, "mixup"),
        (training.activation_checkpointing, "activation_checkpointing"),
    ):
        if in_steps and given:
            raise ConfigError(
                f"transfer.adaptation: {name} looks at all of a step's rows together, and training.{key} does not go with that; "
                "leave it out"
            )
    if (
        not of_features
        and schema.media
        and (
            name in ("importance_weighting", "co_training")
            and not schema.numeric_width
            and not schema.categorical
        )
    ):
        raise ConfigError(
            f"transfer.adaptation: {name} goes by columns of numbers and categories, and there are texts or images alone; use "
            "dann, mmd or self_training"
        )
    if training.ensemble is not None:
        raise ConfigError(
            "transfer.adaptation and training.ensemble are not built together; leave one of them out"
        )
    if target_rows < (fewest := max(FEWEST, workers)):
        raise ConfigError(
            f"transfer.target_data: {plural(target_rows, 'row')}; to compare domains, and for {plural(workers, 'worker')}, give "
            f"at least {fewest}"
        )


def importance_table(weights: list[np.ndarray]) -> Any:
    """Return the table of `IMPORTANCE` for the weights of each shard's rows."""
    import pyarrow as pa

    shard = np.concatenate([np.full(len(w), v, np.int32) for v, w in enumerate(weights)])
    return pa.table({"shard": shard, "weight": np.concatenate(weights)})
