"""What crosses between processes: one event in its envelope, and the letter that an event becomes when it is given up.

On the wire an envelope is one line of JSON (the header) and then the body, byte for byte. A reader needs nothing but
a JSON parser; nothing that arrives is ever imported, evaluated or unpickled. Every field is checked and bounded before
it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from asignals._core import DocumentedError
from asignals.masking import redacted

MAX_HEADER: Final = 16_384
MAX_BODY: Final = 1_000_000  # with MAX_HEADER this stays under the 1 MiB that NATS accepts by default
MAX_KEPT: Final = MAX_BODY + MAX_HEADER  # bytes of an event that its dead letter keeps
MAX_BAGGAGE: Final = 4_096  # characters, which the header has to hold
_MAX_TEXT: Final = 1_000
_LATEST: Final = 1e11  # seconds since the epoch: the year 5138

_dump = json.JSONEncoder(separators=(",", ":")).encode
_load = json.JSONDecoder().decode
_scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # one value without spaces around it, in half the time
_quote = json.encoder.encode_basestring_ascii
_RARE: Final = ("key", "target", "traceparent", "repeats", "tracestate", "baggage")
_NONE: Final = (None,) * len(_RARE)
_rare_of = attrgetter(*_RARE)  # the texts that most events do not have, compared at once with `_NONE`
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_NAME: Final = 200


class EnvelopeError(DocumentedError, ValueError):
    """Bytes are not an envelope, or an envelope breaks a rule; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not an acceptable envelope: {reason}")
        self.reason = reason


def check_name(kind: str, name: str) -> str:
    """Return a topic, service or queue name that every broker takes; raises `ValueError` for any other.

    Letters, digits, `_` and `-` in parts divided by dots, at most 200 characters.
    """
    if not isinstance(name, str) or not _is_name(name):
        shown = redacted(repr(name))[:80]
        raise ValueError(
            f"{kind} must be letters, digits, '_' and '-' in parts divided by dots, at most {_MAX_NAME}, not {shown}"
        )
    return name


@lru_cache(maxsize=1024)
def _is_name(name: str) -> bool:
    return len(name) <= _MAX_NAME and _NAME.fullmatch(name) is not None


