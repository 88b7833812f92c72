"""One send under way, where the written loop does not serve: in a task group, watched, or with rare keywords.

In a task group the sender's task goes through the plan. An async receiver (or one in a thread) becomes a task; a sync
one runs in the sender's task, once the tasks before it have run to their first await (an awaitable that it returns gets
a task); and the last one runs there, too.

A task is not told which receiver to call: each takes the next one of a queue when it begins. So receivers start in
order of connection even on trio, which begins new tasks in random order, and a task that is cancelled before it began
leaves no coroutine of a receiver behind. After the first failure nothing more is started.

What receivers see of the sender, in each mode:

| receiver                          | its task     | `ContextVar`s that it sets | the sender's deadline                |
|-----------------------------------|--------------|----------------------------|--------------------------------------|
| sequential, sync or async         | the sender's | stay set for the sender    | cancels it (a sync one: once it ends)|
| in a task of anyio's group        | its own      | are its own (a copy)       | cancels it                           |
| in a task of `asyncio.TaskGroup`  | its own      | are its own (a copy)       | cancels it, through its task         |
| group: the last, or a lone one    | the sender's | stay set for the sender    | cancels it                           |
| group: sync, so in the caller     | the sender's | stay set for the sender    | applies once it has returned         |
| `in_thread`, in any mode          | a thread     | are its own (a copy)       | waits for the thread's end           |
| `Background`                      | a worker's   | are its own (a copy)       | does not apply                       |

All see the `ContextVar`s as they were when they began, those of a `Background` as they were at its `send`. A shield
(`CancelScope(shield=True)`) in a receiver holds: what it protects ends before the send returns. The one exception is
a task of `asyncio.TaskGroup`: `Task.cancel()` passes through shields that were entered before it. A shield that is
entered later, for the clean-up, works there too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import anyio
import anyio.lowlevel

from asignals._core.connection import Connection, Connections, is_awaitable
from asignals._core.errors import annotate, is_receivers_error, log_failure
from asignals._core.loops import cancellation
from asignals._core.monitor import Observed, SendInfo, has_surrounding
from asignals._core.signatures import Receiver

if TYPE_CHECKING:
    from asignals._core.signal import Signal

Pair: TypeAlias = tuple[Receiver, Any]


class Unfinished(NamedTuple):
    """A sync call that returned an awaitable, which nobody awaits yet."""

    receiver: Receiver
    response: Any
    watch: ExitStack

    def drop(self) -> None:
        """Report the call as cancelled, and close what it returned."""
        with suppress(GeneratorExit), self.watch:
            if iscoroutine(self.response):
                self.response.close()
            raise GeneratorExit


class TaskGroup(Protocol):
    """What a send needs of a task group; trio's nurseries, which have `start_soon` instead, serve as well."""

    def create_task(self, coroutine: Coroutine[Any, Any, Any], /) -> object:
        """Run a coroutine as a task of the group, in a copy of the current context."""


TaskGroupFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[TaskGroup]]


class Send(SendInfo):
    """One send under way: what is sent, and what becomes of a receiver's error."""

    __slots__ = ("robust",)

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, robust: bool) -> None:
        super().__init__(signal, sender, arguments)
        self.robust: bool = robust

    async def to(self, connection: Connection) -> Pair | None:
        """Call one connection of the plan; returns its pair for the results, or `None` when it has none."""
        try:
            if not self.is_watched or not connection.is_receiver:
                return await connection.respond(self.signal, self.sender, self.given)
            receiver = connection.claim(self.signal)
            if receiver is None:
                return None
            with Observed(self, receiver):
                response = connection.call(receiver, self.signal, self.sender, self.given)
                return receiver, await response if is_awaitable(response) else response
        except BaseException as error:
            if not self._handles(error, connection):
                raise
            return log_failure(error, connection, self.signal, self.sender)

    def begin(self, connection: Connection) -> Pair | Unfinished | None:
        """Call one receiver, and leave an awaitable response to `finish`, in whatever task."""
        try:
            receiver = connection.claim(self.signal)
            if receiver is None:
                return None
            with ExitStack() as stack:
                if self.is_watched:
                    stack.enter_context(Observed(self, receiver))
                response = connection.call(receiver, self.signal, self.sender, self.given)
                return (
                    Unfinished(receiver, response, stack.pop_all()) if is_awaitable(response) else (receiver, response)
                )
        except BaseException as error:
            if not self._handles(error, connection):
                raise
            return log_failure(error, connection, self.signal, self.sender)

    async def finish(self, connection: Connection, unfinished: Unfinished) -> Pair:
        """Await what `begin` has left."""
        try:
            with unfinished.watch:
                return unfinished.receiver, await unfinished.response
        except BaseException as error:
            if not self._handles(error, connection):
                raise
            return log_failure(error, connection, self.signal, self.sender)

    def _handles(self, error: BaseException, connection: Connection) -> bool:
        """Whether an error is returned instead of raised; one that is raised is annotated."""
        if self.robust:
            return is_receivers_error(error)
        annotate(error, connection, self.signal)
        return False

    def watched(self) -> Observed:
        """A context manager that reports the send as a whole."""
        return Observed(self, None)


async def deliver(signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, robust: bool) -> list[Pair]:
    """Send in any mode, watched or not."""
    origin = signal if signal._origin is None else signal._origin
    send = Send(origin, sender, arguments, robust=robust)
    plan = origin._registry.plan_for(sender).connections
    factory = signal._task_group
    work = _one_by_one(send, plan) if factory is None else _in_task_group(send, plan, factory, signal._limit)
    if not send.is_watched:
        return await work
    with send.watched():
        return await work


