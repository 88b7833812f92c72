"""Task groups, streams, background work and monitoring, over the same written by hand."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import Context, ContextVar, copy_context
from functools import partial
from itertools import repeat
from time import perf_counter
from types import MappingProxyType
from typing import Any
from weakref import ref

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

import asignals

from .cases import Case, Goal, check
from .contenders import LOOPS, SIGNAL, Contender, Send, connect_all, django_asend, send_repeatedly
from .receivers import Receiver, make
from .timing import Round, time_repeated

logger = logging.getLogger(__name__)

# -- task groups -------------------------------------------------------------------------------------------------------


def anyio_by_hand(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        results: list[Any] = [None] * len(receivers)

        async def run(index, receiver):
            results[index] = (receiver, await receiver(signal=SIGNAL, sender=sender, a=a, b=b))

        async with anyio.create_task_group() as group:
            for index, receiver in enumerate(receivers):
                group.start_soon(run, index, receiver)
        return results

    return send


def asyncio_by_hand(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        async with asyncio.TaskGroup() as group:
            tasks = [(r, group.create_task(r(signal=SIGNAL, sender=sender, a=a, b=b))) for r in receivers]
        return [(receiver, task.result()) for receiver, task in tasks]

    return send


def promised_by_hand(receivers: list[Receiver]) -> Send:
    """What a send in a group promises, and no more: weak references, order, nothing begun after a failure, notes."""
    references = list(map(ref, receivers))

    async def send(sender, *, a, b):
        failures: list[BaseException] = []

        async def call(reference):
            receiver = reference()
            if failures or receiver is None:
                return []
            try:
                return [(receiver, await receiver(signal=SIGNAL, sender=sender, a=a, b=b))]
            except BaseException as error:
                failures.append(error)
                error.add_note(f"raised by {receiver}")
                raise

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(call(each)) for each in references[:-1]]
                await anyio.lowlevel.checkpoint()
                last = await call(references[-1])
            return [pair for task in tasks for pair in task.result()] + last
        finally:
            failures.clear()  # whose tracebacks refer to it

    return send


def via(factory: Callable[[], Any]) -> Callable[[list[Receiver]], Send]:
    return lambda receivers: connect_all(asignals.Signal(["a", "b"], task_group=factory), receivers).send


async def prepare_groups(stack: AsyncExitStack, *, count: int, chosen: list[Contender]) -> dict[str, Round]:
    """Run coroutine functions concurrently."""
    rounds = {}
    for one in chosen:
        await check(one, "coroutines", count)
        receivers = make("coroutines", count)
        stack.callback(receivers.clear)  # holds them until then
        rounds[one.name] = await time_repeated(partial(one.repeat, one.make(receivers), object()))
    return rounds


BY_HAND = "task group by hand"
ANYIO = [
    Contender(BY_HAND, anyio_by_hand, has_order=False),
    Contender("asignals", via(anyio.create_task_group)),
]
ASYNCIO = [
    Contender(BY_HAND, asyncio_by_hand),
    Contender("the promises by hand", promised_by_hand),
    Contender("asignals", via(asyncio.TaskGroup)),
    Contender("Django asend", django_asend, has_order=False),
]


def grouped(kind: str, chosen: list[Contender], count: int, loop: str = "asyncio") -> Case:
    goals = (Goal("asignals", BY_HAND, 1.1),) if count == 10 else ()
    return Case(f"groups/{kind} {count}", partial(prepare_groups, count=count, chosen=chosen), goals, loop)


GROUPS = [
    *(grouped("anyio", ANYIO, count) for count in (2, 10, 100)),
    *(grouped("asyncio", ASYNCIO, count) for count in (2, 10, 100)),
    grouped("trio", ANYIO, 10, "trio"),
]

# -- streams -----------------------------------------------------------------------------------------------------------


async def prepare_ping(stack: AsyncExitStack) -> dict[str, Round]:
    """One task sends an event and takes it."""
    signal = asignals.Signal(["a", "b"])
    events = await stack.enter_async_context(signal.stream())
    sending, receiving = _memory_stream(stack)
    sender = object()
    await signal.send(sender, a=1, b=2)
    event = await anext(events)
    assert (event.sender, dict(event.arguments)) == (sender, {"a": 1, "b": 2})

    async def through_signal(times: int) -> None:
        for _ in repeat(None, times):
            await signal.send(sender, a=1, b=2)
            await anext(events)

    async def by_hand(times: int) -> None:
        for _ in repeat(None, times):
            await sending.send((sender, {"a": 1, "b": 2}))
            await receiving.receive()

    return {
        "memory stream by hand": await time_repeated(by_hand),
        "asignals": await time_repeated(through_signal),
    }


async def prepare_flow(stack: AsyncExitStack) -> dict[str, Round]:
    """One task sends as fast as it may, and another takes."""
    signal = asignals.Signal(["a", "b"])
    events = await stack.enter_async_context(signal.stream())
    sending, receiving = _memory_stream(stack)
    sender = object()

    async def take(source: Any, times: int) -> None:
        for _ in repeat(None, times):
            await anext(source)

    async def through_signal(times: int) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(take, events, times)
            for _ in repeat(None, times):
                await signal.send(sender, a=1, b=2)

    async def by_hand(times: int) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(take, receiving, times)
            for _ in repeat(None, times):
                await sending.send((sender, {"a": 1, "b": 2}))

    return {
        "memory stream by hand": await time_repeated(by_hand, 0.01),
        "asignals": await time_repeated(through_signal, 0.01),
    }


def _memory_stream(stack: AsyncExitStack) -> tuple[MemoryObjectSendStream[Any], MemoryObjectReceiveStream[Any]]:
    sending, receiving = anyio.create_memory_object_stream[Any](64)
    stack.enter_context(sending)
    stack.enter_context(receiving)
    return sending, receiving


STREAM_GOALS = (Goal("asignals", "memory stream by hand", 1.5),)
STREAMS = [
    Case("streams/one task", prepare_ping, STREAM_GOALS),
    Case("streams/two tasks", prepare_flow, STREAM_GOALS),
    Case("streams/two tasks on trio", prepare_flow, STREAM_GOALS, "trio"),
]

# -- background --------------------------------------------------------------------------------------------------------

WORKERS = 10
ROOM = 1000


async def prepare_background(stack: AsyncExitStack, *, count: int) -> dict[str, Round]:
    """Hand over sends faster than they are done, and wait until all are."""
    for run in _run_as_promised, _run_barely:
        await check(Contender("queue", _one_by_one(run), has_order=False), "coroutines", count)
    await check(Contender("asignals", _in_background, has_order=False), "coroutines", count)
    receivers = make("coroutines", count)
    signal = connect_all(asignals.Signal(["a", "b"]), receivers)
    stack.callback(receivers.clear)
    sender = object()
    background = await stack.enter_async_context(asignals.Background(limit=WORKERS, buffer=ROOM))

    async def in_background(times: int) -> None:
        for _ in repeat(None, times):
            await background.send(signal, sender, a=1, b=2)
        assert await background.drain() == 0

    rounds = {
        KEPT: await time_repeated(await _queue_by_hand(stack, _run_as_promised(receivers), sender), 0.01),
        BARE: await time_repeated(await _queue_by_hand(stack, _run_barely(receivers), sender), 0.01),
        "asignals": await time_repeated(in_background, 0.01),
    }
    # Not the same job: the sender waits. It shows what the way through the background costs.
    rounds["asignals send"] = await time_repeated(partial(send_repeatedly, signal.send, sender))
    rounds["Django asend"] = await time_repeated(partial(send_repeatedly, django_asend(receivers), sender))
    return rounds


# A bounded queue and workers, as one would write them who needs what a background promises: each send runs in a copy
# of its sender's context, and an error is logged and stops neither the other receivers nor the worker. For the context,
# the standard library has nothing but a task for each send.
KEPT = "queue and workers by hand"
# The same without both: all run in the workers' context, and the first error would end a worker.
BARE = "without contexts and errors"


def _run_as_promised(receivers: list[Receiver]) -> Callable[[Context, object, dict[str, Any]], Awaitable[object]]:
    async def call_all(sender, named):
        for receiver in receivers:
            try:
                await receiver(signal=SIGNAL, sender=sender, **named)
            except Exception:
                logger.exception("a receiver failed")

    async def run(context, sender, named):
        await asyncio.create_task(call_all(sender, named), context=context)

    return run


def _run_barely(receivers: list[Receiver]) -> Callable[[Context, object, dict[str, Any]], Awaitable[object]]:
    send = LOOPS["coroutines"](receivers)
    return lambda context, sender, named: send(sender, **named)


def _one_by_one(run: Callable[[list[Receiver]], Any]) -> Callable[[list[Receiver]], Send]:
    """What a worker does, for the check that it calls the receivers."""

    def make_send(receivers: list[Receiver]) -> Send:
        return lambda sender, **named: run(receivers)(copy_context(), sender, named)

    return make_send


def _in_background(receivers: list[Receiver]) -> Send:
    signal = connect_all(asignals.Signal(["a", "b"]), receivers)

    async def send(sender, **named):
        async with asignals.Background() as background:
            await background.send(signal, sender, **named)

    return send


async def _queue_by_hand(
    stack: AsyncExitStack, run: Callable[[Context, object, dict[str, Any]], Awaitable[object]], sender: object
) -> Callable[[int], Awaitable[None]]:
    queue: asyncio.Queue[Any] = asyncio.Queue(ROOM)

    async def work() -> None:
        while True:
            context, sender, named = await queue.get()
            try:
                await run(context, sender, named)
            finally:
                queue.task_done()

    group = await stack.enter_async_context(asyncio.TaskGroup())
    for _ in range(WORKERS):
        stack.callback(group.create_task(work()).cancel)

    async def fill(times: int) -> None:
        for _ in repeat(None, times):
            await queue.put((copy_context(), sender, {"a": 1, "b": 2}))
        await queue.join()

    return fill


BACKGROUND = [
    Case(
        f"background/{count}",
        partial(prepare_background, count=count),
        (Goal("asignals", KEPT, 1), Goal("asignals", BARE, limit)),
    )
    for count, limit in ((1, 2.0), (10, 1.7))
]

# -- monitoring --------------------------------------------------------------------------------------------------------


async def prepare_monitor(stack: AsyncExitStack, *, count: int) -> dict[str, Round]:
    """A send while a monitor watches, over one that nobody watches."""
    await check(Contender("watched", _watched), "coroutines", count)
    receivers = make("coroutines", count)
    signal = connect_all(asignals.Signal(["a", "b"]), receivers)
    stack.callback(receivers.clear)
    sender = object()
    reports: list[Any] = []
    send_by_hand = _watched_by_hand(receivers, reports.append)
    await check(Contender("watched by hand", partial(_watched_by_hand, told=reports.append)), "coroutines", count)
    assert [report.receiver is None for report in reports] == [False] * count + [True]
    reports.clear()

    async def watched(send: Send, times: int) -> None:
        with asignals.monitor(reports.append):
            await send_repeatedly(send, sender, times)
        assert len(reports) == times * (count + 1)
        reports.clear()

    return {
        "asignals": await time_repeated(partial(send_repeatedly, signal.send, sender)),
        "asignals watched": await time_repeated(partial(watched, signal.send)),
        WATCHED_BY_HAND: await time_repeated(partial(watched, send_by_hand)),
    }


def _watched(receivers: list[Receiver]) -> Send:
    signal = connect_all(asignals.Signal(["a", "b"]), receivers)

    async def send(sender, **named):
        with asignals.monitor(lambda _: None):
            return await signal.send(sender, **named)

    return send


# What a watched send costs at least, for one who writes just this send by hand: reports of each call and of the whole
# send, with their durations, read-only arguments and the send that this one follows from; a failing monitor is removed.
WATCHED_BY_HAND = "watched by hand"
_current: ContextVar[Any] = ContextVar("current", default=None)


class _Watched:
    def __init__(self, sender, arguments, monitors) -> None:
        self.sender, self.arguments = sender, MappingProxyType(arguments)
        self.parent, self.monitors = _current.get(), monitors

    def end(self, receiver, start, error=None) -> None:
        duration = perf_counter() - start
        facts = SIGNAL, self.sender, self.arguments, receiver, start, duration, error, self, self.parent
        report = tuple.__new__(asignals.Report, facts)
        for each in list(self.monitors):
            try:
                each(report)
            except Exception:
                logger.exception("a monitor failed")
                self.monitors.remove(each)


def _watched_by_hand(receivers: list[Receiver], told: Callable[[Any], object]) -> Send:
    monitors = [told]

    async def send(sender, *, a, b):
        this, begun, results = _Watched(sender, {"a": a, "b": b}, monitors), perf_counter(), []
        _current.set(this)
        try:
            for receiver in receivers:
                start = perf_counter()
                try:
                    results.append((receiver, await receiver(signal=SIGNAL, sender=sender, a=a, b=b)))
                except BaseException as error:
                    this.end(receiver, start, error)
                    raise
                this.end(receiver, start)
        except BaseException as error:
            _current.set(this.parent)
            this.end(None, begun, error)
            raise
        _current.set(this.parent)
        this.end(None, begun)
        return results

    return send


MONITOR = [
    Case(f"monitor/{count}", partial(prepare_monitor, count=count), (Goal("asignals watched", "asignals", 4),))
    for count in (1, 10)
]

CASES: list[Case] = [*GROUPS, *STREAMS, *BACKGROUND, *MONITOR]
