"""Whatever is done again and again leaves nothing behind: neither objects nor memory, nor cycles for the collector."""

import contextlib
import contextvars
import gc
import itertools
import json
import logging
import subprocess
import sys
import types
import weakref

import anyio
import leak_support
import pytest
from leak_support import OF_THE_LOOP, ON_ASYNCIO_ONLY, WORK, Thing, answer, fail, fail_later

from asignals import Background, BufferFull, Signal, monitor
from asignals.asgi import SignalMiddleware, got_request_exception, request_finished, request_started

pytestmark = pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning")
SLOW = {"savepoints", "connections"}  # take seconds


@pytest.fixture(autouse=True)
def _silent_log(monkeypatch):
    monkeypatch.setattr(logging.getLogger("asignals"), "disabled", True)


@pytest.fixture
def anyio_backend(backend):
    return backend


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.slow)])
def backend(request):
    return request.param


@types.coroutine
def _suspend():
    yield


async def fail_suspended(**named):
    await _suspend()
    raise ValueError


@pytest.mark.parametrize(
    "work", [pytest.param(work, marks=pytest.mark.slow) if work in SLOW else work for work in WORK]
)
def test_nothing_grows(work, backend, full, long, record_property):
    """Doing it on and on takes neither more objects of any type nor more memory; in a process that does only that."""
    if backend == "trio" and (work in ON_ASYNCIO_ONLY or not (full or work in OF_THE_LOOP)):
        pytest.skip("not on trio, or with --full only")
    steps, silent_steps = (5_000, 1_000_000 // WORK[work][1]) if long else (250 if full else 100, 0)
    if work == "savepoints":
        steps //= 10  # each takes milliseconds
    command = [sys.executable, leak_support.__file__, work, backend, str(steps), str(silent_steps)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20_000).stdout  # noqa: S603
    first, *traced = [json.loads(line) for line in told.splitlines()]
    if long:  # `--junit-xml` shows it
        record_property(f"{silent_steps * WORK[work][1]:,}", [_in_short(mark) for mark in (first, *traced)])
    # What happens now and then, as a table that has to be larger, happens in one stretch. What leaks, leaks in each.
    stretches = list(itertools.pairwise(traced[1:]))
    types = {name for mark in traced for name in mark["objects"]}
    grown = {
        name: least
        for name in types
        if (least := min(after["objects"].get(name, 0) - before["objects"].get(name, 0) for before, after in stretches))
        > 0
    }
    assert grown == {}
    # A byte for each step, or a few where there are few steps. `ExceptionGroup.split` makes the names of methods anew,
    # and CPython's type cache keeps some of them, up to a bound; on 3.11 other calls do so, too.
    splits = work == "failing_sends" or sys.version_info < (3, 12)
    allowed = max(steps, 250) * (20 if splits else 1)
    assert min(after["memory"] - before["memory"] for before, after in stretches) < allowed
    assert traced[0]["resident"] - first["resident"] < 8_000_000  # bytes, for a million


def _in_short(mark):
    return f"{sum(mark['objects'].values()):,} objects, traced memory {mark['memory']}, resident {mark['resident']:,}"


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


def _witnesses():
    return sum(type(thing) is Witness for thing in gc.get_objects())


def _left_by(backend, work):
    """How many witnesses are left of an async function's work, once its exceptions are let go."""
    left = []

    async def main():
        gc.collect()
        gc.disable()
        try:
            await work()
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            left.append(_witnesses())
        finally:
            gc.enable()

    anyio.run(main, backend=backend)
    return left[0]


async def _expect(error, awaitable):
    with contextlib.suppress(error):
        await awaitable
        raise AssertionError


@pytest.mark.parametrize("failing", [fail, fail_later])
@pytest.mark.parametrize("robust", [False, True])
def test_failed_send_in_a_group_leaves_no_cycle(failing, robust, backend):
    """A send in a task group that fails leaves no more than the bare group would; one that is robust, nothing."""
    tested = Signal(["witness"])
    for each in (answer, failing, answer):
        tested.connect(each)
    tested.connect(answer, dispatch_uid="last")
    in_group = tested.using(task_group=anyio.create_task_group)

    async def send():
        if robust:
            await in_group.send_robust(None, witness=Witness())
        else:
            await _expect(ExceptionGroup, in_group.send(None, witness=Witness()))

    async def bare():
        async def run():
            witness = Witness()
            async with anyio.create_task_group() as group:
                group.start_soon(_fail_with, failing, witness)

        await _expect(ExceptionGroup, run())

    assert _left_by(backend, send) <= (0 if robust else _left_by(backend, bare))


async def _fail_with(failing, witness):
    answer = failing(witness=witness)
    if answer is not None:
        await answer


@pytest.mark.parametrize("failing", [fail, fail_later])
def test_failed_background_send_leaves_no_cycle(failing, backend):
    """A background that goes on keeps nothing of a send that failed, nor of its error."""
    tested = Signal(["witness"])
    tested.connect(failing)
    tested.connect(answer)
    errors = []

    async def work():
        async with Background(on_error=errors.append) as background:
            await background.send(tested, None, witness=Witness())
            background.send_nowait(tested, None, witness=Witness())
            await background.drain()
            assert len(errors) == 2
            errors.clear()
            await anyio.lowlevel.checkpoint()
            assert _witnesses() == 0

    assert _left_by(backend, work) == 0


def test_failed_stream_leaves_no_cycle(backend):
    """Neither an error of `where`, nor a full buffer, nor leaving a stream that kept events leaves any."""
    tested = Signal(["witness"])

    async def work():
        async with tested.stream(where=lambda event: 1 / 0):
            await _expect(ZeroDivisionError, tested.send(None, witness=Witness()))
            await tested.send_robust(None, witness=Witness())
            assert _witnesses() == 0
        async with tested.stream(buffer=1, overflow="error"):
            await tested.send(None, witness=Witness())
            await _expect(BufferFull, tested.send(None, witness=Witness()))
            await tested.send_robust(None, witness=Witness())
            assert _witnesses() == 1
        assert _witnesses() == 0
        async with anyio.create_task_group() as group, tested.stream(buffer=1):
            for _ in range(3):
                group.start_soon(lambda: tested.send(None, witness=Witness()))
            await anyio.wait_all_tasks_blocked()
            assert _witnesses() == 3

    assert _left_by(backend, work) == 0


@pytest.mark.parametrize("failing", [fail, fail_later])
def test_failed_request_leaves_no_cycle(failing, backend):
    """When the server has let an application's exception go, nothing of that request is left, nor of its receivers."""

    async def application(scope, receive, send):
        await _fail_with(failing, scope["witness"])

    async def send(message): ...

    signals = (request_started, got_request_exception, request_finished)
    app = SignalMiddleware(application)

    async def work():
        with contextlib.ExitStack() as connected:
            for each in signals:
                connected.enter_context(each.connected(failing))
            await _expect(ValueError, app({"type": "http", "path": "/", "witness": Witness()}, None, send))

    assert _left_by(backend, work) == 0


@pytest.mark.anyio
async def test_a_copied_context_keeps_no_muted_receiver():
    """A context that was copied inside a `muted` block, as every timer does, keeps the block's receivers no longer."""
    tested = Signal()
    thing = Thing()
    tested.connect(thing.method)
    with tested.muted(thing.method):
        copied = contextvars.copy_context()
        assert await tested.send(None) == []
    assert len(await tested.send(None)) == 1
    alive = weakref.ref(thing)
    del thing
    assert alive() is None
    assert copied.run(drive, tested.send(None)) == []


def drive(work):
    """Run a coroutine that suspends nowhere."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError
