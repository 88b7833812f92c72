"""Sends that run in the background: bounded, drained, and never lost silently."""

import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import signal as signals
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ProcessPoolExecutor
from contextvars import copy_context

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from asignals import Background, Signal
from asignals._core.loops import cancellation, lock

pytestmark = pytest.mark.anyio


@pytest.fixture
def signal():
    return Signal(["x"])


@pytest.fixture
def seen(signal):
    seen = []

    async def receives(x, **named):
        await anyio.lowlevel.checkpoint()
        seen.append(x)

    signal.connect(receives, weak=False)
    return seen


async def test_leaving_drains_what_was_accepted_also_when_the_block_raises(signal, seen):
    """An error in the block is raised after everything has been done."""
    with anyio.fail_after(5), pytest.raises(LookupError):  # noqa: PT012  the block is what raises
        async with Background(limit=1, buffer=10) as background:
            for number in range(5):
                await background.send(signal, None, x=number)
            raise LookupError
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("buffer", [0, 1])
async def test_there_is_room_for_limit_and_buffer(signal, seen, buffer):
    """`send_nowait` raises when both are full, and says so."""
    with anyio.fail_after(5):
        async with Background(limit=1, buffer=buffer) as background:
            for number in range(1 + buffer):
                background.send_nowait(signal, None, x=number)
            with pytest.raises(anyio.WouldBlock, match="has no capacity"):
                background.send_nowait(signal, None, x=9)
    assert seen == list(range(1 + buffer))


async def test_as_many_sends_as_the_limit_run_at_once(signal):
    """All begin in order: at once, from the buffer, and those that waited for room in order of waiting."""
    begun, go_on = [], anyio.Event()

    async def receives(x, **named):
        begun.append(x)
        await go_on.wait()

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=3, buffer=2) as background, anyio.create_task_group() as group:
            for number in range(7):
                group.create_task(background.send(signal, None, x=number))
                await anyio.wait_all_tasks_blocked()
            assert begun == [0, 1, 2]
            assert background.statistics() == (3, 2, 2, 5, 0, 0, 3, 2)
            go_on.set()
    assert begun == list(range(7))
    assert background.statistics() == (0, 0, 0, 7, 7, 0, 3, 2)


async def test_leaving_refuses_what_comes_then_and_takes_what_waits_for_room(signal):
    """A sender that has waited since before is accepted while the block drains; one that comes then is refused."""
    seen, leave, go_on = [], anyio.Event(), anyio.Event()

    async def receives(x, **named):
        await go_on.wait()
        seen.append(x)

    async def leaves():
        async with background:
            await leave.wait()

    signal.connect(receives)
    background = Background(limit=1, buffer=0)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for work in (leaves(), background.send(signal, None, x=0), background.send(signal, None, x=1)):
                group.create_task(work)
                await anyio.wait_all_tasks_blocked()
            leave.set()
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.ClosedResourceError):
                await background.send(signal, None, x=2)
            with pytest.raises(anyio.ClosedResourceError):
                background.send_nowait(signal, None, x=2)
            assert "draining, 1 sends" in repr(background)
            go_on.set()
    assert seen == [0, 1]


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("buffer", [0, 1])
async def test_receivers_may_send_to_their_own_background(signal, limit, buffer):
    """Sends from receivers never wait, in any depth, from threads and from tasks: nothing deadlocks or is lost."""
    seen = []

    async def receives(x, **named):
        if x:
            await background.send(signal, None, x=x - 1)
            async with anyio.create_task_group() as group:
                group.create_task(background.send(signal, None, x=x - 1))
            await anyio.to_thread.run_sync(lambda: background.send_nowait(signal, None, x=x - 1))
        seen.append(x)

    signal.connect(receives)
    with anyio.fail_after(10):
        async with Background(limit=limit, buffer=buffer) as background:
            await background.send(signal, None, x=3)
    assert len(seen) == 1 + 3 + 9 + 27


