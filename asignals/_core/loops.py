"""Waiting (interim)."""

from __future__ import annotations

import math
import sys
import threading
from contextlib import suppress
from inspect import isawaitable, iscoroutine
from types import coroutine
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context

new_lock = threading.RLock


class Loop:
    """The event loop of the task that makes this, as other threads see it."""

    __slots__ = ("_call_soon", "_current", "_native", "future", "is_asyncio")

    def __init__(self) -> None:
        native: Any = anyio.lowlevel.current_token().native_token
        self._native = native
        self.is_asyncio: bool = hasattr(native, "call_soon_threadsafe")
        self._current: Callable[[], object]
        self.future: Callable[[], Any]
        if self.is_asyncio:
            self._current = sys.modules["asyncio"].get_running_loop
            self._call_soon = native.call_soon_threadsafe
            self.future = native.create_future
        else:
            self._current = _trio_token
            self._call_soon = native.run_sync_soon
            self.future = sys.modules["trio"].Event

    def is_here(self) -> bool:
        """Whether the caller runs in this loop; not so in its own thread while it is between two runs."""
        try:
            return self._current() is self._native
        except RuntimeError:
            return False

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the loop: at once from inside, else soon, without waiting.

        Raises `RuntimeError` when the loop has ended.
        """
        if self.is_here():
            function(*arguments)
        else:
            self._call_soon(function, *arguments)


def _trio_token() -> object:
    lowlevel = sys.modules["trio"].lowlevel
    lowlevel.current_task()  # raises where another loop, whose guest trio is, has its turn
    return lowlevel.current_trio_token()


class Waker:
    """What one task waits for once, and any thread may bring; may carry a value. An event alone is not thread-safe."""

    __slots__ = ("_future", "_loop", "value")

    def __init__(self, value: Any = None, loop: Loop | None = None) -> None:
        """Give a loop that is known and may be the current one: to find out which is costs most of this."""
        self.value: Any = value
        self._loop = loop if loop is not None and loop.is_here() else Loop()
        self._future = self._loop.future()

    def wait(self) -> Awaitable[object]:
        """Wait until `wake` was called; to be awaited once."""
        waiting: Awaitable[object] = self._future if self._loop.is_asyncio else self._future.wait()
        return waiting

    def wake(self) -> None:
        """Let the waiting task go on; harmless when it was woken or cancelled, or its loop has ended."""
        if self._loop.is_here():
            self._wake()
        else:
            with suppress(RuntimeError):
                self._loop.call(self._wake)

    def _wake(self) -> None:
        if not self._loop.is_asyncio:
            self._future.set()
        elif not self._future.done():
            self._future.set_result(None)


def cancellation() -> tuple[type[BaseException], ...]:
    """What to catch as a cancellation; nothing where no loop runs, as for a coroutine that the collector closes."""
    try:
        return (anyio.get_cancelled_exc_class(),)
    except anyio.NoEventLoopError:
        return ()


def is_cancelled() -> bool:
    """Whether a scope around the current task is cancelled, so that the cancellation exception was not its own idea."""
    return anyio.current_effective_deadline() == -math.inf


async def in_thread(call: Callable[[], Any], limiter: Any = None) -> Any:
    """Make a call in a worker thread, in a copy of the current context; an awaitable response is awaited here.

    Nothing can stop a thread, so whoever is cancelled meanwhile waits for its end. anyio does that for cancelled
    scopes, but asyncio's `Task.cancel()` would leave the thread running.
    """
    work = _Work(call)
    try:
        await anyio.to_thread.run_sync(work.run, limiter=limiter)
    except cancellation():
        await work.end()
        raise
    return await work.response if isawaitable(work.response) else work.response


class _Work:
    """A call that is either made by the thread or withdrawn before, whoever is first."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._claim = threading.Lock()
        self.response: Any = None
        self._is_done = False
        self._done: Waker | None = None

    def run(self) -> None:
        """Make the call; its response is kept here, because trio refuses coroutines from threads."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self.response = self._call()
        finally:
            self._is_done = True
            if self._done is not None:
                self._done.wake()

    async def end(self) -> None:
        """Withdraw the call or wait for its end, however often this is cancelled; nobody awaits the response then."""
        if self._claim.acquire(blocking=False):
            return
        with anyio.CancelScope(shield=True):
            while True:
                self._done = Waker()  # each is waited for once
                if self._is_done:
                    break
                try:
                    await self._done.wait()
                except cancellation():
                    continue
        if iscoroutine(self.response):
            self.response.close()


@coroutine
def in_context(context: Context, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await `work` with `context` as its current context; the caller's own context is untouched.

    Each step of it is run in the context, as an event loop does for a task; a task of its own would cost more than
    most receivers do. Cancellation and everything else that is thrown in reaches `work`.
    """
    step: Callable[..., Any] = work.send
    value: Any = None
    try:
        while True:
            try:
                trap = context.run(step, value)
            except StopIteration:
                return
            try:
                value = yield trap
                step = work.send
            except GeneratorExit:
                context.run(work.close)
                raise
            except BaseException as error:  # noqa: BLE001  handed on to the work
                step, value = work.throw, error
    finally:
        del value  # an error kept here would hold this frame by its traceback
