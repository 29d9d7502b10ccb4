"""A scikit-learn estimator in the place of a network: prepared rows in, logits out.

So scores, prior correction, calibration, thresholds and costs are those of every other model.

Shape legend: B rows, D numeric features, C categorical columns, E encoded features, K outputs.
"""

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.multiclass import OneVsRestClassifier
from sklearn.utils import get_tags
from torch import Tensor, nn

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, RunError, ShoalError
from shoal.cluster.sharding.manifest import Schema, Target
from shoal.training.models import InputEncoder, Model
from shoal.training.users_code import users

Matrix = Any  # float64 [B, E]: an array, or SciPy's csr_matrix
_OFFERED = {
    "schema",
    "n_outputs",
    "n_inputs",
}  # what a factory of a network names, and one of an estimator does not
_WIDE = 256  # one-hot columns, from which they are sparse where the estimator takes that
_CODES = 255  # categories that histogram gradient boosting tells apart


def estimator_of(config: Config) -> BaseEstimator | None:
    """Return the scikit-learn estimator that the `model` section names, None where it names none.

    ``{import: module:Class, …}`` of one of its classes, or of a factory of the user's own that names none of ``schema``,
    ``n_outputs`` and ``n_inputs`` and returns an estimator.

    Raises
    ------
    ConfigError
        If it cannot be imported, or refuses its arguments.
    """
    if not isinstance(config, Imported):
        return None
    factory = config.load()
    is_class = isinstance(factory, type)
    if is_class and not issubclass(factory, BaseEstimator):
        return None
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return None
    if not is_class and (
        _OFFERED & set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    ):
        return None
    try:
        with users(f"model.import: {config.path}", ConfigError):
            found = factory(**config.kwargs)
    except TypeError as error:
        if not is_class:
            return None  # the same call, for a network, says what is wrong
        known = ", ".join(parameters)
        raise ConfigError(
            f"model.import: {config.path} could not be called: {error}; it has {known}"
        ) from error
    return found if isinstance(found, BaseEstimator) else None


