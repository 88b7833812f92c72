"""Not waiting for receivers: sends that run in the background, bounded and never lost silently.

Jobs and waiters change hands under a lock, as sends may come from other threads and loops; the workers live in the
loop that entered the block. What is accepted stands in one queue, and each worker that is free takes the first of it:
so jobs begin in order even on trio, which runs woken tasks in random order, and a worker whose job another has taken
just rests again. A job that finds no room waits with its sender, and whoever makes room accepts it: a sender that is
cancelled has nothing to pass on.

A receiver that sends to the background it runs in must not wait for room, as its own worker may be the one to make
it: such sends are known by a context variable, and may exceed the buffer.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections import Counter, deque
from contextlib import suppress
from contextvars import ContextVar
from inspect import isawaitable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, Self

import anyio
import anyio.lowlevel

from asignals._core.loops import Loop, Waker, cancellation, in_context, is_cancelled
from asignals._core.references import describe, is_a
from asignals._core.signal import Signal
from asignals._core.stream import Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from types import TracebackType

    from anyio.abc import TaskGroup

P = ParamSpec("P")

_logger = logging.getLogger("asignals")

# The backgrounds that the current context runs in.
_inside: ContextVar[tuple[Background, ...]] = ContextVar("asignals_background", default=())


class BackgroundStatistics(NamedTuple):
    """A background's counts of sends: running, waiting in the buffer, and over its life."""

    running: int
    waiting: int
    blocked: int
    """Sends that wait for room in the buffer."""
    accepted: int
    done: int
    errors: int
    """Errors of receivers."""
    limit: int
    buffer: int


class _Job:
    """One send to be done, in a copy of the current context."""

    __slots__ = ("_unmute", "arguments", "context", "is_nested", "number", "sender", "signal")

    def __init__(self, background: Background, signal: Signal[..., Any], sender: object, arguments: Any) -> None:
        self.signal = signal
        self.sender = sender
        self.arguments: dict[str, Any] = arguments
        self.number = -1  # until it is accepted
        self.is_nested = background in _inside.get()
        self.context = contextvars.copy_context()
        self._unmute = signal._registry.keep_muted(self.context)

    def end(self) -> None:
        """Be done with, one way or the other; doing it again does nothing."""
        unmute, self._unmute = self._unmute, None
        if unmute is not None:
            unmute()


