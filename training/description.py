"""What a trained model's files hold, read and verified without torch."""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from shoal.cluster.config import Config
from shoal.cluster.errors import DataError, StorageError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.storage import Storage
from shoal.training.config import ModelChoice
from shoal.training.costs import Cells
from shoal.training.decision import Calibration, Decision

WEIGHTS, ESTIMATOR, DESCRIPTION = "model/model.safetensors", "model/model.skops", "model/model.json"
_FIX = "delete that folder and train it again"


class ModelDescription(Config):
    """What `model.json` holds."""

    version: Literal[1] = 1
    schema_: Schema = Field(alias="schema")
    model: ModelChoice
    is_estimator: bool = Field(False, description="of scikit-learn's, in `model.skops`")
    members: int = Field(
        0, ge=0, description="of an ensemble, whose mean probability is the answer; 0 is none"
    )
    precision: str = "fp32"
    calibration: Calibration = Calibration()
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    costs: Cells = Field((), description="as in `Decision`")
    weights_sha256: str = Field(description="of `model.safetensors`, or `model.skops`")
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def file(self) -> str:
        """What holds the weights, or the estimator."""
        return ESTIMATOR if self.is_estimator else WEIGHTS

    @property
    def decision(self) -> Decision:
        """Which class is decided."""
        return Decision(threshold=self.threshold, costs=self.costs)


def digest(weights: bytes) -> str:
    """Return what `weights_sha256` is for these bytes."""
    return hashlib.sha256(weights).hexdigest()


def read_model(run: Storage) -> tuple[ModelDescription, bytes]:
    """Read the description and the weights of a run's model.

    Raises
    ------
    DataError
        If one is missing or damaged.
    """
    _require(run, DESCRIPTION)
    try:
        description = ModelDescription.model_validate(run.read_json(DESCRIPTION))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise DataError(
            f"{DESCRIPTION} in {run.uri} is damaged or of another version ({where}: {first['msg']}); {_FIX}"
        ) from error
    except StorageError as error:
        raise DataError(f"{error}; {_FIX}") from error
    _require(run, description.file)
    weights = run.read_bytes(description.file)
    if digest(weights) != description.weights_sha256:
        raise DataError(
            f"{description.file} in {run.uri} is damaged: its {len(weights):,} bytes are not those that model.json describes; "
            f"{_FIX}"
        )
    return description, weights


def _require(run: Storage, name: str) -> None:
    if not run.exists(name):
        raise DataError(
            f"{run.uri} holds no trained model ({name} is missing): give the folder of a finished run"
        )


def write_decision(run: Storage, calibration: Calibration, decision: Decision) -> None:
    """Give a run's model, whose weights stay, its calibration and its decision."""
    known, _ = read_model(run)
    changed = {"calibration": calibration, "threshold": decision.threshold, "costs": decision.costs}
    run.write_json(DESCRIPTION, known.model_copy(update=changed).model_dump(mode="json", by_alias=True))
