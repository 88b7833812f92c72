"""PostgreSQL and SQLite as the engine: no broker to run, and on SQLite no server at all.

Publishing writes an event once, and a *delivery* for each subscription (a service and a topic) that it concerns. A
consumer claims deliveries by moving their `available_at` to when its lease ends; acknowledging deletes them, retrying
moves `available_at` to when it is due, and a consumer that died is found out by the time alone. PostgreSQL's consumers
share by FOR UPDATE SKIP LOCKED and hear of new events by NOTIFY; SQLite has one writer at a time, and the file's change
counter.

Deliveries of one key form a *lane*. All but the first of a lane wait: nobody claims them, or even looks at them, until
that is done. Publishing to a lane and finishing there exclude each other, so it is always known which is the first.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from asignals.relay._batch import Batch
from asignals.relay._cancel import limited
from asignals.relay._connected import begun, connected
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._dialect import is_postgres, name_of
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._keys import lane_of
from asignals.relay._listening import listening
from asignals.relay._monitoring.figures import EXPIRY, TopicFigures, backlog_of, beat_for_ever
from asignals.relay._places import Address, Server
from asignals.relay._pool import Pool
from asignals.relay._settings import check_numbers
from asignals.relay._sql import Stored
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery, delay_of
from asignals.relay.engines._deliveries import SWEEP, Claimed, Place
from asignals.relay.engines._postgres import Postgres
from asignals.relay.engines._sqlite import SQLite
from asignals.relay.inbox import SQLAlchemyInbox

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

_AT_ONCE: Final = 500  # dead letters that one statement removes
_LOOK_BACK: Final = 2_000  # numbers of events that a listener looks back, for those that were committed late
_POLL: Final = 1.0  # seconds after which a consumer looks by itself, should a notification have been lost
_ANSWER_TIMEOUT: Final = 20.0  # seconds that claiming may take


class Database(Stored):
    """Carries events through tables, with SQLAlchemy: `postgresql+asyncpg://…`, `postgresql+psycopg://…`,
    `sqlite+aiosqlite:///file`.

    `lease` is in seconds: events of a consumer that does not renew its lease for so long, as a killed one, are
    redelivered. An event is kept until all services that are known to receive its topic have acknowledged it, and two
    minutes at least; a service is known once it has consumed, and the first time it is given all that is kept of the
    topic. An event id is taken once for at least two minutes.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, lease: float = 30.0) -> None:
        super().__init__(database, schema, ("engine", "inbox"))  # it is its own inbox, too
        check_numbers(lease=lease)
        self.lease = lease
        self.system: str = self.engine.dialect.name  # as OpenTelemetry calls it
        self.connection_state: ConnectionState = ConnectionState(name_of(self.engine))
        self._sql: Postgres | SQLite = (Postgres if is_postgres(self.engine) else SQLite)(self.engine, self.tables)

    # -- places ----------------------------------------------------------------------------------------------------

    def servers(self) -> list[Server]:
        """List the server; of an SQLite file, its name."""
        url = self.engine.url
        name = (url.database or "").replace("\\", "/").rpartition("/")[2]
        host = url.host or "localhost"
        return [Server(url.get_backend_name(), f"{host}:{url.port}" if url.port else host, f"/{name}" if name else "")]

    def address(self, topic: str) -> Address:
        """Give the table of events, and the topic that rows have in it."""
        return Address(f"{self.tables.event.fullname}/{check_name('topic', topic)}")

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Write the events and commit."""
        if not envelopes:
            return
        rows = [(one.id, one.topic, one.encode(), None if one.key is None else lane_of(one.key)) for one in envelopes]
        async with connected(self.engine) as connection:
            await self._sql.publish(connection, rows)
        self.connection_state.restored()

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        await self.add_service(service, topics)
        await _Consumer(self, service, instance, tuple(topics), handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by reading the table of events, of which nothing is claimed.

        On PostgreSQL an event whose transaction is committed after that of a later one is heard up to a second later.
        """
        names = [check_name("topic", topic) for topic in topics]
        wake = asyncio.Event()
        attempts = Attempts(self.connection_state)
        heard = _Heard(self, names, hear)
        is_heard = False
        async with listening(self.engine, self._sql.channel, wake.set, self.connection_state):
            while True:
                async with attempts:
                    if not is_heard:
                        await heard.begin()
                        attempts.succeeded()
                        begun()
                    wake.clear()
                    is_heard = False  # until it is read
                    await heard.read()
                    is_heard = True
                    attempts.succeeded()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL):
                            await wake.wait()

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service, beginning with those that are still there."""
        check_name("service", service)
        for topic in topics:
            check_name("topic", topic)
        if len(await self._subscriptions(service, topics)) == len(set(topics)):
            return
        async with begun(self.engine) as connection:
            for topic in topics:
                await self._sql.register(connection, service, topic)

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Remove a service's deliveries, of some topics or of all, and make no more."""
        subscription, delivery, instance = self.tables.subscription, self.tables.delivery, self.tables.instance
        for number in await self._subscriptions(service, topics):
            async with begun(self.engine) as connection:
                await connection.execute(delete(subscription).where(subscription.c.id == number))
                await connection.execute(delete(delivery).where(delivery.c.subscription == number))
                await connection.execute(delete(instance).where(instance.c.subscription == number))

    async def _subscriptions(self, service: str, topics: Collection[str] | None) -> list[int]:
        """Give the numbers of a service's subscriptions, to some topics or to all."""
        table = self.tables.subscription
        query = select(table.c.id).where(table.c.service == service)
        if topics is not None:
            query = query.where(table.c.topic.in_(list(topics)))
        async with connected(self.engine) as connection:
            return list((await connection.execute(query)).scalars())

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits, by service and topic; instances that stopped are known 20 seconds later at the latest."""
        event, delivery, subscription = self.tables.event, self.tables.delivery, self.tables.subscription
        instance, at = self.tables.instance, select(self._sql.now).scalar_subquery()  # once, and not for each row
        chosen = [] if service is None else [subscription.c.service == service]
        chosen += [] if topics is None else [subscription.c.topic.in_(list(topics))]
        is_later = delivery.c.available_at > at
        counts = (  # all in one pass
            select(
                delivery.c.subscription,
                func.count().label("backlog"),
                func.count().filter(is_later, delivery.c.is_held.is_(True)).label("in_flight"),
                func.count().filter(is_later, delivery.c.is_held.is_(False)).label("retries"),
            )
            .where(delivery.c.subscription.in_(select(subscription.c.id).where(*chosen)))
            .group_by(delivery.c.subscription)
            .subquery()
        )
        # Numbers and times of events go together but for a moment, and the index begins with the numbers.
        oldest = select(func.min(delivery.c.seq)).where(delivery.c.subscription == subscription.c.id, ~delivery.c.waits)
        first = oldest.correlate(subscription).scalar_subquery()
        age = select(at - event.c.time).where(event.c.seq == first)
        alive = select(func.count()).where(instance.c.subscription == subscription.c.id, instance.c.expires_at > at)
        query = (
            select(
                subscription.c.service,
                subscription.c.topic,
                func.coalesce(counts.c.backlog, 0),
                func.coalesce(age.correlate(subscription).scalar_subquery(), 0.0),
                func.coalesce(counts.c.in_flight, 0),
                func.coalesce(counts.c.retries, 0),
                alive.correlate(subscription).scalar_subquery(),
            )
            .select_from(subscription.outerjoin(counts, counts.c.subscription == subscription.c.id))
            .where(*chosen)
            .order_by(subscription.c.service, subscription.c.topic)
        )
        async with connected(self.engine) as connection:
            rows = (await connection.execute(query)).all()
        return [
            TopicFigures(name, topic, backlog, max(0.0, seconds), *others)
            for name, topic, backlog, seconds, *others in rows
        ]

    async def _beat(self, numbers: Collection[int], instance: str) -> None:
        """Write that an instance is alive, and remove those that are not."""
        table, at = self.tables.instance, self._sql.now
        dialect = postgresql if is_postgres(self.engine) else sqlite
        async with begun(self.engine) as connection:
            await connection.execute(delete(table).where(table.c.expires_at < at))
            for number in sorted(numbers):
                row = {"subscription": number, "instance": instance, "expires_at": at + EXPIRY}
                write = dialect.insert(table).values(row)
                again = write.on_conflict_do_update(
                    index_elements=["subscription", "instance"], set_={"expires_at": write.excluded.expires_at}
                )
                await connection.execute(again)

    async def _stop_beating(self, instance: str, numbers: Collection[int]) -> None:
        """Remove what says that an instance is alive."""
        table = self.tables.instance
        async with begun(self.engine) as connection:
            await connection.execute(
                delete(table).where(table.c.instance == instance, table.c.subscription.in_(list(numbers)))
            )

    async def _sweep(self) -> None:
        """Forget events that all have acknowledged, in small transactions."""
        swept = SWEEP
        while swept >= SWEEP:
            async with begun(self.engine) as connection:
                swept = await self._sql.sweep(connection)

    # -- dead letters ----------------------------------------------------------------------------------------------

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter; the same one only once."""
        dialect = postgresql if is_postgres(self.engine) else sqlite
        statement = dialect.insert(self.tables.dead).values(queue=queue, letter_id=letter.id, data=letter.encode())
        async with begun(self.engine) as connection:
            await connection.execute(statement.on_conflict_do_nothing())

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        dead = self.tables.dead
        async with connected(self.engine) as connection:
            query = select(func.count()).select_from(dead).where(dead.c.queue == queue)
            return int((await connection.execute(query)).scalar_one())

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        dead, last = self.tables.dead, 0
        while True:
            query = select(dead.c.id, dead.c.data).where(dead.c.queue == queue, dead.c.id > last)
            async with connected(self.engine) as connection:
                rows = (await connection.execute(query.order_by(dead.c.id).limit(batch))).all()
            if not rows:
                return
            last = rows[-1].id
            yield [DeadLetter.read(bytes(data), str(position)) for position, data in rows]

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters."""
        dead = self.tables.dead
        for start in range(0, len(letters), _AT_ONCE):
            ids = [int(letter.position) for letter in letters[start : start + _AT_ONCE]]
            async with begun(self.engine) as connection:
                await connection.execute(delete(dead).where(dead.c.queue == queue, dead.c.id.in_(ids)))

    def inbox(self) -> SQLAlchemyInbox:
        """Give an inbox in the same database."""
        return SQLAlchemyInbox(self.engine, schema=self.tables.metadata.schema)


class _Heard:
    """What a listener has read of the table of events."""

    def __init__(self, database: Database, topics: list[str], hear: Hear) -> None:
        self._database = database
        self._topics = topics
        self._hear = hear
        self._last: int | None = None
        self._recent: dict[int, None] = {}
        self._looked_back = 0.0

    async def begin(self) -> None:
        """Pass over all that is there, the first time."""
        if self._last is not None:
            return
        event = self._database.tables.event
        async with connected(self._database.engine) as connection:
            self._last = (await connection.execute(select(func.max(event.c.seq)))).scalar() or 0
            before = select(event.c.seq).where(event.c.seq > self._last - _LOOK_BACK)
            self._recent = dict.fromkeys((await connection.execute(before)).scalars())

    async def read(self) -> None:
        """Hear what is new; now and then also what has a lower number, as its transaction took longer."""
        event = self._database.tables.event
        last, is_look_back = self._last or 0, time.monotonic() - self._looked_back > _POLL
        if is_look_back and is_postgres(self._database.engine):
            self._looked_back = time.monotonic()
            last -= _LOOK_BACK
        while True:
            query = select(event.c.seq).where(event.c.seq > last, event.c.topic.in_(self._topics))
            async with connected(self._database.engine) as connection:
                seqs = (await connection.execute(query.order_by(event.c.seq).limit(_LOOK_BACK))).scalars().all()
                fresh = [seq for seq in seqs if seq not in self._recent]
                for start in range(0, len(fresh), _AT_ONCE):
                    which = event.c.seq.in_(fresh[start : start + _AT_ONCE])
                    rows = select(event.c.seq, event.c.topic, event.c.data).where(which).order_by(event.c.seq)
                    for seq, topic, data in await connection.execute(rows):
                        self._recent[seq] = None
                        self._last = max(self._last or 0, seq)
                        self._hear(Delivery(topic, bytes(data)))
            while len(self._recent) > 2 * _LOOK_BACK:
                del self._recent[next(iter(self._recent))]
            if len(seqs) < _LOOK_BACK:
                return
            last = seqs[-1]


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    database: Database
    service: str
    instance: str
    topics: tuple[str, ...]
    handle: Handle
    limit: int
    held: dict[Place, Claimed] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    subscriptions: list[int] = field(default_factory=list)

    async def run(self) -> None:
        database = self.database
        pool: Pool[Claimed]
        async with Batch(self._acknowledge, database.connection_state) as acks:

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
                    listening(database.engine, database._sql.channel, self.wake.set, database.connection_state),
                    pool,
                ):
                    pool.start(self._keep())
                    pool.start(beat_for_ever(database.connection_state.name, self._beat, self._stop_beating))
                    await self._claim_for_ever(pool)
            finally:
                for row in self.held.values():
                    acks.add((row, 0.0))

    async def _claim_for_ever(self, pool: Pool[Claimed]) -> None:
        attempts = Attempts(self.database.connection_state)
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
                if not rows:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self.wake.wait()

    async def _claim(self, count: int) -> tuple[list[Claimed], float]:
        """Claim what is due; where nothing is, tell the seconds until something may be."""
        database = self.database
        if not self.subscriptions:
            await database.add_service(self.service, self.topics)  # the first time, and after they were forgotten
            self.subscriptions = await database._subscriptions(self.service, self.topics)
        pause, until = _POLL, time.monotonic() + database.lease
        async with begun(database._single) as connection:
            rows = await database._sql.claim(connection, self.subscriptions, count, database.lease)
            if not rows and (due := await database._sql.until_due(connection, self.subscriptions)) is not None:
                pause = min(_POLL, max(0.001, due))
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
        database = self.database
        again = [(row, delay) for row, delay in done if delay is not None]
        finished = [row for row, delay in done if delay is None and row.lane is None]
        in_lanes = [row for row, delay in done if delay is None and row.lane is not None]
        if in_lanes:
            async with begun(database.engine) as connection:
                await database._sql.finish_in_lanes(connection, in_lanes)
        if finished or again:
            async with begun(database._single) as connection:
                if finished:
                    await database._sql.finish(connection, finished)
                if again:
                    await database._sql.postpone(connection, again)
        done.clear()  # so that it is not done once more, if we are cancelled meanwhile
        if again or in_lanes:
            self.wake.set()

    async def _beat(self) -> None:
        known = self.subscriptions or await self.database._subscriptions(self.service, self.topics)
        await self.database._beat(known, self.instance)

    async def _stop_beating(self) -> None:
        await self.database._stop_beating(self.instance, self.subscriptions)

    async def _keep(self) -> None:
        """Renew the leases of what is held, see that the subscriptions are there, and clean up, until cancelled."""
        database = self.database
        attempts = Attempts(ConnectionState(f"renewing leases in {database.connection_state.name}"))
        while True:
            await asyncio.sleep(database.lease / 3)
            async with attempts:
                if self.held:
                    held, until = list(self.held.values()), time.monotonic() + database.lease
                    async with begun(database._single) as connection:
                        ours = await database._sql.renew(connection, held, database.lease)
                    for row in held:
                        if row.key in ours:
                            row.until = until
                if len(await database._subscriptions(self.service, self.topics)) < len(set(self.topics)):
                    self.subscriptions = []
                await database._sweep()
