"""What is secret, by its name and by its look, and how it is masked in texts: one module for all that is shown.

The inspector, `asignals list`, spans and messages of assertions show values through a `Masker`; logs, errors and health
of a relay are written by `redacted` and `said`. `MaskingFilter` masks the log lines of a program of your own:

    logging.getLogger("asignals").addFilter(MaskingFilter())

It stands beside the core, and above nothing but the core's interface, so that every package may use it. The core itself
hands exceptions to `logging` as they are: what a handler writes of them is the program's choice.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from asignals._core import is_a

if TYPE_CHECKING:
    from collections.abc import Iterable

MASK: Final = "••••"

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
        privatekey pwd secret sessionid signingkey token
        """,
    )
)
_SPLIT: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LONGEST_NAME: Final = 100  # characters of a name that are looked at


def is_secret_name(name: object) -> bool:
    """Whether what is called so is to be masked, as `password`, `apiKey`, `X-Auth-Token`, `db_pass` or `jwt` are."""
    text = plain_text(name)
    return text is not None and _is_secret_word(text[:_LONGEST_NAME])


@functools.lru_cache(maxsize=4096)
def _is_secret_word(name: str) -> bool:
    words = [word.lower() for word in _SPLIT.findall(name)]
    words = [word for word in words if not word.isdigit()]
    if not _WORDS.isdisjoint(words) or any(pair in _PAIRS for pair in itertools.pairwise(words)):
        return True
    joined = "".join(words)
    return any(part in joined for part in _PARTS)


def plain_text(name: object) -> str | None:
    """A text or bytes as a text; None for anything else."""
    if is_a(name, str):
        return str.__str__(name)
    return bytes.decode(name, "latin-1") if is_a(name, bytes) else None


class Masker:
    """Masks what is secret: by the usual names, or by other parts of names, in any case; without any, nothing."""

    def __init__(self, secrets: Iterable[str] | None) -> None:
        """Keep the parts of names; None for the usual names."""
        self._parts = None if secrets is None else tuple(part.lower() for part in secrets)

    def is_secret(self, name: object) -> bool:
        """Whether a value of this name is to be masked."""
        if self._parts is None:
            return is_secret_name(name)
        text = plain_text(name)
        if text is None:
            return False
        lower = text[:_LONGEST_NAME].lower()
        return any(part in lower or part in re.sub(r"[\W_]", "", lower) for part in self._parts)

    def json(self, text: str) -> str | None:
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
            inner = self.json(value) if depth else None
            return self.text(value) if inner is None else inner
        if not depth and type(value) in (dict, list):
            return "…"
        if type(value) is dict:
            is_pair = any(key in NAMES_OF_NAMES and self.is_secret(each) for key, each in value.items())
            hidden = {key for key in value if self.is_secret(key) or (is_pair and key in NAMES_OF_VALUES)}
            return {key: MASK if key in hidden else self._masked_json(each, depth - 1) for key, each in value.items()}
        if type(value) is list:
            is_pair = len(value) > 1 and self.is_secret(value[0])
            return [
                MASK if is_pair and number else self._masked_json(each, depth - 1) for number, each in enumerate(value)
            ]
        return value

    def text(self, text: str) -> str:
        """Mask what is secret in a text, by its look and by the names in it."""
        if self._parts == ():
            return text
        if "-----BEGIN" in text:
            text = _PEM.sub(MASK, text)
        if ":" in text:
            text = _URL_LOGIN.sub(_without_login, text)
        if "@" in text and ":" in text:
            text = _LOGIN.sub(rf"\g<1>{MASK}@", _URL_TOKEN.sub(rf"\g<1>{MASK}@", text))
        text = _KNOWN.sub(MASK, text)
        if self._parts is None:
            text = _SPOKEN.sub(rf"\g<name>{MASK}", _SPACED.sub(rf"\g<name>{MASK}", text))
        return self.names(text)

    def names(self, text: str, mask: str = MASK) -> str:
        """Mask what stands in a text after the name of a secret, or in an element of XML of this name."""
        if "</" in text:
            text = _ELEMENT.sub(lambda found: found[1] + mask if self.is_secret(found[2]) else found[0], text)
        if not ("=" in text or ":" in text or "," in text):
            return text
        parts: list[str] = []
        done = position = 0
        while (match := _NAME.search(text, position)) is not None:
            position = match.end()
            if self.is_secret(match[1]):
                position = _end_of_value(text, match)
                if position > match.end() and not text.startswith(mask, match.end()):
                    parts += [text[done : match.end()], mask]
                    done = position
        return "".join([*parts, text[done:]])


