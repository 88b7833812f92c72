"""Whatever is done again and again leaves nothing behind: neither objects nor memory, nor cycles for the collector."""

import contextlib
import functools
import gc
import logging
import tracemalloc
import types

import anyio
import pytest

from asignals import Background, Signal, monitor
from asignals.asgi import SignalMiddleware, request_finished, request_started

pytestmark = pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning")


@pytest.fixture(autouse=True)
def _silent_log(monkeypatch):
    monkeypatch.setattr(logging.getLogger("asignals"), "disabled", True)


@pytest.fixture
def anyio_backend(backend):
    return backend


@pytest.fixture(params=["asyncio", "trio"])
def backend(request):
    return request.param


class Thing:
    def method(self, **named): ...

    async def async_method(self, **named): ...


async def answer(**named):
    return 1


def fail(**named):
    raise ValueError


@types.coroutine
def _suspend():
    yield


async def fail_suspended(**named):
    await _suspend()
    raise ValueError


async def fail_later(**named):
    await anyio.lowlevel.checkpoint()
    raise ValueError


async def _send_all_ways(tested):
    await tested.send(None, n=1)
    await tested.send_robust(Thing(), n=1)
    await tested.send("sender", n=1)
    await tested.using(task_group=anyio.create_task_group, limit=2).send(None, n=1)


async def sends():
    tested = Signal(["n"])
    things = [Thing() for _ in range(3)]
    for thing in things:
        tested.connect(thing.method)
        tested.connect(thing.async_method)
    while True:
        yield await _send_all_ways(tested)


async def failing_sends():
    tested = Signal()
    for receiver in (answer, fail_later, fail):
        tested.connect(receiver)
    while True:
        await tested.send_robust(None, n=1)
        for used in (tested, tested.using(task_group=anyio.create_task_group)):
            with contextlib.suppress(ValueError, ExceptionGroup):
                await used.send(None, n=1)
        yield


async def connections():
    tested = Signal()
    while True:
        thing, sender = Thing(), Thing()
        tested.connect(thing.method)
        tested.connect(thing.async_method, sender, dispatch_uid="uid", priority=1)
        tested.connect(answer, type("Sender", (), {}), subclasses=True)
        tested.connect(answer, str(id(sender)))
        tested.connect(functools.partial(answer, thing), object(), weak=False, once=True)
        with tested.connected(answer, sender), tested.muted(answer), tested.muted(everywhere=True):
            await tested.send(sender, n=1)
        await tested.send(sender, n=1)
        tested.disconnect(answer, str(id(sender)))
        for connection in tested.connections:
            if connection.receiver is not None and not connection.weak:
                tested.disconnect(connection.receiver, connection.sender)
        del thing, sender, connection
        yield


async def signals():
    while True:
        tested = Signal(["n"])
        tested.connect(answer)
        await tested.send(None, n=1)
        yield


async def streams():
    tested = Signal(["n"])
    while True:
        async with tested.stream(buffer=2) as events, tested.stream("sender", overflow="drop_oldest", buffer=1):
            await tested.send("sender", n=1)
            await tested.send("sender", n=2)
            await anext(events)
        async with anyio.create_task_group() as group:
            group.start_soon(tested.wait)
            while not tested.has_listeners():
                await anyio.lowlevel.checkpoint()
            await tested.send(None, n=3)
        yield


async def background_sends():
    tested = Signal(["n"])
    tested.connect(answer)
    tested.connect(fail)
    async with Background(limit=2, buffer=2) as background:
        while True:
            await background.send(tested, None, n=1)
            background.send_nowait(tested, None, n=1)
            await background.drain()
            yield


async def backgrounds():
    tested = Signal(["n"])
    tested.connect(answer)
    while True:
        async with Background() as background:
            await background.send(tested, None, n=1)
        yield


async def watched_sends():
    tested = Signal(["n"])
    tested.connect(answer)
    tested.connect(fail_later)
    while True:
        with monitor(lambda report: None):
            await tested.send_robust(None, n=1)
        yield


async def requests():
    async def application(scope, receive, send):
        if scope["path"] == "/error":
            raise ValueError
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message): ...

    app = SignalMiddleware(application)
    with request_started.connected(answer), request_finished.connected(fail_later):
        while True:
            await app({"type": "http", "path": "/"}, None, send)
            with contextlib.suppress(ValueError):
                await app({"type": "http", "path": "/error"}, None, send)
            yield


WORK = [sends, failing_sends, connections, signals, streams, background_sends, backgrounds, watched_sends, requests]


async def _measured(steps):
    gc.collect()  # the signal hears of the deaths, and forgets the dead with the next step
    await anext(steps)
    gc.collect()
    return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]


@pytest.mark.anyio
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
async def test_nothing_grows(work, long):
    """After a warm-up, doing it on and on takes neither more objects nor more memory."""
    times = 300_000 if long else 100
    steps = work()
    for _ in range(100):
        await anext(steps)
    tracemalloc.start()
    for _ in range(20):  # what is allocated once while memory is traced
        await anext(steps)
    for _ in range(3):  # a table may have to grow, once
        before, memory = await _measured(steps)
        for _ in range(times):
            await anext(steps)
        after, more_memory = await _measured(steps)
        if more_memory - memory < 20_000:
            break
    tracemalloc.stop()
    await steps.aclose()
    # One for each time would be a hundred objects.
    assert after - before < 20
    assert more_memory - memory < 20_000


def _fail_sequentially(tested, run):
    run(tested.send)


def _fail_robustly(tested, run):
    run(tested.send_robust)


def _fail_watched(tested, run):
    with monitor(lambda report: None):
        run(tested.send)


def _fail_robustly_watched(tested, run):
    with monitor(lambda report: None):
        run(tested.send_robust)


class Witness:
    """An argument of a send: while it lives, so does a frame of that send."""


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("failing", [fail, fail_suspended])
@pytest.mark.parametrize(
    "kind", [_fail_sequentially, _fail_robustly, _fail_watched, _fail_robustly_watched], ids=lambda kind: kind.__name__
)
def test_failed_send_leaves_no_cycle(kind, failing, declared):
    """When the exception of a send, or its results, are let go, everything of that send dies without the collector."""
    tested = Signal(["witness"] if declared else None)
    tested.connect(answer)
    tested.connect(failing)
    tested.connect(answer, "another")

    def run(send):
        work = send(None, witness=Witness())
        with contextlib.suppress(StopIteration, ValueError):
            while True:
                work.send(None)  # no loop, and so none of its own cycles

    gc.collect()
    gc.disable()
    try:
        kind(tested, run)
        left = [thing for thing in gc.get_objects() if type(thing) is Witness]
        assert left == []
    finally:
        gc.enable()


@pytest.mark.parametrize("failing", [fail, fail_later])
def test_robust_send_in_a_group_leaves_no_cycle(failing, backend):
    """When the results of a robust send in a task group are let go, it dies whole, without the collector."""
    tested = Signal(["witness"])
    for receiver in (answer, failing, answer):
        tested.connect(receiver)
    tested.connect(answer, dispatch_uid="last")
    found = []

    def run(send):
        async def main():
            gc.collect()
            gc.disable()
            await send(None, witness=Witness())
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            found.extend(type(thing) for thing in gc.get_objects() if type(thing) is Witness)
            gc.enable()

        anyio.run(main, backend=backend)

    run(tested.using(task_group=anyio.create_task_group).send_robust)
    assert found == []
