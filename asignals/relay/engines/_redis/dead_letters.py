"""Dead letters in Redis: a stream for each queue of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asignals.relay._envelope import DeadLetter
from asignals.relay.engines._redis.connection import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from asignals.relay.engines._redis.connection import RedisConnection
    from asignals.relay.engines._redis.publisher import Publisher


class DeadLetterStreams:
    """Keeps dead letters, the same one only once within the window."""

    def __init__(self, connection: RedisConnection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Add a letter to the queue."""
        await self._publisher.add_dead_letter(queue, letter)

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        return int(await self._connection.ask(self._connection.client().xlen(self._connection.keys.dead(queue))))

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        start, dead = "-", self._connection.keys.dead(queue)
        while True:
            entries: Any = await self._connection.ask(self._connection.client().xrange(dead, start, count=batch))
            if not entries:
                return
            start = f"({entries[-1][0].decode()}"
            yield [DeadLetter.read(fields.get(b"d", b""), id_.decode()) for id_, fields in entries]

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters."""
        dead = self._connection.keys.dead(queue)
        for start in range(0, len(letters), AT_ONCE):
            positions = [letter.position for letter in letters[start : start + AT_ONCE]]
            await self._connection.ask(self._connection.client().xdel(dead, *positions))
