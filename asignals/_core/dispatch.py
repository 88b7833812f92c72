"""Monitors, what a send reports to them, and sends in a task group.

Every receiver is called by a loop of the plan. A watched send runs one that reports each call. In a task group, each
call is a loop over one connection.

In a task group the sender's task goes through the plan. An async receiver (or one in a thread) becomes a task; a sync
one runs in the sender's task, once the tasks before it have run to their first await (an awaitable that it returns gets
a task); and the last one runs there, too.

A task is not told which receiver to call: its loop takes the next connection of a queue when it begins. So receivers
start in order of connection even on trio, which begins new tasks in random order, and a task that is cancelled before
it began leaves no coroutine of a receiver behind. After the first failure nothing more is started.

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
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

import anyio
import anyio.lowlevel

from asignals._core.connection import Connection, Connections
from asignals._core.errors import Receiver, annotate, logger
from asignals._core.loops import cancellation, in_context
from asignals._core.objects import describe
from asignals._core.written import Loop, as_coroutine, write_loop

if TYPE_CHECKING:
    from asignals._core.signal import Signal

Pair: TypeAlias = tuple[Receiver, Any]
Pairs: TypeAlias = list[Pair]

# -- watching ----------------------------------------------------------------------------------------------------------

Around: TypeAlias = "Callable[[Send, Receiver | None], Callable[[BaseException | None], object] | None]"


class Report(NamedTuple):
    """What a monitor is given: one receiver's call or, with `None` for the receiver, a whole send.

    `start` and `duration` are seconds of `time.perf_counter()`. `error` is what the call or the send raised, a
    cancellation included; a robust send itself raises nothing of its receivers. `arguments` are read-only. `send` is
    one object for all reports of one send and differs between sends under way, so it groups them; it has `signal`,
    `sender`, `arguments` and `parent` too. `parent` is the `send` of the send whose receiver made this one, in its own
    task, in tasks that it started and in a `Background`; `None` for a send that no receiver made.
    """

    signal: Signal[..., Any]
    sender: object
    arguments: Mapping[str, Any]
    receiver: Receiver | None
    start: float
    duration: float
    error: BaseException | None
    send: Send
    parent: Send | None


_new_report: Callable[[type[Report], tuple[Any, ...]], Report] = tuple.__new__  # faster than its own


class Watcher:
    """One monitor; call it to stop watching, or leave its `with` block."""

    __slots__ = ("around", "callback")

    def __init__(self, callback: Callable[[Report], object] | None, around: Around | None) -> None:
        self.callback: Callable[[Report], object] | None = callback
        self.around: Around | None = around

    def __call__(self) -> None:
        """Stop watching; doing it again does nothing."""
        self.callback = self.around = None  # sends under way in other threads have it, too
        with suppress(ValueError):
            watchers.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self()

    def ask(self, function: Callable[..., Any] | None, *arguments: Any) -> Any:
        """Call a function that surrounds a call, if there is one; one that fails ends the monitor."""
        try:
            return None if function is None else function(*arguments)
        except Exception as error:  # noqa: BLE001  logged
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Log what this monitor has raised, and end it."""
        self()
        traceback = type(error), error, error.__traceback__  # logging takes a falsy exception for none
        logger.error("asignals: a monitor failed and was removed", exc_info=traceback)


# Written code looks at this very list, so it is changed in place and never replaced.
watchers: list[Watcher] = []

# The send whose receiver runs in this context, while somebody watches.
current_send: ContextVar[Send | None] = ContextVar("asignals_send", default=None)


def monitor(callback: Callable[[Report], object] | None = None, *, around: Around | None = None) -> Watcher:
    """Have `callback` called for every receiver's call and every send, of all signals, in this process.

    It gets one `Report`: those of the receivers as each ends, then that of the send, whose `receiver` is `None`. A
    send that nobody hears, or that is muted, is reported too; streams are no receivers and are not. Reports come in
    the sender's task (in a receiver's own, with a task group) and in any thread that sends, so a monitor should be
    quick and must not block. One that raises is logged to the logger `asignals` and removed; the send goes on. Sends
    that began before are not reported.

    Watching changes nothing for the receivers, with one exception: in a task group the awaitable that a sync receiver
    returns is awaited in the sender's task, instead of one of its own, while a monitor with `around` watches.

    Args:
        callback: Called with a `Report`.
        around: Called before each call, in its task, with the send (which has `signal`, `sender`, `arguments` and
            `parent`) and the receiver, or `None` for the send as a whole; may return a function that is called after
            it, in the same task, with the exception that ended it or `None`.

    Returns:
        What undoes it: call that, or use it in a `with` statement.

    Raises:
        TypeError: neither was given, or what was given cannot be called.
    """
    given = [each for each in (callback, around) if each is not None]
    if not given or not all(map(callable, given)):
        raise TypeError(f"monitor() takes callables: callback, around or both; not {callback!r:.80}, {around!r:.80}")
    watcher = Watcher(callback, around)
    watchers.append(watcher)
    return watcher


