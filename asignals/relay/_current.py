"""What a receiver may know of the event that it handles, and how it notes in its own transaction that it has."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from asignals._core import DocumentedError

if TYPE_CHECKING:
    from asignals.relay._envelope import Envelope
    from asignals.relay._inbox import Inbox


class Call(NamedTuple):
    """One receiver's call under way; `receiver` is its name, `None` where it has none of its own."""

    envelope: Envelope
    service: str
    attempt: int
    inbox: Inbox
    receiver: str | None


calling: ContextVar[Call | None] = ContextVar("asignals.relay.calling", default=None)


@dataclass(slots=True)
class Delivered:
    """An event whose receivers are being called, for monitors; `error` is what was wrong in the end."""

    envelope: Envelope
    service: str
    attempt: int
    system: str
    error: BaseException | None = None


delivering: ContextVar[Delivered | None] = ContextVar("asignals.relay.delivering", default=None)
"""Set while monitors are told that the send of an event begins, and not in its receivers."""


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """The event whose receivers are being called.

    `id` stays the same through every repetition and replay; `attempt` counts from 1 how often receivers were called for
    it, as far as failures are remembered; `time` is when it was sent, in seconds since the epoch; `origin` names the
    service and the instance that sent it; `traceparent` is the sender's span, as W3C writes it.
    """

    id: str
    topic: str
    attempt: int
    time: float
    origin: str
    version: int
    key: str | None
    traceparent: str | None


def current_event() -> ReceivedEvent | None:
    """Give the event that a relay is handling here; `None` where a signal was sent in this process.

    For receivers, and for what they call, in threads and tasks of theirs, too.
    """
    call = calling.get()
    if call is None:
        return None
    envelope = call.envelope
    return ReceivedEvent(
        envelope.repeats or envelope.id,
        envelope.topic,
        call.attempt,
        envelope.time,
        envelope.origin,
        envelope.version,
        envelope.key,
        envelope.traceparent,
    )


class AlreadyHandledError(DocumentedError):
    """A receiver has handled the event before, and its effects are committed: it must not handle it again.

    Raised by `once`; the relay takes it for success.
    """

    def __init__(self, event_id: str, receiver: str) -> None:
        super().__init__(f"{receiver} has handled event {event_id} before")
        self.event_id = event_id
        self.receiver = receiver
