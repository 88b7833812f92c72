"""The sending side: an ordinary receiver of the signal that puts what was sent into an envelope."""

from __future__ import annotations

from contextvars import ContextVar
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias
from uuid import UUID

from asignals._core import DocumentedError, name_of
from asignals.overview.relays import producing
from asignals.relay._codec import BodyError
from asignals.relay._envelope import MAX_BODY, Envelope
from asignals.relay._settings import shown
from asignals.relay._trace import current_trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from asignals import Signal
    from asignals.relay._codec import Codec
    from asignals.relay._identity import Identity

    KeyFunction: TypeAlias = "Callable[[Any, dict[str, Any]], str | None]"

handling: ContextVar[Envelope | None] = ContextVar("asignals.relay.handling", default=None)
"""The event whose receivers are being called: what they send follows from it."""
exported: ContextVar[str | None] = ContextVar("asignals.relay.exported", default=None)
"""The id of the event that was exported last in this context, for those who watch the send."""


class ExportUid(NamedTuple):
    """The dispatch_uid of an exporting receiver, by which the receiving side knows to leave it out."""

    service: str
    topic: str
    relay: int


OWN_TRANSACTION: Final = object()
"""What `Relay.own_transaction` binds instead of a session."""


class Bound:
    """A block whose sends use one session: what `Relay.bind` and `Relay.own_transaction` give."""

    def __init__(self, variable: ContextVar[Any], session: Any) -> None:
        self._variable = variable
        self._session = session
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before.append(self._variable.get())
        self._variable.set(self._session)

    def __exit__(self, *_: object) -> None:
        # Without a token, which only the same context takes: a fixture, or a dependency that a framework runs in
        # threads, may leave the block in another one.
        self._variable.set(self._before.pop())

    def __call__(self, function: object) -> NoReturn:
        """Refuse to be a decorator: an async function would leave the block before its body runs."""
        name = getattr(function, "__qualname__", function)
        raise TypeError(f"this is no decorator: write the `with` block inside of {name!r}")


class HopLimitError(DocumentedError, RuntimeError):
    """An event was to be sent that follows from too many events of other processes, which answer each other."""

    def __init__(self, signal: str, topic: str, hops: int) -> None:
        super().__init__(f"signal {signal!r} is not exported to {topic!r}: it follows from {hops} events already")
        self.signal = signal
        self.topic = topic
        self.hops = hops


class NoSessionError(DocumentedError, RuntimeError):
    """A signal was sent without the session whose transaction its event was to be part of."""

    def __init__(self, signal: str, topic: str) -> None:
        super().__init__(
            f"signal {signal!r} was sent without a session, so its event for {topic!r} would stay though your "
            f"transaction rolls back: send it with session=…, or inside `with relay.bind(session):`; where it is "
            f"meant to have its own transaction, send it inside `with relay.own_transaction():`"
        )
        self.signal = signal
        self.topic = topic


def dump_sender(sender: object) -> str | None:
    """Take a sender as it is when it is a string, and `None`."""
    if sender is None or isinstance(sender, str):
        return sender
    msg = (
        f"senders are sent as strings; convert {type(sender).__name__!r} with sender_codec=(dump, load), "
        f"two functions to a string and back"
    )
    raise TypeError(msg)


def load_sender(sender: str | None) -> str | None:
    """Give a sender as it came."""
    return sender


def key_function(signal: Signal[..., Any], key: str | KeyFunction | None) -> KeyFunction | None:
    """Give the function that makes an event's key; its `__qualname__` says of what.

    Raises for an argument that the signal does not have.
    """
    if key is None:
        return None
    if callable(key):
        return _checked(signal, key)
    if not isinstance(key, str):
        raise TypeError(f"key must be the name of an argument, or a function of sender and arguments, not {shown(key)}")
    names = signal.providing_args
    if names is not None and key not in names:
        raise ValueError(
            f"key={shown(key)} is no argument of signal {signal.name!r}, which has {', '.join(names) or 'none'}"
        )
    return _by_name(signal, key)


