"""How many events are handled at once, and that those of one key are handled one after the other."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asignals.relay._transport import Delivery

MOST_PARKED: Final = 5_000  # events that may wait here for the one before them


class Lanes:
    """Gives places to events: `limit` at once, and one at once for each key.

    An event that waits for its key holds no place, neither here nor in the engine, so a busy key holds up nobody else.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()  # for a place
        self._keys: dict[str, asyncio.Lock] = {}
        self._queued: Counter[str] = Counter()
        self._parked = 0

    def is_full(self, key: str | None) -> bool:
        """Whether an event of this key had to wait, and too many wait already."""
        return key is not None and key in self._keys and self._parked >= MOST_PARKED

    def has_place(self) -> bool:
        """Take a place at once, for an event without a key; false where none is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def take_place(self, delivery: Delivery, key: str | None) -> None:
        """Wait for the events of the same key that came before, and for a place, and take it."""
        if key is None:
            await self._take()
            return
        lock = self._keys.setdefault(key, asyncio.Lock())
        self._queued[key] += 1
        try:
            await self._wait(lock, delivery, is_first=self._queued[key] == 1)
        except BaseException:
            self._leave(key)
            raise

    def give_place(self, key: str | None) -> None:
        """Give it back, and let the next event of the key come."""
        self._give()
        if key is not None:
            self._keys[key].release()
            self._leave(key)

    def _leave(self, key: str) -> None:
        self._queued[key] -= 1
        if not self._queued[key]:
            del self._queued[key], self._keys[key]

    async def _wait(self, lock: asyncio.Lock, delivery: Delivery, *, is_first: bool) -> None:
        if is_first and self._free:
            await lock.acquire()
            await self._take()
            return
        self._parked += 1
        try:
            with delivery.park():
                await lock.acquire()
                try:
                    await self._take()
                except BaseException:
                    lock.release()
                    raise
        finally:
            self._parked -= 1

    async def _take(self) -> None:
        if self.has_place():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._give()  # it came with the cancellation
            raise

    def _give(self) -> None:
        """Hand a place to the one who has waited longest, so nobody who comes later overtakes."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
