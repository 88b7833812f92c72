"""Background: sends that run later, in workers of one task group, with a bounded number of them waiting.

Accepted sends stand in one queue. A worker is a task that takes the first of the queue until there is none; it is
started when a send is accepted and fewer than `limit` are running. A sender without capacity waits in a second queue,
and a worker that has finished a send accepts the first of these. So a sender that is cancelled has nothing to give
back, and sends begin in order even on trio, which starts tasks in random order. A lock guards both queues, because
senders may be in other threads.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from collections import Counter, deque
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, Self

import anyio
import anyio.lowlevel

from asignals._core.loops import Loop, Waker, cancellation, in_context, is_cancelled, new_lock, open_in_process
from asignals._core.references import describe
from asignals._core.signal import Signal
from asignals._core.signatures import FORWARDS
from asignals._core.stream import Event, check_count

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from types import TracebackType

    from anyio.abc import TaskGroup

P = ParamSpec("P")

_logger = logging.getLogger("asignals")

# The sends of backgrounds whose receivers the current context was made in; some may have ended.
_inside: ContextVar[tuple[_Job, ...]] = ContextVar("asignals_background", default=())


class BackgroundStatistics(NamedTuple):
    """A background's counts of sends: running, waiting in the buffer, and over its life."""

    running: int
    waiting: int
    blocked: int
    """Sends that wait for capacity."""
    accepted: int
    done: int
    errors: int
    """Errors of receivers."""
    limit: int
    buffer: int


class _Job:
    """One send to be done, in a copy of the current context."""

    __slots__ = (
        "_unmute",
        "arguments",
        "background",
        "context",
        "is_running",
        "number",
        "sender",
        "signal",
    )

    def __init__(self, background: Background, signal: Signal[..., Any], args: Any, kwargs: Any) -> None:
        if not issubclass(type(signal), Signal):
            msg = f"a Background sends signals, not {describe(signal)}"
            raise TypeError(msg)
        self.sender: Any
        self.arguments: Any
        self.sender, self.arguments = signal._bind(*args, **kwargs)
        self.background = background
        self.signal = signal
        self.number = -1  # until it is accepted
        self.is_running = True
        callers = _inside.get()
        if callers:
            callers = tuple(job for job in callers if job.is_running)
        self.context: Any = contextvars.copy_context()
        self.context.run(_inside.set, (*callers, self))
        self._unmute = signal._registry.keep_muted(self.context) if signal._registry.mutes else None

    def end(self) -> None:
        """Release what the job refers to, done or not; tasks that outlive it may keep the job itself."""
        self.is_running = False
        self.context = self.sender = self.arguments = None
        unmute, self._unmute = self._unmute, None
        if unmute is not None:
            unmute()


@dataclass(eq=False, slots=True)
class _Drain:
    """A task that waits until the first `end` jobs are done, of which `left` are not."""

    end: int
    left: int
    waker: Waker

    def count(self, done: _Job) -> None:
        """Take notice of a job that is done."""
        if done.number < self.end:
            self.left -= 1
            if not self.left:
                self.waker.wake()


