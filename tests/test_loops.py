"""Waking tasks, worker threads that never wait for each other, and locks that no interrupt leaves locked."""

import signal
import threading
import time
from functools import partial

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from asignals import Signal
from asignals._core.loops import THREADS, InterruptSafeLock, Loop, Waker, in_thread
from asignals._core.loops import lock as chosen_lock

pytestmark = pytest.mark.anyio

BACKENDS = ["asyncio", "trio"]


async def test_a_task_is_woken_from_anywhere():
    """From its own loop and from a thread, before or while it waits, and again without harm."""

    async def waits(waker):
        await waker.wait()

    with anyio.fail_after(60):
        for wake_from in ("here", "thread"):
            waker = Waker()
            async with anyio.create_task_group() as group:
                group.start_soon(waits, waker)
                await anyio.wait_all_tasks_blocked()
                for _ in range(2):
                    if wake_from == "here":
                        waker.wake()
                    else:
                        await anyio.to_thread.run_sync(waker.wake)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_has_ended(backend):
    """It says so to all threads, and waking a task of it does nothing."""

    async def makes():
        loop = Loop()
        assert loop.is_current()
        assert not loop.has_ended()
        assert not await anyio.to_thread.run_sync(loop.is_current)
        assert not await anyio.to_thread.run_sync(loop.has_ended)
        return loop, Waker(loop)

    loop, waker = anyio.run(makes, backend=backend)
    assert loop.has_ended()
    assert not loop.is_current()
    waker.wake()


async def test_a_wait_may_be_taken_up_again():
    """A time limit ends a wait, and the next one ends when the task is woken, or at once if it was."""
    waker = Waker()
    with anyio.fail_after(60):
        with anyio.move_on_after(0.001) as scope:
            await waker.wait()
        assert scope.cancelled_caught
        waker.wake()
        await waker.wait()
        await waker.wait()


# -- worker threads ------------------------------------------------------------------------------------------------


async def call_from_500_threads(made):
    """Send at once from 500 sync functions in threads, as many as a busy web server's endpoints."""
    barrier, results = threading.Barrier(500), []

    def endpoint():
        barrier.wait(60)
        results.append(anyio.from_thread.run(partial(made.send, None, x=1)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(partial(anyio.to_thread.run_sync, endpoint, limiter=anyio.CapacityLimiter(1)))
    return results


@pytest.mark.parametrize("backend", BACKENDS)
def test_500_sync_callers_do_not_wait_for_each_other(backend):
    """A receiver in a thread and a nested one: all are answered."""
    made, inner = Signal(["x"]), Signal(["x"])

    def receives(x):
        return anyio.from_thread.run(partial(inner.send, None, x=x + 1))

    def receives_inner(x):
        return x

    made.connect(receives, in_thread=True)
    inner.connect(receives_inner, in_thread=True)
    results = anyio.run(call_from_500_threads, made, backend=backend)
    assert results == [[(receives, [(receives_inner, 2)])]] * 500


async def test_a_connection_may_have_a_limiter_of_its_own():
    """`in_thread=` takes one, which the calls of this receiver wait for."""
    made, limiter = Signal(["x"]), anyio.CapacityLimiter(1)
    seen = []

    def receives(x):
        seen.append(limiter.borrowed_tokens)

    made.connect(receives, in_thread=limiter)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: made.send(None, x=1))
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("depth", [1, 3])
async def test_sync_endpoints_in_the_default_threads_do_not_starve_receivers(depth):
    """All of anyio's own threads send at once, and each receiver sends again from its thread."""
    made = Signal(["x"])

    def receives(x):
        if x:
            anyio.from_thread.run(partial(made.send, None, x=x - 1))
        return x

    made.connect(receives, in_thread=True)
    tokens = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
    barrier, results = threading.Barrier(tokens), []

    def endpoint():
        barrier.wait(60)
        results.append(anyio.from_thread.run(partial(made.send, None, x=depth)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(tokens):
                group.start_soon(anyio.to_thread.run_sync, endpoint)
    assert results == [[(receives, depth)]] * tokens


async def test_threads_are_limited():
    """To as many as a limiter allows, or to the number for the loop; a nested call waits for neither."""
    running, most, lock = 0, 0, threading.Lock()

    def works():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    with anyio.fail_after(60):
        for limiter, count, limit in ((anyio.CapacityLimiter(2), 10, 2), (None, 60, THREADS)):
            most = 0
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(in_thread, works, limiter)
            assert most <= limit
        single = anyio.CapacityLimiter(1)

        def nests(depth):
            return depth and anyio.from_thread.run(in_thread, partial(nests, depth - 1), single)

        assert await in_thread(partial(nests, 3), single) == 0


async def test_a_task_that_outlives_a_thread_s_call_waits_for_a_place_again():
    """Only as long as the call runs, waiting for a place could be waiting for oneself."""
    single, release, order = anyio.CapacityLimiter(1), threading.Event(), []

    async def detached():
        await ended.wait()
        await in_thread(partial(order.append, "detached"), single)

    async def start():
        group.start_soon(detached)

    ended = anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await in_thread(partial(anyio.from_thread.run, start), single)
            group.start_soon(in_thread, lambda: (release.wait(60), order.append("other")), single)
            await anyio.wait_all_tasks_blocked()
            ended.set()
            while not single.statistics().tasks_waiting:
                await anyio.lowlevel.checkpoint()
            assert order == []
            release.set()
    assert order == ["other", "detached"]


async def test_an_awaitable_response_is_awaited_in_the_loop():
    """The thread makes the coroutine, the caller's loop runs it."""

    async def answers():
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    with anyio.fail_after(60):
        assert await in_thread(answers) == threading.get_ident()


# -- locks ---------------------------------------------------------------------------------------------------------


class Interrupt(Exception):  # noqa: N818  no error
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("lock", [InterruptSafeLock(), chosen_lock], ids=["own", "chosen"])
def test_no_interrupt_leaves_a_lock_locked(lock):
    """A signal handler that raises in thousands of places around and inside of `with lock`, nested, too."""

    def interrupt(number, frame):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupts, end = 0, time.monotonic() + 5  # a busy machine may not come to all
    try:
        while interrupts < 3000 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5 + interrupts % 50 * 1e-6)
                while True:
                    with lock, lock:
                        pass
            except Interrupt:
                interrupts += 1
                assert not lock._is_owned()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts


def test_a_lock_is_re_entrant_and_keeps_others_out():
    """As `threading.RLock`."""
    lock, got = InterruptSafeLock(), []

    def tries():
        got.append(lock.acquire(blocking=False))

    with lock as first, lock as second:
        assert first
        assert second
        thread = threading.Thread(target=tries)
        thread.start()
        thread.join()
    assert got == [False]
    assert not lock._is_owned()
    with pytest.raises(RuntimeError):
        lock.release()