# {"name": "password", "value": "…"}: the value of one key is the name of another's.
NAMES_OF_NAMES: Final = ("name", "key", "field", "header", "Name", "Key")
NAMES_OF_VALUES: Final = ("value", "val", "values", "content", "data", "Value")

# The whole block, with or without its end.
_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}-----.{0,20000}?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.DOTALL)
# A password may hold `/`, `:` and `@`: the login ends at the last `@` of the word.
# One that is cut may have its `@` behind the cut: what is too long for a port and a path is a password.
_URL_LOGIN: Final = re.compile(
    r"(\w{1,20}://[^\s:/@'\"<>]{0,200}:)(?:[^\s'\"<>]{1,4000}(@)|(?!\d{1,5}/)[^\s'\"<>]{200,}\Z)"
)


def _without_login(found: re.Match[str]) -> str:
    return f"{found[1]}{MASK}{found[2] or ''}"


# A login that is a token alone, as NATS, Sentry and GitHub have.
_URL_TOKEN: Final = re.compile(r"(\w{1,20}://)(?!git@)[^\s:/@'\"<>•]{1,1000}@")
# The text of an element of XML or HTML.
_ELEMENT: Final = re.compile(r"(<([A-Za-z_][\w.:-]{0,99})(?: [^<>]{0,400})?>)[^<>]{1,4000}(?=</)")
# In statements of SQL, and names of two words.
_SPOKEN: Final = re.compile(
    r"(?P<name>\b(?:PASSWORD|IDENTIFIED BY)\s{1,9}(?=')|\b(?:api|access|secret|private|signing) key['\"]?\s{0,9}"
    r"[=:]\s{0,9})(?:'[^']{0,4000}'?|[^\s,;'\"]{1,4000})",
    re.IGNORECASE,
)
_LOGIN: Final = re.compile(r"(?<![\w/:.@•-])([\w.+-]{1,100}:)[^\s'\"<>@/•]{1,200}@(?=[\w-])")
# Tokens that are known by their look: JSON Web Tokens, credentials of headers, keys of well-known services.
_KNOWN: Final = re.compile(
    r"\beyJ[\w-]{5,5000}(?:\.[\w-]{1,10000}){1,4}|\bA[KS]IA[A-Z0-9]{16}\b|\bgh[oprsu]_\w{20,255}|\bgithub_pat_\w{20,255}"
    r"|\b[sr]k_(?:live|test)_\w{8,255}|\bsk-[\w-]{16,255}|\bxox[a-z]-[\w-]{8,255}|\bAIza[\w-]{30,60}|\bglpat-[\w-]{16,255}"
    r"|(?<=\bBearer )[\w.~+/=-]{4,5000}|(?<=\bbearer )[\w.~+/=-]{8,5000}|(?<=\bApiKey )[\w.~+/=-]{8,5000}"
    r"|\bnpm_\w{20,255}|\bpypi-[\w-]{40,255}|\bhf_\w{20,255}|\bSG\.[\w-]{16,80}\.[\w-]{16,80}"
    r"|(?<=\bBasic )[\w+/=]{6,5000}|(?<=\bToken )[\w.~+/=-]{8,5000}"
)
# A name, perhaps in (escaped) quotes, and then = or :, or in a pair of two texts a comma.
_NAME: Final = re.compile(
    r"""(?<![\w.\-])-{0,2}([A-Za-z_][\w.\-]{0,199})(?:\\{0,4}['"]?\s{0,40}(?:=>|=|:)\s{0,40}|\\{0,4}['"],\s{0,2}(?=b?\\{0,4}['"]))"""
)
_HEADERS: Final = ("authorization", "cookie")
_VALUE: Final = 4_000  # characters of a secret value
_INDENT: Final = 40  # characters before a name at the start of a line


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
    before = text.rfind("\n", max(0, match.start() - _INDENT), match.start())
    begin = before + 1 if before >= 0 or match.start() > _INDENT else 0
    is_line = ":" in match[0] and not text[begin : match.start()].strip(" ")
    if is_line and text[start : start + 1] in ("|", ">"):
        return _end_of_block(text, match.start() - begin, line, most)
    if (is_header and text[start : start + 1] not in "[{(") or is_line:
        return line
    return _end_of_word(text, start, most)


