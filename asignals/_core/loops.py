"""Event loops and threads: waking tasks, awaiting in a context, calling in a worker thread, locks, forks."""

from __future__ import annotations

import _thread
import math
import os
import sys
import threading
from contextlib import suppress
from contextvars import ContextVar
from inspect import isawaitable, iscoroutine
from types import coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
import anyio.lowlevel
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context

# -- waking ------------------------------------------------------------------------------------------------------------


class Loop:
    """The event loop of the task that makes this object. All threads may use it."""

    __slots__ = ("_call_soon", "_get_current", "_native", "is_asyncio", "make_future")

    def __init__(self) -> None:
        native: Any = anyio.lowlevel.current_token().native_token
        self.is_asyncio: bool = hasattr(native, "call_soon_threadsafe")
        library: Any = sys.modules["asyncio" if self.is_asyncio else "trio"]
        self._native = native
        self._call_soon = native.call_soon_threadsafe if self.is_asyncio else native.run_sync_soon
        self._get_current = library.get_running_loop if self.is_asyncio else _get_trio_token
        self.make_future: Callable[[], Any] = native.create_future if self.is_asyncio else library.Event

    def is_current(self) -> bool:
        """Whether the caller runs in this loop."""
        try:
            return self._get_current() is self._native
        except RuntimeError:  # in no loop
            return False

    def has_ended(self) -> bool:
        """Whether this loop will never run again."""
        try:
            self._call_soon(bool)
        except RuntimeError:
            return True
        return False

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the loop: at once if the caller runs in it, else soon.

        Raises `RuntimeError` if the loop has ended.
        """
        if self.is_current():
            function(*arguments)
        else:
            self._call_soon(function, *arguments)

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function after some seconds: in the loop, or for trio in a thread, because it has only tasks for this.

        To be used inside the loop. The function must not raise.
        """
        if self.is_asyncio:
            self._native.call_later(seconds, function)
        else:
            timer = threading.Timer(seconds, function)
            timer.daemon = True
            timer.start()


def _get_trio_token() -> object:
    lowlevel = sys.modules["trio"].lowlevel
    lowlevel.current_task()  # if trio is the guest of another loop, this raises while that loop runs
    return lowlevel.current_trio_token()


class Waker:
    """Lets one task wait, once, until any thread wakes it."""

    __slots__ = ("_future", "loop")

    def __init__(self, loop: Loop | None = None) -> None:
        """`loop` may be the current one or not: if it is, there is no need to look it up, which is slow."""
        self.loop: Loop = loop if loop is not None and loop.is_current() else Loop()
        self._future = self.loop.make_future()

    def wait(self) -> Awaitable[object]:
        """Wait until `wake` is called; to be awaited once."""
        waiting: Awaitable[object] = self._future if self.loop.is_asyncio else self._future.wait()
        return waiting

    def wake(self) -> None:
        """Wake the task. Does nothing if it is awake or was cancelled, or if its loop has ended."""
        if self.loop.is_current():
            self._wake()
        else:
            with suppress(RuntimeError):
                self.loop.call(self._wake)

    def _wake(self) -> None:
        if not self.loop.is_asyncio:
            self._future.set()
        elif not self._future.done():
            self._future.set_result(None)


# -- cancellation and contexts -----------------------------------------------------------------------------------------


def cancellation() -> tuple[type[BaseException], ...]:
    """The exceptions to catch as a cancellation; none outside of a loop (a coroutine closed by the collector)."""
    try:
        return (anyio.get_cancelled_exc_class(),)
    except anyio.NoEventLoopError:
        return ()


def is_cancelled() -> bool:
    """Whether a cancel scope around the current task is cancelled; asyncio's `Task.cancel()` does not count."""
    return anyio.current_effective_deadline() == -math.inf


