"""RabbitMQ's queues: their names, what is in them, and those in which retries wait.

RabbitMQ has no delay: a retry is published again to a queue whose messages expire, and come back by dead-lettering,
some times over until it is due. So a retry outlives this process, and takes no place of the consumer.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError

from asignals.relay._cancel import limited
from asignals.relay._envelope import check_name
from asignals.relay._keys import PARTITIONS
from asignals.relay.engines._rabbitmq.channels import ANSWER_TIMEOUT, ATTEMPT, CLOSE_TIMEOUT
from asignals.relay.engines._rabbitmq.connection import QUORUM, UNLIMITED

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

    from asignals.relay.engines._rabbitmq.connection import BrokerConnection

DUE: Final = "x-asignals-due"  # the header of a retry: milliseconds since the epoch
_DELAYS: Final = (250, 1_000, 4_000, 16_000, 64_000, 256_000)  # milliseconds after which the messages of a queue expire
_SETTLE: Final = 0.5  # seconds without a further message after which a queue counts as read
_MAX_NAME: Final = 127  # of pamqp's
_PARTITION: Final = ".~"  # between a topic and a partition in a routing key; no topic has it


def routing_key(topic: str, partition: int | str) -> str:
    """Name a partition of a topic as events are published to it."""
    return f"{topic}{_PARTITION}{partition}"


def routing_keys(topic: str) -> list[str]:
    """Name the partitions of a topic as events are published to them."""
    return [routing_key(topic, partition) for partition in range(PARTITIONS)]


def topic_of(routing_key: str) -> str:
    """Give the topic of what was published to it or to one of its partitions."""
    return routing_key.partition(_PARTITION)[0]


def partition_queues(queue: str) -> list[str]:
    """Name the queues of a topic's partitions in a service by that for events without a key."""
    return [f"{queue}#p{partition}" for partition in range(PARTITIONS)]


def delay_queues(queue: str) -> list[str]:
    """Name the queues in which retries of a queue's events wait."""
    return [f"{queue}#{delay}" for delay in _DELAYS]


def copy_of(message: AbstractIncomingMessage, headers: Any) -> Message:
    """Make a message of the same event, to be published again."""
    persistent = DeliveryMode.PERSISTENT
    return Message(message.body, delivery_mode=persistent, message_id=message.message_id, headers=headers)


class Queues:
    """The queues of one engine, whose names begin with that of its exchange."""

    def __init__(self, connection: BrokerConnection) -> None:
        self.connection = connection
        self._delays: set[str] = set()  # the queues for retries that were declared

    def of(self, service: str, topic: str) -> str:
        """Name the queue of a topic in a service."""
        name = f"{self.connection.name}.{check_name('service', service)}/{check_name('topic', topic)}"
        short = name[: _MAX_NAME - 20]  # the queues for delays add to it
        return name if name == short else f"{short}#{zlib.crc32(name.encode()):08x}"

    async def look(self, queue: str) -> tuple[int, int] | None:
        """Count what is ready in a queue, and its consumers; `None` where there is no such queue."""
        async with self.connection.channel() as channel:
            try:
                found = (await limited(channel.declare_queue(queue, passive=True), ANSWER_TIMEOUT)).declaration_result
            except ChannelNotFoundEntity:
                return None
            return found.message_count or 0, found.consumer_count or 0

    async def count(self, queue: str) -> int | None:
        """Count what is ready in a queue; `None` where there is no such queue."""
        found = await self.look(queue)
        return None if found is None else found[0]

    async def put(self, queue: str, message: Message) -> None:
        """Put a message into a queue, which is declared if it is missing; returns when it is confirmed."""
        opened = await self.connection.open()
        message.delivery_mode = DeliveryMode.PERSISTENT
        with self.connection.giving_up(opened):
            await limited(opened.channel.declare_queue(queue, durable=True, arguments=dict(UNLIMITED)), ANSWER_TIMEOUT)
            await opened.channel.default_exchange.publish(message, queue, mandatory=True, timeout=ANSWER_TIMEOUT)

    async def take_some(self, channel: AbstractChannel, queue: str, count: int) -> list[AbstractIncomingMessage]:
        """Take so many messages of a queue, or those that there are."""
        found: list[AbstractIncomingMessage] = []
        arrived = asyncio.Event()

        async def take(message: AbstractIncomingMessage) -> None:
            found.append(message)
            arrived.set()

        await limited(channel.set_qos(prefetch_count=count), ANSWER_TIMEOUT)
        taking = await limited(channel.get_queue(queue, ensure=False), ANSWER_TIMEOUT)
        tag = await limited(taking.consume(take, no_ack=False), ANSWER_TIMEOUT)
        with suppress(TimeoutError):
            while len(found) < count:
                arrived.clear()
                async with asyncio.timeout(_SETTLE):
                    await arrived.wait()
        await limited(taking.cancel(tag), ANSWER_TIMEOUT)
        return found

    async def until_ready(self, queue: str, count: int) -> None:
        """Wait, shortly, until so many messages can be taken from a queue: those of a closed channel come back late."""
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while (await self.count(queue) or 0) < count:  # noqa: ASYNC110  the broker tells nobody
                    await asyncio.sleep(0.01)

    async def delete(self, channel: AbstractChannel, queue: str) -> None:
        """Delete the queue of a topic in a service, with its partitions and retries."""
        for name in (queue, *partition_queues(queue), *delay_queues(queue)):
            self._delays.discard(name)
            await limited(channel.queue_delete(name), ANSWER_TIMEOUT)

    async def postpone(self, queue: str, message: AbstractIncomingMessage, attempt: int, due: float) -> None:
        """Publish an event again, to the queue in which it waits longest without being late."""
        left = (due - time.time()) * 1000
        delay = max((one for one in _DELAYS if one <= left), default=_DELAYS[0])
        name = f"{queue}#{delay}"
        opened = await self.connection.open()
        with self.connection.giving_up(opened):
            if name not in self._delays:
                await _declare_delays(opened.channel, name, queue, delay)
                self._delays.add(name)
            copy = copy_of(message, {ATTEMPT: attempt, DUE: int(due * 1000)})
            try:
                await opened.channel.default_exchange.publish(copy, name, mandatory=True, timeout=ANSWER_TIMEOUT)
            except DeliveryError:
                self._delays.discard(name)  # somebody has deleted it
                raise


async def _declare_delays(channel: AbstractChannel, name: str, queue: str, delay: int) -> None:
    arguments: Any = {
        **QUORUM,
        "x-message-ttl": delay,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    await limited(channel.declare_queue(name, durable=True, arguments=arguments), ANSWER_TIMEOUT)
