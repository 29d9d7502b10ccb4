"""What of an experiment a scikit-learn estimator has no use for; sklearn is imported for imported models alone."""

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Shape
from shoal.training.config import TrainingConfig
from shoal.training.losses.config import CrossEntropyConfig

_NOTHING = ("early_stopping", "checkpoint")  # it may be said that there is none


def names_estimator(model: Config) -> bool:
    """Whether the `model` section names an estimator of scikit-learn's.

    Raises
    ------
    ConfigError
        As `estimator_of`.
    """
    if not isinstance(model, Imported):
        return False
    from shoal.training.scikit.model import estimator_of

    return estimator_of(model) is not None


def refuse_estimator(model: Config, training: TrainingConfig, shape: Shape) -> None:
    """Refuse what an estimator of scikit-learn's has no use for; other models pass.

    Raises
    ------
    ConfigError
        With the key, and what to do.
    """
    if not isinstance(model, Imported) or not names_estimator(model):
        return
    if training.ensemble is not None:
        raise ConfigError(
            f"training.ensemble is of networks, and {model.path} is scikit-learn's; leave it out, and use "
            "training.loss: {cross_entropy: {class_weights: costs}} and evaluation.threshold"
        )
    default = TrainingConfig()
    for key in TrainingConfig.model_fields:
        value = getattr(training, key)
        if value == getattr(default, key) or (key in _NOTHING and value is None):
            continue
        if key != "loss":
            raise ConfigError(
                f"training.{key} means nothing for {model.path}, which is fitted in one go; leave it out, and write its own "
                "parameters beside import"
            )
        if value != CrossEntropyConfig(class_weights=getattr(value, "class_weights", None)):
            raise ConfigError(
                f"training.loss: {model.path} has its own; leave this out, but for {{cross_entropy: {{class_weights: …}}}}, or "
                "choose among its own beside import"
            )
    if shape.placement == "group":
        raise ConfigError(
            f"model.import: {model.path} is fitted in one process: set cluster.num_workers: 1, and cluster.placement: inline "
            "or task"
        )
