"""Redis Streams as the engine (extra: redis). Redis 7.0 or newer.

Redis keeps what it acknowledged only with `appendonly yes` and `appendfsync always`: with `everysec` it may answer
before it writes, and a killed server has forgotten up to two seconds.

A stream for each topic, a second one for its events that have a key (`_redis_order`), and on both a consumer group for
each service that receives the topic. Publishing is one script for a batch: all or nothing, and an event id that was
seen a short while ago is not added again. A consumer reads new events and takes over those that another one has left
idle; what it holds it claims again and again. A stream is trimmed up to what every group has acknowledged, no further;
one without groups by age.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

from asignals.masking import redacted
from asignals.relay._batch import Batch
from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState, jittered
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._inbox import Memo
from asignals.relay._loops import OwnLoop
from asignals.relay._monitoring.figures import EXPIRY, TopicFigures, backlog_of, beat_for_ever, held_of
from asignals.relay._places import Address, Server, servers_of
from asignals.relay._pool import Pool
from asignals.relay._settings import check_numbers, given
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery, Release
from asignals.relay.engines._redis_order import HeldInOrder, OrderedConsumer, order_keys
from asignals.relay.engines._redis_sentinel import is_of_sentinels, pool_by_sentinels

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

logger: logging.Logger = logging.getLogger("asignals.relay")

_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_BLOCK: Final = 1.0  # seconds that a read waits for new events
_GATHER: Final = 0.002  # seconds between two reads of a listener: each costs as much as hearing several events
_TRIP: Final = 5.0  # seconds that any other command may take, waiting for a free connection included
_WAIT: Final = 4.0  # seconds in which the replicas must have what was written
_FAREWELL: Final = 2.0  # seconds that closing may take
_CONNECTIONS: Final = 64  # most at once; a command that finds none free waits for one
_AT_ONCE: Final = 500
_MOST_HELD: Final = 10_000  # events that may wait here for their retry
_LOOK: Final = 1.0  # seconds between two looks for what other consumers have left, at most
_TRIM: Final = 10.0  # seconds between two trims
_GONE: Final = 30.0  # seconds of silence after which a consumer that holds nothing is removed
_REMEMBERED: Final = 7 * 86_400

# KEYS: the set of topics, where ids are remembered, the streams. ARGV: for how many seconds an id is; for each stream
# how many events follow, and of each its id and data; where that number is negative, they have a key as well.
# An id that is repeated is remembered anew: it may come again and again until enough replicas have it.
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


class RedisStreams:
    """Carries events through Redis streams.

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
        options: What else `redis.asyncio.Redis.from_url` takes; with Sentinel also `sentinel_kwargs`.

    Raises:
        ValueError: the URL is not Redis's, or a name or number cannot be used.
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
        check_numbers(lease=lease, dedup_window=dedup_window, replicas=replicas, **given(max_age=max_age))
        self.lease = lease
        self.connection_state: ConnectionState = ConnectionState(f"Redis ({url}, {check_name('prefix', prefix)})")
        self._base = f"{{{prefix}}}"
        self._events = f"{self._base}:events:"
        self._keyed = f"{self._base}:keyed:"
        self._topics = f"{self._base}:topics"
        self._dedup_window = max(1, int(dedup_window))
        self._max_age = None if max_age == math.inf else max_age
        self._replicas = replicas
        # Protocol 2: one shape of answers, whatever the version of client and server. No time limit of the client's:
        # each command has ours, and before Python 3.12 the client's loses cancellations (`asyncio.wait_for`). No
        # repetition of the client's either: it would go on with connections that are given up.
        self._options: dict[str, Any] = {
            "socket_connect_timeout": 2.0,
            "socket_timeout": None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            **options,
        }
        self._url = url
        self._made: Redis | None = None
        self._loop = OwnLoop()
        self._make()  # so that options that Redis does not have are refused here

    # -- places ----------------------------------------------------------------------------------------------------

    def servers(self) -> list[Server]:
        """List the server, or the Sentinels."""
        return servers_of(self._url)

    def address(self, topic: str) -> Address:
        """Give the key of a topic's stream."""
        return Address(self._stream(topic), note=f"Events with a key are in {self._keyed}{topic}.")

    # -- connecting ------------------------------------------------------------------------------------------------

    def _client(self) -> Redis:
        self._loop.enter(self.connection_state.name, self._forget_client)
        return self._make()

    def _forget_client(self) -> None:
        self._made = None

    def _make(self) -> Redis:
        if self._made is None:
            options = {"max_connections": _CONNECTIONS, "timeout": _TRIP, **self._options, "decode_responses": False}
            make: Any = pool_by_sentinels if is_of_sentinels(self._url) else BlockingConnectionPool.from_url
            self._made = Redis.from_pool(make(self._url, **options))
        return self._made

    async def init(self) -> None:
        """See whether Redis answers: there is nothing to create."""
        await self._ask(self._client().ping())

    async def aclose(self) -> None:
        """Close the connections."""
        self._loop.enter(self.connection_state.name, self._forget_client)
        client, self._made = self._made, None  # the next event loop may be another
        if client is not None:
            await to_the_end(_close(client))

    async def _ask(self, command: Any, seconds: float = _TRIP) -> Any:
        """Await a command; when none is answered in time, all connections are given up for new ones.

        They may be half open as well, and each would cost the same time again.
        """
        client = self._made
        try:
            return await limited(command, seconds, self.connection_state.name)
        except TimeoutError:
            if client is not None and client is self._made:
                self._made = None
                await to_the_end(_close(client))
            raise

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the streams have all of them.

        Raises `redis.RedisError` and `TimeoutError`; repeating is safe within the window.
        """
        for start in range(0, len(envelopes), _AT_ONCE):
            some = envelopes[start : start + _AT_ONCE]
            await self._add(some)
        self.connection_state.restored()

    async def _add(self, envelopes: Sequence[Envelope]) -> None:
        plain: dict[str, list[Any]] = {}
        keyed: dict[str, list[Any]] = {}
        for one in envelopes:
            if one.key is None:
                plain.setdefault(f"{self._events}{one.topic}", []).extend((one.id, one.encode()))
            else:
                keyed.setdefault(f"{self._keyed}{one.topic}", []).extend((one.id, one.encode(), one.key))
        arguments: list[Any] = [self._dedup_window]
        for found in plain.values():
            arguments += (len(found) // 2, *found)
        for found in keyed.values():
            arguments += (-len(found) // 3, *found)
        streams = [*plain, *keyed]
        await self._script(_ADD, [self._topics, f"{self._base}:seen:", *streams], arguments, self._replicas)

    async def _script(self, script: str, keys: list[str], arguments: list[Any], replicas: int = 0) -> Any:
        try:
            return await self._run("evalsha", _sha(script), keys, arguments, replicas)
        except NoScriptError:  # the first time, and after a restart
            return await self._run("eval", script, keys, arguments, replicas)

    async def _run(self, command: str, script: str, keys: list[str], arguments: list[Any], replicas: int) -> Any:
        """Run a script; return when so many replicas have what it wrote."""
        client = self._client()
        if not replicas:
            return await self._ask(getattr(client, command)(script, len(keys), *keys, *arguments))
        pipeline = client.pipeline(transaction=False)  # WAIT goes by what its connection has written
        getattr(pipeline, command)(script, len(keys), *keys, *arguments)
        pipeline.wait(replicas, int(_WAIT * 1000))
        result, count = await self._ask(pipeline.execute())
        if count < replicas:
            msg = (
                f"only {count} of {replicas} replicas of {self.connection_state.name} have the events after {_WAIT:g} s"
            )
            raise ConnectionError(msg)
        return result

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        streams = {self._stream(topic).encode(): topic for topic in topics}
        await _Consumer(self, check_name("service", service), instance, streams, handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by reading the streams, without a group."""
        streams = {stream.encode(): topic for topic in topics for stream in self._streams_of(topic)}
        attempts = Attempts(self.connection_state)
        positions: dict[bytes, bytes] = {}
        is_heard = False
        while True:
            async with attempts:
                if not is_heard:
                    for stream in streams:  # another Redis may lead now, whose clock is behind
                        last = await self._last(stream)
                        positions[stream] = min(positions.get(stream, last), last, key=_order)
                    attempts.succeeded()
                    is_heard = True
                    begun()
                is_heard = False  # until it is read
                since: Any = dict(positions)
                reading = self._client().xread(since, _AT_ONCE, int(_BLOCK * 1000))
                for stream, entries in await self._ask(reading, _BLOCK + _TRIP) or []:
                    for id_, fields in entries:
                        positions[stream] = id_
                        hear(Delivery(streams[stream], fields.get(b"d", b"")))
                is_heard = True
                await asyncio.sleep(_GATHER)

    async def _last(self, stream: bytes) -> bytes:
        """Give the id of the last event that a stream has had."""
        try:
            info: dict[str, Any] = await self._ask(self._client().xinfo_stream(stream))
        except ResponseError:  # no such key
            return b"0-0"
        last: bytes = info["last-generated-id"]
        return last

    def _stream(self, topic: str) -> str:
        return f"{self._events}{check_name('topic', topic)}"

    def keyed_stream(self, topic: str) -> str:
        """Name the stream of a topic's events that have a key."""
        return f"{self._keyed}{check_name('topic', topic)}"

    def _streams_of(self, topic: str) -> tuple[str, str]:
        return self._stream(topic), self.keyed_stream(topic)

    def _topic(self, stream: str) -> str:
        return stream.removeprefix(self._events).removeprefix(self._keyed)

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Create the service's group on each topic, from the first event that is there, where it is missing."""
        check_name("service", service)
        for stream in (stream for topic in topics for stream in self._streams_of(topic)):
            await self._ask(self._client().sadd(self._topics, stream))
            try:
                await self._ask(self._client().xgroup_create(stream, service, id="0", mkstream=True))
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Remove the service's groups, of some topics or of all."""
        if topics is None:
            topics = {self._topic(stream) for stream in await self._streams()}
        for topic in topics:
            for stream in self._streams_of(topic):
                with suppress(ResponseError):  # no such topic
                    await self._ask(self._client().xgroup_destroy(stream, service))
            await self._ask(self._client().delete(*order_keys(self, service, topic)))

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits, by service and topic.

        `in_flight` is what the instances said last, up to five seconds ago; those that were killed count as alive for
        up to twenty.
        """
        groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
        for stream in await self._streams():
            topic = self._topic(stream)
            if topics is None or topic in topics:
                for group in await self._groups(stream):
                    name = group["name"].decode()
                    if service in (None, name):
                        groups.setdefault((name, topic), []).append((stream, group))
        return [await self._figures_of(*whose, both) for whose, both in sorted(groups.items())]

    async def _figures_of(self, service: str, topic: str, groups: list[tuple[str, dict[str, Any]]]) -> TopicFigures:
        """Give the figures of a topic's two streams, that of the events with a key and that of the others."""
        client = self._client()
        backlog, pending, oldest = 0, 0, 0.0
        for stream, group in groups:
            held, lag = int(group["pending"]), group.get("lag")
            if lag is None:  # not known to Redis after events were removed from the middle
                lag = await self._ask(client.xlen(stream))
            backlog += held + int(lag)
            pending += held
            if held or lag:
                oldest = max(oldest, await self._oldest(stream, group, held))
        behind = int(await self._ask(client.zcard(order_keys(self, service, topic)[-1])))
        beats = await self._beats(service)
        in_flight = sum(held_of(beat).get(topic, 0) for beat in beats)
        retries = max(0, pending - behind - in_flight)
        return TopicFigures(
            service, topic, backlog, oldest, in_flight, retries, sum(topic in held_of(beat) for beat in beats)
        )

    async def _oldest(self, stream: str, group: dict[str, Any], pending: int) -> float:
        """Give the age of the first event that a group has not acknowledged, by Redis's own clock."""
        client = self._client()
        if pending:
            first = (await self._ask(client.xpending(stream, group["name"])))["min"]
        else:
            after = f"({group['last-delivered-id'].decode()}"
            first = next((id_ for id_, _ in await self._ask(client.xrange(stream, after, count=1))), None)
        if first is None:
            return 0.0
        seconds, microseconds = await self._ask(client.time())
        return max(0.0, int(seconds) + int(microseconds) / 1e6 - _order(first)[0] / 1000)

    def _instances(self, service: str) -> str:
        """The key of the heartbeats of a service, which expires with the last of them."""
        return f"{self._base}:instances:{service}"

    async def _beats(self, service: str) -> list[bytes]:
        """Give the heartbeats of a service's instances that have not expired."""
        beats = await self._ask(self._client().hvals(self._instances(service)))
        seconds, _ = await self._ask(self._client().time())
        parts = (beat.partition(b" ") for beat in beats)
        return [held for until, _, held in parts if until.isdigit() and int(until) > int(seconds)]

    async def _streams(self) -> list[str]:
        return sorted(stream.decode() for stream in await self._ask(self._client().smembers(self._topics)))

    async def _groups(self, stream: str) -> list[dict[str, Any]]:
        try:
            groups: list[dict[str, Any]] = await self._ask(self._client().xinfo_groups(stream))
        except ResponseError:  # no such key
            return []
        return groups

    async def trim(self) -> int:
        """Remove the events that every group of their topic has acknowledged, all but the last one; returns how many.

        Consumers do it by themselves now and then. Of a topic without groups, what is older than `max_age` is removed.
        """
        gone = 0
        for stream in await self._streams():
            floor = await self._floor(stream)
            if floor is not None:
                gone += int(await self._ask(self._client().xtrim(stream, minid=floor, approximate=False)))
        return gone

    async def _floor(self, stream: str) -> bytes | str | None:
        """Give the id below which nothing of a stream is needed any more."""
        floors: list[bytes] = []
        for group in await self._groups(stream):
            oldest = None
            if group["pending"]:
                oldest = (await self._ask(self._client().xpending(stream, group["name"])))["min"]
            floors.append(oldest or group["last-delivered-id"])
        if floors:
            return min(floors, key=_order)
        return None if self._max_age is None else f"{int((time.time() - self._max_age) * 1000)}-0"

    async def forget_consumers(self, service: str, idle: float = _GONE) -> int:
        """Remove consumers of a service that hold nothing and said nothing for `idle` seconds; returns how many.

        Consumers do it by themselves now and then, for their own service.
        """
        gone = 0
        for stream in await self._streams():
            if any(group["name"].decode() == service for group in await self._groups(stream)):
                gone += int(await self._script(_FORGET, [stream], [service, int(idle * 1000)]))
        return gone

    # -- dead letters ----------------------------------------------------------------------------------------------

    def _dead(self, queue: str) -> str:
        return f"{self._base}:dead:{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Add a letter to the queue's own stream; the same one only once within the window."""
        dead = self._dead(queue)
        keys = [f"{self._base}:queues", f"{dead}:seen:", dead]
        arguments = [self._dedup_window, 1, letter.id, letter.encode()]
        await self._script(_ADD, keys, arguments, self._replicas)

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        return int(await self._ask(self._client().xlen(self._dead(queue))))

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        start = "-"
        while True:
            entries: Any = await self._ask(self._client().xrange(self._dead(queue), start, count=batch))
            if not entries:
                return
            start = f"({entries[-1][0].decode()}"
            yield [DeadLetter.read(fields.get(b"d", b""), id_.decode()) for id_, fields in entries]

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters."""
        for start in range(0, len(letters), _AT_ONCE):
            some = letters[start : start + _AT_ONCE]
            await self._ask(self._client().xdel(self._dead(queue), *(letter.position for letter in some)))

    def inbox(self) -> RedisInbox:
        """Give an inbox in the same Redis."""
        return RedisInbox(self)


async def _close(client: Redis) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_FAREWELL):
            await client.aclose()
            await asyncio.sleep(0)  # the sockets are closed in the loop's next turn


@lru_cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _order(id_: bytes) -> tuple[int, ...]:
    return tuple(map(int, id_.split(b"-")))


_Key: TypeAlias = tuple[bytes, bytes]  # where an event is: its stream, and its id there
_Entries: TypeAlias = "list[tuple[bytes, dict[bytes, bytes] | None]]"


@dataclass(slots=True)
class _Held:
    """An event that is here."""

    key: _Key
    data: bytes
    attempt: int
    is_due: bool = True  # it does not wait for its retry


_Pool: TypeAlias = "Pool[_Held | HeldInOrder]"


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: RedisStreams
    service: str
    instance: str
    streams: dict[bytes, str]
    handle: Handle
    limit: int
    held: dict[_Key, _Held] = field(default_factory=dict)
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    ordered: OrderedConsumer = field(init=False)

    def __post_init__(self) -> None:
        self.ordered = OrderedConsumer(self.engine, self.service, list(self.streams.values()), self.handle, self.limit)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pool: _Pool
        ordered = self.ordered

        async def answer(items: list[tuple[HeldInOrder, float | None]]) -> None:
            await ordered.answer(pool, items)

        async with (
            Batch(self._acknowledge, self.engine.connection_state) as acks,
            Batch(self._abandon, self.engine.connection_state) as released,
            Batch(answer, self.engine.connection_state) as answers,
        ):

            def release(item: _Held) -> None:
                if self.held.pop(item.key, None) is not None:
                    released.add(item.key)
                    self.freed.set()

            async def work(item: _Held | HeldInOrder) -> None:
                if isinstance(item, HeldInOrder):
                    await ordered.work(item, pool, answers)
                    return
                topic, attempt = self.streams[item.key[0]], item.attempt
                outcome = await self.handle(Delivery(topic, item.data, attempt, attempt > 1, pool.park))
                if outcome is None:
                    del self.held[item.key]
                    acks.add(item.key)
                    self.freed.set()
                elif isinstance(outcome, Release):  # it stays ours until then, as Redis has no delay of its own
                    item.is_due = False
                    loop.call_later(outcome.delay, release, item)
                else:
                    item.attempt += 1
                    item.is_due = False
                    loop.call_later(outcome, again, item)

            def again(item: _Held) -> None:
                item.is_due = True
                pool.put(item)

            pool = Pool(work, self.limit)
            try:
                async with pool:
                    pool.start(self._keep_for_ever())
                    pool.start(ordered.keep_for_ever())
                    pool.start(ordered.take_for_ever(pool))
                    pool.start(self._take_over_for_ever(pool))
                    pool.start(self._clean_for_ever())
                    pool.start(beat_for_ever(self.engine.connection_state.name, self._beat, self._stop_beating))
                    await self._read_for_ever(pool)
            finally:
                self._give_back(released, answers)

    def _give_back(self, released: Batch[_Key], answers: Batch[tuple[HeldInOrder, float | None]]) -> None:
        held, self.held = self.held, {}
        for key in held:
            released.add(key)
        self.ordered.is_leaving = True
        for item in self.ordered.held:
            answers.add((item, 0.0))

    async def _beat(self) -> None:
        held = Counter(self.streams[item.key[0]] for item in self.held.values() if item.is_due)
        held.update(item.topic for item in self.ordered.held)
        beat = json.dumps({topic: held[topic] for topic in self.streams.values()})
        key = self.engine._instances(self.service)
        await self.engine._script(_BEAT, [key], [self.instance, int(EXPIRY), beat])

    async def _stop_beating(self) -> None:
        key = self.engine._instances(self.service)
        await self.engine._ask(self.engine._client().hdel(key, self.instance))

    async def _read_for_ever(self, pool: _Pool) -> None:
        attempts = Attempts(self.engine.connection_state)
        while True:
            await pool.until_below(self.limit * 2)
            while len(self.held) >= _MOST_HELD:
                self.freed.clear()
                await self.freed.wait()
            async with attempts:
                for stream, entries in await self._read(self.limit * 4 - len(pool)):
                    self._hold(pool, stream, entries, {})

    async def _read(self, count: int) -> list[tuple[bytes, _Entries]]:
        engine, each = self.engine, max(1, count // len(self.streams))  # Redis counts stream by stream
        positions: Any = dict.fromkeys(self.streams, ">")
        block = int(_BLOCK * 1000)
        reading = engine._client().xreadgroup(self.service, self.instance, positions, count=each, block=block)
        try:
            return await engine._ask(reading, _BLOCK + _TRIP) or []
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await engine.add_service(self.service, self.streams.values())  # the first time, and after FLUSHALL
            return []

    def _hold(self, pool: _Pool, stream: bytes, entries: _Entries, attempts: dict[bytes, int]) -> None:
        for id_, fields in entries:
            key = stream, id_
            if key not in self.held:  # one that is held already was slow to be kept, and runs here
                item = _Held(key, (fields or {}).get(b"d", b""), attempts.get(id_, 1))
                self.held[key] = item
                pool.put(item)

    async def _take_over_for_ever(self, pool: _Pool) -> None:
        """Take what other consumers have left."""
        attempts = Attempts(ConnectionState(f"taking over in {self.engine.connection_state.name}"))
        while True:
            await asyncio.sleep(jittered(max(0.05, min(_LOOK, self.engine.lease / 4))))
            async with attempts:
                for stream in self.streams:
                    await self._take_over(pool, stream)

    async def _take_over(self, pool: _Pool, stream: bytes) -> None:
        """Look through all that is pending in a stream, as what was left may be behind what others hold."""
        engine, idle, position = self.engine, int(self.engine.lease * 1000), b"0-0"
        while True:
            await pool.until_below(self.limit * 2)
            claiming = engine._client().xautoclaim(stream, self.service, self.instance, idle, position, self.limit)
            position, entries, *gone = await engine._ask(claiming)
            if gone and gone[0]:
                lost = b", ".join(gone[0][:3]).decode()
                logger.error(
                    "%d events of %r were removed from %r before %r had acknowledged them (%s, …)",
                    *(len(gone[0]), self.streams[stream], stream.decode(), self.service, lost),
                )
            if entries:
                self._hold(pool, stream, entries, await self._attempts(stream, entries[0][0], entries[-1][0]))
            if position == b"0-0":
                return

    async def _attempts(self, stream: bytes, first: bytes, last: bytes) -> dict[bytes, int]:
        asking = self.engine._client().xpending_range(stream, self.service, first, last, 20_000, self.instance)
        return {entry["message_id"]: entry["times_delivered"] for entry in await self.engine._ask(asking)}

    async def _clean_for_ever(self) -> None:
        attempts = Attempts(ConnectionState(f"trimming in {self.engine.connection_state.name}"))
        while True:
            await asyncio.sleep(jittered(max(0.05, min(_TRIM, self.engine.lease / 4))))
            async with attempts:
                await self.engine.trim()
                await self.engine.forget_consumers(self.service)

    async def _keep_for_ever(self) -> None:
        """Claim again what is held, which makes it not idle."""
        attempts = Attempts(ConnectionState(f"renewing leases in {self.engine.connection_state.name}"))
        while True:
            await asyncio.sleep(self.engine.lease / 3)
            async with attempts:
                await self._claim_again(list(self.held), idle=0)

    async def _claim_again(self, keys: list[_Key], idle: int) -> None:
        engine = self.engine
        for stream, ids in _by_stream(keys).items():
            for start in range(0, len(ids), _AT_ONCE):
                some: Any = ids[start : start + _AT_ONCE]
                claiming = engine._client().xclaim(stream, self.service, self.instance, 0, some, idle=idle, justid=True)
                await engine._ask(claiming)

    async def _acknowledge(self, keys: list[_Key]) -> None:
        for stream, ids in _by_stream(keys).items():
            await self.engine._ask(self.engine._client().xack(stream, self.service, *ids))

    async def _abandon(self, keys: list[_Key]) -> None:
        """Make events look left, so that any consumer takes them at once."""
        await self._claim_again(keys, idle=int(self.engine.lease * 1000) + 1)


def _by_stream(keys: list[_Key]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for stream, id_ in keys:
        found.setdefault(stream, []).append(id_)
    return found


class RedisInbox:
    """Remembers for a week what was done of events that failed."""

    def __init__(self, engine: RedisStreams) -> None:
        self._engine = engine

    def _key(self, event_id: str, service: str) -> str:
        return f"{self._engine._base}:inbox:{service}:{event_id}"

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        found: Any = await self._engine._ask(self._engine._client().get(self._key(event_id, service)))
        return Memo() if found is None else Memo.decode(found)

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        memo = await self.recall(event_id, service)
        memo.merge(change)
        client = self._engine._client()
        await self._engine._ask(client.set(self._key(event_id, service), memo.encode(), ex=_REMEMBERED))
