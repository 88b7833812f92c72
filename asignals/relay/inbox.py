"""An inbox in the application's own database."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from asignals.relay._batch import Coalescer
from asignals.relay._connected import begun, connected, repeated
from asignals.relay._current import AlreadyHandledError, calling
from asignals.relay._dialect import is_duplicate, is_mysql, is_postgres, upsert
from asignals.relay._inbox import Memo
from asignals.relay._settings import check_numbers
from asignals.relay._sql import Stored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._current import Call
    from asignals.relay._sql import AnySession

logger: logging.Logger = logging.getLogger("asignals.relay")

_SWEEP: Final = 600.0  # seconds between two times that old rows are removed
_SWEPT: Final = 1_000  # rows that are removed at once: a large removal would keep others waiting


class SQLAlchemyInbox(Stored):
    """Remembers in a table, for all instances: an event that comes twice calls nobody twice.

    In PostgreSQL, SQLite, MariaDB 10.6, MySQL 8.0.4, or newer.

    `keep` is for how many seconds; older rows are removed now and then, a thousand at once, and `expired` counts them.
    What a receiver did just before its process was
    killed may still be repeated: its row is written after it has returned.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, keep: float = 7 * 86_400.0) -> None:
        super().__init__(database, schema, ("inbox",))
        check_numbers(keep=keep)
        self.keep = keep
        self.expired: int = 0
        self._swept = 0.0
        self._going = 0  # rows that this sweep has removed so far
        self._recall = Coalescer(self._recall_many)
        self._remember = Coalescer(self._remember_many)

    async def count(self) -> int:
        """Count the rows, of all services."""
        async with connected(self.engine) as connection:
            return int((await connection.execute(select(func.count()).select_from(self.tables.inbox))).scalar_one())

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        return await self._recall((event_id, service))

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered, and commit."""
        await self._remember((event_id, service, change))

    async def _recall_many(self, wanted: list[tuple[str, str]]) -> list[Memo]:
        inbox = self.tables.inbox
        memos = {pair: Memo() for pair in wanted}
        query = select(inbox.c.event_id, inbox.c.service, inbox.c.receiver, inbox.c.data).where(
            inbox.c.event_id.in_({event_id for event_id, _ in wanted})
        )
        async with begun(self._single) as connection:
            rows = (await connection.execute(query)).all()
        for event_id, service, receiver, data in rows:
            memo = memos.get((event_id, service))
            if memo is None:
                continue
            if receiver:
                memo.done.add(receiver)
            else:
                memo.merge(Memo.decode(data or b""))
        for memo in memos.values():
            memo.failed -= memo.done
        return [memos[pair] for pair in wanted]

    async def _remember_many(self, changes: list[tuple[str, str, Memo]]) -> list[None]:
        time_ = time.time()
        # One row for each receiver that is done, which other instances may write at the same time, and one without a
        # receiver for all the rest. One row each: a statement may not touch a row twice.
        rows: dict[tuple[str, str, str], bytes | None] = {}
        for event_id, service, change in changes:
            rows.update(((event_id, service, receiver), None) for receiver in change.done)
            if not change.is_plain:
                rows[event_id, service, ""] = change.encode()
        values = [
            {"event_id": event_id, "service": service, "receiver": receiver, "data": data, "time": time_}
            for (event_id, service, receiver), data in sorted(rows.items())
        ]
        if values:
            await repeated(partial(self._write, values))
        if time_ - self._swept > _SWEEP:
            await self._forget(time_)
        return [None] * len(changes)

    async def _write(self, rows: list[dict[str, Any]]) -> None:
        write = upsert(self.engine.dialect, self.tables.inbox, ("event_id", "service", "receiver"), "data")
        async with begun(self._locking) as connection:
            if is_mysql(self.engine):  # in one statement, which its drivers do not make of many
                await connection.execute(write.values(rows))
            else:
                await connection.execute(write, rows)

    async def _forget(self, time_: float) -> None:
        """Remove some of what is older than `keep`; when there is more, after the next change."""
        gone = await repeated(partial(self._sweep, time_ - self.keep))
        self.expired += gone
        self._going += gone
        if gone < _SWEPT:
            self._swept = time_
            if self._going:
                logger.info(
                    "removed %d rows from the inbox in %s: older than %g s", self._going, self.database_name, self.keep
                )
            self._going = 0

    async def purge(self, until: float, on_progress: Callable[[int, int], object] | None = None) -> int:
        """Remove the rows of up to a time, in seconds since the epoch, in batches; returns how many.

        An event whose rows are gone is handled again, should it ever come again.
        """
        done = 0
        while gone := await repeated(partial(self._sweep, until)):
            done += gone
            if on_progress is not None:
                on_progress(done, 0)
        logger.info("removed %d rows from the inbox in %s", done, self.database_name)
        return done

    async def _sweep(self, before: float) -> int:
        """Remove the oldest rows, a thousand or so at once; returns how many."""
        inbox = self.tables.inbox
        old = select(inbox.c.event_id).where(inbox.c.time < before).order_by(inbox.c.time).limit(_SWEPT)
        async with begun(self._locking) as connection:
            found = (await connection.execute(old)).scalars().all()
            if found:
                which = inbox.c.event_id.in_(set(found)), inbox.c.time < before
                return (await connection.execute(delete(inbox).where(*which))).rowcount
        return 0


@asynccontextmanager
async def once(session: AnySession) -> AsyncIterator[None]:
    """Give a receiver's changes their effect exactly once, in the transaction that they are made in.

    `async with session.begin(), once(session): …` notes in that transaction that this receiver has handled this event.
    The note and the changes are committed together, or neither is, so that a process that is killed between them and
    the acknowledgement repeats nothing. Where the event comes again although it was handled, `AlreadyHandledError` is
    raised before the block runs; leave it to the relay, which takes it for success. Two that handle one event at the
    same time wait for each other here.

    The relay needs `inbox=SQLAlchemyInbox(…)` in the database of the session. Where the signal was sent in this
    process, the block just runs.

    Raises:
        AlreadyHandledError: this receiver has handled this event.
        RuntimeError: the relay has another inbox, the receiver no name of its own (connect it with a dispatch_uid), or
            the session is in AUTOCOMMIT, and the note would be there without the changes.
        SchemaError: the table of the inbox is missing in the session's database.
        TimeoutError: the database did not answer.
    """
    call = calling.get()
    if call is not None:
        await _note(session, call)
    yield


async def _note(session: AnySession, call: Call) -> None:
    if not isinstance(call.inbox, SQLAlchemyInbox):
        raise RuntimeError(f"once(session) needs Relay(inbox=SQLAlchemyInbox(…)), not {type(call.inbox).__name__}")  # noqa: TRY004  how the relay is made, not what was passed
    if call.receiver is None:
        raise RuntimeError("once(session) needs a receiver with its own name: connect it with a dispatch_uid")
    event_id = call.envelope.repeats or call.envelope.id
    row = {"event_id": event_id, "service": call.service, "receiver": call.receiver, "time": time.time()}
    # MariaDB's INSERT IGNORE would ignore other errors, too. There a conflict undoes no more than its own statement.
    write: Any = insert(call.inbox.tables.inbox).values(row)
    if not is_mysql(call.inbox.engine):
        dialect = postgresql if is_postgres(call.inbox.engine) else sqlite
        write = dialect.insert(call.inbox.tables.inbox).values(row).on_conflict_do_nothing()
    try:
        written = await call.inbox.execute_in(session, call.inbox.tables.inbox, write)
    except DBAPIError as error:
        if is_duplicate(error):
            raise AlreadyHandledError(event_id, call.receiver) from None
        raise
    if written.rowcount == 0:
        raise AlreadyHandledError(event_id, call.receiver)
