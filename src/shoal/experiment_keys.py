"""Which keys an experiment may have: the config classes, walked by path."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shoal.cluster.components import Choice, Imported
from shoal.yaml_file import Key

SWITCH = "import"


@dataclass(frozen=True)
class Slot:
    """What may stand at one place: a section, a component, a table of names, a list or a value."""

    model: type[BaseModel] | None = None
    choice: Choice | None = None
    values: Any = None  # annotation of the values of a table or list
    is_list: bool = False
    takes_null: bool = False
    default: Any = None
    description: str = ""
    bounds: str = ""  # of a number that has two: "from 0 to 3"

    @property
    def keys(self) -> list[str]:
        """The keys that may be written here; empty for a value or a table of free names."""
        if self.choice is not None:
            return self.choice.names
        if self.model is None:
            return []
        return [info.alias or name for name, info in self.model.model_fields.items()]

    @property
    def is_section(self) -> bool:
        """Whether keys can be set below it."""
        return (
            self.choice is not None
            or self.model is not None
            or (self.values is not None and not self.is_list)
        )

    def child(self, key: Key) -> "Slot | None":
        """Return what may stand under `key`, None where the key is not allowed."""
        if self.choice is not None:
            if key == SWITCH and self.choice.importable:
                return Slot(model=Imported)
            component = self.choice.registry.get(str(key))
            return None if component is None else Slot(model=component)
        if self.model is not None:
            for name, info in self.model.model_fields.items():
                if key in (name, info.alias):
                    return _of_field(info)
            return Slot() if self.model is Imported else None
        if self.values is not None and isinstance(key, int) == self.is_list:
            return _of(self.values, ())
        return None


def root(model: type[BaseModel]) -> Slot:
    """Return the slot of a whole experiment."""
    return Slot(model=model)


def chosen(slot: Slot, raw: Any) -> str | None:
    """Name of the component that `raw` chooses at a component's place, or that of the default."""
    if slot.choice is None:
        return None
    name = slot.choice.name_of(raw if raw is not None else slot.default)
    return name if name in slot.choice.names else None


def all_keys(slot: Slot, prefix: str = "") -> Iterator[str]:
    """Yield every dotted path, components' names left out, as `--set` takes them."""
    below = slot.choice.registry if slot.choice is not None else None
    if below is not None:
        for name in below:
            child = slot.child(name)
            if child is not None:
                yield from all_keys(child, prefix)
        return
    if slot.model is None:
        return
    for key in slot.keys:
        dotted = f"{prefix}.{key}" if prefix else key
        yield dotted
        child = slot.child(key)
        if child is not None:
            yield from all_keys(child, dotted)


def _of_field(info: FieldInfo) -> Slot:
    slot = _of(info.annotation, tuple(info.metadata))
    default = None if info.default is PydanticUndefined else info.default
    return replace(slot, default=default, description=info.description or "")


def _of(annotation: Any, metadata: tuple[Any, ...]) -> Slot:
    for item in metadata:
        if isinstance(item, Choice):
            return Slot(choice=item)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _of(inner, tuple(more))
    if origin in (Union, types.UnionType):
        members = get_args(annotation)
        found = [_of(member, ()) for member in members]
        slot = next((s for s in found if s.model or s.choice or s.values is not None or s.bounds), Slot())
        return replace(slot, takes_null=type(None) in members)
    if origin in (dict, Mapping):
        return Slot(values=get_args(annotation)[1])
    if origin in (tuple, list):
        return Slot(values=get_args(annotation)[0], is_list=True)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Slot(model=annotation)
    return Slot(bounds=_bounds(metadata))


def _bounds(metadata: tuple[Any, ...]) -> str:
    """Say between what a number must lie; empty where it is bounded on one side, or on none."""
    found: dict[str, Any] = {}
    for item in metadata:
        for bound in getattr(item, "metadata", (item,)):  # a Field within Annotated holds them
            found |= {key: getattr(bound, key) for key in ("ge", "gt", "le", "lt") if hasattr(bound, key)}
    if found.keys() == {"ge", "le"}:
        return f"from {found['ge']} to {found['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[key]} {value}" for key, value in found.items()) if len(found) == 2 else ""
