"""pydantic's errors in the words of the experiment file: place, key, value, what is allowed."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shoal.cluster.components import Imported
from shoal.cluster.errors import ConfigError
from shoal.cluster.wording import cut, must_be, shown
from shoal.experiment_keys import SWITCH, Slot, all_keys
from shoal.yaml_file import Document, Key, KeyPath, describe

# Keys, and values of keys, that the design has and this version has not. None: the key itself.
RESERVED: Mapping[str, Sequence[str] | None] = {
    "training.optimizer": ("adafactor", "adamax", "asgd", "muon", "rprop", "sparseadam"),
}

# What other libraries call what has another name here.
SYNONYMS: Mapping[str, str] = {
    "alpha": "class_weights",
    "base_lr": "base_factor",
    "clip_grad_norm": "clip_norm",
    "eta": "learning_rate",
    "eta_min": "min_factor",
    "gradient_clipping": "clip_norm",
    "lr": "learning_rate",
    "max_grad_norm": "clip_norm",
    "max_lr": "learning_rate",
    "min_lr": "min_factor",
    "pos_weight": "class_weights",
    "threshold": "min_delta",
    "weight": "class_weights",
}

_NO_SECTION = ("model_type", "model_attributes_type")
_MEMBERS = ("literal[", "dict[", "function-after[")  # how pydantic's location names members of a union


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """Return the allowed name that looks most like `name`, None where none does."""
    lower = {a.lower(): a for a in allowed}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def dotted(path: KeyPath) -> str:
    """``("training", "hidden", 0)`` -> ``training.hidden[0]``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".")


def config_error(error: ValidationError, document: Document, root: Slot) -> ConfigError:
    """All that is wrong with an experiment as one error, a line each, in the order of the file."""
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        groups.setdefault(_path(details, root), []).append(details)
    for path in [p for p, (first, *_) in groups.items() if first["type"] == "too_short"]:
        if any(other[: len(path)] == path != other for other in groups):
            del groups[path]  # of the right length, but for entries that are wrong
    order = {path: i for i, path in enumerate(document.places)}
    found = sorted(groups, key=lambda path: next((order[p] for p in _up(path) if p in order), 0))
    return ConfigError("\n".join(_line(document, path, _message(path, groups[path], root)) for path in found))


def _up(path: KeyPath) -> Iterator[KeyPath]:
    """`path` and its parents, the nearest first."""
    for n in range(len(path), -1, -1):
        yield path[:n]


def check_written(document: Document, experiment: Any, root: Slot) -> None:
    """Refuse what pydantic lets pass: a quoted number, `true` as a number, an infinite number.

    Raises
    ------
    ConfigError
        With a line for each such value.
    """
    lines = [_line(document, path, text) for path, text in _misread(document.data, experiment, root, ())]
    if lines:
        raise ConfigError("\n".join(lines))


def unknown_key(path: KeyPath, slot: Slot, below: Sequence[str] = ()) -> str:
    """Say that the last key of `path` is not one of `slot`, with the nearest name and the allowed ones.

    `below` are keys that were meant to follow.
    """
    key, plain = str(path[-1]), _without_components(path)
    if plain in RESERVED and RESERVED[plain] is None:
        return f"{dotted(path)} is not supported yet in this version; leave it out"
    if key in (RESERVED.get(plain.rpartition(".")[0]) or ()):
        return f"{plain.rpartition('.')[0]}: {key} is not supported yet in this version"
    if there := _of_another_component(key, path):
        return f"{dotted(path)} is not a key; it belongs to {there}; {_allowed(slot)}"
    known = SYNONYMS.get(key.lower())
    known = known if known in slot.keys else None
    if key.lower() in ("metric", "monitor", "scoring") and path[-2:-1] == ("early_stopping",):
        known = "evaluation.scoring"  # whose first metric it is
    guess = known or (_elsewhere(below[-1]) if below else None) or _elsewhere(key) or nearest(key, slot.keys)
    return (
        f"{dotted(path) or 'an empty name'} is not a key; "
        + (f"did you mean {guess}? " if guess else "")
        + _allowed(slot)
    )


