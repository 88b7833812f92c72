"""The JSON schema of what a codec writes, or of what it reads: by pydantic or msgspec, whichever the codec uses."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from asignals.relay._codec import JSONCodec, MsgspecCodec, PydanticCodec

if TYPE_CHECKING:
    from collections.abc import Collection

    from asignals import Signal
    from asignals.relay._codec import Codec

Schema: TypeAlias = dict[str, Any]

HAS_DEFAULT: Final = "x-has-default"
"""Marks a field that is always written, and that a reader of the same type can do without."""


def schema_of(codec: Codec, signal: Signal[..., Any], *, written: bool) -> Schema | None:
    """Give the JSON schema of the arguments that a codec writes, or reads; `None` for a codec that has none.

    A codec of your own has one if it has a method `json_schema(*, written: bool)`. Raises what the codec's library
    raises for types that it cannot describe.
    """
    found = _found(codec, signal, written=written)
    if found is None or not written or not isinstance(found.get("properties"), dict):
        return found
    return _all_required(found, _defaults(signal))


def _found(codec: Codec, signal: Signal[..., Any], *, written: bool) -> Schema | None:
    if isinstance(codec, PydanticCodec):
        return _of_pydantic(codec, written=written)
    if isinstance(codec, MsgspecCodec):
        return _of_msgspec(codec)
    if isinstance(codec, JSONCodec):
        return _of_names(codec._names if codec._names is not None else signal.providing_args, _defaults(signal))
    own: Any = getattr(codec, "json_schema", None)
    return own(written=written) if callable(own) else None


def _defaults(signal: Signal[..., Any]) -> Collection[str]:
    return getattr(signal._stub, "__kwdefaults__", None) or {}


def _all_required(schema: Schema, defaults: Collection[str]) -> Schema:
    """Say that every argument is there: `send` fills in the defaults."""
    properties = {
        name: {**_as_object(each), HAS_DEFAULT: True} if name in defaults else each
        for name, each in schema["properties"].items()
    }
    return {**schema, "properties": properties, **({"required": sorted(properties)} if properties else {})}


def _as_object(schema: Schema | bool) -> Schema:  # noqa: FBT001  a JSON schema may be a truth value
    return {} if schema is True else {"not": {}} if schema is False else schema


def _of_names(names: Collection[str] | None, defaults: Collection[str]) -> Schema:
    if names is None:
        return {"type": "object"}
    required = sorted(set(names) - set(defaults))
    schema: Schema = {"type": "object", "properties": {name: {} for name in names}}
    return {**schema, "required": required} if required else schema


def _of_msgspec(codec: MsgspecCodec) -> Schema:
    schema: Schema = import_module("msgspec").json.schema(codec._types)
    definitions = dict(schema.get("$defs", {}))
    root = definitions.pop(schema["$ref"].removeprefix("#/$defs/")) if "$ref" in schema else schema
    return _without_title({**root, "$defs": definitions})


def _of_pydantic(codec: PydanticCodec, *, written: bool) -> Schema:
    mode = "serialization" if written else "validation"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a default that is not JSON is left out, which the mark above makes good
        schema: Schema = codec._adapter.json_schema(mode=mode, schema_generator=_generator())
    return _without_title(schema)


def _without_title(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name != "title"}


@cache
def _generator() -> type[Any]:
    """Make pydantic's generator exact about what `dump_json` writes, and `validate_json` takes."""
    base: Any = import_module("pydantic.json_schema").GenerateJsonSchema

    class Exact(base):  # type: ignore[misc]  # the class is known when it runs
        def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  the names say it
            return False

        def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: FBT001  pydantic's signature
            """Models write their defaults; a key of a `TypedDict` that is not required may be absent."""
            if self.mode != "serialization" or field["type"] == "typed-dict-field":
                return bool(super().field_is_required(field, total))
            return not field.get("serialization_exclude_if")

        def default_schema(self, schema: Any) -> Schema:
            made: Schema = super().default_schema(schema)
            return {**made, HAS_DEFAULT: True} if self.mode == "serialization" else made

        def decimal_schema(self, schema: Any) -> Schema:
            """Name the format, which stays, instead of the pattern, which is another one in each release."""
            made: Schema = super().decimal_schema(schema)
            text = {"type": "string", "format": "decimal"}
            return {"anyOf": [made["anyOf"][0], text]} if "anyOf" in made else text

        def _get_alias_name(self, field: Any, name: str) -> str:
            config = self._config
            is_by_name = getattr(config, "validate_by_name", None) or config.populate_by_name
            if getattr(config, "serialize_by_alias", None) or (self.mode == "validation" and not is_by_name):
                return str(super()._get_alias_name(field, name))
            return name

    return Exact