async def test_receivers_wait_for_room_in_other_backgrounds(signal):
    """Only in the background that it runs in does a receiver find room where there is none."""
    other, go_on, refused = Signal(), anyio.Event(), []

    async def waits(**named):
        await go_on.wait()

    def sends(**named):
        try:
            full.send_nowait(signal, None, x=2)
        except anyio.WouldBlock as error:
            refused.append(error)

    signal.connect(waits)
    other.connect(sends)
    with anyio.fail_after(5):
        async with Background(limit=1, buffer=0) as full, Background() as background:
            full.send_nowait(signal, None, x=1)
            background.send_nowait(other, None)
            await background.drain()
            go_on.set()
    assert len(refused) == 1


async def test_a_view_is_sent_in_its_own_way(signal):
    """Receivers of a view with a task group run at the same time in the background, too."""
    event, seen = anyio.Event(), []

    async def waits(**named):
        await event.wait()
        seen.append("told")

    async def tells(**named):
        event.set()

    signal.connect(waits)
    signal.connect(tells)
    with anyio.fail_after(5):
        async with Background() as background:
            await background.send(signal.using(task_group=anyio.create_task_group), None, x=1)
    assert seen == ["told"]


async def test_closed_before_and_after(signal):
    """Before the block and after it, sends are refused, and so is a second entrance."""
    background = Background()
    with anyio.fail_after(5):
        with pytest.raises(anyio.ClosedResourceError, match="while its block"):
            await background.send(signal, None, x=1)
        async with background:
            pass
        with pytest.raises(anyio.ClosedResourceError, match="while its block"):
            background.send_nowait(signal, None, x=1)
        with pytest.raises(RuntimeError, match="once"):
            await background.__aenter__()


async def test_arguments_are_checked_at_the_call(signal):
    """A send that does not fit the signal is refused where it is made."""
    with anyio.fail_after(5):
        async with Background() as background:
            with pytest.raises(TypeError):
                await background.send(signal, None, y=1)
            with pytest.raises(TypeError):
                background.send_nowait(signal, None)
            for thing in ("shop.sold", print, None):
                with pytest.raises(
                    TypeError, match=r"a Background sends signals, not builtins.*write send\(signal, sender, \.\.\.\)"
                ):
                    await background.send(thing, None, x=1)
                with pytest.raises(
                    TypeError, match=r"a Background sends signals, not builtins.*write send\(signal, sender, \.\.\.\)"
                ):
                    background.send_nowait(thing, None, x=1)


@pytest.mark.parametrize("kind", ["sync", "async", "failing", "cancelling"])
async def test_errors_are_reported_once_and_stop_nobody(signal, anyio_backend, caplog, kind):
    """Each error is logged and given to `on_error` once, whatever that does."""
    if kind == "cancelling" and anyio_backend[0] == "trio":
        pytest.skip("trio's cancellation cannot be raised by oneself")
    reported = []

    def on_error(error):
        reported.append(error)
        if kind == "failing":
            raise LookupError
        if kind == "cancelling":
            raise asyncio.CancelledError

    async def on_error_async(error):
        await anyio.lowlevel.checkpoint()
        reported.append(error)

    def receives(x, **named):
        raise OSError(x)

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=1, on_error=on_error_async if kind == "async" else on_error) as background:
            for number in range(3):
                await background.send(signal, None, x=number)
    assert [error.args for error in reported] == [(0,), (1,), (2,)]
    assert background.statistics().errors == background.statistics().done == 3
    assert sum("failed as a receiver" in message for message in caplog.messages) == 3


async def test_an_error_without_an_on_error_is_logged_and_that_is_all(signal, caplog):
    """A background needs no `on_error`: a receiver's error is logged once and counted."""

    def receives(**named):
        raise OSError

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background() as background:
            await background.send(signal, None, x=1)
    assert background.statistics().errors == 1
    assert ["failed as a receiver" in message for message in caplog.messages] == [True]