class Background:
    """Runs sends in the background of an `async with` block, and ends when all of them are done.

    ```python
    async with Background(limit=100, buffer=1000) as background:
        await background.send(order_paid, order, amount=42)
    ```

    `send` waits only for capacity, `send_nowait` never. Arguments are checked at the call. Receivers run through
    `send_robust`, in a copy of the context of the call; each of their errors is logged (as `send_robust` does) and
    given to `on_error`, once. Sends begin in the order in which they were accepted.

    Leaving the block refuses further sends, and drains: what was accepted is done, what waits for capacity is
    accepted, and what its receivers send here meanwhile, also when the block raises. When it is cancelled, before or
    while draining, the receivers are cancelled, and the sends that were not finished are logged and kept in
    `undelivered`. A receiver that raises something else than an `Exception` ends the background in the same way.

    A receiver may send to the background that it runs in: that never waits and may exceed `buffer`, so that it
    cannot deadlock, even with `limit=1, buffer=1`. Tasks and threads that outlive the send are outside again.

    In a forked child a background is closed.

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
        check_count("limit", limit, 1, "sends")
        check_count("buffer", buffer, 0, "sends")
        if on_error is not None and not callable(on_error):
            msg = f"on_error must be callable, not {on_error!r:.80}"
            raise TypeError(msg)
        self._limit = limit
        self._buffer = buffer
        self._capacity = limit + buffer
        self._on_error = on_error
        self._lock = new_lock()
        self._queue: deque[_Job] = deque()  # accepted and not begun
        self._senders: deque[tuple[Waker, _Job]] = deque()  # that wait for capacity
        self._drains: list[_Drain] = []
        self._interrupted: list[_Job] = []  # begun and not finished
        self._workers = self._accepted = self._done = self._errors = 0
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
        self._group = await anyio.create_task_group().__aenter__()
        self._state = "open"
        open_in_process.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._state = "draining"
        try:
            if isinstance(error, cancellation()):
                was_cancelled = await self._group.__aexit__(kind, error, traceback)
            else:
                await self._group.__aexit__(None, None, None)
                was_cancelled = self._group.cancel_scope.cancel_called
        finally:
            del error, traceback  # whose traceback refers to this frame
            self._close()
        if was_cancelled:
            msg = "a worker of a Background was cancelled by other code"
            raise RuntimeError(msg)

    def _close(self) -> None:
        with self._lock:
            self._state = "closed"
            left = sorted([*self._interrupted, *self._queue], key=lambda job: job.number)
            self.undelivered = tuple(Event(job.signal, job.sender, job.arguments) for job in left)
            wakers = [*(waker for waker, _ in self._senders), *(drain.waker for drain in self._drains)]
            self._clear()
        open_in_process.discard(self)
        for job in left:
            job.end()
        for waker in wakers:
            waker.wake()
        if left:
            counts = Counter(job.signal.name for job in left)
            listing = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
            _logger.warning("a Background was cancelled; not delivered: %s", listing)

    def close_in_child(self) -> None:
        """Close in a forked child: the sends, and the tasks that wait, are the parent's."""
        self._lock = new_lock()
        self._state = "closed"
        self._accepted = self._done
        self._clear()

    def _clear(self) -> None:
        for waiting in (self._interrupted, self._queue, self._senders, self._drains):
            waiting.clear()

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send, waiting for capacity if there is none. May be called in any thread's event loop.

        Cancelled while it waits, it sends nothing.

        Raises:
            TypeError: it is no signal, or the arguments are not those that it declares.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        with self._lock:
            job, has_capacity = self._make_job(signal, args, kwargs)
            if has_capacity:
                self._accept(job)
                return
            waiting = waker, _ = Waker(self._loop), job
            self._senders.append(waiting)
        try:
            await waker.wait()
        finally:
            with self._lock, suppress(ValueError):
                self._senders.remove(waiting)
            if job.number < 0:
                job.end()
        if job.number < 0:
            raise _closed()

    def send_nowait(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send at once. May be called in any thread.

        Raises:
            TypeError: it is no signal, or the arguments are not those that it declares.
            anyio.WouldBlock: there is no capacity.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        with self._lock:
            job, has_capacity = self._make_job(signal, args, kwargs)
            if has_capacity:
                self._accept(job)
                return
        job.end()
        msg = f"a Background runs {self._limit} sends and keeps {self._buffer} more, and has no room"
        raise anyio.WouldBlock(msg)

    def _is_inside(self) -> bool:
        """Whether a receiver that runs here makes this call."""
        return any(job.background is self and job.is_running for job in _inside.get())

    # -- with the lock held ----------------------------------------------------------------------------------------

    def _make_job(self, signal: Signal[..., Any], args: Any, kwargs: Any) -> tuple[_Job, bool]:
        """A send that may be accepted, and whether it may be now. Raises `ClosedResourceError` and `TypeError`."""
        is_inside = bool(_inside.get()) and self._is_inside()
        if self._state != "open" and not (self._state == "draining" and is_inside):
            raise _closed()
        is_foreign = not self._loop.is_current()
        if is_foreign and self._loop.has_ended():
            raise _closed()
        job = _Job(self, signal, args, kwargs)
        sniffio = sys.modules.get("sniffio")
        if is_foreign and sniffio is not None:  # the contexts may name another kind of loop
            for context in (job.context, self._context):
                context.run(sniffio.current_async_library_cvar.set, "asyncio" if self._loop.is_asyncio else "trio")
        return job, is_inside or self._accepted - self._done < self._capacity

    def _accept(self, job: _Job) -> None:
        if self._workers < self._limit:
            # A worker outlives the send that it is started for, so it does not run in the context of that.
            self._loop.call(self._context.copy().run, self._start_worker)
            self._workers += 1
        job.number = self._accepted
        self._accepted += 1
        self._queue.append(job)

    def _start_worker(self) -> None:
        with suppress(RuntimeError):  # the group has ended meanwhile, and its other workers took the job
            self._group.start_soon(self._work, name="asignals.Background worker")

    # -- working ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        await anyio.lowlevel.checkpoint()  # for eager tasks: no receiver runs inside of the send that starts a worker
        task = sys.modules["asyncio"].current_task() if self._loop.is_asyncio else None
        job = self._next_job(None)
        while job is not None:
            try:
                await self._run(job, task)
            except BaseException:
                self._interrupted.append(job)
                raise
            job = self._next_job(job)

    def _next_job(self, done: _Job | None) -> _Job | None:
        """Count a job as done, and take the next."""
        if done is not None:
            done.end()
        with self._lock:
            if done is not None:
                self._done += 1
                for drain in self._drains:
                    drain.count(done)
                while self._senders and self._accepted - self._done < self._capacity:
                    waker, job = self._senders.popleft()
                    self._accept(job)
                    waker.wake()
            if self._queue:
                return self._queue.popleft()
            self._workers -= 1
            return None

    async def _run(self, job: _Job, task: Any) -> None:
        """Send, and report each error."""
        try:
            # No variable holds the results: the errors in them refer to this frame.
            send = job.context.run(job.signal.send_robust, job.sender, **job.arguments)
            errors = [error for _, error in await in_context(job.context, send) if isinstance(error, BaseException)]
            if task is not None and task.cancelling():
                await anyio.lowlevel.checkpoint()  # where the cancellation arrives, if it has not yet
        except (Exception, *cancellation()) as error:  # type: ignore[misc]  # noqa: BLE001  logged
            errors = [self._explain(error, job, task)]
        if errors:
            self._errors += len(errors)
            if self._on_error is not None:
                await in_context(job.context, self._report(errors, self._on_error))
            errors.clear()

    def _explain(self, error: BaseException, job: _Job, task: Any) -> BaseException:
        """Log an error of the send itself; raises the cancellation of the background."""
        if isinstance(error, Exception):
            _logger.error("a background send of signal %r failed", job.signal.name, exc_info=error)
            return error
        if is_cancelled():
            raise error
        # Raised, it would end the worker, and the group would cancel the others.
        while task.cancelling():
            task.uncancel()
        msg = f"a receiver of signal {job.signal.name!r} raised {type(error).__name__} though nothing cancelled it"
        _logger.error(msg, exc_info=error)
        return RuntimeError(msg)

    async def _report(self, errors: list[BaseException], on_error: Callable[[Any], object]) -> None:
        for error in errors:
            try:
                outcome = on_error(error)
                if isawaitable(outcome):
                    await outcome
            except (Exception, *cancellation()):  # type: ignore[misc]
                if is_cancelled():
                    raise
                _logger.exception("on_error of a Background failed")

    # -- looking ---------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = None) -> int:  # noqa: ASYNC109  it returns what is left
        """Wait until the sends accepted so far are done; returns how many are not done by then, newer ones included.

        Cancels nothing, whether the time runs out or this call is cancelled. May be called in any thread's event
        loop, but not by a receiver that runs in this background, which would wait for itself.

        Args:
            timeout: Seconds to wait; `None` for as long as it takes.

        Raises:
            RuntimeError: called by a receiver that runs in this background.
        """
        if self._is_inside():
            msg = "a receiver cannot drain the background that it runs in: it would wait for itself"
            raise RuntimeError(msg)
        with self._lock:
            left = self._accepted - self._done
            if not left or self._state == "closed":
                return left
            drain = _Drain(self._accepted, left, Waker(self._loop))
            self._drains.append(drain)
        try:
            with anyio.move_on_after(timeout):
                await drain.waker.wait()
        finally:
            with self._lock, suppress(ValueError):
                self._drains.remove(drain)
        return self._accepted - self._done

    def statistics(self) -> BackgroundStatistics:
        """The counts of this moment. May be called in any thread."""
        with self._lock:
            left = self._accepted - self._done - len(self.undelivered)
            running = min(left, self._limit)
            counts = running, left - running, len(self._senders), self._accepted, self._done, self._errors
            return BackgroundStatistics(*counts, self._limit, self._buffer)

    def __repr__(self) -> str:
        left = self._accepted - self._done - len(self.undelivered)
        return f"<asignals.Background, {self._state}, {left} sends to do>"


# As receivers, they pass an event on to the signal that a partial gives them.
Background.send.__dict__[FORWARDS] = True
Background.send_nowait.__dict__[FORWARDS] = False  # nothing to await


def _closed() -> anyio.ClosedResourceError:
    return anyio.ClosedResourceError("a Background takes sends only while its block is being run")
