"""RabbitMQ as the engine, by aio-pika (extra: rabbitmq). RabbitMQ 3.10 or newer.

Persistent messages, publisher confirms, mandatory routing, a durable topic exchange, and one quorum queue for each
service. A connection that is lost, or on which something takes too long, is given up for
a new one: aio-pika's robust one restores its channels without a limit of time, and a node that has just started takes
connections before its quorum queues answer.

A retry is kept here until it is due, unacknowledged: RabbitMQ has no delay of its own, and a NACK comes back at once.
When this process dies, the broker gives the event to another.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from aio_pika import DeliveryMode, ExchangeType, Message, connect
from aio_pika.exceptions import ChannelNotFoundEntity, QueueEmpty

from asignals._to_the_end import to_the_end
from asignals.relay._cancel import end, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, EnvelopeError, check_name, new_id
from asignals.relay._pool import Pool
from asignals.relay._redact import redacted
from asignals.relay._transport import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence

    from aio_pika.abc import (
        AbstractChannel,
        AbstractConnection,
        AbstractExchange,
        AbstractIncomingMessage,
        AbstractQueue,
    )

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle

_TRIP: Final = 10.0  # seconds that an answer may take
_FAREWELL: Final = 2.0  # seconds that closing may take
_AT_ONCE: Final = 500
_UNDER_WAY: Final = 64  # more that begin at once would stall the event loop for what they take together
_WAITING: Final = 1_000  # retries that a consumer may keep beside what it handles
_LOOK: Final = 1_000
_REMEMBERED: Final = 10_000
_WATCH: Final = 5.0  # seconds between two looks at whether the queue is still there


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection, and on it what publishing needs."""

    connection: AbstractConnection
    channel: AbstractChannel
    exchange: AbstractExchange