async def test_a_receiver_that_raises_the_cancellation_itself(signal, anyio_backend, caplog):
    """It is an error of that send, and logged; the background and its block go on."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio's cancellation cannot be raised by oneself")
    seen, errors = [], []

    async def receives(x, **named):
        if x == 1:
            raise asyncio.CancelledError
        await anyio.lowlevel.checkpoint()
        seen.append(x)

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=1, on_error=errors.append) as background:
            for number in range(3):
                await background.send(signal, None, x=number)
            assert await background.drain() == 0
            seen.append("still in the block")
    assert seen == [0, 2, "still in the block"]
    assert [type(error) for error in errors] == [RuntimeError]
    assert "nothing cancelled it" in str(errors[0])
    assert len(caplog.messages) == 1


class Stop(BaseException):
    pass


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, SystemExit])
async def test_a_base_exception_ends_the_background(signal, caplog, anyio_backend, kind):
    """It cancels the others and the block, and is raised in a group; what was not delivered is said."""
    if kind is not Stop and anyio_backend[0] == "asyncio":
        pytest.skip("asyncio ends the whole loop by it")

    async def receives(x, **named):
        await anyio.lowlevel.checkpoint()
        raise kind

    signal.connect(receives)
    background = Background(limit=1)
    with anyio.fail_after(5), pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012  the block is what raises
        async with background:
            await background.send(signal, None, x=0)
            await background.send(signal, None, x=1)
            await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [kind]
    assert await background.drain() == 2
    assert "not delivered: 2 of" in caplog.text


@pytest.mark.parametrize("when", ["in the block", "while draining"])
async def test_stopping_in_the_middle_says_what_was_not_delivered(signal, caplog, when):
    """Cancellation cancels the receivers; the events that they did not finish are counted and logged."""

    async def receives(x, **named):
        if x:
            await anyio.sleep_forever()

    signal.connect(receives)
    background = Background(limit=2)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with background:
            for number in range(5):
                await background.send(signal, str(number), x=number)
            await anyio.wait_all_tasks_blocked()
            if when == "in the block":
                scope.cancel()
                await anyio.lowlevel.checkpoint()
            else:
                async with anyio.create_task_group() as group:
                    group.cancel_scope.shield = True
                scope.deadline = anyio.current_time()
    assert await background.drain() == 4
    assert [record.name for record in caplog.records] == ["asignals"]
    assert "not delivered: 4 of" in caplog.text
    statistics = background.statistics()
    assert (statistics.accepted, statistics.done, statistics.running, statistics.waiting) == (5, 1, 0, 0)


async def test_a_task_that_is_cancelled_inside_of_the_block_cancels_the_receivers(signal, anyio_backend):
    """A native cancellation ends them as that of a scope does, instead of waiting for them."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no native cancellation")
    ended = []

    async def receives(x, **named):
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(x)

    async def runs():
        async with Background() as background:
            await background.send(signal, None, x=1)
            await anyio.sleep_forever()

    signal.connect(receives)
    task = asyncio.get_running_loop().create_task(runs())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
        await task
    assert ended == [1]


async def test_draining_for_a_time(signal):
    """`drain` cancels nothing, and returns how many are left."""
    go_on = anyio.Event()

    async def receives(x, **named):
        await go_on.wait()

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=1) as background:
            assert await background.drain(0) == 0
            for number in range(3):
                await background.send(signal, None, x=number)
            assert await background.drain(0) == 3
            async with anyio.create_task_group() as group:
                group.start_soon(background.drain)
                group.start_soon(background.drain, None)
                await anyio.wait_all_tasks_blocked()
                go_on.set()
            assert await background.drain() == 0


async def test_draining_does_not_wait_for_newer_sends(signal):
    """`drain` ends with the sends that were accepted before it, and counts newer ones among those that are left."""
    go_on = [anyio.Event(), anyio.Event()]
    left = []

    async def receives(x, **named):
        await go_on[x].wait()

    async def drains():
        left.append(await background.drain())

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=2) as background, anyio.create_task_group() as group:
            await background.send(signal, None, x=0)
            group.start_soon(drains)
            await anyio.wait_all_tasks_blocked()
            await background.send(signal, None, x=1)
            go_on[0].set()
            await anyio.wait_all_tasks_blocked()
            assert left == [1]
            go_on[1].set()


