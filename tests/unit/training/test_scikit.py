"""Models of scikit-learn's: what their rows are made of, what is fitted, stored and refused."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from support.prepared import make_dataset, with_costs

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.progress import Silent
from shoal.cluster.resources import Shape
from shoal.cluster.sharding.prepare import Prepared
from shoal.cluster.storage import Storage
from shoal.evaluation.deciding.config import CostsConfig
from shoal.evaluation.deciding.costs import resolve_costs
from shoal.training.artifact import TrainedModel
from shoal.training.config import TrainingConfig
from shoal.training.memory import ArrayDataset
from shoal.training.models import build_model
from shoal.training.outcome import FitOutcome
from shoal.training.scikit.files import from_bytes, to_bytes
from shoal.training.scikit.fit import fit_estimator
from shoal.training.scikit.model import EstimatorModel
from shoal.training.scikit.unused import refuse_estimator
from shoal.training.scores import Judge
from shoal.training.strategies.base import Strategy

FOREST = "sklearn.ensemble:RandomForestClassifier"
BOOSTING = "sklearn.ensemble:HistGradientBoostingClassifier"
SEED = 4


def imported(path: str, **keys: Any) -> Imported:
    return Imported.model_validate({"import": path, **keys})


def several() -> BaseEstimator:
    return OneVsRestClassifier(LogisticRegression())


def same(x: Any) -> Any:
    return x


def with_own_function(function: Any = same) -> BaseEstimator:
    return make_pipeline(FunctionTransformer(function), LogisticRegression())


def fit(
    config: Imported, dataset: ArrayDataset, costs: Any = None, **training: Any
) -> tuple[EstimatorModel, FitOutcome]:
    model = build_model(config, dataset.schema, SEED)
    assert isinstance(model, EstimatorModel)
    judge = Judge(dataset, Strategy(torch.device("cpu")), dataset.schema.target)
    values = TrainingConfig.model_validate(training)
    outcome = fit_estimator(model, dataset, values, costs, SEED, 1, None, judge, Silent())
    return model, outcome


def rows(dataset: ArrayDataset, split: str = "train") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in the order of the shards."""
    shards = [dataset.shard(split, v) for v in range(dataset.n_shards)]
    return tuple(np.concatenate([getattr(s, n) for s in shards]) for n in ("numeric", "categorical", "label"))


