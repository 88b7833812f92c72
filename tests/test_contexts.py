"""Which task and `ContextVar`s receivers see in each mode, and where their changes are seen."""

import asyncio
from contextvars import ContextVar, copy_context

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from asignals import Background, Signal
from asignals._core.loops import in_context

pytestmark = pytest.mark.anyio

variable = ContextVar("variable", default="unset")


def connect(signal, where):
    """Connect a receiver that reads and sets the variable; among others or alone, sync, async or in a thread."""
    seen = []

    def sets(**named):
        seen.append(variable.get())
        variable.set("by the receiver")

    async def sets_async(**named):
        sets()

    async def nothing(**named):
        pass

    is_sync = where.startswith(("sync", "thread"))
    signal.connect(sets if is_sync else sets_async, weak=False, in_thread=where.startswith("thread"))
    if not where.endswith("last"):
        signal.connect(nothing, weak=False)
    return seen


@pytest.mark.parametrize(
    ("mode", "where", "afterwards"),
    [
        ("sequential", "sync", "by the receiver"),
        ("sequential", "async", "by the receiver"),
        ("sequential", "thread", "by the sender"),
        ("anyio", "sync", "by the receiver"),
        ("anyio", "async", "by the sender"),
        ("anyio", "last", "by the receiver"),
        ("anyio", "sync, last", "by the receiver"),
        ("anyio", "thread", "by the sender"),
        ("anyio", "thread, last", "by the sender"),
        ("asyncio", "async", "by the sender"),
        ("asyncio", "last", "by the receiver"),
        ("asyncio", "sync", "by the receiver"),
        ("asyncio", "thread", "by the sender"),
        ("background", "sync", "by the sender"),
        ("background", "async", "by the sender"),
        ("background", "thread", "by the sender"),
    ],
)
async def test_context_variables(anyio_backend, mode, where, afterwards):
    """Receivers see the sender's values; what they set is the sender's where they run in its own task."""
    if mode == "asyncio" and anyio_backend[0] == "trio":
        pytest.skip("asyncio.TaskGroup needs asyncio")
    factory = {"anyio": anyio.create_task_group, "asyncio": asyncio.TaskGroup}.get(mode)
    signal = Signal(["x"], task_group=factory)
    seen = connect(signal, where)
    with anyio.fail_after(60):
        variable.set("by the sender")
        if mode == "background":
            async with Background() as background:
                await background.send(signal, None, x=1)
        else:
            await signal.send(None, x=1)
    assert seen == ["by the sender"]
    assert variable.get() == afterwards


@pytest.mark.parametrize("mode", ["sequential", "anyio", "asyncio"])
async def test_receivers_see_what_those_before_them_set_for_the_sender(anyio_backend, mode):
    """Each sees the variables as they are when it begins: in the sender's task, in its own and in a thread."""
    signal = in_mode(mode, anyio_backend)

    def sets(**named):
        variable.set("by the first")

    async def reads_async(**named):
        return variable.get()

    def reads(**named):
        return variable.get()

    signal.connect(sets)
    signal.connect(reads_async)
    signal.connect(reads, in_thread=True)
    signal.connect(reads, dispatch_uid="in the sender's task")
    signal.connect(reads_async, dispatch_uid="last")
    with anyio.fail_after(60):
        variable.set("by the sender")
        results = await signal.send(None, x=1)
    assert [response for _, response in results] == [None, *["by the first"] * 4]


GROUPS = {"sequential": None, "anyio": anyio.create_task_group, "asyncio": asyncio.TaskGroup}


def in_mode(mode, anyio_backend):
    if mode == "asyncio" and anyio_backend[0] == "trio":
        pytest.skip("asyncio.TaskGroup needs asyncio")
    return Signal(["x"], task_group=GROUPS[mode])


async def nothing(**named):
    pass


@pytest.mark.parametrize("mode", GROUPS)
@pytest.mark.parametrize("is_last", [True, False])
async def test_deadlines_cancel_async_receivers(anyio_backend, mode, is_last):
    """A deadline around a send ends the receivers, wherever they run."""
    signal = in_mode(mode, anyio_backend)
    ended = []

    async def waits(**named):
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(1)

    signal.connect(waits)
    if not is_last:
        signal.connect(nothing)
    with anyio.fail_after(60), anyio.move_on_after(0.01) as scope:
        await signal.send(None, x=1)
    assert scope.cancelled_caught
    assert ended == [1]