async def test_a_send_that_is_cancelled_before_there_is_room_sends_nothing(signal):
    """Nor does it when room comes."""
    seen, go_on = [], anyio.Event()

    async def receives(x, **named):
        seen.append(x)
        await go_on.wait()

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=1, buffer=0) as background:
            await background.send(signal, None, x=0)
            async with anyio.create_task_group() as group:
                group.create_task(background.send(signal, None, x=1))
                await anyio.wait_all_tasks_blocked()
                assert background.statistics().blocked == 1
                group.cancel_scope.cancel()
            assert background.statistics().blocked == 0
            go_on.set()
    assert seen == [0]


async def test_draining_counts_no_newer_sends_that_are_done_before(signal):
    """It waits for those that were accepted before it, though as many others are done meanwhile."""
    go_on, drained = anyio.Event(), []

    async def receives(x, **named):
        if x == 0:
            await go_on.wait()

    async def drains():
        drained.append(await background.drain())

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background() as background, anyio.create_task_group() as group:
            await background.send(signal, None, x=0)
            group.create_task(drains())
            await anyio.wait_all_tasks_blocked()
            await background.send(signal, None, x=1)
            await anyio.wait_all_tasks_blocked()
            assert (background.statistics().done, drained) == (1, [])
            go_on.set()
    assert drained == [0]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_another_thread_may_drain(signal, backend):
    """`drain` waits in the event loop that calls it."""
    go_on = anyio.Event()
    left = []

    async def receives(x, **named):
        await go_on.wait()

    def drains():
        left.append(anyio.run(background.drain, backend=backend))

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background() as background, anyio.create_task_group() as group:
            await background.send(signal, None, x=1)
            group.start_soon(anyio.to_thread.run_sync, drains)
            while not background._drains:
                await anyio.lowlevel.checkpoint()
            go_on.set()
    assert left == [0]


async def test_a_receiver_cannot_drain_its_own_background(signal):
    """It would wait for itself, and is told so."""
    errors = []

    async def receives(x, **named):
        await background.drain()

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(on_error=errors.append) as background:
            await background.send(signal, None, x=1)
    assert "wait for itself" in str(errors[0])


async def test_a_send_made_while_muted_reaches_nobody(signal, seen):
    """A background send belongs to the block it was made in, also when it runs later; others are heard."""
    with anyio.fail_after(5):
        for first in (Background.send, Background.send_nowait):
            async with Background() as background:
                with signal.muted():
                    sent = first(background, signal, None, x=0)
                    if sent is not None:
                        await sent
        async with Background(limit=1) as background:
            for everywhere in (False, True):
                await background.send(signal, None, x=1)
                with signal.muted(everywhere=everywhere):
                    await background.send(signal, None, x=2)
                    background.send_nowait(signal, None, x=2)
                await background.send(signal, None, x=3)
    assert seen == [1, 3, 1, 3]
    assert signal._registry.mutes == frozenset()


async def test_threads_may_send(signal, seen):
    """`send_nowait` works from any thread, `send` from another's loop, waiting there; receivers run in their own."""
    total = 20
    homes = set()

    def tells(**named):
        homes.add(threading.get_ident())

    signal.connect(tells)

    async def sends():
        for number in range(total):
            await background.send(signal, None, x=number)

    def run(backend):
        anyio.run(sends, backend=backend)

    with anyio.fail_after(10):
        async with Background(limit=1, buffer=1) as background:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, run, "asyncio")
                group.start_soon(anyio.to_thread.run_sync, run, "trio")
            await background.drain()
            await anyio.to_thread.run_sync(lambda: background.send_nowait(signal, None, x="thread"))
    assert len(seen) == 2 * total + 1
    assert [x for x in seen if x == total - 1] == [total - 1] * 2
    assert homes == {threading.get_ident()}


