"""What an earlier run of the same work left, so that only the rest is done."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pydantic import ValidationError

from shoal.cluster.config import Config
from shoal.cluster.errors import StorageError
from shoal.cluster.sharding.files import FOLDER
from shoal.cluster.sharding.manifest import MANIFEST, Manifest, Schema, ShardFile
from shoal.cluster.sharding.spread import Here, Spread
from shoal.cluster.sharding.units import is_intact
from shoal.cluster.storage import Storage

_WORK = "sharding-"
_STATISTICS = "statistics.json"
_HERE = Here()


class Fitted(Config):
    """The statistics of the training rows, what was said of them, and the columns that are left out."""

    schema_: Schema
    notices: tuple[str, ...]
    dropped: dict[str, str]


@dataclass
class Earlier:
    """What can be used again.

    Parameters
    ----------
    files
        Shards by slot, verified.
    fitted
        The statistics; None where they are to be fitted.
    """

    files: dict[int, ShardFile] = field(default_factory=dict)
    fitted: Fitted | None = None


def work_folder(key: str) -> str:
    """Return where unfinished work is noted, within the dataset's folder."""
    return f"{_WORK}{key}"


def clear_work(destination: Storage, but: str = "") -> None:
    """Delete what unfinished work of other data, or of all data, left."""
    for name in destination.list():
        if name.startswith(_WORK) and name != but:
            destination.delete(name)


def note_fitted(destination: Storage, work: str, fitted: Fitted) -> None:
    """Keep the statistics for a run that goes on later."""
    destination.write_json(f"{work}/{_STATISTICS}", fitted.model_dump(mode="json"))


def manifest_of(destination: Storage, key: str) -> Manifest | None:
    """Return the manifest that is there, if it has this key."""
    if not destination.exists(MANIFEST):
        return None
    try:
        found = destination.read_json(MANIFEST)
        if not isinstance(found, dict) or found.get("key") != key:
            return None
        return Manifest.model_validate(found)
    except (StorageError, ValueError):
        return None  # damaged: it is made anew


def broken(folder: Storage, manifest: Manifest, verify: bool, spread: Spread = _HERE) -> list[str]:
    """Return the paths of the files that are missing; with ``verify``, of shards too that are not as they were written."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    made = manifest.resampling.parents if manifest.resampling is not None else ""
    if verify:
        whole = spread.map(partial(is_intact, folder), shards)
        lost = [shard.path for shard, good in zip(shards, whole, strict=True) if not good]
        return lost + ([made] if made and not folder.exists(made) else [])
    paths = [shard.path for shard in shards] + ([made] if made else [])
    folders = {path.rpartition("/")[0] for path in paths}
    there = {f"{parent}/{name}" for parent in folders for name in folder.list(parent)}
    return [path for path in paths if path not in there]


def of_manifest(manifest: Manifest, paths: Sequence[str]) -> Earlier:
    """Return what a finished dataset has, but for the shards at ``paths``."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    whole = {slot: shard for slot, shard in enumerate(shards) if shard.path not in paths}
    return Earlier(whole, Fitted(schema_=manifest.schema_, notices=(), dropped=manifest.dropped))


def of_work(destination: Storage, work: str, folder: str, spread: Spread) -> Earlier:
    """Return what an unfinished run has noted and is still as it was written."""
    fitted, noted = None, {}
    for name in destination.list(work):
        try:
            if name == _STATISTICS:
                fitted = Fitted.model_validate(destination.read_json(f"{work}/{name}"))
            elif name.endswith(".json"):
                found = destination.read_json(f"{work}/{name}")
                noted.update({int(slot): ShardFile.model_validate(file) for slot, file in found.items()})
        except (StorageError, ValidationError):
            continue  # damaged: it is done again
    if fitted is None:
        return Earlier()
    files = {slot: noted[slot] for slot in sorted(noted) if noted[slot].path.startswith(f"{folder}/")}
    whole = spread.map(partial(is_intact, destination), list(files.values()))
    return Earlier({slot: files[slot] for slot, good in zip(list(files), whole, strict=True) if good}, fitted)


def tidy(destination: Storage, folder: str, manifest: Manifest) -> None:
    """Delete all that is not of the finished dataset."""
    clear_work(destination)
    for name in destination.list():
        if name.split("-")[0] == FOLDER and name != folder:
            destination.delete(name)
    known = {file.path for split in manifest.splits.values() for file in split.shards}
    if manifest.resampling is not None:
        known.add(manifest.resampling.parents)
    for name in destination.list(folder, unfinished=True):
        if f"{folder}/{name}" not in known:
            destination.delete(f"{folder}/{name}")
