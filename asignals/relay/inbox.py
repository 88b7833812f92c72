"""An inbox in the application's own database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from asignals.relay._batch import Together
from asignals.relay._inbox import Memo
from asignals.relay._sql import Stored, begun, is_postgres

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_SWEEP: Final = 600.0  # seconds between two removals of what is too old


class SQLAlchemyInbox(Stored):
    """Remembers in a table (PostgreSQL, SQLite), for all instances: an event that comes twice calls nobody twice.

    `keep` is for how many seconds; older rows are removed now and then. What a receiver did just before its process was
    killed may still be repeated: its row is written after it has returned.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, keep: float = 7 * 86_400.0) -> None:
        super().__init__(database, schema)
        self.keep = keep
        self._swept = 0.0
        self._recall = Together(self._recall_many)
        self._remember = Together(self._remember_many)

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        return await self._recall((event_id, service))

    async def remember(self, event_id: str, service: str, done: set[str], failures: int | None = None) -> None:
        """Write the receivers that are done, and the number of failures unless it is `None`, and commit."""
        await self._remember((event_id, service, done, failures))

    async def _recall_many(self, wanted: list[tuple[str, str]]) -> list[Memo]:
        inbox = self.tables.inbox
        memos = {pair: Memo() for pair in wanted}
        query = select(inbox.c.event_id, inbox.c.service, inbox.c.receiver, inbox.c.failures).where(
            inbox.c.event_id.in_({event_id for event_id, _ in wanted})
        )
        async with begun(self._single) as connection:
            for event_id, service, receiver, failures in await connection.execute(query):
                memo = memos.get((event_id, service))
                if memo is None:
                    continue
                if receiver:
                    memo.done.add(receiver)
                else:
                    memo.failures = failures
        return [memos[pair] for pair in wanted]

    async def _remember_many(self, memos: list[tuple[str, str, set[str], int | None]]) -> list[None]:
        time_ = time.time()
        # One row each: a statement may not touch a row twice. The row without a receiver counts the failures.
        rows: dict[tuple[str, str, str], int] = {}
        for event_id, service, done, failures in memos:
            for receiver in done:
                rows[event_id, service, receiver] = 0
            if failures is not None:
                rows[event_id, service, ""] = failures
        values = [
            {"event_id": event_id, "service": service, "receiver": receiver, "failures": failures, "time": time_}
            for (event_id, service, receiver), failures in sorted(rows.items())
        ]
        if values:
            dialect = postgresql if is_postgres(self.engine) else sqlite
            write = dialect.insert(self.tables.inbox)
            keys = ["event_id", "service", "receiver"]
            write = write.on_conflict_do_update(index_elements=keys, set_={"failures": write.excluded.failures})
            async with begun(self.engine) as connection:
                await connection.execute(write, values)
        if time_ - self._swept > _SWEEP:
            self._swept = time_
            await self._sweep(time_ - self.keep)
        return [None] * len(memos)

    async def _sweep(self, before: float) -> None:
        inbox = self.tables.inbox
        async with begun(self.engine) as connection:
            await connection.execute(delete(inbox).where(inbox.c.time < before))
