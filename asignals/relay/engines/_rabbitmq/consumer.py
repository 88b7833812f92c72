"""One running `consume` on RabbitMQ: events from the queues of the topics, over the loss of connections."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from aio_pika.exceptions import ChannelNotFoundEntity

from asignals.masking import said
from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import new_id
from asignals.relay._partitions import InPartition
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery, Release, delay_of
from asignals.relay.engines._rabbitmq.channels import (
    ANSWER_TIMEOUT,
    IDLE,
    Acknowledgements,
    Closing,
    ConsumerEndedError,
    attempt_of,
    check_consuming,
    close,
    number,
)
from asignals.relay.engines._rabbitmq.partitions import PartitionedConsumer
from asignals.relay.engines._rabbitmq.queues import DUE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

    from asignals.relay._transport import Handle
    from asignals.relay.engines._rabbitmq.services import Services

logger: logging.Logger = logging.getLogger("asignals.relay")

_LEAST: Final = 200  # events that a consumer may hold at least
MOST_HELD: Final = 60_000  # and at most: RabbitMQ counts them in 16 bits
_GROW: Final = 0.25  # seconds between two looks at whether a consumer must hold more
WATCH: Final = 5.0  # seconds between two looks at whether the queue is still there
_SOON: Final = 0.25  # seconds until a retry for which it is kept here


@dataclass(slots=True)
class _Held:
    """An event that is here, and how to acknowledge it: on the channel on which it came last."""

    topic: str
    message: AbstractIncomingMessage
    channel: AbstractChannel
    attempt: int


class Consumer:
    """Handles the events without a key itself; those with one are the matter of a `PartitionedConsumer`."""

    def __init__(self, services: Services, service: str, topics: Sequence[str], handle: Handle, limit: int) -> None:
        self.held: dict[str, _Held] = {}
        self.pool: Pool[str | InPartition[Any]] = Pool(self._work, limit)
        self._services = services
        self._connection = services.connection
        self._service = service
        self._topics = topics
        self._handle = handle
        self._limit = limit
        self._acknowledgements = Acknowledgements()
        self._arrived: dict[str, float] = {}  # when something of a topic has come last, or could come
        self._last = AsyncExitStack()  # what is closed when the pool has ended, and has acknowledged what it has done
        self._partitioned = PartitionedConsumer(services, service, topics, handle, self.pool, self._last)

    async def run(self) -> None:
        """Consume until cancelled."""
        attempts = Attempts(self._connection.state)
        async with self._last, AsyncExitStack() as channels, self.pool:
            self.pool.start(self._keep_bound())
            while True:
                async with attempts:
                    await channels.aclose()
                    await self._services.add(self._service, self._topics)
                    made = self._services.times_made(self._service, self._topics)
                    self._partitioned.start()
                    while True:
                        await self._consume(channels, attempts, made)
                        await channels.aclose()

    async def _consume(self, channels: AsyncExitStack, attempts: Attempts, made: int) -> None:
        """Put the events of one channel into the pool until no more can come, and raise why.

        Returns when nothing of a topic has come for a while, and nothing is here.
        """
        opened = await self._connection.open()
        with self._connection.giving_up(opened):
            channel = await limited(opened.connection.channel(publisher_confirms=False), ANSWER_TIMEOUT)
            channels.push_async_callback(close, channel)
            closing = Closing(channel)
            holds = max(self._limit * 4, _LEAST)
            tags = await limited(self._subscribe(channel, holds), ANSWER_TIMEOUT)
            attempts.succeeded()
            looked = time.monotonic()
            self._arrived = dict.fromkeys(self._topics, looked)
            while True:
                await closing.wait(_GROW)
                if self._services.times_made(self._service, self._topics) > made:
                    raise ConsumerEndedError(f"the queues of {self._service!r} were deleted, and are made again")
                for queue, tag in tags:
                    await check_consuming(channel, queue.name, tag)
                if self._must_hold_more(holds):
                    holds = min(MOST_HELD, self.pool.parked + max(self._limit * 8, _LEAST * 2))
                    tags = await self._subscribe_again(channel, holds, tags)
                if time.monotonic() - min(self._arrived.values()) > IDLE and not self.held:
                    await self._unsubscribe(tags)
                    if not self.held:
                        return
                    tags = await limited(self._subscribe(channel, holds), ANSWER_TIMEOUT)
                if time.monotonic() - looked > WATCH:  # a queue that goes ends its consumers without an error
                    looked = time.monotonic()
                    for queue, _ in tags:
                        await limited(channel.declare_queue(queue.name, passive=True), ANSWER_TIMEOUT)
                    await self._services.ensure_bound(again=True)

    async def _keep_bound(self) -> None:
        """Bind the queues of one topic after the other again, until cancelled."""
        state = ConnectionState(f"binding the queues of {self._service!r} in {self._connection.state.name}")
        attempts = Attempts(state)
        self._connection.parts.add(state)
        try:
            for topic in cycle(self._topics):
                await asyncio.sleep(WATCH)
                if self._connection.state.is_up:
                    async with attempts:
                        with suppress(ChannelNotFoundEntity):  # who consumes from the queue makes it again
                            await self._services.bind_again(self._service, topic)
        finally:
            self._connection.parts.discard(state)

    def _must_hold_more(self, holds: int) -> bool:
        """Whether the events that wait for others of their key leave too little capacity."""
        return self.pool.parked > holds - max(self._limit * 2, _LEAST // 2) and holds < MOST_HELD

    async def _subscribe(self, channel: AbstractChannel, holds: int) -> list[tuple[AbstractQueue, str]]:
        """Consume from the queue of each topic, and hold so many events of all of them at most."""
        tags = []
        await channel.set_qos(prefetch_count=max(1, holds // len(self._topics)))
        for topic in self._topics:
            queue = await channel.get_queue(self._services.queues.of(self._service, topic), ensure=False)
            tags.append((queue, await queue.consume(partial(self._take, topic, channel), no_ack=False)))
        return tags

    async def _subscribe_again(
        self, channel: AbstractChannel, holds: int, before: list[tuple[AbstractQueue, str]]
    ) -> list[tuple[AbstractQueue, str]]:
        tags = await limited(self._subscribe(channel, holds), ANSWER_TIMEOUT)
        await self._unsubscribe(before)
        return tags

    async def _unsubscribe(self, tags: list[tuple[AbstractQueue, str]]) -> None:
        for queue, tag in tags:
            await limited(queue.cancel(tag), ANSWER_TIMEOUT)

    async def _take(self, topic: str, channel: AbstractChannel, message: AbstractIncomingMessage) -> None:
        self._arrived[topic] = time.monotonic()
        id_ = message.message_id or new_id()  # no tag: those of the next connection begin again
        if await self._acknowledgements.acknowledge_again(id_, message):
            return
        item = self.held.get(id_)
        if item is not None:
            if item.channel is channel:  # a second copy: the first is here, and still unacknowledged
                await self._acknowledgements.acknowledge(id_, message)
            else:
                item.message, item.channel = message, channel  # one was lost meanwhile; it is being handled
            return
        item = self.held[id_] = _Held(topic, message, channel, attempt_of(message))
        due = number(message, DUE, 0) / 1000
        if due > time.time():
            await self._retry(id_, item, due, here=True)
        else:
            self.pool.put(id_)

    async def _work(self, id_: str | InPartition[Any]) -> None:
        if isinstance(id_, InPartition):
            await self._partitioned.work(id_)
            return
        item = self.held[id_]
        delivery = Delivery(item.topic, item.message.body, item.attempt, item.attempt > 1, self.pool.park)
        outcome = await self._handle(delivery)
        if outcome is None:
            del self.held[id_]
            await self._acknowledgements.acknowledge(id_, item.message)
        else:
            item.attempt += 1
            await self._retry(id_, item, time.time() + delay_of(outcome), here=not isinstance(outcome, Release))

    async def _retry(self, id_: str, item: _Held, due: float, *, here: bool) -> None:
        """Have an event come again when it is due: to whoever is there then, or, where that is soon, here."""
        left = due - time.time()
        if (left > _SOON or not here) and await self._is_postponed(item, due):
            del self.held[id_]
            with suppress(Exception):  # the connection is lost: it is delivered again, as the engine promises
                await item.message.ack()
            return
        asyncio.get_running_loop().call_later(max(0.0, left), self.pool.put, id_)

    async def _is_postponed(self, item: _Held, due: float) -> bool:
        """Leave a retry to RabbitMQ; tells whether that took it."""
        queues = self._services.queues
        try:
            await queues.postpone(queues.of(self._service, item.topic), item.message, item.attempt, due)
        except Exception as error:  # noqa: BLE001  then it waits here, unacknowledged
            logger.warning("a retry waits in this process, as RabbitMQ did not take it (%s)", said(error))
            return False
        return True
