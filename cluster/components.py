"""Components: parts of an experiment chosen by name from a plain dict.

``adam``, ``{adam: {learning_rate: 1e-3}}`` and ``{import: my_package.module:factory, …}`` are the three
ways to write one. `Choice` is the pydantic annotation that reads all three.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError


class Imported(Config):
    """A component of the user's own: ``{import: my_package.module:factory, **kwargs}``."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    path: str = Field(alias="import", pattern=r"^[\w.]+:[\w.]+$", description="module:factory")

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments that the factory gets."""
        return dict(self.__pydantic_extra__ or {})

    def load(self) -> Any:
        """Import and return the factory.

        Raises
        ------
        ConfigError
            If the module or the name is not there.
        """
        module_name, _, attribute = self.path.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"cannot import {self.path}: {error}; write module:factory, with the module on PYTHONPATH"
            ) from error
        return found


def load_imported(*sections: Config) -> None:
    """Import the components of the user's own among the values of sections, so that one that is not there is found early.

    Raises
    ------
    ConfigError
        As `Imported.load`.
    """
    for section in sections:
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, Imported):
                value.load()


@dataclass(frozen=True, eq=False)  # hashed by identity, so that a field may be a choice or None
class Choice:
    """Annotation of a field whose value is one of a registry's components.

    Parameters
    ----------
    registry
        Name to config class. A plain dict: users and tests may look into it.
    importable
        Whether ``{import: module:factory}`` is allowed too.
    """

    registry: Mapping[str, type[Config]]
    importable: bool = True

    @property
    def names(self) -> list[str]:
        """The names that may be written."""
        return [*self.registry, *(["import"] if self.importable else [])]

    def name_of(self, value: Any) -> str | None:
        """Return the component name of a raw or validated value, None where it has none."""
        if isinstance(value, str):
            return value
        if isinstance(value, Imported):
            return "import"
        if isinstance(value, Config):
            return next((name for name, cls in self.registry.items() if type(value) is cls), None)
        if isinstance(value, Mapping):
            if "import" in value:
                return "import"
            if len(value) == 1:
                return str(next(iter(value)))
        return None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[str, CoreSchema] = {
            name: core_schema.no_info_before_validator_function(_arguments, handler.generate_schema(cls))
            for name, cls in self.registry.items()
        }
        if self.importable:
            choices["import"] = handler.generate_schema(Imported)
        return core_schema.tagged_union_schema(
            choices,
            discriminator=self.name_of,
            serialization=core_schema.plain_serializer_function_ser_schema(self.plain),
        )

    def plain(self, value: Any) -> Any:
        """Return a component as plain values, as an experiment file has it."""
        if isinstance(value, Imported):
            return {"import": value.path, **value.kwargs}
        return {self.name_of(value): value.model_dump(mode="json")}

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        options: list[dict[str, Any]] = [{"enum": list(self.registry)}]
        for name, cls in self.registry.items():
            arguments = handler(cls.__pydantic_core_schema__)
            options.append(
                {
                    "type": "object",
                    "properties": {name: arguments},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
        if self.importable:
            options.append(
                {"type": "object", "properties": {"import": {"type": "string"}}, "required": ["import"]}
            )
        return {"oneOf": options}


def _arguments(value: Any) -> Any:
    """``name`` -> {}, ``{name: None}`` -> {}, ``{name: {…}}`` -> {…}; instances stay."""
    if isinstance(value, str):
        return {}
    if isinstance(value, Mapping):
        inner = next(iter(value.values()))
        return {} if inner is None else inner
    return value
