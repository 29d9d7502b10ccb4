"""scikit-learn estimators over the same models, loop and artifact, in one process."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Silent
from shoal.cluster.resources import Shape
from shoal.cluster.sharding.manifest import Column, Scalar, Schema, Target
from shoal.cluster.wording import must_be, shown
from shoal.training.allowed import refuse
from shoal.training.artifact import TrainedModel
from shoal.training.config import ModelChoice, TrainingConfig
from shoal.training.costs import NO_AMOUNTS, Amounts
from shoal.training.device import own_threads
from shoal.training.loop import Loop
from shoal.training.memory import ArrayDataset, ArrayPart
from shoal.training.models import Factory, build_model
from shoal.training.outcome import FitOutcome
from shoal.training.soundness import require_finite
from shoal.training.strategies.base import Strategy

_SHARDS = 1  # one process reads everything: one logical shard is the plainest plan


class _Model(Config):
    model: ModelChoice


class LogLoss:
    """Negative log likelihood of the validation rows, for early stopping."""

    name, greater_is_better = "log_loss", False

    def value(
        self,
        y: NDArray[Any],
        scores: NDArray[np.float64],
        amounts: Amounts = NO_AMOUNTS,  # noqa: ARG002 no costs here
    ) -> float:
        """Score class indices ``[n]`` against probabilities ``[n]`` or ``[n, K]``."""
        labels = np.arange(2 if scores.ndim == 1 else scores.shape[1])
        return float(log_loss(y, scores, labels=labels))


class SquaredError:
    """Mean squared error of the validation rows, for early stopping."""

    name, greater_is_better = "mean_squared_error", False

    def value(
        self,
        y: NDArray[Any],
        scores: NDArray[np.float64],
        amounts: Amounts = NO_AMOUNTS,  # noqa: ARG002 no costs here
    ) -> float:
        """Score values ``[n]`` against predictions ``[n]``."""
        return float(mean_squared_error(y, scores))


class _TorchEstimator(BaseEstimator):  # type: ignore[misc]
    """What the classifier and the regressor share."""

    def __init__(
        self,
        model: str | Mapping[str, Any] = "mlp",
        optimizer: str | Mapping[str, Any] = "adamw",
        schedule: str | Mapping[str, Any] = "constant",
        loss: str | Mapping[str, Any] = "auto",
        *,
        epochs: int = 50,
        batch_size: int | str = "auto",
        gradient_accumulation: int = 1,
        clip_norm: float | None = None,
        l1: Mapping[str, float] | None = None,
        l2: float = 0.0,
        mixup: Mapping[str, float] | None = None,
        averaging: str | Mapping[str, Any] | None = None,
        early_stopping: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.1,
        precision: str = "auto",
        factory: Factory | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.gradient_accumulation = gradient_accumulation
        self.clip_norm = clip_norm
        self.l1 = l1
        self.l2 = l2
        self.mixup = mixup
        self.averaging = averaging
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.precision = precision
        self.factory = factory
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _configs(self) -> tuple[Config, TrainingConfig]:
        values = {
            name: getattr(self, name)
            for name in (
                "epochs",
                "batch_size",
                "optimizer",
                "schedule",
                "loss",
                "gradient_accumulation",
                "clip_norm",
                "l1",
                "l2",
                "mixup",
                "averaging",
                "early_stopping",
                "precision",
            )
        }
        try:
            return _Model.model_validate({"model": self.model}).model, TrainingConfig.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {_wrong(error)}") from error

    def _fit(
        self, X: NDArray[Any], label: NDArray[Any], target: Target, monitor: LogLoss | SquaredError
    ) -> None:
        own_threads()
        model_config, training = self._configs()
        refuse(training, Shape(1, 1.0, 0.0, "inline"))
        seed = int(check_random_state(self.random_state).randint(2**31))
        train, held_out = np.arange(len(X)), np.arange(0)
        if self.early_stopping is not None:
            stratify = None if target.task == "regression" else label
            train, held_out = train_test_split(
                train, test_size=self.validation_fraction, random_state=seed, stratify=stratify
            )
        if target.task == "regression":
            scale = float(label[train].std())
            target = target.model_copy(update={"center": float(label[train].mean()), "scale": scale or 1.0})
        schema = Schema(columns=_columns(X[train]), target=target)
        prepared = _prepared(X, schema)
        codes = np.zeros((len(X), 0), np.int32)
        parts = {"train": ArrayPart(prepared[train], codes[train], label[train])}
        if len(held_out):
            parts["validation"] = ArrayPart(prepared[held_out], codes[held_out], label[held_out])
        if self.factory is not None and not isinstance(model_config, Imported):
            raise ConfigError(
                f"factory is of a model of your own, and model is {self.model!r}; write model={{'import': 'module:name'}} too"
            )
        module = build_model(model_config, schema, seed, factory=self.factory)
        dataset = ArrayDataset(schema, parts, _SHARDS)
        loop = Loop(module, dataset, training, Strategy(torch.device("cpu")), monitor, seed, Silent())
        self.outcome_: FitOutcome = loop.run()
        require_finite(module, {}, training, self.outcome_.skipped, self.outcome_.steps)
        answered = schema.model_copy(update={"target": loop.target})
        self.trained_model_ = TrainedModel(module, answered, model_config)
        self.n_iter_ = self.outcome_.epochs

    def _scores(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return self.trained_model_.scores(X)


class TorchClassifier(ClassifierMixin, _TorchEstimator):  # type: ignore[misc]
    """A classifier trained by Shoal's loop, as a scikit-learn estimator.

    Parameters
    ----------
    model
        A component: ``"mlp"``, ``"linear"``, ``{"mlp": {"hidden": [64], "dropout": 0.1}}``, or your own by import.
    optimizer
        A component: ``"adamw"``, ``{"sgd": {"learning_rate": 0.05}}``, …
    schedule
        A component: ``"constant"``, ``"one_cycle"``, ``{"cosine": {"warmup": 100}}``, …
    loss
        A component: ``"auto"``, ``{"focal": {"gamma": 2}}``, …
    epochs, batch_size, gradient_accumulation, clip_norm, l1, l2, mixup, averaging, precision
        As in the `training` section of an experiment.
    early_stopping
        ``{"patience": 5}`` stops on the log loss of a stratified part of the training rows; None trains all epochs.
    validation_fraction
        That part's share of the rows.
    factory
        The factory of a model of your own, in place of its name.
    random_state
        Seed of weights, order, dropout and the validation part.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes.
    trained_model_ : TrainedModel
        The artifact, which `TrainedModel.save` writes.
    outcome_ : FitOutcome
        How the fit went.
    n_features_in_ : int
        Number of features.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> TorchClassifier(epochs=30).fit(X, y).score(X, y) > 0.9
    True
    """

    def fit(self, X: Any, y: Any) -> "TorchClassifier":
        """Fit on ``X`` ``[n, D]`` of numbers (NaN is missing) and labels ``y`` ``[n]``.

        Raises
        ------
        ConfigError
            If a parameter is out of range.
        ValueError
            If the data are not what scikit-learn's estimators take, or have one class only.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2
        )
        check_classification_targets(y)
        encoder = LabelEncoder().fit(y)
        self.classes_ = encoder.classes_
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only, {self.classes_.tolist()[0]!r}; there is nothing to predict"
            )
        classes: tuple[Scalar, ...] = tuple(
            c.item() if isinstance(c, np.generic) else c for c in self.classes_
        )
        task = "binary" if len(classes) == 2 else "multiclass"
        target = Target(columns=("y",), task=task, classes=classes)
        self._fit(X, encoder.transform(y).astype(np.int64), target, LogLoss())
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities ``[n, n_classes]`` in the order of `classes_`."""
        scores = self._scores(X)
        return np.stack([1.0 - scores, scores], axis=1) if scores.ndim == 1 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class ``[n]``."""
        chosen = self.predict_proba(X).argmax(axis=1)
        answers: NDArray[Any] = self.classes_[chosen]
        return answers


