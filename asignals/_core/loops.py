"""Event loops and threads: the lock, waking tasks, a queue between threads, contexts, worker threads, forks."""

from __future__ import annotations

import _thread
import contextvars
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, ContextVar
from inspect import isawaitable
from types import coroutine
from typing import Any, Generic, TypeVar, cast
from weakref import WeakSet

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")

# -- the lock and forks ------------------------------------------------------------------------------------------------


class InterruptSafeLock(_thread.RLock):  # type: ignore[misc]
    """A re-entrant lock for CPython 3.14, where a signal handler that raises may leave others locked (gh-148874).

    There, `with` runs signal handlers between locking and entering the block. It does not if `__enter__` is a Python
    function, and that runs none after unpacking, as it would after a call. `__exit__` stays the built-in one.
    """

    def __enter__(self) -> bool:  # type: ignore[override]
        (is_locked,) = map(self.acquire, (True,))
        return is_locked


lock: Any = InterruptSafeLock() if sys.version_info[:2] == (3, 14) else threading.RLock()
"""Guards all registries and queues. Re-entrant: the collector may run a finalizer that needs it in a thread with it."""


def _start_child() -> None:
    """In a forked child the loops that the queues are for do not exist."""
    lock._at_fork_reinit()
    for queue in list(_queues):
        queue.close()


# The thread that forks has the lock meanwhile. Another one would take it along: it does not exist in the child, where
# finalizers of what the parent's threads had run before `_start_child`.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_start_child)

# -- loops -------------------------------------------------------------------------------------------------------------


class Loop:
    """The event loop of the task that makes this object. All threads may use it."""

    __slots__ = ("_call_soon", "_get_current", "_native", "new_event")

    def __init__(self) -> None:
        native: Any = anyio.lowlevel.current_token().native_token
        library: Any = sys.modules["asyncio" if hasattr(native, "call_soon_threadsafe") else "trio"]
        self._native = native
        self.new_event: Callable[[], Any] = library.Event
        if library.__name__ == "asyncio":
            self._call_soon, self._get_current = native.call_soon_threadsafe, library.get_running_loop
        else:
            self._call_soon, self._get_current = native.run_sync_soon, library.lowlevel.current_trio_token

    def is_current(self) -> bool:
        """Whether the caller runs in this loop."""
        try:
            return self._get_current() is self._native
        except RuntimeError:  # in no loop
            return False

    def call(self, function: Callable[[], object]) -> bool:
        """Call a function in this loop, at once if it is the current one; `False` if it has ended for ever."""
        try:
            if self.is_current():
                function()
            else:
                self._call_soon(function)
        except RuntimeError:
            return False
        return True

    def has_ended(self) -> bool:
        """Whether this loop never runs again."""
        return not self.is_current() and not self.call(bool)

    def copy_context(self) -> Context | None:
        """A copy of the current context for a task of this loop; `None` if the loop has ended."""
        context, is_current = contextvars.copy_context(), self.is_current()
        if not is_current and (sniffio := sys.modules.get("sniffio")) is not None:
            context.run(sniffio.current_async_library_cvar.set, None)  # anyio is to find this kind of loop
        return context if is_current or self.call(bool) else None


class Waker:
    """Lets one task wait until any thread wakes it."""

    __slots__ = ("_event", "_loop")

    def __init__(self, loop: Loop | None = None) -> None:
        """`loop` may be the current one or not: if it is, there is no need to look it up, which is slow."""
        self._loop = loop if loop is not None and loop.is_current() else Loop()
        self._event = self._loop.new_event()

    def wait(self) -> Awaitable[object]:
        """Wait until `wake` is called; may be called again, after a time limit."""
        return cast("Awaitable[object]", self._event.wait())

    def wake(self, *_: object) -> None:
        """Wake the task. Does nothing if it is awake or was cancelled, or if its loop has ended."""
        self._loop.call(self._event.set)


# -- queues ------------------------------------------------------------------------------------------------------------