# -- one send ----------------------------------------------------------------------------------------------------------

Asked: TypeAlias = Sequence[tuple[Watcher, Callable[[BaseException | None], object] | None]]
OnError: TypeAlias = "Callable[[BaseException, Connection, Signal[..., Any], object], Pair | None]"


class Send:
    """One send under way, for monitors and for those who call its receivers one by one: the same in all its reports.

    `arguments` is a read-only mapping. `parent` is the send whose receiver made this one, if that one was watched too.
    In its `with` block the send is under way, and is reported as a whole at the end.
    """

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> None:
        self.signal: Signal[..., Any] = signal
        self.sender: object = sender
        self.arguments: Mapping[str, Any] = MappingProxyType(arguments)
        self.parent: Send | None = current_send.get()
        self._given = arguments
        self._watchers = tuple(watchers)  # a monitor that begins later sees nothing of this send
        self.around: Sequence[Watcher] = [each for each in self._watchers if each.around is not None]

    def __enter__(self) -> None:
        if self._watchers:
            current_send.set(self)
            self._asked = self.ask(None) if self.around else ()
            self._start = perf_counter()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._watchers:
            if current_send.get() is self:  # the collector closes a send in another context
                current_send.set(self.parent)
            self.end(None, self._start, self._asked, error)

    def ask(self, receiver: Receiver | None) -> Asked:
        """Have monitors surround a receiver's call or, with `None`, the whole send."""
        return [(each, each.ask(each.around, self, receiver)) for each in self.around]

    def end(self, receiver: Receiver | None, start: float, asked: Asked, error: BaseException | None) -> None:
        """Report what began at `start`, and was surrounded by `asked`."""
        duration = perf_counter() - start
        for watcher, end in reversed(asked) if asked else ():
            watcher.ask(end, error)
        facts = self.signal, self.sender, self.arguments, receiver, start, duration, error, self, self.parent
        report = _new_report(Report, facts)
        for watcher in self._watchers:
            try:
                if (callback := watcher.callback) is not None:
                    callback(report)
            except Exception as failure:  # noqa: BLE001  logged
                watcher.fail(failure)

    def to(self, connection: Connection) -> Coroutine[Any, Any, Pairs]:
        """Call one connection; gives a list of its pair for the results, or an empty one."""
        return self.call((connection,), [], annotate)

    def call(
        self, connections: Iterable[Connection], results: Pairs, on_error: OnError, kind: str = ""
    ) -> Coroutine[Any, Any, Pairs]:
        """Call connections by a loop for all kinds of them."""
        loop = partial(write_loop(None, (), "watched " + kind), self) if self._watchers else write_loop(None, (), kind)
        return loop(None, self.signal, self.sender, on_error, connections, results, self._given)


def deliver(
    signal: Signal[..., Any], sender: object, arguments: dict[str, Any], on_error: OnError
) -> Coroutine[Any, Any, Pairs]:
    """Send to a plan that has no loop yet or is of one sender, or in a task group, or watched."""
    origin = signal if signal._origin is None else signal._origin
    plan = origin._registry.plan or origin._registry.plan_for(sender)
    if signal._task_group is None and not watchers:
        values = plan.values(arguments)
        return plan.loop_for(arguments)(plan, origin, sender, on_error, plan.connections, [], *values)
    send = Send(origin, sender, arguments)
    if signal._task_group is None:
        return _watched(send, plan, plan.watched_loop, on_error)
    loop = partial(plan.watched_loop, send) if watchers else plan.loop_for(arguments)
    tasks = _Tasks(send, partial(loop, plan, origin, sender), (*plan.values(arguments),), on_error, signal._limit)
    return tasks.send(signal._task_group, plan.connections)


async def _watched(send: Send, plan: Any, loop: Loop, on_error: OnError) -> Pairs:
    """A sequential send that is reported as a whole, too."""
    with send:
        values = plan.values(send._given)
        return await loop(send, plan, send.signal, send.sender, on_error, plan.connections, [], *values)


# -- in a task group ---------------------------------------------------------------------------------------------------


class TaskGroup(Protocol):
    """What a send needs of a task group; trio's nurseries, which have `start_soon` instead, serve as well."""

    def create_task(self, coroutine: Coroutine[Any, Any, Any], /) -> object:
        """Run a coroutine as a task of the group, in a copy of the current context."""


TaskGroupFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[TaskGroup]]


