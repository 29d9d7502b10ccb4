"""YAML 1.2 with the core schema, and nothing else: plain data, and where each value was written.

`1e-3` is a number, `no` and `2026-10-01` are texts, `0o17` is 15 and `017` is 17 (YAML 1.2.2, section
10.3.2). ruamel.yaml's own 1.2 rules differ (time stamps, binary numbers, underscores, merge keys), hence our resolver.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import BaseResolver

from shoal.cluster.errors import ConfigError
from shoal.cluster.wording import cut, shown

Key = str | int
KeyPath = tuple[Key, ...]

_TAG = "tag:yaml.org,2002:"
_SHOWN = 6  # values of a list in a message
_CORE = {
    "null": (r"null|Null|NULL|~|", "nN~", ("",)),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", ()),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", ()),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
        (),
    ),
}


class CoreResolver(BaseResolver):
    """Types of plain scalars by the core schema."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - the base class declares it so

    def __init__(self, version: Any = None, loader: Any = None, loadumper: Any = None) -> None:  # noqa: ARG002
        super().__init__(loader if loader is not None else loadumper)

    @property
    def processing_version(self) -> Any:
        """Always 1.2: a ``%YAML 1.1`` line does not switch the rules."""
        return (1, 2)


for _name, (_pattern, _first, _more) in _CORE.items():
    CoreResolver.add_implicit_resolver_base(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), [*_first, *_more])


class QuotingRepresenter(SafeRepresenter):
    """Quotes texts that ruamel's own emitter writes plainly but cannot read back, such as ``:0`` in ``{…}``."""

    def represent_text(self, text: str) -> Any:
        """Write a text, double-quoted where it has more than letters and a few harmless signs."""
        style = None if re.fullmatch(r"[\w./+-][\w ./+@%*~^()<>=-]*", text) else '"'
        return self.represent_scalar(_TAG + "str", text, style=style)


QuotingRepresenter.add_representer(str, QuotingRepresenter.represent_text)


@dataclass
class Document:
    """Plain data, and for each key the place that it was written at (``file.yaml:12`` or ``--set a.b=c``)."""

    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where `path` was written; for a missing key, its nearest parent."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def located(self, message: str) -> str:
        """Put before each line that begins with a key of the file the place where it was written."""

        def placed(line: str) -> str:
            named = re.match(r"[a-z_]+(?:\.\w+)+(?=[: ])", line)
            path = tuple(named[0].split(".")) if named else ()
            while len(path) > 1 and path not in self.places:
                path = path[:-1]
            return f"{self.places[path]}: {line}" if len(path) > 1 else line

        return "\n".join(map(placed, message.splitlines()))


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = CoreResolver
    yaml.Representer = QuotingRepresenter
    yaml.default_flow_style = None  # short lists on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    return yaml


def parse(text: str, name: str, *, numbered: bool = True) -> tuple[Any, dict[KeyPath, str]]:
    """Read one YAML document.

    Parameters
    ----------
    text
        The document.
    name
        What to call it in messages, such as the file's name.
    numbered
        Whether places have line numbers.

    Returns
    -------
    data : dict, list, str, int, float, bool or None
    places : dict
        Path of keys to ``name:line``.

    Raises
    ------
    ConfigError
        Where it is not one YAML document of plain data with text keys, or a key comes twice.
    """
    try:
        root = _yaml().compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None and numbered else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        begun = error.context_mark
        if begun is not None and "flow" in str(error.context):
            at = f" in line {begun.line + 1}" if numbered else ""
            reason += f"; close the bracket that was opened{at}, and put a comma between entries"
        raise ConfigError(f"{name}{line}: not valid YAML: {reason}") from error
    except YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{name}: its sections lie too deep in one another; an experiment has few levels"
        ) from error
    reader = _Reader(name, numbered)
    data = None if root is None else reader.read(root, ())
    return data, reader.places


def load(path: Path, fix: str = "write one with: shoal init DATA --target COLUMN") -> Document:
    """Read a YAML file whose top level is a section of keys; ``fix`` is what helps where there is none.

    Raises
    ------
    ConfigError
        Where the file cannot be read or is not a section of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; {fix}") from error
    except (OSError, UnicodeDecodeError) as error:
        if path.suffix.lower() in (".parquet", ".pq", ".parq", ".csv"):
            raise ConfigError(
                f"{path} is data, not an experiment file; write one with: shoal init {path} --target COLUMN"
            ) from error
        raise ConfigError(f"cannot read {path} as a text file: {error}") from error
    data, places = parse(text, str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: the top level is {describe(data)}, it must be a section of keys")
    return Document(data, {**places, (): f"{path}:1"})


def dump(data: Mapping[str, Any], *, flow: bool = False) -> str:
    """Write plain data so that `parse` gives it back; with `flow`, each key's value on one line."""
    yaml, stream = _yaml(), io.StringIO()
    if not flow:
        yaml.dump(dict(data), stream)
        return stream.getvalue()
    yaml.default_flow_style = True
    yaml.width = 1_000_000
    for key, value in data.items():
        yaml.dump({key: value}, stream)
    return "".join(f"{line[1:-1]}\n" for line in stream.getvalue().splitlines())


def describe(value: Any) -> str:
    """Show a value, or name its kind where it is long, for messages."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        plain = all(isinstance(v, str | int | float) for v in value)
        return cut(f"[{', '.join(map(describe, value))}]") if plain and 0 < len(value) <= _SHOWN else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return shown(value)


_MOST_VALUES, _DEEPEST = 200_000, 100  # lists of files may be long; aliases multiply


class _Reader:
    """Turns ruamel's nodes into plain data."""

    def __init__(self, name: str, numbered: bool) -> None:
        self.name = name
        self.numbered = numbered
        self.places: dict[KeyPath, str] = {}
        self._open: list[Node] = []
        self._values = 0

    def read(self, node: Node, path: KeyPath) -> Any:
        self._values += 1
        if self._values > _MOST_VALUES or len(path) > _DEEPEST:
            raise self._error(
                node,
                f"the file has more than {_MOST_VALUES:,} values, or sections deeper than {_DEEPEST} levels; are there aliases "
                "(*) of aliases?",
            )
        if node in self._open:
            raise self._error(node, "an alias (*) must not point to a section that it is itself part of")
        self._open.append(node)
        self.places.setdefault(path, self._place(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise self._error(key_node, "a key must be one word or text")
            key = str(key_node.value)
            if key in result:
                dotted = ".".join(map(str, (*path, key)))
                raise self._error(
                    key_node, f"{dotted} is written twice, first on line {lines[key]}; keep one of them"
                )
            lines[key] = line
            self.places[(*path, key)] = self._place(key_node)
            result[key] = self.read(value_node, (*path, key))
        return result

    def _scalar(self, node: Node) -> Any:
        tag = str(node.tag)
        text = node.value
        kind = tag.removeprefix(_TAG) if tag.startswith(_TAG) else ""
        if kind == "str":
            return text
        if kind in _CORE and re.fullmatch(_CORE[kind][0], text):
            return _CONSTRUCT[kind](text)
        raise self._error(node, f"the tag {tag} is not supported here; write the plain value")

    def _error(self, node: Node, message: str) -> ConfigError:
        return ConfigError(f"{self._place(node)}: {message}")

    def _place(self, node: Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.numbered else self.name


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_CONSTRUCT: dict[str, Any] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}