class RabbitMQ:
    """Carries events through RabbitMQ.

    Events that no service has a queue for are refused (mandatory routing): with an outbox they wait for the first
    service. An event id that comes twice is delivered twice; an inbox that is given to the relay skips the second.
    RabbitMQ gives an event to another instance when it was not acknowledged for its `consumer_timeout` (30 minutes by
    default).

    RabbitMQ writes down that a new quorum queue exists some seconds after it has said so: a node (3.10) that is killed
    before that may never find the queue a leader. So make a service known (`Relay.init`) some time before its events.

    Args:
        url: `amqp://user:password@host:5672/vhost`, or `amqps://…`; settings such as `heartbeat` go into its query.
        name: Names the exchange and begins the names of the queues: `<name>.<service>`, `<name>.dead.<queue>`.
        delivery_limit: How often the broker delivers an event that is never acknowledged; then it goes to
            `dlq.<service>`.
        options: What else `aio_pika.connect` takes, `ssl_context` for one.

    Raises:
        ValueError: the URL is not RabbitMQ's, or `name` cannot be used.
    """

    def __init__(self, url: str, *, name: str = "asignals", delivery_limit: int = 200, **options: Any) -> None:
        if not isinstance(url, str) or not url.startswith(("amqp://", "amqps://")):
            msg = f"RabbitMQ takes a URL such as 'amqp://user:password@host/', not {redacted(url)!r}"
            raise ValueError(msg)
        self.name: str = check_name("name", name)
        self.connection_state: ConnectionState = ConnectionState(f"RabbitMQ ({url}, {name})")
        self._url = url
        self._options = options
        self._delivery_limit = delivery_limit
        self._lock = asyncio.Lock()
        self._line: _Line | None = None
        self._returning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Close the connection."""
        while self._tasks:
            await end(list(self._tasks))
        line, self._line = self._line, None
        if line is not None:
            await _close(line.connection)
        self._lock = asyncio.Lock()  # the next event loop may be another

    async def _open(self) -> _Line:
        """Give the line, a new one where it was lost."""
        async with self._lock:
            if self._line is None or self._line.channel.is_closed:
                self._line = await limited(self._connect(self._line), _TRIP)
                self.connection_state.restored()
            return self._line

    async def _connect(self, before: _Line | None) -> _Line:
        if before is not None and before.connection.connected.is_set():
            connection = before.connection  # only the channel was closed
        else:
            connection = await connect(self._url, **self._options)
            connection.close_callbacks.add(self._lose)
        try:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return _Line(connection, channel, await self._declare(channel))
        except BaseException:
            await _close(connection)
            raise

    async def _declare(self, channel: AbstractChannel) -> AbstractExchange:
        return await channel.declare_exchange(self.name, ExchangeType.TOPIC, durable=True)

    def _lose(self, connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Give up a connection that was closed or does not answer, and get a new one."""
        if self._line is None or connection is not self._line.connection:
            return
        self.connection_state.lost(error or ConnectionError("closed"))
        self._line = None
        self._start(_close(connection))
        if self._returning is None or self._returning.done():
            self._returning = self._start(self._return())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _return(self) -> None:
        attempts = Attempts(self.connection_state)
        while not self.connection_state.is_up:
            async with attempts:
                await self._open()

    @contextmanager
    def _giving_up(self, line: _Line) -> Iterator[None]:
        """Give up the connection when the block raises `TimeoutError`."""
        try:
            yield
        except TimeoutError as error:
            self._lose(line.connection, error)
            raise

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        """Open a channel for one errand: an error closes its channel."""
        line = await self._open()
        with self._giving_up(line):
            channel = await limited(line.connection.channel(), _TRIP)
            try:
                yield channel
            finally:
                await _close(channel)

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when RabbitMQ has confirmed all.

        Raises `aio_pika.exceptions.AMQPError`, `ConnectionError` and `TimeoutError`; when all is then repeated, what
        was confirmed comes twice.
        """
        for start in range(0, len(envelopes), _AT_ONCE):
            line = await self._open()
            turns = asyncio.Semaphore(_UNDER_WAY)
            publishing = [self._publish(line, envelope, turns) for envelope in envelopes[start : start + _AT_ONCE]]
            for result in await asyncio.gather(*publishing, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

    async def _publish(self, line: _Line, envelope: Envelope, turns: asyncio.Semaphore) -> None:
        message = Message(envelope.encode(), delivery_mode=DeliveryMode.PERSISTENT, message_id=envelope.id)
        async with turns:
            if self._line is not line:
                msg = "the connection to RabbitMQ was lost before the event could be published"
                raise ConnectionError(msg)
            with self._giving_up(line):
                await line.exchange.publish(message, envelope.topic, mandatory=True, timeout=_TRIP)

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled."""
        check_name("instance", instance)
        await _Consumer(self, check_name("service", service), handle, limit).run()

    async def add_service(self, service: str) -> None:
        """Declare the queue of a service, so that it gets the events that are published from now on."""
        async with self._channel() as channel:
            await limited(self._declare_service(channel, check_name("service", service)), _TRIP)

    async def _declare_service(self, channel: AbstractChannel, service: str) -> AbstractQueue:
        dead = await self._declare_dead(channel, f"dlq.{service}")
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": self._delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead.name,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        queue = await channel.declare_queue(f"{self.name}.{service}", durable=True, arguments=arguments)
        exchange = await self._declare(channel)
        await queue.bind(exchange, "#")
        return queue

    async def _declare_dead(self, channel: AbstractChannel, queue: str) -> AbstractQueue:
        # Looking at letters takes and returns them, which counts as deliveries.
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
        return await channel.declare_queue(f"{self.name}.dead.{queue}", durable=True, arguments=arguments)

    async def backlog(self, service: str) -> int:
        """Count the events that wait in the queue; those that consumers hold are not known to the protocol."""
        return await self._count(f"{self.name}.{service}")

    async def _count(self, queue: str) -> int:
        async with self._channel() as channel:
            try:
                found = await limited(channel.declare_queue(queue, passive=True), _TRIP)
            except ChannelNotFoundEntity:
                return 0
            return found.declaration_result.message_count or 0

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Put a letter into the queue, confirmed."""
        check_name("queue", queue)
        line = await self._open()
        with self._giving_up(line):
            async with asyncio.timeout(_TRIP):
                dead = await self._declare_dead(line.channel, queue)
                message = Message(letter.encode(), delivery_mode=DeliveryMode.PERSISTENT, message_id=letter.id)
                await line.channel.default_exchange.publish(message, dead.name, mandatory=True)

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters, of a thousand or `limit` at least; they are taken and put back."""
        async with aclosing(self._look(queue, max(limit, _LOOK))) as found:
            letters = [letter async for letter, _ in found]
        return sorted(letters, key=attrgetter("time"))[:limit]  # a quorum queue changes the order of what is put back

    async def remove(self, queue: str, letter: DeadLetter) -> None:
        """Remove a letter."""
        async with aclosing(self._look(queue, None)) as looking:
            async for found, message in looking:
                if found.raw == letter.raw and found.time == letter.time:
                    await message.ack()
                    return

    async def _look(
        self, queue: str, limit: int | None
    ) -> AsyncGenerator[tuple[DeadLetter, AbstractIncomingMessage], None]:
        """Take letters one by one; closing the channel puts back those that were not acknowledged."""
        async with self._channel() as channel:
            dead = await limited(self._declare_dead(channel, check_name("queue", queue)), _TRIP)
            seen = 0
            while limit is None or seen < limit:
                try:
                    message = await dead.get(no_ack=False, timeout=_TRIP)
                except QueueEmpty:
                    return
                seen += 1
                yield _letter(queue, message), message


