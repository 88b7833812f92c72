"""Monitors, what a send reports to them, and sends in a task group.

A watched send runs a loop of its own, which reports each receiver's call. In a task group, watched or not, receivers
are called one by one, by `Send.to`.

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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

import anyio
import anyio.lowlevel

from asignals._core.connection import Connection, Connections
from asignals._core.errors import Receiver, annotate, is_receivers_error, log_failure, logger
from asignals._core.loops import cancellation
from asignals._core.written import is_awaitable

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
        """Call a function of this monitor, if there is one; one that fails is logged and ends the monitor."""
        try:
            return None if function is None else function(*arguments)
        except Exception as error:  # noqa: BLE001  logged
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
Watch: TypeAlias = tuple[Receiver | None, float, Asked]
Begun: TypeAlias = tuple[Any, Any, Watch | None]
Later: TypeAlias = list[Begun]


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
        self._is_robust = False
        self._watchers = tuple(watchers)  # a monitor that begins later sees nothing of this send
        self._around = [each for each in self._watchers if each.around is not None]

    def __enter__(self) -> None:
        if self._watchers:
            current_send.set(self)
            self._watch = self._begin(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watchers:
            if current_send.get() is self:  # the collector closes a send in another context
                current_send.set(self.parent)
            self._end(self._watch, error)

    def _begin(self, receiver: Receiver | None) -> Watch:
        """Begin to watch a receiver's call or, with `None`, the whole send; `_end` takes what this returns."""
        asked: Asked = [(each, each.ask(each.around, self, receiver)) for each in self._around] if self._around else ()
        return receiver, perf_counter(), asked

    def _end(self, watch: Watch, error: BaseException | None) -> None:
        """Report what has been watched."""
        receiver, start, asked = watch
        duration = perf_counter() - start
        for watcher, end in reversed(asked) if asked else ():
            watcher.ask(end, error)
        facts = self.signal, self.sender, self.arguments, receiver, start, duration, error, self, self.parent
        report = _new_report(Report, facts)
        for watcher in self._watchers:
            watcher.ask(watcher.callback, report)

    async def to(self, connection: Connection, begun: Begun | None = None, later: Later | None = None) -> Pair | None:
        """Call one connection; returns its pair for the results, or `None` when it has none.

        With a list for `later`, a response that is to be awaited is put there, to be given as `begun` afterwards.
        """
        watch = None
        try:
            if begun is not None:
                receiver, response, watch = begun
            else:
                if (receiver := connection.take(self.signal)) is None:
                    return None
                if self._watchers and connection.is_receiver:
                    watch = self._begin(receiver)
                response = connection.call(receiver, self.signal, self.sender, self._given)
            if is_awaitable(response):
                if later is not None:
                    later.append((receiver, response, watch))
                    return None
                response = await response
        except BaseException as error:
            if watch is not None:
                self._end(watch, error)
            if self._is_robust and is_receivers_error(error):
                return log_failure(error, connection, self.signal, self.sender)
            annotate(error, connection, self.signal)
            raise
        if watch is not None:
            self._end(watch, None)
        return (receiver, response) if connection.is_receiver else None

    def drop(self, begun: Begun) -> None:
        """Close what nobody came to await."""
        _, response, watch = begun
        if iscoroutine(response):
            response.close()
        if watch is not None:
            self._end(watch, GeneratorExit())


def deliver(
    signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, is_robust: bool
) -> Coroutine[Any, Any, Pairs]:
    """Send to a plan that has no loop yet or is of one sender, or in a task group, or watched."""
    origin = signal if signal._origin is None else signal._origin
    plan = origin._registry.plan or origin._registry.plan_for(sender)
    if signal._task_group is None and not watchers:
        return plan.loop_for(arguments)(plan, origin, sender, is_robust, *plan.values(arguments))
    send = Send(origin, sender, arguments)
    if signal._task_group is None:
        return plan.watched_loop(plan, origin, sender, is_robust, send, *plan.values(arguments))
    send._is_robust = is_robust
    return _in_task_group(send, plan.connections, signal._task_group, signal._limit)


# -- in a task group ---------------------------------------------------------------------------------------------------


class TaskGroup(Protocol):
    """What a send needs of a task group; trio's nurseries, which have `start_soon` instead, serve as well."""

    def create_task(self, coroutine: Coroutine[Any, Any, Any], /) -> object:
        """Run a coroutine as a task of the group, in a copy of the current context."""


TaskGroupFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[TaskGroup]]


async def _in_task_group(send: Send, plan: Connections, factory: TaskGroupFactory, limit: int | None) -> Pairs:
    tasks = _Tasks(send, len(plan), limit or len(plan))
    with send:
        try:
            if len(plan) > 1:
                async with factory() as group:
                    await tasks.run(group, plan)
            elif plan:
                tasks.add(0, plan[0])
                await tasks.work()
            if tasks.failure is not None:  # a group lets a cancellation pass that a receiver raised by itself
                raise tasks.failure  # noqa: TRY301  it becomes a group below
            return [pair for pair in tasks.pairs if pair is not None]
        except (GeneratorExit, *cancellation()):  # type: ignore[misc]
            raise
        except BaseException as error:
            if tasks.failure is None:  # it is the factory's
                raise
            if len(plan) > 1 and isinstance(error, BaseExceptionGroup):
                error.with_traceback(None)  # the frame of asyncio's group that raises it refers to it, too
                raise
            raise BaseExceptionGroup(f"a receiver of signal {send.signal.name!r} failed", [error]) from None
        finally:
            tasks.close()


class _Tasks:
    """The receivers of one send in a task group."""

    def __init__(self, send: Send, size: int, limit: int) -> None:
        self.pairs: list[Pair | None] = [None] * size
        self.failure: BaseException | None = None  # noted at once: the group may learn of it later
        self._send = send
        self._limit = limit
        self._queue: deque[tuple[int, Connection, Begun | None, Later | None]] = deque()  # to be called
        self._tasks: list[Coroutine[Any, Any, None]] = []
        self._running = 0
        self._task_ended: anyio.Event | None = None

    def add(self, index: int, connection: Connection, begun: Begun | None = None, later: Later | None = None) -> None:
        """Have the next `work` that begins call a receiver, or await what its call has given."""
        self._queue.append((index, connection, begun, later))
        self._running += 1

    async def run(self, group: Any, plan: Connections) -> None:
        """Call every connection in order."""
        create_task = group.create_task if hasattr(group, "create_task") else partial(group.start_soon, _await)
        last = len(plan) - 1
        try:
            for index, connection in enumerate(plan):
                is_task = index < last and (connection.shape.is_async or connection.options.in_thread)
                if not is_task or self._running >= self._limit:
                    await self._until_ready()
                if self.failure is not None:
                    return
                # What a monitor enters, it leaves in the same task.
                is_whole = is_task or index == last or bool(self._send._around)
                later: Later = []
                self.add(index, connection, None, None if is_whole else later)
                if not is_task:
                    await self.work()
                if later:
                    self.add(index, connection, later.pop())
                    is_task = True
                if is_task:
                    self._tasks.append(self.work())
                    create_task(self._tasks[-1])
        except BaseException as error:
            self.failure = error if self.failure is None else self.failure
            raise

    async def work(self) -> None:
        """Call the next receiver; the tasks of the group do so, and the sender's."""
        if self.failure is not None:
            return
        index, connection, begun, later = self._queue.popleft()
        try:
            self.pairs[index] = await self._send.to(connection, begun, later)
        except BaseException as error:
            if self.failure is not None and isinstance(error, cancellation()):
                error.with_traceback(None)  # nobody sees it, and anyio's group ties it into a cycle
            self.failure = error if self.failure is None else self.failure
            raise
        finally:
            self._running -= 1
            if self._task_ended is not None:
                self._task_ended.set()

    async def _until_ready(self) -> None:
        """Wait until every task has run to its first await, and until fewer than the limit run."""
        while self._queue and self.failure is None:
            await anyio.lowlevel.checkpoint()
            if self._queue and all(getcoroutinestate(task) != CORO_CREATED for task in self._tasks):
                raise anyio.get_cancelled_exc_class()  # somebody has cancelled one before it began
        while self._running >= self._limit and self.failure is None:
            self._task_ended = anyio.Event()
            await self._task_ended.wait()

    def close(self) -> None:
        """Close what nobody came to await, and refer to no error any more, whose traceback would refer back."""
        for task in self._tasks:
            task.close()
        for begun in [begun for _, _, begun, _ in self._queue if begun is not None]:
            self._send.drop(begun)
        self.pairs.clear()
        self.failure = None


async def _await(task: Coroutine[Any, Any, None]) -> None:
    await task


_in_task_group.__qualname__ = "Signal.send"  # so Python calls a send that is not awaited
