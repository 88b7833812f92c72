"""The transactional outbox: an event is a row in the caller's own transaction until an engine has acknowledged it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import bindparam, delete, event, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from asignals.masking import redacted, said
from asignals.relay._cancel import limited
from asignals.relay._connected import begun, connected
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._dialect import (
    channel_of,
    is_postgres,
    name_of,
    quoted,
)
from asignals.relay._envelope import DeadLetter, Envelope
from asignals.relay._listening import listening, notify
from asignals.relay._outbox_rows import ANSWER_TIMEOUT, Rows, are_for, rows_of
from asignals.relay._settings import check_numbers, given
from asignals.relay._sql import Stored
from asignals.relay._transport import PublishRefusedError, engine_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from sqlalchemy import ColumnElement, Connection, CursorResult
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool

    from asignals.relay._sql import AnySession

logger: logging.Logger = logging.getLogger("asignals.relay")

T = TypeVar("T")

_LOOK: Final = 10.0  # seconds after which refused events are counted again: another process may replay them
_GATHER: Final = 0.005  # seconds between two looks for what did not fill a batch: commits add up meanwhile
_AT_ONCE: Final = 1_000  # refused events that are removed together
_PATIENCE: Final = 60.0  # seconds that the first event for another engine may wait before that is a problem
_WRITTEN: Final = "asignals_outboxes"  # in a session's `info`: the outboxes written to, each with its connection


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
    """An outbox in the application's own database (PostgreSQL, SQLite, MariaDB 10.6, MySQL 8.0.4, or newer).

    `batch` is how many events are published together. A row goes away when the transport has acknowledged it. One
    that the transport refuses for ever stays with its `error`, and is passed over. `keep` is for how many seconds such
    a one is kept, by default for ever; older ones are removed now and then, and `expired` counts them. A row that waits
    to be published is never removed otherwise.
    """

    def __init__(
        self,
        database: str | AsyncEngine,
        *,
        schema: str | None = None,
        batch: int = 500,
        keep: float | None = None,
    ) -> None:
        super().__init__(database, schema, ("outbox",))
        check_numbers(batch=batch, **given(keep=keep))
        self.batch = batch
        self.keep = keep
        self.expired: int = 0
        self.connection_state: ConnectionState = ConnectionState(
            f"publishing from the outbox in {name_of(self.engine)}"
        )
        self._seen: WeakSet[Pool] = WeakSet()  # pools of sessions, other than our own
        self._refused = 0
        self._refused_at = float("-inf")
        self._wake_drain: Callable[[], object] | None = None
        self._channel = channel_of(quoted(self.engine, self.tables.outbox))
        self._used_for: str | None = None  # what it is used for: the engine that its relay publishes to
        self._table: int | None = None  # PostgreSQL's number of the table, where it is known
        self._other_tables: set[int] = set()  # that sessions have written to
        self._others: dict[str, tuple[int, float]] = {}  # the first event for each other engine, and since when it is
        self._reported: set[str] = set()  # those of them that have waited for too long, and were logged
        self._rows = self._make_rows()

    def _make_rows(self) -> Rows:
        return rows_of(self.engine, self._locking, self._single, self.tables.outbox, self._channel, self._used_for)

    def use_for(self, transport: object) -> None:
        """Keep events for one engine: relays with other engines may share the table, each with its own outbox.

        With a `Memory` or a user's own transport, rows name no engine, and all rows are published.

        Raises `ValueError` where it is used for another engine already, or the engine would wait for its connection.
        """
        self.check_pool_for(transport)
        used_for = engine_name(transport)
        if self._used_for not in (None, used_for):
            raise ValueError(
                f"this outbox is used for {self._used_for} already: give the relay for"
                f" {used_for or type(transport).__name__} another one, which may be on the same table:"
                f" outbox=SQLAlchemyOutbox(…)"
            )
        self._used_for = used_for
        self._rows = self._make_rows()

    @property
    def _ours(self) -> list[ColumnElement[bool]]:
        return are_for(self.tables.outbox, self._used_for)

    async def put(self, envelope: Envelope, session: AnySession | None = None) -> None:
        """Write the event in the transaction of `session`: it commits or vanishes with what else is done there.

        A scoped session stands for that of its scope.

        Without a session the row has its own transaction. After the commit the relay in this process is woken, or,
        where none runs, NOTIFY wakes those elsewhere. A connection that is no session's does not tell when it has
        committed: there NOTIFY is part of the transaction, and such transactions commit one at a time.

        Raises `RuntimeError` where the session is in AUTOCOMMIT, which has no transactions.
        """
        row = {"key": envelope.key, "data": envelope.encode()}
        if isinstance(session, async_scoped_session):
            session = session()
        if session is None:
            async with connected(self._single) as connection:
                await connection.execute(self._rows.insert, row)
                await connection.commit()
                if not self._wake_here() and is_postgres(self.engine):
                    await notify(await connection.get_raw_connection(), self._channel)
        elif isinstance(session, AsyncSession):
            written = await self.execute_in(session, self.tables.outbox, self._rows.insert, row)
            session.sync_session.info.setdefault(_WRITTEN, {})[self] = written.connection
            await self._check_table(session, written)
        elif isinstance(session, AsyncConnection):
            written = await self.execute_in(session, self.tables.outbox, self._rows.insert_and_notify, row)
            await self._check_table(session, written)
        else:
            raise TypeError(
                f"session must be an AsyncSession, an async_scoped_session or an AsyncConnection, not"
                f" {type(session).__name__!r}"
            )

    async def check(self) -> None:
        """As for all that is kept in tables; learns which one is published from."""
        await super().check()
        if is_postgres(self.engine):
            find = text("SELECT CAST(to_regclass(CAST(:name AS text)) AS oid)")
            async with connected(self.engine) as connection:
                found = await connection.execute(find, {"name": quoted(self.engine, self.tables.outbox)})
                self._table = found.scalar()

    async def _check_table(self, session: AnySession, written: CursorResult[Any]) -> None:
        """Say, once, that a session has written to another table of the name, as it has another `search_path`."""
        if not is_postgres(self.engine):
            return
        table: int = written.scalar_one()
        if table == self._table or table in self._other_tables:
            return
        if name_of(written.connection.engine) != self.database_name:
            return  # `check_transactions` says so
        if self._table is None:
            self._table = table
            return
        self._other_tables.add(table)
        find = text("SELECT oid, CAST(relnamespace AS regnamespace)::text FROM pg_class WHERE oid IN (:one, :other)")
        both = {"one": self._table, "other": table}
        rows: Any = await self.execute_in(session, self.tables.outbox, find, both)
        schemas: dict[int, str] = dict(rows.all())
        if self._table not in schemas:  # somebody has made it again
            self._table = table
            self._other_tables.clear()
        else:
            logger.warning(
                "a session with another search_path writes events to the outbox in schema %s of %s, and others are in"
                " schema %s: they stay there until a relay publishes them; SQLAlchemyOutbox(…, schema=…) names one"
                " for all",
                schemas.get(table),
                self.database_name,
                schemas[self._table],
            )

    def check_transactions(self, connection: Connection) -> None:
        """Say also, once, that a session writes to a database that this outbox is not read from."""
        super().check_transactions(connection)
        pool = connection.engine.pool
        if pool is self.engine.sync_engine.pool or pool in self._seen:
            return
        self._seen.add(pool)
        if (other := name_of(connection.engine)) != self.database_name:
            logger.warning(
                "a session writes events to the outbox in %s, and this relay publishes those in %s: they stay there"
                " until another one publishes them",
                other,
                self.database_name,
            )

    def _committed(self, connection: Connection | None) -> None:
        if connection is not None and not self._wake_here() and is_postgres(self.engine) and not connection.closed:
            await_only(notify(connection.connection, self._channel))

    def _wake_here(self) -> bool:
        """Wake the relay that drains in this process; tells whether there is one."""
        if self._wake_drain is None:
            return False
        self._wake_drain()
        return True

    async def count(self) -> int:
        """Count the rows that wait to be published."""
        outbox = self.tables.outbox
        query = select(func.count()).select_from(outbox).where(outbox.c.refused_at.is_(None), *self._ours)
        async with connected(self.engine) as connection:
            return int((await connection.execute(query)).scalar_one())

    async def oldest(self) -> float:
        """Give for how many seconds the oldest row waits to be published, 0 when there is none."""
        outbox = self.tables.outbox
        query = select(outbox.c.data).where(outbox.c.refused_at.is_(None), *self._ours).order_by(outbox.c.id).limit(1)
        async with connected(self.engine) as connection:
            data = (await connection.execute(query)).scalar()
        try:
            return 0.0 if data is None else max(0.0, time.time() - Envelope.decode(bytes(data)).time)
        except ValueError:  # it is about to be refused
            return 0.0

    # -- events that the engine refused ------------------------------------------------------------------------------

    async def count_refused(self) -> int:
        """Count the events that the engine refused for ever: the dead letters of this side."""
        outbox = self.tables.outbox
        query = select(func.count()).select_from(outbox).where(outbox.c.refused_at.is_not(None), *self._ours)
        async with connected(self.engine) as connection:
            self._refused = int((await connection.execute(query)).scalar_one())
        return self._refused

    async def scan_refused(self, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read them as dead letters in batches, the oldest first; `error` is the engine's reason."""
        outbox = self.tables.outbox
        last = -1
        query = select(outbox.c.id, outbox.c.data, outbox.c.error, outbox.c.refused_at).order_by(outbox.c.id)
        query = query.where(outbox.c.refused_at.is_not(None), outbox.c.id > bindparam("last"), *self._ours).limit(batch)
        while True:
            async with connected(self.engine) as connection:
                rows = (await connection.execute(query, {"last": last})).all()
            if not rows:
                return
            last = rows[-1].id
            yield [_letter(*row) for row in rows]

    async def retry_refused(self, letters: Sequence[DeadLetter] | None = None) -> int:
        """Have refused events published once more, those of some letters or all; returns how many."""
        outbox = self.tables.outbox
        statement = update(outbox).where(outbox.c.refused_at.is_not(None), *self._ours)
        statement = statement.values(error=None, refused_at=None)
        if letters is not None:
            statement = statement.where(outbox.c.id.in_([int(letter.position) for letter in letters]))
        async with begun(self.engine) as connection:
            count = (await connection.execute(statement)).rowcount
        self._wake_here()
        self._refused_at = float("-inf")
        return count

    async def delete_refused(self, letters: Sequence[DeadLetter]) -> None:
        """Remove refused events for good."""
        outbox = self.tables.outbox
        which = outbox.c.id.in_([int(letter.position) for letter in letters]), outbox.c.refused_at.is_not(None)
        async with begun(self.engine) as connection:
            await connection.execute(delete(outbox).where(*which))
        self._refused_at = float("-inf")

    @property
    def problems(self) -> dict[str, str]:
        """What a relay's health shows beside the state of the connection."""
        found: dict[str, str] = {}
        if self._refused:
            text = f"{self._refused} events were refused by the engine: see `asignals relay dead` and `replay`"
            found["outbox.refused"] = text
        for name, (_, since) in self._others.items():
            if time.monotonic() - since > _PATIENCE:
                text = f"events wait for it in {self.database_name}, and no relay with that engine takes them"
                found[f"outbox for {name}"] = text
        return found

    # -- publishing --------------------------------------------------------------------------------------------------

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
                        await self._look_for_refused()
                        count = await self.drain_once(publish)
                        attempts.succeeded()
                        looked = time.monotonic()
                        if count < self.batch:
                            with suppress(TimeoutError):
                                async with asyncio.timeout(self._rows.poll):
                                    await wake.wait()
                            await asyncio.sleep(max(0.0, looked + _GATHER - time.monotonic()))
        finally:
            if self._wake_drain is wake_here:
                self._wake_drain = None

    async def _look_for_refused(self) -> None:
        now_ = time.monotonic()
        if now_ - self._refused_at > _LOOK:
            if await self.count_refused() and self.keep is not None:
                await self._expire(time.time() - self.keep)
            await self._look_for_others(now_)
            self._refused_at = now_

    async def _look_for_others(self, now_: float) -> None:
        """See which event is the first that waits for each other engine, and since when it is that one."""
        outbox = self.tables.outbox
        first = select(outbox.c.engine, func.min(outbox.c.id)).where(outbox.c.refused_at.is_(None))
        first = first.where(outbox.c.engine != (self._used_for or outbox.c.engine)).group_by(outbox.c.engine)
        async with connected(self.engine) as connection:
            rows = (await connection.execute(first)).all()
        before = self._others
        self._others = {
            name: before[name] if before.get(name, (None,))[0] == id_ else (id_, now_) for name, id_ in rows
        }
        waiting = {name for name, (_, since) in self._others.items() if now_ - since > _PATIENCE}
        for name in waiting - self._reported:
            logger.warning(
                "events for %s wait in the outbox in %s, and no relay with that engine takes them; this one publishes"
                " those for %s",
                name,
                self.database_name,
                self._used_for or "any",
            )
        self._reported = waiting

    async def _expire(self, before: float) -> None:
        """Remove some of the oldest refused events; when there are more, the next time."""
        outbox = self.tables.outbox
        old = select(outbox.c.id).where(outbox.c.refused_at < before).limit(_AT_ONCE)
        async with begun(self._locking) as connection:
            ids = (await connection.execute(old)).scalars().all()
            gone = 0
            if ids:
                which = outbox.c.id.in_(ids), outbox.c.refused_at < before
                gone = (await connection.execute(delete(outbox).where(*which))).rowcount
        if gone:
            self.expired += gone
            self._refused -= gone
            logger.info(
                "removed %d refused events from the outbox in %s: older than %g s", gone, self.database_name, self.keep
            )

    async def drain_once(self, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> int:
        """Publish one batch and remove its rows; returns how many there were."""
        async with self._rows.take(self.batch) as (connection, rows):
            if rows:
                refused = await _publish(publish, rows)
                await self._keep_refused(connection, rows, refused)
            return len(rows)

    async def _keep_refused(self, connection: AsyncConnection, rows: list[Any], refused: dict[int, str]) -> None:
        """Put the refused rows back under new ids, with the reason."""
        for row in rows:
            if row.id in refused:
                reason = redacted(refused[row.id])[:1000]
                logger.error(
                    "the engine refused an event for ever (%s): see the dead letters of 'outbox.refused'", reason
                )
                back = {"key": row.key, "data": row.data, "error": reason, "refused_at": time.time()}
                back["engine"] = self._used_for
                await connection.execute(insert(self.tables.outbox).values(back))
                self._refused += 1


@event.listens_for(Session, "after_commit")  # of all sessions: to listen to one costs more than to write a row
def _after_commit(session: Session) -> None:
    if _WRITTEN in session.info and not session.in_nested_transaction():
        for outbox, connection in session.info.pop(_WRITTEN).items():
            outbox._committed(connection)


def _letter(position: int, data: bytes, error: str, refused_at: float | None) -> DeadLetter:
    letter = DeadLetter(bytes(data), "", error, 1, refused_at or 0.0, str(position))
    envelope = letter.envelope
    return letter if envelope is None else replace(letter, service=envelope.origin.partition("/")[0])


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
        await limited(publish(batch), ANSWER_TIMEOUT)
    except TimeoutError as error:
        raise TimeoutError(
            f"the engine did not acknowledge {len(batch)} events within {ANSWER_TIMEOUT:g} s ({said(error)})"
        ) from error
    except PublishRefusedError as error:
        refused.update((envelopes[id_], reason) for id_, reason in error.refused.items() if id_ in envelopes)
    return refused
