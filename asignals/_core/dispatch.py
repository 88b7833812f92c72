"""A send that is watched, or in a task group, where each task runs the written loop for one receiver.

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
from contextlib import AbstractAsyncContextManager
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import anyio
import anyio.lowlevel

from asignals._core.connection import Connection, Connections, finish, is_awaitable
from asignals._core.errors import Receiver, annotate
from asignals._core.loops import cancellation
from asignals._core.monitor import SendInfo, surrounding, watchers

if TYPE_CHECKING:
    from asignals._core.signal import Signal

Pair: TypeAlias = tuple[Receiver, Any]
Pairs: TypeAlias = list[Pair]
Call: TypeAlias = Callable[[Any], Coroutine[Any, Any, Pairs]]


class TaskGroup(Protocol):
    """What a send needs of a task group; trio's nurseries, which have `start_soon` instead, serve as well."""

    def create_task(self, coroutine: Coroutine[Any, Any, Any], /) -> object:
        """Run a coroutine as a task of the group, in a copy of the current context."""


TaskGroupFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[TaskGroup]]


class Send(SendInfo):
    """One send under way whose receivers are called one by one, for those who do that themselves."""

    __slots__ = ("is_watched",)

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> None:
        super().__init__(signal, sender, arguments)
        self.is_watched: bool = bool(watchers)  # a monitor that begins later sees nothing of this send

    async def to(self, connection: Connection) -> Pair | None:
        """Call one connection of the plan; returns its pair for the results, or `None` when it has none."""
        try:
            watch = self if self.is_watched else None
            return await connection.respond(self.signal, self.sender, self.given, watch)
        except BaseException as error:
            annotate(error, connection, self.signal)
            raise


def deliver(
    signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, robust: bool
) -> Coroutine[Any, Any, Pairs]:
    """Send in a task group, or watched."""
    origin = signal if signal._origin is None else signal._origin
    plan = origin._registry.plan or origin._registry.plan_for(sender)
    send = SendInfo(origin, sender, arguments) if watchers else None
    loop = plan.write_loop(arguments, robust=robust, watched=send is not None)
    watch = () if send is None else (send,)
    if signal._task_group is None:
        work = loop(plan.connections, origin, sender, *watch, **arguments)
    else:

        def call(connection: Any) -> Coroutine[Any, Any, Pairs]:
            return loop((connection,), origin, sender, *watch, **arguments)

        work = _in_task_group(origin, call, plan.connections, signal._task_group, signal._limit)
    return work if send is None else _watch(send, work)


async def _watch(send: SendInfo, work: Coroutine[Any, Any, Pairs]) -> Pairs:
    with send:
        return await work


async def _in_task_group(
    signal: Signal[..., Any], call: Call, plan: Connections, factory: TaskGroupFactory, limit: int | None
) -> Pairs:
    group_send = _GroupSend(call, len(plan), limit or len(plan))
    try:
        if len(plan) > 1:
            async with factory() as group:
                group_send.enter(group)
                await group_send.call_all(plan)
        elif plan:
            group_send.pairs[0] = await call(plan[0])
        if group_send.failure is not None:  # a group lets a cancellation pass that a receiver raised by itself
            raise group_send.failure  # noqa: TRY301  it becomes a group below
        return [pair for pairs in group_send.pairs for pair in pairs]
    except (GeneratorExit, *cancellation()):  # type: ignore[misc]
        raise
    except BaseException as error:
        if len(plan) > 1 and not group_send.is_entered:
            raise
        if len(plan) > 1 and isinstance(error, BaseExceptionGroup):
            error.with_traceback(None)  # the frame of asyncio's group that raises it refers to it, too
            raise
        msg = f"a receiver of signal {signal.name!r} failed"
        raise BaseExceptionGroup(msg, [error]) from None
    finally:
        group_send.close()


class _SyncReceiver:
    """A sync receiver in a task group, for a loop: the first `respond` calls it, the second awaits what it returned."""

    style = choose = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.describe = connection.describe
        self.target = connection.target
        self.begun: tuple[Receiver, Any, Any] | None = None

    async def respond(
        self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any], send: SendInfo | None = None
    ) -> Pair | None:
        """Call the receiver or, if that has returned an awaitable, await it."""
        begun, self.begun, self._send = self.begun, None, send
        if begun is None:
            begun = self._connection.begin(signal, sender, arguments, send)
            if begun is not None and is_awaitable(begun[1]):
                self.begun = begun
                return None
        return None if begun is None else await finish(begun, send)

    def drop(self) -> None:
        """Close what nobody came to await."""
        _, response, entered = cast("tuple[Receiver, Any, Any]", self.begun)
        if self._send is not None:
            self._send.leave(entered, GeneratorExit())
        if iscoroutine(response):
            response.close()


class _GroupSend:
    """The state of one send in a task group."""

    def __init__(self, call: Call, size: int, limit: int) -> None:
        self.is_entered = False
        self.pairs: list[Pairs] = [[] for _ in range(size)]
        self.failure: BaseException | None = None  # noted at once: the group may learn of it later
        self._call: Any = call
        self._limit = limit
        self._queue: deque[tuple[int, Connection | _SyncReceiver]] = deque()
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
            raise TypeError(
                f"task_group must make groups with create_task() or start_soon(), not {type(group).__qualname__!r}"
            )
        self.is_entered = True

    async def call_all(self, plan: Connections) -> None:
        """Start every connection in order."""
        try:
            for index, connection in enumerate(plan[:-1]):
                is_task = connection.shape.is_async or connection.options.in_thread
                if self._running >= self._limit:
                    await self._until_below_limit()
                if not is_task:
                    await self._until_all_began()
                if self.failure is not None:
                    return
                if is_task:
                    self._start(index, connection)
                else:
                    await self._call_here(index, connection)
            await self._until_below_limit()
            if self.failure is None:
                self.pairs[-1] = await self._call(plan[-1])
        except BaseException as error:
            self._fail(error)
            raise

    async def _call_here(self, index: int, connection: Connection) -> None:
        """Call a sync receiver; an awaitable that it returns gets a task."""
        if surrounding:  # what a monitor enters, it leaves in the same task
            self.pairs[index] = await self._call(connection)
            return
        receiver = _SyncReceiver(connection)
        self.pairs[index] = await self._call(receiver)
        if receiver.begun is not None:
            self._start(index, receiver)

    def _start(self, index: int, connection: Connection | _SyncReceiver) -> None:
        self._queue.append((index, connection))
        task = self._work()
        self._tasks.append(task)
        self._running += 1
        try:
            self._create_task(task)
        except BaseException:
            task.close()
            raise

    async def _work(self) -> None:
        """The task: call the first connection of the queue."""
        if self.failure is not None:
            return
        index, connection = self._queue.popleft()
        try:
            self.pairs[index] = await self._call(connection)
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
            if self._queue and all(getcoroutinestate(task) != CORO_CREATED for task in self._tasks):
                raise anyio.get_cancelled_exc_class()  # somebody has cancelled one before it began

    def close(self) -> None:
        """Close what nobody came to await, and refer to no error any more, whose traceback would refer back."""
        for _, connection in self._queue:
            if isinstance(connection, _SyncReceiver):
                connection.drop()
        self._queue.clear()
        self.pairs.clear()
        self.failure = self._create_task = self._call = None


async def _await(task: Coroutine[Any, Any, None]) -> None:
    await task
