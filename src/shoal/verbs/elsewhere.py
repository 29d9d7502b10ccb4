"""What of an experiment has to be reached from another machine, and what is sent there."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError
from shoal.cluster.filesystems import redact
from shoal.experiment import Experiment, dump_yaml
from shoal.training.config import PretrainedConfig
from shoal.verbs.runs import run_uri

_FIX = (
    "; use one that the cluster reaches (s3://, gs://, hdfs://), or an absolute path below a folder that all nodes share, "
    "named in cluster.shared_paths"
)


def destination(experiment: Experiment, verb: str, name: str, out: str | None) -> str:
    """Return where the verb's results will be; of shards, whose folder follows from the data, what it is in."""
    if verb == "shard":
        return out or experiment.cluster.storage_path
    return run_uri(experiment, verb, name, out)


def words_of(verb: str, file: str, out: str | None) -> list[str]:
    """Return the command line of the verb elsewhere."""
    return ["python", "-m", "shoal", verb, file, *(["--out", out] if out else [])]


def resolved(experiment: Experiment, **cluster: Any) -> str:
    """Write the experiment as the other machine reads it, for the cluster that it is in.

    Raises
    ------
    ConfigError
        If a path carries credentials, which are not written down.
    """
    for key, path in paths_of(experiment):
        if redact(path) != path:
            raise ConfigError(
                f"{key}: {redact(path)} carries credentials, which are not sent; give them to the cluster itself, by its "
                "environment or a role"
            )
    changed = experiment.cluster.model_copy(update={"address": None, **cluster})
    return dump_yaml(experiment.model_copy(update={"cluster": changed}))


def refuse_local(experiment: Experiment, out: str | None = None, fix: str = _FIX) -> None:
    """Refuse paths that only this machine has.

    Parameters
    ----------
    fix
        What the message ends with.

    Raises
    ------
    ConfigError
        For all of them, with the keys.
    """
    shared = experiment.cluster.shared_paths
    wrong = [f"{key}: {path}" for key, path in paths_of(experiment, out) if _is_local(path, shared)]
    if wrong:
        are = "is a path" if len(wrong) == 1 else "are paths"
        raise ConfigError(f"{', '.join(wrong)} {are} of this machine{fix}")


def paths_of(experiment: Experiment, out: str | None = None) -> list[tuple[str, str]]:
    """Return the places that a fit reads from or writes to, with the keys that name them."""
    data, transfer, cluster = experiment.data, experiment.transfer, experiment.cluster
    found: list[tuple[str, str | None]] = [("data.path", path) for path in data.path]
    if isinstance(experiment.model, PretrainedConfig):
        found.append(("model.pretrained.path", experiment.model.path))
    if transfer is not None:
        found.append(("transfer.start", transfer.start))
        if transfer.target_data is not None:
            found += [("transfer.target_data.path", path) for path in transfer.target_data.path]
            if isinstance(test := transfer.target_data.test, tuple):
                found += [("transfer.target_data.test", path) for path in test]
    found += [
        ("cluster.storage_path", cluster.storage_path),
        ("cluster.storage.tls_ca_file", cluster.storage.tls_ca_file),
        ("--out", out),
    ]
    return [(key, path) for key, path in found if path is not None]


def modules_of(experiment: Experiment) -> list[str]:
    """Return the modules of the user's own that the experiment imports, sorted."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, Imported):
            yield value.path.partition(":")[0]
        elif hasattr(type(value), "model_fields"):
            for name in type(value).model_fields:
                yield from walk(getattr(value, name))
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from walk(item)

    return sorted(set(walk(experiment)))


def _is_local(path: str, shared: tuple[str, ...]) -> bool:
    plain = path.removeprefix("file://")
    if "://" in plain:
        return False
    normal = posixpath.normpath(plain)
    return not any(normal == folder or normal.startswith(folder) for folder in map(_folder, shared))


def _folder(path: str) -> str:
    return posixpath.normpath(path).rstrip("/") + "/"
