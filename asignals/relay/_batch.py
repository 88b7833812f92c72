"""Collecting many small requests into few: what comes while one request is under way goes together with the next."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from asignals.relay._cancel import end, heeding
from asignals.relay._connection_state import Attempts
from asignals.relay._loops import OwnLoop
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from asignals.relay._connection_state import ConnectionState

T = TypeVar("T")
R = TypeVar("R")

_LAST_FLUSH = 3.0  # seconds that the flush on leaving may take


class Batch(Generic[T]):
    """Collects items (acknowledgements) and gives them to `flush` together; a flush that fails is repeated.

    Use it as an async context manager: leaving flushes once more; what is still not acknowledged is redelivered.
    """

    def __init__(self, flush: Callable[[list[T]], Awaitable[None]], state: ConnectionState, most: int = 1_000) -> None:
        self._flush = flush
        self._state = state
        self._most = most
        self._items: list[T] = []
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, item: T) -> None:
        """Add one item to the next flush; never waits."""
        self._items.append(item)
        self._added.set()

    async def __aenter__(self) -> Batch[T]:
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await to_the_end(self._leave())

    async def _leave(self) -> None:
        if self._task is not None:
            await end([self._task])
        with suppress(Exception):  # what cannot be flushed now is redelivered
            async with asyncio.timeout(_LAST_FLUSH):
                while self._items:
                    await self._flush_once()

    async def _run(self) -> None:
        attempts = Attempts(self._state, is_proof=False)
        while True:
            await self._added.wait()
            self._added.clear()
            while self._items:
                async with attempts:
                    await self._flush_once()

    async def _flush_once(self) -> None:
        going, rest = self._items[: self._most], self._items[self._most :]
        self._items = rest
        try:
            await self._flush(going)
        except BaseException:
            self._items = going + self._items
            raise


class Coalescer(Generic[T, R]):
    """A function of one item that is computed for many at once: calls made meanwhile share the next computation."""

    def __init__(self, function: Callable[[list[T]], Awaitable[list[R]]], most: int = 500) -> None:
        self._function = function
        self._most = most
        self._loop = OwnLoop()
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """Give the result for one item; raises what the function raised for it."""
        self._loop.enter("this relay", self._forget)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return await future

    def _forget(self) -> None:
        self._waiting, self._task = [], None

    async def aclose(self) -> None:
        """Cancel the computation that is under way, and the calls that wait."""
        if self._task is not None and not self._task.done():
            await end([self._task])
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    async def _run(self) -> None:
        while self._waiting:
            going, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            try:
                results = await heeding(self._function([item for item, _ in going]))
            except Exception as error:  # noqa: BLE001  handed to every call that shares this computation
                for _, future in going:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(going, results, strict=True):
                    if not future.done():
                        future.set_result(result)
            finally:
                for _, future in going:
                    future.cancel()  # those without a result: we were cancelled
