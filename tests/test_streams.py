"""Listening instead of being called: streams, what they keep, and when senders wait."""

import gc

import anyio
import anyio.to_thread
import pytest

from asignals import BufferFull, Signal, stream

pytestmark = pytest.mark.anyio


@pytest.fixture
def signal():
    return Signal(["x"])


async def test_events_come_in_order_and_end_with_the_block(signal):
    """What was sent is read in order; leaving the block discards the rest and stops listening."""
    with anyio.fail_after(5):
        async with signal.stream() as events:
            for number in range(3):
                await signal.send("sender", x=number)
            event = await anext(events)
            assert (event.signal, event.sender, event.x, event["x"]) == (signal, "sender", 0, 0)
            assert (await anext(events)).x == 1
        assert [event async for event in events] == []
    assert not signal.has_listeners()


@pytest.mark.parametrize(("overflow", "kept", "dropped"), [("drop_oldest", [2, 3], 2), ("drop_newest", [0, 1], 2)])
async def test_dropping(signal, overflow, kept, dropped):
    """A full buffer drops the oldest or the newest event, and counts it."""
    with anyio.fail_after(5):
        async with signal.stream(buffer=2, overflow=overflow) as events:
            for number in range(4):
                await signal.send(None, x=number)
            assert [(await anext(events)).x, (await anext(events)).x] == kept
            assert events.dropped == dropped


async def test_an_error_for_the_sender(signal):
    """With `overflow="error"` a full buffer is the sender's error; so is an error in `where`."""
    with anyio.fail_after(5):
        async with signal.stream(buffer=1, overflow="error"):
            await signal.send(None, x=1)
            with pytest.raises(BufferFull, match="holds 1 events"):
                await signal.send(None, x=2)
            ((_, error),) = await signal.send_robust(None, x=3)
            assert isinstance(error, BufferFull)
        async with signal.stream(where=lambda event: event.x / 0):
            with pytest.raises(ZeroDivisionError):
                await signal.send(None, x=1)


@pytest.mark.parametrize("task_group", [None, anyio.create_task_group], ids=["sequential", "group"])
async def test_an_error_for_each_of_several_senders(signal, task_group):
    """Of sends at once, as many as there is room for succeed, and each other one gets `BufferFull`."""
    view = signal.using(task_group=task_group)
    outcomes = []

    async def sends():
        try:
            await view.send(None, x=1)
        except BufferFull as error:
            outcomes.append(error)
        except ExceptionGroup as group:
            outcomes.extend(group.exceptions)

    async def sends_robustly():
        outcomes.extend([response for _, response in await view.send_robust(None, x=1)])

    with anyio.fail_after(5):
        async with signal.stream(buffer=2, overflow="error") as events:
            async with anyio.create_task_group() as group:
                for each in (sends, sends_robustly) * 3:
                    group.start_soon(each)
            assert [type(outcome) for outcome in outcomes] == [BufferFull] * 4
            assert [(await anext(events)).x for _ in range(2)] == [1, 1]


async def test_leaving_frees_senders_that_wait(signal):
    """A sender that waits for room goes on when the block is left."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, signal.stream(buffer=1):
            for number in range(3):
                group.create_task(signal.send(None, x=number))
            await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("task_group", [None, anyio.create_task_group], ids=["sequential", "group"])
@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_an_abandoned_stream_frees_senders_that_wait(signal, task_group, method):
    """A stream that was entered and forgotten holds nobody up once it is gone, in either mode."""
    send = getattr(signal.using(task_group=task_group), method)
    events = await signal.stream(buffer=1).__aenter__()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.create_task(send(None, x=number))
            await anyio.wait_all_tasks_blocked()
            del events
            gc.collect()
    assert not signal.has_listeners()


async def test_several_readers_share_the_events(signal):
    """Each event goes to one reader, and all readers end with the block."""
    read = []

    async def reads(events):
        async for event in events:
            read.append(event.x)  # noqa: PERF401  shared by the readers

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, signal.stream(buffer=1) as events:
            for _ in range(3):
                group.start_soon(reads, events)
            for number in range(10):
                await signal.send(None, x=number)
            await anyio.wait_all_tasks_blocked()
    assert sorted(read) == list(range(10))


async def test_a_signal_given_twice_is_listened_to_once(signal):
    """Merging a signal with itself, or with a view of it, repeats no event."""
    with anyio.fail_after(5):
        async with stream(signal, signal, signal.using(task_group=None)) as events, signal.stream() as others:
            await signal.send(None, x=1)
            await signal.send(None, x=2)
            assert [(await anext(events)).x for _ in range(2)] == [1, 2]
            assert [(await anext(others)).x for _ in range(2)] == [1, 2]
            assert not events._events


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_senders_in_another_thread_s_loop(signal, backend):
    """A sender in another thread and kind of loop waits for room, and no event is lost."""

    async def sends():
        for number in range(10):
            await signal.send(None, x=number)

    read = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, signal.stream(buffer=1) as events:
            group.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(sends, backend=backend))
            while len(read) < 10:
                read.append((await anext(events)).x)
    assert read == list(range(10))


async def test_waiting_for_one_event(signal):
    """`wait` gives the first event of the sender that fits."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            task = []

            async def waits():
                task.append(await signal.wait("me", where=lambda event: event.x > 1))

            group.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
            for sender, number in (("me", 1), ("other", 2), ("me", 3)):
                await signal.send(sender, x=number)
    assert task[0].x == 3