async def test_senders_in_other_threads_while_it_closes(signal, seen):
    """A send from another thread is either accepted, and then done, or refused."""
    outcomes = []

    async def sends():
        try:
            while True:
                await background.send(signal, None, x=1)
                outcomes.append("accepted")
        except anyio.ClosedResourceError:
            outcomes.append("refused")

    thread = threading.Thread(target=lambda: anyio.run(sends))
    with anyio.fail_after(10):
        async with Background(limit=1, buffer=1) as background:
            thread.start()
            while len(seen) < 5:
                await anyio.lowlevel.checkpoint()
        await anyio.to_thread.run_sync(thread.join)
    assert outcomes.count("accepted") == len(seen) == background.statistics().done
    assert outcomes[-1] == "refused"


def test_a_loop_between_two_runs_can_be_sent_to(signal, seen):
    """A send from the loop's own thread while it does not run is done when it runs again."""
    loop = asyncio.new_event_loop()
    ready, leave = asyncio.Event(), asyncio.Event()

    async def main():
        async with Background() as background:
            signal_from_outside.append(background)
            ready.set()
            await leave.wait()

    signal_from_outside = []
    task = loop.create_task(main())
    try:
        loop.run_until_complete(ready.wait())
        signal_from_outside[0].send_nowait(signal, None, x=1)
        leave.set()
        loop.run_until_complete(asyncio.wait_for(asyncio.shield(task), 3))
    finally:
        loop.close()
    assert seen == [1]


@pytest.mark.slow
async def test_many_sends_hold_memory_flat_and_lose_nothing(anyio_backend, signal):
    """100,000 sends with a limit of 100 are all done, and leave nothing behind."""
    if anyio_backend[1]:
        pytest.skip("once for each kind of loop is enough") if anyio_backend[1].get("use_uvloop") is not False else None
    done = 0

    async def receives(x, **named):
        nonlocal done
        done += 1

    signal.connect(receives)
    with anyio.fail_after(60):
        async with Background(limit=100) as background:
            for number in range(10_000):
                await background.send(signal, None, x=number)
            await background.drain()
            gc.collect()
            tracemalloc.start(1)
            try:
                for number in range(10_000, 20_000):
                    await background.send(signal, None, x=number)
                await background.drain()
                gc.collect()
                grown, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            for number in range(20_000, 100_000):
                await background.send(signal, None, x=number)
    assert done == background.statistics().done == 100_000
    assert grown < 500_000, f"{grown} bytes were kept of 10,000 sends"


@pytest.fixture(autouse=True)
def _log_errors(caplog):
    caplog.set_level(logging.WARNING, "asignals")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_receiver_ends_asyncio_s_loop(signal, caplog, kind):
    """It comes out of `run`, as from any task, and the background says what was not delivered."""

    async def receives(x, **named):
        await anyio.lowlevel.checkpoint()
        raise kind

    signal.connect(receives)

    async def main():
        async with Background(limit=1) as background:
            await background.send(signal, None, x=0)
            await background.send(signal, None, x=1)
            await anyio.sleep_forever()

    with pytest.raises(kind):
        asyncio.run(main())
    assert "not delivered: 2 of" in caplog.text


def cancel_workers():
    """Cancel the tasks of all backgrounds, as code that does not know of them might."""
    workers = [task for task in asyncio.all_tasks() if task.get_name() == "asignals.Background worker"]
    assert workers
    for task in workers:
        task.cancel()


@pytest.mark.filterwarnings("ignore:coroutine 'Background._work' was never awaited")  # by anyio, which has made it
async def test_a_worker_that_is_cancelled_before_it_began(signal, seen, anyio_backend):
    """Its group then ends, and the background says so, and what was not delivered."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no native cancellation")
    background = Background(limit=1)
    with anyio.fail_after(5), pytest.raises(RuntimeError, match="cancelled by other code"):  # noqa: PT012
        async with background:
            background.send_nowait(signal, None, x=1)
            cancel_workers()
            await anyio.sleep_forever()
    assert seen == []
    assert await background.drain() == 1
    gc.collect()


async def test_a_receiver_that_cancels_its_own_task(signal, anyio_backend):
    """It ends the background, which says so, and what was not delivered."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no native cancellation")

    async def receives(x, **named):
        asyncio.current_task().cancel()
        await anyio.lowlevel.checkpoint()

    signal.connect(receives)
    background = Background(limit=1)
    with anyio.fail_after(5), pytest.raises(RuntimeError, match="cancelled by other code"):  # noqa: PT012
        async with background:
            await background.send(signal, None, x=1)
            await background.send(signal, None, x=2)
            await anyio.sleep_forever()
    assert await background.drain() == 2