async def _one_by_one(send: Send, plan: Connections) -> list[Pair]:
    results = []
    pair = None
    for connection in plan:
        pair = await send.to(connection)
        if pair is not None:
            results.append(pair)
    try:
        return results
    finally:
        del results, pair  # they hold errors, whose frames lead back to this one


async def _in_task_group(send: Send, plan: Connections, factory: TaskGroupFactory, limit: int | None) -> list[Pair]:
    run = _GroupSend(send, len(plan), limit or len(plan))
    try:
        if len(plan) > 1:
            async with factory() as group:
                run.enter(group)
                await run.call_all(plan)
        elif plan:
            run.pairs[0] = await send.to(plan[0])
        if run.failure is not None:  # a group lets a cancellation pass that a receiver raised by itself
            raise run.failure  # noqa: TRY301  it becomes a group below
        return [pair for pair in run.pairs if pair is not None]
    except GeneratorExit:
        raise
    except cancellation():
        raise
    except BaseException as error:
        if len(plan) > 1 and not run.is_entered:
            raise
        if len(plan) > 1 and isinstance(error, BaseExceptionGroup):
            error.with_traceback(None)  # the frame of asyncio's group that raises it refers to it, too
            raise
        msg = f"a receiver of signal {send.signal.name!r} failed"
        raise BaseExceptionGroup(msg, [error]) from None
    finally:
        run.close()


class _GroupSend:
    """The state of one send in a task group."""

    def __init__(self, send: Send, size: int, limit: int) -> None:
        self.is_entered = False
        self.pairs: list[Pair | None] = [None] * size
        self.failure: BaseException | None = None  # noted at once: the group may learn of it later
        self._send: Any = send
        self._limit = limit
        self._queue: deque[tuple[int, Connection, Unfinished | None]] = deque()
        self._tasks: list[Coroutine[Any, Any, None]] = []  # that may not have begun
        self._running = 0
        self._task_ended: anyio.Event | None = None
        self._create_task: Any = None

    def enter(self, group: Any) -> None:
        """Find out how the group makes a task."""
        if hasattr(group, "create_task"):
            self._create_task = group.create_task
        elif hasattr(group, "start_soon"):  # a nursery
            self._create_task = partial(group.start_soon, _await)
        else:
            msg = f"task_group must make groups with create_task() or start_soon(), not {type(group).__qualname__!r}"
            raise TypeError(msg)
        self.is_entered = True

    async def call_all(self, plan: Connections) -> None:
        """Start every connection in order."""
        try:
            for index, connection in enumerate(plan[:-1]):
                is_task = connection.is_async or connection.options.in_thread
                if self._running >= self._limit:
                    await self._until_below_limit()
                if not is_task:
                    await self._until_all_began()
                if self.failure is not None:
                    return
                if is_task:
                    self._start(index, connection, None)
                else:
                    await self._call_here(index, connection)
            await self._until_below_limit()
            if self.failure is None:
                self.pairs[-1] = await self._send.to(plan[-1])
        except BaseException as error:
            self._fail(error)
            raise

    async def _call_here(self, index: int, connection: Connection) -> None:
        """Call a sync receiver; an awaitable that it returns gets a task."""
        if self._send.is_watched and has_surrounding():  # what a monitor enters, it leaves in the same task
            self.pairs[index] = await self._send.to(connection)
            return
        outcome = self._send.begin(connection)
        if isinstance(outcome, Unfinished):
            self._start(index, connection, outcome)
        else:
            self.pairs[index] = outcome
        del outcome  # an error in it leads back to this frame

    def _start(self, index: int, connection: Connection, unfinished: Unfinished | None) -> None:
        self._queue.append((index, connection, unfinished))
        task = self._work()
        self._tasks.append(task)
        self._running += 1
        try:
            self._create_task(task)
        except BaseException:
            task.close()
            raise

    async def _work(self) -> None:
        """The task: call the first connection of the queue, or await what its call returned."""
        if self.failure is not None:
            return
        index, connection, unfinished = self._queue.popleft()
        try:
            if unfinished is None:
                self.pairs[index] = await self._send.to(connection)
            else:
                self.pairs[index] = await self._send.finish(connection, unfinished)
        except BaseException as error:
            if self.failure is not None and isinstance(error, cancellation()):
                error.with_traceback(None)  # nobody sees it, and anyio's group ties it into a cycle
            self._fail(error)
            raise
        finally:
            self._running -= 1
            if self._task_ended is not None:
                self._task_ended.set()

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    async def _until_below_limit(self) -> None:
        await self._until_all_began()  # only what has begun ends for certain
        while self._running >= self._limit and self.failure is None:
            self._task_ended = anyio.Event()
            await self._task_ended.wait()

    async def _until_all_began(self) -> None:
        """Wait until every task has run to its first await."""
        while self._queue and self.failure is None:
            await anyio.lowlevel.checkpoint()
            if self._queue:
                self._tasks = [task for task in self._tasks if getcoroutinestate(task) == CORO_CREATED]
                if not self._tasks:  # somebody has cancelled one before it began
                    raise anyio.get_cancelled_exc_class()

    def close(self) -> None:
        """Close what nobody came to await, and refer to no error any more, whose traceback would refer back."""
        for _, _, unfinished in self._queue:
            if unfinished is not None:
                unfinished.drop()
        self._queue.clear()
        self.pairs.clear()
        self.failure = self._create_task = self._send = None


async def _await(task: Coroutine[Any, Any, None]) -> None:
    await task
