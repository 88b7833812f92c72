"""How arguments are written as the body of an envelope, and how a body is validated and decoded.

JSON by the types that a signal declares. Whatever a body claims, nothing is imported or constructed but those types.
What the receiving side could not read, or would read as another value, is refused where it is sent.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NoReturn, NotRequired, Protocol, TypeAlias, TypedDict, get_type_hints

from asignals._core import DocumentedError
from asignals.relay._settings import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from asignals import Signal

Upcaster: TypeAlias = "Callable[[dict[str, Any]], dict[str, Any]]"
"""Turns the JSON object of one schema version into that of the next."""


_OWN_MATTER: Final = (str, int, float, Decimal, date, time, timedelta)


class BodyError(DocumentedError, ValueError):
    """Arguments do not make a body, or a body does not make arguments; `reason` says why."""

    def __init__(self, signal: str, reason: str) -> None:
        super().__init__(f"arguments of signal {signal!r}: {reason}")
        self.signal = signal
        self.reason = reason


class Codec(Protocol):
    """Turns the arguments of one signal into bytes and back. Both methods raise `ValueError` or `TypeError` to refuse.

    `decode` must not trust its input: no pickle, no names to import.
    """

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write the arguments."""
        ...

    def decode(self, body: bytes, version: int) -> dict[str, Any]:
        """Read the arguments that a sender of that schema version wrote; ones that are not known are left out."""
        ...


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class JSONCodec:
    """Plain JSON without types; `names` are the arguments to take from a body, `None` takes all.

    NaN and the infinities are no JSON, and refused, as are keys that are not strings, which JSON would make strings.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write an object."""
        _check_keys(arguments)
        return self._dump(dict(arguments)).encode()

    def decode(self, body: bytes, version: int = 1) -> dict[str, Any]:  # noqa: ARG002  plain JSON is the same in all
        """Read an object."""
        found = load_object(body)
        return found if self._names is None else {name: found[name] for name in self._names if name in found}


class PydanticCodec:
    """JSON through a pydantic `TypeAdapter` of a signal's declared arguments."""

    def __init__(self, types: type[Any]) -> None:
        self._adapter = import_module("pydantic").TypeAdapter(types)

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write the arguments; what does not fit its type is refused."""
        given = dict(arguments)
        written: bytes = self._adapter.dump_json(given, warnings="error")
        # pydantic writes NaN as null, inside models too; only what holds such a word is looked through.
        if b"null" in written or b"NaN" in written or b"Infinity" in written:
            _check_floats(self._adapter.dump_python(given))
        _check_same(given, self._adapter.validate_json(written))
        return written

    def decode(self, body: bytes, version: int = 1) -> dict[str, Any]:  # noqa: ARG002  the types are the newest
        """Read and validate the arguments."""
        read: dict[str, Any] = self._adapter.validate_json(body)
        return read


class MsgspecCodec:
    """JSON through msgspec, by the types of a signal's declared arguments."""

    def __init__(self, types: type[Any]) -> None:
        msgspec = import_module("msgspec")
        self._types = types
        msgspec.json.schema(types)  # raises for types that cannot be read back
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(types)
        self._plain = msgspec.to_builtins

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write the arguments; what does not fit its type is refused."""
        written: bytes = self._encoder.encode(arguments)
        if b"null" in written:  # which NaN is written as
            _check_floats(self._plain(arguments))
        _check_same(dict(arguments), self._decoder.decode(written))
        return written

    def decode(self, body: bytes, version: int = 1) -> dict[str, Any]:  # noqa: ARG002  the types are the newest
        """Read and validate the arguments."""
        read: dict[str, Any] = self._decoder.decode(body)
        return read


class UpcastingCodec:
    """Brings old bodies up to the newest schema version, one version after the other, and then reads them."""

    def __init__(self, codec: Codec, upcasters: Mapping[int, Upcaster], newest: int) -> None:
        self._codec = codec
        self._upcasters = dict(upcasters)
        self._newest = newest

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write the arguments in the newest version."""
        return self._codec.encode(arguments)

    def decode(self, body: bytes, version: int) -> dict[str, Any]:
        """Read a body of any version that there are upcasters for."""
        if version < min(self._upcasters):
            raise ValueError(f"its schema version is {version}, and upcasters begin with {min(self._upcasters)}")
        if version < self._newest:
            found = load_object(body)
            for old in range(version, self._newest):
                found = self._upcasters[old](found)
            body = json.dumps(found, allow_nan=False).encode()
        return self._codec.decode(body, self._newest)


