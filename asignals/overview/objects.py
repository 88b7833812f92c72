"""What objects are made of, read without running any code of their classes."""

from __future__ import annotations

import array
import collections
import datetime as dt
import decimal
import fractions
import functools
import gc
import ipaddress
import pathlib
import types
import uuid
import zoneinfo
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from asignals._core import is_a

if TYPE_CHECKING:
    from collections.abc import Callable

qualname: Final = type.__dict__["__qualname__"].__get__
_mro: Final = type.__dict__["__mro__"].__get__
_dict: Final = type.__dict__["__dict__"].__get__
# Of any class, whatever its metaclass makes of these attributes.


def of_class(kind: type, name: str) -> Any:
    """An attribute of a class as it was defined, without running anything."""
    for base in _mro(kind):
        if name in _dict(base):
            return _dict(base)[name]
    return None


GONE: Final = object()
"""What a field has that has no value, or whose value would run code."""
CONSTANTS: Final = (type(None), bool, float, complex, type(...), type(NotImplemented))
CALLABLE: Final = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)
BRACKETS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
SEQUENCES: Final[tuple[Any, ...]] = (list, tuple, set, frozenset, collections.deque)
COUNTED: Final[tuple[Any, ...]] = (
    *SEQUENCES,
    dict,
    array.array,
    memoryview,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
# Kinds whose repr is short, quick and without secrets.
SAFE: Final[tuple[type, ...]] = (
    dt.date,
    dt.datetime,
    dt.time,
    dt.timedelta,
    dt.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    range,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)
_LONG: Final = 1_000  # characters of a path, bytes of a decimal, bits of an integer


def is_plain(value: Any) -> bool:  # noqa: PLR0911  a table of kinds
    """Whether a value of a `SAFE` kind is short, and made of nothing that could run code: a foreign time zone may."""
    if is_a(value, pathlib.PurePath):
        # What a path was made of, without joining it: its parts may be many, or long.
        made_of = [_attribute(value, type(value), name) for name in ("_raw_paths", "_parts")]
        texts = next((each for each in made_of if type(each) is list), None)
        if texts is None or len(texts) > _LONG or any(type(each) is not str for each in texts):
            return False
        return sum(map(len, texts)) < _LONG
    if is_a(value, dt.datetime) or is_a(value, dt.time):
        return value.tzinfo is None or type(value.tzinfo) in (dt.timezone, zoneinfo.ZoneInfo)
    if is_a(value, decimal.Decimal):
        return value.__sizeof__() < _LONG
    if is_a(value, fractions.Fraction):
        parts = (value._numerator, value._denominator)  # type: ignore[attr-defined]  # the properties only read them
        return all(type(each) is int and each.bit_length() < _LONG for each in parts)
    if is_a(value, uuid.UUID):
        return type(value.int) is int
    if is_a(value, range):
        return all(abs(each).bit_length() < _LONG for each in (value.start, value.stop, value.step))
    return True


_GENERATED: Final = ("collections", "dataclasses", "attr._make", "attrs", "pydantic.main", "types")


def is_written_by_hand(kind: type) -> bool:
    """Whether the class has a `__repr__` that somebody wrote, in Python, and that no library made of its fields."""
    method = of_class(kind, "__repr__")
    if not is_a(method, FunctionType):
        return is_a(method, property) or (method is not None and not is_a(method, types.WrapperDescriptorType))
    # dataclasses wraps the repr it writes; attrs compiles its own from a file that there is not.
    is_generated = hasattr(method, "__wrapped__") or method.__code__.co_filename.startswith("<attrs")
    return not (is_generated or method.__module__ in _GENERATED or method.__globals__.get("__name__") in _GENERATED)


def fields_of(value: Any, kind: type) -> list[tuple[str, object]] | None:
    """The fields of a named tuple, a dataclass, or a class of attrs, pydantic or msgspec; None for anything else."""
    names = of_class(kind, "_fields")
    if is_a(value, tuple):
        return None if type(names) is not tuple else list(zip(map(str, names), tuple.__iter__(value), strict=False))
    declared: list[tuple[str, bool]] | None = None
    for attribute, read in _DECLARED.items():
        fields = of_class(kind, attribute)
        if fields is not None:
            declared = read(fields)
            break
    if declared is None:
        return None
    found = [(name, _attribute(value, kind, name)) for name, is_shown in declared if is_shown]
    extra = _attribute(value, kind, "__pydantic_extra__")
    return found + list(extra.items()) if type(extra) is dict else found


_DECLARED: Final[dict[str, Callable[[Any], list[tuple[str, bool]]]]] = {
    "__dataclass_fields__": lambda fields: [
        (name, bool(each.repr)) for name, each in fields.items() if each._field_type.name == "_FIELD"
    ],
    "__attrs_attrs__": lambda fields: [(each.name, each.repr is not False) for each in fields],
    "__pydantic_fields__": lambda fields: [(name, bool(each.repr)) for name, each in fields.items()],
    "__struct_fields__": lambda fields: [(name, True) for name in fields],
}


def _attribute(value: object, kind: type, name: str) -> Any:
    """A field's value, from the instance's dictionary or its slot; `GONE` where that runs code."""
    namespace = of_class(kind, "__dict__")
    own = namespace.__get__(value) if is_a(namespace, types.GetSetDescriptorType) else None
    if type(own) is dict and name in own:
        return own[name]
    slot = of_class(kind, name)
    if is_a(slot, types.MemberDescriptorType):
        try:
            return slot.__get__(value)
        except AttributeError:
            return GONE
    return GONE


def wrapped(value: Any, kind: type) -> Any:
    """What a wrapper of the standard library holds."""
    if kind is types.MappingProxyType:
        return next(iter(gc.get_referents(value)), None)
    if kind is types.SimpleNamespace:
        return dict(vars(value))
    if any(is_a(value, each) for each in (collections.UserDict, collections.UserList, collections.UserString)):
        return _attribute(value, kind, "data")
    return _attribute(value, kind, "maps") if is_a(value, collections.ChainMap) else None
