"""`Relay`: which signals leave this process, which come in, and by what engine. asyncio only."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from asignals._core import DocumentedError
from asignals.relay._batch import Coalescer
from asignals.relay._broadcast import Listener
from asignals.relay._cancel import end, limited
from asignals.relay._codec import UpcastingCodec, check_codec, codec_for
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._dead_letters import REFUSED, KeepsRefused, Letters, which
from asignals.relay._envelope import Envelope, check_name, new_id
from asignals.relay._export import OWN_TRANSACTION, Bound, Exporter, ExportUid, dump_sender, key_function
from asignals.relay._inbox import MemoryInbox
from asignals.relay._receive import Inbound
from asignals.relay._redact import redacted, said
from asignals.relay._settings import (
    check_excluded,
    check_numbers,
    check_outbox,
    check_receivable,
    check_sender_codec,
    check_transport,
    check_upcasters,
)
from asignals.relay._subscription import Subscription, names_for, receiver_names
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import (
    Backlog,
    Broadcasts,
    Checked,
    Closing,
    DeadLetters,
    KnowsServices,
    OwnInbox,
    Prepared,
    PublishRefusedError,
    SchemaError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from asignals import Signal
    from asignals.relay._codec import Codec, Upcaster
    from asignals.relay._envelope import DeadLetter
    from asignals.relay._export import KeyFunction
    from asignals.relay._inbox import Inbox
    from asignals.relay._settings import SenderCodec
    from asignals.relay._transport import Transport
    from asignals.relay.outbox import Outbox

logger = logging.getLogger("asignals.relay")

FIRST: Final = float("inf")  # the priority of exporting receivers: events are published before anybody reacts here
_CHECK: Final = 5.0  # seconds that starting waits for a database to say whether its tables are there
_LAST_LOOK: Final = 2.0  # seconds that stopping waits for each figure of the final status


@dataclass(frozen=True, slots=True)
class Health:
    """How a relay is, as far as this process knows; `problems` is empty when all is well.

    `received`, `ignored`, `failed`, `dead` and `released` count deliveries since the start: those whose receivers have
    all succeeded; those for nobody here (replays for other services, events whose receivers the sender called itself);
    those in which a receiver failed; those that became dead letters; those that were given back for other instances.
    `in_flight` are being handled. `published` counts events that the engine has acknowledged.

    Of broadcasts, `heard` counts the events whose receivers were called, `missed` those that receivers were too slow
    for or that could not be read, and `gaps` the interruptions in which any number may have been missed.
    """

    problems: dict[str, str] = field(default_factory=dict)
    published: int = 0
    received: int = 0
    ignored: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0
    in_flight: int = 0
    heard: int = 0
    missed: int = 0
    gaps: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Status:
    """What waits, asked of the outbox and the engine: `None` where there is no outbox, or the engine cannot say.

    `dead` counts dead letters by queue; those of the queue `outbox.refused` are events of this service that the engine
    will not take.
    """

    outbox: int | None
    backlog: int | None
    dead: dict[str, int]


class NoReceiversError(DocumentedError, RuntimeError):
    """A relay was to handle events, and signals that it receives have no receivers, or it receives nothing."""

    def __init__(self, service: str, unheard: Sequence[tuple[str, str]], hint: str = "") -> None:
        if unheard:
            what = ", ".join(f"signal {signal!r} (topic {topic!r})" for signal, topic in unheard)
            text = f"nobody would handle what service {service!r} receives: no receiver is connected to {what}"
        else:
            text = f"service {service!r} receives nothing: call relay.receive(signal, topic) before it starts"
        super().__init__(f"{text}. {hint}" if hint else text)
        self.service = service
        self.unheard: tuple[tuple[str, str], ...] = tuple(unheard)


class Relay:
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
        instance: Names this process among those of the service; by default made of host and process id.
        sender_codec: A pair of functions: sender to string, and string to sender (which may be async). By default
            senders are strings or `None`.
        limit: How many events are handled at once.
        hop_limit: How many events of other processes may lead to one that is sent; beyond it `send` raises
            `HopLimitError`, which ends loops of services that answer each other.
        grace: Seconds that leaving may take.
        publish_timeout: Seconds that `send` waits for the engine without an outbox; then it raises `TimeoutError`.
        strict: Whether `send` refuses to put an event in the outbox without a session whose transaction it is part of
            (`NoSessionError`); `own_transaction` means it. By default for signals that declare an argument `session`.

    Raises:
        ValueError: `service` or `instance` cannot be used as a name, a number is out of range, or `strict` is asked for
            without an outbox.
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
    ) -> None:
        check_transport(transport)
        check_outbox(outbox, inbox)
        check_sender_codec(sender_codec)
        check_numbers(limit=limit, hop_limit=hop_limit, grace=grace, publish_timeout=publish_timeout)
        if strict and outbox is None:
            msg = "strict=True needs an outbox: without one there is no transaction that an event could be part of"
            raise ValueError(msg)
        self.transport = transport
        self.service: str = check_name("service", service)
        self.instance: str = check_name("instance", instance or _instance())
        self.outbox = outbox
        self.final_status: Status | None = None
        self._sender_codec: SenderCodec = sender_codec or (dump_sender, _as_it_is)
        self._limit = limit
        self._hop_limit = hop_limit
        self._grace = grace
        self._publish_timeout = publish_timeout
        self._strict = strict
        self._session: ContextVar[Any] = ContextVar("asignals.relay.session", default=None)
        self._exported: list[tuple[Signal[..., Any], ExportUid]] = []
        self._published = 0
        self._is_running = False
        self._consuming = ConnectionState(f"consuming as {service!r}")
        self._tasks: list[asyncio.Task[None]] = []
        self._publish_soon = Coalescer(self._publish_all)
        self._inbox = inbox or (transport.inbox() if isinstance(transport, OwnInbox) else MemoryInbox())
        self._inbound = Inbound(
            self.service,
            self.origin,
            self._inbox,
            self._put_dead_letter,
            always_remember=inbox is not None,
            lease=_lease_of(transport),
        )
        self._listener = Listener(self._inbound, self._is_sent_here)
        self._letters = Letters(transport, outbox, self._publish)

    @property
    def origin(self) -> str:
        """What envelopes from here say of where they come from."""
        return f"{self.service}/{self.instance}"

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
            key: Events of one key are published in order: the name of an argument, or a function of sender and
                arguments; `None` for no order. Keys are strings, integers and UUIDs.
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
        check_numbers(version=version)
        check_excluded(signal, exclude_args)
        check_sender_codec(sender_codec)
        uid = ExportUid(self.service, topic, id(self))
        if any(other.topic == topic and known is signal for known, other in self._exported):
            msg = f"signal {signal.name!r} is exported to {topic!r} already"
            raise ValueError(msg)
        declares_session = "session" in exclude_args and "session" in (signal.providing_args or ())
        exporter = Exporter(
            topic=topic,
            codec=codec_for(signal, exclude_args) if codec is None else check_codec(codec),
            dump=(sender_codec or self._sender_codec)[0],
            key=key_function(signal, key),
            version=version,
            exclude_args=exclude_args,
            origin=self.origin,
            hop_limit=self._hop_limit,
            needs_session=self.outbox is not None and (declares_session if self._strict is None else self._strict),
            called_here=self._called_here,
            hand_on=self._hand_on,
            session=self._session,
        )
        signal.connect(exporter.__call__, sender, weak=False, dispatch_uid=uid, priority=FIRST)
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
        if self._is_running:
            msg = f"topic {topic!r} cannot be received by a relay that runs: call receive before it starts"
            raise RuntimeError(msg)
        check_name("topic", topic)
        check_numbers(retries=retries, backoff=backoff, version=version, newer_version_timeout=newer_version_timeout)
        check_receivable(signal, exclude_args)
        check_sender_codec(sender_codec)
        if broadcast and not isinstance(self.transport, Broadcasts):
            msg = f"{type(self.transport).__name__} cannot broadcast: it has no method listen"
            raise TypeError(msg)
        subscriptions = self._listener.subscriptions if broadcast else self._inbound.subscriptions
        if topic in subscriptions:
            msg = f"topic {topic!r} is received already"
            raise ValueError(msg)
        reader = codec_for(signal, exclude_args) if codec is None else check_codec(codec)
        if upcasters is not None:
            check_upcasters(upcasters, version, codec)
            reader = UpcastingCodec(reader, upcasters, version)
        subscriptions[topic] = Subscription(
            signal=signal,
            topic=topic,
            retries=retries,
            backoff=backoff,
            dead_letter=check_name("dead_letter", dead_letter or self._inbound.dead_letter),
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
        """Have sends inside the `with` block, in this context, write to the outbox in a transaction of their own.

        Their events stay even though whatever else is done there is rolled back. A send with `session=` uses that.
        """
        return Bound(self._session, OWN_TRANSACTION)

    @property
    def unheard(self) -> list[tuple[str, str]]:
        """Signals that are received, broadcasts too, and that have no receiver now, each with its topic."""
        return [*_unheard(self._inbound.subscriptions), *_unheard(self._listener.subscriptions)]

    @property
    def topics(self) -> list[str]:
        """The topics that are received, but for broadcasts."""
        return sorted(self._inbound.subscriptions)

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
        if self._is_running:
            msg = "this relay is running already"
            raise RuntimeError(msg)
        self._is_running = True
        try:
            await self._check_parts()
        except BaseException:
            self._is_running = False
            await to_the_end(self.aclose())
            raise
        self.final_status = None
        self._inbound.begin(self._limit)
        if self.outbox is not None:
            self._start(self.outbox.drain_for_ever(self._publish))
        if self._inbound.subscriptions:
            self._start(self._consume_for_ever())
            self._start(self._inbound.watchdog.run())
            if isinstance(self._inbox, Checked):
                self._start(self._inbound.watch_inbox(self._inbox.check))
        if self._listener.subscriptions and isinstance(self.transport, Broadcasts):
            self._start(self._listener.run(self.transport))
        for signal, topic in _unheard(self._inbound.subscriptions):
            logger.warning("signal %r has no receiver yet: events of %r wait until one is connected", signal, topic)
        return self

    async def _check_parts(self) -> None:
        """Raise `SchemaError` when tables are missing; a database that does not answer is no reason not to start."""
        parts: list[object] = [self.transport, self.outbox]
        if self._inbound.subscriptions:
            parts.append(self._inbox)
        checks = [limited(part.check(), _CHECK) for part in parts if isinstance(part, Checked)]
        for outcome in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(outcome, SchemaError):
                raise outcome
            if isinstance(outcome, Exception):
                logger.warning("whether all tables are there is not known yet (%s)", said(outcome))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, asyncio.CancelledError):
                await self._settle()
        finally:
            await to_the_end(self._close())

    async def _close(self) -> None:
        await end(self._tasks)
        await self._publish_soon.aclose()
        self._tasks.clear()
        self._is_running = False
        await self._take_stock()
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections that `status`, `replay` and the like have opened outside of the relay's block.

        Each part is closed though another one fails; what is used again opens its connections again.
        """
        async with AsyncExitStack() as stack:
            for part in (self._inbox, self.outbox, self.transport):
                if isinstance(part, Closing):
                    stack.push_async_callback(part.aclose)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _consume_for_ever(self) -> None:
        attempts = Attempts(self._consuming)
        consume, topics = self.transport.consume, self.topics
        while True:
            # consume() never reports success, so it is assumed to work after one second.
            assumed = asyncio.get_running_loop().call_later(1.0, attempts.succeeded)
            try:
                async with attempts:
                    await consume(self.service, self.instance, topics, self._inbound.handle, limit=self._limit)
                    msg = "the transport stopped consuming"
                    raise ConnectionError(msg)
            finally:
                assumed.cancel()

    async def _settle(self) -> None:
        """Wait until what has begun is done, for the time of grace."""
        self._inbound.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await self._inbound.idle.wait()
                while await self._waiting_in_outbox():  # noqa: ASYNC110  the rows may be another process's work
                    await asyncio.sleep(0.05)

    async def _waiting_in_outbox(self) -> int:
        try:
            return 0 if self.outbox is None else await self.outbox.count()
        except Exception:  # noqa: BLE001  the outbox reports its loss itself; here it means that something may wait
            return 1

    async def _take_stock(self) -> None:
        """Find out, shortly, what is left, and log it."""
        try:
            async with asyncio.timeout(_LAST_LOOK):
                self.final_status = await self.status()
        except TimeoutError:
            reason = f"outbox or engine did not answer within {_LAST_LOOK:g} s"
        except Exception as error:  # noqa: BLE001  an engine that is away cannot say
            reason = said(error)
        else:
            left = self.final_status
            figures = {"outbox": left.outbox, "backlog": left.backlog, "dead letters": sum(left.dead.values())}
            text = ", ".join(f"{name}: {count}" for name, count in figures.items() if count is not None)
            logger.info("relay of %r stopped; left in %s", self.service, text)
            return
        logger.warning(
            "relay of %r stopped; what is left is not known (%s), and is done by the next instance",
            self.service,
            reason,
        )

    # -- publishing ------------------------------------------------------------------------------------------------

    async def _hand_on(self, envelope: Envelope, session: Any) -> None:
        """Take an event from an exporting receiver."""
        if self.outbox is not None:
            await self.outbox.put(envelope, session)
            return
        try:
            async with asyncio.timeout(self._publish_timeout):
                refusal = await self._publish_soon(envelope)
        except TimeoutError as error:
            if str(error):
                raise
            msg = (
                f"{self._engine_name} did not acknowledge an event of {envelope.topic!r} within "
                f"{self._publish_timeout:g} s; it may have been stored all the same"
            )
            raise TimeoutError(msg) from error
        if refusal is not None:
            raise PublishRefusedError({envelope.id: refusal})

    @property
    def _engine_name(self) -> str:
        state = getattr(self.transport, "connection_state", None)
        return state.name if isinstance(state, ConnectionState) else type(self.transport).__name__

    async def _publish_all(self, envelopes: list[Envelope]) -> list[str | None]:
        """Publish what several sends have put together; gives for each why it was refused."""
        refused: dict[str, str] = {}
        try:
            await self._publish(envelopes)
        except PublishRefusedError as error:
            refused = error.refused
        return [refused.get(envelope.id) for envelope in envelopes]

    async def _publish(self, envelopes: Sequence[Envelope]) -> None:
        try:
            await self.transport.publish_many(envelopes)
        except PublishRefusedError as error:
            self._published += len(envelopes) - len(error.refused)
            raise
        self._published += len(envelopes)

    async def _put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        if isinstance(self.transport, DeadLetters):
            await self.transport.put_dead_letter(queue, letter)
        else:
            await self.transport.publish_many([Envelope(queue, letter.encode(), origin=self.origin)])

    # -- looking ---------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Say how the relay is, from what it noticed by itself; asks nobody and never waits."""
        problems = dict(self._inbound.problems)
        parts = self.transport, self.outbox, self._inbox
        for state in (self._consuming, *(getattr(part, "connection_state", None) for part in parts)):
            if isinstance(state, ConnectionState) and state.problem is not None:
                problems[state.name] = state.problem
        for part in parts:
            problems.update(getattr(part, "problems", {}))
        for task in self._tasks:
            if task.done():
                problems["task"] = f"a part of the relay has ended: {redacted(task)}"
        counts = self._inbound.counts
        return Health(
            problems,
            self._published,
            counts.received,
            counts.ignored,
            counts.failed,
            counts.dead,
            counts.released,
            counts.in_flight,
            self._listener.counts.heard,
            self._listener.counts.missed,
            self._listener.counts.gaps,
        )

    async def status(self) -> Status:
        """Ask the outbox and the engine what waits; raises what they raise."""
        outbox = None if self.outbox is None else await self.outbox.count()
        backlog = None
        if self._inbound.subscriptions and isinstance(self.transport, Backlog):
            backlog = await self.transport.backlog(self.service)
        return Status(outbox, backlog, await self._letters.counts(self.dead_letter_queues))

    @property
    def dead_letter_queues(self) -> list[str]:
        """The queues that this relay's dead letters go to; `outbox.refused` has what the engine refused."""
        queues = {self._inbound.dead_letter, *(s.dead_letter for s in self._inbound.subscriptions.values())}
        return [*sorted(queues), *([REFUSED] if isinstance(self.outbox, KeepsRefused) else [])]

    async def dead_letters(  # noqa: PLR0913  which letters, by name
        self,
        queue: str | None = None,
        limit: int = 100,
        *,
        ids: Collection[str] | None = None,
        topic: str | None = None,
        since: float | None = None,
        until: float | None = None,
        error: str | None = None,
    ) -> list[DeadLetter]:
        """Show dead letters, the oldest first, at most `limit`; of all the relay's queues by default.

        Args:
            queue: One queue only.
            limit: How many at most.
            ids: Ids of events; those of replays go by the id of the first event, too.
            topic: Events of this topic only.
            since: Given up at this time or later, in seconds since the epoch.
            until: Given up at this time or earlier.
            error: A part of the error's text.

        Raises `TypeError` when the transport keeps none, and what the engine raises.
        """
        return await self._letters.find(self._chosen(queue), which(ids, topic, since, until, error), limit)

    async def replay(  # noqa: PLR0913  which letters, by name
        self,
        queue: str | None = None,
        limit: int | None = None,
        *,
        ids: Collection[str] | None = None,
        topic: str | None = None,
        since: float | None = None,
        until: float | None = None,
        error: str | None = None,
    ) -> int:
        """Send dead letters again, to the service that gave them up, and remove them; returns how many.

        At most `limit`, chosen as by `dead_letters`. Receivers that had succeeded are not called again. Letters that
        cannot be sent stay, and are logged. Raises `TypeError` when the transport keeps none, and what the engine
        raises; what was sent until then stays sent.
        """
        return await self._letters.replay(self._chosen(queue), which(ids, topic, since, until, error), limit)

    async def purge(  # noqa: PLR0913  which letters, by name
        self,
        queue: str | None = None,
        limit: int | None = None,
        *,
        ids: Collection[str] | None = None,
        topic: str | None = None,
        since: float | None = None,
        until: float | None = None,
        error: str | None = None,
    ) -> int:
        """Remove dead letters for good; returns how many. Chosen, and raises, as `replay`."""
        return await self._letters.purge(self._chosen(queue), which(ids, topic, since, until, error), limit)

    def _chosen(self, queue: str | None) -> list[str]:
        if queue is not None:
            return [queue]
        if isinstance(self.transport, DeadLetters):
            return self.dead_letter_queues
        msg = f"{type(self.transport).__name__} keeps no dead letters that could be shown"
        raise TypeError(msg)

    async def init(self) -> None:
        """Create the tables, streams and queues that the parts need; harmless when they are there."""
        for part in (self.transport, self.outbox, self._inbox):
            if isinstance(part, Prepared):
                await part.init()
        if self._inbound.subscriptions and isinstance(self.transport, KnowsServices):
            await self.transport.add_service(self.service, self.topics)

    async def forget(self, service: str, topics: Collection[str] | None = None) -> None:
        """Remove what the engine keeps for a service that is gone, or for topics that it receives no more.

        What waited there is lost. A service that comes back begins anew. Raises `TypeError` when the transport keeps
        nothing for services, and what the engine raises.
        """
        check_name("service", service)
        if not isinstance(self.transport, KnowsServices):
            msg = f"{type(self.transport).__name__} keeps nothing for a service that could be forgotten"
            raise TypeError(msg)
        await self.transport.forget_service(service, topics)

    def __repr__(self) -> str:
        exported = ", ".join(uid.topic for _, uid in self._exported) or "nothing"
        received = ", ".join(self._inbound.subscriptions) or "nothing"
        return f"<asignals.relay.Relay {self.service!r} exports {exported}, receives {received}>"


def _unheard(subscriptions: dict[str, Subscription]) -> list[tuple[str, str]]:
    return [
        (subscription.signal.name, topic)
        for topic, subscription in subscriptions.items()
        if not subscription.allow_no_receivers and not receiver_names(subscription.signal)
    ]


def _lease_of(transport: object) -> float:
    """Seconds that the engine waits for a word about an event; a guess where it goes by the connection."""
    found = getattr(transport, "lease", None) or getattr(transport, "ack_wait", None)
    return float(found) if isinstance(found, (int, float)) else 30.0


def _as_it_is(sender: str | None) -> str | None:
    return sender


def _instance() -> str:
    host = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in socket.gethostname())
    return f"{host[:40].strip('-') or 'host'}-{os.getpid()}-{new_id()[-6:]}"
