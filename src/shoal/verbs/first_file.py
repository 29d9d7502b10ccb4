"""init: a first experiment file, commented, from what the data hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, DataError, StorageError
from shoal.cluster.filesystems import redact
from shoal.cluster.progress import Reporter
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, from_dict
from shoal.training.config import MODELS, READS
from shoal.verbs.look import Look, look
from shoal.verbs.rows import given_as
from shoal.yaml_file import dump

_SPLIT_NAMES = ("split", "subset", "partition")
_SHOWN_CLASSES = 6
_COMMENT_AT = 34


@dataclass(frozen=True)
class InitResult:
    """The file that was written, and what it says."""

    file: str
    text: str
    data: Look

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"file": self.file, "data": self.data.as_dict()}


def init(
    data: str | Sequence[str],
    target: str | Sequence[str],
    out: str | None = None,
    *,
    overrides: tuple[str, ...] = (),
    force: bool = False,
    reporter: Reporter | None = None,
) -> InitResult:
    """Write an experiment file with the roles and types that the data suggest.

    Parameters
    ----------
    data
        Parquet files, folders or globs.
    target
        Column to predict, or several for multi-label.
    out
        The file; by default the data's stem with ``.yaml``, in the current directory.
    overrides
        Values to write instead of the defaults, such as ``data.drop=[notes]``.
    force
        Overwrite `out`.
    reporter
        Hears of progress.

    Raises
    ------
    DataError
        If the data cannot be used so; the message names the key that helps, for `overrides`.
    StorageError
        If the file exists or cannot be written.
    """
    paths = [data] if isinstance(data, str) else list(data)
    file = Path(out or f"{_stem(paths[0])}.yaml")
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {file}: an experiment file ends in .yaml")
    if file.exists() and not force:
        raise StorageError(f"{file} exists; choose another --out, or overwrite it with --force")
    columns = [target] if isinstance(target, str) else list(target)
    section = {
        "path": paths if len(paths) > 1 else paths[0],
        "target": columns if len(columns) > 1 else columns[0],
    }
    experiment = from_dict({"data": section}, overrides, name="shoal init")
    try:
        with given_as("DATA"):
            found = look(experiment.data, experiment.seed, experiment.cluster.storage, reporter)
    except DataError as error:
        if "data.drop" not in str(error) and "data.types" not in str(error):
            raise
        raise DataError(f"{error}\nhere, such a key is given as: --set 'data.drop=[COLUMN]'") from error
    text = _text(experiment, found, str(file))
    Storage.open(str(file.parent)).write_text(file.name, text)
    return InitResult(str(file), text, found)


def _stem(path: str) -> str:
    name = PurePosixPath(path.split("://")[-1].split("?")[0]).name
    stem = name.split(".")[0].strip("*[]") if name else ""
    return stem or "experiment"


def _text(experiment: Experiment, found: Look, file: str) -> str:
    files = f"{found.files} files" if found.files > 1 else "1 file"
    head = [
        f"# From {found.rows:,} rows in {files}. Every value may be changed; what is left out has its default.",
        f"# shoal check {file} shows what it comes to, shoal schema lists every key, shoal train {file} trains.",
    ]
    sections = [
        _data(experiment, found),
        _model(experiment, found),
        _training(experiment),
        _evaluation(experiment, found),
    ]
    cluster = _plain_section(experiment, "cluster", {"num_workers": experiment.cluster.num_workers})
    return "\n".join([*head, *(line for section in [*sections, cluster] for line in section)]) + "\n"


def _data(experiment: Experiment, found: Look) -> list[str]:
    data = experiment.data
    lines = [
        "",
        "data:",
        _entry("path", [redact(p) for p in data.path] if len(data.path) > 1 else redact(data.path[0])),
    ]
    classes = ", ".join(
        f"{name} ({rows:,} rows)" for name, rows in list(found.class_rows.items())[:_SHOWN_CLASSES]
    )
    more = len(found.class_rows) - _SHOWN_CLASSES
    classes += f" and {more} more" if more > 0 else ""
    lines.append(_entry("target", list(data.target) if len(data.target) > 1 else data.target[0], classes))
    lines.append(_entry("task", found.target.task, found.target.reason))
    if found.target.task == "binary" and found.class_rows:
        lines.append(_entry("positive", found.target.classes[1], "the event; by default the rarer value"))
    lines += _roles(experiment, found)
    lines.append(
        _entry("drop", list(data.drop), "columns to leave out; or features: [...] to name those to use")
    )
    for name, reason in found.dropped.items():
        if name not in data.drop and name not in data.target:
            lines.append(f"  # not a feature: {_scalar(name)} ({reason})")
    lines += _split(experiment, found)
    lines.append("  # Each column's type as it was found; take the # away and change what is wrong.")
    lines.append("  # types:" if not data.types else "  types:")
    types = {
        name: kind.model_dump(mode="json", exclude_defaults=True) if isinstance(kind, Config) else kind
        for name, kind in data.types.items()
    }
    for column in found.columns:
        mark = "  " if column.name in data.types else "# "
        kind = types.get(column.name, column.type)
        kind = {column.type: kind} if isinstance(kind, dict) else kind
        lines.append(_comment(f"  {mark}  {_item(column.name, kind)}", column.reason))
    return lines


def _roles(experiment: Experiment, found: Look) -> list[str]:
    """Write the roles that were given, and the others as comments with the column that they may be."""
    data = experiment.data
    ids = [name for name, reason in found.dropped.items() if "identifier" in reason]
    ids += [column.name for column in found.columns if column.name.lower() in ("id", "row_id", "uuid")]
    stamps = [column.name for column in found.columns if column.type == "timestamp"]
    wanted: tuple[tuple[str, str | None, list[str], str], ...] = (
        ("id", data.id, ids, "carried into predictions, never a feature"),
        ("time", data.time, stamps, "train on the past, test on the future"),
        ("group", data.group, [], "rows of one group never straddle a split"),
    )
    lines = []
    for key, given, guesses, meaning in wanted:
        if given is not None:
            lines.append(_entry(key, given, meaning))
        else:
            lines.append(_comment(f"  # {key}: {_scalar(guesses[0]) if guesses else 'COLUMN'}", meaning))
    return lines


def _split(experiment: Experiment, found: Look) -> list[str]:
    given = experiment.data.split.model_dump(mode="json", exclude_unset=True)
    rows = ", ".join(f"{name} {count:,}" for name, count in found.parts.items())
    lines = [_entry("split", given or {"test": 0.2, "validation": 0.1}, f"{found.split_kind}: {rows} rows")]
    guess = next((c.name for c in found.columns if c.name.lower() in _SPLIT_NAMES), None)
    if guess and not given:
        lines.append(
            f"  # If {_scalar(guess)} says train, validation or test, write: split: {{column: {_scalar(guess)}}}"
        )
    return lines


def _model(experiment: Experiment, found: Look) -> list[str]:
    model = experiment.model_dump(mode="json")["model"]
    kinds = {column.type for column in found.columns}
    reader = next((name for name, kind in READS.items() if kind in kinds), None)
    if reader is not None and "model" not in experiment.model_fields_set:
        model = {reader: MODELS[reader]().model_dump(mode="json")}
    return ["", "model:", *(f"  {_item(name, value)}" for name, value in model.items())]


def _training(experiment: Experiment) -> list[str]:
    training = experiment.model_dump(mode="json")["training"]
    return [
        "",
        "training:",
        _entry("epochs", training["epochs"]),
        _entry("batch_size", training["batch_size"], "rows of a step over all workers, auto or full"),
        _entry("optimizer", training["optimizer"]),
        _entry("early_stopping", training["early_stopping"], "on the validation rows"),
    ]


def _evaluation(experiment: Experiment, found: Look) -> list[str]:
    from shoal.evaluation.metrics import resolve_scoring

    names = [metric.name for metric in resolve_scoring(experiment.evaluation.scoring, found.target.task)]
    return ["", "evaluation:", "  # The first one drives early stopping.", _entry("scoring", names)]


def _plain_section(experiment: Experiment, name: str, defaults: dict[str, Any]) -> list[str]:
    given = experiment.model_dump(mode="json", exclude_unset=True).get(name) or {}
    return ["", f"{name}:", *(_entry(key, value) for key, value in {**defaults, **given}.items())]


def _entry(key: str, value: Any, comment: str = "") -> str:
    return _comment(f"  {_item(key, value)}", comment)


def _comment(text: str, comment: str) -> str:
    return f"{text.ljust(_COMMENT_AT)}  # {' '.join(comment.split())}" if comment else text


def _item(key: str, value: Any) -> str:
    return dump({key: value}, flow=True).strip()


def _scalar(value: Any) -> str:
    return _item("k", value)[3:]
