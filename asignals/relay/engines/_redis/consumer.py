"""One running `consume` on Redis: reading the streams by a group, renewing what is held, taking over what was left."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from redis.exceptions import ResponseError

from asignals.relay._batch import Batch
from asignals.relay._connection_state import Attempts, ConnectionState, jittered
from asignals.relay._monitoring.figures import beat_for_ever
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery, Release
from asignals.relay.engines._redis.connection import ANSWER_TIMEOUT, AT_ONCE, BLOCK
from asignals.relay.engines._redis.ordered import HeldInOrder, OrderedConsumer
from asignals.relay.engines._redis.trimmer import GONE

if TYPE_CHECKING:
    from asignals.relay._transport import Handle
    from asignals.relay.engines._redis.connection import RedisConnection
    from asignals.relay.engines._redis.services import Services
    from asignals.relay.engines._redis.trimmer import Trimmer

logger: logging.Logger = logging.getLogger("asignals.relay")

_MOST_HELD: Final = 10_000  # events that may wait here for their retry
_LOOK: Final = 1.0  # seconds between two looks for what other consumers have left, at most
_TRIM: Final = 10.0  # seconds between two trims

_Key: TypeAlias = tuple[bytes, bytes]  # where an event is: its stream, and its id there
_Entries: TypeAlias = "list[tuple[bytes, dict[bytes, bytes] | None]]"


@dataclass(slots=True)
class _Held:
    """An event that is here."""

    key: _Key
    data: bytes
    attempt: int
    is_due: bool = True  # it does not wait for its retry


class Consumer:
    """Handles the events without a key itself; those with one are the matter of an `OrderedConsumer`."""

    def __init__(  # noqa: PLR0913, PLR0917  what `consume` was called with
        self,
        connection: RedisConnection,
        services: Services,
        trimmer: Trimmer,
        service: str,
        instance: str,
        streams: dict[bytes, str],
        handle: Handle,
        limit: int,
    ) -> None:
        self._connection = connection
        self._services = services
        self._trimmer = trimmer
        self._service = service
        self._instance = instance
        self._streams = streams  # the topics by their streams
        self._handle = handle
        self._limit = limit
        self._held: dict[_Key, _Held] = {}
        self._freed = asyncio.Event()
        self._pool: Pool[_Held | HeldInOrder] = Pool(self._work, limit)
        self._ordered = OrderedConsumer(connection, services, service, list(streams.values()), handle, limit)
        self._done: Batch[_Key] = Batch(self._acknowledge, connection.state)
        self._released: Batch[_Key] = Batch(self._abandon, connection.state)
        self._answers: Batch[tuple[HeldInOrder, float | None]] = Batch(self._answer, connection.state)

    async def run(self) -> None:
        """Consume until cancelled."""
        async with self._done, self._released, self._answers:
            try:
                async with self._pool:
                    self._pool.start(self._renew_for_ever())
                    self._pool.start(self._ordered.keep_for_ever())
                    self._pool.start(self._ordered.take_for_ever(self._pool))
                    self._pool.start(self._take_over_for_ever())
                    self._pool.start(self._clean_for_ever())
                    self._pool.start(beat_for_ever(self._connection.state.name, self._beat, self._stop_beating))
                    await self._read_for_ever()
            finally:
                self._give_back()

    def _give_back(self) -> None:
        held, self._held = self._held, {}
        for key in held:
            self._released.add(key)
        self._ordered.is_leaving = True
        for item in self._ordered.held:
            self._answers.add((item, 0.0))

    async def _beat(self) -> None:
        held = Counter(self._streams[item.key[0]] for item in self._held.values() if item.is_due)
        held.update(item.topic for item in self._ordered.held)
        counts = {topic: held[topic] for topic in self._streams.values()}
        await self._services.beat(self._service, self._instance, counts)

    async def _stop_beating(self) -> None:
        await self._services.stop_beating(self._service, self._instance)

    # -- handling --------------------------------------------------------------------------------------------------

    async def _work(self, item: _Held | HeldInOrder) -> None:
        if isinstance(item, HeldInOrder):
            await self._ordered.work(item, self._pool, self._answers)
            return
        topic, attempt = self._streams[item.key[0]], item.attempt
        outcome = await self._handle(Delivery(topic, item.data, attempt, attempt > 1, self._pool.park))
        if outcome is None:
            del self._held[item.key]
            self._done.add(item.key)
            self._freed.set()
            return
        item.is_due = False
        later = asyncio.get_running_loop().call_later
        if isinstance(outcome, Release):  # it stays ours until then, as Redis has no delay of its own
            later(outcome.delay, self._release, item)
        else:
            item.attempt += 1
            later(outcome, self._retry, item)

    def _release(self, item: _Held) -> None:
        if self._held.pop(item.key, None) is not None:
            self._released.add(item.key)
            self._freed.set()

    def _retry(self, item: _Held) -> None:
        item.is_due = True
        self._pool.put(item)

    async def _answer(self, items: list[tuple[HeldInOrder, float | None]]) -> None:
        await self._ordered.answer(self._pool, items)

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read_for_ever(self) -> None:
        attempts = Attempts(self._connection.state)
        while True:
            await self._pool.until_below(self._limit * 2)
            while len(self._held) >= _MOST_HELD:
                self._freed.clear()
                await self._freed.wait()
            async with attempts:
                for stream, entries in await self._read(self._limit * 4 - len(self._pool)):
                    self._hold(stream, entries, {})

    async def _read(self, count: int) -> list[tuple[bytes, _Entries]]:
        each = max(1, count // len(self._streams))  # Redis counts stream by stream
        positions: Any = dict.fromkeys(self._streams, ">")
        reading = self._connection.client().xreadgroup(
            self._service, self._instance, positions, count=each, block=int(BLOCK * 1000)
        )
        try:
            return await self._connection.ask(reading, BLOCK + ANSWER_TIMEOUT) or []
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._services.add(self._service, self._streams.values())  # the first time, and after FLUSHALL
            return []

    def _hold(self, stream: bytes, entries: _Entries, attempts: dict[bytes, int]) -> None:
        for id_, fields in entries:
            key = stream, id_
            if key not in self._held:  # one that is held already was renewed too late, and runs here
                item = _Held(key, (fields or {}).get(b"d", b""), attempts.get(id_, 1))
                self._held[key] = item
                self._pool.put(item)

    async def _take_over_for_ever(self) -> None:
        """Take what other consumers have left."""
        attempts = Attempts(ConnectionState(f"taking over in {self._connection.state.name}"))
        while True:
            await asyncio.sleep(jittered(max(0.05, min(_LOOK, self._connection.lease / 4))))
            async with attempts:
                for stream in self._streams:
                    await self._take_over(stream)

    async def _take_over(self, stream: bytes) -> None:
        """Look through all that is pending in a stream, as what was left may be behind what others hold."""
        idle, position = int(self._connection.lease * 1000), b"0-0"
        while True:
            await self._pool.until_below(self._limit * 2)
            claiming = self._connection.client().xautoclaim(
                stream, self._service, self._instance, idle, position, self._limit
            )
            position, entries, *gone = await self._connection.ask(claiming)
            if gone and gone[0]:
                self._log_removed(stream, gone[0])
            if entries:
                self._hold(stream, entries, await self._attempts(stream, entries[0][0], entries[-1][0]))
            if position == b"0-0":
                return

    def _log_removed(self, stream: bytes, ids: list[bytes]) -> None:
        logger.error(
            "%d events of %r were removed from %r before %r had acknowledged them (%s, …)",
            *(len(ids), self._streams[stream], stream.decode(), self._service, b", ".join(ids[:3]).decode()),
        )

    async def _attempts(self, stream: bytes, first: bytes, last: bytes) -> dict[bytes, int]:
        asking = self._connection.client().xpending_range(stream, self._service, first, last, 20_000, self._instance)
        return {entry["message_id"]: entry["times_delivered"] for entry in await self._connection.ask(asking)}

    async def _clean_for_ever(self) -> None:
        attempts = Attempts(ConnectionState(f"trimming in {self._connection.state.name}"))
        while True:
            await asyncio.sleep(jittered(max(0.05, min(_TRIM, self._connection.lease / 4))))
            async with attempts:
                await self._trimmer.trim()
                await self._trimmer.forget_consumers(self._service, GONE)

    # -- leases ----------------------------------------------------------------------------------------------------

    async def _renew_for_ever(self) -> None:
        """Claim again what is held, which makes it not idle."""
        attempts = Attempts(ConnectionState(f"renewing leases in {self._connection.state.name}"))
        while True:
            await asyncio.sleep(self._connection.lease / 3)
            async with attempts:
                await self._claim_again(list(self._held), idle=0)

    async def _claim_again(self, keys: list[_Key], idle: int) -> None:
        for stream, ids in _by_stream(keys).items():
            for start in range(0, len(ids), AT_ONCE):
                some: Any = ids[start : start + AT_ONCE]
                claiming = self._connection.client().xclaim(
                    stream, self._service, self._instance, 0, some, idle=idle, justid=True
                )
                await self._connection.ask(claiming)

    async def _acknowledge(self, keys: list[_Key]) -> None:
        for stream, ids in _by_stream(keys).items():
            await self._connection.ask(self._connection.client().xack(stream, self._service, *ids))

    async def _abandon(self, keys: list[_Key]) -> None:
        """Make events look idle, so that any consumer takes them over at once."""
        await self._claim_again(keys, idle=int(self._connection.lease * 1000) + 1)


def _by_stream(keys: list[_Key]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for stream, id_ in keys:
        found.setdefault(stream, []).append(id_)
    return found
