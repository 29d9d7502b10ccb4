"""A checkpoint on disk: one folder, a pair of files from each worker, complete when every pair verifies.

``rank-00000.safetensors`` holds a worker's tensors and ``rank-00000.json`` the plain values, the worker count, the
SHA-256 of the tensors, and that of itself. Uploads may end in any order and anywhere: a folder counts only where the pairs of all
workers are there and their hashes agree. Nothing in it is ever unpickled.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import _TYPES, load
from torch import Tensor

from shoal.cluster.errors import StorageError
from shoal.cluster.storage import Storage
from shoal.training.strategies.base import Fragment

FOLDER = "checkpoints"
_FORMAT = 4
_DTYPES = {dtype: name for name, dtype in _TYPES.items()}


class DamagedCheckpointError(StorageError):
    """A checkpoint is not what was written; unlike one that cannot be read just now, it is of no use any more."""


@dataclass(frozen=True)
class Part:
    """What one worker writes.

    Attributes
    ----------
    position
        Global steps done.
    tensors
        By name. Whole ones are the same on every worker, so rank 0 alone writes them.
    facts
        Plain values, of this worker.
    """

    position: int
    rank: int
    world_size: int
    tensors: Mapping[str, Fragment]
    facts: Mapping[str, Any]

    def copy(self) -> "Part":
        """Return one that stays as it is while training goes on."""
        tensors = {n: Fragment(f.tensor.detach().clone(), f.start) for n, f in self.own().items()}
        return replace(self, tensors=tensors, facts=deepcopy(self.facts))

    def own(self) -> dict[str, Fragment]:
        """Return the tensors that this worker writes."""
        return {n: f for n, f in self.tensors.items() if f.start is not None or self.rank == 0}


def write_part(part: Part, folder: Storage) -> None:
    """Write a worker's pair of files into a checkpoint's folder."""
    own, name, digest = part.own(), _name(part.rank), hashlib.sha256()
    with folder.write_stream(f"{name}.safetensors") as sink:
        for piece in _safetensors({n: f.tensor for n, f in own.items()}):
            digest.update(piece)
            sink.write(piece)
    facts = {
        "position": part.position,
        "world_size": part.world_size,
        "sha256": digest.hexdigest(),
        "names": {n: f.tensor.numel() for n, f in own.items()},
        "starts": {n: f.start for n, f in own.items() if f.start is not None},
        "facts": dict(part.facts),
    }
    text = json.dumps(facts)  # NaN stays NaN: only Shoal reads it
    whole = {"format": _FORMAT, "sha256": hashlib.sha256(text.encode()).hexdigest(), "part": text}
    folder.write_text(f"{name}.json", json.dumps(whole))


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a file in the safetensors format, tensor by tensor.

    The library's own ``save`` builds the whole file in memory and takes ten times as long as hashing and writing it.
    Wide types come first, so that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header, end = {}, 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


class Checkpoint:
    """A checkpoint, read for any number of workers; a worker's tensors are read when one of them is asked for."""

    def __init__(self, folder: Storage, parts: list[dict[str, Any]]) -> None:
        self.folder, self._parts = folder, parts
        self.position: int = parts[0]["position"]
        self.world_size: int = parts[0]["world_size"]
        self._loaded: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def open(cls, folder: Storage) -> "Checkpoint":
        """Read the plain values of all workers.

        Raises
        ------
        DamagedCheckpointError
            If one is missing, is not what was written, or was written by another version.
        StorageError
            If one cannot be read.
        """
        first = _read_json(folder, 0)
        parts = [first] + [_read_json(folder, rank) for rank in range(1, first["world_size"])]
        if any((p["position"], p["world_size"]) != (first["position"], first["world_size"]) for p in parts):
            raise DamagedCheckpointError(f"{folder.uri} holds parts of different checkpoints")
        return cls(folder, parts)

    def verify(self) -> "Checkpoint":
        """Hash all tensors, keeping none; return the checkpoint.

        Raises
        ------
        DamagedCheckpointError
            If some are missing or are not what was written.
        StorageError
            If some cannot be read.
        """
        for rank in range(self.world_size):
            self._bytes(rank)
        return self

    def facts(self, rank: int = 0) -> dict[str, Any] | None:
        """Return the plain values that a worker wrote; None where there was no such worker."""
        return self._parts[rank]["facts"] if rank < self.world_size else None

    def names(self, prefix: str) -> list[str]:
        """Return the names of all tensors that begin with ``prefix``, without it, sorted."""
        found = {n for part in self._parts for n in part["names"] if n.startswith(prefix)}
        return sorted(n.removeprefix(prefix) for n in found)

    def read(self, name: str, start: int, stop: int | None) -> Tensor:
        """Return elements ``start`` to ``stop - 1`` of a flat tensor, put together from the workers' fragments.

        Elements that nobody wrote are padding, and zero. With ``stop`` None the whole tensor, in its shape.
        """
        if name in self._parts[0]["names"] and name not in self._parts[0]["starts"]:
            whole = self._tensors(0)[name]
            return whole if stop is None else whole.reshape(-1)[start:stop]
        pieces = [
            (part["starts"][name], part["names"][name], rank)
            for rank, part in enumerate(self._parts)
            if name in part["starts"]
        ]
        if stop is None:
            stop = max(first + size for first, size, _ in pieces)
        joined: Tensor | None = None
        for first, size, rank in pieces:
            low, high = max(start, first), min(stop, first + size)
            if low < high:
                piece = self._tensors(rank)[name]
                joined = piece.new_zeros(stop - start) if joined is None else joined
                joined[low - start : high - start] = piece[low - first : high - first]
        if joined is None:  # padding alone: any part tells the type
            joined = self._tensors(pieces[0][2])[name].new_zeros(stop - start)
        return joined

    def _tensors(self, rank: int) -> dict[str, Tensor]:
        if rank not in self._loaded:
            self._loaded[rank] = load(self._bytes(rank))
        return self._loaded[rank]

    def _bytes(self, rank: int) -> bytes:
        name = f"{_name(rank)}.safetensors"
        data = _read(self.folder, name)
        if hashlib.sha256(data).hexdigest() != self._parts[rank]["sha256"]:
            raise _damaged(self.folder, name)
        return data


