"""`Relay`: which signals leave this process, which come in, and by what engine. asyncio only."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import zlib
from contextlib import AsyncExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Self

from asignals._to_the_end import to_the_end
from asignals.relay._batch import Together
from asignals.relay._cancel import end
from asignals.relay._codec import codec_for
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import Envelope, check_name, new_id
from asignals.relay._export import Exporter, ExportUid, dump_sender
from asignals.relay._inbox import MemoryInbox
from asignals.relay._receive import Inbound, Subscription
from asignals.relay._transport import (
    Backlog,
    Closing,
    DeadLetters,
    KnowsServices,
    OwnInbox,
    Prepared,
    PublishRefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from types import TracebackType

    from asignals import Signal
    from asignals.relay._codec import Codec
    from asignals.relay._envelope import DeadLetter
    from asignals.relay._inbox import Inbox
    from asignals.relay._transport import Transport
    from asignals.relay.outbox import Outbox

logger = logging.getLogger("asignals.relay")

FIRST: Final = float("inf")  # the priority of exporting receivers: what happened is told before anybody reacts to it


@dataclass(frozen=True, slots=True)
class Health:
    """How a relay is, as far as this process knows; `problems` is empty when all is well.

    `received`, `ignored`, `failed`, `dead` count deliveries since the start; `in_flight` are being handled;
    `published` counts events that the engine has acknowledged.
    """

    problems: dict[str, str] = field(default_factory=dict)
    published: int = 0
    received: int = 0
    ignored: int = 0
    failed: int = 0
    dead: int = 0
    in_flight: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Status:
    """What waits, asked of the engine: `None` where it cannot say."""

    outbox: int | None
    backlog: int | None
    dead: dict[str, int]


class Relay:
    """Carries signals to and from other processes, at least once.

    Use it as an async context manager, in the ASGI lifespan. Inside, what the outbox holds is published and what the
    service receives is handled; leaving waits for both, `grace` seconds at most, and `left` then says what could not be
    done (it is still in the outbox or with the engine, and is done later).

    Each service gets every event, its instances share them. An event whose receivers fail is tried again, without those
    that had succeeded; then it becomes a dead letter. One that cannot be read becomes a dead letter at once. Others
    go on meanwhile. The process that sent an event does not get it back: its receivers were called by `send`.

    Args:
        transport: The engine.
        service: The name that the instances of a service share.
        outbox: Where events wait until the engine has acknowledged them. Without one, `send` itself waits for the
            engine, for `publish_timeout` seconds at most, and raises its error.
        inbox: Remembers what was done, to skip it in repetitions. By default the engine's own store, used for events
            that failed; one that is given remembers successes too, so that an event delivered twice is handled once.
        instance: Names this process among those of the service; by default made of host and process id.
        senders: A pair of functions: sender to string, and string to sender (which may be async). By default senders
            are strings or `None`.
        limit: How many events are handled at once.
        hop_limit: How many events of other processes may lead to one that is sent; beyond it `send` raises
            `HopLimitError`, which ends loops of services that answer each other.
        grace: Seconds that leaving may take.
        publish_timeout: Seconds that `send` waits for the engine without an outbox; then it raises `TimeoutError`.

    Raises:
        ValueError: `service` or `instance` cannot be used as a name.
        RuntimeError: entered while it runs.
    """

    def __init__(  # noqa: PLR0913  one block of configuration
        self,
        transport: Transport,
        service: str,
        *,
        outbox: Outbox | None = None,
        inbox: Inbox | None = None,
        instance: str | None = None,
        senders: tuple[Callable[[Any], str | None], Callable[[str | None], Any]] | None = None,
        limit: int = 100,
        hop_limit: int = 8,
        grace: float = 10.0,
        publish_timeout: float = 5.0,
    ) -> None:
        self.transport = transport
        self.service: str = check_name("service", service)
        self.instance: str = check_name("instance", instance or _instance())
        self.outbox = outbox
        self.left: Status | None = None
        self._dump: Callable[[Any], str | None] = senders[0] if senders else dump_sender
        self._load: Callable[[str | None], Any] = senders[1] if senders else _as_it_is
        self._limit = limit
        self._hop_limit = hop_limit
        self._grace = grace
        self._publish_timeout = publish_timeout
        self._session: ContextVar[Any] = ContextVar("asignals.relay.session", default=None)
        self._exported: list[tuple[Signal[..., Any], ExportUid]] = []
        self._published = 0
        self._is_running = False
        self._consuming = ConnectionState(f"consuming as {service!r}")
        self._tasks: list[asyncio.Task[None]] = []
        self._publish_soon = Together(self._publish_all)
        self._inbox = inbox or (transport.inbox() if isinstance(transport, OwnInbox) else MemoryInbox())
        self._inbound = Inbound(self.service, self.origin, self._inbox, self._bury, always_remember=inbox is not None)

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
        key: str | Callable[[Any, dict[str, Any]], str | None] | None = None,
        version: int = 1,
        codec: Codec | None = None,
        senders: tuple[Callable[[Any], str | None], Callable[[str | None], Any]] | None = None,
        local: Sequence[str] = ("session",),
    ) -> None:
        """Send a signal's events out, from now on and until `stop_exporting`.

        They are put on their way before any receiver in this process is called. An event that a relay delivers here is
        not exported by any relay of this process.

        Args:
            signal: What to export.
            topic: What the event is called between processes.
            sender: Export the sends of this sender only.
            key: Events of one key are published in order: the name of an argument, or a function of sender and
                arguments; `None` for no order.
            version: The schema version of the arguments; receivers that know only older ones refuse it.
            codec: How arguments are written; by default JSON by the types of the `@signal` stub.
            senders: As for `Relay`.
            local: Names of arguments that do not cross. `session` is the one whose transaction the outbox uses.

        Raises:
            ValueError: `topic` or `version` cannot be used, or the topic is exported already.
            TypeError: the types of the stub cannot be resolved.
        """
        check_name("topic", topic)
        if version < 1:
            msg = f"version must be at least 1, not {version}"
            raise ValueError(msg)
        uid = ExportUid(self.service, topic, id(self))
        if any(other.topic == topic and known is signal for known, other in self._exported):
            msg = f"signal {signal.name!r} is exported to {topic!r} already"
            raise ValueError(msg)
        exporter = Exporter(
            topic=topic,
            codec=codec or codec_for(signal, local),
            dump=senders[0] if senders else self._dump,
            key=_key_function(key),
            version=version,
            local=local,
            origin=self.origin,
            hop_limit=self._hop_limit,
            hand_on=self._hand_on,
        )
        signal.connect(exporter.__call__, sender, weak=False, dispatch_uid=uid, priority=FIRST)
        self._exported.append((signal, uid))

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
        codec: Codec | None = None,
        senders: tuple[Callable[[Any], str | None], Callable[[str | None], Any]] | None = None,
        own: bool = True,
    ) -> None:
        """Call a signal's receivers for the events of a topic that other processes sent.

        Receivers are called one after the other in the signal's order; when one fails the others are called none the
        less, and only the failed one again.

        Args:
            signal: Whose receivers to call.
            topic: Which events.
            retries: How often an event is tried again after its first failure.
            backoff: Seconds before the first retry, and at most; doubled each time, shortened at random by up to a
                half.
            dead_letter: The queue for events that are given up; by default `dlq.` and the service.
            version: The newest schema version that the receivers understand.
            codec: How arguments are read; by default JSON by the types of the `@signal` stub.
            senders: As for `Relay`.
            own: Whether to receive what other instances of this same service sent.

        Raises:
            ValueError: a name or number cannot be used, or the topic is received already.
            TypeError: the types of the stub cannot be resolved.
        """
        check_name("topic", topic)
        first, most = backoff
        if retries < 0 or not 0 < first <= most:
            msg = f"retries must not be negative and backoff must be 0 < first <= most, not {retries} and {backoff}"
            raise ValueError(msg)
        if topic in self._inbound.subscriptions:
            msg = f"topic {topic!r} is received already"
            raise ValueError(msg)
        self._inbound.subscriptions[topic] = Subscription(
            signal,
            topic,
            retries,
            (first, most),
            check_name("dead_letter", dead_letter or self._inbound.dead_letter),
            version,
            codec or codec_for(signal, ("session",)),
            senders[1] if senders else self._load,
            own,
        )

    @contextmanager
    def bind(self, session: Any) -> Iterator[None]:
        """Have sends inside the `with` block, in this context, write to the outbox in the session's transaction."""
        token = self._session.set(session)
        try:
            yield
        finally:
            self._session.reset(token)

    # -- running ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._is_running:
            msg = "this relay is running already"
            raise RuntimeError(msg)
        self._is_running = True
        self.left = None
        self._inbound.begin()
        if self.outbox is not None:
            self._start(self.outbox.drain_for_ever(self._publish))
        if self._inbound.subscriptions:
            self._start(self._consume_for_ever())
        return self

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
        while True:
            # There is no word of success: consuming just goes on. After a second it is believed.
            belief = asyncio.get_running_loop().call_later(1.0, attempts.succeeded)
            try:
                async with attempts:
                    await self.transport.consume(self.service, self.instance, self._inbound.handle, limit=self._limit)
                    msg = "the transport stopped consuming"
                    raise ConnectionError(msg)
            finally:
                belief.cancel()

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
        """Find out, shortly, what is left, and say so."""
        try:
            async with asyncio.timeout(2.0):
                self.left = await self.status()
        except Exception as error:  # noqa: BLE001  an engine that is away cannot say
            logger.warning("relay of %r stopped; what is left cannot be told (%r)", self.service, error)
        else:
            left = self.left
            logger.info(
                "relay of %r stopped; left in the outbox: %s, backlog: %s", self.service, left.outbox, left.backlog
            )

    # -- publishing ------------------------------------------------------------------------------------------------

    async def _hand_on(self, envelope: Envelope, session: Any) -> None:
        """Take an event from an exporting receiver."""
        if self.outbox is not None:
            await self.outbox.put(envelope, session if session is not None else self._session.get())
            return
        async with asyncio.timeout(self._publish_timeout):
            refusal = await self._publish_soon(envelope)
        if refusal is not None:
            raise PublishRefusedError({envelope.id: refusal})

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

    async def _bury(self, queue: str, letter: DeadLetter) -> None:
        if isinstance(self.transport, DeadLetters):
            await self.transport.bury(queue, letter)
        else:
            await self.transport.publish_many([Envelope(queue, letter.encode(), origin=self.origin)])

    # -- looking ---------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Say how the relay is, from what it noticed by itself; asks nobody and never waits."""
        problems = {}
        parts = self.transport, self.outbox
        for state in (self._consuming, *(getattr(part, "connection_state", None) for part in parts)):
            if isinstance(state, ConnectionState) and state.error is not None:
                problems[state.name] = state.problem or ""
        for task in self._tasks:
            if task.done():
                problems["task"] = f"a part of the relay has ended: {task!r}"
        counts = self._inbound.counts
        return Health(
            problems, self._published, counts.received, counts.ignored, counts.failed, counts.dead, counts.in_flight
        )

    async def status(self) -> Status:
        """Ask the outbox and the engine what waits; raises what they raise."""
        outbox = None if self.outbox is None else await self.outbox.count()
        backlog = None
        if self._inbound.subscriptions and isinstance(self.transport, Backlog):
            backlog = await self.transport.backlog(self.service)
        dead = {}
        if isinstance(self.transport, DeadLetters):
            for queue in self.dead_letter_queues:
                dead[queue] = len(await self.transport.letters(queue, 1_000))
        return Status(outbox, backlog, dead)

    @property
    def dead_letter_queues(self) -> list[str]:
        """The queues that this relay's dead letters go to."""
        return sorted({self._inbound.dead_letter, *(s.dead_letter for s in self._inbound.subscriptions.values())})

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """Show dead letters, the oldest first, at most `limit`; of all the relay's queues by default.

        Raises `TypeError` when the transport keeps none.
        """
        keeper = self._keeper()
        found = [
            letter
            for name in ([queue] if queue else self.dead_letter_queues)
            for letter in await keeper.letters(name, limit)
        ]
        return sorted(found, key=attrgetter("time"))[:limit]

    async def replay(self, queue: str | None = None, limit: int = 100) -> int:
        """Send dead letters again, to the service that gave them up, and remove them; returns how many.

        At most `limit`, of all the relay's queues by default. Receivers that had succeeded are not called again.
        Letters that cannot be read stay. Raises `TypeError` when the transport keeps none, and what the engine raises.
        """
        keeper = self._keeper()
        count = 0
        for name in [queue] if queue else self.dead_letter_queues:
            for letter, envelope in await _readable(keeper, name, limit - count):
                await self._publish([_repeated(envelope, letter)])
                await keeper.remove(name, letter)
                count += 1
        return count

    def _keeper(self) -> DeadLetters:
        if isinstance(self.transport, DeadLetters):
            return self.transport
        msg = f"{type(self.transport).__name__} keeps no dead letters that could be shown"
        raise TypeError(msg)

    async def init(self) -> None:
        """Create the tables, streams and queues that the parts need; harmless when they are there."""
        for part in (self.transport, self.outbox, self._inbox):
            if isinstance(part, Prepared):
                await part.init()
        if self._inbound.subscriptions and isinstance(self.transport, KnowsServices):
            await self.transport.add_service(self.service)

    def __repr__(self) -> str:
        exported = ", ".join(uid.topic for _, uid in self._exported) or "nothing"
        received = ", ".join(self._inbound.subscriptions) or "nothing"
        return f"<asignals.relay.Relay {self.service!r} exports {exported}, receives {received}>"


