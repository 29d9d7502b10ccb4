"""The trained model: weights, input encoder, classes, calibration, decision and provenance; raw columns in, answers out.

Nothing here is unpickled: weights are safetensors, everything else is JSON. Neither ray nor deepspeed is imported.
"""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from shoal.cluster.components import Imported
from shoal.cluster.config import Config, StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.costs import FIX, costs_of, missing
from shoal.cluster.sharding.images import rooted
from shoal.cluster.sharding.listing import InputFile
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.prepare import Prepared, prepare, require_columns
from shoal.cluster.storage import Storage
from shoal.training.config import PretrainedConfig
from shoal.training.costs import NO_AMOUNTS, Amounts, Costs, by_name
from shoal.training.decision import Calibration, Decision
from shoal.training.description import DESCRIPTION, ModelDescription, digest, read_model
from shoal.training.draws import DrawContext, install_draws
from shoal.training.ensembles.model import EnsembleModel
from shoal.training.models import Factory, Model, build_model
from shoal.training.pretrained import stored
from shoal.training.reasonable import refuse_unreasonable, shown
from shoal.training.scores import forward_rows, scores_from_logits

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class TrainedModel:
    """A model ready to use on raw columns.

    Attributes
    ----------
    module
        Prepared tensors in, logits out; in evaluation mode.
    schema
        Columns, their fitted statistics, and the target.
    config
        The component that built the module.
    decision
        Which class is decided: binary, where the probability of the event is at least a threshold.
    calibration
        What turns the module's probabilities into those that `scores` gives.
    """

    module: Model
    schema: Schema
    config: Config
    decision: Decision = field(default_factory=Decision)
    calibration: Calibration = field(default_factory=Calibration)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task: binary, multiclass, multilabel or regression."""
        return self.schema.target.task

    @property
    def classes(self) -> tuple[bool | int | float | str, ...]:
        """The classes, in the order of the columns of `predict_proba`; empty for regression."""
        return self.schema.target.classes

    def save(self, run: Storage) -> None:
        """Write `model/` into a run folder; the description last, so that half a model is none."""
        dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
        weights, is_estimator = _bytes_of(self.module)
        description = ModelDescription(
            schema=self.schema,
            model=stored(self.config) if isinstance(self.config, PretrainedConfig) else self.config,
            precision="fp64" if dtype == torch.float64 else "fp32",
            calibration=self.calibration,
            threshold=self.decision.threshold,
            costs=self.decision.costs,
            is_estimator=is_estimator,
            members=len(self.module.members) if isinstance(self.module, EnsembleModel) else 0,
            weights_sha256=digest(weights),
            provenance=self.provenance,
        )
        run.write_bytes(description.file, weights)
        run.write_json(DESCRIPTION, description.model_dump(mode="json", by_alias=True))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Storage,
        *,
        factory: Factory | None = None,
        allow_import: bool = False,
        storage: StorageConfig | None = None,
    ) -> "TrainedModel":
        """Load a trained model from a run folder.

        Parameters
        ----------
        path
            The run folder, local or a URI.
        factory
            For a model of your own: the factory that built its module.
        allow_import
            For a model of your own: import the factory by the name that the file holds. Only for runs that you trust.
        storage
            How to reach object storage.

        Raises
        ------
        DataError
            If there is no model, or its files are damaged.
        ConfigError
            If it needs a factory that was neither given nor allowed to be imported.
        """
        if not isinstance(path, str | os.PathLike | Storage):
            raise DataError(f"the model's place is {path!r}; give the folder or URI of a finished run")
        run = path if isinstance(path, Storage) else Storage.open(os.fspath(path), storage or StorageConfig())
        description, data = read_model(run)
        module = (_estimator if description.is_estimator else _network)(
            run, description, data, factory, allow_import
        )
        module.eval()
        return cls(
            module,
            description.schema_,
            description.model,
            description.decision,
            description.calibration,
            description.provenance,
        )

    def reading(self, files: Sequence[InputFile], storage: StorageConfig) -> "TrainedModel":
        """Return the same model for rows of such files: paths of images begin in their folder."""
        return replace(self, schema=rooted(self.schema, [file.uri for file in files], storage))

    def with_threshold(self, threshold: float) -> "TrainedModel":
        """Return the same model with another decision threshold, for all rows."""
        costs = self.decision.costs if self.task == "multiclass" else ()
        return replace(
            self, decision=self.decision.model_copy(update={"threshold": threshold, "costs": costs})
        )

    def scores(
        self, data: "pa.Table | pa.RecordBatch | pd.DataFrame | Mapping[str, Any] | NDArray[Any]"
    ) -> NDArray[np.float64]:
        """Return scores: binary ``[n]``, multiclass and multi-label ``[n, K]`` probabilities; regression ``[n]`` values.

        Raises
        ------
        DataError
            If a column is missing, of another type, or holds infinity; one of costs too, where probabilities depend on it.
        """
        table = as_table(data, self.schema, self.calibration.columns)
        amounts = self.amounts(table, self.calibration.columns)
        return self.prepared_scores(prepare(table, self.schema), amounts)

    def prepared_scores(self, prepared: Prepared, amounts: Amounts = NO_AMOUNTS) -> NDArray[np.float64]:
        """Return scores, as `scores` does, of rows that `prepare` has seen, with their cost columns."""
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        logits = forward_rows(self.module, prepared.numeric, prepared.categorical, device)
        return self.calibration(scores_from_logits(logits, self.schema.target), amounts)

    @property
    def cost_columns(self) -> tuple[str, ...]:
        """The columns, beside the features, that an answer needs: what mistakes on a row cost."""
        return tuple(sorted({*self.calibration.columns, *self.decision.columns}))

    def amounts(self, table: pa.Table, names: Sequence[str]) -> Amounts:
        """Read cost columns of raw rows.

        Raises
        ------
        DataError
            If one is missing, holds no numbers or lacks a value; or if by such costs one class would always be decided.
        """
        costs = costs_of(table, names)
        ids = table.column(self.schema.id) if self.schema.id in table.column_names else None
        if (found := missing(costs, names)) is not None:
            raise DataError(f"{found[0]}, such as {shown(found[1], ids, self.schema)}; {FIX}")
        amounts = by_name(costs, names)
        if self.decision.columns and set(names) >= set(self.decision.columns):
            refuse_unreasonable(
                Costs.of_cells(self.decision.costs),
                amounts,
                self.schema,
                partial(shown, ids=ids, schema=self.schema),
            )
        return amounts

    def predict_proba(self, data: Any) -> NDArray[np.float64]:
        """Return class probabilities ``[n, K]``; for binary, columns are in the order of `classes`.

        Raises
        ------
        DataError
            As `scores`; also for regression, which has none.
        """
        if self.task == "regression":
            raise DataError("a regression model has no class probabilities; use predict")
        scores = self.scores(data)
        return np.stack([1.0 - scores, scores], axis=1) if self.task == "binary" else scores

    def predict(self, data: Any) -> NDArray[Any]:
        """Return classes ``[n]`` (as `decision` says), multi-label 0/1 ``[n, K]``, or regression values ``[n]``.

        Raises
        ------
        DataError
            As `scores`; and if a column of costs is missing by which it decides.
        """
        table = as_table(data, self.schema, self.cost_columns)
        amounts = self.amounts(table, self.cost_columns)
        return self.decide(self.prepared_scores(prepare(table, self.schema), amounts), amounts)

    def decide(self, scores: NDArray[np.float64], amounts: Amounts = NO_AMOUNTS) -> NDArray[Any]:
        """Turn scores, as `scores` gives them, into predictions, as `predict` gives them, by the rows' cost columns."""
        if self.task == "regression":
            return scores
        if self.task == "multilabel":
            return (scores >= 0.5).astype(np.int8)
        answers: NDArray[Any] = np.asarray(self.classes)[self.decision.classes(scores, amounts)]
        return answers


