"""Background: sends that run later, in workers of one task group, with a bounded number of them waiting.

Accepted sends stand in one queue, and count until they are done. A worker is a task that takes them one after
the other; another one is started when all are busy, up to the limit. So sends begin in order even on trio, which starts
tasks in random order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Self, cast

import anyio

from asignals._core.errors import is_receivers_error, logger
from asignals._core.loops import Call, Loop, Queue, Waker, cancellation, in_context, is_inside, lock
from asignals._core.objects import FORWARDS, describe
from asignals._core.signal import Signal
from asignals._core.stream import check_count
from asignals._core.written import is_awaitable

P = ParamSpec("P")


_CLOSED = "a Background takes sends only while its block is being run"


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


@dataclass(eq=False, slots=True)
class _Job:
    """One send to be done, in a copy of the context of the call that made it."""

    signal: Signal[..., Any]
    context: Context
    work: Coroutine[Any, Any, list[tuple[Any, Any]]]

    def __del__(self) -> None:
        self.work.close()  # it may never have begun


class Background:
    """Runs sends in the background of an `async with` block, and ends when all of them are done.

    ```python
    async with Background(limit=100, buffer=1000) as background:
        await background.send(order_paid, order, amount=42)
    ```

    `send` waits only for capacity, `send_nowait` never. At the call, arguments are checked, and it is settled who hears
    and what is muted. Receivers run through `send_robust`, in a copy of the context of the call; each of their errors
    is logged (as `send_robust` does) and given to `on_error`, once. Sends begin in the order in which they were
    accepted.

    Leaving the block refuses further sends, and drains: what was accepted is done, what waits for capacity is
    accepted, and what its receivers send here meanwhile, also when the block raises. When it is cancelled, before or
    while draining, the receivers are cancelled, and the sends that were not finished are logged. A receiver that raises
    something else than an `Exception`, or cancels its own task, ends the background in the same way.

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
            raise TypeError(f"on_error must be callable, not {on_error!r:.80}")
        self._limit, self._buffer, self._on_error = limit, buffer, on_error
        self._queue: Queue[_Job] = Queue(limit + buffer, keep=True)
        self._drains: dict[Waker, set[_Job]] = {}  # what each waits for
        self._workers = self._done = self._errors = self._undelivered = 0
        self._state = "new"
        self._group: anyio.abc.TaskGroup
        self._loop: Loop

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("a background can be entered once; make another one")
        self._loop = self._queue.loop = Loop()
        self._group = await anyio.create_task_group().__aenter__()
        self._start_worker()
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with lock:
            self._state = "draining"
            if not self._to_do:
                self._queue.close()
        if not isinstance(error, cancellation()):
            kind = error = traceback = None  # the sends go on
        try:
            await self._group.__aexit__(kind, error, traceback)
        finally:
            del error, traceback  # whose traceback refers to this frame
            self._close()
        if self._group.cancel_scope.cancelled_caught:
            raise RuntimeError("a worker of a Background was cancelled by other code")

    @property
    def _to_do(self) -> int:
        return len(self._queue.items) + len(self._queue.taken)

    def _close(self) -> None:
        left = self._queue.close()
        self._undelivered = len(left)
        for waker in list(self._drains):  # another thread may add one
            waker.wake()
        if left:
            counts = Counter(job.signal.name for job in left)
            listing = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
            logger.warning("a Background was cancelled; not delivered: %s", listing)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send, waiting for capacity if there is none. May be called in any thread's event loop.

        Cancelled while it waits, it sends nothing.

        Raises:
            TypeError: it is no signal, or the arguments are not those that it declares.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        if (waker := self._put(signal, args, kwargs, may_wait=True)) is not None:
            try:
                await waker.wait()
            finally:
                is_refused = self._queue.leave(waker)
            if is_refused:
                raise anyio.ClosedResourceError(_CLOSED)

    def send_nowait(self, signal: Signal[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a send at once. May be called in any thread.

        Raises:
            TypeError: it is no signal, or the arguments are not those that it declares.
            anyio.WouldBlock: there is no capacity.
            anyio.ClosedResourceError: the block has been left, or not been entered.
        """
        self._put(signal, args, kwargs, may_wait=False)

    def _put(self, signal: Signal[..., Any], args: Any, kwargs: Any, *, may_wait: bool) -> Waker | None:
        if not issubclass(type(signal), Signal):
            raise TypeError(f"a Background sends signals, not {describe(signal)}: write send(signal, sender, ...)")
        inside, queue = is_inside(self), self._queue
        with lock:
            is_open = not queue.is_closed and (inside or self._state == "open")
            if not is_open or (context := self._loop.copy_context()) is None:
                raise anyio.ClosedResourceError(_CLOSED)
            must_wait = queue.is_full and not inside
            if must_wait and not may_wait:
                raise anyio.WouldBlock(f"a Background with limit={self._limit}, buffer={self._buffer} has no capacity")
            # Who hears it, and what is muted, is settled now.
            job = _Job(signal, context, cast("Any", signal.send_robust(*args, **kwargs)))
            if must_wait:
                return queue.line_up(job)
            queue.add(job)
            return None

    # -- working ---------------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._workers += 1
        self._group.start_soon(self._work, name="asignals.Background worker")

    async def _work(self) -> None:
        """A worker: does one send after the other, until the queue is closed."""
        job: _Job | None = None  # a worker that waits keeps nothing
        while job := job or await self._queue.next():
            if self._workers < self._limit and not self._queue.takers:
                self._start_worker()
            await in_context(job.context, self._run(job))
            job = self._finish(job)

    async def _run(self, job: _Job) -> None:
        """Send, in the context of the job, and report each error."""
        with Call(self):
            try:
                # No variable holds the results: the errors in them refer to this frame.
                errors = [error for _, error in await job.work if isinstance(error, Exception)]
            except Exception as failure:  # noqa: BLE001  logged
                logger.exception("a background send of signal %r failed", job.signal.name)
                errors = [failure]
            self._errors += len(errors)
            while errors and self._on_error is not None:
                try:
                    outcome: Any = self._on_error(errors.pop(0))
                    if is_awaitable(outcome):
                        await outcome
                except BaseException as raised:
                    if not is_receivers_error(raised):
                        raise
                    logger.exception("on_error of a Background failed")

    def _finish(self, job: _Job) -> _Job | None:
        """Note that a job is done; returns the next one, if there is one already."""
        with lock:
            self._done += 1
            del self._queue.taken[job]
            self._queue.admit()
            if self._state == "draining" and not self._to_do:
                self._queue.close()
            for waker, pending in self._drains.items():
                pending.discard(job)
                if not pending:
                    waker.wake()
            return self._queue.take() if self._queue.items else None

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
        if is_inside(self):
            raise RuntimeError("a receiver cannot drain the background that it runs in: it would wait for itself")
        waker = Waker()
        with lock:
            pending = self._drains[waker] = {*self._queue.taken, *self._queue.items}
        try:
            with anyio.move_on_after(timeout):
                if pending:
                    await waker.wait()
        finally:
            with lock:
                del self._drains[waker]
                left = self._to_do + self._undelivered
        return left

    def statistics(self) -> BackgroundStatistics:
        """The counts of this moment. May be called in any thread."""
        with lock:
            counts = len(self._queue.taken), len(self._queue.items), len(self._queue.waiting)
            accepted = self._done + self._to_do + self._undelivered
            return BackgroundStatistics(*counts, accepted, self._done, self._errors, self._limit, self._buffer)

    def __repr__(self) -> str:
        return f"<asignals.Background, {'closed' if self._queue.is_closed else self._state}, {self._to_do} sends to do>"


# As receivers, they pass an event on to the signal that a partial gives them.
Background.send.__dict__[FORWARDS] = True
Background.send_nowait.__dict__[FORWARDS] = False  # nothing to await