async def _readable(keeper: DeadLetters, queue: str, limit: int) -> list[tuple[DeadLetter, Envelope]]:
    """Give the oldest letters that can be read, however many are before them that cannot."""
    most = limit
    while True:
        letters = await keeper.letters(queue, most)
        found = [(letter, envelope) for letter in letters if (envelope := letter.envelope) is not None]
        if len(found) >= limit or len(letters) < most:
            return found[:limit]
        most *= 2


def _repeated(envelope: Envelope, letter: DeadLetter) -> Envelope:
    """Make the event that a replay sends: a new id, as the engine knows the old one; the same for the same letter."""
    first = envelope.repeats or envelope.id
    suffix = f"{zlib.crc32(f'{letter.service} {letter.time}'.encode()):08x}"
    return replace(envelope, id=f"{first[:50]}-r{suffix}", target=letter.service, repeats=first, origin="", hops=0)


def _key_function(
    key: str | Callable[[Any, dict[str, Any]], str | None] | None,
) -> Callable[[Any, dict[str, Any]], str | None]:
    if key is None:
        return lambda _sender, _arguments: None
    if callable(key):
        return key
    return lambda _sender, arguments: str(arguments[key])


def _as_it_is(sender: str | None) -> str | None:
    return sender


def _instance() -> str:
    host = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in socket.gethostname())
    return f"{host[:40].strip('-') or 'host'}-{os.getpid()}-{new_id()[-6:]}"
