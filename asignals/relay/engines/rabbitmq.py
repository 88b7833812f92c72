"""RabbitMQ as the engine, by aio-pika (extra: rabbitmq). RabbitMQ 3.10 or newer.

Persistent messages, publisher confirms, a durable topic exchange, and a quorum queue for each topic of each service.
What no service receives is kept in a queue of its own, for the first that does. A connection that is lost, or on which
something takes too long, is given up for a new one: aio-pika's robust one restores its channels without a limit of
time, and a node that has just started takes connections before its quorum queues answer.

RabbitMQ has no delay: a retry is published again to a queue whose messages expire, and come back by dead-lettering,
some times over until it is due. So a retry outlives this process, and takes no place of the consumer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from aio_pika import DeliveryMode, ExchangeType, Message, connect
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed, DeliveryError
from aiormq.exceptions import ChannelLockedResource

from asignals.masking import redacted, said
from asignals.relay._cancel import end, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, check_name, new_id
from asignals.relay._keys import partition_of
from asignals.relay._monitoring.figures import TopicFigures, backlog_of
from asignals.relay._partitions import InPartition
from asignals.relay._places import Address, Server, servers_of
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery, Release, delay_of
from asignals.relay.engines._rabbitmq_channels import ATTEMPT, Closing, close, number
from asignals.relay.engines._rabbitmq_order import (
    KEY,
    PartitionedConsumer,
    partition_queues,
    routing_key,
    routing_keys,
    topic_of,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Iterator,
        Sequence,
    )

    from aio_pika.abc import (
        AbstractChannel,
        AbstractConnection,
        AbstractExchange,
        AbstractIncomingMessage,
        AbstractQueue,
    )

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

logger: logging.Logger = logging.getLogger("asignals.relay")

_TRIP: Final = 5.0  # seconds that an answer may take
# Seconds; after twice that without a word the broker gives what a consumer holds to others, be it dead or cut off.
_HEARTBEAT: Final = 6
_FAREWELL: Final = 2.0  # seconds that closing may take
_AT_ONCE: Final = 500
_UNDER_WAY: Final = 64  # more that begin at once would stall the event loop for what they take together
_LEAST: Final = 200  # events that a consumer may hold at least
_MOST: Final = 60_000  # and at most: RabbitMQ counts them in 16 bits
_GROW: Final = 0.25  # seconds between two looks at whether a consumer must hold more
_SETTLE: Final = 0.5  # seconds without a further letter after which a queue counts as read
_REMEMBERED: Final = 10_000
_WATCH: Final = 5.0  # seconds between two looks at whether the queue is still there
_DELAYS: Final = (250, 1_000, 4_000, 16_000, 64_000, 256_000)  # milliseconds after which the messages of a queue expire
_SOON: Final = 0.25  # seconds until a retry for which it is kept here
_KEPT: Final = 30 * 86_400  # seconds for which events are kept that no service receives
_QUORUM: Final[dict[str, Any]] = {"x-queue-type": "quorum"}
# The relay counts by itself; what RabbitMQ counts are deliveries, also of events that were not looked at.
_UNLIMITED: Final[dict[str, Any]] = {**_QUORUM, "x-delivery-limit": 1_000_000_000}
_MAX_NAME: Final = 127  # of pamqp's
_DUE: Final = "x-asignals-due"  # milliseconds since the epoch


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection, and on it what publishing needs."""

    connection: AbstractConnection
    channel: AbstractChannel
    exchange: AbstractExchange


