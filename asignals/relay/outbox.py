"""The transactional outbox: an event is a row in the caller's own transaction until an engine has acknowledged it.

A row is never tracked by "the last id seen": ids are given out before transactions commit, so a smaller one may appear
after a larger one. What is to be published is whatever is in the table. Several relays share it:

- PostgreSQL: a relay deletes rows in a transaction that it commits only after the engine has acknowledged them (FOR
  UPDATE SKIP LOCKED gives every relay other rows). A relay that dies rolls back by dying; a server that dies may have
  forgotten the last deletions, and these events are published again.
- SQLite has one writer, so a transaction must not stay open while an engine is spoken to: rows are claimed until a
  time.

Rows with a key are published by one relay at a time, in order of their ids.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import bindparam, delete, event, func, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only

from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import Envelope
from asignals.relay._sql import (
    PG_NO_WAIT,
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
from asignals.relay._transport import PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.orm import Session

    from asignals.relay._tables import Tables

_TRIP: Final = 20.0  # seconds that one publishing of a batch may take
_POLL: Final = 1.0  # seconds after which the table is looked at even if nobody said that there is something


class Outbox(Protocol):
    """Where a relay leaves events before they are published."""

    connection_state: ConnectionState

    async def put(self, envelope: Envelope, session: Any = None) -> None:
        """Store the event, in the session's transaction or in one of its own."""
        ...

    async def drain_for_ever(self, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> None:
        """Publish what is there and what comes, until cancelled."""
        ...

    async def count(self) -> int:
        """Count the events that wait."""
        ...


class SQLAlchemyOutbox(Stored):
    """An outbox in the application's own database (PostgreSQL, SQLite).

    `batch` is how many events are published together. A row goes away when the transport has acknowledged it. One
    that the transport refuses for ever stays with its `error`, and is passed over.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, batch: int = 500) -> None:
        super().__init__(database, schema)
        self.batch = batch
        self.connection_state: ConnectionState = ConnectionState(
            f"publishing from the outbox ({self.engine.dialect.name}, {self.engine.url.database})"
        )
        self._wake_drain: Callable[[], object] | None = None
        self._channel = channel_of(quoted(self.engine, self.tables.outbox))
        self._insert, self._insert_and_notify, self._take = _statements(self.engine, self.tables, self._channel)

    async def put(self, envelope: Envelope, session: AsyncSession | AsyncConnection | None = None) -> None:
        """Write the event in the transaction of `session`: it commits or vanishes with what else is done there.

        Without a session the row has a transaction of its own. After the commit the relay in this process is woken, or,
        where none runs, NOTIFY wakes those elsewhere. A connection that is no session's does not tell when it has
        committed: there NOTIFY is part of the transaction, and such transactions commit one at a time.
        """
        row = {"key": envelope.key, "data": envelope.encode()}
        if session is None:
            async with connected(self._single) as connection:
                await connection.execute(self._insert, row)
                await connection.commit()
                if not self._wake_here() and is_postgres(self.engine):
                    await announce(await connection.get_raw_connection(), self._channel)
        elif isinstance(session, AsyncSession):
            # The connection, not the session: the row is no business of the unit of work, and nothing is flushed early.
            connection = await session.connection()
            await connection.execute(self._insert, row)
            self._expect_commit(session.sync_session, connection.sync_connection)
        else:
            await session.execute(self._insert_and_notify, row)

    def _expect_commit(self, session: Session, connection: Connection | None) -> None:
        session.info[self] = connection
        if not event.contains(session, "after_commit", self._after_commit):
            event.listen(session, "after_commit", self._after_commit)

    def _after_commit(self, session: Session) -> None:
        if session.in_nested_transaction():
            return
        connection = session.info.pop(self, None)
        if connection is not None and not self._wake_here() and is_postgres(self.engine) and not connection.closed:
            await_only(announce(connection.connection, self._channel))

    def _wake_here(self) -> bool:
        """Wake the relay that drains in this process; tells whether there is one."""
        if self._wake_drain is None:
            return False
        self._wake_drain()
        return True

    async def count(self) -> int:
        """Count the rows that wait to be published."""
        outbox = self.tables.outbox
        query = select(func.count()).select_from(outbox).where(outbox.c.error.is_(None))
        async with connected(self.engine) as connection:
            return int((await connection.execute(query)).scalar_one())

    async def refused(self, limit: int = 100) -> list[tuple[Envelope, str]]:
        """Show the oldest rows that the transport refused for ever, and why."""
        outbox = self.tables.outbox
        query = (
            select(outbox.c.data, outbox.c.error).where(outbox.c.error.is_not(None)).order_by(outbox.c.id).limit(limit)
        )
        async with connected(self.engine) as connection:
            return [(Envelope.decode(data), error) for data, error in await connection.execute(query)]

    async def forgive(self) -> int:
        """Have refused rows tried again; returns how many."""
        outbox = self.tables.outbox
        statement = update(outbox).where(outbox.c.error.is_not(None)).values(error=None)
        async with begun(self.engine) as connection:
            count = (await connection.execute(statement)).rowcount
        self._wake_here()
        return count

    async def drain_for_ever(self, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> None:
        """Publish what is there and what comes until cancelled; a lost database or engine is retried for ever."""
        attempts = Attempts(self.connection_state)
        wake = asyncio.Event()
        wake_here = partial(asyncio.get_running_loop().call_soon_threadsafe, wake.set)
        self._wake_drain = wake_here
        try:
            async with listening(self.engine, self._channel, wake.set, self.connection_state):
                while True:
                    async with attempts:  # rows of a trip that failed are still there, and are tried again
                        wake.clear()
                        count = await self.drain_once(publish)
                        attempts.succeeded()
                        if count < self.batch:
                            with suppress(TimeoutError):
                                async with asyncio.timeout(_POLL):
                                    await wake.wait()
        finally:
            if self._wake_drain is wake_here:
                self._wake_drain = None

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
        async with begun(self.engine) as connection:
            found = await connection.execute(self._take, {"count": self.batch})
            yield connection, sorted(found.all())

    @asynccontextmanager
    async def _claimed(self) -> AsyncIterator[tuple[AsyncConnection, list[Any]]]:
        outbox = self.tables.outbox
        claim = {"count": self.batch, "now": now(), "until": now() + _TRIP * 1.5}
        free = select(outbox.c.id).where(outbox.c.error.is_(None), outbox.c.claimed_until < now()).limit(1)
        async with begun(self._single) as connection:
            # Readers need no lock: who finds nothing to do keeps it from nobody.
            found = (await connection.execute(free)).first()
            rows = [] if found is None else sorted((await connection.execute(self._take, claim)).all())
        mine = outbox.c.id.in_([row.id for row in rows])
        try:
            async with connected(self.engine) as connection:
                yield connection, rows
                if rows:
                    await connection.execute(delete(outbox).where(mine))
                await connection.commit()
        except BaseException:
            if rows:
                async with begun(self.engine) as connection:
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


def _statements(engine: AsyncEngine, tables: Tables, channel: str) -> tuple[Any, Any, Any]:
    """Give the statements that put one row, that put one and notify, and that take some."""
    outbox = tables.outbox
    if is_postgres(engine):
        name = quoted(engine, outbox)
        put = text(f"INSERT INTO {name} (key, data) VALUES (:key, :data)")  # noqa: S608  names are quoted
        notify = text(f"WITH row AS ({put.text}) SELECT pg_notify('{channel}', '')")
        types = bindparam("key", type_=outbox.c.key.type), bindparam("data", type_=postgresql.BYTEA)
        take = text(
            f"WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock({lock_of(name)}) AS keyed)"  # noqa: S608
            f" DELETE FROM {name} USING {PG_NO_WAIT} WHERE id = ANY(ARRAY("
            f"SELECT id FROM {name} WHERE error IS NULL AND (key IS NULL OR (SELECT keyed FROM turn))"
            f" ORDER BY id LIMIT :count FOR UPDATE SKIP LOCKED)) RETURNING id, key, data"
        )
        return put.bindparams(*types), notify.bindparams(*types), take
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
    return insert(outbox), insert(outbox), take_sqlite
