"""Values as short text, whatever their `repr` does: for the inspector, the command line and assertion messages.

Nothing here raises for a value, keeps a reference to it, or makes a text much longer than its limit.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from asignals import _refs
from asignals._refs import is_a

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK: Final = "••••"
SECRETS: Final = (
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
    "private_key",
    "authorization",
    "credential",
    "cookie",
    "session_id",
    "sessionid",
    "cvv",
    "cvc",
    "card_number",
    "iban",
    "ssn",
)
"""Parts of names whose values are masked; compared without regard to case."""

ITEMS: Final = 8
"""How many items of a container are shown."""
DEPTH: Final = 3
"""How deep containers are opened."""
SLACK: Final = 40
"""How many characters a text may be over its limit before it is cut again."""
MANY: Final = 200
"""From how many items on a container with a `repr` of its own is counted instead of shown."""
_PLAIN: Final = (type(None), bool, float, complex)
_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]{0,200}:)[^\s@/]{1,500}(?=@)")


class Shower:
    """Turns values into text of at most about `limit` characters, with the values of secret names masked.

    A name is secret when one of `secrets` is a part of it, in any case: a keyword argument, a key of a mapping, the
    first of a pair (as in a list of headers), a field of a dataclass, and also `password='…'` inside the `repr` of an
    object, where it is found by its look alone. The scope of an ASGI request is shown as `<http GET /pizzas>`.
    """

    def __init__(self, limit: int = 200, secrets: tuple[str, ...] = SECRETS) -> None:
        """Keep the limit (characters) and compile the names."""
        self.limit = limit
        words = "|".join(re.escape(word) for word in secrets) or r"(?!)"
        self._name = re.compile(words, re.IGNORECASE)
        # A name, perhaps in quotes, = or :, and then a quoted text, the credentials of a header, or a word. In the repr
        # of a text, quotes may be escaped.
        self._pair = re.compile(
            rf"""((?:{words})[\w-]{{0,40}}\\{{0,4}}['"]?\s{{0,4}}[=:]\s{{0,4}})(?!['"]?{MASK})"""
            r"""(?:b?\\{0,4}['"][^'"\n]{0,2000}['"]?|(?:(?:Bearer|Basic)\s)?[^\s,;)\]}]{1,2000})""",
            re.IGNORECASE,
        )
        # The same as a pair: (b'cookie', b'…'), as a server gives headers to an ASGI application.
        self._couple = re.compile(
            rf"""([\[(]b?\\{{0,4}}['"][\w-]{{0,40}}(?:{words})[\w-]{{0,40}}\\{{0,4}}['"],\s?)(?!{MASK})"""
            r"""b?\\{0,4}['"][^'"\n]{0,2000}['"]?""",
            re.IGNORECASE,
        )

    def secret(self, name: object) -> bool:
        """Tell whether a value of this name is to be masked."""
        if is_a(name, bytes):
            name = bytes.decode(name, "latin-1")
        return is_a(name, str) and self._name.search(name) is not None

    def arguments(self, arguments: Mapping[str, object]) -> dict[str, str]:
        """Show each argument, masked by its name."""
        return {name: self.named(name, value) for name, value in arguments.items()}

    def named(self, name: object, value: object) -> str:
        """Show a value that has a name."""
        return MASK if self.secret(name) else self(value)

    def __call__(self, value: object) -> str:
        """Show a value."""
        kind = type(value)
        if kind is int or kind in _PLAIN:
            return _integer(value) if kind is int else repr(value)
        try:
            return self.clean(self._show(value, DEPTH))
        except Exception as error:  # noqa: BLE001  # a hostile __class__ or property costs its own text, nothing else
            return f"<an object that cannot be shown: {type(error).__name__}>"

    def clean(self, text: str, limit: int | None = None) -> str:
        """Mask what looks like a secret in a text, and shorten it."""
        limit = self.limit if limit is None else limit
        total = len(text)
        # A secret may start before the cut and end after it: cut roughly, mask, then cut exactly.
        text = text[: limit * 2 + 200]
        if "," in text:
            text = self._couple.sub(rf"\g<1>{MASK}", text)
        if ":" in text or "=" in text:
            text = self._pair.sub(rf"\g<1>{MASK}", _URL_PASSWORD.sub(rf"\g<1>{MASK}", text))
        # What was shortened already is a little over the limit, with its true length at the end.
        return text if len(text) <= limit + SLACK else shorten(text, limit, total)

    def _show(self, value: object, depth: int) -> str:  # noqa: PLR0911  a table of types
        kind = type(value)
        if kind is str or kind is bytes or kind is bytearray:
            return _text(value, self.limit)  # type: ignore[arg-type]  # narrowed by identity of the type, not isinstance
        if kind is int:
            return _integer(value)
        if kind in _PLAIN:
            return repr(value)
        if kind is dict:
            return self._mapping(value, depth)  # type: ignore[arg-type]  # as above
        if kind in _BRACKETS:
            return self._items(value, depth)
        if dataclasses.is_dataclass(kind) and _repr_is_generated(kind):
            return self._dataclass(value, depth)
        if (is_a(value, str) or is_a(value, bytes)) and kind.__repr__ in (str.__repr__, bytes.__repr__):
            return _text(value, self.limit)
        if is_a(value, type) or any(is_a(value, kind) for kind in _CALLABLE):
            return name_of(value)
        return self._repr(value)

    def _mapping(self, value: dict[object, object], depth: int) -> str:
        if "asgi" in value and type(value.get("type")) is str:
            return f"<{' '.join(str(value[key]) for key in ('type', 'method', 'path') if key in value)}>"
        if not depth:
            return "{…}" if value else "{}"
        parts = []
        for key, item in _head(value.items()):
            shown = MASK if self.secret(key) else self._show(item, depth - 1)
            parts.append(f"{self._show(key, 0)}: {shown}")
        return "{" + ", ".join(_more(parts, len(value))) + "}"

    def _items(self, value: Any, depth: int) -> str:
        opening, closing = _BRACKETS[type(value)]
        if not depth and value:
            return f"{opening}…{closing}"
        items = [self._show(item, depth - 1) for item in _head(value)]
        if len(items) == 2 and opening in "([" and self.secret(value[0]):  # noqa: PLR2004  # a name and its value
            items[1] = MASK
        parts = _more(items, len(value))
        return opening + ", ".join(parts) + ("," if opening == "(" and len(value) == 1 else "") + closing

    def _dataclass(self, value: Any, depth: int) -> str:
        name = type(value).__qualname__
        if not depth:
            return f"{name}(…)"
        shown = [field.name for field in dataclasses.fields(value) if field.repr]
        parts = []
        for field in shown[:ITEMS]:
            item = getattr(value, field, "…")
            parts.append(f"{field}={MASK if self.secret(field) else self._show(item, depth - 1)}")
        return f"{name}({', '.join(_more(parts, len(shown)))})"

    def _repr(self, value: object) -> str:
        kind = type(value)
        if kind.__repr__ is object.__repr__:
            return f"<{kind.__qualname__}>"
        for base in _SIZED:
            if is_a(value, base) and (count := base.__len__(value)) > MANY:
                return f"<{kind.__qualname__} of {count:,} items>"
        try:
            return str.__str__(repr(value))
        except Exception as error:  # noqa: BLE001  # whatever a foreign `repr` raises is not the reader's problem
            return f"<{kind.__qualname__}, whose repr raises {type(error).__qualname__}>"


_BRACKETS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_CALLABLE: Final = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)
_SIZED: Final[tuple[Any, ...]] = (dict, list, tuple, set, frozenset, collections.deque)


