"""Schemas as an AsyncAPI document holds them: JSON Schema draft 07, with the named ones in `components/schemas`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from asignals.relay.asyncapi._schemas import Schema

DISCRIMINATOR: Final = "x-discriminator"
"""Names the field by which a reader tells alternatives apart."""
ROOT: Final = "#/components/schemas/"
_LOCAL: Final = "#/$defs/"
_ONE: Final = ("additionalItems", "additionalProperties", "contains", "else", "if", "not", "propertyNames", "then")
_LIST: Final = ("allOf", "anyOf", "oneOf")
_NAMED: Final = ("dependentSchemas", "patternProperties", "properties")


class Components:
    """The named schemas of a document. Two of one name that differ get names that say whose they are."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}

    def add(self, schema: Schema, owner: str) -> Schema:
        """Take the definitions of a schema in; returns the schema, which refers to them.

        `owner` is the id of a message, which begins with what is done with it.
        """
        definitions = schema.get("$defs", {})
        for prefix in ("", f"{owner.partition('.')[0]}.", f"{owner}."):
            names = {_LOCAL + name: prefix + re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) for name in definitions}
            made = {
                names[_LOCAL + name]: draft_07(each, lambda ref, names=names: _there(ref, names))  # type: ignore[misc]
                for name, each in definitions.items()
            }
            if all(self.schemas.get(name, each) == each for name, each in made.items()):
                self.schemas.update(made)
                break
        bare = {name: value for name, value in schema.items() if name != "$defs"}
        referring: Schema = draft_07(bare, lambda ref: _there(ref, names))
        return referring


def _there(ref: str, names: dict[str, str]) -> str:
    return ROOT + names[ref] if ref in names else ref


def draft_07(schema: Any, rename: Callable[[str], str] = str) -> Any:
    """Write a schema of draft 2020-12 in the words of draft 07, with other references.

    Positions of a tuple are `items`, not `prefixItems`; what stands beside a reference, which readers of draft 07
    ignore, goes around it. OpenAPI's `discriminator` becomes a field that must be there, default or not; its values are
    constants of the alternatives.
    """
    if not isinstance(schema, dict):
        return schema
    made = {name: value for name, value in schema.items() if name not in ("$ref", "discriminator")}
    if isinstance(schema.get("discriminator"), dict):
        made[DISCRIMINATOR] = schema["discriminator"]["propertyName"]
        made["required"] = [made[DISCRIMINATOR]]
    if "prefixItems" in made:
        rest = made.pop("items", None)
        made["items"] = made.pop("prefixItems")
        if rest is not None:
            made["additionalItems"] = rest
    made = {name: _converted(name, value, rename) for name, value in made.items()}
    if "$ref" not in schema:
        return made
    ref = {"$ref": rename(schema["$ref"])}
    return {"allOf": [ref, *made.pop("allOf", [])], **made} if made else ref


def _converted(name: str, value: Any, rename: Callable[[str], str]) -> Any:
    if name in _ONE or (name == "items" and isinstance(value, dict)):
        return draft_07(value, rename)
    if name in _LIST or name == "items":
        return [draft_07(each, rename) for each in value] if isinstance(value, list) else value
    if name in _NAMED:
        return {key: draft_07(each, rename) for key, each in value.items()}
    return value
