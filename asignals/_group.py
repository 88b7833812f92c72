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
from inspect import CORO_CREATED, getcoroutinestate, isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import anyio
import anyio.lowlevel

from asignals._blame import blame, failed
from asignals._connection import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from asignals._dispatch import Send
    from asignals._receivers import Receiver
    from asignals._registry import Link, Plan


class TaskGroup(Protocol):
    """What a send needs of a task group."""

    def create_task(self, coroutine: Coroutine[Any, Any, Any], /) -> object:
        """Run a coroutine as a task of the group, in a copy of the current context."""


TaskGroupFactory: TypeAlias = "Callable[[], AbstractAsyncContextManager[TaskGroup]]"
Pair: TypeAlias = "tuple[Receiver, Any]"


async def in_task_group(send: Send, plan: Plan, factory: TaskGroupFactory, limit: int | None) -> list[Pair]:
    """Call the links of a plan concurrently; returns the responses in order of the plan."""
    run = _Run(send, len(plan), limit or len(plan))
    try:
        try:
            await run.walk(plan, factory)
        except BaseException as error:
            if not await run.leave(error):
                raise
        else:
            await run.leave(None)
        run.check()
        return [pair for pair in run.pairs if pair is not None]
    except BaseException as error:
        if run.is_complete(error) or isinstance(error, (GeneratorExit, anyio.get_cancelled_exc_class())):
            raise
        msg = f"a receiver of signal {send.signal.name!r} failed"
        raise BaseExceptionGroup(msg, [error]) from None
    finally:
        run.end()


class _Run:
    """The state of one send in a task group."""

    def __init__(self, send: Send, size: int, limit: int) -> None:
        self.send = send
        self.pairs: list[Pair | None] = [None] * size
        self.failure: BaseException | None = None
        self._group: TaskGroup | None = None
        self._manager: AbstractAsyncContextManager[TaskGroup] | None = None
        self._is_entering = False
        self._limit = limit
        self._to_start: deque[tuple[int, Link, Pair | None]] = deque()  # with what a call has returned already
        self._tasks: deque[Coroutine[Any, Any, None]] = deque()
        self._running = 0
        self._room: anyio.Event | None = None

    async def walk(self, plan: Plan, factory: TaskGroupFactory) -> None:
        """Start every link in order."""
        try:
            for index, link in enumerate(plan):
                if self._running >= self._limit:
                    await self._wait_for_room()
                is_last = index == len(plan) - 1
                is_concurrent = link.is_async or link.options.in_thread
                if self._to_start and (is_last or not is_concurrent):
                    await self._let_start()
                if self.failure is not None:
                    return
                if is_last:
                    self.pairs[index] = await self.send.to(link)
                elif is_concurrent:
                    self._to_start.append((index, link, None))
                    self._begin(self._group or await self._enter(factory))
                elif self.send.is_watched or not isinstance(link, Connection):  # a report is of the whole call
                    self.pairs[index] = await self.send.to(link)
                else:
                    self.pairs[index] = pair = self.send.start(link)
                    if pair is not None and isawaitable(pair[1]):
                        self._to_start.append((index, link, pair))
                        self._begin(self._group or await self._enter(factory))
                    del pair  # an error in it leads back to this frame
        except BaseException as error:
            self._failed(error)
            raise

    async def _enter(self, factory: TaskGroupFactory) -> TaskGroup:
        self._is_entering = True
        manager = factory()
        self._group = await manager.__aenter__()
        self._manager = manager
        self._is_entering = False
        return self._group

    async def leave(self, error: BaseException | None) -> bool | None:
        """Leave the group, if one was entered, as an `async with` would; an `AsyncExitStack` leaves a cycle behind."""
        if self._manager is None:
            return False
        try:
            if error is None:
                return await self._manager.__aexit__(None, None, None)
            return await self._manager.__aexit__(type(error), error, error.__traceback__)
        finally:
            del error

    def _begin(self, group: TaskGroup) -> None:
        """Have a task made for the next that is to start."""
        task = self._work()
        self._tasks.append(task)
        self._running += 1
        try:
            group.create_task(task)
        except BaseException:
            task.close()
            raise

    async def _work(self) -> None:
        """The task: call the first link that is to start or, given a pair, await the response in it."""
        if self.failure is not None:
            return
        index, link, pair = self._to_start.popleft()
        try:
            self.pairs[index] = await (self.send.to(link) if pair is None else self._finish(link, *pair))
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._running -= 1
            if self._room is not None:
                self._room.set()

    async def _finish(self, link: Link, receiver: Receiver, response: Awaitable[Any]) -> Pair:
        try:
            return receiver, await response
        except Exception as error:
            if self.send.robust:
                return failed(error, link, self.send.signal)
            blame(error, link, self.send.signal)
            raise

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
            if not self._to_start:
                self._tasks.clear()
            while self._tasks and getcoroutinestate(self._tasks[0]) != CORO_CREATED:
                del self._tasks[0]
            if self._to_start and not self._tasks:  # somebody has cancelled one before it began
                raise anyio.get_cancelled_exc_class()

    def check(self) -> None:
        """Raise what a group let pass, as all do with a cancellation that a receiver raises itself."""
        if self.failure is not None:
            raise self.failure

    def is_complete(self, error: BaseException) -> bool:
        """Whether to raise an error as it is: the group made it of its tasks' errors, or could not be entered."""
        return self._is_entering or (self._group is not None and isinstance(error, BaseExceptionGroup))

    def end(self) -> None:
        """Close responses that nobody came to await, and refer to no error, whose traceback would refer back."""
        for _, _, pair in self._to_start:
            if pair is not None and iscoroutine(pair[1]):
                pair[1].close()
        self._to_start.clear()
        self.pairs.clear()
        self.failure = self._group = self._manager = None
