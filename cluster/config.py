"""The base of every config section, the units that they share, and the `cluster` section."""

import math
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    field_validator,
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# Where a run runs, how often it saves itself and how it is explained are not the experiment: results do not depend on them.
_NOT_IDENTITY = ("cluster", "training.checkpoint", "tuning.max_concurrent_trials", "evaluation.explain")
_LONGEST_SECONDS = 36_500 * 86_400
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*$")


class Config(BaseModel):
    """A frozen section of the experiment; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


def identity(experiment: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what makes a run the run of this experiment: dotted keys to plain values."""
    flat: dict[str, Any] = {}
    for key, value in experiment.items():
        if f"{prefix}{key}" in _NOT_IDENTITY:
            continue
        if isinstance(value, Mapping) and value:
            flat |= identity(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse_duration(value: Any) -> Any:
    """Turn ``90``, ``"90s"``, ``"10m"``, ``"6h"``, ``"60d"`` or ``"2w"`` into a timedelta."""
    if isinstance(value, str):
        match = _DURATION.match(value)
        seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    elif isinstance(value, int | float):
        seconds = math.nan if isinstance(value, bool) else float(value)
    else:
        return value
    if not 0 <= seconds <= _LONGEST_SECONDS:
        raise ValueError(
            "a duration is a number of seconds from 0 on or a text such as 90s, 10m, 6h, 60d, at most 36500d"
        )
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """Write a duration in the largest unit that keeps it whole; the inverse of `parse_duration`."""
    seconds = value.total_seconds()
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return f"{seconds:g}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration, json_schema_input_type=float | str),
    PlainSerializer(format_duration, return_type=str),
]


class StorageConfig(Config):
    """How to reach object storage. Secrets come from the environment or a role, never from here."""

    endpoint: str | None = Field(None, description="S3-compatible endpoint, such as http://minio:9000")
    region: str | None = None
    role_arn: str | None = Field(None, description="role to assume")
    tls_ca_file: str | None = Field(None, description="certificate authorities to trust, a PEM file")


Workers = Annotated[int, Field(ge=1)]
SharedPath = Annotated[str, Field(pattern=r"^/")]


class AutoscalerConfig(Config):
    """What an autoscaler may make of a cluster: Ray's own do not say it, so a job beyond what is there is refused without."""

    cpus: Annotated[float, Field(gt=0)] = Field(description="of all nodes together, at most")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="of all nodes together, at most")


class ClusterConfig(Config):
    """Where the work runs. No part of a run's identity: results do not depend on it."""

    address: str | None = Field(
        None, description="an existing Ray cluster; none starts a local one when needed"
    )
    num_workers: Workers | Literal["auto"] | tuple[Workers, Workers] = Field(
        "auto",
        description="a pair, such as [2, 8], lets a group shrink and grow with the cluster between the two",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    placement: Literal["auto", "inline", "task", "group"] = "auto"
    storage_path: str = Field("runs", description="folder or URI that holds runs and sharded datasets")
    storage: StorageConfig = StorageConfig()
    cache_path: str | None = Field(None, description="where workers keep copies of remote shards")
    shared_paths: tuple[SharedPath, ...] = Field(
        (),
        description="folders that all nodes reach under these names, such as /mnt/shared: jobs elsewhere may use them",
    )
    autoscaler: AutoscalerConfig | None = Field(
        None,
        description="{cpus: …, gpus: …}: the most that the cluster may grow to; it is asked for nodes and waited for",
    )
    wait: Duration = Field(
        timedelta(minutes=5), description="how long to wait for resources in use by others, or for new nodes"
    )
    collective_timeout: Duration = Field(
        timedelta(minutes=5), description="how long a worker waits for the others in one operation"
    )
    max_failures: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="how often a group that lost a worker starts again, from its newest checkpoint"
    )
    debug: StrictBool = Field(False, description="let Ray's own messages through")

    @field_validator("collective_timeout")
    @classmethod
    def _long_enough(cls, value: timedelta) -> timedelta:
        if value < timedelta(seconds=1):
            raise ValueError("a worker must be given at least 1s to wait for the others; 5m is usual")
        return value

    @field_validator("num_workers", mode="before")
    @classmethod
    def _is_a_pair(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            numbers = [n for n in value if isinstance(n, int) and not isinstance(n, bool)]
            if len(value) != 2 or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
                raise ValueError(
                    "a pair holds the least and the most workers, whole numbers from 1 on, such as [2, 8]"
                )
        return value
