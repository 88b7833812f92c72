"""The sending side: an ordinary receiver of the signal that puts what was sent into an envelope."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from asignals.relay._codec import BodyError
from asignals.relay._envelope import MAX_BODY, Envelope
from asignals.relay._trace import current_traceparent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from asignals import Signal
    from asignals.relay._codec import Codec

handling: ContextVar[Envelope | None] = ContextVar("asignals.relay.handling", default=None)
"""The event whose receivers are being called: what they send follows from it."""


class ExportUid(NamedTuple):
    """The dispatch_uid of an exporting receiver, by which the receiving side knows to leave it out."""

    service: str
    topic: str
    relay: int


class HopLimitError(RuntimeError):
    """An event was to be sent that follows from too many events of other processes, which answer each other."""

    def __init__(self, signal: str, topic: str, hops: int) -> None:
        super().__init__(f"signal {signal!r} is not exported to {topic!r}: it follows from {hops} events already")
        self.signal = signal
        self.topic = topic
        self.hops = hops


def dump_sender(sender: object) -> str | None:
    """Take a sender as it is when it is a string, and `None`."""
    if sender is None or isinstance(sender, str):
        return sender
    msg = f"a sender crosses as a string: give senders=(dump, load) for {type(sender).__name__!r}"
    raise TypeError(msg)


class Exporter:
    """Puts each send of one signal into an envelope and hands it on."""

    def __init__(  # noqa: PLR0913  everything that `Relay.export` was told
        self,
        *,
        topic: str,
        codec: Codec,
        dump: Callable[[Any], str | None],
        key: Callable[[Any, dict[str, Any]], str | None],
        version: int,
        local: Collection[str],
        origin: str,
        hop_limit: int,
        hand_on: Callable[[Envelope, Any], Awaitable[None]],
    ) -> None:
        self.topic = topic
        self._codec = codec
        self._dump = dump
        self._key = key
        self._version = version
        self._local = frozenset(local)
        self._origin = origin
        self._hop_limit = hop_limit
        self._hand_on = hand_on

    async def __call__(self, signal: Signal[..., Any], sender: Any, **arguments: Any) -> None:
        """Hand the event on; returns when it is stored or, without an outbox, acknowledged."""
        session = arguments.get("session") if "session" in self._local else None
        crossing = {name: value for name, value in arguments.items() if name not in self._local}
        envelope = Envelope(
            self.topic,
            self._encode(signal, crossing),
            version=self._version,
            origin=self._origin,
            hops=self._hops(signal),
            sender=self._dump(sender),
            key=self._key(sender, crossing),
            traceparent=current_traceparent(),
        )
        await self._hand_on(envelope, session)

    def _encode(self, signal: Signal[..., Any], arguments: dict[str, Any]) -> bytes:
        try:
            body = self._codec.encode(arguments)
        except RecursionError:
            raise BodyError(signal.name, "they are nested too deeply") from None
        except Exception as error:
            raise BodyError(signal.name, f"they cannot be written: {error}") from error
        if len(body) > MAX_BODY:
            raise BodyError(signal.name, f"they take {len(body)} bytes, more than {MAX_BODY}")
        return body

    def _hops(self, signal: Signal[..., Any]) -> int:
        cause = handling.get()
        hops = 0 if cause is None else cause.hops + 1
        if hops > self._hop_limit:
            raise HopLimitError(signal.name, self.topic, hops)
        return hops
