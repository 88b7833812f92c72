"""Handling many deliveries at once without a task for each.

Workers are started when there is something to do and nobody free, up to the limit, and then stay. A worker whose
handler does not suspend goes straight on to the next item, so quick receivers cost no task and no switch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

T = TypeVar("T")

_FAIR_SHARE = 32  # items that one worker may handle before other tasks of the loop get a turn


class Pool(Generic[T]):
    """Calls `work(item)` for every item put, for at most `limit` items at once, in the order of the puts.

    Use it as an async context manager: leaving cancels the workers and waits for them. `work` must not raise; if it
    does, the exception is raised where the pool is waited for.
    """

    def __init__(self, work: Callable[[T], Awaitable[None]], limit: int) -> None:
        self._work = work
        self._limit = limit
        self._items: deque[T] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        """Items put and not yet done."""
        return len(self._items) + self._busy

    def put(self, item: T) -> None:
        """Hand over one item; never waits."""
        self._items.append(item)
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        if len(self._workers) < self._limit:
            worker = asyncio.get_running_loop().create_task(self._run())
            self._workers.add(worker)
            worker.add_done_callback(self._ended)

    async def until_below(self, count: int) -> None:
        """Wait until fewer than `count` items are left; raises what `work` raised."""
        while len(self) >= count:
            self._changed.clear()
            await self._changed.wait()
            if self._failure is not None:
                raise self._failure

    async def __aenter__(self) -> Pool[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and worker.exception() is not None:
            self._failure = worker.exception()
        self._changed.set()

    async def _run(self) -> None:
        share = _FAIR_SHARE
        while True:
            while self._items:
                item = self._items.popleft()
                self._busy += 1
                try:
                    await self._work(item)
                finally:
                    self._busy -= 1
                    self._changed.set()
                share -= 1
                if share <= 0:
                    share = _FAIR_SHARE
                    await asyncio.sleep(0)
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            await waiting
