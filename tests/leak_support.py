"""Work that is done again and again, for `test_leaks`, and what is left of it.

`python leak_support.py WORK LOOP STEPS SILENT_STEPS` does `SILENT_STEPS`, then traces memory for seven times `STEPS`.
It prints a line of JSON before and after the former, and before, between and after the latter.
"""

import contextlib
import functools
import gc
import json
import logging
import resource
import sys
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import anyio

from asignals import Background, ReceiverLostWarning, Signal, monitor
from asignals.asgi import SignalMiddleware, request_finished, request_started


class Thing:
    def method(self, **named): ...

    async def async_method(self, **named): ...


async def answer(**named):
    return 1


def fail(**named):
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


async def savepoints():
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    from asignals.sqlalchemy import enable_signals, post_save, pre_save

    class Base(DeclarativeBase): ...

    class Row(Base):
        __tablename__ = "row"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    maker = enable_signals(async_sessionmaker(engine, expire_on_commit=False))
    pre_save.connect(answer, Row)
    post_save.connect(fail_later, Row, on="commit")
    try:
        while True:
            async with maker() as session, session.begin():
                async with session.begin_nested():
                    session.add(Row())
                with contextlib.suppress(ValueError):
                    async with session.begin_nested():
                        session.add(Row())
                        await session.flush()
                        raise ValueError
                row = session.identity_map.values()[0]
                await session.delete(row)
            del row
            yield
    finally:
        await engine.dispose()


WORK = {
    work.__name__: (work, count)  # and how many of its kind one step of it does
    for work, count in {
        sends: 4,
        failing_sends: 3,
        connections: 6,
        signals: 1,
        streams: 3,
        background_sends: 2,
        backgrounds: 1,
        watched_sends: 1,
        requests: 2,
        savepoints: 2,
    }.items()
}
ON_ASYNCIO_ONLY = {"savepoints"}
OF_THE_LOOP = {"failing_sends", "streams", "background_sends"}  # what tasks that wait and fail leave, each loop itself


def resident():
    statm = Path("/proc/self/statm")  # of Linux
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


async def tell(steps):
    for _ in range(2):
        gc.collect()  # the signal hears of the deaths, and forgets the dead with the next step
        await anext(steps)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else None
    objects = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    print(json.dumps({"objects": objects, "memory": memory, "resident": resident()}), flush=True)  # noqa: T201  for test_leaks


async def repeat(steps, times):
    for _ in range(times):
        await anext(steps)


async def main(work, times, silent_times):
    steps = WORK[work][0]()
    await repeat(steps, times)
    await tell(steps)
    await repeat(steps, silent_times)
    await tell(steps)
    tracemalloc.start()
    await repeat(steps, 20)  # what is allocated once while memory is traced
    for _ in range(7):
        await tell(steps)
        await repeat(steps, times)
    await tell(steps)
    tracemalloc.stop()
    await steps.aclose()


if __name__ == "__main__":
    logging.getLogger("asignals").disabled = True
    warnings.simplefilter("ignore", ReceiverLostWarning)
    _, work, loop, *numbers = sys.argv
    anyio.run(main, work, *map(int, numbers), backend=loop)
