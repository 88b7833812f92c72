"""How relays that drain one outbox share its rows, in each database.

A row is never tracked by "the last id seen": ids are given out before transactions commit, so a smaller one may appear
after a larger one. What is to be published is whatever is in the table.

- PostgreSQL and MariaDB: a relay deletes rows in a transaction that it commits only after the engine has acknowledged
  them (FOR UPDATE SKIP LOCKED gives every relay other rows). A relay that dies rolls back by dying; a server that dies
  may have forgotten the last deletions, and these events are published again.
- SQLite has one writer, so a transaction must not stay open while an engine is spoken to: rows are claimed until a
  time.

Rows with a key are published by one relay at a time, in order of their ids.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import bindparam, delete, insert, literal_column, or_, select, text, update
from sqlalchemy.dialects import postgresql

from asignals.relay._connected import LIMIT, answered, begun, connected
from asignals.relay._dialect import PG_IDLE, PG_NO_WAIT, channel_of, is_mysql, is_postgres, lock_of, now, quoted
from asignals.relay._mysql import locked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ANSWER_TIMEOUT: Final = 10.0  # seconds that one publishing of a batch may take; less than `IDLE`
_LOOKED_AT: Final = 10  # batches of rows that a relay looks at in SQLite for those that are free
_SHARED: Final = 8  # relays that find rows at the same time in MariaDB, if each takes as many as it may


class Rows(Protocol):
    """The rows of one outbox.

    `insert` puts one, `insert_and_notify` also has those look who listen; PostgreSQL gives the number of the table for
    it, which depends on the session's `search_path`. `poll` is after how many seconds the table is
    looked at even if nobody said that there is something.
    """

    insert: Any
    insert_and_notify: Any
    poll: float

    def take(self, count: int) -> AbstractAsyncContextManager[tuple[AsyncConnection, list[Any]]]:
        """Give some rows to publish in the block, and a connection; leaving the block well removes them."""
        ...


def rows_of(  # noqa: PLR0913, PLR0917  of one outbox
    engine: AsyncEngine, locking: AsyncEngine, single: AsyncEngine, outbox: Table, channel: str, used_for: str | None
) -> Rows:
    """Choose by the database; `used_for` names the engine whose rows they are, `None` means all."""
    if is_postgres(engine):
        return _Postgres(engine, outbox, channel, used_for)
    return _MySQL(engine, locking, outbox, used_for) if is_mysql(engine) else _SQLite(engine, single, outbox, used_for)


def are_for(outbox: Table, used_for: str | None) -> list[ColumnElement[bool]]:
    """Give the condition on rows that they are for an engine."""
    return [] if used_for is None else [or_(outbox.c.engine.is_(None), outbox.c.engine == used_for)]


class _Postgres:
    poll = 1.0

    def __init__(self, engine: AsyncEngine, outbox: Table, channel: str, used_for: str | None) -> None:
        self._engine = engine
        name = quoted(engine, outbox)
        put = f"WITH row AS (INSERT INTO {name} (key, data, engine) VALUES (:key, :data, :engine))"  # noqa: S608  names are quoted
        # Not RETURNING, for which the role would need SELECT as well.
        table = "CAST(to_regclass('{}') AS oid)".format(name.replace("'", "''"))
        insert_, notify = text(f"{put} SELECT {table}"), text(f"{put} SELECT {table}, pg_notify('{channel}', '')")
        own = bindparam("engine", used_for, type_=outbox.c.engine.type)
        types = bindparam("key", type_=outbox.c.key.type), bindparam("data", type_=postgresql.BYTEA), own
        is_ours, lock = (
            ("", name) if used_for is None else (" AND (engine IS NULL OR engine = :engine)", name + used_for)
        )
        self.insert = insert_.bindparams(*types)
        self.insert_and_notify = notify.bindparams(*types)
        self._take = text(
            f"WITH turn AS MATERIALIZED "  # noqa: S608  names are quoted, values bound
            f"(SELECT pg_try_advisory_xact_lock({lock_of(lock)}) AS keyed, {PG_IDLE} AS idle)"
            f" DELETE FROM {name} USING {PG_NO_WAIT}, {PG_IDLE} AS idle WHERE id = ANY(ARRAY("
            f"SELECT id FROM {name} WHERE refused_at IS NULL AND (key IS NULL OR (SELECT keyed FROM turn)){is_ours}"
            f" ORDER BY id LIMIT :count FOR UPDATE SKIP LOCKED)) RETURNING id, key, data"
        )
        if used_for is not None:
            self._take = self._take.bindparams(own)

    @asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[tuple[AsyncConnection, list[Any]]]:
        async with connected(self._engine, ANSWER_TIMEOUT + 2 * LIMIT) as connection:
            found = await answered(self._engine, connection.execute(self._take, {"count": count}))
            yield connection, sorted(found.all())
            await answered(self._engine, connection.commit())


class _MySQL:
    """Rows without a key are locked; those with one belong to whoever has the server's lock of the outbox's name.

    They are read without being locked: a lock that somebody has for a moment, as a scan does on its way, would make
    SKIP LOCKED pass over the first row of a key, and give the second. All is done by the primary key, whatever the
    table's statistics say: a scan would wait for rows that others have taken.
    """

    poll = 0.2  # it has no notifications

    def __init__(self, engine: AsyncEngine, locking: AsyncEngine, outbox: Table, used_for: str | None) -> None:
        self._engine = engine
        self._locking = locking
        self.insert = self.insert_and_notify = insert(outbox).values(engine=used_for)
        self._lock = channel_of(f"{engine.url.database}.{quoted(engine, outbox)}{used_for or ''}")
        waiting = select(outbox.c.id, outbox.c.key.is_not(None)).where(outbox.c.refused_at.is_(None))
        waiting = waiting.where(*are_for(outbox, used_for))
        self._first = waiting.limit(1)
        is_free = or_(outbox.c.key.is_(None), literal_column("@asignals_turn") == 1)
        self._candidates = waiting.where(is_free).order_by(outbox.c.id).limit(bindparam("count"))
        these = (
            "FROM JSON_TABLE(:ids, '$[*]' COLUMNS (id BIGINT PATH '$')) AS mine"
            f" STRAIGHT_JOIN {quoted(engine, outbox)} AS one FORCE INDEX (PRIMARY) ON one.id = mine.id"
        )
        self._read = text(f"SELECT one.id, one.`key`, one.data {these} LIMIT :count")
        self._read_locked = text(f"{self._read.text} FOR UPDATE SKIP LOCKED")
        self._remove = text(f"DELETE one {these}")

    @asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[tuple[AsyncConnection, list[Any]]]:
        async with connected(self._engine) as connection:
            found = (await connection.execute(self._first)).first()
            if found is None:  # an idle relay takes no lock
                yield connection, []
                return
        async with connected(self._locking, ANSWER_TIMEOUT + 2 * LIMIT) as connection, locked(connection, self._lock):
            rows = await answered(self._engine, self._found(connection, count))
            yield connection, rows
            if rows:
                ids = json.dumps([row.id for row in rows])
                await answered(self._engine, connection.execute(self._remove, {"ids": ids}))
            await answered(self._engine, connection.commit())

    async def _found(self, connection: AsyncConnection, count: int) -> list[Any]:
        """Take rows; those that other relays have are among the candidates, so there are more than are wanted."""
        found = (await connection.execute(self._candidates, {"count": count * _SHARED})).all()
        keyed = [id_ for id_, has_key in found[:count] if has_key]
        others = [id_ for id_, has_key in found if not has_key]
        rows: list[Any] = []
        for ids, read in (keyed, self._read), (others, self._read_locked):
            if ids and len(rows) < count:
                rows += await connection.execute(read, {"ids": json.dumps(ids), "count": count - len(rows)})
        return sorted(rows)


class _SQLite:
    poll = 1.0

    def __init__(self, engine: AsyncEngine, single: AsyncEngine, outbox: Table, used_for: str | None) -> None:
        self._engine = engine
        self._single = single
        self._outbox = outbox
        self._ours = are_for(outbox, used_for)
        self.insert = self.insert_and_notify = insert(outbox).values(engine=used_for)
        # A key is one relay's at a time. Only so many rows are looked at, however many wait.
        first = select(outbox.c.id, outbox.c.key, outbox.c.claimed_until).where(
            outbox.c.refused_at.is_(None), *self._ours
        )
        first = first.order_by(outbox.c.id).limit(bindparam("count") * _LOOKED_AT)
        row, other = first.subquery("row"), first.subquery("other")
        taken = select(other.c.key).where(other.c.key.is_not(None), other.c.claimed_until >= bindparam("now"))
        free = (
            select(row.c.id)
            .where(row.c.claimed_until < bindparam("now"), or_(row.c.key.is_(None), row.c.key.not_in(taken)))
            .order_by(row.c.id)
            .limit(bindparam("count"))
        )
        self._take = (
            update(outbox)
            .where(outbox.c.id.in_(free.scalar_subquery()))
            .values(claimed_until=bindparam("until"))
            .returning(outbox.c.id, outbox.c.key, outbox.c.data)
        )

    @asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[tuple[AsyncConnection, list[Any]]]:
        outbox = self._outbox
        claim = {"count": count, "now": now(), "until": now() + ANSWER_TIMEOUT * 1.5}
        free = select(outbox.c.id).where(outbox.c.refused_at.is_(None), outbox.c.claimed_until < now(), *self._ours)
        async with begun(self._single) as connection:
            # Reading takes no write lock, so an idle relay blocks nobody.
            found = (await connection.execute(free.limit(1))).first()
            rows = [] if found is None else sorted((await connection.execute(self._take, claim)).all())
        mine = outbox.c.id.in_([row.id for row in rows])
        try:
            async with connected(self._engine) as connection:
                yield connection, rows
                if rows:
                    await connection.execute(delete(outbox).where(mine))
                await connection.commit()
        except BaseException:
            if rows:
                async with begun(self._engine) as connection:
                    await connection.execute(update(outbox).where(mine).values(claimed_until=0))
            raise
