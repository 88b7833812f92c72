"""Redis Streams as the engine (extra: redis). Redis 7.0 or newer.

Redis keeps what it acknowledged only with `appendonly yes` and `appendfsync always`: with `everysec` it may answer
before it writes, and a killed server has forgotten up to two seconds.

A stream for each topic, a second one for its events that have a key, and on both a consumer group for each service that
receives the topic. Publishing is one script for a batch: all or nothing, and an event id that was
seen a short while ago is not added again. A consumer reads new events and takes over those that another one has left
idle; what it holds it claims again and again. A stream is trimmed up to what every group has acknowledged, no further;
one without groups by age.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

from asignals.masking import redacted
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import check_name
from asignals.relay._places import Address, Server, servers_of
from asignals.relay._settings import check_numbers, given
from asignals.relay._transport import Delivery
from asignals.relay.engines._broker import BrokerEngine
from asignals.relay.engines._redis.connection import ANSWER_TIMEOUT, AT_ONCE, BLOCK, RedisConnection
from asignals.relay.engines._redis.consumer import Consumer
from asignals.relay.engines._redis.dead_letters import DeadLetterStreams
from asignals.relay.engines._redis.inbox import RedisInbox
from asignals.relay.engines._redis.keys import order_of
from asignals.relay.engines._redis.publisher import Publisher
from asignals.relay.engines._redis.sentinel import is_of_sentinels
from asignals.relay.engines._redis.services import Services
from asignals.relay.engines._redis.trimmer import GONE, Trimmer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_GATHER: Final = 0.002  # seconds between two reads of a listener: each costs as much as hearing several events


class RedisStreams(BrokerEngine):
    """Carries events through Redis streams.

    Of the figures, `in_flight` is what the instances said last, up to five seconds ago; those that were killed count as
    alive for up to twenty.

    Args:
        url: `redis://127.0.0.1:6379/0`; with Sentinel `redis+sentinel://host:26379,host:26379/service/0`, where the
            Redis that leads is asked for by each new connection.
        prefix: Begins all keys: `{prefix}:events:<topic>`, `{prefix}:keyed:<topic>`, `{prefix}:dead:<queue>`, …; the
            braces keep them on one node of a cluster.
        lease: Seconds after which the events of a consumer that does not renew its lease are redelivered to another.
        dedup_window: Seconds within which a repetition is recognised; each event takes about 100 bytes for that long.
        max_age: Seconds for which events of a topic are kept that no service receives; `None` for ever.
        replicas: Replicas that must have an event before it counts as published (`WAIT`). Redis copies what it has
            acknowledged afterwards: when it is lost, what a replica did not have yet is lost with it, unless this is
            at least 1. While fewer replicas answer, publishing fails, and is repeated by the outbox.
        options: What else a connection of redis-py takes; with Sentinel also `sentinel_kwargs`. `protocol`,
            `decode_responses` and `socket_timeout` are the engine's own, whatever these or the URL say.

    Raises:
        ValueError: the URL is not Redis's, or a name or number cannot be used.
        TypeError: redis-py has no such option.
    """

    system: Final = "redis"  # as OpenTelemetry calls it

    def __init__(  # noqa: PLR0913  options by name
        self,
        url: str,
        *,
        prefix: str = "asignals",
        lease: float = 30.0,
        dedup_window: float = 60.0,
        max_age: float | None = 30 * 86_400.0,
        replicas: int = 0,
        **options: Any,
    ) -> None:
        is_of_redis = isinstance(url, str) and (url.startswith(_SCHEMES) or is_of_sentinels(url))
        if not is_of_redis:
            raise ValueError(f"RedisStreams takes a URL such as 'redis://127.0.0.1:6379/0', not {redacted(url)!r}")
        database = urlsplit(url).path.rpartition("/")[2]
        if not (url.startswith("unix://") or is_of_sentinels(url) or database.isdecimal() or not database):
            raise ValueError(f"the database of Redis is a number, and not {database!r}: {redacted(url)!r}")
        check_numbers(lease=lease, dedup_window=dedup_window, replicas=replicas, **given(max_age=max_age))
        self.lease: float = lease
        self.prefix: str = prefix
        self._connection = RedisConnection(url, prefix, lease, options)
        self.connection_state: ConnectionState = self._connection.state
        self._publisher = Publisher(self._connection, dedup_window, replicas)
        self._known = Services(self._connection)
        self._trimmer = Trimmer(self._connection, self._known, None if max_age == math.inf else max_age)
        super().__init__(self._known, DeadLetterStreams(self._connection, self._publisher))

    def servers(self) -> list[Server]:
        """List the server, or the Sentinels."""
        return servers_of(self._connection.url)

    def address(self, topic: str) -> Address:
        """Give the key of a topic's stream."""
        plain, keyed = self._connection.keys.streams_of(topic)
        return Address(plain, note=f"Events with a key are in {keyed}.")

    async def init(self) -> None:
        """See whether Redis answers: there is nothing to create."""
        await self._connection.ask(self._connection.client().ping())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connection.aclose()

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the streams have all of them.

        Raises `redis.RedisError` and `TimeoutError`; repeating is safe within the window.
        """
        await self._publisher.publish_many(envelopes)

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        streams = {self._connection.keys.stream(topic).encode(): topic for topic in topics}
        parts = self._connection, self._known, self._trimmer
        await Consumer(*parts, check_name("service", service), instance, streams, handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by reading the streams, without a group."""
        streams = {stream.encode(): topic for topic in topics for stream in self._connection.keys.streams_of(topic)}
        attempts = Attempts(self.connection_state)
        positions: dict[bytes, bytes] = {}
        is_heard = False
        while True:
            async with attempts:
                if not is_heard:
                    for stream in streams:  # another Redis may lead now, whose clock is behind
                        last = await self._last(stream)
                        positions[stream] = min(positions.get(stream, last), last, key=order_of)
                    attempts.succeeded()
                    is_heard = True
                    begun()
                is_heard = False  # until it is read
                since: Any = dict(positions)
                reading = self._connection.client().xread(since, AT_ONCE, int(BLOCK * 1000))
                for stream, entries in await self._connection.ask(reading, BLOCK + ANSWER_TIMEOUT) or []:
                    for id_, fields in entries:
                        positions[stream] = id_
                        hear(Delivery(streams[stream], fields.get(b"d", b"")))
                is_heard = True
                await asyncio.sleep(_GATHER)

    async def _last(self, stream: bytes) -> bytes:
        """Give the id of the last event that a stream has had."""
        try:
            info: dict[str, Any] = await self._connection.ask(self._connection.client().xinfo_stream(stream))
        except ResponseError:  # no such key
            return b"0-0"
        last: bytes = info["last-generated-id"]
        return last

    async def trim(self) -> int:
        """Remove the events that every group of their topic has acknowledged, all but the last one; returns how many.

        Consumers do it by themselves now and then. Of a topic without groups, what is older than `max_age` is removed.
        """
        return await self._trimmer.trim()

    async def forget_consumers(self, service: str, idle: float = GONE) -> int:
        """Remove consumers of a service that hold nothing and said nothing for `idle` seconds; returns how many.

        Consumers do it by themselves now and then, for their own service.
        """
        return await self._trimmer.forget_consumers(service, idle)

    def inbox(self) -> RedisInbox:
        """Give an inbox in the same Redis."""
        return RedisInbox(self._connection)
