"""One running `consume` in a database: claims deliveries for a time, handles them, and acknowledges them together."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from asignals.relay._batch import Batch
from asignals.relay._cancel import limited
from asignals.relay._connected import begun
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._listening import listening
from asignals.relay._monitoring.figures import beat_for_ever
from asignals.relay._pool import Pool
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery, delay_of
from asignals.relay.engines._deliveries import POLL, Claimed, Place

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._transport import Handle
    from asignals.relay.engines._database.services import Services

_ANSWER_TIMEOUT: Final = 20.0  # seconds that claiming may take


@dataclass(slots=True)
class Consumer:
    """One running `consume`."""

    services: Services
    single: AsyncEngine  # for single statements
    state: ConnectionState
    lease: float
    service: str
    instance: str
    topics: tuple[str, ...]
    handle: Handle
    limit: int
    held: dict[Place, Claimed] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    subscriptions: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Consume until cancelled; what is still here then is given back."""
        pool: Pool[Claimed]
        async with Batch(self._acknowledge, self.state) as acks:

            async def work(row: Claimed) -> None:
                if row.is_lost:  # this process was frozen, or cut off from the database
                    del self.held[row.key]
                    return
                outcome = await self.handle(Delivery(row.topic, row.data, row.attempt, row.attempt > 1, pool.park))
                del self.held[row.key]
                acks.add((row, None if outcome is None else delay_of(outcome)))

            pool = Pool(work, self.limit)
            try:
                async with (
                    listening(self.services.engine, self.services.sql.channel, self.wake.set, self.state),
                    pool,
                ):
                    pool.start(self._keep())
                    pool.start(beat_for_ever(self.state.name, self._beat, self._stop_beating))
                    await self._claim_for_ever(pool)
            finally:
                for row in self.held.values():
                    acks.add((row, 0.0))

    async def _claim_for_ever(self, pool: Pool[Claimed]) -> None:
        attempts = Attempts(self.state)
        most = self.limit * 2
        while True:
            await pool.until_below(max(1, most - self.limit // 2))
            async with attempts:
                self.wake.clear()
                # To its end: a claim that is committed while we are cancelled is known, and given back at once.
                rows, pause = await to_the_end(limited(self._claim(most - len(pool)), _ANSWER_TIMEOUT))
                attempts.succeeded()
                for row in rows:
                    pool.put(row)
                if pause:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self.wake.wait()

    async def _claim(self, count: int) -> tuple[list[Claimed], float]:
        """Claim what is due; also tell the seconds until more may be, 0 where there may be more already."""
        if not self.subscriptions:
            await self.services.add(self.service, self.topics)  # the first time, and after they were forgotten
            self.subscriptions = await self.services.numbers(self.service, self.topics)
        pause, until = 0.0, time.monotonic() + self.lease
        async with begun(self.single) as connection:
            rows = await self.services.sql.claim(connection, self.subscriptions, count, self.lease)
            if len(rows) < count:
                due = await self.services.sql.until_due(connection, self.subscriptions)
                pause = POLL if due is None else min(POLL, max(0.001, due))
        rows.sort(key=attrgetter("key"))
        fresh = []
        for row in rows:
            row.until = until
            if (held := self.held.get(row.key)) is None:
                self.held[row.key] = row
                fresh.append(row)
            else:  # it had lost its lease to time; it is here already, so it is not run twice
                held.attempt, held.until = row.attempt, until
        return fresh, pause

    async def _acknowledge(self, done: list[tuple[Claimed, float | None]]) -> None:
        # To its end, as aiosqlite does not close a connection whose transaction was cut short.
        await to_the_end(self._write(done))

    async def _write(self, done: list[tuple[Claimed, float | None]]) -> None:
        again = [(row, delay) for row, delay in done if delay is not None]
        finished = [row for row, delay in done if delay is None and row.lane is None]
        in_lanes = [row for row, delay in done if delay is None and row.lane is not None]
        if in_lanes:
            async with begun(self.services.engine) as connection:
                await self.services.sql.finish_in_lanes(connection, in_lanes)
        if finished or again:
            async with begun(self.single) as connection:
                if finished:
                    await self.services.sql.finish(connection, finished)
                if again:
                    await self.services.sql.postpone(connection, again)
        done.clear()  # so that it is not done once more, if we are cancelled meanwhile
        if again or in_lanes:
            self.wake.set()

    async def _beat(self) -> None:
        known = self.subscriptions or await self.services.numbers(self.service, self.topics)
        await self.services.beat(known, self.instance)

    async def _stop_beating(self) -> None:
        await self.services.stop_beating(self.instance, self.subscriptions)

    async def _keep(self) -> None:
        """Renew the leases of what is held, see that the subscriptions are there, and clean up, until cancelled."""
        attempts = Attempts(ConnectionState(f"renewing leases in {self.state.name}"))
        while True:
            await asyncio.sleep(self.lease / 3)
            async with attempts:
                if self.held:
                    held, until = list(self.held.values()), time.monotonic() + self.lease
                    async with begun(self.single) as connection:
                        ours = await self.services.sql.renew(connection, held, self.lease)
                    for row in held:
                        if row.key in ours:
                            row.until = until
                if len(await self.services.numbers(self.service, self.topics)) < len(set(self.topics)):
                    self.subscriptions = []
                await self.services.sweep()