async def _close(what: AbstractChannel | AbstractConnection) -> None:
    """Close a channel or connection: what was not acknowledged goes back to the queue with it."""
    await to_the_end(_close_now(what))


async def _close_now(what: AbstractChannel | AbstractConnection) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_FAREWELL):
            await what.close()


async def _until_closed(channel: AbstractChannel, seconds: float) -> None:
    """Wait so long; raise `ConnectionError` as soon as the channel is closed."""
    closed = asyncio.ensure_future(channel.closed())
    await asyncio.wait([closed], timeout=seconds)
    if closed.done():
        msg = "RabbitMQ closed the channel that events come by"
        raise ConnectionError(msg)
    closed.cancel()


def _letter(queue: str, message: AbstractIncomingMessage) -> DeadLetter:
    try:
        return DeadLetter.decode(message.body, message.message_id or "")
    except EnvelopeError:  # RabbitMQ put it there itself
        reason = "delivered too often without ever being acknowledged"
        return DeadLetter(message.body, queue.removeprefix("dlq."), reason, time=0.0)


@dataclass(slots=True)
class _Held:
    """An event that is here, and how to acknowledge it: on the channel that it came by last."""

    message: AbstractIncomingMessage
    channel: AbstractChannel
    attempt: int


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: RabbitMQ
    service: str
    handle: Handle
    limit: int
    held: dict[str, _Held] = field(default_factory=dict)
    done: dict[str, None] = field(default_factory=dict)  # handled, but the broker could not be told

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pool: Pool[str]

        async def work(id_: str) -> None:
            item = self.held[id_]
            delay = await self.handle(Delivery(item.message.body, item.attempt))
            if delay is not None:
                item.attempt += 1
                loop.call_later(delay, pool.put, id_)
                return
            del self.held[id_]
            await self._acknowledge(id_, item.message)

        pool = Pool(work, self.limit)
        attempts = Attempts(self.engine.connection_state)
        async with AsyncExitStack() as channels, pool:  # the pool ends first, and can acknowledge what it has done
            while True:
                async with attempts:
                    await channels.aclose()
                    await self._consume(pool, channels, attempts)

    async def _consume(self, pool: Pool[str], channels: AsyncExitStack, attempts: Attempts) -> None:
        """Put what comes into the pool until nothing can come any more, and raise why."""
        line = await self.engine._open()
        with self.engine._giving_up(line):
            channel = await limited(line.connection.channel(publisher_confirms=False), _TRIP)

            async def arrived(message: AbstractIncomingMessage) -> None:
                await self._take(message, channel, pool)

            channels.push_async_callback(_close, channel)
            async with asyncio.timeout(_TRIP):
                await channel.set_qos(prefetch_count=self.limit * 2 + _WAITING)
                queue = await self.engine._declare_service(channel, self.service)
                await queue.consume(arrived, no_ack=False)
            attempts.succeeded()
            while True:
                await _until_closed(channel, _WATCH)
                # A queue that goes ends its consumers without an error.
                await limited(channel.declare_queue(queue.name, passive=True), _TRIP)

    async def _take(self, message: AbstractIncomingMessage, channel: AbstractChannel, pool: Pool[str]) -> None:
        id_ = message.message_id or new_id()  # no tag: those of the next connection begin again
        if id_ in self.done:
            del self.done[id_]
            await self._acknowledge(id_, message)
            return
        item = self.held.get(id_)
        if item is not None:
            if item.channel is channel:
                await self._acknowledge(id_, message)  # a second copy: the first is here, and still unacknowledged
            else:
                item.message, item.channel = message, channel  # one was lost meanwhile; it is being handled
            return
        earlier: Any = (message.headers or {}).get("x-delivery-count", 0)
        self.held[id_] = _Held(message, channel, 1 + (earlier if isinstance(earlier, int) else 0))
        pool.put(id_)

    async def _acknowledge(self, id_: str, message: AbstractIncomingMessage) -> None:
        try:
            await message.ack()
        except Exception:  # noqa: BLE001  the connection is lost; the broker delivers it again
            self.done[id_] = None
            if len(self.done) > _REMEMBERED:  # those that it gave to another instance
                del self.done[next(iter(self.done))]
