"""Event loops and threads: waking tasks, awaiting in a context, calling in a worker thread, locks, forks."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from concurrent.futures import Future
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

    __slots__ = ("_call_soon", "_get_current", "_native", "name", "new_event")

    def __init__(self) -> None:
        native: Any = anyio.lowlevel.current_token().native_token
        self._native = native
        self.name: str = "asyncio" if hasattr(native, "call_soon_threadsafe") else "trio"
        library: Any = sys.modules[self.name]
        if self.name == "asyncio":
            self._call_soon, self._get_current = native.call_soon_threadsafe, library.get_running_loop
            self.new_event: Callable[[], Any] = native.create_future
        else:
            self._call_soon, self._get_current = native.run_sync_soon, library.lowlevel.current_trio_token
            self.new_event = library.Event

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

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in this loop; does nothing if the loop has ended."""
        with suppress(RuntimeError):
            self._call_soon(function)

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function after some seconds: in the loop, or for trio in a thread, because it has only tasks for this.

        To be used inside the loop. The function must not raise.
        """
        if self.name == "asyncio":
            self._native.call_later(seconds, function)
        else:
            timer = threading.Timer(seconds, function)
            timer.daemon = True
            timer.start()

    def claim(self, context: Context) -> None:
        """Have anyio find this kind of loop in a context that was made in another loop."""
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, self.name)


class Waker:
    """Lets one task wait until any thread wakes it."""

    __slots__ = ("_event", "loop")

    def __init__(self, loop: Loop | None = None) -> None:
        """`loop` may be the current one or not: if it is, there is no need to look it up, which is slow."""
        self.loop: Loop = loop if loop is not None and loop.is_current() else Loop()
        self._event = self.loop.new_event()

    def wait(self) -> Awaitable[object]:
        """Wait until `wake` is called; to be awaited once."""
        waiting: Awaitable[object] = self._event if self.loop.name == "asyncio" else self._event.wait()
        return waiting

    def wake(self, *_: object) -> None:
        """Wake the task. Does nothing if it is awake or was cancelled, or if its loop has ended."""
        if self.loop.is_current():
            self._wake()
        else:
            self.loop.call_soon(self._wake)

    def _wake(self) -> None:
        if self.loop.name == "trio":
            self._event.set()
        elif not self._event.done():
            self._event.set_result(None)


# -- cancellation and contexts -----------------------------------------------------------------------------------------


def cancellation() -> tuple[type[BaseException], ...]:
    """The exceptions to catch as a cancellation; none outside of a loop (a coroutine closed by the collector)."""
    try:
        return (anyio.get_cancelled_exc_class(),)
    except anyio.NoEventLoopError:
        return ()


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


class Call:
    """A call that the tasks and threads started by it are inside of, for as long as it runs."""

    __slots__ = ("is_running", "of")

    def __init__(self, of: object) -> None:
        """A call that is made for something, in the current context from now on."""
        self.of = of
        self.is_running = True
        around = _calls.get()
        _calls.set((*(call for call in around if call.is_running), self) if around else (self,))


_calls: ContextVar[tuple[Call, ...]] = ContextVar("asignals_calls", default=())


def is_inside(of: object) -> bool:
    """Whether a call that is made for something runs around this one."""
    calls = _calls.get()
    return bool(calls) and any(call.of is of and call.is_running for call in calls)


# -- worker threads ----------------------------------------------------------------------------------------------------

THREADS = 40  # worker threads per loop, not counting those for calls made inside others

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("asignals_thread_limiter")


async def in_thread(call: Callable[[], Any], limiter: anyio.CapacityLimiter | None = None) -> Any:
    """Make a call in a worker thread, in a copy of the current context; an awaitable response is awaited here.

    At most `THREADS` calls run at once, or as many as `limiter` says. A call made inside such a thread (a send through
    `anyio.from_thread`) does not wait for the limiter, because the thread that waits for it may hold the last place.

    A cancelled caller waits for the thread's end, because nothing can stop a thread.
    """
    outcome: Future[Any] = Future()  # not returned from the thread, because trio refuses coroutines
    limiter = anyio.CapacityLimiter(1) if is_inside(in_thread) else limiter or _own_limiter()
    try:
        await anyio.to_thread.run_sync(_call, outcome, call, limiter=limiter)
        response = outcome.result()
    except cancellation():
        if not outcome.cancel():  # anyio has not waited if it was asyncio's `Task.cancel()`
            await _end_of(outcome)
        raise
    finally:
        del outcome  # an error in it refers to this frame
    return await response if isawaitable(response) else response


def _call(outcome: Future[Any], call: Callable[[], Any]) -> None:
    """In a thread: make a call, unless it was cancelled before."""
    if not outcome.set_running_or_notify_cancel():
        return
    running = Call(in_thread)
    try:
        response = call()
    except BaseException as error:  # noqa: BLE001  raised in the caller
        running.is_running = False
        outcome.set_exception(error)
    else:
        running.is_running = False
        outcome.set_result(response)


async def _end_of(outcome: Future[Any]) -> None:
    """Wait for a thread's end, however often this is cancelled."""
    with anyio.CancelScope(shield=True):
        while not outcome.done():
            waker = Waker()
            outcome.add_done_callback(waker.wake)
            with suppress(*cancellation()):
                await waker.wait()
    if outcome.exception() is None and iscoroutine(outcome.result()):
        outcome.result().close()


def _own_limiter() -> anyio.CapacityLimiter:
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return limiter


# -- locks and forks ---------------------------------------------------------------------------------------------------


class InterruptSafeLock(_thread.RLock):  # type: ignore[misc]
    """A re-entrant lock for CPython 3.14, where a signal handler that raises may leave others locked (gh-148874).

    There, `with` runs signal handlers between locking and entering the block. It does not if `__enter__` is a Python
    function, and that runs none after unpacking, as it would after a call. `__exit__` stays the built-in one.
    """

    def __enter__(self) -> bool:  # type: ignore[override]
        (is_locked,) = map(self.acquire, (True,))
        return is_locked


_Lock: Callable[[], Any] = InterruptSafeLock if sys.version_info[:2] == (3, 14) else threading.RLock
_locks: WeakSet[Any] = WeakSet()

open_in_process: WeakSet[Any] = WeakSet()
"""The open streams and backgrounds; a forked child calls their `close_in_child()`, as their loops do not run there."""


def new_lock() -> Any:
    """A re-entrant lock: the collector may run a finalizer that needs the lock its thread holds. Free after a fork."""
    lock = _Lock()
    _locks.add(lock)
    return lock


def _start_child() -> None:
    """In a forked child: the threads that may hold a lock do not exist there."""
    for lock in list(_locks):
        lock._at_fork_reinit()
    for each in list(open_in_process):
        each.close_in_child()
    open_in_process.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_child)
