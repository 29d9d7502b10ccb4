"""The experiment: one YAML file, or the same values from Python."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema

from shoal.cluster.components import Choice
from shoal.cluster.config import ClusterConfig, Config, format_duration, identity
from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.imbalance.config import RandomOverSamplerConfig, makes_rows, named
from shoal.evaluation.config import EvaluationConfig
from shoal.experiment_keys import root
from shoal.training.config import (
    MODELS,
    OPTIMIZERS,
    STRATEGIES,
    MLPConfig,
    ModelChoice,
    PretrainedConfig,
    TrainingConfig,
)
from shoal.training.ensembles.config import ENSEMBLES, MetaCostConfig
from shoal.training.losses.config import (
    BY_COSTS,
    LOSSES,
    AutoLossConfig,
    BCEConfig,
    CrossEntropyConfig,
    LogitAdjustedConfig,
)
from shoal.training.sampling.config import CostRejectionConfig
from shoal.transfer.config import UNFREEZING, TransferConfig
from shoal.tuning.config import SCHEDULERS, SEARCHES, TuningConfig
from shoal.yaml_file import Document, dump, load


class Experiment(Config):
    """Everything that determines a result, and the cluster that it runs on, which does not."""

    data: DataConfig
    model: ModelChoice = MLPConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tuning: TuningConfig | None = None
    transfer: TransferConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    seed: int = Field(0, ge=0, lt=2**32, description="root of every draw")

    @property
    def cost_columns(self) -> tuple[str, ...]:
        """The columns of the data in which costs stand, sorted."""
        return () if self.evaluation.costs is None else self.evaluation.costs.columns

    @model_validator(mode="after")
    def _one_correction(self) -> "Experiment":
        if self.data.imbalance is not None and isinstance(self.training.loss, LogitAdjustedConfig):
            raise ValueError(
                "data.imbalance and the loss logit_adjusted both correct for the shares of the classes: keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _cost_of_trials_is_known(self) -> "Experiment":
        if (
            self.tuning is not None
            and self.tuning.objective == "expected_cost"
            and self.evaluation.costs is None
        ):
            raise ValueError(
                "tuning.objective: expected_cost needs evaluation.costs; name the costs there, or use objective: validation"
            )
        return self

    @model_validator(mode="after")
    def _reuse_has_a_start(self) -> "Experiment":
        transfer = self.transfer
        if transfer is None or transfer.start is not None or isinstance(self.model, PretrainedConfig):
            return self
        if given := transfer.of_a_start:
            raise ValueError(
                f"transfer: {given[0]} is about a model to start from, and there is none: give transfer.start a run folder or a "
                "file of weights"
            )
        return self

    @model_validator(mode="after")
    def _costs_of_weights_are_known(self) -> "Experiment":
        loss = self.training.loss
        if getattr(loss, "class_weights", None) != BY_COSTS:
            return self
        if self.evaluation.costs is None:
            raise ValueError(
                "training.loss: class_weights: costs needs evaluation.costs; name the costs there, or give the weights"
            )
        if not isinstance(loss, CrossEntropyConfig | BCEConfig):
            raise ValueError(
                f"training.loss: class_weights: costs is for cross_entropy and bce, whose probabilities can be set right again, "
                f"not for {Choice(LOSSES).name_of(loss)}; give it weights by class, with evaluation.threshold: empirical"
            )
        return self

    @model_validator(mode="after")
    def _rejection_by_costs(self) -> "Experiment":
        key, loss = _by_choice(self.training), self.training.loss
        if key is None:
            return self
        if self.evaluation.costs is None:
            other = "leave it out" if self.training.ensemble is not None else "use shuffle"
            raise ValueError(f"{key} needs evaluation.costs; name the costs there, or {other}")
        if not isinstance(loss, AutoLossConfig | CrossEntropyConfig | BCEConfig):
            raise ValueError(
                f"{key} is for the losses cross_entropy and bce, whose probabilities can be set right again; use one of them"
            )
        if getattr(loss, "class_weights", None) is not None:
            raise ValueError(
                f"{key} and class_weights both count what mistakes cost, or how rare a class is: keep one of them"
            )
        if isinstance(self.training.ensemble, MetaCostConfig):
            return self
        if isinstance(self.data.imbalance, RandomOverSamplerConfig):
            raise ValueError(
                f"data.imbalance: random_over_sampler copies rows, and {key} leaves most of them out again: keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _metacost_decides(self) -> "Experiment":
        if not isinstance(self.training.ensemble, MetaCostConfig):
            return self
        key = "training.ensemble: metacost"
        if self.data.imbalance is not None:
            raise ValueError(
                f"{key} gives training rows the class that is cheapest for the shares of the classes in the data, and "
                "data.imbalance changes these: keep one of them"
            )
        for name, usual in (("calibration", ("auto", "none")), ("threshold", ("auto",))):
            if getattr(self.evaluation, name) not in usual:
                raise ValueError(
                    f"{key} learns decisions, in which costs are counted already, and evaluation.{name} would count them again "
                    f"or change them: leave evaluation.{name} out, or use ensemble: costing"
                )
        return self

    @model_validator(mode="after")
    def _made_rows_have_no_costs(self) -> "Experiment":
        by_weight = getattr(self.training.loss, "class_weights", None) == BY_COSTS
        by_choice = _by_choice(self.training)
        if self.cost_columns and makes_rows(self.data.imbalance) and (by_weight or by_choice):
            name = named(self.data.imbalance) if self.data.imbalance is not None else ""
            used = by_choice or "class_weights: costs"
            raise ValueError(
                f"data.imbalance: {name} makes rows, and nothing says what mistakes on them cost, by which {used} weighs; use "
                "random_under_sampler, or leave one of them out"
            )
        return self


def _by_choice(training: TrainingConfig) -> str | None:
    """Return the key by which rows, or their labels, are chosen by costs; None where they are not."""
    if training.ensemble is not None:
        return f"training.ensemble: {Choice(ENSEMBLES).name_of(training.ensemble)}"
    return "training.sampling: cost_rejection" if isinstance(training.sampling, CostRejectionConfig) else None


_CLUSTER_FILE = "it holds the keys of the cluster section, such as num_workers: 2"
ROOT = root(Experiment)
_WITH_DEFAULTS = ("model", "training", "evaluation", "cluster")


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), cluster_file: str | Path | None = None
) -> Experiment:
    """Read an experiment file.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        ``key.key=value`` each, applied in order after everything else.
    cluster_file
        A YAML file that holds the `cluster` section (its keys, or the section itself); it takes the place
        of the one in `path`.

    Raises
    ------
    ConfigError
        With a line for everything that is wrong: where it is, the key, the value, what is allowed.
    """
    return from_document(read_document(path, cluster_file), overrides)


def read_document(path: str | Path, cluster_file: str | Path | None = None) -> Document:
    """Read an experiment file as it is written, as `load_experiment` does.

    Raises
    ------
    ConfigError
        Where it is no section of keys.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f"an experiment file is given by its path, not by a value of type {type(path).__name__}; values go to "
            "Experiment(data={…}, …)"
        )
    if not os.fspath(path).strip():
        raise ConfigError("the experiment file's name is empty; give the path of a YAML file")
    document = load(Path(path))
    if cluster_file is not None:
        _replace_cluster(document, load(Path(cluster_file), _CLUSTER_FILE))
    return document


