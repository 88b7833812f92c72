"""A bounded queue between threads: what streams keep their events in, and backgrounds their sends.

Tasks of any event loop put items in, tasks of one loop take them out, always in order. A taker is only woken, and takes
the first item itself; one that is cancelled after it was woken wakes the next. An item that finds no capacity waits
with its task, and whoever releases capacity adds the first of these. One lock guards everything. It is re-entrant: a
finalizer may put something in while its thread holds the lock.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

import anyio

from asignals._core.loops import Loop, Waker, new_lock

T = TypeVar("T")


class Waiting(Generic[T]):
    """An item that waits for capacity."""

    __slots__ = ("is_added", "item", "since", "waker")

    def __init__(self, item: T, waker: Waker) -> None:
        self.item: T = item
        self.waker: Waker = waker
        self.since: float = time.monotonic()
        self.is_added: bool = False


class Queue(Generic[T]):
    """At most `size` items, those included that were taken with `keep` and not released yet."""

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.items: deque[T] = deque()
        self.taken: dict[int, T] = {}  # by id, in order
        self.waiting: deque[Waiting[T]] = deque()
        self.takers: deque[Waker] = deque()
        self.lock = new_lock()
        self.is_closed: bool = False
        self.loop: Loop | None = None  # that of the takers

    @property
    def used(self) -> int:
        """How many items count."""
        return len(self.items) + len(self.taken)

    def put(self, item: T, *, may_exceed: bool = False) -> Waiting[T] | None:
        """Add an item, with the lock held; without capacity, returns what `wait` takes."""
        if may_exceed or len(self.items) + len(self.taken) < self.size:
            self.items.append(item)
            self._wake_taker()
            return None
        waiting = Waiting(item, Waker(self.loop))
        self.waiting.append(waiting)
        return waiting

    async def wait(self, waiting: Waiting[T]) -> None:
        """Wait until an item is added (`is_added`), or the queue is closed. An item whose task is cancelled is not."""
        try:
            await waiting.waker.wait()
        except BaseException:
            with self.lock, suppress(ValueError):
                self.waiting.remove(waiting)
            raise

    async def take(self, *, keep: bool = False) -> T:
        """Take the first item, waiting until there is one. Raises `anyio.EndOfStream` if the queue is closed."""
        while True:
            with self.lock:
                if self.is_closed:
                    raise anyio.EndOfStream
                if self.items:
                    item = self.items.popleft()
                    if keep:
                        self.taken[id(item)] = item
                    self._admit()
                    return item
                taker = Waker(self.loop)
                self.takers.append(taker)
                if self.items:  # a finalizer has put something in meanwhile
                    self._wake_taker()
            try:
                await taker.wait()
            except BaseException:
                with self.lock:
                    if taker in self.takers:
                        self.takers.remove(taker)
                    else:
                        self._wake_taker()
                raise

    def release(self, item: T) -> None:
        """Let an item that was taken count no more; with the lock held."""
        del self.taken[id(item)]
        self._admit()

    def close(self) -> list[T]:
        """Let nothing in or out any more, and wake everybody who waits; returns the items that were in."""
        with self.lock:
            self.is_closed = True
            left = list(self.items)
            wakers = [*(waiting.waker for waiting in self.waiting), *self.takers]
            for each in (self.items, self.waiting, self.takers):
                each.clear()
        for waker in wakers:
            waker.wake()
        return left

    def _admit(self) -> None:
        """Add what waits for capacity, as far as there is any."""
        while self.waiting and self.used < self.size:
            waiting = self.waiting.popleft()
            waiting.is_added = True
            self.put(waiting.item)
            waiting.waker.wake()

    def _wake_taker(self) -> None:
        if self.takers:
            self.takers.popleft().wake()
