"""What `shoal crossval --compare` compares: alternatives by name, each some values of the experiment in place of others."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.cluster.errors import ConfigError
from shoal.experiment import Experiment, from_dict
from shoal.training.scikit.unused import names_estimator
from shoal.yaml_file import load

BASE = "as it is"
# What decides which rows are judged; alternatives are compared on the same ones.
_FIXED = (
    "data.path",
    "data.target",
    "data.task",
    "data.positive",
    "data.group",
    "data.domain",
    "data.time",
    "data.id",
    "data.split",
    "evaluation.cv",
    "evaluation.scoring",
    "evaluation.costs",
    "cluster",
    "seed",
)
_FREE = ("data.split.validation",)
_FORM = "such as  smote: {data.imbalance: smote}"


def alternatives(
    experiment: Experiment, given: str | Path | Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Experiment]:
    """Return the experiments to compare, the first of which the others are compared with.

    Parameters
    ----------
    experiment
        What the alternatives change.
    given
        ``{name: {key.key: value, …}}``, or a YAML file of that; None for the experiment alone. An alternative that changes
        nothing is put first, or added.

    Raises
    ------
    ConfigError
        If the file says something else, or an alternative changes which rows are judged, and how.
    """
    if given is None:
        return {BASE: experiment}
    path, found = "compare" if isinstance(given, Mapping) else str(given), written(given)
    if not found:
        raise ConfigError(f"{path}: there is no alternative; write one a line, {_FORM}")
    made: dict[str, Experiment] = {}
    for name, changes in found.items():
        if not str(name).strip():
            raise ConfigError(f"{path}: an alternative has no name; write one, {_FORM}")
        if not isinstance(changes, Mapping | None):
            raise ConfigError(
                f"{path}: {name}: {changes!r} is not allowed; an alternative is a section of keys and values, {_FORM}"
            )
        made[str(name)] = _changed(experiment, changes or {}, f"{path}: {name}")
    plain = next((name for name, changes in found.items() if not changes), None)
    first = {BASE: experiment} if plain is None else {str(plain): made.pop(str(plain))}
    made = {**first, **made}
    if len(made) < 2:
        raise ConfigError(f"{path}: there is nothing to compare with; write another alternative, {_FORM}")
    return made


def written(given: str | Path | Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return alternatives as they were given, or as their file has them."""
    if isinstance(given, Mapping):
        return dict(given)
    return load(Path(given), f"it holds alternatives by name, {_FORM}").data


def _changed(experiment: Experiment, changes: Mapping[str, Any], where: str) -> Experiment:
    for key in changes:
        if key in _FREE:
            continue
        fixed = next(
            (f for f in _FIXED if key == f or key.startswith(f"{f}.") or f.startswith(f"{key}.")), None
        )
        if fixed is not None:
            raise ConfigError(
                f"{where}: {key} decides which rows are judged and how, which alternatives must have in common; set it in the "
                "experiment"
            )
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    values = experiment.model_dump(mode="json")
    try:
        found = from_dict(values, overrides)
        if names_estimator(found.model) and not names_estimator(experiment.model):
            # How the network is trained means nothing for a model of scikit-learn's.
            found = from_dict({**values, "training": {}}, overrides)
    except ConfigError as error:
        said = re.sub(r"^--set ([^\s=]+)=.*?: ", "", str(error))  # nobody wrote that
        raise ConfigError(f"{where}: {said}") from error
    return found