async def test_an_on_error_that_is_cancelled_with_the_background(signal):
    """The cancellation passes through; it is no failure of `on_error`."""
    begun = anyio.Event()

    async def on_error(error):
        begun.set()
        await anyio.sleep_forever()

    def receives(x, **named):
        raise OSError(x)

    signal.connect(receives)
    background = Background(limit=1, on_error=on_error)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with background:
            await background.send(signal, None, x=1)
            await begun.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert await background.drain() == 1


async def test_an_error_of_the_send_itself_is_reported(signal, caplog, monkeypatch):
    """Whatever fails before receivers are called is logged and given to `on_error`, and the worker goes on."""
    errors = []

    async def fails(sender, **named):
        raise LookupError

    with anyio.fail_after(5):
        async with Background(limit=1, on_error=errors.append) as background:
            with monkeypatch.context() as patch:
                patch.setattr(type(signal), "send_robust", staticmethod(fails))
                await background.send(signal, None, x=1)
                await background.drain()
            await background.send(signal, None, x=2)
    assert [type(error) for error in errors] == [LookupError]
    assert "a background send of signal" in caplog.text
    assert background.statistics().done == 2


async def test_a_sender_in_another_thread_is_refused_when_the_background_is_cancelled(signal):
    """One that waits for room then is not accepted, and is told so."""
    outcomes = []

    async def receives(x, **named):
        await anyio.sleep_forever()

    async def sends():
        try:
            await background.send(signal, None, x=2)
        except anyio.ClosedResourceError:
            outcomes.append("refused")

    signal.connect(receives)
    background = Background(limit=1, buffer=0)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with background:
                    await background.send(signal, None, x=1)
                    group.start_soon(sends)
                    await anyio.wait_all_tasks_blocked()
                    assert "open, 1 sends to do" in repr(background)
                    scope.cancel()
    assert outcomes == ["refused"]
    assert await background.drain() == 1
    assert repr(background) == "<asignals.Background, closed, 0 sends to do>"


async def test_draining_ends_when_the_background_is_cancelled(signal):
    """Whoever waits for it from outside is told how many sends were not done."""
    left = []

    async def receives(x, **named):
        await anyio.sleep_forever()

    async def drains():
        left.append(await background.drain())

    signal.connect(receives)
    background = Background(limit=1)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with background:
                    for number in range(3):
                        await background.send(signal, None, x=number)
                    group.start_soon(drains)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
        assert await background.drain() == 3
    assert left == [3]


def test_a_loop_that_has_ended_takes_no_sends(signal):
    """A send to a background whose loop ended under it is refused."""
    backgrounds = []

    async def enters():
        backgrounds.append(await Background().__aenter__())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(enters())
    loop.close()
    with pytest.raises(anyio.ClosedResourceError):
        backgrounds[0].send_nowait(signal, None, x=1)
    assert backgrounds[0].statistics().accepted == 0
    backgrounds[0]._group.cancel_scope._host_task = None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TypeError, {"limit": 1.5}),
        (TypeError, {"limit": True}),
        (TypeError, {"buffer": "1"}),
        (ValueError, {"limit": 0}),
        (ValueError, {"buffer": -1}),
        (TypeError, {"on_error": 3}),
    ],
    ids=str,
)
async def test_options_of_another_kind_are_refused(kind, options):
    """The message names the option."""
    with pytest.raises(kind, match=next(iter(options))):
        Background(**options)


async def test_sniffio_need_not_be_there(signal, seen, monkeypatch):
    """Without it, as with it, sends from other threads are done."""
    monkeypatch.setitem(sys.modules, "sniffio", None)
    with anyio.fail_after(5):
        async with Background(limit=1) as background:
            await anyio.to_thread.run_sync(lambda: background.send_nowait(signal, None, x=1))
    assert seen == [1]