def _bytes_of(module: Model) -> tuple[bytes, bool]:
    """Return a module as bytes, and whether it is an estimator of scikit-learn's."""
    if module.is_estimator:
        from shoal.training.scikit.files import to_bytes
        from shoal.training.scikit.model import EstimatorModel

        assert isinstance(module, EstimatorModel)
        return to_bytes(module.estimator, module.path), True
    # Copies: a file of safetensors holds no two tensors that share memory, as tied weights do.
    state = {n: t.detach().cpu().contiguous().clone() for n, t in module.state_dict().items()}
    return save_weights(state), False


def _estimator(run: Storage, description: ModelDescription, data: bytes, *_: Any) -> Model:
    """Build what a file of skops holds; nothing is imported for it but scikit-learn."""
    from shoal.training.scikit.files import from_bytes
    from shoal.training.scikit.model import EstimatorModel

    assert isinstance(description.model, Imported)
    return EstimatorModel(from_bytes(data, run.uri), description.schema_, description.model.path)


def _network(
    run: Storage, description: ModelDescription, data: bytes, factory: Factory | None, allow_import: bool
) -> Model:
    """Build a network, and read its weights."""
    config = description.model
    if isinstance(config, Imported) and factory is None and not allow_import:
        raise ConfigError(
            f"the model in {run.uri} was built by {config.path}, and loading never imports by itself: "
            "if you trust the run, allow it (--allow-import; in Python allow_import=True, or factory=…)"
        )
    built = [
        build_model(config, description.schema_, seed=0, factory=factory)
        for _ in range(max(1, description.members))
    ]
    module = EnsembleModel(built) if description.members else built[0]
    install_draws(module, DrawContext())
    module.to(torch.float64 if description.precision == "fp64" else torch.float32)
    try:
        module.load_state_dict(load_weights(data))
    except RuntimeError as error:
        raise DataError(
            f"the weights in {run.uri} do not fit the model that {config!r} builds: {str(error).splitlines()[0]}"
        ) from error
    return module