class RabbitMQ:
    """Carries events through RabbitMQ.

    An event id that comes twice is delivered twice; an inbox that is given to the relay skips the second. Events of a
    topic that no service receives are kept for 30 days, and given to the first service that receives it. RabbitMQ gives
    an event to another instance when it was not acknowledged for its `consumer_timeout` (30 minutes by default).

    RabbitMQ writes down that a new quorum queue exists some seconds after it has said so: a node (3.10) that is killed
    before that may never find the queue a leader. So make a service known (`Relay.init`) some time before its events.

    Args:
        urls: `amqp://user:password@host:5672/vhost`, or `amqps://…`; settings such as `heartbeat` go into its query. Of
            a cluster the URLs of several nodes: one at random is used, and the next where it cannot be reached.
        name: Names the exchange and begins the names of the queues: `<name>.<service>/<topic>`, `<name>.dead.<queue>`.
        options: What else `aio_pika.connect` takes, `ssl_context` for one.

    Raises:
        ValueError: the URL is not RabbitMQ's, or `name` cannot be used.
    """

    system: Final = "rabbitmq"  # as OpenTelemetry calls it

    def __init__(self, urls: str | Sequence[str], *, name: str = "asignals", **options: Any) -> None:
        nodes: list[str] = list(urls) if isinstance(urls, list | tuple) else [urls]  # type: ignore[list-item]  # seen below
        wrong = [url for url in nodes if not isinstance(url, str) or not url.startswith(("amqp://", "amqps://"))]
        if wrong or not nodes:
            found = redacted(wrong[0] if wrong else urls)
            raise ValueError(
                f"RabbitMQ takes a URL such as 'amqp://user:password@host/', or a list of them, not {found!r}"
            )
        self.name: str = check_name("name", name)
        self.connection_state: ConnectionState = ConnectionState(f"RabbitMQ ({', '.join(nodes)}, {name})")
        self._urls = [_with_heartbeat(url) for url in random.sample(nodes, len(nodes))]  # so that load is spread
        self.partitions: set[ConnectionState] = set()  # as far as they are consumed from here
        self._options = options
        self._lock = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._line: _Line | None = None
        self._returning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._delays: set[str] = set()
        self._looked_at: dict[tuple[str, str], AbstractIncomingMessage] = {}  # by queue and position

    # -- places ----------------------------------------------------------------------------------------------------

    def servers(self) -> list[Server]:
        """List the servers."""
        return servers_of(*self._urls)

    def address(self, topic: str) -> Address:
        """Give a topic's routing key, and the exchange."""
        exchange = {"name": self.name, "type": "topic", "durable": True}
        note = f"Events with a key are published to {routing_key(topic, '<partition>')}."
        return Address(check_name("topic", topic), {"amqp": {"is": "routingKey", "exchange": exchange}}, note)

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong beside the connection: partitions whose queues cannot be consumed from."""
        if not self.connection_state.is_up:
            return {}  # then that is what is wrong
        return {state.name: state.problem for state in self.partitions if state.problem is not None}

    # -- connecting ------------------------------------------------------------------------------------------------

    async def init(self) -> None:
        """Create the exchange, if it is missing."""
        await self._open()

    async def aclose(self) -> None:
        """Close the connection."""
        while self._tasks:
            await end(list(self._tasks))
        line, self._line = self._line, None
        if line is not None:
            await close(line.connection)
        self._lock, self._reading = asyncio.Lock(), asyncio.Lock()  # the next event loop may be another

    async def _open(self) -> _Line:
        """Give the line, a new one where it was lost."""
        async with self._lock:
            if self._line is None or self._line.channel.is_closed:
                self._line = await limited(self._connect(self._line), _TRIP, self.connection_state.name)
                self.connection_state.restored()
            return self._line

    async def _connect(self, before: _Line | None) -> _Line:
        if before is not None and before.connection.connected.is_set():
            connection = before.connection  # only the channel was closed
        else:
            connection = await self._dial()
            connection.close_callbacks.add(self._lose)
        try:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return _Line(connection, channel, await self._declare(channel))
        except BaseException:
            await close(connection)
            raise

    async def _dial(self) -> AbstractConnection:
        """Connect to the first node that answers, beginning with the one that did last."""
        for _ in self._urls[1:]:
            with suppress(Exception):
                return await self._dial_first()
        return await self._dial_first()

    async def _dial_first(self) -> AbstractConnection:
        connection: AbstractConnection
        try:
            connection = await connect(self._urls[0], **self._options)
        except BaseException:  # the limit of time included
            self._urls.append(self._urls.pop(0))
            raise
        return connection

    async def _declare(self, channel: AbstractChannel) -> AbstractExchange:
        unrouted = f"{self.name}.unrouted"
        await channel.declare_exchange(unrouted, ExchangeType.FANOUT, durable=True)
        queue = await channel.declare_queue(
            unrouted, durable=True, arguments={**_UNLIMITED, "x-message-ttl": _KEPT * 1000}
        )
        await queue.bind(unrouted)
        arguments: Any = {"alternate-exchange": unrouted}
        return await channel.declare_exchange(self.name, ExchangeType.TOPIC, durable=True, arguments=arguments)

    def _lose(self, connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Give up a connection that was closed or does not answer, and get a new one."""
        if self._line is None or connection is not self._line.connection:
            return
        self.connection_state.lost(error or ConnectionError("closed"))
        self._line = None
        self._urls.append(self._urls.pop(0))
        self._start(close(connection))
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
        """Give up the connection when the block raises `TimeoutError`; say so when settings are not what is there."""
        try:
            yield
        except TimeoutError as error:
            silent = TimeoutError(f"{self.connection_state.name} gave no answer within {_TRIP:g} s")
            self._lose(line.connection, silent)
            raise silent from error
        except ChannelPreconditionFailed as error:
            msg = (
                f"{self.connection_state.name} has a queue or exchange of other settings:"
                f" delete it when it is empty, or use another name ({redacted(error)})"
            )
            raise RuntimeError(msg) from error

    @asynccontextmanager
    async def _channel(self, *, confirms: bool = True) -> AsyncIterator[AbstractChannel]:
        """Open a channel for one errand: an error closes its channel."""
        line = await self._open()
        with self._giving_up(line):
            channel = await limited(line.connection.channel(publisher_confirms=confirms), _TRIP)
            try:
                yield channel
            finally:
                await close(channel)

    # -- publishing ------------------------------------------------------------------------------------------------

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
        routing = envelope.topic
        if envelope.key is not None:
            message.headers[KEY] = envelope.key
            routing = routing_key(routing, partition_of(envelope.key))
        async with turns:
            if self._line is not line:
                raise ConnectionError("the connection to RabbitMQ was lost before the event could be published")
            with self._giving_up(line):
                await line.exchange.publish(message, routing, mandatory=True, timeout=_TRIP)

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        names = [check_name("topic", topic) for topic in topics]
        await _Consumer(self, check_name("service", service), names, handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by a queue of this connection's own, which goes with it.

        An event that somebody listens to counts as received: it is not kept for the first service that receives it.
        """
        names = [check_name("topic", topic) for topic in topics]
        attempts = Attempts(self.connection_state)
        while True:
            async with attempts, self._channel(confirms=False) as channel:
                closing = Closing(channel)
                async with asyncio.timeout(_TRIP):
                    queue = await channel.declare_queue(
                        exclusive=True, auto_delete=True, arguments={"x-max-length": _MOST, "x-overflow": "drop-head"}
                    )
                    for routing in (routing for topic in names for routing in (topic, *routing_keys(topic))):
                        await queue.bind(self.name, routing)
                    await queue.consume(_hearer(hear), no_ack=True)
                attempts.succeeded()
                begun()
                while True:
                    await closing.wait(_WATCH)
                    await limited(channel.declare_queue(queue.name, passive=True), _TRIP)

    def _queue(self, service: str, topic: str) -> str:
        name = f"{self.name}.{check_name('service', service)}/{check_name('topic', topic)}"
        short = name[: _MAX_NAME - 20]  # the queues for delays add to it
        return name if name == short else f"{short}#{zlib.crc32(name.encode()):08x}"

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Declare a queue for each topic of a service: it gets the events from now on, and those kept so far."""
        check_name("service", service)
        for topic in topics:
            await self._add_topic(service, check_name("topic", topic))

    async def _add_topic(self, service: str, topic: str) -> None:
        name = self._queue(service, topic)
        is_new = await self._count(name) is None
        if is_new:
            await self._publish_now(self._register, Message(f"{service} {topic}".encode()))
        async with self._channel() as channel:
            queue = await limited(channel.declare_queue(name, durable=True, arguments=dict(_UNLIMITED)), _TRIP)
            await limited(queue.bind(self.name, topic), _TRIP)
            arguments = {**_UNLIMITED, "x-single-active-consumer": True}
            for partition, routing in zip(partition_queues(name), routing_keys(topic), strict=True):
                queue = await limited(channel.declare_queue(partition, durable=True, arguments=arguments), _TRIP)
                await limited(queue.bind(self.name, routing), _TRIP)
        if is_new:
            await self._route(topic)

    @property
    def _register(self) -> str:
        """The queue that tells which services there are, one message for each topic: the protocol lists no queues."""
        return f"{self.name}.services"

    async def _publish_now(self, queue: str, message: Message) -> None:
        """Put a message into a queue of ours, which is made if it is missing; returns when it is confirmed."""
        line = await self._open()
        message.delivery_mode = DeliveryMode.PERSISTENT
        with self._giving_up(line):
            await limited(line.channel.declare_queue(queue, durable=True, arguments=dict(_UNLIMITED)), _TRIP)
            await line.channel.default_exchange.publish(message, queue, mandatory=True, timeout=_TRIP)

    @asynccontextmanager
    async def _registered(
        self, service: str | None
    ) -> AsyncIterator[dict[tuple[str, str], list[AbstractIncomingMessage]]]:
        """Give what the register says of a service or of all, by service and topic; one reader at a time.

        What is not acknowledged is put back.
        """
        found: dict[tuple[str, str], list[AbstractIncomingMessage]] = {}
        async with self._reading:
            turn = await self._take_turn()
            async with self._channel(confirms=False) as channel:
                count = await self._count(self._register)
                for message in await self._take_some(channel, self._register, count) if count else []:
                    name, _, topic = message.body.decode(errors="replace").partition(" ")
                    if service in (None, name):
                        found.setdefault((name, topic), []).append(message)
                yield found
                await close(channel)
                if count:
                    await self._until_ready(self._register, count - sum(map(len, found.values())))
            async with self._channel() as channel:
                await limited(channel.queue_delete(turn), _TRIP)

    async def _take_turn(self) -> str:
        """Wait until no other process reads the register: whoever does owns a queue, which goes with its connection."""
        name, end = f"{self._register}.turn", time.monotonic() + _TRIP
        while True:
            try:
                async with self._channel() as channel:
                    await limited(channel.declare_queue(name, exclusive=True), _TRIP)
                    return name
            except ChannelLockedResource:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.05)

    async def _route(self, topic: str) -> None:
        """Publish again what was kept of a topic until there was a service that receives it."""
        unrouted = f"{self.name}.unrouted"
        async with self._channel() as channel:
            exchange = await channel.get_exchange(self.name, ensure=False)
            queue = await channel.get_queue(unrouted, ensure=False)
            for _ in range(await self._count(unrouted) or 0):
                message = await limited(queue.get(no_ack=False, fail=False, timeout=_TRIP), _TRIP)
                if message is None:
                    return
                if topic_of(message.routing_key or "") == topic:
                    again = Message(
                        message.body,
                        delivery_mode=DeliveryMode.PERSISTENT,
                        message_id=message.message_id,
                        headers=message.headers,
                    )
                    await exchange.publish(again, message.routing_key or "", timeout=_TRIP)
                    await message.ack()

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Delete the service's queues and what is in them, of some topics or of all."""
        async with self._registered(check_name("service", service)) as registered, self._channel() as channel:
            for topic in sorted({topic for _, topic in registered} if topics is None else topics):
                name = self._queue(service, topic)
                for queue in (name, *partition_queues(name), *(f"{name}#{delay}" for delay in _DELAYS)):
                    self._delays.discard(queue)
                    await limited(channel.queue_delete(queue), _TRIP)
                for message in registered.get((service, topic), []):
                    await limited(message.ack(), _TRIP)

    async def backlog(self, service: str) -> int:
        """Count the events that wait in the queues, for their retry too, without those that consumers hold."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits, by service and topic.

        The protocol tells neither what consumers hold, so that `backlog` is without it, nor how old events are.
        """
        if service is not None and topics is not None:
            places = [(service, topic) for topic in topics]
        else:
            async with self._registered(service) as registered:
                places = [place for place in registered if topics is None or place[1] in topics]
        return [await self._figures_of(*place) for place in sorted(places)]

    async def _figures_of(self, service: str, topic: str) -> TopicFigures:
        name = self._queue(service, topic)
        ready, instances = await self._look(name) or (0, 0)
        ready += sum([await self._count(partition) or 0 for partition in partition_queues(name)])
        retries = sum([await self._count(f"{name}#{delay}") or 0 for delay in _DELAYS])
        waiting = ready + retries
        return TopicFigures(service, topic, waiting, None if waiting or instances else 0.0, None, retries, instances)

    async def _count(self, queue: str) -> int | None:
        """Count what is ready in a queue; `None` where there is none."""
        found = await self._look(queue)
        return None if found is None else found[0]

    async def _look(self, queue: str) -> tuple[int, int] | None:
        """Count what is ready in a queue, and its consumers; `None` where there is none."""
        async with self._channel() as channel:
            try:
                found = (await limited(channel.declare_queue(queue, passive=True), _TRIP)).declaration_result
            except ChannelNotFoundEntity:
                return None
            return found.message_count or 0, found.consumer_count or 0

    async def _postpone(self, queue: str, message: AbstractIncomingMessage, attempt: int, due: float) -> None:
        """Publish an event again, to the queue in which it waits longest without being late."""
        left = (due - time.time()) * 1000
        delay = max((one for one in _DELAYS if one <= left), default=_DELAYS[0])
        name = f"{queue}#{delay}"
        line = await self._open()
        with self._giving_up(line):
            if name not in self._delays:
                arguments: Any = {
                    **_QUORUM,
                    "x-message-ttl": delay,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": queue,
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                }
                await limited(line.channel.declare_queue(name, durable=True, arguments=arguments), _TRIP)
                self._delays.add(name)
            copy = Message(
                message.body,
                delivery_mode=DeliveryMode.PERSISTENT,
                message_id=message.message_id,
                headers={ATTEMPT: attempt, _DUE: int(due * 1000)},
            )
            try:
                await line.channel.default_exchange.publish(copy, name, mandatory=True, timeout=_TRIP)
            except DeliveryError:
                self._delays.discard(name)  # somebody has deleted it
                raise

    # -- dead letters ----------------------------------------------------------------------------------------------

    def _dead(self, queue: str) -> str:
        return f"{self.name}.dead.{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Put a letter into the queue, confirmed."""
        await self._publish_now(self._dead(queue), Message(letter.encode(), message_id=new_id()))

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue, but for those that somebody is looking at."""
        return await self._count(self._dead(queue)) or 0

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest of each first: quorum queues change the order of what is put back.

        They are taken, and put back when the generator is closed; meanwhile nobody else sees them.
        """
        dead = self._dead(queue)
        left = await self._count(dead) or 0
        seen: list[tuple[str, str]] = []
        async with AsyncExitStack() as channels:
            channels.push_async_callback(self._put_back, dead, seen)
            while left > 0:
                # Each channel holds one batch unacknowledged, so that the queue does not give it again.
                channel = await channels.enter_async_context(self._channel(confirms=False))
                messages = await self._take_some(channel, dead, min(batch, left))
                if not messages:
                    return
                left -= len(messages)
                letters = []
                for message in messages:
                    place = dead, message.message_id or new_id()
                    seen.append(place)
                    self._looked_at[place] = message
                    letters.append(DeadLetter.read(message.body, place[1]))
                    message.body = b""  # type: ignore[misc]  # it is the letter's now
                yield sorted(letters, key=attrgetter("time"))

    async def _put_back(self, dead: str, seen: list[tuple[str, str]]) -> None:
        """Wait until what was looked at and not removed is in the queue again: a closed channel takes its time."""
        kept = [place for place in seen if self._looked_at.pop(place, None) is not None]
        if kept:
            await self._until_ready(dead, len(kept))

    async def _until_ready(self, queue: str, count: int) -> None:
        """Wait, shortly, until so many messages can be taken from a queue."""
        with suppress(Exception):
            async with asyncio.timeout(_FAREWELL):
                while (await self._count(queue) or 0) < count:  # noqa: ASYNC110  the broker tells nobody
                    await asyncio.sleep(0.01)

    async def _take_some(self, channel: AbstractChannel, queue: str, count: int) -> list[AbstractIncomingMessage]:
        """Take so many messages of a queue, or those that there are."""
        found: list[AbstractIncomingMessage] = []
        arrived = asyncio.Event()

        async def take(message: AbstractIncomingMessage) -> None:
            found.append(message)
            arrived.set()

        await limited(channel.set_qos(prefetch_count=count), _TRIP)
        taking = await limited(channel.get_queue(queue, ensure=False), _TRIP)
        tag = await limited(taking.consume(take, no_ack=False), _TRIP)
        with suppress(TimeoutError):
            while len(found) < count:
                arrived.clear()
                async with asyncio.timeout(_SETTLE):
                    await arrived.wait()
        await limited(taking.cancel(tag), _TRIP)
        return found

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters; without a scan that is open, the queue is looked through for them."""
        dead = self._dead(queue)
        missing = await self._delete(dead, {letter.position for letter in letters})
        if missing:
            async with aclosing(self.scan_dead_letters(queue)) as batches:
                async for _ in batches:
                    missing = await self._delete(dead, missing)
                    if not missing:
                        return

    async def _delete(self, dead: str, positions: set[str]) -> set[str]:
        """Remove the letters that are being looked at; gives the others."""
        for position in list(positions):
            message = self._looked_at.pop((dead, position), None)
            if message is not None:
                await limited(message.ack(), _TRIP)
                positions = positions - {position}
        return positions


def _hearer(hear: Hear) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
    async def arrived(message: AbstractIncomingMessage) -> None:
        hear(Delivery(topic_of(message.routing_key or ""), message.body))

    return arrived


def _with_heartbeat(url: str) -> str:
    parts = urlsplit(url)
    if "heartbeat=" in parts.query:
        return url
    return urlunsplit(parts._replace(query=f"{parts.query}&heartbeat={_HEARTBEAT}".lstrip("&")))


@dataclass(slots=True)
class _Held:
    """An event that is here, and how to acknowledge it: on the channel that it came by last."""

    topic: str
    message: AbstractIncomingMessage
    channel: AbstractChannel
    attempt: int


_Pool: TypeAlias = "Pool[str | InPartition[Any]]"


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: RabbitMQ
    service: str
    topics: list[str]
    handle: Handle
    limit: int
    held: dict[str, _Held] = field(default_factory=dict)
    done: dict[str, None] = field(default_factory=dict)  # handled, but the broker could not be told

    async def run(self) -> None:
        pool: _Pool

        async def work(id_: str | InPartition[Any]) -> None:
            if isinstance(id_, InPartition):
                await partitioned.work(id_)
                return
            item = self.held[id_]
            delivery = Delivery(item.topic, item.message.body, item.attempt, item.attempt > 1, pool.park)
            outcome = await self.handle(delivery)
            if outcome is None:
                del self.held[id_]
                await self._acknowledge(id_, item.message)
            else:
                item.attempt += 1
                await self._again(
                    id_, item, time.time() + delay_of(outcome), pool, here=not isinstance(outcome, Release)
                )

        pool = Pool(work, self.limit)
        partitioned: PartitionedConsumer
        attempts = Attempts(self.engine.connection_state)
        # The pool ends first, and can acknowledge what it has done.
        async with AsyncExitStack() as last, AsyncExitStack() as channels, pool:
            partitioned = PartitionedConsumer(self.engine, self.service, self.topics, self.handle, pool, last)
            while True:
                async with attempts:
                    await channels.aclose()
                    await self._consume(pool, partitioned, channels, attempts)

    async def _again(self, id_: str, item: _Held, due: float, pool: _Pool, *, here: bool) -> None:
        """Have an event come again when it is due: to whoever is there then, or, where that is soon, here."""
        left = due - time.time()
        if left > _SOON or not here:
            try:
                await self.engine._postpone(
                    self.engine._queue(self.service, item.topic), item.message, item.attempt, due
                )
            except Exception as error:  # noqa: BLE001  then it waits here, unacknowledged
                logger.warning("a retry waits in this process, as RabbitMQ did not take it (%s)", said(error))
            else:
                del self.held[id_]
                with suppress(Exception):  # the connection is lost: it is delivered again, as the engine promises
                    await item.message.ack()
                return
        asyncio.get_running_loop().call_later(max(0.0, left), pool.put, id_)

    async def _consume(
        self, pool: _Pool, partitioned: PartitionedConsumer, channels: AsyncExitStack, attempts: Attempts
    ) -> None:
        """Put what comes into the pool until nothing can come any more, and raise why."""
        await self.engine.add_service(self.service, self.topics)
        partitioned.start()
        line = await self.engine._open()
        with self.engine._giving_up(line):
            channel = await limited(line.connection.channel(publisher_confirms=False), _TRIP)
            channels.push_async_callback(close, channel)
            closing = Closing(channel)
            holds = max(self.limit * 4, _LEAST)
            tags = await limited(self._subscribe(channel, holds, pool), _TRIP)
            attempts.succeeded()
            looked = time.monotonic()
            while True:
                await closing.wait(_GROW)
                if pool.parked > holds - max(self.limit * 2, _LEAST // 2) and holds < _MOST:
                    # Events that wait for others of their key leave no room: hold more.
                    holds = min(_MOST, pool.parked + max(self.limit * 8, _LEAST * 2))
                    before, tags = tags, await limited(self._subscribe(channel, holds, pool), _TRIP)
                    for queue, tag in before:
                        await limited(queue.cancel(tag), _TRIP)
                if time.monotonic() - looked > _WATCH:  # a queue that goes ends its consumers without an error
                    looked = time.monotonic()
                    for queue, _ in tags:
                        await limited(channel.declare_queue(queue.name, passive=True), _TRIP)

    async def _subscribe(self, channel: AbstractChannel, holds: int, pool: _Pool) -> list[tuple[AbstractQueue, str]]:
        """Consume from the queue of each topic, and hold so many events of all of them at most."""
        tags = []
        await channel.set_qos(prefetch_count=max(1, holds // len(self.topics)))
        for topic in self.topics:
            queue = await channel.get_queue(self.engine._queue(self.service, topic), ensure=False)
            tags.append((queue, await queue.consume(self._taker(topic, channel, pool), no_ack=False)))
        return tags

    def _taker(
        self, topic: str, channel: AbstractChannel, pool: _Pool
    ) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def arrived(message: AbstractIncomingMessage) -> None:
            await self._take(topic, message, channel, pool)

        return arrived

    async def _take(self, topic: str, message: AbstractIncomingMessage, channel: AbstractChannel, pool: _Pool) -> None:
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
        attempt = number(message, ATTEMPT, 1) + number(message, "x-delivery-count", 0)
        item = self.held[id_] = _Held(topic, message, channel, attempt)
        due = number(message, _DUE, 0) / 1000
        if due > time.time():
            await self._again(id_, item, due, pool, here=True)
        else:
            pool.put(id_)

    async def _acknowledge(self, id_: str, message: AbstractIncomingMessage) -> None:
        try:
            await message.ack()
        except Exception:  # noqa: BLE001  the connection is lost; the broker delivers it again
            self.done[id_] = None
            if len(self.done) > _REMEMBERED:  # those that it gave to another instance
                del self.done[next(iter(self.done))]