@coroutine
def in_context(context: Context, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine with `context` as its current context; returns its result.

    Each step of it runs in the context, as in a task. A task would cost more than most receivers do.
    """
    step: Callable[..., Any] = work.send
    value: Any = None
    try:
        while True:
            try:
                awaited = context.run(step, value)
            except StopIteration as stop:
                return stop.value
            try:
                value = yield awaited
                step = work.send
            except BaseException as error:  # noqa: BLE001  passed on to the coroutine
                step, value = work.throw, error
    finally:
        del value  # an error refers to this frame through its traceback


# -- worker threads ----------------------------------------------------------------------------------------------------

THREADS = 40  # worker threads per loop, not counting those for calls made inside others

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("asignals_thread_limiter")
_thread_calls: ContextVar[tuple[_ThreadCall, ...]] = ContextVar("asignals_thread_calls", default=())


async def in_thread(call: Callable[[], Any], limiter: anyio.CapacityLimiter | None = None) -> Any:
    """Make a call in a worker thread, in a copy of the current context; an awaitable response is awaited here.

    At most `THREADS` calls run at once, or as many as `limiter` says. A call made inside such a thread (a send through
    `anyio.from_thread`) does not wait for the limiter, because the thread that waits for it may hold the last place.

    A cancelled caller waits for the thread's end, because nothing can stop a thread.
    """
    callers = tuple(each for each in _thread_calls.get() if each.is_running)
    limiter = anyio.CapacityLimiter(1) if callers else limiter or _own_limiter()
    work = _ThreadCall(call, callers)
    try:
        await anyio.to_thread.run_sync(work.run, limiter=limiter)
    except cancellation():
        await work.end()  # anyio waits if a scope is cancelled, but not after asyncio's `Task.cancel()`
        raise
    return await work.response if isawaitable(work.response) else work.response


def _own_limiter() -> anyio.CapacityLimiter:
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return limiter


class _ThreadCall:
    """A call that a thread makes, unless it is withdrawn before."""

    def __init__(self, call: Callable[[], Any], callers: tuple[_ThreadCall, ...]) -> None:
        self._call = call
        self._callers = callers
        self._claim = threading.Lock()  # taken once, by who makes or withdraws the call
        self._waker: Waker | None = None
        self.is_running = True
        self.response: Any = None  # not returned from the thread, because trio refuses coroutines

    def run(self) -> None:
        """Make the call, in the thread."""
        if not self._claim.acquire(blocking=False):
            return
        _thread_calls.set((*self._callers, self))
        try:
            self.response = self._call()
        finally:
            self.is_running = False
            if self._waker is not None:
                self._waker.wake()

    async def end(self) -> None:
        """Withdraw the call, or wait for its end, however often this is cancelled."""
        if self._claim.acquire(blocking=False):
            return
        with anyio.CancelScope(shield=True):
            while True:
                self._waker = Waker()
                if not self.is_running:
                    break
                with suppress(*cancellation()):
                    await self._waker.wait()
        if iscoroutine(self.response):
            self.response.close()


# -- locks and forks ---------------------------------------------------------------------------------------------------


class InterruptSafeLock(_thread.RLock):  # type: ignore[misc]
    """A re-entrant lock for CPython 3.14, where a signal handler that raises may leave others locked (gh-148874).

    There, `with` runs signal handlers between locking and entering the block. It does not if `__enter__` is a Python
    function, and that runs none after unpacking, as it would after a call. `__exit__` stays the built-in one.
    """

    def __enter__(self) -> bool:  # type: ignore[override]
        (is_locked,) = map(self.acquire, (True,))
        return is_locked


new_lock: Callable[[], _thread.RLock] = InterruptSafeLock if sys.version_info[:2] == (3, 14) else threading.RLock
"""Makes a re-entrant lock: the garbage collector may run a finalizer that needs the lock its thread holds."""


open_in_process: WeakSet[Any] = WeakSet()
"""The open streams and backgrounds; a forked child calls their `close_in_child()`, as their loops do not run there."""


def _close_in_child() -> None:
    for each in list(open_in_process):
        each.close_in_child()
    open_in_process.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)