def test_outside_of_a_loop_nothing_is_a_cancellation():
    """As when the collector closes a coroutine whose loop has ended."""
    assert cancellation() == ()


async def test_who_hears_is_settled_at_the_call(signal):
    """A receiver that is connected while a send waits hears the next one; one that has left hears no more."""
    heard, go_on = [], anyio.Event()

    async def waits(x):
        await go_on.wait()

    def leaves(x):
        heard.append(("leaves", x))

    def comes(x):
        heard.append(("comes", x))

    signal.connect(waits)
    signal.connect(leaves)
    with anyio.fail_after(5):
        async with Background(limit=1) as background:
            await background.send(signal, None, x=1)
            await background.send(signal, None, x=2)
            await anyio.wait_all_tasks_blocked()
            signal.connect(comes)
            signal.disconnect(leaves)
            await background.send(signal, None, x=3)
            go_on.set()
    assert heard == [("comes", 3)]


async def test_muted_sends_that_are_not_done_leave_nothing_muted(signal):
    """Refused, cancelled while it waits for room, or not done: the mute that a send took along ends with it."""

    async def receives(x, **named):
        await anyio.sleep_forever()

    signal.connect(receives)
    background = Background(limit=1, buffer=1)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with background:
            await background.send(signal, None, x=1)
            await anyio.wait_all_tasks_blocked()
            with signal.muted():
                await background.send(signal, None, x=2)
                with pytest.raises(anyio.WouldBlock):
                    background.send_nowait(signal, None, x=3)
                async with anyio.create_task_group() as group:
                    group.start_soon(functools.partial(background.send, signal, None, x=4))
                    await anyio.wait_all_tasks_blocked()
                    group.cancel_scope.cancel()
            scope.cancel()
    assert await background.drain() == 2
    assert signal._registry.mutes == frozenset()


async def test_the_limits_that_nobody_gave():
    """They are those of the documentation."""
    with anyio.fail_after(5):
        async with Background() as background:
            assert background.statistics() == (0, 0, 0, 0, 0, 0, 100, 1000)


# -- inside and outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_what_outlives_the_receiver_s_call_is_outside(signal, how):
    """A task or thread that a receiver leaves behind has to wait for capacity, may drain, and is refused at the end."""
    ended, release, outcomes = anyio.Event(), anyio.Event(), []

    def send_until_full():
        with contextlib.suppress(anyio.WouldBlock):
            for number in range(100):
                background.send_nowait(signal, None, x=number)
                outcomes.append(number)

    async def detached():
        await ended.wait()
        if how == "task":
            send_until_full()
        else:
            # A free-threaded build gives a new thread its starter's context; others have to be told to.
            thread = threading.Thread(target=copy_context().run, args=(send_until_full,))
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
        release.set()
        outcomes.append(await background.drain())
        await left.wait()
        with pytest.raises(anyio.ClosedResourceError):
            background.send_nowait(signal, None, x=1)
        outcomes.append("refused")

    async def receives(x, **named):
        if x is None:
            outer.start_soon(detached)
        else:
            await release.wait()

    signal.connect(receives)
    left = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as outer:
            async with Background(limit=2, buffer=5) as background:
                await background.send(signal, None, x=None)
                await background.drain()
                ended.set()
                await release.wait()
            left.set()
    assert outcomes == [*range(7), 0, "refused"]


async def test_tasks_of_a_receiver_are_inside_while_it_runs(signal):
    """A receiver's own tasks and threads exceed the buffer, at any depth, and cannot drain."""
    refused = []

    async def receives(x, **named):
        if x:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(functools.partial(background.send, signal, None, x=0))
                await anyio.to_thread.run_sync(lambda: background.send_nowait(signal, None, x=0))
                with pytest.raises(RuntimeError, match="wait for itself"):
                    await background.drain()
                refused.append(x)

    signal.connect(receives)
    with anyio.fail_after(5):
        async with Background(limit=1, buffer=0) as background:
            await background.send(signal, None, x=1)
    assert refused == [1]
    assert background.statistics().done == 7