class _Tasks:
    """The calls of one send's receivers in a task group: each is the plan's loop over one connection."""

    def __init__(self, send: Send, loop: Loop, values: tuple[Any, ...], on_error: OnError, limit: int | None) -> None:
        self._send, self._loop, self._values, self._on_error = send, loop, values, on_error
        self._limit = None if limit is None else anyio.Semaphore(limit, fast_acquire=True)
        self._queue: deque[Any] = deque()  # the connections of the calls that have not begun
        self._results: list[Pairs] = []  # those of each call that has begun
        self._tasks: list[Coroutine[Any, Any, object]] = []
        self._failure: BaseException | None = None  # noted at once: the group may learn of it later

    async def send(self, factory: TaskGroupFactory, plan: Connections) -> Pairs:
        """Call all receivers; returns their pairs in order."""
        with self._send:
            try:
                if len(plan) > 1:
                    async with factory() as group:
                        await self._call_all(group, plan)
                elif plan:
                    await self._call(plan[0])
                if self._failure is not None:  # a group lets a cancellation pass that a receiver raised by itself
                    raise self._failure  # noqa: TRY301  it becomes a group below
                return [pair for pairs in self._results for pair in pairs]
            except BaseException as error:
                if self._failure is None and isinstance(error, Exception):
                    which = f"{describe(factory)}, the task_group of signal {self._send.signal.name!r}"
                    with suppress(Exception):  # a user's exception may be frozen
                        error.add_note(f"raised by {which}; anyio.create_task_group and asyncio.TaskGroup make them")
                if self._failure is None or isinstance(error, (GeneratorExit, *cancellation())):
                    raise  # the factory's own error, or a cancellation
                if len(plan) > 1 and isinstance(error, BaseExceptionGroup):
                    error.with_traceback(None)  # the frame of asyncio's group that raises it refers to it, too
                    raise
                name = self._send.signal.name
                raise BaseExceptionGroup(f"a receiver of signal {name!r} failed", [error]) from None
            finally:
                for task in self._tasks:  # what nobody came to await
                    task.close()
                for pairs in self._results:  # groups keep what tasks return, and errors refer to their tasks
                    pairs.clear()
                self._failure = None  # whose traceback refers to this object

    async def _call_all(self, group: Any, plan: Connections) -> None:
        """Call every connection in order."""
        create_task = group.create_task if hasattr(group, "create_task") else partial(group.start_soon, as_coroutine)
        try:
            for connection in plan:
                is_last = connection is plan[-1]
                is_sync = not (connection.shape.is_async or connection.options.in_thread)
                if is_last or is_sync or self._limit is not None:
                    await self._until_begun()
                if self._limit is not None:
                    await self._limit.acquire()
                if self._failure is not None:
                    return
                if is_last or (is_sync and self._send.around):  # what a monitor enters, it leaves in the same task
                    await self._call(connection)
                elif is_sync:
                    await self._call_here(connection, create_task)
                else:
                    self._tasks.append(call := self._call(connection))
                    create_task(call)
        except BaseException as error:
            self._note(error)
            raise

    async def _call_here(self, connection: Connection, create_task: Callable[..., object]) -> None:
        """Call a sync receiver in the sender's task; an awaitable that it returns is awaited in a separate task."""
        self._queue.append(connection)
        pairs: Pairs = []
        call = self._send.call(self._turn(pairs), pairs, self._handle, "pausing")
        with suppress(StopIteration):
            call.send(None)
            self._queue.append(call)
            self._tasks += [call, task := self._go_on()]
            create_task(task)
            await self._until_begun()

    async def _go_on(self) -> None:
        """Go on, in a separate task, with a call that was begun in the sender's task."""
        if self._queue:
            await in_context(copy_context(), self._queue.popleft())

    def _call(self, connection: Any) -> Coroutine[Any, Any, Pairs]:
        """A call of the connection that is first in the queue when it begins: trio begins tasks in random order."""
        self._queue.append(connection)
        pairs: Pairs = []
        return self._loop(self._handle, self._turn(pairs), pairs, *self._values)

    def _turn(self, pairs: Pairs) -> Iterator[Connection]:
        """The connection of the call that begins now, whose pairs come next in the results; none after a failure."""
        if self._queue:
            self._results.append(pairs)
            yield self._queue.popleft()
            if self._limit is not None:
                self._limit.release()

    def _handle(self, error: BaseException, *facts: Any) -> Pair | None:
        """What a loop does with an exception; notes one that is raised."""
        pair = self._on_error(error, *facts)
        if pair is None:
            self._note(error)
        return pair

    def _note(self, error: BaseException) -> None:
        """Note a failure; nothing more is started then."""
        self._queue.clear()
        if self._failure is None:
            self._failure = error
        elif error is not self._failure and isinstance(error, cancellation()):
            error.with_traceback(None)  # nobody sees it, and anyio's group ties it into a cycle
        if self._limit is not None:  # for which the sender may be waiting
            self._limit.release()

    async def _until_begun(self) -> None:
        """Wait until every task has run to its first await."""
        while self._queue:
            await anyio.lowlevel.checkpoint()
            if self._queue and all(getcoroutinestate(task) != CORO_CREATED for task in self._tasks):
                raise anyio.get_cancelled_exc_class()  # somebody has cancelled one before it began


_Tasks.send.__qualname__ = _watched.__qualname__ = "Signal.send"  # so Python calls a send that is not awaited
