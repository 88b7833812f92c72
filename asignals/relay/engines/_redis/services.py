"""The services that Redis keeps events for: their groups on the streams, and the heartbeats of their instances."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from asignals.relay._envelope import check_name
from asignals.relay._monitoring.figures import EXPIRY, TopicFigures, held_of
from asignals.relay.engines._redis.keys import order_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from asignals.relay.engines._redis.connection import RedisConnection

# KEYS: the heartbeats of a service. ARGV: the instance, for how many seconds it counts as alive, what it says.
_BEAT: Final = """
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', now + ARGV[2]) .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[2])
local beats = redis.call('HGETALL', KEYS[1])
for i = 1, #beats, 2 do
    local expires = tonumber(string.match(beats[i + 1], '^%d+ ') or 0)
    if expires < now then redis.call('HDEL', KEYS[1], beats[i]) end
end
"""


class Services:
    """Makes services known, removes them, and gives their figures."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def add(self, service: str, topics: Collection[str]) -> None:
        """Create the service's group on each topic, from the first event that is there, where it is missing."""
        check_name("service", service)
        for stream in (stream for topic in topics for stream in self._keys.streams_of(topic)):
            await self._connection.ask(self._connection.client().sadd(self._keys.topics, stream))
            try:
                creating = self._connection.client().xgroup_create(stream, service, id="0", mkstream=True)
                await self._connection.ask(creating)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def forget(self, service: str, topics: Collection[str] | None) -> None:
        """Remove the service's groups, of some topics or of all."""
        if topics is None:
            topics = {self._keys.topic_of(stream) for stream in await self.streams()}
        for topic in topics:
            for stream in self._keys.streams_of(topic):
                with suppress(ResponseError):  # no such topic
                    await self._connection.ask(self._connection.client().xgroup_destroy(stream, service))
            await self._connection.ask(self._connection.client().delete(*self._keys.order(service, topic)))

    async def figures(self, service: str | None, topics: Collection[str] | None) -> list[TopicFigures]:
        """Give what waits, by service and topic."""
        groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
        for stream in await self.streams():
            topic = self._keys.topic_of(stream)
            if topics is None or topic in topics:
                for group in await self.groups(stream):
                    name = group["name"].decode()
                    if service in (None, name):
                        groups.setdefault((name, topic), []).append((stream, group))
        return [await self._figures_of(*whose, both) for whose, both in sorted(groups.items())]

    async def _figures_of(self, service: str, topic: str, groups: list[tuple[str, dict[str, Any]]]) -> TopicFigures:
        """Give the figures of a topic's two streams, that of the events with a key and that of the others."""
        client = self._connection.client()
        backlog, pending, oldest = 0, 0, 0.0
        for stream, group in groups:
            held, lag = int(group["pending"]), group.get("lag")
            if lag is None:  # not known to Redis after events were removed from the middle
                lag = await self._connection.ask(client.xlen(stream))
            backlog += held + int(lag)
            pending += held
            if held or lag:
                oldest = max(oldest, await self._oldest(stream, group, held))
        behind = int(await self._connection.ask(client.zcard(self._keys.order(service, topic)[-1])))
        beats = await self._beats(service)
        in_flight = sum(held_of(beat).get(topic, 0) for beat in beats)
        retries = max(0, pending - behind - in_flight)
        return TopicFigures(
            service, topic, backlog, oldest, in_flight, retries, sum(topic in held_of(beat) for beat in beats)
        )

    async def _oldest(self, stream: str, group: dict[str, Any], pending: int) -> float:
        """Give the age of the first event that a group has not acknowledged, by Redis's own clock."""
        client = self._connection.client()
        if pending:
            first = (await self._connection.ask(client.xpending(stream, group["name"])))["min"]
        else:
            after = f"({group['last-delivered-id'].decode()}"
            first = next((id_ for id_, _ in await self._connection.ask(client.xrange(stream, after, count=1))), None)
        if first is None:
            return 0.0
        seconds, microseconds = await self._connection.ask(client.time())
        return max(0.0, int(seconds) + int(microseconds) / 1e6 - order_of(first)[0] / 1000)

    async def _beats(self, service: str) -> list[bytes]:
        """Give the heartbeats of a service's instances that have not expired."""
        beats = await self._connection.ask(self._connection.client().hvals(self._keys.instances(service)))
        seconds, _ = await self._connection.ask(self._connection.client().time())
        parts = (beat.partition(b" ") for beat in beats)
        return [held for until, _, held in parts if until.isdigit() and int(until) > int(seconds)]

    async def streams(self) -> list[str]:
        """List the streams of all topics."""
        streams = await self._connection.ask(self._connection.client().smembers(self._keys.topics))
        return sorted(stream.decode() for stream in streams)

    async def groups(self, stream: str) -> list[dict[str, Any]]:
        """Give what Redis says of the groups of a stream."""
        try:
            groups: list[dict[str, Any]] = await self._connection.ask(self._connection.client().xinfo_groups(stream))
        except ResponseError:  # no such key
            return []
        return groups

    async def beat(self, service: str, instance: str, held: dict[str, int]) -> None:
        """Write the heartbeat of an instance: how many events it holds, by topic."""
        key = self._keys.instances(service)
        await self._connection.script(_BEAT, [key], [instance, int(EXPIRY), json.dumps(held)])

    async def stop_beating(self, service: str, instance: str) -> None:
        """Remove the heartbeat of an instance."""
        await self._connection.ask(self._connection.client().hdel(self._keys.instances(service), instance))