class TorchRegressor(RegressorMixin, _TorchEstimator):  # type: ignore[misc]
    """A regressor trained by Shoal's loop, as a scikit-learn estimator; parameters as `TorchClassifier`.

    Early stopping looks at the squared error of a random part of the training rows.
    """

    def fit(self, X: Any, y: Any) -> "TorchRegressor":
        """Fit on ``X`` ``[n, D]`` of numbers (NaN is missing) and values ``y`` ``[n]``.

        Raises
        ------
        ConfigError
            If a parameter is out of range.
        ValueError
            If the data are not what scikit-learn's estimators take.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2, y_numeric=True
        )
        target = Target(columns=("y",), task="regression")
        self._fit(X, y.astype(np.float64), target, SquaredError())
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return predictions ``[n]`` in the units of ``y``."""
        return self._scores(X)


def _wrong(error: ValidationError) -> str:
    """Say what is wrong with the first wrong parameter, as for an experiment file."""
    first, *others = error.errors(include_url=False)
    # pydantic's location has names of union members too, such as literal['auto'].
    keys = [str(key) for key in first["loc"] if isinstance(key, int) or key.isidentifier()]
    name, kind = ".".join(keys), first["type"]
    if kind == "extra_forbidden":
        return f"{'.'.join(keys[:-1])} has no parameter {keys[-1]}; leave it out"
    if kind == "union_tag_invalid":
        return f"{name} is {shown(first['ctx']['tag'])}; allowed: {first['ctx']['expected_tags'].replace(chr(39), '')}"
    if kind == "union_tag_not_found":
        return f"{name} is {shown(first['input'])}; it takes a component's name, or {{name: {{…}}}}"
    if kind == "value_error" and not name:  # of several parameters at once
        return str(first["ctx"]["error"])
    if kind == "value_error":
        return f"{name} is {shown(first['input'])}; {first['ctx']['error']}"
    same = [
        first,
        *(e for e in others if e["loc"][:1] == first["loc"][:1] and len(e["loc"]) == len(first["loc"])),
    ]
    return f"{name} is {shown(first['input'])}; it must be {', or '.join(dict.fromkeys(map(must_be, same)))}"


def _columns(X: NDArray[np.float64]) -> tuple[Column, ...]:
    """Describe numeric columns by their statistics over the training rows."""
    known = np.isfinite(X)
    count = np.maximum(known.sum(0), 1)
    center = np.where(known, X, 0.0).sum(0) / count
    scale = np.sqrt((np.where(known, X - center, 0.0) ** 2).sum(0) / count)
    return tuple(
        Column(
            name=f"x{i}",
            type="numeric",
            arrow_type="double",
            parts=(f"x{i}",),
            center=(float(center[i]),),
            scale=(float(scale[i]) or 1.0,),
            has_missing=not known[:, i].all(),
        )
        for i in range(X.shape[1])
    )


def _prepared(X: NDArray[np.float64], schema: Schema) -> NDArray[np.float32]:
    center = np.array([c.center[0] for c in schema.columns])
    scale = np.array([c.scale[0] for c in schema.columns])
    prepared: NDArray[np.float32] = ((X - center) / scale).astype(np.float32)
    return prepared
