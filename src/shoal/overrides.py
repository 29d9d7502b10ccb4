"""``--set training.optimizer.learning_rate=3e-4``: one value of an experiment, changed from outside."""

import re
from collections.abc import Sequence
from typing import Any

from shoal.cluster.errors import ConfigError
from shoal.cluster.wording import cut
from shoal.experiment_errors import unknown_key
from shoal.experiment_keys import SWITCH, Slot, chosen
from shoal.yaml_file import Document, Key, describe, parse

_SPACELESS = re.compile(r":(?=[^\s/])")  # but for the colon of a URI


def apply(document: Document, overrides: Sequence[str], root: Slot) -> None:
    """Write each ``path=value`` into `document`, in order.

    The value is read by the rules of the file. The name of a component may be left out of the path:
    the one that the file chooses, or the default, is meant.

    Raises
    ------
    ConfigError
        For an override without ``=``, a path that is not a key, or a value that is not YAML.
    """
    for override in overrides:
        dotted, equals, text = override.partition("=")
        place = f"--set {cut(override)}"
        if not equals or not dotted.strip():
            raise ConfigError(f"{place}: write a key, an equals sign and a value, such as training.epochs=5")
        try:
            value, _ = parse(text, place, numbered=False)
        except ConfigError as error:
            if spaced := _SPACELESS.sub(": ", text) if "{" in text else "":
                raise ConfigError(f"{error}; a space belongs after each colon: {spaced}") from error
            raise
        _write(document, dotted.strip().split("."), value, root, place)


def _write(document: Document, keys: list[str], value: Any, slot: Slot, place: str) -> None:
    node: dict[str, Any] = document.data
    path: tuple[Key, ...] = ()
    for i, key in enumerate(keys):
        child = slot.child(key)
        if child is None:
            raise ConfigError(f"{place}: {unknown_key((*path, key), slot, keys[i + 1 :])}")
        path = (*path, key)
        if i == len(keys) - 1:
            node[key] = value
            _forget(document, path, place)
            return
        if not child.is_section:
            raise ConfigError(
                f"{place}: {'.'.join(map(str, path))} is a value, it has no key {keys[i + 1]!r}"
            )
        if child.choice is not None:
            node, path, slot = _component(node, path, child, keys[i + 1], place)
        else:
            if node.get(key) is None:
                node[key] = {}
            node, slot = _section(node[key], path, place), child


def _component(
    node: dict[str, Any], path: tuple[Key, ...], slot: Slot, following: str, place: str
) -> tuple[dict[str, Any], tuple[Key, ...], Slot]:
    """Step into the component at the end of `path`, which becomes ``{name: {…}}`` if it was a name.

    Returns the section to write into, its path and its slot; `following` is the next key to write.
    """
    assert slot.choice is not None
    key = str(path[-1])
    raw = node.get(key)
    current = chosen(slot, raw)
    if following in slot.choice.names:  # the path names a component
        if current != following:
            node[key] = {} if following == SWITCH else {following: {}}
        elif raw is None or isinstance(raw, str):
            node[key] = {following: {}}
        elif following != SWITCH and node[key][following] is None:
            node[key][following] = {}
        component = slot.child(SWITCH) if following == SWITCH else slot
        assert component is not None
        return _section(node[key], path, place), path, component
    if current is None:
        raise ConfigError(
            f"{place}: {'.'.join(map(str, path))} is {describe(raw)}, which chooses no component; "
            f"allowed: {', '.join(slot.choice.names)}"
        )
    component = slot.child(current)
    assert component is not None
    if current == SWITCH:
        return _section(node[key], path, place), path, component
    if raw is None or isinstance(raw, str) or raw[current] is None:
        node[key] = {current: {}}
    return _section(node[key][current], (*path, current), place), (*path, current), component


def _section(value: Any, path: tuple[Key, ...], place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: {'.'.join(map(str, path))} is {describe(value)}, not a section of keys")
    return value


def _forget(document: Document, path: tuple[Key, ...], place: str) -> None:
    """Drop the places of what stood at `path`; now it comes from `place`."""
    for known in [p for p in document.places if p[: len(path)] == path]:
        del document.places[known]
    document.places[path] = place
