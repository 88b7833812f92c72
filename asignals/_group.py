"""Sending via a task group: concurrently, in order, and with nothing left behind.

The caller walks through the plan. An async receiver (or one in a thread) becomes a task; a sync one runs in the
caller, once the tasks before it have run to their first await; and the last one runs in the caller, too.

Tasks are not told which receiver to run: each takes the next one when it begins. So receivers start in order of
connection even on trio, which begins new tasks in random order, and a task that is cancelled before it began has
made no coroutine that would have to be closed.

After the first failure nothing more is started. It is noted at once, because a group may learn of it later.

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
a task of `asyncio.TaskGroup`, which is cancelled natively, by `Task.cancel()`, once: that no shield keeps out which was
entered before. One that is entered for the clean-up afterwards holds there, too.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import anyio
import anyio.lowlevel

from asignals._connection import Connection
from asignals._monitor import is_surrounded
from asignals._core.loops import cancellation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from asignals._dispatch import Send
    from asignals._receivers import Receiver
    from asignals._registry import Link, Plan


class TaskGroup(Protocol):
    """What a send needs of a task group."""

    def create_task(self, coroutine: Coroutine[Any, Any, Any], /) -> object:
        """Run a coroutine as a task of the group, in a copy of the current context."""


TaskGroupFactory: TypeAlias = "Callable[[], AbstractAsyncContextManager[TaskGroup]]"
Pair: TypeAlias = "tuple[Receiver, Any]"


class Begun(NamedTuple):
    """A call that has given an awaitable, which nobody awaits yet."""

    receiver: Receiver
    response: Any
    watch: AbstractContextManager[object]

    def drop(self) -> None:
        """Await it never."""
        with suppress(GeneratorExit), self.watch:
            if iscoroutine(self.response):
                self.response.close()
            raise GeneratorExit


async def in_task_group(send: Send, plan: Plan, factory: TaskGroupFactory, limit: int | None) -> list[Pair]:
    """Call the links of a plan concurrently; returns the responses in order of the plan."""
    run = _Run(send, len(plan), limit or len(plan))
    try:
        if len(plan) > 1:
            async with factory() as run.group:
                await run.walk(plan)
        elif plan:
            run.pairs[0] = await send.to(plan[0])
        run.check()
        return [pair for pair in run.pairs if pair is not None]
    except GeneratorExit:
        raise
    except cancellation():
        raise
    except BaseException as error:
        if run.group is None and len(plan) > 1:  # it could not be entered
            raise
        if isinstance(error, BaseExceptionGroup) and run.group is not None:  # of the tasks' errors
            error.with_traceback(None)  # for the frame of asyncio's group that raises it refers to it, too
            raise
        msg = f"a receiver of signal {send.signal.name!r} failed"
        raise BaseExceptionGroup(msg, [error]) from None
    finally:
        run.end()


class _Run:
    """The state of one send in a task group."""

    __slots__ = ("_limit", "_room", "_running", "_tasks", "_to_start", "failure", "group", "pairs", "send")

    def __init__(self, send: Send, size: int, limit: int) -> None:
        self.send: Any = send
        self.pairs: list[Pair | None] = [None] * size
        self.failure: BaseException | None = None
        self.group: Any = None
        self._limit = limit
        self._to_start: deque[tuple[int, Link, Begun | None]] = deque()  # with what a call has given already
        self._tasks: list[Coroutine[Any, Any, None]] = []  # that may not have begun
        self._running = 0
        self._room: anyio.Event | None = None

    async def walk(self, plan: Plan) -> None:
        """Start every link in order."""
        try:
            for index, link in enumerate(plan[:-1]):
                if self._running >= self._limit:
                    await self._wait_for_room()
                if link.is_coroutine or link.is_async or link.options.in_thread:
                    if self.failure is not None:
                        return
                    self._begin(index, link, None)
                else:
                    await self._let_start()
                    if self.failure is not None:
                        return
                    await self._call(index, link)
            await self._wait_for_room()
            if self.failure is None:
                self.pairs[-1] = await self.send.to(plan[-1])
        except BaseException as error:
            self._failed(error)
            raise

    async def _call(self, index: int, link: Link) -> None:
        """Call a sync receiver; what it gives to be awaited gets a task."""
        if not isinstance(link, Connection) or (self.send.is_watched and is_surrounded()):
            self.pairs[index] = await self.send.to(link)
            return
        begun = self.send.begin(link)
        if isinstance(begun, Begun):
            self._begin(index, link, begun)
        else:
            self.pairs[index] = begun
        del begun  # an error in it leads back to this frame

    def _begin(self, index: int, link: Link, begun: Begun | None) -> None:
        """Have a task made for the next that is to start."""
        self._to_start.append((index, link, begun))
        task = self._work()
        self._tasks.append(task)
        self._running += 1
        try:
            self.group.create_task(task)
        except BaseException:
            task.close()
            raise

    async def _work(self) -> None:
        """The task: call the first link that is to start, or await what its call has given already."""
        if self.failure is not None:
            return
        index, link, begun = self._to_start.popleft()
        try:
            if begun is None:
                self.pairs[index] = await self.send.to(link)
            else:
                self.pairs[index] = await self.send.finish(link, begun)
        except BaseException as error:
            if self.failure is not None and isinstance(error, cancellation()):
                error.with_traceback(None)  # which nobody sees, and anyio's group ties into a cycle
            self._failed(error)
            raise
        finally:
            self._running -= 1
            if self._room is not None:
                self._room.set()

    def _failed(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    async def _wait_for_room(self) -> None:
        await self._let_start()  # for only what has started ends for certain
        while self._running >= self._limit and self.failure is None:
            self._room = anyio.Event()
            await self._room.wait()

    async def _let_start(self) -> None:
        """Wait until every task that was made has run to its first await."""
        while self._to_start and self.failure is None:
            await anyio.lowlevel.checkpoint()
            if self._to_start:
                self._tasks = [task for task in self._tasks if getcoroutinestate(task) == CORO_CREATED]
                if not self._tasks:  # somebody has cancelled one before it began
                    raise anyio.get_cancelled_exc_class()

    def check(self) -> None:
        """Raise what a group let pass, as all do with a cancellation that a receiver raises itself."""
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        """Close responses that nobody came to await, and refer to no error, whose traceback would refer back."""
        for _, _, begun in self._to_start:
            if begun is not None:
                begun.drop()
        self._to_start.clear()
        self.pairs.clear()
        self.failure = self.group = self.send = None
