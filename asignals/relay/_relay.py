"""`Relay`: which signals leave this process, which come in, and by what engine. asyncio only."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Self

from asignals.overview.relays import running
from asignals.relay._broadcast import Listener
from asignals.relay._codec import UpcastingCodec, check_codec, codec_for
from asignals.relay._dead_letters import Retention
from asignals.relay._envelope import Envelope, check_name
from asignals.relay._export import OWN_TRANSACTION, Bound, Exporter, ExportUid, dump_sender, key_function, load_sender
from asignals.relay._identity import Identity
from asignals.relay._inbox import MemoryInbox
from asignals.relay._monitoring.health import Health, problems_of
from asignals.relay._monitoring.status import Snapshot, Status
from asignals.relay._operations import Operations
from asignals.relay._parts import Parts
from asignals.relay._publisher import Publisher
from asignals.relay._receive import Inbound
from asignals.relay._runner import LAST_LOOK, Runner, last_look, unheard
from asignals.relay._settings import (
    check_excluded,
    check_flags,
    check_numbers,
    check_outbox,
    check_receivable,
    check_sender_codec,
    check_signal,
    check_transport,
    check_upcasters,
    given,
)
from asignals.relay._subscription import Subscription, names_for
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Broadcasts, OwnInbox, system_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from asignals import Signal
    from asignals.relay._codec import Codec, Upcaster
    from asignals.relay._export import KeyFunction
    from asignals.relay._inbox import Inbox
    from asignals.relay._settings import SenderCodec
    from asignals.relay._transport import Transport
    from asignals.relay.outbox import Outbox

FIRST: Final = float("inf")  # the priority of exporting receivers: events are published before anybody reacts here


class Relay(Operations):
    """Carries signals to and from other processes, at least once.

    Use it as an async context manager, in the ASGI lifespan. Inside, what the outbox holds is published and what the
    service receives is handled; leaving waits for both, `grace` seconds at most, and `final_status` then says what
    could not be done (it is still in the outbox or with the engine, and is done later).

    Each service gets every event, its instances share them. An event whose receivers fail, or that nobody handles, is
    tried again, without the receivers that had succeeded; then it becomes a dead letter. One that cannot be read
    becomes a dead letter at once. Others go on meanwhile. A receiver that `send` has called in the sending process is
    not called again by the relay of the same service.

    Args:
        transport: The engine, such as `JetStream("nats://…")`; `engine_from_url` makes one of a URL.
        service: The name that the instances of a service share.
        outbox: Where events wait until the engine has acknowledged them. Without one, `send` itself waits for the
            engine, for `publish_timeout` seconds at most, and raises its error.
        inbox: Remembers what was done, to skip it in repetitions. By default the engine's own store, used for events
            that failed; one that is given remembers successes too, so that an event delivered twice is handled once.
            RabbitMQ and Kafka have no store of their own: without an inbox nothing is remembered over a restart there,
            and an event that kills its process is not found out.
        instance: Names this process among those of the service; by default made of host and process id, in a
                forked child again.
        sender_codec: A pair of functions: sender to string, and string to sender (which may be async). By default
            senders are strings or `None`.
        limit: How many events are handled at once.
        hop_limit: How many events of other processes may lead to one that is sent; beyond it `send` raises
            `HopLimitError`, which ends loops of services that answer each other.
        grace: Seconds that leaving may take.
        publish_timeout: Seconds that `send` waits for the engine without an outbox; then it raises `TimeoutError`.
        strict: Whether `send` refuses to put an event in the outbox without a session whose transaction it is part of
            (`NoSessionError`); `own_transaction` means it. By default for signals that declare an argument `session`.
        keep_dead_letters: Seconds for which dead letters are kept; older ones are removed now and then, in small
            batches, counted in `health()` and logged. By default for ever. What the engine refused is kept by the
            outbox: `SQLAlchemyOutbox(keep=…)`.

    Raises:
        ValueError: `service` or `instance` cannot be used as a name, a number is out of range, or `strict` is asked for
            without an outbox, or outbox and engine share a pool of one connection.
        TypeError: `transport`, `outbox` or `sender_codec` is not what it has to be.
        RuntimeError: entered while it runs.
        SchemaError: entered, and a table that it needs is missing.
    """

    def __init__(  # noqa: PLR0913  one block of configuration
        self,
        transport: Transport,
        service: str,
        *,
        outbox: Outbox | None = None,
        inbox: Inbox | None = None,
        instance: str | None = None,
        sender_codec: SenderCodec | None = None,
        limit: int = 100,
        hop_limit: int = 8,
        grace: float = 10.0,
        publish_timeout: float = 5.0,
        strict: bool | None = None,
        keep_dead_letters: float | None = None,
    ) -> None:
        check_transport(transport)
        check_outbox(outbox, inbox)
        if (use_for := getattr(outbox, "use_for", None)) is not None:
            use_for(transport)
        check_sender_codec(sender_codec)
        check_flags(**given(strict=strict))
        check_numbers(limit=limit, hop_limit=hop_limit, grace=grace, publish_timeout=publish_timeout)
        if keep_dead_letters is not None:
            check_numbers(keep_dead_letters=keep_dead_letters)
        if strict and outbox is None:
            raise ValueError(
                "strict=True needs an outbox: without one there is no transaction that an event could be part of"
            )
        self._identity = Identity(service, instance)
        self.final_status: Status | None = None
        self._sender_codec: SenderCodec = sender_codec or (dump_sender, load_sender)
        self._hop_limit = hop_limit
        self._strict = strict
        self._session: ContextVar[Any] = ContextVar("asignals.relay.session", default=None)
        self._exported: list[tuple[Signal[..., Any], ExportUid]] = []
        own_inbox = transport.inbox() if inbox is None and isinstance(transport, OwnInbox) else MemoryInbox()
        parts = Parts(transport, outbox, inbox or own_inbox)
        self._publisher = Publisher(parts, self._identity, publish_timeout)
        self._inbound = Inbound(
            self._identity,
            parts.inbox,
            self._publisher.put_dead_letter,
            always_remember=inbox is not None,
            lease=_lease_of(transport),
            system=system_of(transport),
        )
        super().__init__(
            service, parts, self._publisher.publish, self._inbound.subscriptions, self._inbound.dead_letter
        )
        self._listener = Listener(self._inbound.caller, self._is_sent_here)
        self._snapshot = Snapshot(lambda: self._looker.look(self.dead_letter_queues, self.topics))
        self._runner = Runner(
            self._identity, parts, self._inbound, self._listener, self._publisher, limit=limit, grace=grace
        )
        self._retention = Retention(self._letters, keep_dead_letters)
        if keep_dead_letters is not None:
            self._runner.also.append(lambda: self._retention.run(self.dead_letter_queues))

    @property
    def instance(self) -> str:
        """Names this process among those of the service."""
        return self._identity.instance

    @property
    def origin(self) -> str:
        """What envelopes from here say of where they come from."""
        return self._identity.origin

    # -- configuration ---------------------------------------------------------------------------------------------

    def export(  # noqa: PLR0913  options by name
        self,
        signal: Signal[..., Any],
        topic: str,
        *,
        sender: object = None,
        key: str | KeyFunction | None = None,
        version: int = 1,
        codec: Codec | None = None,
        sender_codec: SenderCodec | None = None,
        exclude_args: Collection[str] = ("session",),
    ) -> None:
        """Send a signal's events out, from now on and until `stop_exporting`.

        They are published, or put in the outbox, before any receiver in this process is called. An event that a relay
        delivers here is not exported by any relay of this process.

        Args:
            signal: What to export.
            topic: What the event is called between processes.
            sender: Export the sends of this sender only.
            key: The name of an argument, or a function of sender and arguments; `None` for no order. In each service,
                events of one key are handled in the order of their commits, one at a time, whichever instances there
                are; while one waits for its retry, so do the later ones of its key. Keys are strings, integers and
                UUIDs.
            version: The schema version of the arguments; receivers that know only older ones leave it to others.
            codec: How arguments are written; by default JSON by the types of the `@signal` stub.
            sender_codec: As for `Relay`.
            exclude_args: Names of arguments that do not cross. `session` is the one whose transaction the outbox uses.

        Raises:
            ValueError: `topic`, `version`, `key` or `exclude_args` cannot be used, or the topic is exported already.
            TypeError: the types of the stub cannot be resolved, or not be written as JSON; `codec` or `key` is of the
                wrong kind.
            ModuleNotFoundError: the stub declares types, and neither pydantic nor msgspec is installed.
        """
        check_name("topic", topic)
        check_signal("export", signal)
        check_numbers(version=version)
        check_excluded(signal, exclude_args)
        check_sender_codec(sender_codec)
        uid = ExportUid(self.service, topic, id(self))
        if any(other.topic == topic and known is signal for known, other in self._exported):
            raise ValueError(f"signal {signal.name!r} is exported to {topic!r} already")
        declares_session = "session" in exclude_args and "session" in (signal.providing_args or ())
        exporter = Exporter(
            topic=topic,
            codec=codec_for(signal, exclude_args) if codec is None else check_codec(codec),
            dump=(sender_codec or self._sender_codec)[0],
            key=key_function(signal, key),
            version=version,
            exclude_args=exclude_args,
            identity=self._identity,
            hop_limit=self._hop_limit,
            needs_session=self.outbox is not None and (declares_session if self._strict is None else self._strict),
            system=system_of(self.transport),
            called_here=self._called_here,
            hand_on=self._publisher.hand_on,
            session=self._session,
        )
        signal.connect(exporter.receiver(), sender, weak=False, dispatch_uid=uid, priority=FIRST)
        self._exported.append((signal, uid))

    def _called_here(self, signal: Signal[..., Any], topic: str, sender: object) -> tuple[str, ...]:
        """Name the receivers that `send` calls itself, where this service would get the event back for them."""
        subscription = self._inbound.subscriptions.get(topic)
        return names_for(signal, sender) if subscription is not None and subscription.signal is signal else ()

    def stop_exporting(self, signal: Signal[..., Any]) -> None:
        """Disconnect what `export` connected to a signal."""
        for known, uid in list(self._exported):
            if known is signal:
                for connection in signal.connections:
                    if connection.dispatch_uid == uid:
                        signal.disconnect(sender=connection.sender, dispatch_uid=uid)
                self._exported.remove((known, uid))

    def receive(  # noqa: PLR0913  options by name
        self,
        signal: Signal[..., Any],
        topic: str,
        *,
        retries: int = 4,
        backoff: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        version: int = 1,
        upcasters: Mapping[int, Upcaster] | None = None,
        newer_version_timeout: float = 3_600.0,
        codec: Codec | None = None,
        sender_codec: SenderCodec | None = None,
        exclude_args: Collection[str] = ("session",),
        include_own_service: bool = True,
        allow_no_receivers: bool = False,
        broadcast: bool = False,
    ) -> None:
        """Call a signal's receivers for the events of a topic that other processes sent; before the relay runs.

        Receivers are called one after the other in the signal's order; when one fails the others are called none the
        less, and only the failed one again. An event is done when every receiver that is to hear has succeeded. A
        receiver is remembered by its `dispatch_uid`, if that is a string, else by its module and qualified name.

        An event that kills its process counts as one more failure each time; it is tried alone, after the pause of
        `backoff`, and is a dead letter after `retries` of them, two at the least.

        Args:
            signal: Whose receivers to call.
            topic: Which events.
            retries: How often an event is tried again after its first failure.
            backoff: Seconds before the first retry, and at most; doubled each time, shortened at random by up to a
                half.
            dead_letter: The queue for events that are given up; by default `dlq.` and the service.
            version: The newest schema version that the receivers understand.
            upcasters: Functions that turn the JSON object of one version, the key, into that of the next.
            newer_version_timeout: Seconds for which events of a newer version are left to other instances; then they
                become dead letters. Counted by each instance from when it first saw the event.
            codec: How arguments are read; by default JSON by the types of the `@signal` stub.
            sender_codec: As for `Relay`.
            exclude_args: Names of arguments that do not cross; they need defaults.
            include_own_service: Whether to receive what instances of this same service sent. Receivers that the sender
                called itself are left out in any case, where its relay receives what it exports.
            allow_no_receivers: Whether an event that no receiver is connected for is done, instead of failed.
            broadcast: Whether every running instance gets every event, in addition to what the service shares: for
                websockets, caches, configuration. From when this instance runs; nothing is kept, acknowledged or
                repeated for it, so `retries`, `backoff`, `dead_letter` and the like do not matter. Events are handled
                one after the other; of more than 1,000 that wait the oldest are dropped. Losses are counted in
                `health()` and logged. What this relay exports of the same signal it does not hear.

        Raises:
            ValueError: a name or number cannot be used, the topic is received already, or an argument that does not
                cross has no default.
            TypeError: the types of the stub cannot be resolved, or not be read from JSON; `codec` is of the wrong kind.
            ModuleNotFoundError: the stub declares types, and neither pydantic nor msgspec is installed.
            RuntimeError: the relay runs.
        """
        if self._runner.is_running:
            raise RuntimeError(
                f"topic {topic!r} cannot be received by a relay that runs: call receive before it starts"
            )
        check_name("topic", topic)
        check_signal("receive", signal)
        check_flags(include_own_service=include_own_service, allow_no_receivers=allow_no_receivers, broadcast=broadcast)
        check_numbers(retries=retries, backoff=backoff, version=version, newer_version_timeout=newer_version_timeout)
        check_receivable(signal, exclude_args)
        check_sender_codec(sender_codec)
        if broadcast and not isinstance(self.transport, Broadcasts):
            raise TypeError(f"{type(self.transport).__name__} cannot broadcast: it has no method listen")
        subscriptions = self._listener.subscriptions if broadcast else self._inbound.subscriptions
        if topic in subscriptions:
            raise ValueError(f"topic {topic!r} is received already")
        reader = codec_for(signal, exclude_args) if codec is None else check_codec(codec)
        if upcasters is not None:
            check_upcasters(upcasters, version, codec)
            reader = UpcastingCodec(reader, upcasters, version)
        subscriptions[topic] = Subscription(
            signal=signal,
            topic=topic,
            retries=retries,
            backoff=backoff,
            dead_letter=self._inbound.dead_letter if dead_letter is None else check_name("dead_letter", dead_letter),
            version=version,
            newer_version_timeout=newer_version_timeout,
            codec=reader,
            load=(sender_codec or self._sender_codec)[1],
            include_own_service=include_own_service,
            allow_no_receivers=allow_no_receivers,
        )

    def bind(self, session: Any) -> AbstractContextManager[None]:
        """Have sends inside the `with` block, in this context, write to the outbox in the session's transaction."""
        return Bound(self._session, session)

    def own_transaction(self) -> AbstractContextManager[None]:
        """Have sends inside the `with` block, in this context, write to the outbox in their own transaction.

        Their events stay even though whatever else is done there is rolled back. A send with `session=` uses that.
        """
        return Bound(self._session, OWN_TRANSACTION)

    @property
    def unheard(self) -> list[tuple[str, str]]:
        """Signals that are received, broadcasts too, and that have no receiver now, each with its topic."""
        return [*unheard(self._inbound.subscriptions), *unheard(self._listener.subscriptions)]

    @property
    def broadcast_topics(self) -> list[str]:
        """The topics of which every instance hears every event."""
        return sorted(self._listener.subscriptions)

    def _is_sent_here(self, envelope: Envelope, subscription: Subscription) -> bool:
        """Whether the receivers that a broadcast is for were called by the `send` that exported it."""
        return envelope.origin == self.origin and any(
            signal is subscription.signal and uid.topic == envelope.topic for signal, uid in self._exported
        )

    # -- running ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._runner.is_running:
            raise RuntimeError("this relay is running already")
        try:
            await self._runner.begin()
        except BaseException:
            await to_the_end(self.aclose())
            raise
        self.final_status = None
        self._snapshot.begin()
        running[id(self)] = self
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, asyncio.CancelledError):
                await self._runner.settle()
        finally:
            await to_the_end(self._close())

    async def _close(self) -> None:
        running.pop(id(self), None)
        await self._runner.end()
        await self._snapshot.aclose()
        self.final_status = await last_look(self.service, self.status(timeout=LAST_LOOK))
        await self.aclose()

    def health(self) -> Health:
        """Give the state of the relay as it was last noticed; asks no server and never waits."""
        problems = {**self._inbound.problems, **problems_of(self._parts, [self._runner.consuming], self._runner.tasks)}
        counts, heard = self._inbound.counts, self._listener.counts
        return Health(
            problems,
            self._publisher.published,
            counts.received,
            counts.ignored,
            counts.failed,
            counts.dead,
            counts.released,
            counts.in_flight,
            heard.heard,
            heard.missed,
            heard.gaps,
            self._retention.expired + sum(getattr(part, "expired", 0) for part in self._parts),
            self._inbound.held_keys.count,
        )

    def __repr__(self) -> str:
        exported = ", ".join(uid.topic for _, uid in self._exported) or "nothing"
        received = ", ".join(self._inbound.subscriptions) or "nothing"
        return f"<asignals.relay.Relay {self.service!r} exports {exported}, receives {received}>"


def _lease_of(transport: object) -> float:
    """Seconds that the engine waits for a word about an event; a guess where it goes by the connection."""
    found = getattr(transport, "lease", None) or getattr(transport, "ack_wait", None)
    return float(found) if isinstance(found, (int, float)) else 30.0
