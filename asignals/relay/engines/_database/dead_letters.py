"""Dead letters in a database: a table, with the queue in a column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from asignals.relay._connected import begun, connected
from asignals.relay._dialect import is_postgres
from asignals.relay._envelope import DeadLetter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._tables import Tables

_AT_ONCE: Final = 500  # letters that one statement removes


class DeadLetterTable:
    """Keeps dead letters in a table."""

    def __init__(self, engine: AsyncEngine, tables: Tables) -> None:
        self.engine = engine
        self.tables = tables

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
