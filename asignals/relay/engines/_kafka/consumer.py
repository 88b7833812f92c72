"""One running `consume` on Kafka: many events at once, of each key one."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException

from asignals.relay._key_queues import KeyQueues
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery, delay_of
from asignals.relay.engines._kafka.clients import POLL, in_thread, key_of, place_of
from asignals.relay.engines._kafka.offsets import MOST_HELD, Offsets

if TYPE_CHECKING:
    from confluent_kafka import Message

    from asignals.relay._connection_state import ConnectionState
    from asignals.relay._transport import Handle
    from asignals.relay.engines._kafka.member import Member, Place

_COMMIT: Final = 0.5  # seconds between two commits


@dataclass(slots=True, eq=False)
class _Held:
    """An event that is here."""

    data: bytes
    place: Place
    offset: int
    offsets: Offsets
    key: bytes | None
    attempt: int = 1

    @property
    def queue(self) -> tuple[Offsets, bytes] | None:
        """The queue of the events of its key."""
        return None if self.key is None else (self.offsets, self.key)


class Consumer:
    """Handles what a member of a group is given; `topics` are those of the relay by those of Kafka.

    `away` is how many seconds without a poll there may be before the group gives the partitions to others.
    """

    def __init__(  # noqa: PLR0913  what `consume` was called with
        self,
        member: Member,
        state: ConnectionState,
        topics: dict[str, str],
        handle: Handle,
        *,
        limit: int,
        away: float,
    ) -> None:
        self._member = member
        self._state = state
        self._topics = topics
        self._handle = handle
        self._limit = limit
        self._away = away
        self._polled = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "asignals-kafka")
        self._pool: Pool[_Held] = Pool(self._work, limit)
        self._queues: KeyQueues[_Held] = KeyQueues(self._pool.put)

    async def run(self) -> None:
        """Consume until cancelled."""
        try:
            async with self._pool:
                self._member.join(self._topics)
                await self._read_for_ever()
        finally:
            await in_thread(self._member.leave, self._thread)
            self._thread.shutdown(wait=False)

    async def _work(self, item: _Held) -> None:
        if item.key is not None:
            await self._until_ours(item)
        if item.offsets.is_over:  # the partition was taken away, and whoever has it now is given the event, too
            self._queues.done(item.queue)
            return
        outcome = await self._handle_one(item)
        if outcome is None:
            self._member.finish(item.place, item.offsets, item.offset)
            self._queues.done(item.queue)
        else:
            item.attempt += 1
            asyncio.get_running_loop().call_later(outcome, self._pool.put, item)

    async def _handle_one(self, item: _Held) -> float | None:
        item.offsets.running += 1
        item.offsets.in_order += item.key is not None
        is_repeat = item.attempt > 1 or item.offsets.may_be_repeat(item.offset)
        delivery = Delivery(self._topics[item.place[0]], item.data, item.attempt, is_repeat, self._pool.park)
        try:
            outcome = await self._handle(delivery)
        finally:
            item.offsets.running -= 1
            item.offsets.in_order -= item.key is not None
        return None if outcome is None else delay_of(outcome)

    async def _until_ours(self, item: _Held) -> None:
        """Wait while it is not known whether the group still counts on us: this process may have been frozen."""
        while self._was_away and not item.offsets.is_over:  # noqa: ASYNC110  a thread finds it out
            await asyncio.sleep(POLL)

    @property
    def _was_away(self) -> bool:
        return time.monotonic() - self._polled > self._away

    @property
    def _is_full(self) -> bool:
        held = sum(map(len, self._member.partitions.values()))
        return len(self._pool) >= self._limit * 2 or held >= MOST_HELD

    async def _read_for_ever(self) -> None:
        committed = 0.0
        loop = asyncio.get_running_loop()
        while True:
            polling = partial(self._member.poll, self._limit * 2, is_full=self._is_full)
            messages = await in_thread(polling, self._thread)
            if not self._was_away or await in_thread(self._member.is_member, self._thread):
                self._polled = time.monotonic()
            for message in messages:
                self._take(message)
            if loop.time() - committed > _COMMIT:
                committed = loop.time()
                await in_thread(self._member.commit_soon, self._thread)

    def _take(self, message: Message) -> None:
        if message.error():
            self._state.lost(KafkaException(message.error()))
            return
        self._member.heard()
        number, offset = place_of(message)
        place = message.topic() or "", number
        offsets = self._member.partitions.setdefault(place, Offsets())
        offsets.take(offset)
        held = _Held(message.value() or b"", place, offset, offsets, key_of(message))
        self._queues.add(held.queue, held)