def _checked(signal: Signal[..., Any], key: KeyFunction) -> KeyFunction:
    def checked(sender: Any, arguments: dict[str, Any]) -> str | None:
        made = key(sender, arguments)
        return None if made is None else _key_of(signal, "the function given as key", made)

    checked.__qualname__ = f"{name_of(key)}()"
    return checked


def _by_name(signal: Signal[..., Any], name: str) -> KeyFunction:
    def by_name(_sender: Any, arguments: dict[str, Any]) -> str:
        if name not in arguments:
            raise TypeError(f"signal {signal.name!r} was sent without its key, argument {name!r}")
        return _key_of(signal, f"argument {name!r}", arguments[name])

    by_name.__qualname__ = name
    return by_name


def _key_of(signal: Signal[..., Any], what: str, value: object) -> str:
    """Make a key of a value that always makes the same one; a number and its text are the same key."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (Integral, UUID)) and not isinstance(value, bool):
        return str(value)
    raise TypeError(
        f"the key of signal {signal.name!r} is a string, an integer or a UUID, and {what} gave {value!r:.80}"
    )


class Exporter:
    """Puts each send of one signal into an envelope and hands it on."""

    def __init__(  # noqa: PLR0913  everything that `Relay.export` was told
        self,
        *,
        topic: str,
        codec: Codec,
        dump: Callable[[Any], str | None],
        key: KeyFunction | None,
        version: int,
        exclude_args: Collection[str],
        identity: Identity,
        hop_limit: int,
        needs_session: bool,
        system: str,
        called_here: Callable[[Signal[..., Any], str, Any], tuple[str, ...]],
        hand_on: Callable[[Envelope, Any], Awaitable[None]],
        session: ContextVar[Any],
    ) -> None:
        self.topic = topic
        self.system = system  # as OpenTelemetry calls the engine
        self._codec = codec
        self._dump = dump
        self._key = key
        self._version = version
        self._exclude_args = frozenset(exclude_args)
        self._identity = identity
        self._hop_limit = hop_limit
        self._needs_session = needs_session
        self._called_here = called_here
        self._hand_on = hand_on
        self._session = session

    def envelope(self, signal: Signal[..., Any], sender: Any, arguments: dict[str, Any]) -> Envelope:
        """Put what was sent into an envelope."""
        if not self._exclude_args.isdisjoint(arguments):
            arguments = {name: value for name, value in arguments.items() if name not in self._exclude_args}
        key = None if self._key is None else self._key(sender, arguments)
        trace = current_trace()
        return Envelope(
            self.topic,
            self._encode(signal, arguments),
            version=self._version,
            origin=self._identity.origin,
            hops=self._hops(signal),
            sender=self._dump(sender),
            key=key,
            done=self._called_here(signal, self.topic, sender),
            traceparent=trace.get("traceparent"),
            tracestate=trace.get("tracestate"),
            baggage=trace.get("baggage"),
        )

    def receiver(self) -> Callable[..., Awaitable[None]]:
        """The function to connect; messages, spans and pages call it `relay shop → order.paid`.

        It returns when the event is stored or, without an outbox, acknowledged.
        """

        async def export(signal: Signal[..., Any], sender: Any, **arguments: Any) -> None:
            session = self._session_of(signal, arguments)
            envelope = self.envelope(signal, sender, arguments)
            if (span := producing.get()) is not None:
                span.set_attribute("messaging.message.id", envelope.id)
            exported.set(envelope.id)
            await self._hand_on(envelope, session)

        function: Any = export
        function.__module__ = None  # a label, and no code that anybody looks for
        function.__qualname__ = f"relay {self._identity.service} → {self.topic}"
        function.exporter = self
        return export

    def _session_of(self, signal: Signal[..., Any], arguments: dict[str, Any]) -> Any:
        """The session whose transaction the event is part of; `None` for a separate one."""
        session = arguments.get("session") if "session" in self._exclude_args else None
        if session is None:
            session = self._session.get()
        if session is OWN_TRANSACTION:
            return None
        if session is None and self._needs_session:
            raise NoSessionError(signal.name, self.topic)
        return session

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