def as_table(data: Any, schema: Schema, others: Sequence[str] = ()) -> pa.Table:
    """Return raw data as an Arrow table: Arrow, pandas, a mapping of columns, or a 2-d array in the model's column order.

    ``others`` are columns to keep beside the features, and the id, where they are there.

    Raises
    ------
    DataError
        If the data are none of these, lack a column, or hold what no column of a table can.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    names = [c.name for c in schema.columns]
    if isinstance(data, np.ndarray):
        if data.ndim != 2 or data.shape[1] != len(names):
            raise DataError(
                f"an array of shape {data.shape}: the model needs {len(names)} columns, in this order: {', '.join(names)}"
            )
        return pa.table({name: _array(name, data[:, i], schema) for i, name in enumerate(names)})
    is_frame = hasattr(data, "columns") and hasattr(data, "to_numpy")
    if not is_frame and not isinstance(data, Mapping):
        raise DataError(
            f"data of type {type(data).__name__}: give a pyarrow Table, a pandas DataFrame, a mapping of columns or a "
            "2-d array"
        )
    keys = list(data.columns if is_frame else data)
    require_columns([str(key) for key in keys], schema)
    own = {str(key): key for key in keys}  # numbers, in a frame that was made without names
    wanted = dict.fromkeys(
        [*names, *(name for name in (*others, *([schema.id] if others else [])) if name in own)]
    )
    columns = {
        name: _array(name, data[own[name]], schema) for name in wanted
    }  # the others need not be readable
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DataError(f"the columns are of several lengths ({said}); give each one value a row")
    return pa.table(columns)


def _array(name: str, values: Any, schema: Schema) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes | Set) or not isinstance(values, Iterable):
        raise DataError(
            f"column {name!r} is of type {type(values).__name__}; give a list or an array with one value a row"
        )
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        kind = getattr(values, "dtype", type(values).__name__)
        reason = "" if name in schema.private else f": {error}"
        raise DataError(
            f"column {name!r} ({kind}) cannot be read{reason}; give values of one type that a table can hold, such as "
            "numbers, texts or time stamps"
        ) from error
