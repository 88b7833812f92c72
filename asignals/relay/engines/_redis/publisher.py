"""Adding to streams, each id once within a window: events, and dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asignals.relay.engines._redis.connection import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay._envelope import DeadLetter, Envelope
    from asignals.relay.engines._redis.connection import RedisConnection

# KEYS: the set of topics, where ids are remembered, the streams. ARGV: for how many seconds an id is; for each stream
# how many events follow, and of each its id and data; where that number is negative, they have a key as well.
# An id that is repeated is remembered again: it may come again and again until enough replicas have it.
_ADD: Final = """
local place = 2
for i = 3, #KEYS do
    local stream, count = KEYS[i], tonumber(ARGV[place])
    local step = count < 0 and 3 or 2
    redis.call('SADD', KEYS[1], stream)
    for at = place + 1, place + math.abs(count) * step, step do
        if not redis.call('SET', KEYS[2] .. ARGV[at], '', 'EX', ARGV[1], 'GET') then
            if count < 0 then
                redis.call('XADD', stream, '*', 'd', ARGV[at + 1], 'k', ARGV[at + 2])
            else
                redis.call('XADD', stream, '*', 'd', ARGV[at + 1])
            end
        end
    end
    place = place + 1 + math.abs(count) * step
end
"""


class Publisher:
    """Publishes batches, each by one script: all or nothing, once enough replicas have it."""

    def __init__(self, connection: RedisConnection, dedup_window: float, replicas: int) -> None:
        self._connection = connection
        self._dedup_window = max(1, int(dedup_window))
        self._replicas = replicas

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the streams have all of them."""
        for start in range(0, len(envelopes), AT_ONCE):
            some = envelopes[start : start + AT_ONCE]
            await self._add(some)
        self._connection.state.restored()

    async def _add(self, envelopes: Sequence[Envelope]) -> None:
        keys = self._connection.keys
        plain: dict[str, list[Any]] = {}
        keyed: dict[str, list[Any]] = {}
        for one in envelopes:
            if one.key is None:
                plain.setdefault(f"{keys.events}{one.topic}", []).extend((one.id, one.encode()))
            else:
                keyed.setdefault(f"{keys.keyed}{one.topic}", []).extend((one.id, one.encode(), one.key))
        arguments: list[Any] = [self._dedup_window]
        for found in plain.values():
            arguments += (len(found) // 2, *found)
        for found in keyed.values():
            arguments += (-len(found) // 3, *found)
        streams = [*plain, *keyed]
        await self._connection.script(_ADD, [keys.topics, keys.seen, *streams], arguments, self._replicas)

    async def add_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Add a letter to the queue's own stream."""
        keys, dead = self._connection.keys, self._connection.keys.dead(queue)
        arguments = [self._dedup_window, 1, letter.id, letter.encode()]
        await self._connection.script(_ADD, [keys.queues, f"{dead}:seen:", dead], arguments, self._replicas)