@pytest.mark.parametrize("mode", GROUPS)
@pytest.mark.parametrize("in_thread", [True, False])
async def test_deadlines_do_not_stop_sync_receivers(anyio_backend, mode, in_thread):
    """A sync receiver runs to its end first, also in a thread; those after it are cancelled."""
    signal = in_mode(mode, anyio_backend)
    ended = []
    scope = anyio.CancelScope()

    def cancels(**named):
        if in_thread:
            anyio.from_thread.run_sync(scope.cancel)
        else:
            scope.cancel()
        ended.append(1)

    signal.connect(cancels, in_thread=in_thread)
    signal.connect(waits_forever)
    with anyio.fail_after(60), scope:
        await signal.send(None, x=1)
    assert scope.cancelled_caught
    assert ended == [1]


async def waits_forever(**named):
    await anyio.sleep_forever()


@pytest.mark.parametrize("mode", ["sequential", "anyio", "asyncio"])
@pytest.mark.parametrize("is_last", [True, False])
async def test_shielded_clean_up_ends_before_the_send(anyio_backend, mode, is_last):
    """What a receiver does in a shielded scope after its cancellation is done when the send returns."""
    signal = in_mode(mode, anyio_backend)
    log = []

    async def cleans_up(**named):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                log.append("clean")

    signal.connect(cleans_up)
    if not is_last:
        signal.connect(nothing)
    with anyio.fail_after(60), anyio.move_on_after(0.01) as scope:
        await signal.send(None, x=1)
    log.append("returned")
    assert scope.cancelled_caught
    assert log == ["clean", "returned"]


@pytest.mark.parametrize("mode", GROUPS)
@pytest.mark.parametrize("is_last", [True, False])
async def test_shields_hold_but_in_asyncio_s_group(anyio_backend, mode, is_last):
    """A shield that is entered before the deadline holds it off, but not the native cancellation of asyncio's tasks."""
    signal = in_mode(mode, anyio_backend)
    log = []

    async def is_shielded(**named):
        with anyio.CancelScope(shield=True):
            scope.cancel()
            try:
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class():
                log.append("cancelled")
                raise
            log.append("done")

    signal.connect(is_shielded)
    if not is_last:
        signal.connect(waits_forever)
    with anyio.fail_after(60), anyio.CancelScope() as scope:
        await signal.send(None, x=1)
    assert log == ["cancelled" if mode == "asyncio" and not is_last else "done"]


async def test_a_background_knows_no_deadline_of_the_sender():
    """A deadline around `Background.send` is over with it; the receiver goes on, and ends before the block does."""
    signal = Signal(["x"])
    go_on, ended = anyio.Event(), []

    async def waits(**named):
        await go_on.wait()
        ended.append(anyio.current_effective_deadline())

    signal.connect(waits)
    with anyio.fail_after(5) as limit:
        async with Background() as background:
            with anyio.CancelScope() as scope:
                await background.send(signal, None, x=1)
                scope.cancel()
            go_on.set()
    assert ended == [limit.deadline]


async def test_a_background_runs_in_the_context_of_each_call():
    """Receivers see the variables as they were at the call of `send` or `send_nowait`, whatever they are by then."""
    signal = Signal()
    seen = connect(signal, "async")
    with anyio.fail_after(60):
        async with Background(limit=1) as background:
            variable.set(1)
            await background.send(signal, None)
            variable.set(2)
            background.send_nowait(signal, None)
            variable.set(3)
            assert seen == []
    assert seen == [1, 2]


async def test_closing_what_runs_in_another_context():
    """A coroutine that is closed while it waits there cleans up in its own context."""
    context = copy_context()
    log = []

    async def works():
        variable.set("inside")
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            log.append(variable.get())

    async def awaits():
        await in_context(context, works())

    coroutine = awaits()
    coroutine.send(None)
    coroutine.close()
    assert log == ["inside"]
    assert variable.get() == "unset"
