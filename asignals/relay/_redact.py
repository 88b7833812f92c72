"""One way of writing texts that may hold passwords or control characters: URLs, errors, whatever goes to logs."""

from __future__ import annotations

import re
from typing import Final

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
    rf"(?P<name>\b[\w.-]*(?:{_NAMES})[\w.-]*[\"']?\s*[=:]\s*)(?P<value>[bru]?\"[^\"]*\"|[bru]?'[^']*'|[^\s&;,\"')}}\]]+)",
    re.IGNORECASE,
)
# Those that white space parts from their names, of HTTP and of command lines.
_SPACED: Final = re.compile(
    rf"(?P<name>\bAuthorization[\"']?\s*[=:]\s*[\"']?\w+\s+|(?<!\S)--[\w-]*(?:{_NAMES})[\w-]*\s+)[^\s\"']+",
    re.IGNORECASE,
)
# As in user:password@host:4222.
_NO_SCHEME: Final = re.compile(r"(?P<name>(?<![\w.+/:-])[\w.+-]+:)[^\s@/\"']+(?=@[\w.-]+:\d)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redacted(text: object) -> str:
    """Write a text in one line that shows no password: of URLs, of settings such as `password=…`, of error messages.

    Control characters, line ends, and marks that turn the direction of writing are escaped as Python escapes them.
    """
    return _CONTROL.sub(_escaped, without_passwords(str(text)))


def without_passwords(text: str) -> str:
    """Write a text with all its lines and characters, but for its passwords."""
    text = _USER_INFO.sub(_without_user_info, text)
    for pattern in (_SETTING, _SPACED, _NO_SCHEME):
        text = pattern.sub(rf"\g<name>{HIDDEN}", text)
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
