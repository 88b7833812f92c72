"""PostgreSQL and SQLite as the engine: no broker to run, and on SQLite no server at all.

Publishing writes an event once and a *delivery* for each known service. A consumer claims deliveries by moving their
`available_at` to when the claim ends; acknowledging deletes them, retrying moves `available_at` to when it is due,
and a consumer that died is found out by the time alone. PostgreSQL's consumers share by FOR UPDATE SKIP LOCKED and
hear of new events by NOTIFY; SQLite has one writer at a time, and the file's change counter.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from asignals._to_the_end import to_the_end
from asignals.relay._batch import Batch
from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._pool import Pool
from asignals.relay._sql import (
    PG_NO_WAIT,
    PG_NOW,
    Stored,
    announce,
    begun,
    channel_of,
    connected,
    is_postgres,
    listening,
    lock_of,
    now,
    quoted,
)
from asignals.relay._transport import Delivery
from asignals.relay.inbox import SQLAlchemyInbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from asignals.relay._envelope import Envelope
    from asignals.relay._tables import Tables
    from asignals.relay._transport import Handle

_KEPT: Final = 120.0  # seconds for which an event is remembered at least, so that a repetition is recognised
_SWEEP: Final = 1_000  # events that are forgotten at once
_POLL: Final = 1.0  # seconds after which a consumer looks by itself, should a notification have been lost
_TRIP: Final = 20.0  # seconds that claiming may take


class Database(Stored):
    """Carries events through tables, with SQLAlchemy: `postgresql+asyncpg://…`, `postgresql+psycopg://…`,
    `sqlite+aiosqlite:///file`.

    `lease` is in seconds: events of a consumer that does not renew its lease for so long, as a killed one, are
    redelivered. An event is kept until all services that are known have acknowledged it; a service is known once it
    has consumed, and the first time it is given all that is kept. An event id is taken once for at least two minutes.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, lease: float = 30.0) -> None:
        super().__init__(database, schema)
        self.lease = lease
        self.connection_state: ConnectionState = ConnectionState(
            f"{self.engine.dialect.name} ({self.engine.url.database})"
        )
        self._sql: _Postgres | _SQLite = (_Postgres if is_postgres(self.engine) else _SQLite)(self.engine, self.tables)

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Write the events and commit."""
        if not envelopes:
            return
        rows = [(envelope.id, envelope.encode()) for envelope in envelopes]
        async with connected(self.engine) as connection:
            await self._sql.publish(connection, rows)
        self.connection_state.restored()

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled."""
        check_name("instance", instance)
        await self.add_service(check_name("service", service))
        await _Consumer(self, service, handle, limit).run()

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter; the same one only once."""
        dialect = postgresql if is_postgres(self.engine) else sqlite
        statement = dialect.insert(self.tables.dead).values(queue=queue, letter_id=letter.id, data=letter.encode())
        async with begun(self.engine) as connection:
            await connection.execute(statement.on_conflict_do_nothing())

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters."""
        dead = self.tables.dead
        query = select(dead.c.id, dead.c.data).where(dead.c.queue == queue).order_by(dead.c.id).limit(limit)
        async with connected(self.engine) as connection:
            return [DeadLetter.read(data, str(position)) for position, data in await connection.execute(query)]

    async def remove(self, queue: str, letter: DeadLetter) -> None:
        """Remove a letter."""
        dead = self.tables.dead
        async with begun(self.engine) as connection:
            await connection.execute(delete(dead).where(dead.c.queue == queue, dead.c.id == int(letter.position)))

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        delivery = self.tables.delivery
        query = select(func.count()).select_from(delivery).where(delivery.c.service == service)
        async with connected(self.engine) as connection:
            return int((await connection.execute(query)).scalar_one())

    def inbox(self) -> SQLAlchemyInbox:
        """Give an inbox in the same database."""
        return SQLAlchemyInbox(self.engine, schema=self.tables.metadata.schema)

    async def add_service(self, service: str) -> None:
        """Make a service known; the first time it is given all events that are kept."""
        async with begun(self.engine) as connection:
            await self._sql.register(connection, service)


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    database: Database
    service: str
    handle: Handle
    limit: int
    held: dict[int, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        database = self.database
        async with Batch(self._acknowledge, database.connection_state) as acks:

            async def work(row: tuple[int, int, bytes]) -> None:
                seq, attempt, data = row
                delay = await self.handle(Delivery(data, attempt))
                del self.held[seq]
                acks.add((seq, delay))

            try:
                async with (
                    listening(database.engine, database._sql.channel, self.wake.set, database.connection_state),
                    asyncio.TaskGroup() as tasks,
                    Pool(work, self.limit) as pool,
                ):
                    tasks.create_task(self._keep())
                    await self._claim_for_ever(pool)
            finally:
                for seq in self.held:
                    acks.add((seq, 0.0))

    async def _claim_for_ever(self, pool: Pool[tuple[int, int, bytes]]) -> None:
        attempts = Attempts(self.database.connection_state)
        most = self.limit * 2
        while True:
            await pool.until_below(max(1, most - self.limit // 2))
            async with attempts:
                self.wake.clear()
                # To its end: a claim that is committed while we are cancelled is known, and given back at once.
                rows, pause = await to_the_end(limited(self._claim(most - len(pool)), _TRIP))
                attempts.succeeded()
                for row in rows:
                    pool.put(row)
                if not rows:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self.wake.wait()

    async def _claim(self, count: int) -> tuple[list[tuple[int, int, bytes]], float]:
        """Claim what is due; where nothing is, tell the seconds until something may be."""
        database = self.database
        pause = _POLL
        async with begun(database._single) as connection:
            rows = await database._sql.claim(connection, self.service, count, database.lease)
            if not rows and (due := await database._sql.until_due(connection, self.service)) is not None:
                pause = min(_POLL, max(0.001, due))
        rows.sort()
        # One that is held already had lost its claim to time; it is running here, so it is not run twice.
        fresh = [row for row in rows if row[0] not in self.held]
        self.held.update((row[0], None) for row in fresh)
        return fresh, pause

    async def _acknowledge(self, done: list[tuple[int, float | None]]) -> None:
        database = self.database
        finished = [seq for seq, delay in done if delay is None]
        again = [(seq, delay) for seq, delay in done if delay is not None]
        async with begun(database._single) as connection:
            if finished:
                await database._sql.finish(connection, self.service, finished)
            for seq, delay in again:
                await database._sql.postpone(connection, self.service, [seq], delay)
        if again:
            self.wake.set()

    async def _keep(self) -> None:
        """Prolong the claims of what is held, and clean up, until cancelled."""
        database = self.database
        while True:
            await asyncio.sleep(database.lease / 3)
            with suppress(Exception):  # a claim that cannot be prolonged ends; the fetching loop reports the loss
                async with begun(database._single) as connection:
                    if self.held:
                        await database._sql.postpone(connection, self.service, list(self.held), database.lease)
                async with begun(database.engine) as connection:
                    await database._sql.sweep(connection)


class _Postgres:
    """The statements, for PostgreSQL."""

    def __init__(self, engine: AsyncEngine, tables: Tables) -> None:
        event, delivery, service = (quoted(engine, table) for table in (tables.event, tables.delivery, tables.service))
        self.channel = channel_of(event)
        self._lock = lock_of(service)
        self._publish = text(
            f"WITH fresh AS (INSERT INTO {event} (event_id, data, time)"  # noqa: S608  names are quoted, values bound
            f" SELECT id, data, {PG_NOW} FROM unnest(:ids, :datas) WITH ORDINALITY AS given (id, data, place)"
            f" ORDER BY place ON CONFLICT (event_id) DO NOTHING RETURNING seq),"
            f" sent AS (INSERT INTO {delivery} (service, seq, available_at, attempts)"
            f" SELECT name, seq, 0, 0 FROM {service}, fresh) SELECT"
        ).bindparams(
            bindparam("ids", type_=postgresql.ARRAY(tables.event.c.event_id.type)),
            bindparam("datas", type_=postgresql.ARRAY(postgresql.BYTEA)),
        )
        self._register = text(
            f"WITH new AS (INSERT INTO {service} (name) VALUES (:service) ON CONFLICT DO NOTHING RETURNING name)"  # noqa: S608
            f" INSERT INTO {delivery} (service, seq, available_at, attempts) SELECT name, seq, 0, 0 FROM new, {event}"
        )
        self._claim = text(
            f"WITH next AS (SELECT seq FROM {delivery} WHERE service = :service AND available_at <= {PG_NOW}"  # noqa: S608
            f" ORDER BY seq LIMIT :count FOR UPDATE SKIP LOCKED)"
            f" UPDATE {delivery} AS d SET available_at = {PG_NOW} + :claim, attempts = attempts + 1"
            f" FROM next JOIN {event} AS e USING (seq), {PG_NO_WAIT} WHERE d.service = :service AND d.seq = next.seq"
            f" RETURNING d.seq, d.attempts, e.data"
        )
        seqs = bindparam("seqs", type_=postgresql.ARRAY(postgresql.BIGINT))
        self._finish = text(
            f"DELETE FROM {delivery} USING {PG_NO_WAIT} WHERE service = :service AND seq = ANY(:seqs)"  # noqa: S608
        ).bindparams(seqs)
        self._postpone = text(
            f"UPDATE {delivery} SET available_at = {PG_NOW} + :delay FROM {PG_NO_WAIT}"  # noqa: S608
            f" WHERE service = :service AND seq = ANY(:seqs)"
        ).bindparams(seqs)
        self._sweep = text(
            f"DELETE FROM {event} AS e WHERE time < {PG_NOW} - {_KEPT}"  # noqa: S608
            f" AND NOT EXISTS (SELECT 1 FROM {delivery} AS d WHERE d.seq = e.seq)"
        )
        self._due = text(f"SELECT min(available_at) - {PG_NOW} FROM {delivery} WHERE service = :service")  # noqa: S608

    async def publish(self, connection: AsyncConnection, rows: list[tuple[str, bytes]]) -> None:
        await self._keep_services(connection)
        ids, datas = [row[0] for row in rows], [row[1] for row in rows]
        await connection.execute(self._publish, {"ids": ids, "datas": datas})
        await connection.commit()
        await announce((await connection.get_raw_connection()), self.channel)

    async def register(self, connection: AsyncConnection, service: str) -> None:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({self._lock})"))
        await connection.execute(self._register, {"service": service})

    async def claim(
        self, connection: AsyncConnection, service: str, count: int, claim: float
    ) -> list[tuple[int, int, bytes]]:
        found = await connection.execute(self._claim, {"service": service, "count": count, "claim": claim})
        return [(seq, attempts, bytes(data)) for seq, attempts, data in found]

    async def finish(self, connection: AsyncConnection, service: str, seqs: list[int]) -> None:
        await connection.execute(self._finish, {"service": service, "seqs": seqs})

    async def postpone(self, connection: AsyncConnection, service: str, seqs: list[int], delay: float) -> None:
        await connection.execute(self._postpone, {"service": service, "seqs": seqs, "delay": delay})

    async def sweep(self, connection: AsyncConnection) -> None:
        await self._keep_services(connection)
        await connection.execute(self._sweep)

    async def _keep_services(self, connection: AsyncConnection) -> None:
        # A service that registers now must see what we do to events, or we must see the service: registering takes the
        # lock alone. It is its own statement, as the next one sees only what was committed before it began.
        await connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({self._lock})"))

    async def until_due(self, connection: AsyncConnection, service: str) -> float | None:
        seconds: float | None = (await connection.execute(self._due, {"service": service})).scalar()
        return seconds


class _SQLite:
    """The statements, for SQLite.

    Publishing and registering begin with a write, so they wait for the lock at once: a transaction that reads first
    could not take it any more after another has written ("database is locked", without waiting).
    """

    channel = ""

    def __init__(self, _engine: AsyncEngine, tables: Tables) -> None:
        self._tables = tables

    async def publish(self, connection: AsyncConnection, rows: list[tuple[str, bytes]]) -> None:
        event, delivery, service = self._tables.event, self._tables.delivery, self._tables.service
        time = now()
        write = sqlite.insert(event).on_conflict_do_nothing().returning(event.c.seq)
        values = [{"event_id": id_, "data": data, "time": time} for id_, data in rows]
        seqs = [seq for (seq,) in await connection.execute(write, values)]
        names = [name for (name,) in await connection.execute(select(service.c.name))]
        sent = [{"service": name, "seq": seq, "available_at": 0.0, "attempts": 0} for seq in seqs for name in names]
        if sent:
            await connection.execute(insert(delivery), sent)
        await connection.commit()

    async def register(self, connection: AsyncConnection, service: str) -> None:
        tables = self._tables
        write = sqlite.insert(tables.service).values(name=service).on_conflict_do_nothing()
        if (await connection.execute(write)).rowcount == 1:
            columns = ["service", "seq", "available_at", "attempts"]
            kept = select(bindparam("service", service), tables.event.c.seq, text("0"), text("0"))
            await connection.execute(insert(tables.delivery).from_select(columns, kept))

    async def claim(
        self, connection: AsyncConnection, service: str, count: int, claim: float
    ) -> list[tuple[int, int, bytes]]:
        delivery, event = self._tables.delivery, self._tables.event
        row = delivery.alias("row")
        due = select(row.c.seq).where(row.c.service == service, row.c.available_at <= now()).order_by(row.c.seq)
        # Readers need no lock: who finds nothing to do keeps it from nobody.
        if (await connection.execute(due.limit(1))).first() is None:
            return []
        take = (
            update(delivery)
            .where(delivery.c.service == service, delivery.c.seq.in_(due.limit(count).scalar_subquery()))
            .values(available_at=now() + claim, attempts=delivery.c.attempts + 1)
            .returning(delivery.c.seq, delivery.c.attempts)
        )
        taken: dict[int, int] = {row.seq: row.attempts for row in await connection.execute(take)}
        if not taken:
            return []
        bodies = await connection.execute(select(event.c.seq, event.c.data).where(event.c.seq.in_(list(taken))))
        return [(seq, taken[seq], data) for seq, data in bodies]

    async def finish(self, connection: AsyncConnection, service: str, seqs: list[int]) -> None:
        delivery = self._tables.delivery
        await connection.execute(delete(delivery).where(delivery.c.service == service, delivery.c.seq.in_(seqs)))

    async def postpone(self, connection: AsyncConnection, service: str, seqs: list[int], delay: float) -> None:
        delivery = self._tables.delivery
        which = delivery.c.service == service, delivery.c.seq.in_(seqs)
        await connection.execute(update(delivery).where(*which).values(available_at=now() + delay))

    async def sweep(self, connection: AsyncConnection) -> None:
        event, delivery, service = self._tables.event, self._tables.delivery, self._tables.service
        # By way of the services, as the index of deliveries begins with them: else each event looks at all deliveries.
        held = select(delivery.c.seq).where(delivery.c.service == service.c.name, delivery.c.seq == event.c.seq)
        holder = select(service.c.name).where(held.correlate(service, event).exists()).correlate(event)
        free = select(event.c.seq).where(event.c.time < now() - _KEPT, ~holder.exists())
        if (await connection.execute(free.limit(1))).first() is not None:
            oldest = free.order_by(event.c.time).limit(_SWEEP).scalar_subquery()
            await connection.execute(delete(event).where(event.c.seq.in_(oldest)))

    async def until_due(self, connection: AsyncConnection, service: str) -> float | None:
        delivery = self._tables.delivery
        query = select(func.min(delivery.c.available_at)).where(delivery.c.service == service)
        first: float | None = (await connection.execute(query)).scalar()
        return None if first is None else first - now()