class Background:
    """Runs sends in the background of an `async with` block, and ends when all of them are done.

    ```python
    async with Background(limit=100, buffer=1000) as background:
        await background.send(order_paid, order, amount=42)
    ```

    `send` waits only for room, `send_nowait` never. Arguments are checked at the call. Receivers run through
    `send_robust`, in a copy of the context of the call; each of their errors is logged (as `send_robust` does) and
    given to `on_error`, once. Sends begin in the order in which they were accepted.

    Leaving the block refuses further sends, and drains: what was accepted is done, what waits for room is accepted,
    and what its receivers send here meanwhile, also when the block raises. When it is cancelled, before or while
    draining, the receivers are cancelled, and the sends that were not finished are logged and kept in `undelivered`.
    A receiver that raises something else than an `Exception` ends the background in the same way.

    A receiver may send to the background that it runs in: that never waits and may exceed `buffer`, so that it
    cannot deadlock, even with `limit=1, buffer=1`.

    Args:
        limit: How many sends run at once.
        buffer: How many sends wait to run, beside them.
        on_error: Called with each exception, sync or async; if it raises, that is logged.

    Raises:
        TypeError, ValueError: one of the arguments is of another kind.
        RuntimeError: entered again; or, as the block ends, other code had cancelled a worker before it began.
    """

    def __init__(
        self, limit: int = 100, buffer: int = 1000, on_error: Callable[[Exception], object] | None = None
    ) -> None:
        _check(limit, buffer, on_error)
        self._limit = limit
        self._buffer = buffer
        self._on_error = on_error
        self._lock = threading.RLock()  # the garbage collector may run a finalizer that sends here
        self._queue: deque[_Job] = deque()  # accepted and not begun
        self._senders: deque[Waker] = deque()  # that wait for room, each with its job
        self._idle: list[Waker] = []  # workers
        self._drains: list[tuple[int, Waker]] = []  # the number of jobs waited for, and how many of them are not done
        self._stopped: list[_Job] = []  # begun, and not finished
        self._workers = 0
        self._accepted = 0
        self._done = 0
        self._errors = 0
        self._state: Literal["new", "open", "draining", "closed"] = "new"
        self._group: TaskGroup
        self._loop: Loop
        self._context: Context
        self.undelivered: tuple[Event, ...] = ()
        """The sends that were accepted and not finished when the block ended; empty if it drained."""

    async def __aenter__(self) -> Self:
        if self._state != "new":
            msg = "a background can be entered once; make another one"
            raise RuntimeError(msg)
        self._loop = Loop()
        self._context = contextvars.copy_context()
        self._tell_library(self._context)
        self._group = await anyio.create_task_group().__aenter__()
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interruption = error if isinstance(error, cancellation()) else None
        try:
            if interruption is None:
                interruption = await self._finish()
            self._refuse()
            await self._end_workers(interruption)
        finally:
            del interruption  # whose traceback refers to this frame
            self._give_up()

    async def send(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send, waiting for room if there is none. May be called in any thread's event loop.

        Cancelled before there is room, it sends nothing.

        Raises:
            TypeError: it is no signal, or the arguments are not those that it declares.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        job = self._job(signal, *args, **kwargs)
        try:
            with self._lock:
                if self._offer(job):
                    return
                sender = Waker(job, self._loop)
                self._senders.append(sender)
            await self._wait_for_room(sender)
        finally:
            if job.number < 0:
                job.end()

    def send_nowait(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send at once. May be called in any thread.

        Raises:
            TypeError: it is no signal, or the arguments are not those that it declares.
            anyio.WouldBlock: there is no room.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        job = self._job(signal, *args, **kwargs)
        try:
            with self._lock:
                if self._offer(job):
                    return
            msg = f"a Background runs {self._limit} sends and keeps {self._buffer} more, and has no room"
            raise anyio.WouldBlock(msg)
        finally:
            if job.number < 0:
                job.end()

    def _job(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> _Job:
        if not is_a(signal, Signal):
            msg = f"a Background sends signals, not {describe(signal)}"
            raise TypeError(msg)
        return _Job(self, signal, *signal._bind(*args, **kwargs))

    async def drain(self, timeout: float | None = None) -> int:  # noqa: ASYNC109  it returns what is left
        """Wait until the sends accepted so far are done; returns how many are not done by then, newer ones included.

        Cancels nothing, whether the time runs out or this call is cancelled. May be called in any thread's event
        loop, but not by a receiver that runs in this background, which would wait for itself.

        Args:
            timeout: Seconds to wait; `None` for as long as it takes.

        Raises:
            RuntimeError: called by a receiver that runs in this background.
        """
        if self in _inside.get():
            msg = "a receiver cannot drain the background that it runs in: it would wait for itself"
            raise RuntimeError(msg)
        with anyio.move_on_after(timeout):
            await self._wait_until_done()
        with self._lock:
            return self._accepted - self._done

    def statistics(self) -> BackgroundStatistics:
        """The counts of this moment. May be called in any thread."""
        with self._lock:
            left = self._accepted - self._done - len(self.undelivered)
            running = min(left, self._limit)
            return BackgroundStatistics(
                running=running,
                waiting=left - running,
                blocked=len(self._senders),
                accepted=self._accepted,
                done=self._done,
                errors=self._errors,
                limit=self._limit,
                buffer=self._buffer,
            )

    def __repr__(self) -> str:
        left = self._accepted - self._done - len(self.undelivered)
        return f"<asignals.Background, {self._state}, {left} sends to do>"

    async def _wait_for_room(self, sender: Waker) -> None:
        try:
            await sender.wait()
        finally:
            with self._lock, suppress(ValueError):
                self._senders.remove(sender)
        if sender.value.number < 0:
            raise _closed()

    # -- with the lock held ----------------------------------------------------------------------------------------

    def _offer(self, job: _Job) -> bool:
        """Accept a job if there is room."""
        if self._state != "open" and not (self._state == "draining" and job.is_nested):
            raise _closed()
        if not self._loop.is_here():  # its context may name another kind of loop, which anyio would believe
            self._tell_library(job.context)
        if not job.is_nested and not self._has_room():
            return False
        if not self._idle and self._workers < self._limit:
            self._hire()
        self._accept(job)
        if self._idle:
            self._idle.pop().wake()
        return True

    def _has_room(self) -> bool:
        return self._accepted - self._done < self._limit + self._buffer

    def _accept(self, job: _Job) -> None:
        job.number = self._accepted
        self._accepted += 1
        self._queue.append(job)

    def _hire(self) -> None:
        self._workers += 1
        try:
            # A worker outlives the send that it is made for, so it starts in a context of its own.
            self._loop.call(self._context.copy().run, self._start)
        except RuntimeError:  # the loop has ended
            self._workers -= 1
            raise _closed() from None

    def _start(self) -> None:
        with suppress(RuntimeError):  # the group has ended meanwhile: the job counts as undelivered
            self._group.start_soon(self._work, name="asignals.Background worker")

    def _tell_library(self, context: Context) -> None:
        """Let anyio take the loop for what it is, also outside of tasks."""
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, "asyncio" if self._loop.is_asyncio else "trio")

    def _settle(self, job: _Job) -> None:
        """Count a job as done; the room that it leaves goes to the sender that waits longest."""
        self._done += 1
        for number, drain in self._drains:
            if job.number < number:
                drain.value -= 1
                if not drain.value:
                    drain.wake()
        if self._senders and self._has_room():
            sender = self._senders.popleft()
            self._accept(sender.value)
            sender.wake()

    # -- working ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        task = sys.modules["asyncio"].current_task() if self._loop.is_asyncio else None
        job = None
        while True:
            with self._lock:
                if job is not None:
                    self._settle(job)
                job = self._queue.popleft() if self._queue else None
                if job is None:
                    rest = Waker(None, self._loop)
                    if self._queue:  # the collector has run a finalizer that sent here meanwhile
                        continue
                    self._idle.append(rest)
            if job is not None:
                try:
                    await in_context(job.context, self._deliver(job, task))
                except BaseException:
                    self._stopped.append(job)
                    raise
                job.end()
            elif not await self._rest(rest):
                return

    async def _rest(self, rest: Waker) -> bool:
        """Wait for a job; returns false when other code has cancelled this task meanwhile."""
        try:
            await rest.wait()
        except cancellation():
            if is_cancelled():
                raise
            with self._lock:
                if rest in self._idle:
                    self._idle.remove(rest)
                    self._workers -= 1
                    return False
        return True

    async def _deliver(self, job: _Job, task: Any) -> None:
        """Send, and report each error."""
        if not job.is_nested:
            _inside.set((*_inside.get(), self))
        errors: list[Exception] = []
        try:
            results = await job.signal.send_robust(job.sender, **job.arguments)
            errors = [response for _, response in results if isinstance(response, Exception)]
            del results  # here and below: an error's frames lead back to this one
            if task is not None and task.cancelling():
                await anyio.lowlevel.checkpoint()  # where the cancellation arrives, if it has not yet
        except Exception as error:
            _logger.exception("a background send of signal %r failed", job.signal.name)
            errors.append(error)
        except cancellation() as error:
            if is_cancelled():
                raise
            # Left alone, it would end the worker, and the group would cancel all others.
            msg = f"a receiver of signal {job.signal.name!r} raised {type(error).__name__} by itself"
            _logger.exception(msg)
            errors.append(RuntimeError(msg))
            while task.cancelling():
                task.uncancel()
        self._errors += len(errors)
        while errors and self._on_error is not None:
            await self._report(errors.pop(0), self._on_error)
        errors.clear()

    async def _report(self, error: Exception, on_error: Callable[[Exception], object]) -> None:
        try:
            outcome = on_error(error)
            if isawaitable(outcome):
                await outcome
        except Exception:
            _logger.exception("on_error of a Background failed")
        except cancellation():
            if is_cancelled():
                raise
            _logger.exception("on_error of a Background failed")

    # -- ending ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> BaseException | None:
        """Refuse new sends, and wait until all are done, those that receivers add meanwhile included.

        Returns what interrupted that.
        """
        with self._lock:
            self._state = "draining"
        try:
            while not self._is_done():
                await self._wait_until_done()
        except BaseException as interruption:  # noqa: BLE001  raised once the workers have ended
            return interruption
        return None

    def _is_done(self) -> bool:
        with self._lock:
            if self._done == self._accepted:
                self._state = "closed"
            return self._state == "closed"

    async def _wait_until_done(self) -> None:
        """Wait until all jobs accepted so far are done."""
        with self._lock:
            left = self._accepted - self._done - len(self.undelivered)
            if not left:
                return
            drain = self._accepted, Waker(left, self._loop)
            self._drains.append(drain)
        try:
            await drain[1].wait()
        finally:
            with self._lock:
                self._drains.remove(drain)

    def _refuse(self) -> None:
        with self._lock:
            self._state = "closed"
            senders = list(self._senders)
            self._senders.clear()
        for sender in senders:
            sender.wake()

    async def _end_workers(self, interruption: BaseException | None) -> None:
        """Cancel the workers, which are idle unless there was an interruption, and wait for their end.

        Their group raises the interruption again.
        """
        self._group.cancel_scope.cancel()
        if interruption is None:
            await self._group.__aexit__(None, None, None)
        elif await self._group.__aexit__(type(interruption), interruption, interruption.__traceback__):
            # The interruption was the group's own, for an end that it takes for a normal one; its work is lost.
            msg = "a worker of a Background was cancelled by other code"
            raise RuntimeError(msg)

    def _give_up(self) -> None:
        with self._lock:
            left = sorted([*self._stopped, *self._queue], key=lambda job: job.number)
            self.undelivered = tuple(Event(job.signal, job.sender, MappingProxyType(job.arguments)) for job in left)
            self._stopped.clear()
            self._queue.clear()
            self._idle.clear()
            drains = list(self._drains)
        for job in left:
            job.end()
        for _, drain in drains:
            drain.wake()
        if left:
            counts = Counter(job.signal.name for job in left)
            listing = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
            _logger.warning("a Background was cancelled; not delivered: %s", listing)


def _closed() -> anyio.ClosedResourceError:
    return anyio.ClosedResourceError("a Background takes sends only while its block is being run")


def _check(limit: object, buffer: object, on_error: object) -> None:
    for name, value, least in (("limit", limit, 1), ("buffer", buffer, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            msg = f"{name} must be a number of sends, not {value!r}"
            raise TypeError(msg)
        if value < least:
            msg = f"{name} must be at least {least}, not {value}"
            raise ValueError(msg)
    if on_error is not None and not callable(on_error):
        msg = f"on_error must be callable, not {on_error!r:.80}"
        raise TypeError(msg)