class Queue(Generic[T]):
    """At most `size` items, which tasks of any event loop put in, and tasks of one loop take out, always in order.

    A taker is only woken, and takes the first item itself; one that is cancelled after it was woken wakes the next. An
    item that finds no capacity waits in line, and whoever makes capacity adds the first of these. With `keep`, items
    that were taken count until they are deleted from `taken`. In a forked child a queue is closed.
    """

    def __init__(self, size: int, *, keep: bool = False) -> None:
        self.size, self.keep = size, keep
        self.items: deque[T] = deque()
        self.taken: dict[T, None] = {}
        self.waiting: OrderedDict[Waker, T] = OrderedDict()
        self.takers: OrderedDict[Waker, None] = OrderedDict()
        self.is_closed: bool = False
        self.loop: Loop | None = None  # that of the takers
        _queues.add(self)

    @property
    def is_full(self) -> bool:
        """Whether another item has to wait in line."""
        return len(self.items) + len(self.taken) >= self.size

    def add(self, item: T) -> None:
        """Add an item, with the lock held, whether there is capacity or not."""
        self.items.append(item)
        self._wake_taker()

    def line_up(self, item: T) -> Waker:
        """Put an item in line, with the lock held; its sender waits for the waker, and calls `leave` then."""
        waker = Waker(self.loop)
        self.waiting[waker] = item
        return waker

    def leave(self, waker: Waker) -> bool:
        """Leave the line; returns whether the item was still waiting."""
        with lock:
            return self.waiting.pop(waker, None) is not None

    def take(self) -> T:
        """Take the first item, with the lock held."""
        item = self.items.popleft()
        if self.keep:
            self.taken[item] = None
        self.admit()
        return item

    async def next(self) -> T | None:
        """Take the first item, waiting until there is one; `None` when the queue is closed."""
        while True:
            with lock:
                if self.is_closed:
                    return None
                if self.items:
                    return self.take()
                taker = Waker(self.loop)
                self.takers[taker] = None
                self._wake_taker()  # for what a finalizer has put in meanwhile
            try:
                await taker.wait()
            except BaseException:
                with lock:
                    self.takers.pop(taker, None)
                    self._wake_taker()  # for the item that this one was woken for
                raise
            with lock:
                self.takers.pop(taker, None)  # still there if what woke it was interrupted

    def close(self) -> list[T]:
        """Let nothing in or out any more, and wake everybody who waits; returns the items that were taken or in."""
        with lock:
            self.is_closed = True
            left = [*self.taken, *self.items]
            for waker in (*self.waiting, *self.takers):
                waker.wake()
            for each in (self.taken, self.items, self.takers):
                each.clear()
        return left

    def admit(self) -> None:
        """Add what waits for capacity, as far as there is any; with the lock held."""
        while self.waiting and not self.is_full and (waker := next(iter(self.waiting), None)) is not None:
            waker.wake()  # before it leaves, as below
            if (item := self.waiting.pop(waker, None)) is not None:  # the collector may have closed its sender
                self.add(item)

    def _wake_taker(self) -> None:
        if self.items and self.takers:
            taker = next(iter(self.takers))
            taker.wake()  # before it leaves: an interrupt between the two would leave it asleep for ever
            self.takers.pop(taker, None)


_queues: WeakSet[Queue[Any]] = WeakSet()

# -- cancellation and contexts -----------------------------------------------------------------------------------------


def cancellation() -> tuple[type[BaseException], ...]:
    """The exceptions to catch as a cancellation; none outside of a loop (a coroutine closed by the collector)."""
    try:
        return (anyio.get_cancelled_exc_class(),)
    except anyio.NoEventLoopError:
        return ()


@coroutine
def in_context(context: Context, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine with `context` as its current context: each step of it runs there, as in a task.

    A task would cost more than most receivers do.
    """
    step: Callable[[Any], Any] = work.send
    value: Any = None
    try:
        while True:
            awaited = context.run(step, value)
            try:
                value = yield awaited
                step = work.send
            except BaseException as error:  # noqa: BLE001  passed on to the coroutine
                step, value = work.throw, error
    except StopIteration as stop:
        return stop.value
    finally:
        del value  # an error refers to this frame through its traceback


class Call:
    """A `with` block that the tasks and threads started in it are inside of, until it ends.

    It sets a context variable and leaves it set: to be used in its own context.
    """

    __slots__ = ("_of",)

    def __init__(self, of: object) -> None:
        self._of: object = of

    def __enter__(self) -> None:
        _calls.set((*[call for call in around if call._of is not None], self) if (around := _calls.get()) else (self,))

    def __exit__(self, *_: object) -> None:
        self._of = None


_calls: ContextVar[tuple[Call, ...]] = ContextVar("asignals_calls", default=())


def is_inside(of: object) -> bool:
    """Whether a call that is made for something runs around this one."""
    calls = _calls.get()
    return bool(calls) and any(call._of is of for call in calls)


# -- worker threads ----------------------------------------------------------------------------------------------------

THREADS = 40  # worker threads per loop, not counting those for calls made inside others

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("asignals_thread_limiter")


async def in_thread(call: Callable[[], Any], limiter: anyio.CapacityLimiter | None = None) -> Any:
    """Make a call in a worker thread, in a copy of the current context; an awaitable response is awaited here.

    At most `THREADS` calls run at once, or as many as `limiter` says. A call made inside such a thread (a send through
    `anyio.from_thread`) does not wait for the limiter, because the thread that waits for it may hold the last place.

    A cancelled caller waits for the thread's end, because nothing can stop a thread.
    """
    if is_inside(in_thread):
        limiter = anyio.CapacityLimiter(1)
    elif limiter is None:
        limiter = _limiter.get(None) or anyio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
    outcome: Future[Any] = Future()  # not returned from the thread, because trio refuses coroutines
    try:
        await anyio.to_thread.run_sync(_call, outcome, call, limiter=limiter)
        response = outcome.result()
    except cancellation():
        waker = Waker()
        outcome.add_done_callback(waker.wake)
        with anyio.CancelScope(shield=True):  # anyio has not waited if it was asyncio's `Task.cancel()`
            while not (outcome.cancel() or outcome.done()):
                with suppress(*cancellation()):  # however often it is called
                    await waker.wait()
        raise
    finally:
        del outcome  # an error in it refers to this frame
    return await response if isawaitable(response) else response


def _call(outcome: Future[Any], call: Callable[[], Any]) -> None:
    """In a thread: make a call, unless it was cancelled before."""
    if outcome.set_running_or_notify_cancel():
        try:
            with Call(in_thread):
                response = call()
        except BaseException as error:  # noqa: BLE001  raised in the caller
            outcome.set_exception(error)
        else:
            outcome.set_result(response)