def by_hand(dataset: ArrayDataset, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Numbers filled, with an indicator; categories one-hot by scikit-learn."""
    numeric, categorical, label = rows(dataset, split)
    levels = [np.arange(c.cardinality) for c in dataset.schema.categorical]
    one_hot = OneHotEncoder(categories=levels, sparse_output=False).fit_transform(categorical)
    filled = np.nan_to_num(numeric.astype(np.float64), nan=0.0)
    return np.concatenate([filled, np.isnan(numeric[:, :1]), one_hot], axis=1), label


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_it_is_the_estimator_fitted_by_hand(task: str, tmp_path: Path) -> None:
    dataset = make_dataset(task)
    path = "sklearn.linear_model:LogisticRegression"  # takes no missing values
    model, outcome = fit(imported(path, C=0.5), dataset)
    x, y = by_hand(dataset)
    theirs = LogisticRegression(C=0.5, random_state=SEED).fit(x, y)
    numeric, categorical, _ = rows(dataset, "test")
    trained = TrainedModel(model, dataset.schema, imported(path, C=0.5))
    trained.save(Storage.open(str(tmp_path)))
    loaded = TrainedModel.load(tmp_path)  # nothing of the user's is imported for it
    expected = theirs.predict_proba(by_hand(dataset, "test")[0])
    expected = expected[:, 1] if task == "binary" else expected
    for one in (trained, loaded):
        found = one.prepared_scores(Prepared(numeric, categorical))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert outcome.steps == 0
    assert outcome.batch_size == len(y)


def test_numbers_are_predicted_in_their_own_units() -> None:
    dataset = make_dataset("regression", missing=False, cardinalities=())
    model, _ = fit(imported("sklearn.ensemble:RandomForestRegressor", n_estimators=5), dataset)
    numeric, categorical, label = rows(dataset)
    theirs = RandomForestRegressor(5, random_state=SEED).fit(numeric.astype(np.float64), label)
    trained = TrainedModel(model, dataset.schema, imported(FOREST))
    numeric, categorical, _ = rows(dataset, "test")
    found = trained.prepared_scores(Prepared(numeric, categorical))
    np.testing.assert_allclose(found, theirs.predict(numeric.astype(np.float64)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", [FOREST, f"{__name__}:several"])
def test_several_labels_have_a_probability_each(path: str) -> None:
    dataset = make_dataset("multilabel")
    model, _ = fit(imported(path), dataset)
    trained = TrainedModel(model, dataset.schema, imported(path))
    numeric, categorical, label = rows(dataset)
    found = trained.prepared_scores(Prepared(numeric, categorical))
    assert found.shape == label.shape
    assert ((found > 0.5) == label).mean() > 0.8


def test_histogram_gradient_boosting_gets_missing_values_and_codes() -> None:
    dataset = make_dataset("binary", cardinalities=(5, 9, 400))
    model, _ = fit(imported(BOOSTING, max_iter=5), dataset)
    numeric, categorical, label = rows(dataset)
    x = np.concatenate([numeric.astype(np.float64), categorical], axis=1)
    known = [False] * 6 + [True, True, False]  # it tells at most 255 categories apart
    theirs = HistGradientBoostingClassifier(max_iter=5, categorical_features=known, random_state=SEED)
    theirs.fit(x, label)
    trained = TrainedModel(model, dataset.schema, imported(BOOSTING))
    found = trained.prepared_scores(Prepared(numeric, categorical))
    np.testing.assert_allclose(found, theirs.predict_proba(x)[:, 1], rtol=0, atol=1e-14)
    again = from_bytes(to_bytes(model.estimator, BOOSTING), "here")
    stored = TrainedModel(EstimatorModel(again, dataset.schema, BOOSTING), dataset.schema, imported(BOOSTING))
    np.testing.assert_array_equal(stored.prepared_scores(Prepared(numeric, categorical)), found)


def test_many_categories_are_sparse_and_the_same() -> None:
    dataset = make_dataset("binary", cardinalities=(300, 9))
    path = "sklearn.linear_model:LogisticRegression"
    model, _ = fit(imported(path), dataset)
    assert model.is_sparse
    numeric, categorical, _ = rows(dataset)
    np.testing.assert_array_equal(model.matrix(numeric, categorical).toarray(), by_hand(dataset)[0])


def test_weights_of_classes_and_costs_are_weights_of_rows() -> None:
    dataset = make_dataset("binary", missing=False, cardinalities=())
    numeric, _, label = rows(dataset)
    x = numeric.astype(np.float64)

    def found(weights: Any, costs: Any = None, data: ArrayDataset = dataset) -> np.ndarray:
        loss = {"cross_entropy": {"class_weights": weights}}
        model, _ = fit(imported(FOREST, n_estimators=9), data, costs, loss=loss)
        return np.asarray(model.estimator.predict_proba(x))

    def theirs(weights: np.ndarray) -> np.ndarray:
        forest = RandomForestClassifier(9, random_state=SEED)
        return np.asarray(forest.fit(x, label, sample_weight=weights / weights.mean()).predict_proba(x))

    counts = np.bincount(label)
    np.testing.assert_array_equal(found("balanced"), theirs((len(label) / 2 / counts)[label]))
    np.testing.assert_array_equal(found({"yes": 7}), theirs(np.array([1.0, 7.0])[label]))
    priced = with_costs(dataset)
    amount = np.concatenate([priced.shard("train", v).cost for v in range(priced.n_shards)])[:, 0]
    config = CostsConfig.model_validate({"false_positive": 2, "false_negative": {"column": "amount"}})
    costs = resolve_costs(config, priced.schema)
    expected = theirs(np.where(label == 1, amount, 2.0))
    np.testing.assert_allclose(found("costs", costs, priced), expected, rtol=0, atol=1e-12)


def test_what_it_warns_of_is_said_in_a_line() -> None:
    config = imported("sklearn.linear_model:LogisticRegression", max_iter=1)
    _, outcome = fit(config, make_dataset())
    (notice,) = outcome.notices
    assert notice.startswith("scikit-learn: ConvergenceWarning: ")
    assert "\n" not in notice


@pytest.mark.parametrize(
    ("config", "task", "said"),
    [
        (
            imported(FOREST, n_estimatorz=3),
            "binary",
            "unexpected keyword argument 'n_estimatorz'; it has n_est",
        ),
        (
            imported(FOREST, n_estimators=0),
            "binary",
            r"'n_estimators' .* must be an int in the range \[1, inf\)",
        ),
        (imported(FOREST), "regression", "is no regressor, and the target is a number"),
        (imported("sklearn.linear_model:Ridge"), "binary", "is no classifier, and the task is binary"),
        (imported("sklearn.svm:LinearSVC"), "binary", "gives no probabilities"),
        (
            imported("sklearn.linear_model:LogisticRegression"),
            "multilabel",
            "predicts one label, and there are 2",
        ),
    ],
)
def test_an_estimator_that_does_not_fit_the_target_is_refused(config: Imported, task: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(config, make_dataset(task).schema, 0)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"epochs": 3}, "training.epochs means nothing for sklearn.ensemble"),
        ({"optimizer": "sgd"}, "training.optimizer means nothing"),
        ({"strategy": "deepspeed"}, "training.strategy means nothing"),
        ({"loss": "focal"}, "training.loss: sklearn.ensemble.* has its own"),
        ({"loss": {"cross_entropy": {"label_smoothing": 0.1}}}, "has its own"),
        ({}, None),
        ({"early_stopping": None, "checkpoint": None}, None),
        ({"loss": {"cross_entropy": {"class_weights": "balanced"}}}, None),
    ],
)
def test_what_it_has_no_use_for_is_refused(training: dict[str, Any], said: str | None) -> None:
    values = TrainingConfig.model_validate(training)
    if said is None:
        refuse_estimator(imported(FOREST), values, Shape(1, 1, 0, "task"))
        return
    with pytest.raises(ConfigError, match=said):
        refuse_estimator(imported(FOREST), values, Shape(1, 1, 0, "inline"))


def test_groups_of_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="is fitted in one process: set cluster.num_workers: 1"):
        refuse_estimator(imported(FOREST), TrainingConfig(), Shape(2, 1, 0, "group"))


def test_weights_are_refused_where_it_takes_none() -> None:
    loss = {"cross_entropy": {"class_weights": "balanced"}}
    with pytest.raises(ConfigError, match="takes no weights"):
        fit(imported("sklearn.neighbors:KNeighborsClassifier"), make_dataset(), loss=loss)


def test_only_scikit_learns_types_are_stored_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    own = with_own_function()
    for estimator in (own, with_own_function(partial(same))):
        with pytest.raises(ConfigError, match=r"holds .*test_scikit.same, which a trained model may not"):
            to_bytes(estimator, "my:model")
    monkeypatch.setattr("shoal.training.scikit.files._others", lambda data: [])
    data = to_bytes(own, "my:model")  # as another program may write it
    monkeypatch.undo()
    with pytest.raises(DataError, match="which are not scikit-learn's: it is not loaded"):
        from_bytes(data, "there")
    with pytest.raises(DataError, match="cannot be loaded"):
        from_bytes(b"no zip file", "there")