def load_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; raises `ValueError` for anything else."""
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if type(found) is not dict:
        raise ValueError("it is not an object")
    return found


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"JSON has no key {key!r}, only strings")
            _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_keys(item)


def _check_floats(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_floats(key)
            _check_floats(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            _check_floats(item)


def _check_same(given: Any, read: Any, where: str = "") -> None:
    """Raise `ValueError` for what the receiving side would read as something else, or without a part of it.

    Tuples may become lists, where a type leaves that open; what a type does to its own text, numbers and times is its
    own matter.
    """
    if given == read:
        return
    if isinstance(given, Mapping) and isinstance(read, Mapping):
        members = given, read
    elif isinstance(given, (list, tuple)) and isinstance(read, (list, tuple)) and len(given) == len(read):
        members = dict(enumerate(given)), dict(enumerate(read))
    elif isinstance(given, type(read)):
        if isinstance(given, _OWN_MATTER):
            return
        members = _fields_of(given), _fields_of(read)
        comparing: Any = type(given).__eq__
        if not members[0] and comparing is not object.__eq__:
            raise ValueError(f"{where or 'it'} would be read as another {type(given).__name__}")
    else:
        raise ValueError(f"{where or 'it'} is a {type(given).__name__} and would be read as a {type(read).__name__}")
    for name, value in members[0].items():
        place = f"{where}.{name}" if where else str(name)
        if name not in members[1]:
            raise ValueError(f"{place} would not be read: {where or 'it'} is declared without it")
        _check_same(value, members[1][name], place)


def _fields_of(value: Any) -> Mapping[str, Any]:
    """Give what an instance of a class with declared fields holds, by name."""
    if hasattr(type(value), "__pydantic_fields__") and not is_dataclass(value):
        return dict(vars(value))
    names = [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "__struct_fields__", ())
    return {name: getattr(value, name) for name in names}  # or of a struct of msgspec's


def check_codec(codec: Codec) -> Codec:
    """Return a codec that was given; raises `TypeError` for a class, or for what has not both methods."""
    if isinstance(codec, type):
        raise TypeError(f"codec must be an object: give codec={codec.__name__}(), not the class")
    if not callable(getattr(codec, "encode", None)) or not callable(getattr(codec, "decode", None)):
        raise TypeError(
            f"codec needs the methods encode(arguments) and decode(body, version), which {shown(codec)} has not"
        )
    return codec


def codec_for(signal: Signal[..., Any], exclude_args: Collection[str]) -> Codec:
    """Choose a codec: plain JSON for a signal without types, else by the types of its stub with pydantic or msgspec.

    `exclude_args` names arguments that never cross. Raises `TypeError` when the stub's types cannot be resolved, or
    cannot be written as JSON, and `ModuleNotFoundError` when neither library is installed.
    """
    names = signal.providing_args
    stub = getattr(signal, "_stub", None)
    if names is None:
        return JSONCodec()
    crossing = [name for name in names if name not in exclude_args]
    hints = {} if stub is None else _hints_of(signal, stub, crossing)
    if all(hint is Any for hint in hints.values()):
        return JSONCodec(crossing)
    make = _typed_codec(signal)
    try:
        return make(_typed_dict(hints, getattr(stub, "__kwdefaults__", None) or {}))
    except Exception as error:
        raise TypeError(_say_which(signal, make, hints, error)) from error


def _typed_codec(signal: Signal[..., Any]) -> type[PydanticCodec | MsgspecCodec]:
    if find_spec("pydantic"):
        return PydanticCodec
    if find_spec("msgspec"):
        return MsgspecCodec
    msg = (
        f"signal {signal.name!r} declares types, which pydantic or msgspec writes and reads: pip install pydantic; "
        f"or give codec=JSONCodec(), which checks no types"
    )
    raise ModuleNotFoundError(msg, name="pydantic")


def _hints_of(signal: Signal[..., Any], stub: Any, names: Collection[str]) -> dict[str, Any]:
    try:
        hints = get_type_hints(stub, include_extras=True)
    except Exception as error:
        raise TypeError(f"the types of signal {signal.name!r} cannot be resolved ({error}); give codec=") from error
    return {name: hints.get(name, Any) for name in names}


def _typed_dict(hints: dict[str, Any], defaults: Collection[str]) -> type[Any]:
    """Make a `TypedDict` of the stub's arguments; those with defaults may be absent."""
    fields = {name: NotRequired[hint] if name in defaults else hint for name, hint in hints.items()}
    # A checker wants the fields in the source; and before 3.12 pydantic cannot look into the one of `typing`.
    make: Any = TypedDict if sys.version_info >= (3, 12) else import_module("typing_extensions").TypedDict
    made: type[Any] = make("Arguments", fields)
    return made


def _say_which(
    signal: Signal[..., Any], make: Callable[[type[Any]], Codec], hints: dict[str, Any], error: object
) -> str:
    """Say which argument's type cannot be written as JSON."""
    for name, hint in hints.items():
        try:
            make(_typed_dict({name: hint}, ()))
        except Exception:  # noqa: BLE001  whatever the library says of a type that it does not know
            shown = getattr(hint, "__name__", None) or str(hint)
            return (
                f"argument {name!r} of signal {signal.name!r} is a {shown}, which cannot be sent to another process: "
                f"leave it out with exclude_args=({name!r},), or give codec="
            )
    return f"the arguments of signal {signal.name!r} cannot be written as JSON ({error}); give codec="