def _allowed(slot: Slot) -> str:
    return f"allowed: {', '.join(slot.keys)}" if slot.keys else "it takes no keys"


def _of_another_component(key: str, path: KeyPath) -> str:
    """Name the components of the same place that have `key`; empty where none has."""
    from shoal.experiment import ROOT

    names = _components_with(key, _slot(path[:-2], ROOT)) if len(path) > 1 else []
    return " or ".join(f"{dotted(path[:-2])}.{name}" for name in names)


def _components_with(key: str, slot: Slot) -> list[str]:
    """Name the components that may be chosen in `slot` and have `key`."""
    registry = slot.choice.registry if slot.choice is not None else {}
    return [name for name, cls in registry.items() if key in cls.model_fields]


def _elsewhere(key: str) -> str | None:
    """Where `key` is one, with the name of the component where only one has it."""
    from shoal.experiment import ROOT

    place = next((k for k in all_keys(ROOT) if k.rsplit(".", 1)[-1] == key), None)
    if place is None:
        return None
    parent = place.rpartition(".")[0]
    names = _components_with(key, _slot(tuple(parent.split(".")), ROOT)) if parent else []
    return f"{parent}.{names[0]}.{key}" if len(names) == 1 else place


def _without_components(path: KeyPath) -> str:
    """``training.optimizer.adam.eps`` -> ``training.optimizer.eps``, the form of `RESERVED`."""
    from shoal.experiment import ROOT

    slot: Slot | None = ROOT
    kept: list[str] = []
    for key in path:
        if slot is None or slot.choice is None or key not in slot.choice.names:
            kept.append(str(key))
        slot = slot.child(key) if slot is not None else None
    return ".".join(kept)


def _path(details: ErrorDetails, root: Slot) -> KeyPath:
    """Keys of the file only: pydantic's location also has names of union members."""
    slot: Slot | None = root
    path: list[Key] = []
    for key in details["loc"]:
        if isinstance(key, str) and key.startswith(_MEMBERS):
            continue  # a table of free names would take it for one of them
        child = slot.child(key) if slot is not None else None
        if child is None:
            if details["type"] == "extra_forbidden":
                path.append(key)
            break
        if not (slot is not None and slot.choice is not None and key == SWITCH):
            path.append(key)  # {import: …} holds its arguments beside the name, not below it
        slot = child
    return tuple(path)


def _slot(path: KeyPath, root: Slot) -> Slot:
    slot = root
    for key in path:
        at_import = slot.choice is not None and key == SWITCH
        slot = (Slot(model=Imported) if at_import else slot).child(key) or Slot()
    return slot


def _line(document: Document, path: KeyPath, text: str) -> str:
    place = document.place(path)
    return f"{place}: {text}" if place else text


def _message(path: KeyPath, group: list[ErrorDetails], root: Slot) -> str:
    first = group[0]
    kind, value = first["type"], first["input"]
    name = dotted(path) or "the experiment"
    slot = _slot(path, root)
    if kind == "extra_forbidden":
        return unknown_key(path, _slot(path[:-1], root))
    if kind == "missing":
        needed = (
            [k for k, info in slot.model.model_fields.items() if info.is_required()] if slot.model else []
        )
        more = f"; it needs {' and '.join(f'{name}.{k}' for k in needed)}" if needed else ""
        return f"{name} is missing{more}" + (f" ({slot.description})" if slot.description else "")
    if slot.choice is not None and kind.startswith("union_tag"):
        return _component(name, path, value, slot)
    own = [str(e["ctx"]["error"]) for e in group if e["type"] == "value_error"]
    if own and slot.is_section and isinstance(value, Mapping | list):
        return f"{name}: {'; '.join(own)}"
    reserved = RESERVED.get(_without_components(path)) or ()
    if isinstance(value, str) and value in reserved:
        return f"{name}: {value} is not supported yet in this version; allowed: {_join(group, slot)}"
    if own:
        return f"{name}: {describe(value)} is not allowed; {'; '.join(dict.fromkeys(own))}"
    if kind == "too_short":
        return f"{name}: the list has {len(value)} entries; it must be {_join(group, slot)}"
    options = [
        o for e in group if e["type"] == "literal_error" for o in e["ctx"]["expected"].split("'")[1::2]
    ]
    guess = nearest(value, options) if isinstance(value, str) else None
    keys = ""
    if kind in _NO_SECTION and slot.model is not None:
        keys, inside = f": {', '.join(slot.keys)}", _taking(value, slot.model)
        guess = f"{name}.{inside[0]}" if len(inside) == 1 else None
    return (
        f"{name}: {describe(value)} is not allowed; "
        + (f"did you mean {guess}? " if guess else "")
        + f"it must be {_join(group, slot)}{keys}"
        + (
            ", or null for none"
            if slot.takes_null and kind in _NO_SECTION and "null" not in slot.description
            else ""
        )
        + (f" ({slot.description})" if slot.is_section and slot.description else "")
    )