def given(experiment: "Experiment | str | Path", name: str | None = None) -> tuple[Experiment, str]:
    """Return the experiment that was given as an object or as the path of its file, and the name of its runs.

    Raises
    ------
    ConfigError
        As for `load_experiment`.
    """
    if isinstance(experiment, Experiment):
        return experiment, name or "experiment"
    return load_experiment(experiment), name or Path(experiment).stem


def load_cluster(path: str | Path | None, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read a file that holds the `cluster` section, or the defaults, with overrides of it.

    Raises
    ------
    ConfigError
        As for `load_experiment`.
    """
    document = Document({"data": {"path": "-", "target": "-"}}, {(): str(path)} if path else {})
    if path:
        _replace_cluster(document, load(Path(path), _CLUSTER_FILE))
    return from_document(document, overrides).cluster


def from_dict(data: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "") -> Experiment:
    """Build an experiment from plain data, as they come from YAML or JSON; `name` says where they are from.

    Raises
    ------
    ConfigError
        As for `load_experiment`.
    """
    return from_document(Document(json.loads(json.dumps(data)), {(): name} if name else {}), overrides)


def from_document(document: Document, overrides: Sequence[str] = ()) -> Experiment:
    """Validate a parsed file with its overrides.

    Raises
    ------
    ConfigError
        As for `load_experiment`.
    """
    from shoal.experiment_errors import check_written, config_error
    from shoal.overrides import apply

    apply(document, overrides, ROOT)
    for key in [key for key, value in document.data.items() if value is None and key in _WITH_DEFAULTS]:
        del document.data[key]  # a section that is left empty has its defaults
    try:
        experiment = Experiment.model_validate(document.data)
    except ValidationError as error:
        raise config_error(error, document, ROOT) from error
    check_written(document, experiment, ROOT)
    return experiment


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """All values, defaults included, as plain data; credentials in paths are masked."""
    from shoal.cluster.storage import redact

    def masked(value: Any) -> Any:
        if isinstance(value, str):
            return redact(value)
        if isinstance(value, dict):
            return {key: masked(item) for key, item in value.items()}
        return [masked(item) for item in value] if isinstance(value, list) else value

    without = (
        {"tuning"} if experiment.tuning is None else None
    )  # so runs of one fit are called what they were
    return {key: masked(value) for key, value in experiment.model_dump(mode="json", exclude=without).items()}


def dump_yaml(experiment: Experiment) -> str:
    """Write the resolved experiment; reading it gives an equal one."""
    return dump(to_dict(experiment))


def run_name(stem: str, verb: str, experiment: Experiment) -> str:
    """``<stem>-<verb>-<8 hex digits of the identity>``, the same after every restart."""
    text = json.dumps(identity(to_dict(experiment)), sort_keys=True, separators=(",", ":"))
    return f"{stem}-{verb}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors and other checkers."""
    schema = Experiment.model_json_schema(schema_generator=_Schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Shoal experiment",
        "description": "Relative paths are relative to the directory that the command runs in.",
    }


class _Schema(GenerateJsonSchema):
    """Defaults as the file has them: durations such as ``5m``, components with their names."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, timedelta):
            return format_duration(dft)
        known = Choice({**MODELS, **OPTIMIZERS, **STRATEGIES, **UNFREEZING, **SEARCHES, **SCHEDULERS})
        name = known.name_of(dft) if isinstance(dft, Config) else None
        return {name: dft.model_dump(mode="json")} if name else super().encode_default(dft)


def _replace_cluster(document: Document, cluster: Document) -> None:
    if "data" in cluster.data:
        raise ConfigError(
            f"{cluster.place(('data',))}: this is a whole experiment; --cluster takes a file with the cluster section "
            "alone"
        )
    nested = set(cluster.data) == {"cluster"}
    document.data["cluster"] = cluster.data["cluster"] if nested else cluster.data
    for path in [p for p in document.places if p[:1] == ("cluster",)]:
        del document.places[path]
    for path, place in cluster.places.items():
        if not nested:
            document.places[("cluster", *path)] = place
        elif path:
            document.places[path] = place
