"""The weights of a local folder of Hugging Face's, by the names that `model.pretrained` gives them; safetensors alone."""

import hashlib
from pathlib import Path

from torch import Tensor

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.names import listed
from shoal.training.pretrained import BACKBONE, require_transformers

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def is_pretrained(place: str) -> bool:
    """Whether a place is such a folder, and no run."""
    folder = Path(place).expanduser()
    return (folder / "config.json").is_file() and not (folder / "model").exists()


def read_pretrained(place: str) -> tuple[dict[str, Tensor], str]:
    """Return the network's tensors, and a hash of the files that hold them.

    Raises
    ------
    DataError
        If the folder holds no safetensors, or they are damaged or not those of its architecture.
    """
    folder = Path(place).expanduser()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        raise DataError(
            f"model.pretrained.path: {place} holds no weights as safetensors"
            + (f", but {listed(others, 3)}, which could run any code when it is read" if others else "")
            + "; write them with model.save_pretrained(folder, safe_serialization=True)"
        )
    sha256 = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            sha256.update(hashlib.file_digest(source, "sha256").digest())
    require_transformers()
    from transformers import AutoModel

    try:
        model, found = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # every architecture raises its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"model.pretrained.path: the weights in {place} cannot be read: {said}") from error
    drawn = set(found["missing_keys"])  # not in the files
    weights = {BACKBONE + n: t for n, t in model.state_dict().items() if n not in drawn}
    return weights, sha256.hexdigest()