def _join(group: list[ErrorDetails], slot: Slot) -> str:
    return ", or ".join(dict.fromkeys(must_be(details, slot.description, slot.bounds) for details in group))


def _taking(value: Any, section: type[BaseModel]) -> list[str]:
    """Name the keys of a section that would take a value by themselves."""
    found = []
    for key in section.model_fields:
        with suppress(ValidationError):
            section.model_validate({key: value})
            found.append(key)
    return found


def _component(name: str, path: KeyPath, value: Any, slot: Slot) -> str:
    assert slot.choice is not None
    names = slot.choice.names
    if isinstance(value, Mapping) and len(value) > 1:
        return (
            f"{name} has {len(value)} keys ({', '.join(map(str, value))}); it takes one component, "
            f"such as {{{next((n for n in value if n in names), names[0])}: {{…}}}}; allowed: {', '.join(names)}"
        )
    wanted = slot.choice.name_of(value)
    if wanted is None:
        return f"{name} is {describe(value)}; it takes a component's name; allowed: {', '.join(names)}"
    if wanted in (RESERVED.get(_without_components(path)) or ()):
        return f"{name}: {wanted} is not supported yet in this version; allowed: {', '.join(names)}"
    if owners := _components_with(wanted, slot):
        return f"{name}: {wanted} is a key of {' or '.join(owners)}; write {name}: {{{owners[0]}: {{{wanted}: …}}}}"
    guess = nearest(wanted, names)
    hint = f"did you mean {guess}? " if guess else ""
    return f"{name}: there is no {shown(wanted)}; {hint}allowed: {', '.join(names)}"


def _misread(raw: Any, value: Any, slot: Slot | None, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(raw, float) and not math.isfinite(raw):
        yield path, f"{dotted(path)}: {raw} is not allowed; it must be a finite number"
    elif isinstance(raw, str) and isinstance(value, bool | int | float):
        plain = re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|true|false", raw)
        fix = (
            f"write {cut(raw)} without quotes" if plain else "write it as a plain number, such as 1000 or 1e3"
        )
        yield path, f"{dotted(path)}: {shown(raw)} is a text; {fix}"
    elif isinstance(raw, bool) and isinstance(value, int | float) and not isinstance(value, bool):
        yield path, f"{dotted(path)}: {describe(raw)} is not a number"
    elif isinstance(raw, list) and isinstance(value, tuple | list):
        for i, (a, b) in enumerate(zip(raw, value, strict=False)):
            yield from _misread(a, b, None, (*path, i))
    elif isinstance(raw, dict) and not isinstance(value, Imported):
        choice = slot.choice if slot is not None else None
        for key, item in raw.items():
            child = slot.child(key) if slot is not None else None
            below = value if choice is not None else _value(value, key)
            yield from _misread(item, below, child, (*path, key))


def _value(holder: Any, key: str) -> Any:
    return holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)