def shorten(text: str, limit: int, total: int | None = None) -> str:
    """Cut a text to about `limit` characters, and say how many there were (`total`, where some are cut already)."""
    total = len(text) if total is None else total
    return text if total <= limit else f"{text[:limit]}… ({total:,} characters)"


def name_of(thing: object) -> str:
    """Name a receiver, a function or a class as its module spells it: `shop.mail.Mailer.order_paid`."""
    return _refs.name_of(thing).removeprefix("builtins.")


def short_path(path: str) -> str:
    """Show a path from the working directory, where it is below it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive, on Windows
        return path
    return path if relative.startswith(os.pardir) else relative


def _head(items: Any) -> list[Any]:
    # A container that another thread changes meanwhile raises RuntimeError: it is shown without its items.
    try:
        return [item for item, _ in zip(items, range(ITEMS), strict=False)]
    except RuntimeError:
        return []


def _more(parts: list[str], total: int) -> list[str]:
    return parts if len(parts) >= total else [*parts, f"… {total - len(parts):,} more"]


def _text(value: str | bytes | bytearray, limit: int) -> str:
    if len(value) <= limit:
        return repr(value)
    return f"{value[:limit]!r}… ({len(value):,} {'characters' if isinstance(value, str) else 'bytes'})"


def _integer(value: Any) -> str:
    # Python refuses to print integers of more than 4,300 digits, and takes long for large ones below that.
    return repr(value) if value.bit_length() < 512 else f"<int of {value.bit_length():,} bits>"  # noqa: PLR2004  # 154 digits


def _repr_is_generated(kind: type) -> bool:
    # dataclasses wraps the repr it writes; a hand-written one says what its author wanted shown.
    return hasattr(kind.__repr__, "__wrapped__")
