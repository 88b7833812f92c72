"""Redis Streams as the engine (extra: redis). Redis 7.0 or newer.

Redis keeps what it acknowledged only with `appendonly yes` and `appendfsync always`: with `everysec` it may answer
before it writes, and a killed server has forgotten up to two seconds.

One stream, a consumer group for each service. Publishing is one script for a batch: all or nothing, and an event id
that was seen a short while ago is not added again. A consumer reads new events and takes over those that another one
has left idle; what it holds it claims again and again. The stream is trimmed up to what every group has acknowledged,
no further.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from asignals._to_the_end import to_the_end
from asignals.relay._batch import Batch
from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._inbox import Memo
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle

_BLOCK: Final = 1.0  # seconds that a read waits for new events
_TRIP: Final = 5.0  # seconds that any other command may take
_AT_ONCE: Final = 500
_MOST_HELD: Final = 10_000  # events that may wait here for their retry
_REMEMBERED: Final = 7 * 86_400

_ADD: Final = """
local added = 0
for i = 2, #ARGV, 2 do
    if redis.call('SET', KEYS[2] .. ARGV[i], '', 'NX', 'EX', ARGV[1]) then
        redis.call('XADD', KEYS[1], '*', 'd', ARGV[i + 1])
        added = added + 1
    end
