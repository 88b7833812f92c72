"""Not waiting for receivers: sends that run in the background, bounded and never lost silently.

Jobs and waiters change hands under a lock, as sends may come from other threads and loops; the workers live in the
loop that entered the block. A job is ready at once if a worker is idle or may be added, else it is queued, else it
waits with its sender, and whoever makes room moves it on: a sender that is cancelled has nothing to pass on. Workers
are woken without being told which job to do; each takes the first that is ready, so jobs begin in order even on trio,
which runs woken tasks in random order.

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
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self

import anyio

from asignals._context import in_context
from asignals._scoped import stay_muted
from asignals._stream import Event
from asignals._waker import Loop, Waker, is_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from types import TracebackType

    from anyio.abc import TaskGroup

    from asignals._signal import Signal

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
    """One send to be done."""

    __slots__ = ("_unmute", "arguments", "context", "number", "sender", "signal")

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> None:
        self.signal = signal
        self.sender = sender
        self.arguments = arguments
        self.context: Context = contextvars.copy_context()
        self.number = -1
        self._unmute = stay_muted(signal._registry, self.context) if signal._registry.filters else None

    def end(self) -> None:
        """Be done with, one way or the other; doing it again does nothing."""
        unmute, self._unmute = self._unmute, None
        if unmute is not None:
            unmute()


class _Sender:
    """A task that waits for room, with its job."""

    __slots__ = ("job", "waker")

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.waker = Waker()


class _Drain:
    """A task that waits until the jobs before a number are done."""

    __slots__ = ("_left", "_number", "waker")

    def __init__(self, number: int, left: int) -> None:
        self._number = number
        self._left = left
        self.waker = Waker()

    def count(self, job: _Job) -> None:
        """Count a job that is done."""
        self._left -= job.number < self._number
        if not self._left:
            self.waker.wake()


class Background:
    """Runs sends in the background of an `async with` block, and ends when all of them are done.

    ```python
    async with Background(limit=100, buffer=1000) as background:
        await background.send(order_paid, order, amount=42)
    ```

    `send` waits only for room, `send_nowait` never. Arguments are checked at the call. Receivers run through
    `send_robust`, in a copy of the context of the call; each of their errors is logged (as `send_robust` does) and
    given to `on_error`, once. Sends begin in the order in which they were accepted.

    Leaving the block refuses further sends, and drains: what was accepted is done, and what its receivers send here
    meanwhile, also when the block raises. When it is cancelled, before or while draining, the receivers are cancelled,
    and the sends that were not finished are logged and kept in `undelivered`.

    A receiver may send to the background that it runs in: that never waits and may exceed `buffer`, so that it
    cannot deadlock, even with `limit=1, buffer=1`.

    Args:
        limit: How many sends run at once.
        buffer: How many sends wait to run, beside them.
        on_error: Called with each exception, sync or async; if it raises, that is logged.
    """

    def __init__(
        self, limit: int = 100, buffer: int = 1000, on_error: Callable[[Exception], object] | None = None
    ) -> None:
        _check(limit, buffer, on_error)
        self._limit = limit
        self._buffer = buffer
        self._on_error = on_error
        self._lock = threading.RLock()  # the garbage collector may run a finalizer that sends here
        self._queue: deque[_Job] = deque()
        self._senders: deque[_Sender] = deque()
        self._ready: deque[_Job] = deque()  # one for each worker that is about to begin or was woken
        self._idle: list[Waker] = []
        self._jobs: dict[int, _Job] = {}  # accepted and not done
        self._drains: list[_Drain] = []
        self._workers = 0
        self._accepted = 0
        self._done = 0
        self._errors = 0
        self._is_open = False
        self._is_draining = False
        self._group: TaskGroup | None = None
        self._loop: Loop | None = None
        self._context: Context | None = None
        self._library: str | None = None
        self.undelivered: tuple[Event, ...] = ()
        """The sends that were accepted and not finished when the block ended; empty unless it was cancelled."""

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            msg = "a background can be entered once; make another one"
            raise RuntimeError(msg)
        self._loop = Loop()
        self._context = contextvars.copy_context()
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None:
            self._library = sniffio.current_async_library()
            self._context.run(sniffio.current_async_library_cvar.set, self._library)  # for calls from outside of tasks
        self._group = await anyio.create_task_group().__aenter__()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interruption = error if isinstance(error, anyio.get_cancelled_exc_class()) else None
        try:
            if interruption is None:
                interruption = await self._finish()
            self._refuse()
            await self._end_workers(interruption)
            if interruption is not None and interruption is not error:
                raise interruption
        finally:
            del interruption  # whose traceback refers to this frame
            self._give_up()

    async def send(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send, waiting for room if there is none. May be called in any thread's event loop.

        Cancelled before there is room, it sends nothing.

        Raises:
            TypeError: the arguments are not those that the signal declares.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        job = _Job(signal, *signal._bind(*args, **kwargs))
        try:
            sender = self._accept_or_wait(job)
            if sender is not None:
                await self._wait_for_room(sender)
        finally:
            if job.number < 0:
                job.end()

    def send_nowait(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send at once. May be called in any thread.

        Raises:
            TypeError: the arguments are not those that the signal declares.
            anyio.WouldBlock: there is no room.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        job = _Job(signal, *signal._bind(*args, **kwargs))
        try:
            with self._lock:
                is_accepted = self._accept(job)
        finally:
            if job.number < 0:
                job.end()
        if not is_accepted:
            msg = f"a Background runs {self._limit} sends and keeps {self._buffer} more, and has no room"
            raise anyio.WouldBlock(msg)

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
            return len(self._jobs) + len(self.undelivered)

    def statistics(self) -> BackgroundStatistics:
        """The counts of this moment. May be called in any thread."""
        with self._lock:
            return BackgroundStatistics(
                running=len(self._jobs) - len(self._queue),
                waiting=len(self._queue),
                blocked=len(self._senders),
                accepted=self._accepted,
                done=self._done,
                errors=self._errors,
                limit=self._limit,
                buffer=self._buffer,
            )

    def __repr__(self) -> str:
        state = "open" if self._is_open else "draining" if self._is_draining else "closed"
        return f"<asignals.Background, {state}, {len(self._jobs)} sends to do>"

    def _accept_or_wait(self, job: _Job) -> _Sender | None:
        with self._lock:
            if self._accept(job):
                return None
            sender = _Sender(job)
            self._senders.append(sender)
            return sender

    async def _wait_for_room(self, sender: _Sender) -> None:
        try:
            await sender.waker.wait()
        finally:
            with self._lock, suppress(ValueError):
                self._senders.remove(sender)
        if sender.job.number < 0:
            raise _closed()

    # -- with the lock held ----------------------------------------------------------------------------------------

    def _accept(self, job: _Job) -> bool:
        is_nested = self in _inside.get()
        if not (self._is_open or (is_nested and self._is_draining)):
            raise _closed()
        if not is_nested and self._is_full():
            return False
        self._place(job)
        return True

    def _is_full(self) -> bool:
        return not self._idle and self._workers >= self._limit and len(self._queue) >= self._buffer

    def _place(self, job: _Job) -> None:
        """Give a job to a worker, or queue it."""
        # A finalizer may come between any two calls, and send here: so first what it must find done.
        if self._idle:
            worker = self._idle.pop()
            self._ready.append(job)
            self._enter(job)
            worker.wake()
        elif self._workers < self._limit:
            self._hire()
            self._ready.append(job)
            self._enter(job)
        else:
            self._queue.append(job)
            self._enter(job)

    def _enter(self, job: _Job) -> None:
        job.context.run(self._mark)
        job.number = self._accepted
        self._accepted += 1
        self._jobs[job.number] = job

    def _mark(self) -> None:
        """Let the current context know that it runs in this background."""
        inside = _inside.get()
        if self not in inside:
            _inside.set((*inside, self))
        sniffio = sys.modules.get("sniffio")
        if (
            self._library is not None and sniffio is not None
        ):  # a sender in another thread may have another kind of loop, which anyio would believe
            sniffio.current_async_library_cvar.set(self._library)

    def _hire(self) -> None:
        assert self._loop is not None  # noqa: S101  open
        assert self._context is not None  # noqa: S101  open
        self._workers += 1
        try:
            # A worker outlives the send that it is made for, so it starts in a context of its own.
            self._loop.call(self._context.copy().run, self._start)
        except RuntimeError:  # the loop has ended
            self._workers -= 1
            raise _closed() from None

    def _start(self) -> None:
        assert self._group is not None  # noqa: S101  open
        with suppress(RuntimeError):  # the group has ended meanwhile: the job counts as undelivered
            self._group.start_soon(self._work, name="asignals.Background worker")

    def _next(self) -> _Job | None:
        """The next job for a worker; the room that it leaves goes to the sender that waits longest."""
        job = self._queue.popleft() if self._queue else None
        if self._senders and (job is None or len(self._queue) < self._buffer):
            sender = self._senders.popleft()
            self._enter(sender.job)
            sender.waker.wake()
            if job is None:
                return sender.job
            self._queue.append(sender.job)
        return job

    def _settled(self, job: _Job) -> None:
        del self._jobs[job.number]
        self._done += 1
        if self._drains:
            for drain in list(self._drains):
                drain.count(job)

    # -- working ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        with self._lock:  # a sender in another thread that made this worker holds it until the job is there
            job = self._ready.popleft()
        while True:
            await self._run(job)
            job.end()
            with self._lock:
                self._settled(job)
                following = self._next()
                if following is None:
                    waker = Waker()
                    self._idle.append(waker)
            del job  # an idle worker keeps nothing alive
            if following is None:
                await waker.wait()
                following = self._ready.popleft()
            job = following

    async def _run(self, job: _Job) -> None:
        for error in await self._send(job):
            self._errors += 1
            if self._on_error is not None:
                await self._report(job, error, self._on_error)

    async def _send(self, job: _Job) -> list[Exception]:
        try:
            results = await in_context(job.context, job.signal.send_robust(job.sender, **job.arguments))
        except Exception as error:
            _logger.exception("a background send of signal %r failed", job.signal.name)
            return [error]
        except anyio.get_cancelled_exc_class() as error:
            if is_cancelled():
                raise
            # Left alone, it would end the worker, and the group would cancel all others.
            msg = f"a receiver of signal {job.signal.name!r} raised {type(error).__name__} by itself"
            _logger.exception(msg)
            return [RuntimeError(msg)]
        return [response for _, response in results if isinstance(response, Exception)]

    async def _report(self, job: _Job, error: Exception, on_error: Callable[[Exception], object]) -> None:
        try:
            outcome = job.context.run(on_error, error)
            if outcome is not None and isawaitable(outcome):
                await in_context(job.context, outcome)
        except (Exception, anyio.get_cancelled_exc_class()) as raised:
            if not isinstance(raised, Exception) and is_cancelled():
                raise
            _logger.exception("on_error of a Background failed")

    # -- ending ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> BaseException | None:
        """Refuse new sends, and wait until all are done, those that receivers add meanwhile included.

        Returns what interrupted that.
        """
        with self._lock:
            self._is_open = False
            self._is_draining = True
        try:
            while not self._is_done():
                await self._wait_until_done()
        except BaseException as interruption:  # noqa: BLE001  raised once the workers have ended
            return interruption
        return None

    async def _end_workers(self, interruption: BaseException | None) -> None:
        """Cancel the workers, which are idle unless there was an interruption, and wait for their end."""
        assert self._group is not None  # noqa: S101  entered
        self._group.cancel_scope.cancel()
        if interruption is None:
            await self._group.__aexit__(None, None, None)
        elif await self._group.__aexit__(type(interruption), interruption, interruption.__traceback__):
            # The interruption was the group's own, for an end that it takes for a normal one; its work is lost.
            msg = "a worker of a Background was cancelled by other code"
            raise RuntimeError(msg)

    def _is_done(self) -> bool:
        with self._lock:
            self._is_draining = bool(self._jobs)
            return not self._jobs

    async def _wait_until_done(self) -> None:
        """Wait until all jobs accepted so far are done."""
        with self._lock:
            if not self._jobs:
                return
            drain = _Drain(self._accepted, len(self._jobs))
            self._drains.append(drain)
        try:
            await drain.waker.wait()
        finally:
            with self._lock:
                self._drains.remove(drain)

    def _refuse(self) -> None:
        with self._lock:
            self._is_open = self._is_draining = False
            senders = list(self._senders)
            self._senders.clear()
        for sender in senders:
            sender.waker.wake()

    def _give_up(self) -> None:
        with self._lock:
            left = list(self._jobs.values())
            self.undelivered = tuple(Event(job.signal, job.sender, MappingProxyType(job.arguments)) for job in left)
            self._jobs.clear()
            self._queue.clear()
            self._ready.clear()
            self._idle.clear()
            drains = list(self._drains)
        for job in left:
            job.end()
        for drain in drains:
            drain.waker.wake()
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