class EstimatorModel(Model):
    """An estimator and what its rows are made of.

    Numbers come standardised; those that are missing stay missing where the estimator takes that, and are filled with their
    mean otherwise, with a column that says so. Categories come one-hot, or to histogram gradient boosting as codes.

    Parameters
    ----------
    estimator
        A classifier for classes, a regressor for numbers.
    schema
        Columns and target.
    path
        How messages call it.

    Raises
    ------
    ConfigError
        If it cannot predict this target.
    """

    is_estimator = True

    def __init__(self, estimator: BaseEstimator, schema: Schema, path: str) -> None:
        nn.Module.__init__(self)
        self.estimator, self.target, self.path = estimator, schema.target, path
        self.encoder = InputEncoder(schema, embedding=None)
        self.n_outputs, self.by_type = schema.target.n_outputs, True
        self.cardinalities = [c.cardinality for c in schema.categorical]
        self.as_codes = hasattr(estimator, "categorical_features")
        tags = get_tags(estimator).input_tags
        self.takes_missing = bool(tags.allow_nan)
        self.is_sparse = bool(tags.sparse) and not self.as_codes and sum(self.cardinalities) > _WIDE
        _refuse(estimator, schema.target, path)

    def matrix(self, numeric: NDArray[np.float32], categorical: NDArray[np.int32]) -> Matrix:
        """Encode prepared rows ``[B, D]`` and ``[B, C]`` as ``[B, E]``."""
        if self.takes_missing:
            numbers = np.asarray(numeric, np.float64)
        else:
            numbers = self.encoder.fill(torch.from_numpy(np.array(numeric))).numpy().astype(np.float64)
        if not self.cardinalities:
            return numbers
        if self.as_codes:
            return np.concatenate([numbers, categorical], axis=1)
        first = np.cumsum([0, *self.cardinalities[:-1]])
        n, columns = len(categorical), (categorical + first).ravel()
        indptr = np.arange(n + 1) * len(self.cardinalities)
        shape = (n, sum(self.cardinalities))
        one_hot = sparse.csr_matrix((np.ones(columns.size), columns, indptr), shape=shape)
        if self.is_sparse:
            return sparse.hstack([sparse.csr_matrix(numbers), one_hot], format="csr")
        return np.concatenate([numbers, one_hot.toarray()], axis=1)

    def fit(self, x: Matrix, y: NDArray[Any], weights: NDArray[np.float64] | None) -> None:
        """Fit to rows ``[n, E]`` and labels ``[n]`` or ``[n, K]``: class codes, or values."""
        if self.as_codes and self.estimator.categorical_features == "from_dtype":
            known = [False] * self.encoder.n_numeric + [c <= _CODES for c in self.cardinalities]
            self.estimator.set_params(categorical_features=known)
        self.estimator.fit(x, y, **({} if weights is None else {"sample_weight": weights}))

    def forward(self, numeric: Tensor, categorical: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return float64 logits ``[B, K]``: log odds, log probabilities, or standardised values.

        Raises
        ------
        RunError
            If the estimator fails.
        """
        x = self.matrix(numeric.numpy(), categorical.numpy())
        try:
            return self._answers(x, len(numeric))
        except (ShoalError, MemoryError):
            raise
        except Exception as error:  # whatever an estimator may raise
            raise RunError(failure(self.path, "could not predict", error)) from error

    def _answers(self, x: Matrix, n: int) -> Tensor:
        if self.target.task == "regression":
            values = np.asarray(self.estimator.predict(x), np.float64).reshape(n, 1)
            return torch.from_numpy((values - self.target.center) / self.target.scale)
        p = self._probabilities(x)
        with np.errstate(divide="ignore"):
            if self.target.task == "multiclass":
                return torch.from_numpy(np.log(p))
            return torch.from_numpy(np.log(p) - np.log1p(-p))

    def _probabilities(self, x: Matrix) -> NDArray[np.float64]:
        """Return ``[B, K]``; of a binary target that of the event alone."""
        found = self.estimator.predict_proba(x)
        if self.target.task == "multilabel":
            if isinstance(found, list):  # a matrix a label
                found = np.stack(
                    [_of_event(p, c) for p, c in zip(found, self.estimator.classes_, strict=True)], 1
                )
            return np.asarray(found, np.float64)
        classes = np.asarray(self.estimator.classes_, np.int64)  # those that it has seen
        p = np.zeros((x.shape[0], len(self.target.classes)))
        p[:, classes] = found
        return p[:, 1:] if self.target.task == "binary" else p


def failure(path: str, what: str, error: Exception) -> str:
    """Return an estimator's own error in a line."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"model.import: {path} {what}: {kind}{' '.join(str(error).split())[:400]}"


def _of_event(p: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(p[:, list(classes).index(1)] if 1 in classes else np.zeros(len(p)), np.float64)


def _refuse(estimator: BaseEstimator, target: Target, path: str) -> None:
    if hasattr(estimator, "_parameter_constraints"):  # which classes of the user's own need not have
        try:
            estimator._validate_params()
        except ValueError as error:
            raise ConfigError(f"model.import: {path}: {error}") from error
    if target.task == "regression":
        if not is_regressor(estimator):
            raise ConfigError(
                f"model.import: {path} is no regressor, and the target is a number; use one that is"
            )
        return
    if not is_classifier(estimator):
        raise ConfigError(
            f"model.import: {path} is no classifier, and the task is {target.task}; use one that is, or set data.task"
        )
    if not hasattr(estimator, "predict_proba"):
        raise ConfigError(
            f"model.import: {path} gives no probabilities (predict_proba), which scores and decisions need; wrap it in "
            "sklearn.calibration.CalibratedClassifierCV, by a factory of your own, or use another"
        )
    several = get_tags(estimator).classifier_tags.multi_label or isinstance(estimator, OneVsRestClassifier)
    if target.task == "multilabel" and not several:
        raise ConfigError(
            f"model.import: {path} predicts one label, and there are {len(target.classes)}; wrap it in "
            "sklearn.multiclass.OneVsRestClassifier, by a factory of your own"
        )