def new_id() -> str:
    """Make an event id: it sorts by time, roughly, so that indexes on it stay compact."""
    return f"{time.time_ns():016x}{os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event under way; immutable.

    `id` is unique and stays with the event through every repetition; `version` is the sender's schema version; `origin`
    names the service and instance that sent it; `time` is seconds since the epoch; `hops` counts the events that led to
    this one through other processes; `sender` is the signal's sender as a string; events of one `key` in a topic
    are handled in order, one at a time; `target` is the only service that is to handle it, or `None` for all;
    `repeats` is the id of the event that this one replays; `done` names receivers that need not be called: in a replay
    those that had succeeded, else those that the sending process calls itself, which concerns its own service only.
    `traceparent`, `tracestate` and `baggage` are the sender's trace, as W3C writes it.
    """

    topic: str
    body: bytes
    id: str = field(default_factory=new_id)
    version: int = 1
    origin: str = ""
    time: float = field(default_factory=time.time)
    hops: int = 0
    sender: str | None = None
    key: str | None = None
    target: str | None = None
    traceparent: str | None = None
    repeats: str | None = None
    done: tuple[str, ...] = ()
    tracestate: str | None = None
    baggage: str | None = None

    def encode(self) -> bytes:
        """Give the bytes for the wire; raises `EnvelopeError` when a field breaks a rule."""
        _check(self)
        # Written out, as an encoder for any value takes four times as long; id and topic need no escapes.
        line = f'{{"id":"{self.id}","topic":"{self.topic}","version":{self.version},"time":{self.time!r}'
        line += f',"origin":{_quote(self.origin)}'
        if self.sender is not None:
            line += f',"sender":{_quote(self.sender)}'
        if (rare := _rare_of(self)) != _NONE:
            for name, text in zip(_RARE, rare, strict=True):
                if text is not None:
                    line += f',"{name}":{_quote(text)}'
        if self.hops:
            line += f',"hops":{self.hops}'
        if self.done:
            line += f',"done":[{",".join(map(_quote, self.done))}]'
        head = f"{line}}}".encode()
        if len(head) > MAX_HEADER:
            reason = f"its header has {len(head)} bytes, more than {MAX_HEADER}"
            raise EnvelopeError(reason)
        return b"%b\n%b" % (head, self.body)

    @classmethod
    def decode(cls, data: bytes, *, max_body: int = MAX_BODY) -> Envelope:
        """Read the bytes of `encode`; raises `EnvelopeError` for anything else, and nothing else.

        A body of more than `max_body` bytes is refused as well.
        """
        if len(data) > MAX_HEADER + max_body:
            reason = f"it has {len(data)} bytes"
            raise EnvelopeError(reason)
        end = data.find(b"\n", 0, MAX_HEADER + 1)
        if end < 0:
            reason = "it has no header line"
            raise EnvelopeError(reason)
        if len(data) - end - 1 > max_body:
            reason = f"its body has {len(data) - end - 1} bytes, more than {max_body}"
            raise EnvelopeError(reason)
        return _from_header(_parse(data[:end]), data[end + 1 :])


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        try:
            header, end = _scan(text, 0)
        except StopIteration:
            end = -1
        if end != len(text):
            header = _load(text)
    except (ValueError, RecursionError) as error:
        reason = f"its header is not JSON ({type(error).__name__})"
        raise EnvelopeError(reason) from error
    if type(header) is not dict:
        reason = "its header is not an object"
        raise EnvelopeError(reason)
    return header


def _from_header(header: dict[str, Any], body: bytes) -> Envelope:
    # Fields that are not known are ignored: a later release may add some.
    get = header.get
    done = get("done", ())
    envelope = Envelope(
        get("topic", ""),
        body,
        get("id", ""),
        get("version", 1),
        get("origin", ""),
        get("time", 0.0),
        get("hops", 0),
        get("sender"),
        get("key"),
        get("target"),
        get("traceparent"),
        get("repeats"),
        tuple(done) if type(done) is list else done,
        get("tracestate"),
        get("baggage"),
    )
    _check(envelope)
    return envelope


def _check(envelope: Envelope) -> None:
    """Hold the fields against the rules; they come from the wire, so nothing is known of their types."""
    if not _is_id(envelope.id) or (envelope.repeats and not _is_id(envelope.repeats)):
        reason = "its id is not 1 to 64 letters, digits, '_' or '-'"
        raise EnvelopeError(reason)
    try:
        check_name("topic", envelope.topic)
        if envelope.target is not None:
            check_name("target", envelope.target)
    except ValueError as error:
        raise EnvelopeError(str(error)) from None
    if type(envelope.version) is not int or not 0 < envelope.version < 1 << 31:
        reason = "its version is not a positive integer"
        raise EnvelopeError(reason)
    if type(envelope.hops) is not int or not 0 <= envelope.hops < 1 << 31:
        reason = "its hops are not a natural number"
        raise EnvelopeError(reason)
    if type(envelope.time) not in (float, int) or not 0 <= envelope.time < _LATEST:
        reason = "its time is not a number of seconds"
        raise EnvelopeError(reason)
    _check_texts(envelope)
    if envelope.done and (type(envelope.done) is not tuple or not all(map(_is_text, envelope.done))):
        reason = "its done is not a list of receivers' names"
        raise EnvelopeError(reason)


def _is_id(text: Any) -> bool:
    return type(text) is str and _ID.fullmatch(text) is not None


def _is_text(text: Any, most: int = _MAX_TEXT) -> bool:
    if type(text) is not str or len(text) > most or "\0" in text:  # which PostgreSQL does not take
        return False
    return text.isascii() or _is_unicode(text)


def _check_texts(envelope: Envelope) -> None:
    if not _is_text(envelope.origin):
        raise EnvelopeError(_no_text("origin"))
    if envelope.sender is not None and not _is_text(envelope.sender):
        raise EnvelopeError(_no_text("sender"))
    if (rare := _rare_of(envelope)) == _NONE:
        return
    for name, text in zip(_RARE, rare, strict=True):
        most = MAX_BAGGAGE if name == "baggage" else _MAX_TEXT
        if text is not None and not _is_text(text, most):
            raise EnvelopeError(_no_text(name, most))


def _no_text(name: str, most: int = _MAX_TEXT) -> str:
    return f"its {name} is not text of at most {most} characters"


def _is_unicode(text: str) -> bool:
    """Whether every engine can keep the text: UTF-8 has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that one service gave up, as it arrived, and why.

    `raw` is what came from the wire (cut at 1 MB when it was larger); `error` names the exception (engines keep 1000
    characters); `attempts` is how often it was tried; `time` is seconds since the epoch; `done` names the receivers
    that had succeeded, which a replay does not call again. `position` is where the transport keeps the letter, and
    `queue` where the relay found it.
    """

    raw: bytes
    service: str
    error: str
    attempts: int = 1
    time: float = field(default_factory=time.time)
    position: str = ""
    done: tuple[str, ...] = ()
    queue: str = ""

    def encode(self) -> bytes:
        """Give the bytes that a transport keeps."""
        header = {
            "service": self.service,
            "error": self.error[:_MAX_TEXT],
            "attempts": self.attempts,
            "time": self.time,
            "done": self.done,
        }
        line = _dump(header)
        if len(line) > MAX_HEADER:  # so many receivers that their names do not fit: the inbox may still know them
            line = _dump({**header, "done": ()})
        return b"%b\n%b" % (line.encode(), self.raw[:MAX_KEPT])

    @classmethod
    def decode(cls, data: bytes, position: str) -> DeadLetter:
        """Read the bytes of `encode`; raises `EnvelopeError` for what is no letter.

        Others may have written it: a number that is none is read as 0, and a text that nobody could store is made one.
        """
        end = data.find(b"\n", 0, MAX_HEADER + 1)
        header = _parse(data[:end] if end >= 0 else b"")
        if "service" not in header or "error" not in header:
            reason = "no dead letter: it names no service or no error"
            raise EnvelopeError(reason)
        done = header.get("done", ())
        return cls(
            data[end + 1 :],
            _text_of(header["service"]),
            _text_of(header["error"]),
            int(_number_of(header.get("attempts"))),
            _number_of(header.get("time")),
            position,
            tuple(filter(_is_text, done)) if type(done) is list else (),
        )

    @classmethod
    def read(cls, data: bytes, position: str) -> DeadLetter:
        """Read what is in a queue of dead letters; what is no letter is shown as one, so that it hides no other."""
        try:
            return cls.decode(data, position)
        except EnvelopeError as error:
            return cls(data[:MAX_KEPT], "", str(error), 0, 0.0, position)

    @property
    def envelope(self) -> Envelope | None:
        """The event, where it can be read."""
        try:
            return Envelope.decode(self.raw)
        except EnvelopeError:
            return None

    @property
    def id(self) -> str:
        """Same for each copy of this letter, so that engines that know repetitions keep one."""
        envelope = self.envelope
        event_id = envelope.id if envelope else hashlib.blake2s(self.raw, digest_size=16).hexdigest()
        return f"{event_id}-{self.service}"


def _text_of(value: object) -> str:
    """Make text of anything JSON: short, and without what UTF-8 has no bytes for."""
    return (value if isinstance(value, str) else repr(value))[:_MAX_TEXT].encode(errors="replace").decode()


def _number_of(value: Any) -> float:
    """Make a number between 0 and 1e11 of anything JSON: 0 when it is none (NaN compares as false)."""
    return float(value) if type(value) in (int, float) and 0 <= value < _LATEST else 0.0
