"""RabbitMQ through a FastStream broker object as the engine (extra: faststream).

The broker object gives the connection and its settings. Exchange, queues and publishing are made here, so that none
of its defaults decides over durability: persistent messages, publisher confirms, mandatory routing, a durable topic
exchange, and one quorum queue for each service.

A retry is kept here until it is due, unacknowledged: RabbitMQ has no delay of its own, and a NACK comes back at once.
When this process dies, the broker gives the event to another.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from aio_pika import DeliveryMode, ExchangeType, Message
from aio_pika.exceptions import AMQPError, QueueEmpty

from asignals.relay._cancel import to_the_end
from asignals.relay._envelope import DeadLetter, EnvelopeError, check_name
from asignals.relay._link import Link
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue
    from faststream.rabbit import RabbitBroker

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle

_TRIP: Final = 10.0  # seconds that a confirmation may take
_AT_ONCE: Final = 500
_WAITING: Final = 1_000  # retries that a consumer may keep beside what it handles
_LOOK: Final = 1_000
_WATCH: Final = 5.0  # seconds between two looks at whether the queue is still there


class RabbitMQ:
    """Carries events through RabbitMQ.

    Events that no service has a queue for are refused (mandatory routing): with an outbox they wait for the first
    service. An event id that comes twice is delivered twice; an inbox that is given to the relay skips the second.
    RabbitMQ gives an event to another instance when it was not acknowledged for its `consumer_timeout` (30 minutes by
    default).

    Args:
        broker: A `faststream.rabbit.RabbitBroker`. It is connected when it is first needed, and stopped with the relay.
        name: Names the exchange and begins the names of the queues: `<name>.<service>`, `<name>.dead.<queue>`.
        delivery_limit: How often the broker delivers an event that is never acknowledged; then it goes to
            `dlq.<service>`.
    """

    def __init__(self, broker: RabbitBroker, *, name: str = "asignals", delivery_limit: int = 200) -> None:
        self.name: str = check_name("name", name)
        self.link: Link = Link(f"RabbitMQ ({name})")
        self._broker = broker
        self._delivery_limit = delivery_limit
        self._lock = asyncio.Lock()
        self._channel: AbstractChannel | None = None
        self._exchange: AbstractExchange | None = None

    async def aclose(self) -> None:
        """Stop the broker object."""
        self._channel = self._exchange = None
        self._lock = asyncio.Lock()  # the next event loop may be another
        await self._broker.stop()

    async def _open(self) -> tuple[AbstractChannel, AbstractExchange]:
        """Give the channel and exchange for publishing."""
        async with self._lock:
            if self._channel is None or self._exchange is None or self._channel.is_closed:
                async with asyncio.timeout(_TRIP):
                    connection = await self._broker.connect()
                    connection.close_callbacks.add(self._on_close)
                    connection.reconnect_callbacks.add(self._on_return)
                    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                    self._exchange = await self._declare(channel)
                    self._channel = channel
                self.link.restored()
            return self._channel, self._exchange

    async def _declare(self, channel: AbstractChannel) -> AbstractExchange:
        return await channel.declare_exchange(self.name, ExchangeType.TOPIC, durable=True)

    def _on_close(self, _connection: object, error: BaseException | None) -> None:
        if self._channel is not None:
            self.link.lost(error or ConnectionError("closed"))

    def _on_return(self, _connection: object) -> None:
        self.link.restored()

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when RabbitMQ has confirmed all.

        Raises `aio_pika.exceptions.AMQPError`, `ConnectionError` and `TimeoutError`; when all is then repeated, what
        was confirmed comes twice.
        """
        for start in range(0, len(envelopes), _AT_ONCE):
            _, exchange = await self._open()
            publishing = [self._publish(exchange, envelope) for envelope in envelopes[start : start + _AT_ONCE]]
            results = await asyncio.gather(*publishing, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _publish(self, exchange: AbstractExchange, envelope: Envelope) -> None:
        message = Message(envelope.encode(), delivery_mode=DeliveryMode.PERSISTENT, message_id=envelope.id)
        await exchange.publish(message, envelope.topic, mandatory=True, timeout=_TRIP)

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled."""
        check_name("instance", instance)
        await self._open()
        connection = await self._broker.connect()
        async with asyncio.timeout(_TRIP):
            channel = await connection.channel(publisher_confirms=False)
        try:
            async with asyncio.timeout(_TRIP):
                await channel.set_qos(prefetch_count=limit * 2 + _WAITING)
                queue = await self._declare_service(channel, check_name("service", service))
            await _Consumer(self, handle, limit).run(queue)
        finally:
            await to_the_end(_close(channel))

    async def add_service(self, service: str) -> None:
        """Declare the queue of a service, so that it gets the events that are published from now on."""
        await self._open()
        connection = await self._broker.connect()
        async with asyncio.timeout(_TRIP), connection.channel() as channel:
            await self._declare_service(channel, check_name("service", service))

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
        await self._open()
        connection = await self._broker.connect()
        async with asyncio.timeout(_TRIP), connection.channel() as channel:
            try:
                found = await channel.declare_queue(queue, passive=True)
            except AMQPError:
                return 0
            return found.declaration_result.message_count or 0

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Put a letter into the queue, confirmed."""
        check_name("queue", queue)
        channel, _ = await self._open()
        async with asyncio.timeout(_TRIP):
            dead = await self._declare_dead(channel, queue)
            message = Message(letter.encode(), delivery_mode=DeliveryMode.PERSISTENT, message_id=letter.id)
            await channel.default_exchange.publish(message, dead.name, mandatory=True, timeout=_TRIP)

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
        await self._open()
        connection = await self._broker.connect()
        async with connection.channel() as channel:
            dead = await self._declare_dead(channel, check_name("queue", queue))
            seen = 0
            while limit is None or seen < limit:
                try:
                    message = await dead.get(no_ack=False, timeout=_TRIP)
                except QueueEmpty:
                    return
                seen += 1
                yield _letter(queue, message), message


async def _close(channel: AbstractChannel) -> None:
    """Close a channel: what was not acknowledged goes back to the queue with it."""
    with suppress(Exception):
        async with asyncio.timeout(2.0):
            await channel.close()


def _letter(queue: str, message: AbstractIncomingMessage) -> DeadLetter:
    try:
        return DeadLetter.decode(message.body, message.message_id or "")
    except EnvelopeError:  # RabbitMQ put it there itself
        reason = "delivered too often without ever being acknowledged"
        return DeadLetter(message.body, queue.removeprefix("dlq."), reason, time=0.0)


@dataclass(slots=True)
class _Held:
    """An event that is here, and how to acknowledge it."""

    message: AbstractIncomingMessage
    attempt: int


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: RabbitMQ
    handle: Handle
    limit: int
    held: dict[str, _Held] = field(default_factory=dict)
    done: dict[str, None] = field(default_factory=dict)  # handled, but the broker could not be told

    async def run(self, queue: AbstractQueue) -> None:
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

        async def arrived(message: AbstractIncomingMessage) -> None:
            await self._take(message, pool)

        pool = Pool(work, self.limit)
        async with pool:
            tag = await queue.consume(arrived, no_ack=False, timeout=_TRIP)
            try:
                await self._watch(queue)
            finally:
                with suppress(Exception):
                    async with asyncio.timeout(2.0):
                        await queue.cancel(tag)

    async def _watch(self, queue: AbstractQueue) -> None:
        """Raise when the queue has gone, which ends its consumers without an error; run until then."""
        while True:
            await asyncio.sleep(_WATCH)
            if not self.engine.link.is_up:
                continue
            connection = await self.engine._broker.connect()
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_TRIP), connection.channel() as channel:
                    await channel.declare_queue(queue.name, passive=True)

    async def _take(self, message: AbstractIncomingMessage, pool: Pool[str]) -> None:
        id_ = message.message_id or f"tag-{message.delivery_tag}"
        if id_ in self.done:
            del self.done[id_]
            await self._acknowledge(id_, message)
            return
        item = self.held.get(id_)
        if item is not None:
            if item.message.channel is message.channel:
                await self._acknowledge(id_, message)  # a second copy: the first is here, and still unacknowledged
            else:
                item.message = message  # the connection was lost meanwhile; it is being handled
            return
        earlier: Any = (message.headers or {}).get("x-delivery-count", 0)
        self.held[id_] = _Held(message, 1 + (earlier if isinstance(earlier, int) else 0))
        pool.put(id_)

    async def _acknowledge(self, id_: str, message: AbstractIncomingMessage) -> None:
        try:
            await message.ack()
        except Exception:  # noqa: BLE001  the connection is lost; the broker delivers it again
            self.done[id_] = None
