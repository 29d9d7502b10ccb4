"""What a fit starts from: the model of a run, or a file of weights; nothing is unpickled."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from shoal.cluster.components import Choice
from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.names import plural
from shoal.cluster.storage import Storage, redact
from shoal.training.config import MODELS
from shoal.training.description import digest, read_model
from shoal.transfer.pretrained import is_pretrained, read_pretrained

TENSORS, TORCH = (".safetensors",), (".pt", ".pth")
_OTHERS = (
    ".bin",
    ".ckpt",
    ".h5",
    ".keras",
    ".npz",
    ".onnx",
    ".pkl",
    ".pb",
    ".joblib",
    ".skops",
    ".tar",
    ".zip",
)
_INSIDE = (
    "state_dict",
    "model_state_dict",
    "model",
)  # where training scripts put the weights among other things


@dataclass(frozen=True)
class Start:
    """Weights by name, and what is known of them.

    Attributes
    ----------
    place
        Where they are from, without credentials.
    sha256
        Of the file.
    schema
        Columns with their statistics, and the target, of a run's model; None for a file of weights.
    model
        The `model` section of a run, as its file has it; empty for a file of weights.
    """

    place: str
    weights: Mapping[str, Tensor]
    sha256: str
    schema: Schema | None = None
    model: Mapping[str, Any] | None = None


def is_file(place: str) -> bool:
    """Whether a place names a file of weights, not a run folder.

    Raises
    ------
    ConfigError
        For a file of another kind.
    """
    lower = place.lower()
    if lower.endswith(_OTHERS):
        raise ConfigError(
            f"transfer.start: {redact(place)} is no file that is read here: give a run folder, a file of safetensors, or one "
            f"that torch.save wrote of weights alone ({', '.join(TORCH)}); convert others with safetensors.torch.save_file"
        )
    return lower.endswith(TENSORS + TORCH)


def read_start(place: str, storage: StorageConfig) -> Start:
    """Read the weights that a fit starts from.

    Parameters
    ----------
    place
        A run folder, or a file of weights; local or a URI. Or a local folder of Hugging Face's.
    storage
        How to reach object storage.

    Raises
    ------
    ConfigError
        If it is a file of another kind, or the run of an estimator of scikit-learn's.
    DataError
        If it is not there or damaged, or holds more than weights.
    """
    if is_file(place):
        folder, _, name = place.rpartition("/")
        holder = Storage.open(folder or ".", storage)
        if not holder.exists(name):
            raise DataError(
                f"transfer.start: there is no {redact(place)}; give a run folder or a file of weights"
            )
        data = holder.read_bytes(name)
        read = _safetensors if place.lower().endswith(TENSORS) else _torch
        return Start(redact(place), read(data, redact(place)), digest(data))
    if is_pretrained(place):
        weights, sha256 = read_pretrained(place)
        return Start(place, weights, sha256)
    description, data = read_model(Storage.open(place, storage))
    if description.is_estimator:
        raise ConfigError(
            f"transfer.start: {redact(place)} holds an estimator of scikit-learn's, which has no weights to start from; give the "
            "run of a network"
        )
    if description.members:
        raise ConfigError(
            f"transfer.start: {redact(place)} holds an ensemble of {plural(description.members, 'model')}; "
            "give the run of a single one"
        )
    return Start(
        redact(place),
        load(data),
        digest(data),
        description.schema_,
        Choice(MODELS).plain(description.model),
    )


def _safetensors(data: bytes, place: str) -> dict[str, Tensor]:
    try:
        return dict(sorted(load(data).items()))
    except SafetensorError as error:
        raise DataError(f"transfer.start: {place} is damaged, or no file of safetensors ({error})") from error


def _torch(data: bytes, place: str) -> dict[str, Tensor]:
    """Read what `torch.save` wrote, weights alone: no code in it is run."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"transfer.start: {place} is damaged, or holds more than weights, which could run any code when it is read: save "
            f"model.state_dict(), as safetensors ({str(error).splitlines()[0]})"
        ) from error
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    tensors = (
        {str(n): t for n, t in found.items() if isinstance(t, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise DataError(f"transfer.start: {place} holds no tensors by name; save model.state_dict()")
    return tensors
