"""Order by key in Redis: of each key one event is handled at a time, by whichever instance.

Events with a key have a stream of their own for each topic. A group reads it by a script, which gives the first event
of each key to an instance, for the time of a lease, and lets those behind it wait; acknowledging gives the next one.
All of it is in Redis, and each step is one script, so there is nothing that an instance could take along when it dies.
What an instance says of an event that is not its own any more does not count.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from asignals.relay._cancel import end
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._transport import Delivery, delay_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay._batch import Batch
    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle
    from asignals.relay.engines.redis import RedisStreams

_BLOCK: Final = 1.0  # seconds that a read waits for new events
_TRIP: Final = 5.0  # seconds that its answer may take beyond that
_PARTS: Final = ("heads", "held", "due", "behind")

# KEYS: the stream; of each key that is not done the event that is handled next, as "id attempt token"; when the leases
# of those that instances have end; when retries are due; and the events behind the first of their key, as "key\0id".
# ARGV: the group, the instance's token, milliseconds of a lease, and what each script has beyond that.
_SHARED: Final = """
local stream, heads, held, due, behind = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, token, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local given = {}

local function field(fields, name)
    for i = 1, #fields, 2 do if fields[i] == name then return fields[i + 1] end end
    return ''
end

local function head(key)
    local found = redis.call('HGET', heads, key)
    if not found then return nil end
    local id, attempt, owner = string.match(found, '^(%S+) (%d+) (%S*)$')
    return {id = id, attempt = tonumber(attempt), owner = owner}
end

local function is_ours(key, id)
    local found = head(key)
    return found and found.id == id and found.owner == token
end

