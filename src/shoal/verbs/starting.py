"""What an experiment starts from, as its fits and its data need it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.listing import find
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment
from shoal.training.config import PretrainedConfig
from shoal.transfer.config import TransferConfig
from shoal.verbs.judge import DATA, rows_of

if TYPE_CHECKING:
    from shoal.training.stages import Reuse


@dataclass(frozen=True)
class Starting:
    """What a fit starts from.

    Attributes
    ----------
    reuse
        What makes it start so; None for a fit from the beginning.
    known
        The schema whose columns and statistics the data are prepared with; None where they are fitted.
    """

    reuse: "Reuse | None" = None
    known: Schema | None = None


def starting(experiment: Experiment) -> Starting:
    """Look at what an experiment starts from.

    Raises
    ------
    ConfigError, DataError, StorageError
        If it cannot be started from, or this fit not fine-tuned so.
    """
    config = transfer_of(experiment)
    if config is None or config.start is None:
        return Starting()
    from shoal.training.scikit.unused import names_estimator
    from shoal.transfer.fine_tune import fine_tune, refuse
    from shoal.transfer.start import is_file

    if names_estimator(experiment.model):
        raise ConfigError(
            "transfer.start: models of scikit-learn's start from no weights; leave transfer out"
        )
    refuse(config, experiment.training)
    storage = experiment.cluster.storage
    said = () if is_file(config.start) else _same_rows(experiment, Storage.open(config.start, storage))
    return Starting(*fine_tune(config, storage, said))


def transfer_of(experiment: Experiment) -> TransferConfig | None:
    """Return the `transfer` section; a pretrained model starts from its folder where that names nothing else."""
    config = experiment.transfer
    if isinstance(experiment.model, PretrainedConfig) and (config is None or config.start is None):
        return (config or TransferConfig()).model_copy(update={"start": experiment.model.path})
    return config


def _same_rows(experiment: Experiment, run: Storage) -> tuple[str, ...]:
    """Say where a start has been trained on rows of the same files: it may know the test rows."""
    if not run.exists(DATA):
        return ()
    theirs = set(rows_of(run).sources)
    shared = [f.uri for f in find(experiment.data.path, experiment.cluster.storage) if f.uri in theirs]
    if not shared:
        return ()
    return (
        f"start: it was trained on rows of the same file ({shared[0]}): where its training rows are test rows here, the test "
        "scores are too good; give both runs the same data.split and seed, or a start of other rows",
    )
