"""Values as short text, with secrets masked: for the inspector, the command line, spans and assertion messages.

Nothing here runs code of the program: a value is taken apart by what it is, and its `__repr__`, properties and
attributes are left alone, which may be slow, raise, load from a database, or show what is secret. Nothing keeps a
reference to a value, takes longer for a larger one, or makes a text much longer than its limit.
"""

from __future__ import annotations

import enum
import os
import traceback
from typing import TYPE_CHECKING, Any, Final

from asignals import _core
from asignals._core import is_a
from asignals.masking import MASK, NAMES_OF_NAMES, NAMES_OF_VALUES, Masker, plain_text
from asignals.overview.objects import (
    BRACKETS,
    CALLABLE,
    CONSTANTS,
    COUNTED,
    GONE,
    SAFE,
    SEQUENCES,
    fields_of,
    is_plain,
    is_written_by_hand,
    of_class,
    qualname,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ITEMS: Final = 8
"""How many items of a container are shown."""
DEPTH: Final = 3
"""How deep containers are opened."""
SLACK: Final = 40
"""How many characters a text may be over its limit before it is cut again."""
JSON_TEXT: Final = 10_000
"""Up to how many characters a text that looks like JSON is read."""


TRACEBACK_TEXT: Final = 16_000
"""How many characters of a traceback are kept."""


class Shower:
    """Turns values into text of at most about `limit` characters, with secrets masked.

    A value is secret by its name: of an argument, a key of a mapping, a field of an object, the first of a pair (as in
    a list of headers), a class, and what stands after such a name in a text. `secrets`, parts of names in any case,
    replace the usual names. Besides, passwords in URLs, private keys, JSON Web Tokens and other tokens that are known
    by their look are masked wherever they stand; with no `secrets` at all nothing is.

    Builtin containers, named tuples, dataclasses, and the classes of attrs, pydantic and msgspec are taken apart. Any
    other object, and one whose class has a hand-written `__repr__`, is shown by the name of its class: its author
    decided what is to be seen, and to ask would run code of the program. With `runs_repr` it is asked, for messages of
    tests, whose values are the reader's own. The scope of an ASGI request is shown as `<http GET /pizzas>`.
    """

    def __init__(self, limit: int = 200, secrets: Iterable[str] | None = None, *, runs_repr: bool = False) -> None:
        """Keep the limit (characters) and the names."""
        self.limit = limit
        self._runs_repr = runs_repr
        self._masker = Masker(secrets)
        self._left = JSON_TEXT  # characters of texts that the call at hand may still read, of all items together

    def secret(self, name: object) -> bool:
        """Tell whether a value of this name is to be masked."""
        return self._masker.is_secret(name)

    def arguments(self, arguments: Mapping[str, object]) -> dict[str, str]:
        """Show each argument, masked by its name."""
        return {name: self.named(name, value) for name, value in arguments.items()}

    def named(self, name: object, value: object) -> str:
        """Show a value that has a name."""
        return MASK if self.secret(name) else self(value)

    def __call__(self, value: object) -> str:
        """Show a value."""
        # Each call has its own allowance: other threads may show other values at the same time.
        showing = object.__new__(type(self))
        vars(showing).update(vars(self), _left=max(JSON_TEXT, self.limit * 2))
        try:
            text = showing._show(value, DEPTH)
        except Exception as error:  # noqa: BLE001  # what a value has in store costs its own text, and nothing else
            return f"<an object that cannot be shown: {type(error).__name__}>"
        # What was shortened already is a little over the limit, with its true length at the end.
        return text if len(text) <= self.limit + SLACK else shorten(text, self.limit)

    def clean(self, text: str, limit: int | None = None) -> str:
        """Mask the secrets in a text, and shorten it."""
        limit = self.limit if limit is None else limit
        # A secret may start before the cut and end after it: cut roughly, mask, then cut exactly.
        head = text[: limit * 2 + 200]
        masked = self._masker.text(head)
        total = len(masked) if len(head) == len(text) else len(text)
        return masked if total <= limit + SLACK else shorten(masked, limit, total)

    # -- by what a value is ------------------------------------------------------------------------------------------

    def _show(self, value: object, depth: int) -> str:  # noqa: C901, PLR0911, PLR0912  a table of kinds
        if self._left <= 0:
            return "…"
        kind = type(value)
        if any(kind is each for each in CONSTANTS):
            return repr(value)
        if value is GONE:
            return "…"
        if is_a(value, type) or any(is_a(value, each) for each in CALLABLE):
            return name_of(value)
        if is_a(value, enum.Enum):
            return f"{qualname(kind)}.{value._name_}"
        if not (kind is str or kind is dict or kind is list) and self.secret(qualname(kind)):
            return f"{qualname(kind)}({MASK})"
        if is_a(value, str):
            return self._text(value)
        if is_a(value, bytes) or is_a(value, bytearray):
            return self._bytes(value)
        if is_a(value, int):
            return _integer(value)
        if is_a(value, float):
            return float.__repr__(value)
        if any(kind is each for each in SAFE):
            return self._masker.text(repr(value)) if is_plain(value) else f"<{qualname(kind)}>"
        if is_a(value, BaseException):
            arguments = BaseException.__dict__["args"].__get__(value)
            return self._items(value, arguments, BaseException, len(arguments), depth)
        if is_written_by_hand(kind):
            return self._by_its_author(value)
        return self._structure(value, kind, depth)

    def _structure(self, value: Any, kind: type, depth: int) -> str:
        if is_a(value, dict):
            return self._mapping(value, depth)
        fields = fields_of(value, kind)
        if fields is not None:
            return self._record(kind, fields, depth)
        for base in SEQUENCES:
            if is_a(value, base):
                return self._items(value, base.__iter__(value), base, base.__len__(value), depth)
        inner = wrapped(value, kind)
        if inner is not None:
            return f"{qualname(kind)}({self._show(inner, depth - 1) if depth else '…'})"
        return self._by_its_author(value)

    def _by_its_author(self, value: Any) -> str:
        kind = type(value)
        if self._runs_repr and of_class(kind, "__repr__") is not object.__repr__:
            try:
                return self.clean(str.__str__(repr(value)))
            except Exception as error:  # noqa: BLE001  # whatever a foreign `repr` raises is not the reader's problem
                return f"<{qualname(kind)}, whose repr raises {qualname(type(error))}>"
        for base in COUNTED:
            if is_a(value, base):
                return f"<{qualname(kind)} of {base.__len__(value):,} items>"
        return f"<{qualname(kind)}>"

    def _mapping(self, value: dict[object, object], depth: int) -> str:
        kind = type(value)
        total = dict.__len__(value)
        if dict.__contains__(value, "asgi") and type(dict.get(value, "type")) is str:
            shown = [str(each) for key in ("type", "method", "path") if type(each := dict.get(value, key)) is str]
            return self.clean(f"<{' '.join(shown)}>")
        before, after = ("", "") if kind is dict else (f"{qualname(kind)}(", ")")
        if not depth:
            return before + ("{…}" if total else "{}") + after
        head = _head(dict.items(value))
        # {"name": "password", "value": "…"}: the value of one key is the name of another's.
        is_pair = any(plain_text(key) in NAMES_OF_NAMES and self.secret(each) for key, each in head)
        parts = []
        for key, item in head:
            is_secret = self.secret(key) or (is_pair and plain_text(key) in NAMES_OF_VALUES)
            parts.append(f"{self._show(key, 0)}: {MASK if is_secret else self._show(item, depth - 1)}")
        return f"{before}{{{', '.join(_more(parts, total))}}}{after}"

    def _items(self, value: object, items: Iterable[Any], base: type, total: int, depth: int) -> str:
        kind = type(value)
        opening, closing = BRACKETS.get(base, ("[", "]"))
        before, after = ("", "") if kind is base and base in BRACKETS else (f"{qualname(kind)}(", ")")
        if base is BaseException:
            opening = closing = ""
        if not depth and total:
            return f"{before}{opening}…{closing}{after}"
        head = _head(items)
        shown = [self._show(item, depth - 1) for item in head]
        if base in (list, tuple, BaseException):
            # A pair, as headers are: a name and its value, which may be in parts. Or names and values by turns.
            for place in range(1, len(head)):
                if self.secret(head[0]) or self.secret(head[place - 1]):
                    shown[place] = MASK
        comma = "," if base is tuple and total == 1 else ""
        return f"{before}{opening}{', '.join(_more(shown, total))}{comma}{closing}{after}"

    def _record(self, kind: type, fields: list[tuple[str, object]], depth: int) -> str:
        if not depth:
            return f"{qualname(kind)}(…)"
        names = {name for name, each in fields if name in NAMES_OF_NAMES and self.secret(each)}
        parts = []
        for name, each in fields[:ITEMS]:
            is_secret = self.secret(name) or (bool(names) and name in NAMES_OF_VALUES)
            parts.append(f"{name}={MASK if is_secret else self._show(each, depth - 1)}")
        return f"{qualname(kind)}({', '.join(_more(parts, len(fields)))})"

    # -- texts -------------------------------------------------------------------------------------------------------

    def _masked(self, head: str, total: int) -> str:
        masked = self._masker.json(head) if total == len(head) <= self._left else None
        if masked is None:
            head = head[: self.limit * 2 + 200]
            masked = self._masker.text(head)
            self._left -= 2 * len(head)  # to search a text takes longer than to parse it
        self._left -= len(head)
        return masked

    def _text(self, value: str) -> str:
        total = str.__len__(value)
        head = str.__getitem__(value, slice(0, max(self.limit * 2 + 200, JSON_TEXT)))
        masked = self._masked(head, total)
        if total <= self.limit and len(masked) <= self.limit:
            return repr(masked)
        cut = masked[: self.limit]
        return f"{cut!r}… ({total:,} characters)" if total > self.limit else repr(cut)

    def _bytes(self, value: Any) -> str:
        kind = bytes if is_a(value, bytes) else bytearray
        total = kind.__len__(value)
        head = bytes(kind.__getitem__(value, slice(0, max(self.limit * 2 + 200, JSON_TEXT))))
        text = head.decode("latin-1")
        masked = self._masked(text, total)
        # What is masked is no bytes any more, and shown as the text that it is.
        shown = f"b{masked[: self.limit]!r}" if MASK in masked else repr(head[: self.limit])
        shown = f"bytearray({shown})" if kind is bytearray else shown
        return shown if total <= self.limit else f"{shown}… ({total:,} bytes)"


def shorten(text: str, limit: int, total: int | None = None) -> str:
    """Cut a text to about `limit` characters, and say how many there were (`total`, where some are cut already)."""
    total = len(text) if total is None else total
    return text if total <= limit else f"{text[:limit]}… ({total:,} characters)"


def message_of(error: BaseException) -> str:
    """The message of an error, as it is: mask it before it is shown."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # an error's own __str__ may be broken
        return "(its message cannot be shown)"


def trace_of(error: BaseException) -> str:
    """The traceback of an error, its middle cut where it is long: mask it before it is shown."""
    try:
        lines = traceback.TracebackException.from_exception(error, limit=-30, compact=True, max_group_width=5)
        text = "".join(lines.format())
    except Exception:  # noqa: BLE001  # as above
        return ""
    if len(text) <= TRACEBACK_TEXT:
        return text
    # The end says what happened, the start where it came from.
    half = TRACEBACK_TEXT // 2 - 50
    return f"{text[:half]}\n\n… {len(text) - 2 * half:,} characters left out …\n\n{text[-half:]}"


def name_of(thing: object) -> str:
    """Name a receiver, a function or a class as its module spells it: `shop.mail.Mailer.order_paid`."""
    return _core.name_of(thing).removeprefix("builtins.")


def short_path(path: str) -> str:
    """Show a path from the working directory, where it is below it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive, on Windows
        return path
    return path if relative.startswith(os.pardir) else relative


def _head(items: Iterable[Any]) -> list[Any]:
    # A container that another thread changes meanwhile raises RuntimeError: it is shown without its items.
    try:
        return [item for item, _ in zip(items, range(ITEMS), strict=False)]
    except RuntimeError:
        return []


def _more(parts: list[str], total: int) -> list[str]:
    return parts if len(parts) >= total else [*parts, f"… {total - len(parts):,} more"]


def _integer(value: Any) -> str:
    # Python refuses to print integers of more than 4,300 digits, and takes long for large ones below that.
    bits = int.bit_length(value)
    return int.__repr__(value) if bits < 512 else f"<int of {bits:,} bits>"  # noqa: PLR2004  # 154 digits
