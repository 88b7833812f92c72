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
from math import ceil
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aio_pika.exceptions import ChannelNotFoundEntity

from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState, jittered
from asignals.relay._envelope import new_id
from asignals.relay._keys import PARTITIONS
from asignals.relay._partitions import InPartition, PartitionWork, Turn
from asignals.relay.engines._rabbitmq_channels import ATTEMPT, close, number

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AsyncExitStack

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle
    from asignals.relay.engines.rabbitmq import RabbitMQ

KEY: Final = "x-asignals-key"
_MARK: Final = ".~"  # between a topic and a partition in a routing key; no topic has it
_TRIP: Final = 5.0  # seconds that an answer may take
_LOOK: Final = 2.0  # seconds between two looks at a partition
_KNOWN: Final = 9.0  # seconds after which RabbitMQ, with heartbeats of 6, may have given us up
_MOST: Final = 2_000  # events of a partition that an instance holds
_REMEMBERED: Final = 10_000

_Place: TypeAlias = "tuple[str, AbstractIncomingMessage]"  # the id, and what to acknowledge
_Item: TypeAlias = "InPartition[_Place]"


def routing_keys(topic: str) -> list[str]:
    """Name the partitions of a topic as events are published to them."""
    return [routing_key(topic, partition) for partition in range(PARTITIONS)]


def routing_key(topic: str, partition: int | str) -> str:
    """Name a partition of a topic as events are published to it."""
    return f"{topic}{_MARK}{partition}"


def topic_of(routing_key: str) -> str:
    """Give the topic of what was published to it or to one of its partitions."""
    return routing_key.partition(_MARK)[0]


def partition_queues(queue: str) -> list[str]:
    """Name the queues of a topic's partitions in a service by that for events without a key."""
    return [f"{queue}#p{partition}" for partition in range(PARTITIONS)]


@dataclass(slots=True, eq=False, kw_only=True)
class _Turn(Turn):
    """One time for which this instance consumes a partition, from opening a channel to closing it."""

    queue: str
    channel: AbstractChannel
    is_active: bool = False  # something has come


