"""Order by key in RabbitMQ: partitions, each a queue with a single active consumer.

Events with a key are in one of `PARTITIONS` queues for each topic of a service, by a checksum of the key. RabbitMQ
gives the events of such a queue to one of its consumers, in order, and to the next one when that is gone, beginning
with what was not acknowledged. A retry stays with its instance, unacknowledged.

RabbitMQ makes the first consumer the active one and leaves it at that. So an instance that has more partitions than its
share closes one's channel when nothing runs there, and gets at the end of the line.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aio_pika.exceptions import ChannelNotFoundEntity

from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState, jittered
from asignals.relay._envelope import new_id
from asignals.relay._keys import PARTITIONS
from asignals.relay._partitions import InPartition, PartitionWork, Turn
from asignals.relay.engines._rabbitmq.channels import (
    ANSWER_TIMEOUT,
    IDLE,
    Acknowledgements,
    ConsumerEndedError,
    attempt_of,
    check_consuming,
    close,
)
from asignals.relay.engines._rabbitmq.queues import partition_queues

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle
    from asignals.relay.engines._rabbitmq.services import Services

KEY: Final = "x-asignals-key"
_LOOK: Final = 2.0  # seconds between two looks at a partition
_KNOWN: Final = 9.0  # seconds after which RabbitMQ, with heartbeats of 6, may have given us up
_MOST: Final = 2_000  # events of a partition that an instance holds

_Place: TypeAlias = "tuple[str, AbstractIncomingMessage]"  # the id, and what to acknowledge
_Item: TypeAlias = "InPartition[_Place]"


@dataclass(slots=True, eq=False, kw_only=True)
class _Turn(Turn):
    """One time for which this instance consumes a partition, from opening a channel to closing it."""

    queue: str
    channel: AbstractChannel
    made: int  # how often the queue was
    is_active: bool = False  # something has come
    arrived: float = 0.0  # when something has come last, or could come
    tag: str = ""


class PartitionedConsumer:
    """The part of one running `consume` that is for events with a key."""

    def __init__(  # noqa: PLR0913, PLR0917  parts of one consumer
        self,
        services: Services,
        service: str,
        topics: Sequence[str],
        handle: Handle,
        pool: Pool[Any],
        last: AsyncExitStack,
    ) -> None:
        self._services = services
        self._queues = services.queues
        self._connection = services.connection
        self._service = service
        self._topics = topics
        self._pool = pool
        self._last = last
        self._is_started = False
        self._work: PartitionWork[_Place] = PartitionWork(handle, pool, self._finish, self._forget)
        self._turns: set[_Turn] = set()
        self._held: dict[str, _Item] = {}
        self._acknowledgements = Acknowledgements()

    def start(self) -> None:
        """Consume from all partitions, until the pool is left; harmless when they are being consumed from."""
        if self._is_started:
            return
        self._is_started = True
        for topic in self._topics:
            for queue in partition_queues(self._queues.of(self._service, topic)):
                self._pool.start(self._consume_for_ever(topic, queue))

    async def _consume_for_ever(self, topic: str, queue: str) -> None:
        state = ConnectionState(f"consuming from {queue!r} of {self._connection.state.name}")
        attempts = Attempts(state)
        self._connection.parts.add(state)
        try:
            while True:
                async with attempts:
                    try:
                        await self._consume(topic, queue, attempts)
                    except (ChannelNotFoundEntity, ConsumerEndedError):
                        await self._services.add(self._service, [topic])
        finally:
            self._connection.parts.discard(state)

    async def _consume(self, topic: str, queue: str, attempts: Attempts) -> None:
        """Consume from one partition until it is better handed on; raises when its channel is lost."""
        opened = await self._connection.open()
        with self._connection.giving_up(opened):
            channel = await limited(opened.connection.channel(publisher_confirms=False), ANSWER_TIMEOUT)
            made = self._services.times_made(self._service, [topic])
            turn = _Turn(topic, queue=queue, channel=channel, made=made)
            channel.close_callbacks.add(lambda *_: self._end(turn))
            self._turns.add(turn)
            try:
                await limited(self._subscribe(turn), ANSWER_TIMEOUT)
                attempts.succeeded()
                while not await self._is_to_be_handed_on(turn):
                    await _until_next_look(turn)
            finally:
                self._end(turn)
                if self._pool.is_leaving:  # what has just been handled can still be acknowledged
                    self._last.push_async_callback(close, channel)
                else:
                    await close(channel)

    async def _subscribe(self, turn: _Turn) -> None:
        await turn.channel.set_qos(prefetch_count=_MOST)
        queue = await turn.channel.get_queue(turn.queue, ensure=False)
        turn.arrived = time.monotonic()
        turn.tag = await queue.consume(partial(self._take, turn), no_ack=False)

    def _end(self, turn: _Turn) -> None:
        """Begin nothing more of what came by a channel."""
        self._turns.discard(turn)
        self._work.end(turn)

    async def _is_to_be_handed_on(self, turn: _Turn) -> bool:
        """See that RabbitMQ still counts on us; tell whether another instance, or another channel, is to have it."""
        if turn.is_over:
            raise ConnectionError(f"RabbitMQ closed the channel of {turn.queue!r}")
        await check_consuming(turn.channel, turn.queue, turn.tag)
        if self._services.times_made(self._service, [turn.topic]) > turn.made:
            raise ConsumerEndedError(f"{turn.queue!r} was deleted, and is made again")
        asked = time.monotonic()
        await limited(turn.channel.declare_queue(turn.queue, passive=True), ANSWER_TIMEOUT)
        turn.until = asked + _KNOWN
        if not turn.given and asked - turn.arrived > IDLE:
            return True
        # Of a queue with a single active consumer RabbitMQ counts that one only.
        beside = self._queues.of(self._service, turn.topic)
        found = await limited(turn.channel.declare_queue(beside, passive=True), ANSWER_TIMEOUT)
        instances = found.declaration_result.consumer_count or 1
        mine = sum(one.is_active and one.topic == turn.topic for one in self._turns)
        is_too_much = turn.is_active and mine > ceil(PARTITIONS / instances)
        is_unable, turn.is_unable = turn.is_unable, False
        return instances > 1 and (is_too_much or is_unable) and await self._work.is_idle_soon(turn)

    async def _take(self, turn: _Turn, message: AbstractIncomingMessage) -> None:
        turn.is_active, turn.arrived = True, time.monotonic()
        id_ = message.message_id or new_id()
        held = self._held.get(id_)
        if held is not None and held.turn is turn:
            await self._acknowledgements.acknowledge(
                id_, message
            )  # a second copy: the first is here, and still unacknowledged
            return
        key: Any = (message.headers or {}).get(KEY, "")
        item = self._held[id_] = InPartition(turn, str(key), (id_, message), message.body, attempt_of(message))
        self._work.add(item)

    async def work(self, item: _Item) -> None:
        """Handle one event, unless its partition may be another instance's by now."""
        # Its channel was lost before it was acknowledged.
        if not item.turn.is_over and await self._acknowledgements.acknowledge_again(*item.place):
            self._work.skip(item)
            return
        await self._work.work(item)

    async def _finish(self, item: _Item) -> None:
        await self._acknowledgements.acknowledge(*item.place)

    def _forget(self, item: _Item) -> None:
        if self._held.get(item.place[0]) is item:
            del self._held[item.place[0]]


async def _until_next_look(turn: _Turn) -> None:
    """Wait until a partition is over, or another instance should have it, or it is time to look."""
    turn.changed.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(jittered(_LOOK)):
            while not (turn.is_over or turn.is_unable):
                await turn.changed.wait()
                turn.changed.clear()