async def test_a_send_that_is_done_keeps_nothing(signal, seen):
    """A task that outlives it refers neither to its sender nor to its arguments."""

    class Sender:
        pass

    async def stays():
        await release.wait()

    async def receives(sender, **named):
        group.start_soon(stays)

    release, gone = anyio.Event(), []
    signal.connect(receives)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            async with Background() as background:
                sender = Sender()
                weakref.finalize(sender, gone.append, "gone")
                await background.send(signal, sender, x=1)
                del sender
            gc.collect()
            assert gone == ["gone"]
            release.set()


async def waits_forever(**named):
    await anyio.sleep_forever()


@pytest.mark.filterwarnings("ignore:coroutine 'Background._work' was never awaited")
def test_sends_to_a_busy_background_whose_loop_has_ended_are_refused(signal):
    """They would be accepted and never done."""
    backgrounds = []

    async def enters():
        backgrounds.append(await Background(limit=1).__aenter__())
        await backgrounds[0].send(signal, None, x=0)

    signal.connect(waits_forever)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(enters())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    with pytest.raises(anyio.ClosedResourceError):
        backgrounds[0].send_nowait(signal, None, x=1)
    with pytest.raises(anyio.ClosedResourceError):
        anyio.run(functools.partial(backgrounds[0].send, signal, None, x=1))
    assert backgrounds[0].statistics().accepted == 1
    backgrounds[0]._group.cancel_scope._host_task = None
    for task in tasks:
        task._log_destroy_pending = False


# -- forks ---------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
no_fork_warnings = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
declared = Signal(["x"], name="declared")
of_parent = []


def send_in_child():
    """How many of 70 sends to the parent's background are refused."""
    refused = 0

    async def sends():
        nonlocal refused
        for number in range(35):
            with contextlib.suppress(anyio.ClosedResourceError):
                of_parent[0].send_nowait(declared, None, x=number)
                continue
            with contextlib.suppress(anyio.ClosedResourceError):
                await of_parent[0].send(declared, None, x=number)
                continue
            refused += 2
        assert await of_parent[0].drain() == 0

    asyncio.run(asyncio.wait_for(sends(), 10))
    return refused


@forks
@no_fork_warnings
async def test_a_process_pool_s_sends_to_the_parent_s_background_are_refused(anyio_backend):
    """A forked worker accepts nothing that it would never do, and has nothing to drain."""
    if anyio_backend[0] == "trio":
        pytest.skip("the child's loop matters, not the parent's")
    release, seen = anyio.Event(), []

    async def receives(x):
        await release.wait()
        seen.append(x)

    declared.connect(receives)
    try:
        with anyio.fail_after(30):
            async with Background(limit=1) as background:
                of_parent.append(background)
                for number in range(3):
                    await background.send(declared, None, x=number)
                await anyio.wait_all_tasks_blocked()
                with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                    assert await anyio.to_thread.run_sync(lambda: pool.submit(send_in_child).result(20)) == 70
                release.set()
    finally:
        of_parent.clear()
    assert seen == [0, 1, 2]


@forks
@no_fork_warnings
async def test_a_forked_child_does_not_have_the_background_s_lock(signal, seen):
    """One that another thread holds as the process forks is not held in the child."""
    with anyio.fail_after(10):
        async with Background() as background:
            held, release = threading.Event(), threading.Event()

            def hold():
                with lock:
                    held.set()
                    release.wait(5)

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait(5)
            threading.Timer(0.1, release.set).start()  # forking waits for that
            child = os.fork()
            if child == 0:
                try:
                    signals.alarm(10)
                    with contextlib.suppress(anyio.ClosedResourceError):
                        background.send_nowait(signal, None, x=1)
                        os._exit(2)
                    assert background.statistics()[:4] == (0, 0, 0, 0)
                    os._exit(0)
                finally:
                    os._exit(1)
            thread.join()
            assert (await anyio.to_thread.run_sync(os.waitpid, child, 0))[1] == 0
            await background.send(signal, None, x=2)
    assert seen == [2]
