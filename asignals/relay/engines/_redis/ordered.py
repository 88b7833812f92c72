"""Order by key in Redis: of each key one event is handled at a time, by whichever instance.

Events with a key have their own stream for each topic. A group reads it by a script, which gives the first event
of each key to an instance, for the time of a lease, and lets those behind it wait; acknowledging gives the next one.
All of it is in Redis, and each step is one script, so there is nothing that an instance could take along when it dies.
What an instance says of an event that is not its own any more does not count.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from asignals.relay._cancel import end
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._transport import Delivery, delay_of
from asignals.relay.engines._redis.connection import ANSWER_TIMEOUT, BLOCK
from asignals.relay.engines._redis.order_scripts import DONE, POSTPONE, RENEW, TAKE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay._batch import Batch
    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle
    from asignals.relay.engines._redis.connection import RedisConnection
    from asignals.relay.engines._redis.services import Services


@dataclass(slots=True, eq=False)
class HeldInOrder:
    """The event of a key that this instance has."""

    topic: str
    key: bytes
    id: bytes
    attempt: int
    data: bytes
    until: float  # of this machine's clock: then the lease may have ended


@dataclass(slots=True)
class OrderedConsumer:
    """The part of one running `consume` that is for events with a key."""

    connection: RedisConnection
    services: Services
    service: str
    topics: Sequence[str]
    handle: Handle
    limit: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))  # another one each time: what was before is over
    held: set[HeldInOrder] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    is_leaving: bool = False

    async def work(self, item: HeldInOrder, pool: Pool[Any], done: Batch[tuple[HeldInOrder, float | None]]) -> None:
        """Handle one event, unless this instance was frozen or cut off and another one may have it."""
        if time.monotonic() > item.until:
            self.held.discard(item)
            return
        outcome = await self.handle(Delivery(item.topic, item.data, item.attempt, item.attempt > 1, pool.park))
        self.held.discard(item)
        done.add((item, None if outcome is None else delay_of(outcome)))

    async def take_for_ever(self, pool: Pool[Any]) -> None:
        """Take what is there, and what comes, as far as there is capacity."""
        attempts = Attempts(self.connection.state)
        reading: asyncio.Task[None] | None = None
        try:
            while True:
                await pool.until_below(self.limit * 2)
                async with attempts:
                    self.wake.clear()
                    count, pause, ends = await self._take(pool)
                    if count:
                        continue
                    if reading is None or reading.done():
                        if reading is not None:
                            reading.result()
                        reading = asyncio.get_running_loop().create_task(self._until_more(ends))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self.wake.wait()
        finally:
            if reading is not None:
                await end([reading])

    async def _take(self, pool: Pool[Any]) -> tuple[int, float, dict[str, bytes]]:
        """Take events; tells how many, for how long nothing is due otherwise, and where the streams end."""
        taken, pause, ends = 0, BLOCK, {}
        for topic in self.topics:
            room = max(1, self.limit * 2 - len(pool))
            until = time.monotonic() + self.connection.lease
            try:
                given, due, last = await self._script(TAKE, topic, room)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self.services.add(self.service, [topic])  # the first time, and after FLUSHALL
                return 1, 0.0, {}
            taken += len(given)
            self.put(pool, topic, given, until)
            if due >= 0:
                pause = min(pause, due / 1000)
            ends[self.connection.keys.keyed_stream(topic)] = last
        return taken, pause, ends

    def put(self, pool: Pool[Any], topic: str, given: list[Any], until: float) -> None:
        """Have events handled that a script has given to this instance."""
        for key, id_, attempt, data in given:
            item = HeldInOrder(topic, key, id_, attempt, data, until)
            self.held.add(item)
            pool.put(item)

    async def _until_more(self, ends: dict[str, bytes]) -> None:
        """Wake when events come after some ids, or after a second."""
        try:
            since: Any = dict(ends)
            reading = self.connection.client().xread(since, 1, int(BLOCK * 1000))
            await self.connection.ask(reading, BLOCK + ANSWER_TIMEOUT)
        finally:
            self.wake.set()

    async def answer(self, pool: Pool[Any], items: list[tuple[HeldInOrder, float | None]]) -> None:
        """Acknowledge and postpone, and take the next events of the keys that are done."""
        for topic in self.topics:
            mine = [(item, delay) for item, delay in items if item.topic == topic]
            finished = [part for item, delay in mine if delay is None for part in (item.key, item.id)]
            again = [
                part
                for item, delay in mine
                if delay is not None
                for part in (item.key, item.id, max(0, int(delay * 1000)))
            ]
            if finished:
                until = time.monotonic() + self.connection.lease
                self.put(pool, topic, await self._script(DONE, topic, int(not self.is_leaving), *finished), until)
            if again:
                await self._script(POSTPONE, topic, *again)
                self.wake.set()

    async def keep_for_ever(self) -> None:
        """Renew the leases of what is held."""
        attempts = Attempts(ConnectionState(f"renewing leases of keys in {self.connection.state.name}"))
        while True:
            await asyncio.sleep(self.connection.lease / 3)
            async with attempts:
                for topic in self.topics:
                    held = [item for item in self.held if item.topic == topic]
                    until = time.monotonic() + self.connection.lease
                    given = [part for item in held for part in (item.key, item.id)]
                    kept = await self._script(RENEW, topic, *given) if held else []
                    for item, is_kept in zip(held, kept, strict=True):
                        if is_kept:
                            item.until = until

    async def _script(self, script: str, topic: str, *arguments: Any) -> Any:
        keys = [self.connection.keys.keyed_stream(topic), *self.connection.keys.order(self.service, topic)]
        lease = int(self.connection.lease * 1000)
        return await self.connection.script(script, keys, [self.service, self.token, lease, *arguments])