def _end_of_block(text: str, indent: int, line: int, most: int) -> int:
    """Where a block of YAML ends: before the next line that is indented no further than its name."""
    end = line
    while end < most:
        after = text.find("\n", end + 1, most)
        after = most if after < 0 else after
        inner = text[end + 1 : after]
        if inner.strip() and len(inner) - len(inner.lstrip(" ")) <= indent:
            break
        end = after
    return end


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


_QUOTE: Final = re.compile(r"""[bBuUrRfF]{0,2}(\"{3}|'{3}|\\{0,4}['"])""")


# -- texts of a relay: errors, addresses, log lines --------------------------------------------------------------------

HIDDEN: Final = "***"

# Where a URL has no password, the part before "@" may be a token (NATS), so all of it is hidden. A password may hold
# "/" and "@" that nobody has escaped: it goes up to the last "@" before white space or the next URL.
_USER_INFO: Final = re.compile(
    r"(?P<scheme>(?:\b[A-Za-z][A-Za-z0-9+.-]*:)?//)(?P<user>[^\s/?#@:]*)(?P<rest>:(?:(?!://)[^\s\"'])*)?@"
)
_NAMES: Final = (
    r"password|passwd|pwd|passphrase|(?<![A-Za-z])pass(?![A-Za-z])|secret|token|api[_-]?key|access[_-]?key|credentials"
    r"|jwt|nkeys?_seed|seed"
)
_SETTING: Final = re.compile(
    rf"(?P<name>\b[\w.-]{{0,100}}(?:{_NAMES})[\w.-]{{0,100}}[\"']?\s{{0,40}}[=:]\s{{0,40}})(?P<value>[bru]?\"[^\"]*\"|[bru]?'[^']*'|[^\s&;,\"')}}\]]+)",
    re.IGNORECASE,
)
# Those that white space parts from their names, of HTTP and of command lines.
_SPACED: Final = re.compile(
    rf"(?P<name>\bAuthorization[\"']?\s*[=:]\s*[\"']?\w+\s+|(?<!\S)--[\w-]{{0,100}}(?:{_NAMES})[\w-]{{0,100}}\s+)[^\s\"']+",
    re.IGNORECASE,
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_USUAL: Final = Masker(None)


def redacted(text: object) -> str:
    """Write a text in one line that shows no password: of URLs, of settings such as `password=…`, of error messages.

    Control characters, line ends, and marks that turn the direction of writing are escaped as Python escapes them.
    """
    return _CONTROL.sub(_escaped, without_passwords(str(text)))


def without_passwords(text: str) -> str:
    """Write a text with all its lines and characters, but for its passwords."""
    text = _USUAL.names(_USER_INFO.sub(_without_user_info, text), HIDDEN)
    text = _LOGIN.sub(rf"\g<1>{HIDDEN}@", text)
    for pattern in (_SETTING, _SPACED, _SPOKEN):
        text = pattern.sub(rf"\g<name>{HIDDEN}", text)
    for look in (_PEM, _KNOWN):
        text = look.sub(HIDDEN, text)
    return text


def said(error: BaseException) -> str:
    """Write what an error says, by its kind alone where it says nothing, redacted."""
    text = redacted(error) or ("no answer in time" if isinstance(error, TimeoutError) else "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _without_user_info(found: re.Match[str]) -> str:
    user = found["user"] if found["rest"] else HIDDEN
    password = f":{HIDDEN}" if found["rest"] else ""
    return f"{found['scheme']}{user}{password}@"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class MaskingFilter(logging.Filter):
    """Masks what is secret in the records of a logger: the message, and the text of an exception.

    For a logger (`logging.getLogger("asignals").addFilter(MaskingFilter())`, and the same for `"asignals.relay"`), or
    for a handler, which then masks the lines of all loggers. The exception stays in `record.exc_info` for handlers that
    look at it themselves; formatters write the masked text. A record whose message cannot be made is left as it is.
    """

    def __init__(self, secrets: Iterable[str] | None = None) -> None:
        """Mask by the usual names, or by these parts of names, in any case."""
        super().__init__()
        self._masker = Masker(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask one record; keeps all."""
        with suppress(Exception):  # handlers report what is wrong with a record; whoever logs is not to be troubled
            message = record.getMessage()
            masked = self._masker.text(message)
            if masked != message:
                record.msg, record.args = masked, ()
            if record.exc_info and record.exc_info[1] is not None:
                text = record.exc_text or _FORMATTER.formatException(record.exc_info)
                record.exc_text = self._masker.text(text)
        return True


_FORMATTER: Final = logging.Formatter()

__all__ = ["Masker", "MaskingFilter", "is_secret_name", "redacted", "said"]
