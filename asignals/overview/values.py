"""Values as short text, with secrets masked: for the inspector, the command line, spans and assertion messages.

Nothing here runs code of the program: a value is taken apart by what it is, and its `__repr__`, properties and
attributes are left alone, which may be slow, raise, load from a database, or show what is secret. Nothing keeps a
reference to a value, takes longer for a larger one, or makes a text much longer than its limit.
"""

from __future__ import annotations

import array
import collections
import datetime as dt
import decimal
import enum
import fractions
import functools
import gc
import ipaddress
import itertools
import json
import os
import pathlib
import re
import traceback
import types
import uuid
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from asignals import _core
from asignals._core import is_a

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MASK: Final = "••••"

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


# -- names -----------------------------------------------------------------------------------------------------------

# Whole words of a name: privateKey, private_key and PRIVATE-KEY are the words private and key.
_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        auth bearer cookie cookies credential credentials creds csrf cvc cvv dsn iban jwt mnemonic otp pass passcode
        passphrase passwd password passwords pin pw pwd salt secret secrets sid signature ssn token tokens totp xsrf
        """,
    )
)
# Two words after each other.
_PAIRS: Final = frozenset(
    re.findall(
        r"(\w+) (\w+)",
        """
        access key, account number, api key, app key, auth code, auth key, authorization code, backup code, card number,
        client key, connection string, credit card, crypt key, encryption key, hmac key, host key, license key,
        master key, mfa code, one time, private key, recovery code, secret key, security code, seed phrase, service key,
        session id, session key, shared key, signing key, ssh key, verification code
        """,
    )
)
# Parts of words that are written as one, long enough to mean nothing else.
_PARTS: Final = tuple(
    re.findall(
        r"\w+",
        """
        accesskey apikey authorization cardnumber cookie creditcard credential encryptionkey passphrase passwd password
        privatekey secret sessionid signingkey token
        """,
    )
)
_SPLIT: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LONGEST_NAME: Final = 100  # characters of a name that are looked at


def is_secret_name(name: object) -> bool:
    """Whether what is called so is to be masked, as `password`, `apiKey`, `X-Auth-Token`, `db_pass` or `jwt` are."""
    text = _plain(name)
    return text is not None and _is_secret_word(text[:_LONGEST_NAME])


@functools.lru_cache(maxsize=4096)
def _is_secret_word(name: str) -> bool:
    words = [word.lower() for word in _SPLIT.findall(name)]
    words = [word for word in words if not word.isdigit()]
    if not _WORDS.isdisjoint(words) or any(pair in _PAIRS for pair in itertools.pairwise(words)):
        return True
    joined = "".join(words)
    return any(part in joined for part in _PARTS)


def _plain(name: object) -> str | None:
    if is_a(name, str):
        return str.__str__(name)
    return bytes.decode(name, "latin-1") if is_a(name, bytes) else None


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
        self._parts = None if secrets is None else tuple(part.lower() for part in secrets)

    def secret(self, name: object) -> bool:
        """Tell whether a value of this name is to be masked."""
        if self._parts is None:
            return is_secret_name(name)
        text = _plain(name)
        if text is None:
            return False
        lower = text[:_LONGEST_NAME].lower()
        return any(part in lower or part in re.sub(r"[\W_]", "", lower) for part in self._parts)

    def arguments(self, arguments: Mapping[str, object]) -> dict[str, str]:
        """Show each argument, masked by its name."""
        return {name: self.named(name, value) for name, value in arguments.items()}

    def named(self, name: object, value: object) -> str:
        """Show a value that has a name."""
        return MASK if self.secret(name) else self(value)

    def __call__(self, value: object) -> str:
        """Show a value."""
        try:
            text = self._show(value, DEPTH)
        except Exception as error:  # noqa: BLE001  # what a value has in store costs its own text, and nothing else
            return f"<an object that cannot be shown: {type(error).__name__}>"
        # What was shortened already is a little over the limit, with its true length at the end.
        return text if len(text) <= self.limit + SLACK else shorten(text, self.limit)

    def clean(self, text: str, limit: int | None = None) -> str:
        """Mask the secrets in a text, and shorten it."""
        limit = self.limit if limit is None else limit
        # A secret may start before the cut and end after it: cut roughly, mask, then cut exactly.
        head = text[: limit * 2 + 200]
        masked = self._mask(head)
        total = len(masked) if len(head) == len(text) else len(text)
        return masked if total <= limit + SLACK else shorten(masked, limit, total)

    # -- by what a value is ------------------------------------------------------------------------------------------

    def _show(self, value: object, depth: int) -> str:  # noqa: C901, PLR0911  a table of kinds
        kind = type(value)
        if any(kind is each for each in _CONSTANTS):
            return repr(value)
        if value is _GONE:
            return "…"
        if is_a(value, type) or any(is_a(value, each) for each in _CALLABLE):
            return name_of(value)
        if is_a(value, enum.Enum):
            return f"{_qualname(kind)}.{value._name_}"
        if not (kind is str or kind is dict or kind is list) and self.secret(_qualname(kind)):
            return f"{_qualname(kind)}({MASK})"
        if is_a(value, str):
            return self._text(value)
        if is_a(value, bytes) or is_a(value, bytearray):
            return self._bytes(value)
        if is_a(value, int):
            return _integer(value)
        if is_a(value, float):
            return float.__repr__(value)
        if any(kind is each for each in _SAFE):
            return self._mask(repr(value)) if object.__sizeof__(value) < 1_000 else f"<{_qualname(kind)}>"  # noqa: PLR2004  # bytes
        if is_a(value, BaseException):
            arguments = BaseException.__dict__["args"].__get__(value)
            return self._items(value, arguments, BaseException, len(arguments), depth)
        if _is_written_by_hand(kind):
            return self._by_its_author(value)
        return self._structure(value, kind, depth)

    def _structure(self, value: Any, kind: type, depth: int) -> str:
        if is_a(value, dict):
            return self._mapping(value, depth)
        fields = _fields_of(value, kind)
        if fields is not None:
            return self._record(kind, fields, depth)
        for base in _SEQUENCES:
            if is_a(value, base):
                return self._items(value, base.__iter__(value), base, base.__len__(value), depth)
        inner = _wrapped(value, kind)
        if inner is not None:
            return f"{_qualname(kind)}({self._show(inner, depth - 1) if depth else '…'})"
        return self._by_its_author(value)

    def _by_its_author(self, value: Any) -> str:
        kind = type(value)
        if self._runs_repr and _of_class(kind, "__repr__") is not object.__repr__:
            try:
                return self.clean(str.__str__(repr(value)))
            except Exception as error:  # noqa: BLE001  # whatever a foreign `repr` raises is not the reader's problem
                return f"<{_qualname(kind)}, whose repr raises {_qualname(type(error))}>"
        for base in _COUNTED:
            if is_a(value, base):
                return f"<{_qualname(kind)} of {base.__len__(value):,} items>"
        return f"<{_qualname(kind)}>"

    def _mapping(self, value: dict[object, object], depth: int) -> str:
        kind = type(value)
        total = dict.__len__(value)
        if dict.__contains__(value, "asgi") and type(dict.get(value, "type")) is str:
            shown = [str(each) for key in ("type", "method", "path") if type(each := dict.get(value, key)) is str]
            return self.clean(f"<{' '.join(shown)}>")
        before, after = ("", "") if kind is dict else (f"{_qualname(kind)}(", ")")
        if not depth:
            return before + ("{…}" if total else "{}") + after
        head = _head(dict.items(value))
        # {"name": "password", "value": "…"}: the value of one key is the name of another's.
        is_pair = any(_plain(key) in _NAMES_OF_NAMES and self.secret(each) for key, each in head)
        parts = []
        for key, item in head:
            is_secret = self.secret(key) or (is_pair and _plain(key) in _NAMES_OF_VALUES)
            parts.append(f"{self._show(key, 0)}: {MASK if is_secret else self._show(item, depth - 1)}")
        return f"{before}{{{', '.join(_more(parts, total))}}}{after}"

    def _items(self, value: object, items: Iterable[Any], base: type, total: int, depth: int) -> str:
        kind = type(value)
        opening, closing = _BRACKETS.get(base, ("[", "]"))
        before, after = ("", "") if kind is base and base in _BRACKETS else (f"{_qualname(kind)}(", ")")
        if base is BaseException:
            opening = closing = ""
        if not depth and total:
            return f"{before}{opening}…{closing}{after}"
        head = _head(items)
        shown = [self._show(item, depth - 1) for item in head]
        # A pair, as headers are: a name and its value, which may be in parts.
        if total > 1 and base in (list, tuple) and head and self.secret(head[0]):
            shown[1:] = [MASK] * (len(shown) - 1)
        comma = "," if base is tuple and total == 1 else ""
        return f"{before}{opening}{', '.join(_more(shown, total))}{comma}{closing}{after}"

    def _record(self, kind: type, fields: list[tuple[str, object]], depth: int) -> str:
        if not depth:
            return f"{_qualname(kind)}(…)"
        names = {name for name, each in fields if name in _NAMES_OF_NAMES and self.secret(each)}
        parts = []
        for name, each in fields[:ITEMS]:
            is_secret = self.secret(name) or (bool(names) and name in _NAMES_OF_VALUES)
            parts.append(f"{name}={MASK if is_secret else self._show(each, depth - 1)}")
        return f"{_qualname(kind)}({', '.join(_more(parts, len(fields)))})"

    # -- texts -------------------------------------------------------------------------------------------------------

    def _text(self, value: str) -> str:
        total = str.__len__(value)
        head = str.__getitem__(value, slice(0, max(self.limit * 2 + 200, JSON_TEXT)))
        masked = self._json(head) if total == len(head) else None
        if masked is None:
            masked = self._mask(head[: self.limit * 2 + 200])
        if total <= self.limit and len(masked) <= self.limit:
            return repr(masked)
        cut = masked[: self.limit]
        return f"{cut!r}… ({total:,} characters)" if total > self.limit else repr(cut)

    def _bytes(self, value: Any) -> str:
        kind = bytes if is_a(value, bytes) else bytearray
        total = kind.__len__(value)
        head = bytes(kind.__getitem__(value, slice(0, max(self.limit * 2 + 200, JSON_TEXT))))
        text = head.decode("latin-1")
        masked = self._json(text) if total == len(head) else None
        if masked is None:
            masked = self._mask(text[: self.limit * 2 + 200])
        # What is masked is no bytes any more, and shown as the text that it is.
        shown = f"b{masked[: self.limit]!r}" if MASK in masked else repr(head[: self.limit])
        shown = f"bytearray({shown})" if kind is bytearray else shown
        return shown if total <= self.limit else f"{shown}… ({total:,} bytes)"

    def _json(self, text: str) -> str | None:
        """Take apart a text that is JSON, and mask what is secret in it; None for any other text."""
        if text[:20].lstrip()[:1] not in ("{", "["):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        masked = self._masked_json(value, 20)
        return text if masked == value else json.dumps(masked, ensure_ascii=False)

    def _masked_json(self, value: Any, depth: int) -> Any:
        if type(value) is str:
            inner = self._json(value) if depth else None
            return self._mask(value) if inner is None else inner
        if not depth and type(value) in (dict, list):
            return "…"
        if type(value) is dict:
            is_pair = any(key in _NAMES_OF_NAMES and self.secret(each) for key, each in value.items())
            hidden = {key for key in value if self.secret(key) or (is_pair and key in _NAMES_OF_VALUES)}
            return {key: MASK if key in hidden else self._masked_json(each, depth - 1) for key, each in value.items()}
        if type(value) is list:
            is_pair = len(value) > 1 and self.secret(value[0])
            return [
                MASK if is_pair and number else self._masked_json(each, depth - 1) for number, each in enumerate(value)
            ]
        return value

    def _mask(self, text: str) -> str:
        """Mask what is secret in a text, by its look and by the names in it."""
        if self._parts == ():
            return text
        if "-----BEGIN" in text:
            text = _PEM.sub(MASK, text)
        if "@" in text and ":" in text:
            text = _LOGIN.sub(rf"\g<1>{MASK}@", _URL_LOGIN.sub(rf"\g<1>{MASK}@", text))
        text = _KNOWN.sub(MASK, text)
        return self._mask_names(text) if "=" in text or ":" in text or "," in text else text

    def _mask_names(self, text: str) -> str:
        parts: list[str] = []
        done = position = 0
        while (match := _NAME.search(text, position)) is not None:
            position = match.end()
            if self.secret(match[1]):
                position = _end_of_value(text, match)
                if position > match.end() and not text.startswith(MASK, match.end()):
                    parts += [text[done : match.end()], MASK]
                    done = position
        return "".join([*parts, text[done:]])


_NAMES_OF_NAMES: Final = ("name", "key", "field", "header", "Name", "Key")
_NAMES_OF_VALUES: Final = ("value", "val", "values", "content", "data", "Value")

# The whole block, with or without its end.
_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}-----.{0,20000}?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.DOTALL)
# A password may hold `/`, `:` and `@`: the login ends at the last `@` of the word.
_URL_LOGIN: Final = re.compile(r"(\w{1,20}://[^\s:/@'\"<>]{0,200}:)[^\s'\"<>]{1,1000}@")
_LOGIN: Final = re.compile(r"(?<![\w/:.@•-])([\w.+-]{1,100}:)[^\s'\"<>@/•]{1,200}@(?=[\w-])")
# Tokens that are known by their look: JSON Web Tokens, credentials of headers, keys of well-known services.
_KNOWN: Final = re.compile(
    r"\beyJ[\w-]{5,5000}(?:\.[\w-]{1,10000}){1,4}|\bA[KS]IA[A-Z0-9]{16}\b|\bgh[oprsu]_\w{20,255}|\bgithub_pat_\w{20,255}"
    r"|\b[sr]k_(?:live|test)_\w{8,255}|\bsk-[\w-]{16,255}|\bxox[a-z]-[\w-]{8,255}|\bAIza[\w-]{30,60}|\bglpat-[\w-]{16,255}"
    r"|(?<=\bBearer )[\w.~+/=-]{4,5000}|(?<=\bBasic )[\w+/=]{6,5000}|(?<=\bToken )[\w.~+/=-]{8,5000}"
)
# A name, perhaps in (escaped) quotes, and then = or :, or in a pair of two texts a comma.
_NAME: Final = re.compile(
    r"""(?<![\w.\-])([A-Za-z_][\w.\-]{0,199})(?:\\{0,4}['"]?\s{0,4}(?:=>|=|:)\s{0,4}|\\{0,4}['"],\s{0,2}(?=b?\\{0,4}['"]))"""
)
_HEADERS: Final = ("authorization", "cookie")
_VALUE: Final = 4_000  # characters of a secret value


def _end_of_value(text: str, match: re.Match[str]) -> int:
    """Where the value ends that begins at the end of the match: with its quote, its brackets, its line or its word."""
    start = match.end()
    most = min(len(text), start + _VALUE)
    quote = _QUOTE.match(text, start)
    if quote is not None:
        # In the repr of a text its quotes are escaped: the value ends with one that looks the same.
        end = text.find(quote[1], quote.end())
        while end > 0 and not quote[1].startswith("\\") and text[end - 1] == "\\":
            end = text.find(quote[1], end + 1)
        return most if end < 0 else end + len(quote[1])
    line = text.find("\n", start, most)
    line = most if line < 0 else line
    is_header = any(header in match[1].lower() for header in _HEADERS)
    is_line = ":" in match[0] and (match.start() == 0 or text[match.start() - 1] == "\n")
    if (is_header and text[start : start + 1] not in "[{(") or is_line:
        return line
    return _end_of_word(text, start, most)


def _end_of_word(text: str, start: int, most: int) -> int:
    depth = 0
    for position in range(start, most):
        letter = text[position]
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if depth < 0 or (not depth and (letter in ",;&" or letter.isspace())):
            return position
    return most


_QUOTE: Final = re.compile(r"""[bBuUrRfF]{0,2}(\\{0,4}['"])""")

# -- what is shown how ----------------------------------------------------------------------------------------------

_qualname: Final = type.__dict__["__qualname__"].__get__
_mro: Final = type.__dict__["__mro__"].__get__
_dict: Final = type.__dict__["__dict__"].__get__
# Of any class, whatever its metaclass makes of these attributes.


def _of_class(kind: type, name: str) -> Any:
    """An attribute of a class as it was defined, without running anything."""
    for base in _mro(kind):
        if name in _dict(base):
            return _dict(base)[name]
    return None


_GONE: Final = object()
_CONSTANTS: Final = (type(None), bool, float, complex, type(...), type(NotImplemented))
_CALLABLE: Final = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)
_BRACKETS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_SEQUENCES: Final[tuple[Any, ...]] = (list, tuple, set, frozenset, collections.deque)
_COUNTED: Final[tuple[Any, ...]] = (
    *_SEQUENCES,
    dict,
    array.array,
    memoryview,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
# Kinds whose repr is short, quick and without secrets.
_SAFE: Final[tuple[type, ...]] = (
    dt.date,
    dt.datetime,
    dt.time,
    dt.timedelta,
    dt.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    range,
    slice,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)
_GENERATED: Final = ("collections", "dataclasses", "attr._make", "attrs", "pydantic.main", "types")


def _is_written_by_hand(kind: type) -> bool:
    """Whether the class has a `__repr__` that somebody wrote, in Python, and that no library made of its fields."""
    method = _of_class(kind, "__repr__")
    if not is_a(method, FunctionType):
        return is_a(method, property) or (method is not None and not is_a(method, types.WrapperDescriptorType))
    # dataclasses wraps the repr it writes; attrs compiles its own from a file that there is not.
    is_generated = hasattr(method, "__wrapped__") or method.__code__.co_filename.startswith("<attrs")
    return not (is_generated or method.__module__ in _GENERATED or method.__globals__.get("__name__") in _GENERATED)


def _fields_of(value: Any, kind: type) -> list[tuple[str, object]] | None:
    """The fields of a named tuple, a dataclass, or a class of attrs, pydantic or msgspec; None for anything else."""
    names = _of_class(kind, "_fields")
    if is_a(value, tuple):
        return None if type(names) is not tuple else list(zip(map(str, names), tuple.__iter__(value), strict=False))
    declared: list[tuple[str, bool]] | None = None
    for attribute, read in _DECLARED.items():
        fields = _of_class(kind, attribute)
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
    """A field's value, from the instance's dictionary or its slot; `_GONE` where that runs code."""
    namespace = _of_class(kind, "__dict__")
    own = namespace.__get__(value) if is_a(namespace, types.GetSetDescriptorType) else None
    if type(own) is dict and name in own:
        return own[name]
    slot = _of_class(kind, name)
    if is_a(slot, types.MemberDescriptorType):
        try:
            return slot.__get__(value)
        except AttributeError:
            return _GONE
    return _GONE


def _wrapped(value: Any, kind: type) -> Any:
    """What a wrapper of the standard library holds."""
    if kind is types.MappingProxyType:
        return next(iter(gc.get_referents(value)), None)
    if kind is types.SimpleNamespace:
        return dict(vars(value))
    if any(is_a(value, each) for each in (collections.UserDict, collections.UserList, collections.UserString)):
        return _attribute(value, kind, "data")
    return _attribute(value, kind, "maps") if is_a(value, collections.ChainMap) else None


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