end
return added
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
    """Carries events through a Redis stream.

    Args:
        url: `redis://127.0.0.1:6379/0`.
        prefix: Begins all keys: `{prefix}:events`, `{prefix}:dead:<queue>`, …; the braces keep them on one node of a
            cluster.
        lease: Seconds after which the events of a consumer that does not renew its lease are redelivered to another.
        dedup_window: Seconds within which a repetition is recognised; each event takes about 100 bytes for that long.
        options: What else `redis.asyncio.Redis.from_url` takes.
    """

    def __init__(
        self, url: str, *, prefix: str = "asignals", lease: float = 30.0, dedup_window: float = 60.0, **options: Any
    ) -> None:
        check_name("prefix", prefix)
        self.lease = lease
        self.key: str = f"{{{prefix}}}:events"
        self.connection_state: ConnectionState = ConnectionState(f"Redis ({prefix})")
        self._base = f"{{{prefix}}}"
        self._dedup_window = max(1, int(dedup_window))
        # Protocol 2: one shape of answers, whatever the version of client and server. No time limit of the client's:
        # each command has ours, and before Python 3.12 the client's loses cancellations (`asyncio.wait_for`).
        options = {"socket_connect_timeout": 2.0, "socket_timeout": None, "protocol": 2, **options}
        self.client: Redis = Redis.from_url(url, decode_responses=False, **options)
        self._add = self.client.register_script(_ADD)
        self._forget = self.client.register_script(_FORGET)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the stream has all of them.

        Raises `redis.RedisError` and `TimeoutError`; repeating is safe within the window.
        """
        for start in range(0, len(envelopes), _AT_ONCE):
            some = envelopes[start : start + _AT_ONCE]
            await self._add_all(self.key, [(envelope.id, envelope.encode()) for envelope in some])
        self.connection_state.restored()

    async def _add_all(self, key: str, items: list[tuple[str, bytes]]) -> None:
        arguments: list[Any] = [self._dedup_window]
        for pair in items:
            arguments += pair
        await limited(self._add(keys=[key, f"{key}:seen:"], args=arguments), _TRIP)

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled."""
        check_name("instance", instance)
        await _Consumer(self, check_name("service", service), instance, handle, limit).run()

    async def add_service(self, service: str) -> None:
        """Create the service's group, from the first event that is there, if it is missing."""
        with suppress(ResponseError):  # BUSYGROUP: it is there
            await limited(self.client.xgroup_create(self.key, service, id="0", mkstream=True), _TRIP)

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        try:
            groups = await limited(self.client.xinfo_groups(self.key), _TRIP)
        except ResponseError:  # no such key
            return 0
        for group in groups:
            if group["name"].decode() == service:
                lag = group.get("lag")
                return int(group["pending"]) + int(await self._length() if lag is None else lag)
        return await self._length()

    async def _length(self) -> int:
        return int(await limited(self.client.xlen(self.key), _TRIP))

    async def trim(self) -> int:
        """Remove the events that every group has acknowledged, all but the last one; returns how many.

        Consumers do it by themselves now and then. Nothing is removed while there is no group.
        """
        floors = []
        for group in await limited(self.client.xinfo_groups(self.key), _TRIP):
            oldest = None
            if group["pending"]:
                oldest = (await limited(self.client.xpending(self.key, group["name"]), _TRIP))["min"]
            floors.append(oldest or group["last-delivered-id"])
        if not floors:
            return 0
        floor = min(floors, key=lambda id_: tuple(map(int, id_.split(b"-"))))
        return int(await limited(self.client.xtrim(self.key, minid=floor, approximate=False), _TRIP))

    async def forget_consumers(self, service: str, idle: float = 86_400.0) -> int:
        """Remove consumers of a service that hold nothing and said nothing for `idle` seconds; returns how many.

        Consumers do it by themselves now and then, for their own service.
        """
        return int(await limited(self._forget(keys=[self.key], args=[service, int(idle * 1000)]), _TRIP))

    def _dead(self, queue: str) -> str:
        return f"{self._base}:dead:{queue}"

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Add a letter to the queue's own stream."""
        await self._add_all(self._dead(queue), [(letter.id, letter.encode())])

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters."""
        entries: Any = await limited(self.client.xrange(self._dead(queue), count=limit), _TRIP)
        return [DeadLetter.read(fields.get(b"d", b""), id_.decode()) for id_, fields in entries]

    async def remove(self, queue: str, letter: DeadLetter) -> None:
        """Remove a letter."""
        await limited(self.client.xdel(self._dead(queue), letter.position), _TRIP)

    def inbox(self) -> RedisInbox:
        """Give an inbox in the same Redis."""
        return RedisInbox(self.client, self._base)


@dataclass(slots=True)
class _Held:
    """An event that is here."""

    id: bytes
    data: bytes
    attempt: int


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: RedisStreams
    service: str
    instance: str
    handle: Handle
    limit: int
    held: dict[bytes, _Held] = field(default_factory=dict)
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with Batch(self._acknowledge, self.engine.connection_state) as acks:

            async def work(item: _Held) -> None:
                delay = await self.handle(Delivery(item.data, item.attempt))
                if delay is None:
                    del self.held[item.id]
                    acks.add(item.id)
                    self.freed.set()
                else:  # it stays ours, and its claim is kept, until it is due
                    item.attempt += 1
                    loop.call_later(delay, pool.put, item)

            pool = Pool(work, self.limit)
            try:
                async with pool:
                    pool.start(self._keep_for_ever())
                    pool.start(self._take_over_for_ever(pool))
                    await self._read_for_ever(pool)
            finally:
                await to_the_end(self._give_back())

    async def _read_for_ever(self, pool: Pool[_Held]) -> None:
        attempts = Attempts(self.engine.connection_state)
        while True:
            await pool.until_below(self.limit * 2)
            while len(self.held) >= _MOST_HELD:
                self.freed.clear()
                await self.freed.wait()
            async with attempts:
                self._hold(pool, await self._read(self.limit * 4 - len(pool)), {})

    async def _read(self, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        engine, block = self.engine, int(_BLOCK * 1000)
        reading = engine.client.xreadgroup(self.service, self.instance, {engine.key: ">"}, count=count, block=block)
        try:
            found: Any = await limited(reading, _BLOCK + _TRIP)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await engine.add_service(self.service)  # the first time, and after FLUSHALL
            return []
        return found[0][1] if found else []

    def _hold(
        self, pool: Pool[_Held], entries: list[tuple[bytes, dict[bytes, bytes]]], attempts: dict[bytes, int]
    ) -> None:
        for id_, fields in entries:
            if id_ not in self.held:  # one that is held already was slow to be kept, and runs here
                item = _Held(id_, fields.get(b"d", b""), attempts.get(id_, 1))
                self.held[id_] = item
                pool.put(item)

    async def _take_over_for_ever(self, pool: Pool[_Held]) -> None:
        """Take what other consumers have left, and trim now and then."""
        attempts = Attempts(ConnectionState(f"taking over and trimming in {self.engine.connection_state.name}"))
        pause = max(0.05, self.engine.lease / 4)
        while True:
            await asyncio.sleep(pause)
            await pool.until_below(self.limit * 2)
            async with attempts:
                await self._take_over(pool)
                await self.engine.trim()
                await self.engine.forget_consumers(self.service)

    async def _take_over(self, pool: Pool[_Held]) -> None:
        client, key = self.engine.client, self.engine.key
        idle = int(self.engine.lease * 1000)
        _, entries, *_ = await limited(
            client.xautoclaim(key, self.service, self.instance, idle, count=self.limit), _TRIP
        )
        if not entries:
            return
        first, last = entries[0][0], entries[-1][0]
        pending: Any = await limited(
            client.xpending_range(key, self.service, first, last, 10 * self.limit, self.instance), _TRIP
        )
        attempts = {entry["message_id"]: entry["times_delivered"] for entry in pending}
        self._hold(pool, [entry for entry in entries if entry[1] is not None], attempts)

    async def _keep_for_ever(self) -> None:
        """Claim again what is held, which makes it not idle."""
        attempts = Attempts(ConnectionState(f"keeping claims in {self.engine.connection_state.name}"))
        while True:
            await asyncio.sleep(self.engine.lease / 3)
            async with attempts:
                await self._claim_again(list(self.held), idle=0)

    async def _claim_again(self, ids: list[bytes], idle: int) -> None:
        client, key = self.engine.client, self.engine.key
        for start in range(0, len(ids), _AT_ONCE):
            some: list[Any] = ids[start : start + _AT_ONCE]
            await limited(client.xclaim(key, self.service, self.instance, 0, some, idle=idle, justid=True), _TRIP)

    async def _acknowledge(self, ids: list[bytes]) -> None:
        await limited(self.engine.client.xack(self.engine.key, self.service, *ids), _TRIP)

    async def _give_back(self) -> None:
        """Make what is still held look abandoned, so that another consumer takes it at once."""
        with suppress(Exception):  # else it is taken after the time of the claim
            async with asyncio.timeout(2.0):
                await self._claim_again(list(self.held), idle=int(self.engine.lease * 1000) + 1)


class RedisInbox:
    """Remembers for a week what was done of events that failed."""

    def __init__(self, client: Redis, base: str) -> None:
        self._client = client
        self._base = base

    def _key(self, event_id: str, service: str) -> str:
        return f"{self._base}:inbox:{service}:{event_id}"

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        found: Any = await limited(self._client.get(self._key(event_id, service)), _TRIP)
        return Memo() if found is None else Memo.decode(found)

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        memo = await self.recall(event_id, service)
        memo.merge(change)
        await limited(self._client.set(self._key(event_id, service), memo.encode(), ex=_REMEMBERED), _TRIP)
