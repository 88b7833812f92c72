"""How arguments become the body of an envelope, and how a body is believed to be arguments.

JSON through the types that a signal declares. Whatever a body claims, nothing is imported or constructed but those
types.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn, NotRequired, Protocol, TypedDict, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from asignals import Signal


class BodyError(ValueError):
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

    def decode(self, body: bytes) -> dict[str, Any]:
        """Read the arguments; ones that are not known are left out."""
        ...


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


class JSONCodec:
    """Plain JSON without types; `names` are the arguments to take from a body, `None` takes all.

    NaN and the infinities are no JSON, and refused.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write an object."""
        return self._dump(dict(arguments)).encode()

    def decode(self, body: bytes) -> dict[str, Any]:
        """Read an object."""
        try:
            found = json.loads(body, parse_constant=_refuse_constant)
        except RecursionError:
            msg = "it is nested too deeply"
            raise ValueError(msg) from None
        if type(found) is not dict:
            msg = "it is not an object"
            raise ValueError(msg)
        return found if self._names is None else {name: found[name] for name in self._names if name in found}


class PydanticCodec:
    """JSON through a pydantic `TypeAdapter` of a signal's declared arguments (extra: pydantic)."""

    def __init__(self, types: type[Any]) -> None:
        self._adapter = import_module("pydantic").TypeAdapter(types)

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write the arguments; what does not fit its type is refused."""
        written: bytes = self._adapter.dump_json(dict(arguments), warnings="error")
        return written

    def decode(self, body: bytes) -> dict[str, Any]:
        """Read and validate the arguments."""
        read: dict[str, Any] = self._adapter.validate_json(body)
        return read


class MsgspecCodec:
    """JSON through msgspec, by the types of a signal's declared arguments (extra: msgspec)."""

    def __init__(self, types: type[Any]) -> None:
        msgspec = import_module("msgspec")
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(types)

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """Write the arguments."""
        written: bytes = self._encoder.encode(arguments)
        return written

    def decode(self, body: bytes) -> dict[str, Any]:
        """Read and validate the arguments."""
        read: dict[str, Any] = self._decoder.decode(body)
        return read


def codec_for(signal: Signal[..., Any], local: Collection[str]) -> Codec:
    """Choose a codec: by the types of an `@signal` stub with pydantic or, without it, msgspec; else plain JSON.

    `local` names arguments that never cross. Raises `TypeError` when the stub's types cannot be resolved.
    """
    names = signal.providing_args
    stub = getattr(signal, "_stub", None)
    if names is None or stub is None:
        return JSONCodec(None if names is None else [name for name in names if name not in local])
    types = _types_of(signal, stub, [name for name in names if name not in local])
    if find_spec("pydantic"):
        return PydanticCodec(types)
    if find_spec("msgspec"):
        return MsgspecCodec(types)
    return JSONCodec([name for name in names if name not in local])


def _types_of(signal: Signal[..., Any], stub: Any, names: Collection[str]) -> type[Any]:
    """Make a `TypedDict` of the stub's arguments; those with defaults may be absent."""
    try:
        hints = get_type_hints(stub, include_extras=True)
    except Exception as error:
        msg = f"the types of signal {signal.name!r} cannot be resolved ({error}); give codec="
        raise TypeError(msg) from error
    defaults = stub.__kwdefaults__ or {}
    fields: dict[str, Any] = {}
    for name in names:
        hint = hints.get(name, Any)
        fields[name] = NotRequired[hint] if name in defaults else hint
    # A checker wants the fields in the source; and before 3.12 pydantic cannot look into the one of `typing`.
    make: Any = TypedDict if sys.version_info >= (3, 12) else import_module("typing_extensions").TypedDict
    made: type[Any] = make("Arguments", fields)
    return made
