"""The scripts that keep the order by key in Redis; each is one step, which no other one can come between."""

from __future__ import annotations

from typing import Final

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
TAKE: Final = f"""{_SHARED}
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
DONE: Final = f"""{_SHARED}
for i = 5, #ARGV, 2 do
    if is_ours(ARGV[i], ARGV[i + 1]) then
        redis.call('XACK', stream, group, ARGV[i + 1])
        advance(ARGV[i], ARGV[4] == '1')
    end
end
return given
"""

# ARGV: keys, ids, milliseconds.
POSTPONE: Final = f"""{_SHARED}
for i = 4, #ARGV, 3 do
    if is_ours(ARGV[i], ARGV[i + 1]) then
        postpone(ARGV[i], ARGV[i + 1], head(ARGV[i]).attempt + 1, tonumber(ARGV[i + 2]))
    end
end
"""

# ARGV: keys and ids. Returns, for each, whether it still is ours.
RENEW: Final = f"""{_SHARED}
local kept = {{}}
for i = 4, #ARGV, 2 do
    local is_kept = is_ours(ARGV[i], ARGV[i + 1])
    if is_kept then redis.call('ZADD', held, now + lease, ARGV[i]) end
    kept[#kept + 1] = is_kept and 1 or 0
end
return kept
"""
