"""An engine inside one process, for tests and for trying things out: nothing survives the process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from asignals.relay._envelope import check_name
from asignals.relay._inbox import MemoryInbox
from asignals.relay._monitoring.figures import TopicFigures, backlog_of
from asignals.relay._places import Address, Server
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery, delay_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence

    from asignals.relay._envelope import DeadLetter, Envelope
    from asignals.relay._transport import Handle, Hear

_KEPT = 10_000


class _Item:
    __slots__ = ("attempt", "data", "key", "place", "time", "topic")

    def __init__(self, place: int, envelope: Envelope, data: bytes) -> None:
        self.place = place  # topics that are received together keep the order in which they were published
        self.topic = envelope.topic
        self.time = envelope.time
        self.key = envelope.key
        self.data = data
        self.attempt = 0


class _Service:
    """The events that one service has not acknowledged, by topic; those behind another one of their key are apart."""

    def __init__(self) -> None:
        self.waiting: dict[str, deque[_Item]] = {}
        self.behind: dict[tuple[str, str], deque[_Item]] = {}  # of each key that is not done, what follows
        self.held: set[_Item] = set()
        self.due: set[_Item] = set()  # that wait for their retry
        self.instances: Counter[str] = Counter()  # by topic
        self.arrived: deque[asyncio.Event] = deque()

    def add(self, item: _Item) -> None:
        """Offer a new event, or have it wait for those of its key that came before."""
        if item.key is not None:
            if (behind := self.behind.get((item.topic, item.key))) is not None:
                behind.append(item)
                return
            self.behind[item.topic, item.key] = deque()
        self.offer(item)

    def done(self, item: _Item) -> None:
        """Offer the next event of the key, now that one is acknowledged."""
        if item.key is None or (behind := self.behind.get((item.topic, item.key))) is None:
            return
        if behind:
            self.offer(behind.popleft())
        else:
            del self.behind[item.topic, item.key]

    def forget(self, topic: str) -> None:
        """Drop what waits of a topic."""
        self.waiting.pop(topic, None)
        self.behind = {key: behind for key, behind in self.behind.items() if key[0] != topic}
        self.due = {item for item in self.due if item.topic != topic}

    def offer(self, item: _Item) -> None:
        if item.topic in self.waiting:
            self.waiting[item.topic].append(item)
            self.wake()

    def postpone(self, item: _Item, delay: float) -> None:
        self.due.add(item)
        asyncio.get_running_loop().call_later(delay, self._offer_again, item)

    def _offer_again(self, item: _Item) -> None:
        self.due.discard(item)
        self.offer(item)

    def figures(self, name: str, topic: str) -> TopicFigures:
        held, due = ([item for item in items if item.topic == topic] for items in (self.held, self.due))
        behind = [item for key, items in self.behind.items() if key[0] == topic for item in items]
        there = [*self.waiting.get(topic, ()), *held, *due, *behind]
        age = time.time() - min(item.time for item in there) if there else 0.0
        return TopicFigures(name, topic, len(there), max(0.0, age), len(held), len(due), self.instances[topic])

    def give_back(self, items: Iterable[_Item]) -> None:
        for item in items:
            if item.topic in self.waiting:
                self.waiting[item.topic].appendleft(item)
        self.wake()

    def wake(self) -> None:
        self.arrived.rotate()  # so that what one instance gives back comes to another one
        for event in self.arrived:
            event.set()

    def take(self, topics: Collection[str]) -> _Item | None:
        waiting = [items for topic in topics if (items := self.waiting.get(topic))]
        return min(waiting, key=lambda items: items[0].place).popleft() if waiting else None


class Memory:
    """Carries events between the relays of one process that share this object; one event loop only.

    The same event id is taken once. A service that receives a topic for the first time gets those of the last 10,000
    events that are of it.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Envelope, bytes]] = deque(maxlen=_KEPT)
        self._places = count()
        self._listeners: dict[object, tuple[Collection[str], Hear]] = {}
        self._ids: dict[str, None] = {}
        self._services: dict[str, _Service] = {}
        self._dead: dict[str, list[DeadLetter]] = {}

    def inbox(self) -> MemoryInbox:
        """Give one that forgets with the process, as this engine does."""
        return MemoryInbox()

    # -- publishing ------------------------------------------------------------------------------------------------

    def servers(self) -> list[Server]:
        """List none."""
        return []

    def address(self, topic: str) -> Address:
        """Give the topic itself."""
        return Address(check_name("topic", topic))

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Hand the events to all services that receive their topics."""
        for envelope in envelopes:
            if envelope.id in self._ids:
                continue
            kept = next(self._places), envelope, envelope.encode()
            self._ids[envelope.id] = None
            if len(self._ids) > _KEPT:
                del self._ids[next(iter(self._ids))]
            self._kept.append(kept)
            for service in self._services.values():
                if envelope.topic in service.waiting:
                    service.add(_Item(*kept))
            for topics, hear in list(self._listeners.values()):
                if envelope.topic in topics:
                    hear(Delivery(envelope.topic, kept[2]))

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event; those that are not done when cancelled go back to the front of their topics."""
        check_name("instance", instance)
        await self.add_service(service, topics)
        shared = self._services[service]
        held: dict[_Item, None] = {}
        arrived = asyncio.Event()
        pool: Pool[_Item]

        async def work(item: _Item) -> None:
            outcome = await handle(Delivery(item.topic, item.data, item.attempt, item.attempt > 1, pool.park))
            del held[item]
            shared.held.discard(item)
            if outcome is None:
                shared.done(item)
            else:
                item.place = next(self._places)
                shared.postpone(item, delay_of(outcome))

        shared.arrived.append(arrived)
        shared.instances.update(topics)
        try:
            pool = Pool(work, limit)
            async with pool:
                while True:
                    await pool.until_below(limit)
                    arrived.clear()
                    item = shared.take(topics)
                    if item is None:
                        await arrived.wait()
                        continue
                    item.attempt += 1
                    held[item] = None
                    shared.held.add(item)
                    pool.put(item)
        finally:
            shared.arrived.remove(arrived)
            shared.instances.subtract(topics)
            shared.held.difference_update(held)
            shared.give_back(reversed(held))

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics, as it is published."""
        key = object()
        self._listeners[key] = topics, hear
        try:
            begun()
            await asyncio.Event().wait()  # until cancelled
        finally:
            del self._listeners[key]

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service, beginning with those that are still there."""
        shared = self._services.setdefault(check_name("service", service), _Service())
        for topic in topics:
            if check_name("topic", topic) not in shared.waiting:
                shared.waiting[topic] = deque()
                for kept in self._kept:
                    if kept[1].topic == topic:
                        shared.add(_Item(*kept))

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Drop what waits for a service."""
        if (shared := self._services.get(service)) is None:
            return
        for topic in list(shared.waiting) if topics is None else topics:
            shared.forget(topic)
        if not shared.waiting:
            del self._services[service]

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits, by service and topic."""
        return [
            shared.figures(name, topic)
            for name, shared in sorted(self._services.items())
            for topic in sorted(shared.waiting)
            if service in (None, name) and (topics is None or topic in topics)
        ]

    # -- dead letters ----------------------------------------------------------------------------------------------

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter."""
        self._dead.setdefault(queue, []).append(replace(letter, position=str(next(self._places))))

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        return len(self._dead.get(queue, []))

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        letters = list(self._dead.get(queue, []))
        for start in range(0, len(letters), batch):
            yield letters[start : start + batch]

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters."""
        gone = {letter.position for letter in letters}
        self._dead[queue] = [letter for letter in self._dead.get(queue, []) if letter.position not in gone]
