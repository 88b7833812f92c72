"""The services that RabbitMQ keeps events for: a queue for each topic of each, and a register of them.

The register is a queue with one message for each topic of a service: the protocol does not list queues.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aio_pika import Message
from aiormq.exceptions import ChannelLockedResource

from asignals.relay._cancel import limited
from asignals.relay._envelope import check_name
from asignals.relay._loops import OwnLoop
from asignals.relay._monitoring.figures import TopicFigures
from asignals.relay.engines._rabbitmq.channels import ANSWER_TIMEOUT, close
from asignals.relay.engines._rabbitmq.connection import UNLIMITED
from asignals.relay.engines._rabbitmq.queues import copy_of, delay_queues, partition_queues, routing_keys, topic_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

    from asignals.relay.engines._rabbitmq.connection import OpenConnection
    from asignals.relay.engines._rabbitmq.queues import Queues

logger: logging.Logger = logging.getLogger("asignals.relay")

_SCARCELY: Final = 20  # times as long as looking through the kept events has taken, it is not done again


class Services:
    """Makes services known, removes them, and gives their figures."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self.connection = queues.connection
        self._register = f"{self.connection.name}.services"
        self._reading = asyncio.Lock()
        self._binding = asyncio.Lock()
        self._adding = asyncio.Lock()
        self._bound: OpenConnection | None = None  # on which the exchange was found bound
        self._loop = OwnLoop()
        # RabbitMQ may move the consumer of a queue that is made again at once to the new one, which then gives it
        # nothing: it has to subscribe again, on another channel.
        self._made: Counter[tuple[str, str]] = Counter()
        self._kept: dict[str, int] = {}  # how many events no service received when those of a topic were looked for
        self._look_for_kept = float("-inf")  # not before this time
        self.problems: dict[str, str] = {}

    def reset(self) -> None:
        """Make ready for another event loop."""
        self._reading, self._binding, self._adding = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._bound = None

    async def add(self, service: str, topics: Collection[str]) -> None:
        """Declare a queue for each topic of a service: it gets the events from now on, and those kept so far."""
        check_name("service", service)
        await self.ensure_bound()
        for topic in topics:
            await self._add_topic(service, check_name("topic", topic))

    async def _add_topic(self, service: str, topic: str) -> None:
        async with self._adding:  # else all that find the queue missing at the same time would write it down
            is_new = await self.queues.count(self.queues.of(service, topic)) is None
            if is_new:
                await self.queues.put(self._register, Message(f"{service} {topic}".encode()))
            async with self.connection.channel() as channel:
                await self._declare(channel, service, topic)
                if is_new:
                    self._made[service, topic] += 1
                await self._bind(channel, self._bindings(service, topic))
        await self._publish_kept([topic])  # also for one that failed before this, after it had made the queues

    async def bind_again(self, service: str, topic: str) -> None:
        """Bind the queues of a topic, in case that somebody has removed a binding: AMQP does not tell.

        What reached no queue meanwhile is published again. It is looked for where the number of kept events has
        changed, and so rarely that it takes a twentieth of the time: any number may be kept of other topics.
        """
        # A cluster changes no bindings while it waits for a node that is gone, and consuming goes on meanwhile.
        async with self.connection.channel(gives_up=False) as channel:
            await self._bind(channel, self._bindings(service, topic))
        kept, begun = await self.queues.count(self.connection.unrouted) or 0, time.monotonic()
        if kept == self._kept.get(topic, 0) or begun < self._look_for_kept:
            return
        if count := await self._publish_kept([topic]):
            logger.warning(
                "%d events of %r had reached no queue: a binding of %s/%s to exchange %r had been removed, and is there"
                " again; what reached other services meanwhile is lost for this one",
                count,
                topic,
                service,
                topic,
                self.connection.name,
            )
        self._kept[topic] = kept - count
        self._look_for_kept = time.monotonic() + _SCARCELY * (time.monotonic() - begun)

    def times_made(self, service: str, topics: Collection[str]) -> int:
        """Count how often the queues of these topics were made: consumers of those before have to begin again."""
        return sum(self._made[service, topic] for topic in topics)

    async def _declare(self, channel: AbstractChannel, service: str, topic: str) -> None:
        name, alone = self.queues.of(service, topic), {**UNLIMITED, "x-single-active-consumer": True}
        for queue, arguments in [(name, UNLIMITED), *((each, alone) for each in partition_queues(name))]:
            await limited(channel.declare_queue(queue, durable=True, arguments=dict(arguments)), ANSWER_TIMEOUT)

    def _bindings(self, service: str, topic: str) -> list[tuple[str, str]]:
        """Give the routing keys of a topic, each with the queue to which it leads."""
        name = self.queues.of(service, topic)
        return [(topic, name), *zip(routing_keys(topic), partition_queues(name), strict=True)]

    async def _bind(self, channel: AbstractChannel, bindings: Iterable[tuple[str, str]]) -> None:
        for routing, name in bindings:
            queue = await channel.get_queue(name, ensure=False)
            await limited(queue.bind(self.connection.name, routing), ANSWER_TIMEOUT)

    async def ensure_bound(self, *, again: bool = False) -> None:
        """Create the exchange where it is missing; bind the queues of all services to one that is new.

        It asks RabbitMQ once for each connection, or `again`: somebody may have deleted the exchange.
        """
        self._loop.enter(self._register, self.reset)
        opened = await self.connection.open()
        async with self._binding:
            if again or self._bound is not opened:
                if not await self.connection.is_bound():
                    await self._bind_all()
                self._bound = opened

    async def _bind_all(self) -> None:
        async with self._registered(None) as registered:
            places = sorted(registered)
        names = ", ".join(f"{service}/{topic}" for service, topic in places)
        exchange = f"exchange {self.connection.name!r} of {self.connection.state.name}"
        if places:
            self.problems[exchange] = f"it is new, or was deleted: the queues of {names} are not bound to it yet"
        async with self.connection.channel() as channel:
            for place in places:
                await self._declare(channel, *place)
            await self.connection.declare()
            # One routing key after the other: what is published meanwhile reaches all services, or is kept.
            await self._bind(channel, sorted(pair for place in places for pair in self._bindings(*place)))
        count = await self._publish_kept({topic for _, topic in places})
        await self.connection.mark_bound()
        if self.problems.pop(exchange, None):
            logger.warning(
                "%s is new, or was deleted: bound the queues of %s to it, and published %d events that it had kept",
                exchange,
                names,
                count,
            )

    async def _publish_kept(self, topics: Collection[str]) -> int:
        """Publish again what was kept of topics while no service received it; count that."""
        unrouted, count = self.connection.unrouted, 0
        async with self.connection.channel() as channel:
            exchange = await channel.get_exchange(self.connection.name, ensure=False)
            queue = await channel.get_queue(unrouted, ensure=False)
            for _ in range(await self.queues.count(unrouted) or 0):
                message = await limited(queue.get(no_ack=False, fail=False, timeout=ANSWER_TIMEOUT), ANSWER_TIMEOUT)
                if message is None:
                    break
                if topic_of(message.routing_key or "") in topics:
                    await exchange.publish(
                        copy_of(message, message.headers), message.routing_key or "", timeout=ANSWER_TIMEOUT
                    )
                    await message.ack()
                    count += 1
        return count

    async def forget(self, service: str, topics: Collection[str] | None) -> None:
        """Delete the service's queues and what is in them, of some topics or of all."""
        async with self._registered(check_name("service", service)) as registered, self.connection.channel() as channel:
            for topic in sorted({topic for _, topic in registered} if topics is None else topics):
                await self.queues.delete(channel, self.queues.of(service, topic))
                for message in registered.get((service, topic), []):
                    await limited(message.ack(), ANSWER_TIMEOUT)

    async def figures(self, service: str | None, topics: Collection[str] | None) -> list[TopicFigures]:
        """Give what waits, by service and topic: neither what consumers hold nor how old events are."""
        if service is not None and topics is not None:
            places = [(service, topic) for topic in topics]
        else:
            async with self._registered(service) as registered:
                places = [place for place in registered if topics is None or place[1] in topics]
        return [await self._figures_of(*place) for place in sorted(places)]

    async def _figures_of(self, service: str, topic: str) -> TopicFigures:
        name = self.queues.of(service, topic)
        ready, instances = await self.queues.look(name) or (0, 0)
        ready += sum([await self.queues.count(partition) or 0 for partition in partition_queues(name)])
        retries = sum([await self.queues.count(queue) or 0 for queue in delay_queues(name)])
        waiting = ready + retries
        return TopicFigures(service, topic, waiting, None if waiting or instances else 0.0, None, retries, instances)

    @asynccontextmanager
    async def _registered(
        self, service: str | None
    ) -> AsyncIterator[dict[tuple[str, str], list[AbstractIncomingMessage]]]:
        """Give what the register says of a service or of all, by service and topic; one reader at a time.

        What is not acknowledged is put back.
        """
        found: dict[tuple[str, str], list[AbstractIncomingMessage]] = {}
        self._loop.enter(self._register, self.reset)
        async with self._reading:
            turn = await self._take_turn()
            async with self.connection.channel(confirms=False) as channel:
                count = await self.queues.count(self._register)
                for message in await self.queues.take_some(channel, self._register, count) if count else []:
                    name, _, topic = message.body.decode(errors="replace").partition(" ")
                    if service in (None, name):
                        found.setdefault((name, topic), []).append(message)
                yield found
                await close(channel)
                if count:
                    await self.queues.until_ready(self._register, count - sum(map(len, found.values())))
            async with self.connection.channel() as channel:
                await limited(channel.queue_delete(turn), ANSWER_TIMEOUT)

    async def _take_turn(self) -> str:
        """Wait until no other process reads the register: the reader owns a queue, which goes with its connection."""
        name, end = f"{self._register}.turn", time.monotonic() + ANSWER_TIMEOUT
        while True:
            try:
                async with self.connection.channel() as channel:
                    await limited(channel.declare_queue(name, exclusive=True), ANSWER_TIMEOUT)
                    return name
            except ChannelLockedResource:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.05)