def written(run: Storage) -> list[tuple[int, str]]:
    """Return (position, path inside the run) of all checkpoints, whole or not, newest first."""
    found = []
    for attempt in run.list(FOLDER):
        for name in run.list(f"{FOLDER}/{attempt}"):
            position = name.removeprefix("step-").partition("-")[0]
            if name.startswith("step-") and position.isdecimal():
                found.append((int(position), f"{FOLDER}/{attempt}/{name}"))
    return sorted(found, reverse=True)


def latest(run: Storage) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint of a run that verifies, and what is wrong with newer ones.

    Raises
    ------
    StorageError
        If one cannot be read: it may be whole, and must not be taken for lost.
    """
    problems: list[str] = []
    for _, path in written(run):
        try:
            return Checkpoint.open(run.child(path)).verify(), problems
        except DamagedCheckpointError as error:
            problems.append(str(error))
    return None, problems


def _name(rank: int) -> str:
    return f"rank-{rank:05d}"


def _read(folder: Storage, name: str) -> bytes:
    if not folder.exists(name):
        raise DamagedCheckpointError(f"{folder.uri} is not complete: {name} is missing")
    return folder.read_bytes(name)


def _read_json(folder: Storage, rank: int) -> dict[str, Any]:
    name = f"{_name(rank)}.json"
    try:
        whole = json.loads(_read(folder, name))
    except ValueError:
        raise _damaged(folder, name) from None
    if isinstance(whole, dict) and isinstance(whole.get("format"), int) and whole["format"] != _FORMAT:
        # Whole, and of use to the version that wrote it.
        raise StorageError(
            f"{folder.uri}/{name} was written by another version of Shoal (format {whole['format']}, here {_FORMAT}): go on "
            "with that version, or delete the run's checkpoints folder to begin anew"
        )
    if not isinstance(whole, dict) or "format" not in whole:
        raise _damaged(folder, name)
    text = str(whole.get("part"))
    if hashlib.sha256(text.encode()).hexdigest() != whole.get("sha256"):
        raise _damaged(folder, name)
    part: dict[str, Any] = json.loads(text)
    return part


def _damaged(folder: Storage, name: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{folder.uri}/{name} is damaged: its bytes are not those that were written"
    )
