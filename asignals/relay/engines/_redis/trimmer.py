"""Removing what nobody needs any more: events that all have acknowledged, and consumers that are gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from asignals.relay.engines._redis.keys import order_of

if TYPE_CHECKING:
    from asignals.relay.engines._redis.connection import RedisConnection
    from asignals.relay.engines._redis.services import Services

GONE: Final = 30.0  # seconds of silence after which a consumer that holds nothing is removed

_FORGET: Final = """
local gone = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local facts = {}
    for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
    if facts.pending == 0 and facts.idle > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], facts.name)
        gone = gone + 1
    end
end
return gone
"""


class Trimmer:
    """Trims streams; those without groups by age, in seconds."""

    def __init__(self, connection: RedisConnection, services: Services, max_age: float | None) -> None:
        self.max_age = max_age
        self._connection = connection
        self._services = services

    async def trim(self) -> int:
        """Remove the events that every group of their topic has acknowledged, but for the last; returns how many."""
        gone = 0
        for stream in await self._services.streams():
            floor = await self._floor(stream)
            if floor is not None:
                trimming = self._connection.client().xtrim(stream, minid=floor, approximate=False)
                gone += int(await self._connection.ask(trimming))
        return gone

    async def _floor(self, stream: str) -> bytes | str | None:
        """Give the id below which nothing of a stream is needed any more."""
        floors: list[bytes] = []
        for group in await self._services.groups(stream):
            oldest = None
            if group["pending"]:
                oldest = (await self._connection.ask(self._connection.client().xpending(stream, group["name"])))["min"]
            floors.append(oldest or group["last-delivered-id"])
        if floors:
            return min(floors, key=order_of)
        return None if self.max_age is None else f"{int((time.time() - self.max_age) * 1000)}-0"

    async def forget_consumers(self, service: str, idle: float) -> int:
        """Remove consumers of a service that hold nothing and said nothing for `idle` seconds; returns how many."""
        gone = 0
        for stream in await self._services.streams():
            if any(group["name"].decode() == service for group in await self._services.groups(stream)):
                gone += int(await self._connection.script(_FORGET, [stream], [service, int(idle * 1000)]))
        return gone
