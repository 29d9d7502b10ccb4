"""The run folder: one driver at a time, one experiment for good, complete or resumable."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shoal.cluster.config import StorageConfig, identity
from shoal.cluster.errors import ConfigError, StorageError
from shoal.cluster.filesystems import locate, redact
from shoal.cluster.lease import LEASE, held
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.storage import Storage

CONFIG = "config.yaml"
LAST_FILES = ("metrics.json", "manifest.json")
_ABSENT = "(absent)"
_MAY_COME_FIRST = (LEASE, "log.txt")
_BEGINNING = (*_MAY_COME_FIRST, CONFIG, "logs")
_SILENT = Silent()


@dataclass(frozen=True)
class RunFolder(Storage):
    """A folder of results; a `Storage` with a life cycle."""

    @classmethod
    def open(cls, uri: str, storage_config: StorageConfig | None = None) -> "RunFolder":
        """Open a run folder; nothing is created until something is written.

        Raises
        ------
        StorageError
            If a file is there.
        """
        found = cls(*locate(str(uri), storage_config or StorageConfig()))
        if found.is_file():
            raise StorageError(
                f"{found.uri} is a file, and a run is a folder: give one that is not there yet, or a run's own"
            )
        return found

    @property
    def storage(self) -> Storage:
        """The folder as a plain storage."""
        return self.plain()

    @property
    def is_complete(self) -> bool:
        """Whether the file that is written last is there."""
        return any(self.exists(name) for name in LAST_FILES)

    @property
    def has_results(self) -> bool:
        """Whether there is more than what every run begins with."""
        return any(name not in _BEGINNING and not name.startswith(".") for name in self.list())

    def config(self) -> dict[str, Any] | None:
        """Read the resolved experiment of this run; None where none was written yet.

        Raises
        ------
        StorageError
            If `config.yaml` is not that of a run.
        """
        if not self.exists(CONFIG):
            return None
        fix = "it is not Shoal's, or was changed or damaged, and stays as it is: restore it, or use another folder"
        try:
            found = YAML(typ="safe", pure=True).load(self.read_bytes(CONFIG))
        except YAMLError as error:
            raise StorageError(f"{self._show(CONFIG)} is not YAML; {fix}") from error
        if not _is_resolved(found):
            raise StorageError(f"{self._show(CONFIG)} is no resolved experiment; {fix}")
        return found

    @contextmanager
    def claim(
        self, config: Mapping[str, Any], reporter: Reporter = _SILENT, wait: float = 0.0
    ) -> Iterator["RunFolder"]:
        """Hold the run for this process, and for this experiment only.

        Parameters
        ----------
        config
            The resolved experiment in plain values. It is written to `config.yaml`, credentials redacted;
            where that is there already, its identity has to be equal.
        reporter
            Hears when a dead driver's lease is taken over.
        wait
            Seconds to wait for a live driver that holds the run.

        Raises
        ------
        StorageError
            If a live driver holds the run, the folder is none of ours, or it cannot be written.
        ConfigError
            If the run belongs to another experiment; the message lists the difference.
        """
        with held(self.storage, reporter, wait=wait):
            if not self.is_of(config):
                self.delete("logs")  # of an experiment that came to nothing
                self.write_text(CONFIG, to_yaml(config))
            yield self

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether this experiment has begun here already; False where none has.

        Raises
        ------
        StorageError
            If the folder is none of ours.
        ConfigError
            If the run belongs to another experiment; the message lists the difference.
        """
        before = self.config()
        if before is None:
            self._refuse_foreign()
        elif not (changes := difference(before, _plain(config))):
            return True
        elif self.has_results or not self.exists("log.txt"):  # every run of ours has one
            raise ConfigError(
                f"{self.uri} belongs to another experiment:\n"
                + "\n".join(f"  {line}" for line in changes)
                + "\nchoose another --out, undo the change, or delete that folder"
            )
        return False

    def _refuse_foreign(self) -> None:
        foreign = [name for name in self.list() if name not in _MAY_COME_FIRST and not name.startswith(".")]
        if foreign:
            raise StorageError(
                f"{self.uri} is no run folder: it has no {CONFIG} but holds {', '.join(foreign[:3])}"
                f"{' and more' if len(foreign) > 3 else ''}; choose another --out"
            )


def _is_resolved(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether values are those of a resolved experiment: they have its sections, the last one too, and `data` its keys."""
    return (
        isinstance(found, dict)
        and found.keys() >= {"data", "cluster", "seed"}
        and all(isinstance(found[section], dict) for section in ("data", "cluster"))
        and found["data"].keys() >= {"path", "target"}
        and isinstance(found["seed"], int)
    )


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List what differs between the identities of two experiments.

    Returns
    -------
    list of str
        ``key: old -> new`` with dotted keys, sorted; empty where nothing differs.
    """
    old, new = identity(before), identity(after)
    return [
        f"{key}: {_shown(old.get(key, _ABSENT))} -> {_shown(new.get(key, _ABSENT))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]


def to_yaml(config: Mapping[str, Any]) -> str:
    """Write plain values as block YAML 1.2, in the order given, credentials redacted."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    text = io.StringIO()
    yaml.dump(_plain(config), text)
    return text.getvalue()


def _shown(value: Any) -> str:
    """Write a value as the experiment file does."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return redact(str(value))


def _plain(value: Any) -> Any:
    """Tuples to lists and credentials out, as they are after a round trip through the file."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return redact(value) if isinstance(value, str) else value
