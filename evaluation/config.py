"""The `evaluation` section."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shoal.cluster.config import Config
from shoal.evaluation.crossval.config import AutoConfig, CvChoice
from shoal.evaluation.deciding.config import CostsField, Threshold
from shoal.evaluation.explain.config import ExplainConfig


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) and value != "auto" else value


class EvaluationConfig(Config):
    """How a model is judged, and how it decides."""

    scoring: (
        Annotated[tuple[str, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | tuple[str, ...])]
        | Literal["auto"]
    ) = Field(
        "auto",
        description="metrics; the first drives early stopping (auto: average_precision, log_loss or rmse)",
    )
    cv: CvChoice = Field(
        AutoConfig(), description="folds of shoal crossval: their number, auto, or a splitter"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="coverage of the intervals")
    replicates: Annotated[int, Field(ge=100, le=100_000)] = Field(1000, description="bootstrap replicates")
    costs: CostsField = Field(
        None,
        description="{false_positive: …, false_negative: …}, or {actual: {class: {decided class: …}}, otherwise: …}",
    )
    calibration: Literal["auto", "none", "temperature", "isotonic"] = Field(
        "auto", description="fitted on the validation rows; auto: temperature with costs, otherwise none"
    )
    threshold: Threshold = Field(
        "auto",
        description="least probability of the event that is called the event; optimal: by the costs; empirical: of lowest cost "
        "on the validation rows; auto: optimal with costs, otherwise 0.5",
    )
    explain: ExplainConfig = ExplainConfig()