local function take(key, id, attempt, data)
    redis.call('HSET', heads, key, id .. ' ' .. attempt .. ' ' .. token)
    redis.call('ZREM', due, key)
    redis.call('ZADD', held, now + lease, key)
    given[#given + 1] = {key, id, attempt, data}
end

local function postpone(key, id, attempt, delay)
    redis.call('HSET', heads, key, id .. ' ' .. attempt .. ' ')
    redis.call('ZREM', held, key)
    redis.call('ZADD', due, now + delay, key)
end

local function padded(id)
    local first, second = string.match(id, '^(%d+)-(%d+)$')
    return string.rep('0', 20 - #first) .. first .. '-' .. string.rep('0', 20 - #second) .. second
end

local function unpadded(id)
    local first, second = string.match(id, '^0*(%d+)-0*(%d+)$')
    return first .. '-' .. second
end

-- Have the next event of a key be handled, by us or by anybody, now that the one before is done.
local function advance(key, is_for_us)
    while true do
        local first = redis.call('ZRANGEBYLEX', behind, '[' .. key .. '\\0', '(' .. key .. '\\1', 'LIMIT', 0, 1)[1]
        if not first then
            redis.call('HDEL', heads, key)
            redis.call('ZREM', held, key)
            return
        end
        redis.call('ZREM', behind, first)
        local id = unpadded(string.sub(first, #key + 2))
        local entry = redis.call('XRANGE', stream, id, id)[1]
        if not entry then
            redis.call('XACK', stream, group, id)
        elseif is_for_us then
            return take(key, id, 1, field(entry[2], 'd'))
        else
            return postpone(key, id, 1, 0)
        end
    end
end
"""

# ARGV: how many at most. Returns events, in how many milliseconds a retry is due, and the last id of the stream.
_TAKE: Final = f"""{_SHARED}
local count = tonumber(ARGV[4])

local function take_again(set, more)
    for _, key in ipairs(redis.call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, count - #given)) do
        local found = head(key)
        local entry = found and redis.call('XRANGE', stream, found.id, found.id)[1]
        if entry then
            take(key, found.id, found.attempt + more, field(entry[2], 'd'))
        else
            redis.call('ZREM', set, key)
            if found then
                redis.call('XACK', stream, group, found.id)
                advance(key, true)
            end
        end
    end
end

if count > #given then take_again(due, 0) end
if count > #given then take_again(held, 1) end
local looked_at = 0
while #given < count and looked_at < 2000 do
    local found = redis.call(
        'XREADGROUP', 'GROUP', group, '~', 'COUNT', math.max(count - #given, 50), 'STREAMS', stream, '>'
    )
    if not found then break end
    for _, entry in ipairs(found[1][2]) do
        looked_at = looked_at + 1
        local key = field(entry[2], 'k')
        if redis.call('HEXISTS', heads, key) == 1 then
            redis.call('ZADD', behind, 0, key .. '\\0' .. padded(entry[1]))
        elseif #given < count then
            take(key, entry[1], 1, field(entry[2], 'd'))
        else
            postpone(key, entry[1], 1, 0)
        end
    end
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
return {{given, first and math.max(0, first - now) or -1, last and last[1] or '0-0'}}
"""

# ARGV: whether to give the next events; keys and ids. Returns events.
_DONE: Final = f"""{_SHARED}
for i = 5, #ARGV, 2 do
    if is_ours(ARGV[i], ARGV[i + 1]) then
        redis.call('XACK', stream, group, ARGV[i + 1])
        advance(ARGV[i], ARGV[4] == '1')
    end
end
return given
"""

# ARGV: keys, ids, milliseconds.
_POSTPONE: Final = f"""{_SHARED}
for i = 4, #ARGV, 3 do
    if is_ours(ARGV[i], ARGV[i + 1]) then
        postpone(ARGV[i], ARGV[i + 1], head(ARGV[i]).attempt + 1, tonumber(ARGV[i + 2]))
    end
end
"""

# ARGV: keys and ids. Returns, for each, whether it still is ours.
_RENEW: Final = f"""{_SHARED}
local kept = {{}}
for i = 4, #ARGV, 2 do
    local is_kept = is_ours(ARGV[i], ARGV[i + 1])
    if is_kept then redis.call('ZADD', held, now + lease, ARGV[i]) end
    kept[#kept + 1] = is_kept and 1 or 0
end
return kept
"""


@dataclass(slots=True, eq=False)
class HeldInOrder:
    """The event of a key that this instance has."""

    topic: str
    key: bytes
    id: bytes
    attempt: int
    data: bytes
    until: float  # of this machine's clock: then the lease may have ended


@dataclass(slots=True)
class OrderedConsumer:
    """The part of one running `consume` that is for events with a key."""

    engine: RedisStreams
    service: str
    topics: Sequence[str]
    handle: Handle
    limit: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))  # another one each time: what was before is over
    held: set[HeldInOrder] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    is_leaving: bool = False

    async def work(self, item: HeldInOrder, pool: Pool[Any], done: Batch[tuple[HeldInOrder, float | None]]) -> None:
        """Handle one event, unless this instance was frozen or cut off and another one may have it."""
        if time.monotonic() > item.until:
            self.held.discard(item)
            return
        outcome = await self.handle(Delivery(item.topic, item.data, item.attempt, item.attempt > 1, pool.park))
        self.held.discard(item)
        done.add((item, None if outcome is None else delay_of(outcome)))

    async def take_for_ever(self, pool: Pool[Any]) -> None:
        """Take what is there, and what comes, as far as there is room."""
        attempts = Attempts(self.engine.connection_state)
        reading: asyncio.Task[None] | None = None
        try:
            while True:
                await pool.until_below(self.limit * 2)
                async with attempts:
                    self.wake.clear()
                    count, pause, ends = await self._take(pool)
                    if count:
                        continue
                    if reading is None or reading.done():
                        if reading is not None:
                            reading.result()
                        reading = asyncio.get_running_loop().create_task(self._until_more(ends))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self.wake.wait()
        finally:
            if reading is not None:
                await end([reading])

    async def _take(self, pool: Pool[Any]) -> tuple[int, float, dict[str, bytes]]:
        """Take events; tells how many, for how long nothing is due otherwise, and where the streams end."""
        taken, pause, ends = 0, _BLOCK, {}
        for topic in self.topics:
            room = max(1, self.limit * 2 - len(pool))
            until = time.monotonic() + self.engine.lease
            try:
                given, due, last = await self._script(_TAKE, topic, room)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self.engine.add_service(self.service, [topic])  # the first time, and after FLUSHALL
                return 1, 0.0, {}
            taken += len(given)
            self.put(pool, topic, given, until)
            if due >= 0:
                pause = min(pause, due / 1000)
            ends[self.engine.keyed_stream(topic)] = last
        return taken, pause, ends

    def put(self, pool: Pool[Any], topic: str, given: list[Any], until: float) -> None:
        """Have events handled that a script has given to this instance."""
        for key, id_, attempt, data in given:
            item = HeldInOrder(topic, key, id_, attempt, data, until)
            self.held.add(item)
            pool.put(item)

    async def _until_more(self, ends: dict[str, bytes]) -> None:
        """Wake when events come after some ids, or after a second."""
        try:
            since: Any = dict(ends)
            reading = self.engine._client().xread(since, 1, int(_BLOCK * 1000))
            await self.engine._ask(reading, _BLOCK + _TRIP)
        finally:
            self.wake.set()

    async def answer(self, pool: Pool[Any], items: list[tuple[HeldInOrder, float | None]]) -> None:
        """Acknowledge and postpone, and take the next events of the keys that are done."""
        for topic in self.topics:
            mine = [(item, delay) for item, delay in items if item.topic == topic]
            finished = [part for item, delay in mine if delay is None for part in (item.key, item.id)]
            again = [
                part
                for item, delay in mine
                if delay is not None
                for part in (item.key, item.id, max(0, int(delay * 1000)))
            ]
            if finished:
                until = time.monotonic() + self.engine.lease
                self.put(pool, topic, await self._script(_DONE, topic, int(not self.is_leaving), *finished), until)
            if again:
                await self._script(_POSTPONE, topic, *again)
                self.wake.set()

    async def keep_for_ever(self) -> None:
        """Renew the leases of what is held."""
        attempts = Attempts(ConnectionState(f"renewing leases of keys in {self.engine.connection_state.name}"))
        while True:
            await asyncio.sleep(self.engine.lease / 3)
            async with attempts:
                for topic in self.topics:
                    held = [item for item in self.held if item.topic == topic]
                    until = time.monotonic() + self.engine.lease
                    given = [part for item in held for part in (item.key, item.id)]
                    kept = await self._script(_RENEW, topic, *given) if held else []
                    for item, is_kept in zip(held, kept, strict=True):
                        if is_kept:
                            item.until = until

    async def _script(self, script: str, topic: str, *arguments: Any) -> Any:
        keys = [self.engine.keyed_stream(topic), *order_keys(self.engine, self.service, topic)]
        lease = int(self.engine.lease * 1000)
        return await self.engine._script(script, keys, [self.service, self.token, lease, *arguments])


def order_keys(engine: RedisStreams, service: str, topic: str) -> list[str]:
    """Name the keys that hold the order of a topic in a service."""
    return [f"{engine._base}:order:{service}:{topic}:{part}" for part in _PARTS]
