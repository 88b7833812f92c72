"""An inbox in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asignals.relay._inbox import Memo

if TYPE_CHECKING:
    from asignals.relay.engines._redis.connection import RedisConnection

_REMEMBERED: Final = 7 * 86_400  # seconds


class RedisInbox:
    """Remembers for a week what was done of events that failed."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        key = self._connection.keys.inbox(service, event_id)
        found: Any = await self._connection.ask(self._connection.client().get(key))
        return Memo() if found is None else Memo.decode(found)

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        memo = await self.recall(event_id, service)
        memo.merge(change)
        key, client = self._connection.keys.inbox(service, event_id), self._connection.client()
        await self._connection.ask(client.set(key, memo.encode(), ex=_REMEMBERED))
