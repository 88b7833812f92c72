"""Whether whatever one JSON schema allows to be written can be read by another one; and if not, where and why.

It errs on the side of a warning: what it cannot compare it takes for a difference, and what is equal always fits.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from asignals.relay.asyncapi._components import DISCRIMINATOR
from asignals.relay.asyncapi._schemas import HAS_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asignals.relay.asyncapi._schemas import Schema

Resolve: TypeAlias = "Callable[[Any], Any]"


@dataclass(frozen=True, slots=True)
class Misfit:
    """A place at which a reader does not take what is written: a path such as `.lines[].price`, and the reason.

    `kind` is `missing` for a field that a reader needs, `unknown` for one that it refuses, else `type`.
    """

    path: str
    kind: str
    reason: str


_TEXTS: Final = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment")
_COMPARED: Final = frozenset(
    (
        *("type", "required", "properties", "additionalProperties", "items", "additionalItems"),
        "uniqueItems",  # no codec refuses a repeated item
    )
)
_LEAST: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_TYPES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class Fit:
    """Compares schemas of two documents; `resolve_written` and `resolve_read` look their references up."""

    def __init__(self, resolve_written: Resolve, resolve_read: Resolve) -> None:
        self._written = resolve_written
        self._read = resolve_read
        self._known: dict[str, list[Misfit]] = {}

    def misfits(self, written: Any, read: Any) -> list[Misfit]:
        """Say where `read` refuses something that `written` allows; an empty list where it takes all of it."""
        pair = json.dumps([written, read], sort_keys=True)
        if pair not in self._known:
            self._known[pair] = []  # what refers to itself fits there if the rest does
            self._known[pair] = self._of_branches(written, read)
        return self._known[pair]

    def _of_branches(self, written: Any, read: Any) -> list[Misfit]:
        options = list(branches(read, self._read))
        found: list[Misfit] = []
        for branch in branches(written, self._written):
            tried = [self._of_one(branch, option) for option in options]
            if all(tried):
                found += _closest(branch, options, tried) if tried else [_never()]
        return list(dict.fromkeys(found))

    def _of_one(self, written: Schema, read: Schema) -> list[Misfit]:
        values, known = _values(written), _values(read)
        if values is not None:
            return [_refused(value, read) for value in values if not _takes(read, value, self._read)]
        if known is not None:
            return [Misfit("", "type", f"only {_listed(known)} is read, {_short(written)} is written")]
        if not _is_type(written.get("type"), read.get("type")):
            return [Misfit("", "type", f"{_short(written)} is written, {_short(read)} is read")]
        return [*_limits(written, read), *self._items(written, read), *self._fields(written, read)]

    def _items(self, written: Schema, read: Schema) -> Iterator[Misfit]:
        if read.get("type") != "array":
            return
        longest = max(len(each["items"]) if isinstance(each.get("items"), list) else 0 for each in (written, read))
        for position in range(min(longest, written.get("maxItems", longest))):
            yield from _under(f"[{position}]", self.misfits(_item(written, position), _item(read, position)))
        if written.get("maxItems", math.inf) > longest:
            yield from _under("[]", self.misfits(_item(written, longest), _item(read, longest)))

    def _fields(self, written: Schema, read: Schema) -> Iterator[Misfit]:
        if read.get("type") != "object":
            return
        mine, theirs = written.get("properties", {}), read.get("properties", {})
        others, rest = _others(written), read.get("additionalProperties", True)
        for name in sorted(_demanded(read) - set(written.get("required", ()))):
            how = "not always written" if name in mine or others is not False else "not written"
            yield Misfit(f".{name}", "missing", f"it is demanded, and {how}")
        for name, schema in mine.items():
            if name in theirs or rest is not False:
                yield from _under(f".{name}", self.misfits(schema, theirs.get(name, rest)))
            else:
                yield Misfit(f".{name}", "unknown", "it is written, and fields that are not known are refused")
        if others is not False:  # a dictionary
            for name in sorted(set(theirs) - set(mine)):
                yield from _under(f".{name}", self.misfits(others, theirs[name]))
            if rest is False:
                yield Misfit("", "unknown", "any field may be written, and fields that are not known are refused")
            else:
                yield from _under("{}", self.misfits(others, rest))


def _limits(written: Schema, read: Schema) -> Iterator[Misfit]:
    for name, limit in read.items():
        given = written.get(name)
        if name in _COMPARED or name.startswith("x-"):
            continue
        if name in _LEAST:
            is_kept = given is not None and given >= limit
        elif name in _MOST:
            is_kept = given is not None and given <= limit
        elif name == "multipleOf":
            is_kept = given is not None and math.isclose(given % limit, 0)
        else:
            is_kept = given == limit or (name == "format" and read.get("type") != "string")
        if not is_kept:
            now = f"without {name}" if given is None else f"with {name} {given!r}"
            yield Misfit("", "type", f"{name} {limit!r} is demanded, and it is written {now}")


def _demanded(read: Schema) -> set[str]:
    """The fields that a reader needs; of a schema of what is written, those without a default."""
    fields = read.get("properties", {})
    needed = {name for name in read.get("required", ()) if not _is_marked(fields.get(name))}
    return {*needed, read[DISCRIMINATOR]} if DISCRIMINATOR in read else needed


def _is_marked(field: Any) -> bool:
    return isinstance(field, dict) and HAS_DEFAULT in field


def _under(place: str, misfits: list[Misfit]) -> Iterator[Misfit]:
    for each in misfits:
        yield Misfit(place + each.path, each.kind, each.reason)


def branches(schema: Any, resolve: Resolve) -> Iterator[Schema]:
    """Give the alternatives of a schema, each without references and with one type at most; none for `False`."""
    schema = resolve(schema)
    if schema is False or (isinstance(schema, dict) and schema.get("not") in ({}, True)):
        return
    if not isinstance(schema, dict):
        yield {}
        return
    bare = {name: value for name, value in schema.items() if name not in ("allOf", "anyOf", "oneOf", *_TEXTS)}
    alternatives: list[Schema] = [bare]
    groups = [[each] for each in schema.get("allOf", ())] + [
        schema[name] for name in ("anyOf", "oneOf") if name in schema
    ]
    for group in groups:
        inner = [branch for each in group for branch in branches(each, resolve)]
        alternatives = [_both(one, other) for one in alternatives for other in inner]
    for each in alternatives:
        types = each.get("type")
        for kind in types if isinstance(types, list) else [types]:
            yield {**each, "type": kind} if kind is not None else each


def _both(one: Schema, other: Schema) -> Schema:
    """Join two schemas that both hold, as a reference and what stands beside it."""
    made = {**other, **one}
    if "properties" in one and "properties" in other:
        made["properties"] = {**other["properties"], **one["properties"]}
    if "required" in one and "required" in other:
        made["required"] = sorted({*one["required"], *other["required"]})
    return made


def _is_type(written: str | None, read: str | None) -> bool:
    return read is None or written == read or (written == "integer" and read == "number")


def _values(schema: Schema) -> list[Any] | None:
    """The values that a schema lists, if it does; a truth value has two, `null` one."""
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    return {"null": [None]}.get(str(schema.get("type")))


def _takes(schema: Schema, value: Any, resolve: Resolve) -> bool:
    """Whether a schema, one of the `branches`, takes a value that is listed."""
    listed = _values(schema)
    if listed is not None:
        return any(type(value) is type(each) and value == each for each in listed)
    if not _is_type(_TYPES[type(value)], schema.get("type")):
        return False
    if isinstance(value, str):
        is_long_enough = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        return is_long_enough and "format" not in schema and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    if isinstance(value, list):
        return all(_is_taken(_item(schema, place), each, resolve) for place, each in enumerate(value))
    return True


def _is_taken(schema: Any, value: Any, resolve: Resolve) -> bool:
    return any(_takes(branch, value, resolve) for branch in branches(schema, resolve))


def _item(schema: Schema, position: int) -> Any:
    items = schema.get("items", True)
    if not isinstance(items, list):
        return items
    return items[position] if position < len(items) else schema.get("additionalItems", True)


def _others(written: Schema) -> Any:
    """What may be written beside the named fields: nothing, where some are named."""
    return written.get("additionalProperties", "properties" not in written)


def _closest(written: Schema, options: list[Schema], tried: list[list[Misfit]]) -> list[Misfit]:
    """Of several alternatives, the one that misses least; of those of the same type, where there are any."""
    same = [
        one for option, one in zip(options, tried, strict=True) if _is_type(written.get("type"), option.get("type"))
    ]
    closest: list[Misfit] = min(same or tried, key=len)
    return closest


def _refused(value: Any, read: Schema) -> Misfit:
    listed = _values(read)
    known = f"only {_listed(listed)} is known" if listed is not None else f"{_short(read)} is read"
    return Misfit("", "type", f"{value!r} may be written, {known}")


def _never() -> Misfit:
    return Misfit("", "type", "nothing is accepted")


def _listed(values: list[Any]) -> str:
    return ", ".join(repr(value) for value in values[:8]) + (", …" if len(values) > 8 else "")  # noqa: PLR2004  enough


def _short(schema: Schema) -> str:
    """Name a type shortly: `string (date-time)`."""
    listed = _values(schema)
    if listed is not None and schema.get("type") != "null":
        return f"one of {_listed(listed)}"
    kind = str(schema.get("type", "anything"))
    return f"{kind} ({schema['format']})" if "format" in schema else kind