class PartitionedConsumer:
    """The part of one running `consume` that is for events with a key."""

    def __init__(  # noqa: PLR0913, PLR0917  parts of one consumer
        self,
        engine: RabbitMQ,
        service: str,
        topics: Sequence[str],
        handle: Handle,
        pool: Pool[Any],
        last: AsyncExitStack,
    ) -> None:
        self._engine = engine
        self._service = service
        self._topics = topics
        self._pool = pool
        self._last = last
        self._is_started = False
        self._work: PartitionWork[_Place] = PartitionWork(handle, pool, self._finish, self._forget)
        self._turns: set[_Turn] = set()
        self._held: dict[str, _Item] = {}
        self._done: dict[str, None] = {}  # handled, but RabbitMQ could not be told

    def start(self) -> None:
        """Consume from all partitions, until the pool is left; harmless when they are being consumed from."""
        if self._is_started:
            return
        self._is_started = True
        for topic in self._topics:
            for queue in partition_queues(self._engine._queue(self._service, topic)):
                self._pool.start(self._consume_for_ever(topic, queue))

    async def _consume_for_ever(self, topic: str, queue: str) -> None:
        state = ConnectionState(f"consuming from {queue!r} of {self._engine.connection_state.name}")
        attempts = Attempts(state)
        self._engine.partitions.add(state)
        try:
            while True:
                async with attempts:
                    try:
                        await self._consume(topic, queue, attempts)
                    except ChannelNotFoundEntity:
                        await self._engine.add_service(self._service, [topic])
        finally:
            self._engine.partitions.discard(state)

    async def _consume(self, topic: str, queue: str, attempts: Attempts) -> None:
        """Consume from one partition until it is better handed on; raises when its channel is lost."""
        line = await self._engine._open()
        with self._engine._giving_up(line):
            channel = await limited(line.connection.channel(publisher_confirms=False), _TRIP)
            turn = _Turn(topic, queue=queue, channel=channel)
            channel.close_callbacks.add(lambda *_: self._end(turn))
            self._turns.add(turn)
            try:
                await limited(self._subscribe(turn), _TRIP)
                attempts.succeeded()
                while not await self._is_to_be_handed_on(turn):
                    turn.changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(jittered(_LOOK)):
                            while not (turn.is_over or turn.is_unable):
                                await turn.changed.wait()
                                turn.changed.clear()
            finally:
                self._end(turn)
                if self._pool.is_leaving:  # what has just been handled can still be acknowledged
                    self._last.push_async_callback(close, channel)
                else:
                    await close(channel)

    async def _subscribe(self, turn: _Turn) -> None:
        await turn.channel.set_qos(prefetch_count=_MOST)
        queue = await turn.channel.get_queue(turn.queue, ensure=False)
        await queue.consume(self._taker(turn), no_ack=False)

    def _end(self, turn: _Turn) -> None:
        """Begin nothing more of what came by a channel."""
        self._turns.discard(turn)
        self._work.end(turn)

    async def _is_to_be_handed_on(self, turn: _Turn) -> bool:
        """See that RabbitMQ still counts on us; tell whether another instance is to have the partition."""
        if turn.is_over:
            raise ConnectionError(f"RabbitMQ closed the channel of {turn.queue!r}")
        asked = time.monotonic()
        await limited(turn.channel.declare_queue(turn.queue, passive=True), _TRIP)
        turn.until = asked + _KNOWN
        # Of a queue with a single active consumer RabbitMQ counts that one only.
        beside = self._engine._queue(self._service, turn.topic)
        found = await limited(turn.channel.declare_queue(beside, passive=True), _TRIP)
        instances = found.declaration_result.consumer_count or 1
        mine = sum(one.is_active and one.topic == turn.topic for one in self._turns)
        is_too_much = turn.is_active and mine > ceil(PARTITIONS / instances)
        is_unable, turn.is_unable = turn.is_unable, False
        return instances > 1 and (is_too_much or is_unable) and await self._work.is_idle_soon(turn)

    def _taker(self, turn: _Turn) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def arrived(message: AbstractIncomingMessage) -> None:
            await self._take(turn, message)

        return arrived

    async def _take(self, turn: _Turn, message: AbstractIncomingMessage) -> None:
        turn.is_active = True
        id_ = message.message_id or new_id()
        held = self._held.get(id_)
        if held is not None and held.turn is turn:
            await self._acknowledge(id_, message)  # a second copy: the first is here, and still unacknowledged
            return
        key: Any = (message.headers or {}).get(KEY, "")
        attempt = number(message, ATTEMPT, 1) + number(message, "x-delivery-count", 0)
        item = self._held[id_] = InPartition(turn, str(key), (id_, message), message.body, attempt)
        self._work.add(item)

    async def work(self, item: _Item) -> None:
        """Handle one event, unless its partition may be another instance's by now."""
        if item.place[0] in self._done and not item.turn.is_over:  # its channel was lost before it was acknowledged
            del self._done[item.place[0]]
            await self._acknowledge(*item.place)
            self._work.skip(item)
            return
        await self._work.work(item)

    async def _finish(self, item: _Item) -> None:
        await self._acknowledge(*item.place)

    def _forget(self, item: _Item) -> None:
        if self._held.get(item.place[0]) is item:
            del self._held[item.place[0]]

    async def _acknowledge(self, id_: str, message: AbstractIncomingMessage) -> None:
        try:
            await message.ack()
        except Exception:  # noqa: BLE001  the channel is lost; RabbitMQ delivers it again
            self._done[id_] = None
            if len(self._done) > _REMEMBERED:  # those that it gave to another instance
                del self._done[next(iter(self._done))]
