"""An engine inside one process, for tests and for trying things out: nothing survives the process."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from asignals.relay._envelope import check_name
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay._envelope import DeadLetter, Envelope
    from asignals.relay._transport import Handle

_KEPT = 10_000


class _Item:
    __slots__ = ("attempt", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.attempt = 0


class _Service:
    """The events that one service has not acknowledged."""

    def __init__(self, kept: Sequence[bytes]) -> None:
        self.waiting = deque(_Item(data) for data in kept)
        self.open = len(self.waiting)
        self.arrived = asyncio.Event()

    def offer(self, item: _Item) -> None:
        self.waiting.append(item)
        self.arrived.set()

    async def take(self) -> _Item:
        while not self.waiting:
            self.arrived.clear()
            await self.arrived.wait()
        return self.waiting.popleft()


class Memory:
    """Carries events between the relays of one process that share this object; one event loop only.

    The same event id is taken once. A service that consumes for the first time gets the last 10,000 events too.
    """

    def __init__(self) -> None:
        self._kept: deque[bytes] = deque(maxlen=_KEPT)
        self._ids: dict[str, None] = {}
        self._services: dict[str, _Service] = {}
        self._dead: dict[str, list[DeadLetter]] = {}

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Hand the events to all services."""
        for envelope in envelopes:
            if envelope.id in self._ids:
                continue
            data = envelope.encode()
            self._ids[envelope.id] = None
            if len(self._ids) > _KEPT:
                del self._ids[next(iter(self._ids))]
            self._kept.append(data)
            for service in self._services.values():
                service.open += 1
                service.offer(_Item(data))

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service; events that are not done when cancelled go back to the front."""
        check_name("instance", instance)
        shared = self._service(service)
        loop = asyncio.get_running_loop()
        held: dict[_Item, None] = {}

        async def work(item: _Item) -> None:
            delay = await handle(Delivery(item.data, item.attempt))
            del held[item]
            if delay is None:
                shared.open -= 1
            else:
                loop.call_later(delay, shared.offer, item)

        try:
            async with Pool(work, limit) as pool:
                while True:
                    await pool.until_below(limit)
                    item = await shared.take()
                    item.attempt += 1
                    held[item] = None
                    pool.put(item)
        finally:
            shared.waiting.extendleft(reversed(held))
            shared.arrived.set()

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter."""
        self._dead.setdefault(queue, []).append(letter)

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters."""
        return self._dead.get(queue, [])[:limit]

    async def remove(self, queue: str, letter: DeadLetter) -> None:
        """Remove a letter."""
        self._dead[queue] = [other for other in self._dead.get(queue, []) if other is not letter]

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        return self._service(service).open

    def _service(self, name: str) -> _Service:
        if name not in self._services:
            self._services[check_name("service", name)] = _Service(self._kept)
        return self._services[name]
