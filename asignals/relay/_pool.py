"""Handling many deliveries at once without a task for each.

Workers are started when there is something to do and nobody free, up to the limit, and then stay. A worker whose
handler does not suspend goes straight on to the next item, so quick receivers cost no task and no switch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from asignals.relay._cancel import SelfCancelledError, end, heed, times_cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from types import TracebackType

T = TypeVar("T")

_POOLS: WeakKeyDictionary[asyncio.Task[Any], Pool[Any]] = WeakKeyDictionary()  # by worker
_FAIR_SHARE = 32  # items that one worker may handle before other tasks of the loop get a turn


class Pool(Generic[T]):
    """Calls `work(item)` for every item put, for at most `limit` items at once, in the order of the puts.

    Use it as an async context manager: leaving cancels the workers and waits for them, and what is put after that is
    not worked on. `on_park` is called when an item is parked. `work` must not raise; if it does, or is cancelled by
    nobody, the block is cancelled, and raises an `ExceptionGroup`.
    """

    def __init__(
        self, work: Callable[[T], Awaitable[None]], limit: int, *, on_park: Callable[[], object] | None = None
    ) -> None:
        self._work = work
        self._limit = limit
        self._items: deque[T] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._group = asyncio.TaskGroup()
        self._workers: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[Any] | None = None
        self._busy = 0
        self.parked: int = 0
        self._on_park = on_park
        self._changed = asyncio.Event()
        self.is_leaving: bool = False

    def __len__(self) -> int:
        """Items put and not yet done, but for the parked ones."""
        return len(self._items) + self._busy - self.parked

    def put(self, item: T) -> None:
        """Hand over one item; never waits."""
        if self.is_leaving:
            return  # a retry that has become due: it is not ours any more
        self._items.append(item)
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._add_worker()

    def _add_worker(self) -> None:
        if len(self._workers) < self._limit + self.parked and not self.is_leaving:
            worker = self._group.create_task(self._run())
            self._workers.add(worker)
            _POOLS[worker] = self
            worker.add_done_callback(self._ended)

    @contextmanager
    def park(self) -> Iterator[None]:
        """A block in which the item that is worked on takes no place: another one may begin.

        Leaving it waits for nothing, so for a while more than `limit` items may be worked on.
        """
        self.parked += 1
        self._changed.set()
        if self._items and not self._idle:
            self._add_worker()
        if self._on_park is not None:
            self._on_park()
        try:
            yield
        finally:
            self.parked -= 1

    def start(self, other: Coroutine[Any, Any, None]) -> None:
        """Run something beside the workers until the block is left; what it raises ends the block, too."""
        task = self._group.create_task(other)
        self._others.add(task)
        task.add_done_callback(self._ended)

    async def until_below(self, count: int) -> None:
        """Wait until fewer than `count` items are left."""
        while len(self) >= count:
            self._changed.clear()
            await self._changed.wait()

    @property
    def is_ending(self) -> bool:
        """Whether workers are cancelled because the block ends."""
        return self.is_leaving or (self._owner is not None and self._owner.cancelling() > 0)

    async def __aenter__(self) -> Pool[T]:
        self._owner = asyncio.current_task()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.is_leaving = True
        try:
            await end(self._workers | self._others)
        except asyncio.CancelledError as cancelled:
            if error is None:
                kind, error, traceback = type(cancelled), cancelled, cancelled.__traceback__
        await self._group.__aexit__(kind, error, traceback)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.is_leaving = True  # the group ends, and takes no more tasks

    async def _run(self) -> None:
        share, work, items = _FAIR_SHARE, self._work, self._items
        while True:
            while items:
                item = items.popleft()
                self._busy += 1
                before = times_cancelled()
                try:
                    await work(item)
                except (Exception, asyncio.CancelledError) as error:
                    await heed(before, error)
                    if isinstance(error, asyncio.CancelledError) and not self.is_ending:
                        raise SelfCancelledError from error  # else its item would be held by nobody, in silence
                    raise
                finally:
                    self._busy -= 1
                    self._changed.set()
                if times_cancelled() > before:
                    await heed(before)
                share -= 1
                if share <= 0:
                    share = _FAIR_SHARE
                    await asyncio.sleep(0)
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            await waiting


def take_back_cancellation() -> bool:
    """Take back the cancellation of a worker's task by something else than the end of its pool; tells whether it was.

    A receiver that cancels the task it runs in, or what it calls, has failed, and no more than that.
    """
    task = asyncio.current_task()
    pool = None if task is None else _POOLS.get(task)
    if task is None or pool is None or pool.is_ending:
        return False
    while task.uncancel():
        pass
    return True
