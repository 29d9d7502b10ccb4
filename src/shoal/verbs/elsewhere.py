"""What of an experiment has to be reached from another machine, and what is sent there."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.cluster.components import Imported
from shoal.cluster.config import identity
from shoal.cluster.errors import ConfigError
from shoal.cluster.filesystems import redact
from shoal.experiment import Experiment, dump_yaml, to_dict
from shoal.training.config import PretrainedConfig
from shoal.verbs.axis import alternatives, written
from shoal.verbs.runs import run_uri
from shoal.yaml_file import dump

_FIX = (
    "; use one that the cluster reaches (s3://, gs://, hdfs://), or an absolute path below a folder that all nodes share, "
    "named in cluster.shared_paths"
)
_FLAGS = {
    "compare": ("--compare", "crossval"),
    "find_learning_rate": ("--find-learning-rate", "train"),
    "list_layers": ("--list", "features"),
}
_LONGEST = 100  # of a file's name


@dataclass(frozen=True)
class Options:
    """What a verb is told beside its experiment.

    Parameters
    ----------
    compare
        Of crossval: alternatives, or the YAML file of them.
    find_learning_rate
        Of train.
    list_layers
        Of features.
    """

    compare: str | Path | Mapping[str, Mapping[str, Any]] | None = None
    find_learning_rate: bool = False
    list_layers: bool = False


NONE = Options()


@dataclass(frozen=True)
class Errand:
    """What one verb is to do on another machine.

    Parameters
    ----------
    name
        What the run's folder begins with.
    out
        The run's folder; None for the one that the same command has here.
    """

    verb: str
    experiment: Experiment
    name: str
    out: str | None = None
    options: Options = NONE

    @property
    def run(self) -> str:
        """Where the results will be; of shards, whose folder follows from the data, what it is in."""
        if self.verb == "shard":
            return self.out or self.experiment.cluster.storage_path
        verb = "find-learning-rate" if self.options.find_learning_rate else self.verb
        compared = self.options.compare is not None and self.out is None
        return run_uri(self.experiment, verb, self.name, self.out) + ("-compare" if compared else "")

    @property
    def key(self) -> str:
        """What it is known by: what its result depends on, and where that goes."""
        experiments = [identity(to_dict(one)) for one in self.experiments.values()]
        content = [self.name, self.words(), self.run, *experiments]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", self.name).strip("-") or "experiment"
        return f"{stem}-{self.verb}-{digest}"

    @property
    def experiments(self) -> dict[str, Experiment]:
        """The experiment, or its alternatives by name."""
        return alternatives(self.experiment, self.options.compare)

    def words(self, folder: str = "") -> list[str]:
        """Return the command line there, where its files are in a folder, which ends with a slash."""
        file, other = self._files
        out = self.out if self.verb == "shard" else self.run
        return [
            *("python", "-m", "shoal", self.verb, folder + file),
            *(("--out", out) if out is not None else ()),
            *(("--compare", folder + other) if self.options.compare is not None else ()),
            *(("--find-learning-rate",) if self.options.find_learning_rate else ()),
            *(("--list",) if self.options.list_layers else ()),
        ]

    def files(self, **cluster: Any) -> dict[str, str]:
        """Return what the command reads there, by file name; with changes of the `cluster` section."""
        file, other = self._files
        found = {file: resolved(self.experiment, **cluster)}
        if self.options.compare is not None:
            found[other] = dump(written(self.options.compare))
        return found

    def refuse(self, fix: str = _FIX) -> None:
        """Refuse what means nothing for the verb, and paths that the other machine has not, or must not be told.

        Parameters
        ----------
        fix
            What the message about paths ends with.

        Raises
        ------
        ConfigError
            With the option, or the keys of all such paths.
        """
        for name, (flag, verb) in _FLAGS.items():
            if getattr(self.options, name) and verb != self.verb:
                raise ConfigError(f"{flag} is of shoal {verb}, not of shoal {self.verb}; leave it out")
        for experiment in self.experiments.values():
            refuse_local(experiment, self.out, fix)
            endpoint = experiment.cluster.storage.endpoint
            places = [*paths_of(experiment, self.out), ("cluster.storage.endpoint", endpoint or "")]
            for key, path in places:
                if redact(path) != path:
                    raise ConfigError(
                        f"{key}: {redact(path)} carries credentials, which are not sent; give them to the cluster itself, "
                        "by its environment or a role"
                    )
        cluster = self.experiment.cluster
        if cluster.cache_path is None and self.verb != "shard" and _is_remote(cluster.storage_path):
            raise ConfigError(
                f"cluster.storage_path: {cluster.storage_path} is in object storage: give cluster.cache_path, a folder of every "
                "node's own, such as /tmp/shoal, for copies of the shards"
            )

    @property
    def _files(self) -> tuple[str, str]:
        """Names of the files, of characters that every shell, disk and Kubernetes takes."""
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name).strip("-.")[:_LONGEST] or "experiment"
        return f"{plain}.yaml", f"{plain}-compare.yaml"


def resolved(experiment: Experiment, **cluster: Any) -> str:
    """Write the experiment as the other machine reads it, for the cluster that it is in."""
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


def modules_of(*experiments: Experiment) -> list[str]:
    """Return the modules of the user's own that experiments import, sorted."""

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

    return sorted(set(walk(experiments)))


def _is_local(path: str, shared: tuple[str, ...]) -> bool:
    if _is_remote(path):
        return False
    normal = posixpath.normpath(path.removeprefix("file://"))
    return not any(normal == folder or normal.startswith(folder) for folder in map(_folder, shared))


def _is_remote(path: str) -> bool:
    return "://" in path.removeprefix("file://")


def _folder(path: str) -> str:
    return posixpath.normpath(path).rstrip("/") + "/"
