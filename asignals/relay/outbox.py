"""The transactional outbox: an event is a row in the caller's own transaction until an engine has acknowledged it.

A row is never tracked by "the last id seen": ids are given out before transactions commit, so a smaller one may appear
after a larger one. What is to be published is whatever is in the table. Several relays share it:

- PostgreSQL: a relay deletes rows in a transaction that it commits only after the engine has acknowledged them (FOR
  UPDATE SKIP LOCKED gives every relay other rows). A relay that dies rolls back by dying.
- SQLite has one writer, so a transaction must not stay open while an engine is spoken to: rows are claimed until a
  time.

Rows with a key are published by one relay at a time, in order of their ids.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from asignals.relay._envelope import Envelope
from asignals.relay._link import Backoff, Link
from asignals.relay._sql import as_engine, channel_of, is_postgres, listening, lock_of, now, quoted
from asignals.relay._tables import Tables
from asignals.relay._transport import PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_TRIP: Final = 20.0  # seconds that one publishing of a batch may take
_POLL: Final = 1.0  # seconds after which the table is looked at even if nobody said that there is something


class Outbox(Protocol):
    """Where a relay leaves events before they are published."""

    link: Link

    async def put(self, envelope: Envelope, session: Any = None) -> None:
        """Store the event, in the session's transaction or in one of its own."""
        ...

    async def drain_for_ever(self, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> None:
        """Publish what is there and what comes, until cancelled."""
        ...

    async def count(self) -> int:
        """Count the events that wait."""
        ...


class SQLAlchemyOutbox:
    """An outbox in the application's own database (PostgreSQL, SQLite).

    `batch` is how many events are published together. A row goes away when the transport has acknowledged it. One
    that the transport refuses for ever stays with its `error`, and is passed over.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, batch: int = 500) -> None:
        self.engine: AsyncEngine
        self.engine, self._owns_engine = as_engine(database)
        self.tables: Tables = Tables(schema)
        self.batch = batch
        self.link: Link = Link(f"publishing from the outbox ({self.engine.dialect.name}, {self.engine.url.database})")
        self._wake = asyncio.Event()
        self._channel = channel_of(quoted(self.engine, self.tables.outbox))
        self._insert, self._take = _statements(self.engine, self.tables, self._channel)

    async def init(self) -> None:
        """Create the tables that are missing."""
        async with self.engine.begin() as connection:
            await connection.run_sync(self.tables.metadata.create_all)

    async def aclose(self) -> None:
        """Close the connections, if the engine was made here."""
        if self._owns_engine:
            await self.engine.dispose()

    async def put(self, envelope: Envelope, session: AsyncSession | AsyncConnection | None = None) -> None:
        """Write the event in the transaction of `session`: it commits or vanishes with what else is done there.

        Without a session the row has a transaction of its own. The relay hears of it at the commit.
        """
        row = {"key": envelope.key, "data": envelope.encode()}
        if session is None:
            async with self.engine.begin() as connection:
                await connection.execute(self._insert, row)
            self._wake.set()
            return
        # The connection, not the session: the row is no business of the unit of work, and nothing is flushed early. The
        # commit itself says that there is something to publish: by NOTIFY, or by the file's change counter.
        connection = await session.connection() if isinstance(session, AsyncSession) else session
        await connection.execute(self._insert, row)

    async def count(self) -> int:
        """Count the rows that wait to be published."""
        outbox = self.tables.outbox
        query = select(func.count()).select_from(outbox).where(outbox.c.error.is_(None))
        async with self.engine.connect() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def refused(self, limit: int = 100) -> list[tuple[Envelope, str]]:
        """Show the oldest rows that the transport refused for ever, and why."""
        outbox = self.tables.outbox
        query = (
            select(outbox.c.data, outbox.c.error).where(outbox.c.error.is_not(None)).order_by(outbox.c.id).limit(limit)
        )
        async with self.engine.connect() as connection:
            return [(Envelope.decode(data), error) for data, error in await connection.execute(query)]

    async def forgive(self) -> int:
        """Have refused rows tried again; returns how many."""
        outbox = self.tables.outbox
        statement = update(outbox).where(outbox.c.error.is_not(None)).values(error=None)
        async with self.engine.begin() as connection:
            count = (await connection.execute(statement)).rowcount
        self._wake.set()
        return count

    async def drain_for_ever(self, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> None:
        """Publish what is there and what comes until cancelled; a lost database or engine is retried for ever."""
        backoff = Backoff()
        self._wake = asyncio.Event()  # of this event loop
        async with listening(self.engine, self._channel, self._wake.set, self.link):
            while True:
                self._wake.clear()
                try:
                    count = await self.drain_once(publish)
                except Exception as error:  # noqa: BLE001  the rows are still there, and are tried again
                    self.link.lost(error)
                    await asyncio.sleep(backoff.pause())
                    continue
                self.link.restored()
                backoff.reset()
                if count < self.batch:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL):
                            await self._wake.wait()

    async def drain_once(self, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> int:
        """Publish one batch and remove its rows; returns how many there were."""
        batch = self._locked if is_postgres(self.engine) else self._claimed
        async with batch() as (connection, rows):
            if rows:
                refused = await _publish(publish, rows)
                await self._keep_refused(connection, rows, refused)
            return len(rows)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[tuple[AsyncConnection, list[Any]]]:
        async with self.engine.begin() as connection:
            found = await connection.execute(self._take, {"count": self.batch})
            yield connection, sorted(found.all())

    @asynccontextmanager
    async def _claimed(self) -> AsyncIterator[tuple[AsyncConnection, list[Any]]]:
        outbox = self.tables.outbox
        claim = {"count": self.batch, "now": now(), "until": now() + _TRIP * 1.5}
        async with self.engine.begin() as connection:
            rows = sorted((await connection.execute(self._take, claim)).all())
        mine = outbox.c.id.in_([row.id for row in rows])
        try:
            async with self.engine.connect() as connection:
                yield connection, rows
                if rows:
                    await connection.execute(delete(outbox).where(mine))
                await connection.commit()
        except BaseException:
            if rows:
                async with self.engine.begin() as connection:
                    await connection.execute(update(outbox).where(mine).values(claimed_until=0))
            raise

    async def _keep_refused(self, connection: AsyncConnection, rows: list[Any], refused: dict[int, str]) -> None:
        """Put the refused rows back under new ids, with the reason."""
        for row in rows:
            if row.id in refused:
                back = {"key": row.key, "data": row.data, "error": refused[row.id][:1000]}
                await connection.execute(insert(self.tables.outbox).values(back))


async def _publish(publish: Callable[[Sequence[Envelope]], Awaitable[None]], rows: list[Any]) -> dict[int, str]:
    """Publish rows; returns the reasons for those that can never be."""
    refused: dict[int, str] = {}
    envelopes: dict[str, int] = {}
    batch = []
    for row in rows:
        try:
            envelope = Envelope.decode(row.data)
        except ValueError as error:
            refused[row.id] = str(error)
        else:
            envelopes[envelope.id] = row.id
            batch.append(envelope)
    try:
        async with asyncio.timeout(_TRIP):
            await publish(batch)
    except PublishRefusedError as error:
        refused.update((envelopes[id_], reason) for id_, reason in error.refused.items() if id_ in envelopes)
    return refused


def _statements(engine: AsyncEngine, tables: Tables, channel: str) -> tuple[Any, Any]:
    """Give the statements that put one row and that take some."""
    outbox = tables.outbox
    if is_postgres(engine):
        name = quoted(engine, outbox)
        # One round trip more would be felt in every send; notifications of one transaction are sent once.
        put = text(
            f"WITH row AS (INSERT INTO {name} (key, data) VALUES (:key, :data))"  # noqa: S608  names are quoted
            f" SELECT pg_notify('{channel}', '')"
        ).bindparams(bindparam("key", type_=outbox.c.key.type), bindparam("data", type_=postgresql.BYTEA))
        take = text(
            f"WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock({lock_of(name)}) AS keyed)"  # noqa: S608
            f" DELETE FROM {name} WHERE id = ANY(ARRAY("
            f"SELECT id FROM {name} WHERE error IS NULL AND (key IS NULL OR (SELECT keyed FROM turn))"
            f" ORDER BY id LIMIT :count FOR UPDATE SKIP LOCKED)) RETURNING id, key, data"
        )
        return put, take
    row, earlier = outbox.alias("row"), outbox.alias("earlier")
    overtakes = (
        select(earlier.c.id)
        .where(earlier.c.key == row.c.key, earlier.c.id < row.c.id, earlier.c.claimed_until >= bindparam("now"))
        .correlate(row)
        .exists()
    )
    free = (
        select(row.c.id)
        .where(row.c.error.is_(None), row.c.claimed_until < bindparam("now"), ~overtakes)
        .order_by(row.c.id)
        .limit(bindparam("count"))
    )
    take_sqlite = (
        update(outbox)
        .where(outbox.c.id.in_(free.scalar_subquery()))
        .values(claimed_until=bindparam("until"))
        .returning(outbox.c.id, outbox.c.key, outbox.c.data)
    )
    return insert(outbox), take_sqlite
