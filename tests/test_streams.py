"""Listening instead of being called: streams, what they keep, and when senders wait."""

import asyncio
import contextlib
import copy
import dataclasses
import datetime as dt
import gc
import json
import logging
import multiprocessing
import os
import pickle
import signal as signals
import sys
import threading
import uuid
from concurrent.futures import ProcessPoolExecutor

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asignals import BufferFull, Event, Signal, stream
from asignals._core import loops
from asignals._core.loops import Waker, lock

_stream = sys.modules["asignals._core.stream"]  # the name of the module is also that of a function

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


@pytest.mark.parametrize("listen", [Signal.stream, stream], ids=["method", "function"])
async def test_64_events_are_kept_unless_told_otherwise(signal, listen):
    """A stream has room for 64 events by default."""
    with anyio.fail_after(5):
        async with listen(signal, overflow="drop_newest") as events:
            for number in range(66):
                await signal.send(None, x=number)
            assert events.dropped == 2
            for number in range(64):
                assert (await anext(events)).x == number


async def test_a_stream_has_its_turn_among_the_receivers(signal):
    """A stream gets an event after those connected before it, and between higher and lower priorities than 0."""
    seen = []

    def looks(**named):
        seen.append(len(events._queue.items))

    def looks_first(**named):
        looks()

    def looks_last(**named):
        looks()

    signal.connect(looks_last, priority=-0.5)
    signal.connect(looks)
    with anyio.fail_after(5):
        async with signal.stream() as events:
            signal.connect(looks_first, priority=0.5)
            await signal.send(None, x=1)
    assert seen == [0, 0, 1]


async def test_an_error_for_the_sender(signal, caplog):
    """With `overflow="error"` a full buffer is the sender's error; so is an error in `where`."""
    with anyio.fail_after(5):
        async with signal.stream(buffer=1, overflow="error"):
            await signal.send(None, x=1)
            with pytest.raises(BufferFull, match="keeps 1 events") as full:
                await signal.send(None, x=2)
            assert (full.value.signal, full.value.size) == (signal, 1)
            ((_, error),) = await signal.send_robust(None, x=3)
            assert isinstance(error, BufferFull)
            (logged,) = caplog.records  # what is lost is named, and who has lost it
            assert logged.getMessage().startswith(f"a stream ({__file__}:")
            assert logged.location.startswith(f"{__file__}:")
        failing = signal.stream(where=lambda event: event.x / 0)
        opened_at = f"{__file__}:{sys._getframe().f_lineno - 1}"
        async with failing:
            with pytest.raises(ZeroDivisionError) as caught:
                await signal.send(None, x=1)
    assert caught.value.__notes__ == [f"raised by a stream ({opened_at}), a receiver of signal {signal.name!r}"]


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


async def test_a_stream_listens_without_being_a_receiver(signal):
    """It counts in `has_listeners`, for its sender; connections, `receivers_for` and results know nothing of it."""
    with anyio.fail_after(5):
        async with signal.stream("me") as events:
            assert signal.has_listeners("me")
            assert not signal.has_listeners("you")
            assert signal.connections == ()
            assert signal.receivers_for("me") == []
            for view in (signal, signal.using(task_group=anyio.create_task_group)):
                assert await view.send("me", x=1) == []
                assert await view.send_robust("me", x=1) == []
            assert [(await anext(events)).x for _ in range(4)] == [1] * 4


async def test_a_stream_hears_the_sends_that_begin_inside_its_block(signal):
    """Neither those made before it is entered nor those that are under way then."""

    async def enters(**named):
        if not entered:
            entered.append(await events.__aenter__())

    entered, events = [], signal.stream()
    await signal.send(None, x=1)
    signal.connect(enters)
    with anyio.fail_after(5):
        await signal.send(None, x=2)
        await signal.send(None, x=3)
        assert (await anext(events)).x == 3
        await events.__aexit__(None, None, None)


async def test_a_muted_signal_reaches_no_stream(signal, collect):
    """Muted as a whole it reaches nobody, streams included; with single receivers muted its streams go on."""
    signal.connect(collect)
    with anyio.fail_after(5):
        async with signal.stream() as events:
            with signal.muted():
                await signal.send(None, x=1)
            with signal.muted(collect):
                await signal.send(None, x=2)
            assert (await anext(events)).x == 2
    assert collect.calls == []


async def test_reading_is_a_checkpoint(signal):
    """A reader that is cancelled takes no event, though one was there to be read at once."""
    with anyio.fail_after(5):
        async with signal.stream() as events:
            await signal.send(None, x=1)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(events)
            assert scope.cancelled_caught
            assert (await anext(events)).x == 1


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


async def test_a_reader_that_is_cancelled_leaves_those_before_it_waiting(signal):
    """Only the one that was cancelled gives up its turn."""
    got = []

    async def read(events):
        got.append((await anext(events)).x)

    with anyio.fail_after(5):
        async with signal.stream() as events, anyio.create_task_group() as group:
            group.create_task(read(events))
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as inner:
                inner.create_task(read(events))
                await anyio.wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
            await signal.send(None, x=1)
    assert got == [1]


async def test_several_signals_in_the_order_of_their_sends(signal):
    """A merged stream has the events of all its signals that fit `sender` and `where`, and leaves all of them."""
    other = Signal()
    with anyio.fail_after(5):
        async with stream(signal, other, sender="me", where=lambda event: event.x) as events:
            for each, sender, x in ((other, "me", 1), (signal, "me", 2), (signal, "you", 3), (other, "me", 0)):
                await each.send(sender, x=x)
            await other.send("me", x=4)
            read = [await anext(events) for _ in range(3)]
    assert [(event.signal, event.x) for event in read] == [(other, 1), (signal, 2), (other, 4)]
    assert not signal.has_listeners("me")
    assert not other.has_listeners("me")


async def test_senders_that_wait_for_room_keep_their_order(signal):
    """Events of senders that had to wait are read in the order of the sends, each sender going on as it has room."""
    with anyio.fail_after(5):
        async with signal.stream(buffer=1) as events, anyio.create_task_group() as group:
            for number in range(4):
                group.create_task(signal.send(None, x=number))
                await anyio.wait_all_tasks_blocked()
            assert [(await anext(events)).x for _ in range(4)] == [0, 1, 2, 3]


async def test_a_signal_given_twice_is_listened_to_once(signal):
    """Merging a signal with itself, or with a view of it, repeats no event."""
    with anyio.fail_after(5):
        async with stream(signal, signal, signal.using(task_group=None)) as events, signal.stream() as others:
            await signal.send(None, x=1)
            await signal.send(None, x=2)
            assert [(await anext(events)).x for _ in range(2)] == [1, 2]
            assert [(await anext(others)).x for _ in range(2)] == [1, 2]
            assert not events._queue.items


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


async def test_an_argument_named_like_an_attribute_is_an_item():
    """An event's own attributes go first; the argument is still read as an item."""
    named = Signal(["arguments"])
    with anyio.fail_after(5):
        async with named.stream() as events:
            await named.send(None, arguments=3)
            event = await anext(events)
    assert dict(event.arguments) == {"arguments": 3}
    assert event["arguments"] == 3


async def test_what_an_event_has_and_has_not(signal):
    """Arguments are items and attributes, also in a copy; others are an `AttributeError` or a `KeyError`."""
    with anyio.fail_after(5):
        async with signal.stream() as events:
            await signal.send("sender", x=1)
            event = await anext(events)
    for each in (event, copy.copy(event)):
        assert (each.sender, each.x, each["x"]) == ("sender", 1, 1)
    with pytest.raises(AttributeError, match="no argument 'y'"):
        event.y  # noqa: B018
    with pytest.raises(KeyError):
        event["y"]
    with pytest.raises(AttributeError):
        event.sender = 1
    assert not hasattr(object.__new__(Event), "__array__")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TypeError, {"where": 3}),
        (TypeError, {"where": anyio.sleep}),
        (TypeError, {"buffer": 1.5}),
        (TypeError, {"buffer": True}),
        (ValueError, {"buffer": 0}),
        (ValueError, {"overflow": "drop"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
async def test_options_of_another_kind_are_refused(signal, kind, options):
    """The message names the option, whether it is given to the signal or to the function."""
    with pytest.raises(kind, match=next(iter(options))):
        signal.stream(**options)
    with pytest.raises(kind, match=next(iter(options))):
        stream(signal, **options)
    if "where" in options:
        with pytest.raises(kind, match="where"):
            await signal.wait(**options)


@pytest.mark.parametrize("signals", [(), (3,)])
async def test_only_signals_can_be_listened_to(signals):
    """A stream of nothing is a mistake."""
    with pytest.raises(TypeError, match="one or more signals"):
        stream(*signals)


async def test_a_stream_is_entered_once_before_it_is_read(signal):
    """It says so, and its `repr` tells in which state it is."""
    events = signal.stream(buffer=3)
    assert "new, 0 of 3" in repr(events)
    with anyio.fail_after(5):
        with pytest.raises(RuntimeError, match="enter the stream first"):
            await anext(events)
        async with events:
            await signal.send(None, x=1)
            assert "open, 1 of 3" in repr(events)
            with pytest.raises(RuntimeError, match="once"):
                await events.__aenter__()
    assert "closed, 0 of 3" in repr(events)


@pytest.mark.parametrize("task_group", [None, anyio.create_task_group], ids=["sequential", "group"])
async def test_a_stream_that_is_left_during_a_send_gets_nothing_of_it(signal, task_group):
    """Once the block has been left, a send under way keeps nothing for it and does not wait."""
    events = signal.stream(buffer=1)

    async def leaves(**named):
        await events.__aexit__(None, None, None)

    signal.connect(leaves)
    with anyio.fail_after(5):
        async with events:
            await signal.using(task_group=task_group, limit=1).send(None, x=1)
            assert not events._queue.items


async def test_a_sender_that_is_cancelled_as_its_stream_is_abandoned(signal, anyio_backend):
    """Both at once are no trouble."""
    if anyio_backend[0] == "trio":
        pytest.skip("on trio, what has been woken is not cancelled")
    events = await signal.stream(buffer=1).__aenter__()
    with anyio.fail_after(5):
        await signal.send(None, x=1)
        sender = asyncio.ensure_future(signal.send(None, x=2))
        await anyio.wait_all_tasks_blocked()
        del events
        gc.collect()
        sender.cancel()
        await asyncio.wait([sender])
    assert sender.cancelled()
    assert not signal.has_listeners()


@pytest.mark.parametrize("then", ["another reader", "no reader", "the block is left"])
async def test_an_event_given_to_a_reader_that_is_cancelled(signal, anyio_backend, then):
    """It goes to the next reader, or stays the first to be read; after the block it is discarded."""
    if anyio_backend[0] == "trio":
        pytest.skip("on trio, what has been woken is not cancelled")

    with anyio.fail_after(5):
        async with signal.stream() as events:
            reader = asyncio.ensure_future(anext(events))
            await anyio.wait_all_tasks_blocked()
            others = [asyncio.ensure_future(anext(events))] if then == "another reader" else []
            await anyio.wait_all_tasks_blocked()
            await signal.send(None, x=1)
            reader.cancel()
            if then != "the block is left":
                await asyncio.wait([reader])
                await signal.send(None, x=2)
                read = [(await other).x for other in others]
                read += [(await anext(events)).x for _ in range(2 - len(read))]
                assert read == [1, 2]
        await asyncio.wait([reader])
    assert reader.cancelled()
    assert not events._queue.items


async def test_a_stream_that_is_left_while_its_where_is_asked(signal):
    """The event comes too late and is not kept, as when another thread leaves the block at that moment."""

    def leaves(event):
        with contextlib.suppress(StopIteration):
            events.__aexit__(None, None, None).send(None)
        return True

    events = signal.stream(where=leaves)
    with anyio.fail_after(5):
        await events.__aenter__()
        await signal.send(None, x=1)
    assert not events._queue.items


async def test_a_finalizer_that_sends_as_a_reader_begins_to_wait(signal, monkeypatch):
    """An event that comes between the reader's look at the buffer and its wait wakes it."""

    class Finalizing(Waker):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with contextlib.suppress(StopIteration):
                signal.send(None, x=1).send(None)

    with anyio.fail_after(5):
        async with signal.stream() as events:
            monkeypatch.setattr(loops, "Waker", Finalizing)
            assert (await anext(events)).x == 1


# -- order ---------------------------------------------------------------------------------------------------------


async def read_with_limits(signal, actions):  # noqa: C901  one branch for each action
    """Readers begin, are cancelled, and events are sent, as the actions say; returns what was sent and read."""
    sent, read, scopes = 0, [], []

    async def reads(events, scope):
        with scope:
            while True:
                read.append((await anext(events)).x)

    async with anyio.create_task_group() as group, signal.stream(buffer=100) as events:
        for action in actions:
            if action == "read":
                scopes.append(anyio.CancelScope())
                group.start_soon(reads, events, scopes[-1])
            elif action == "send":
                sent += 1
                await signal.send(None, x=sent)
            elif action == "cancel":
                for scope in scopes:
                    scope.cancel()
            elif action == "cancel one" and scopes:
                scopes.pop(0).cancel()
            else:
                await anyio.lowlevel.checkpoint()
        for scope in scopes:
            scope.cancel()
        await anyio.wait_all_tasks_blocked()
        while events._queue.items:
            read.append((await anext(events)).x)
        assert not events._queue.takers
    return sent, read


@pytest.mark.parametrize("between", [[], ["wait"]], ids=["at once", "later"])
async def test_readers_that_are_cancelled_together_change_no_order(signal, between):
    """Two readers with time limits, an event for each, and both cancelled: the next reads them in order."""
    with anyio.fail_after(20):
        for _ in range(300):
            actions = ["read", "read", "wait", "wait", "send", "send", *between, "cancel", "wait"]
            assert await read_with_limits(signal, actions) == (2, [1, 2])


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["read", "send", "send", "cancel", "cancel one", "wait", "wait"]), max_size=25))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_order_is_that_of_the_sends_always(backend, actions):
    """Whatever readers come and are cancelled when: every event is read once, in the order of the sends."""
    sent, read = anyio.run(read_with_limits, Signal(["x"]), actions, backend=backend)
    assert read == list(range(1, sent + 1))


async def test_a_reader_that_was_woken_and_cancelled_wakes_the_next(signal, anyio_backend):
    """The wake-up is passed on, so another waiting reader takes the event."""
    if anyio_backend[0] == "trio":
        pytest.skip("on trio, what has been woken is not cancelled")
    with anyio.fail_after(5):
        async with signal.stream() as events:
            first, second = (asyncio.ensure_future(anext(events)) for _ in range(2))
            await anyio.wait_all_tasks_blocked()
            await signal.send(None, x=1)
            first.cancel()
            assert (await second).x == 1
            assert first.cancelled()


# -- readers that do not read --------------------------------------------------------------------------------------


@pytest.fixture
def stalls_soon(monkeypatch, caplog):
    """A stalled stream is reported at once."""
    caplog.set_level(logging.WARNING, "asignals")
    monkeypatch.setattr(_stream, "STALLED_AFTER", 0.02)


@pytest.mark.usefixtures("stalls_soon")
async def test_a_reader_that_stops_reading_is_reported_once(signal, caplog, monkeypatch):
    """One warning for each stream names the signal, the line that opened the stream, and how many senders wait."""
    monkeypatch.setattr(_stream, "STALLED_AFTER", 3600)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, signal.stream(buffer=1) as events:
            line = test_a_reader_that_stops_reading_is_reported_once.__code__.co_firstlineno + 5
            for number in range(5):
                if number == 3:  # two wait: this one finds that the reader has stalled, and so does the next
                    monkeypatch.setattr(_stream, "STALLED_AFTER", 0.02)
                group.start_soon(lambda number=number: signal.send(None, x=number))
                await anyio.wait_all_tasks_blocked()
            while not caplog.messages:  # noqa: ASYNC110  the warning is what is waited for
                await anyio.sleep(0.005)
            await anyio.sleep(0.1)
            assert [(await anext(events)).x for _ in range(5)] == [0, 1, 2, 3, 4]
    (message,) = caplog.messages
    assert f"{__file__}:{line} " in message
    assert "3 senders wait" in message or "4 senders wait" in message
    assert repr(signal.name) in message
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.usefixtures("stalls_soon")
async def test_a_slow_reader_is_not_reported(signal, caplog, monkeypatch):
    """While each sender waits only for a short time there is nothing to report."""
    monkeypatch.setattr(_stream, "STALLED_AFTER", 2)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, signal.stream(buffer=1) as events:

            async def sends():
                for number in range(100):
                    await signal.send(None, x=number)

            group.start_soon(sends)
            for _ in range(100):
                await anext(events)
    assert caplog.messages == []


async def test_a_stream_that_ends_just_as_a_senders_time_limit_does(signal, caplog, monkeypatch):
    """There is nobody to report any more, and the sender goes on."""
    monkeypatch.setattr(_stream, "STALLED_AFTER", 0.01)

    async def wait_and_end_the_stream(waker):
        try:
            await waker._event.wait()
        finally:
            events._close()

    with anyio.fail_after(5):
        async with signal.stream(buffer=1) as events:
            await signal.send(None, x=1)
            monkeypatch.setattr(Waker, "wait", wait_and_end_the_stream)
            await signal.send(None, x=2)
    assert caplog.messages == []


async def test_a_stream_can_be_ended_from_outside(signal):
    """`aclose` ends the readers and frees the senders, discards what is kept, and can be repeated."""
    ended = []

    async def reads(events):
        async for _ in events:
            pass
        ended.append("reader")

    async def sends():
        await signal.send(None, x=1)
        await signal.send(None, x=2)
        ended.append("sender")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            async with signal.stream() as events:
                group.start_soon(reads, events)
                await anyio.wait_all_tasks_blocked()
                await events.aclose()
                await anyio.wait_all_tasks_blocked()
                assert ended == ["reader"]
                await events.aclose()
            async with signal.stream(buffer=1) as events:
                group.start_soon(sends)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(events.aclose)
                await anyio.wait_all_tasks_blocked()
                assert ended == ["reader", "sender"]
                assert [event async for event in events] == []
                assert not signal.has_listeners()
        await events.aclose()
        unused = signal.stream()
        await unused.aclose()
        with pytest.raises(RuntimeError, match="once"):
            await unused.__aenter__()


@pytest.mark.parametrize("of", ["asyncio", "trio"])
async def test_a_stream_of_a_loop_that_has_ended_makes_nobody_wait(signal, of):
    """It is closed by the first sender that would wait."""
    left = []

    async def enters():
        left.append(await signal.stream(buffer=1).__aenter__())

    await anyio.to_thread.run_sync(lambda: anyio.run(enters, backend=of))
    with anyio.fail_after(5):
        for number in range(3):
            await signal.send(None, x=number)
    assert not signal.has_listeners()
    assert "closed" in repr(left[0])


@pytest.mark.usefixtures("stalls_soon")
@pytest.mark.parametrize("of", ["asyncio", "trio"])
async def test_a_sender_waits_no_longer_when_the_stream_s_loop_ends(signal, of):
    """One that waits already is freed soon after."""
    entered, leave = threading.Event(), threading.Event()
    left = []

    async def enters():
        left.append(await signal.stream(buffer=1).__aenter__())
        entered.set()
        while not leave.is_set():  # noqa: ASYNC110  set in another loop
            await anyio.sleep(0.001)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(enters, backend=of))
            await anyio.to_thread.run_sync(entered.wait, 5)
            await signal.send(None, x=1)
            group.start_soon(lambda: signal.send(None, x=2))
            await anyio.wait_all_tasks_blocked()
            leave.set()
    assert not signal.has_listeners()


# -- events as data ------------------------------------------------------------------------------------------------

declared = Signal(["size"], name=f"{__name__}.declared")


class Plain:
    pass


class Shown:
    def __repr__(self):
        return "shown"


async def test_each_reader_has_arguments_of_its_own():
    """Who changes those of an event changes neither what other readers get nor what receivers are given."""
    signal, received = Signal(), []
    with anyio.fail_after(5):
        async with signal.stream() as first, signal.stream() as second:
            signal.connect(lambda **named: received.append(named["x"]), weak=False)
            await signal.send(None, x=1)
            (await anext(first)).arguments["x"] = 2
            assert (await anext(second)).x == 1
    assert received == [1]


def test_an_event_is_data():
    """It is copied, pickled, compared, hashed and made a dict of."""
    event = Event(declared, "shop", {"size": 3, "price": 1.5})
    for same in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):  # noqa: S301
        assert same == event
        assert hash(same) == hash(event)
        assert same.signal is declared
        assert (same.size, same["price"], dict(same.arguments)) == (3, 1.5, {"size": 3, "price": 1.5})
    assert dataclasses.asdict(event) == {"signal": declared, "sender": "shop", "arguments": {"size": 3, "price": 1.5}}
    assert dataclasses.replace(event, sender="you").arguments == event.arguments
    assert event != Event(declared, "shop", {"size": 4})
    assert len({event, Event(declared, "shop", {"price": 1.5, "size": 3})}) == 1
    assert repr(event.arguments) == "{'size': 3, 'price': 1.5}"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Event(declared, "shop", {"size": []}))
    deep = copy.deepcopy(Event(declared, None, {"size": [1]}))
    deep.size.append(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.sender = None


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        ("x", "x"),
        (1.5, 1.5),
        ((1, [2]), [1, [2]]),
        ({1: {"a": None}}, {"1": {"a": None}}),
        (frozenset([1]), [1]),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (Plain, f"{__name__}.Plain"),
        (Plain(), f"{__name__}.Plain"),
        (Shown(), "shown"),
        (test_dropping, f"{__name__}.test_dropping"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_event_as_plain_data(value, plain):
    """Senders and arguments become what JSON has: values as they are, others as text or as their class's name."""
    found = Event(declared, value, {"size": value}).as_dict()
    assert found == {"signal": declared.name, "sender": plain, "arguments": {"size": plain}}
    assert json.loads(json.dumps(found)) == found


# -- forks ---------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
no_fork_warnings = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def send_70_times():
    """Run in a child: nobody reads, and nothing waits."""

    async def sends():
        for number in range(70):
            await declared.send(None, size=number)

    asyncio.run(asyncio.wait_for(sends(), 10))
    return declared.has_listeners()


@forks
@no_fork_warnings
async def test_a_process_pool_s_sends_do_not_wait_for_a_reader_of_the_parent(anyio_backend):
    """A forked worker has none of the parent's streams."""
    if anyio_backend[0] == "trio":
        pytest.skip("the child's loop matters, not the parent's")
    with anyio.fail_after(30):
        async with declared.stream() as events:
            await declared.send(None, size=-1)
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                assert not await anyio.to_thread.run_sync(lambda: pool.submit(send_70_times).result(20))
            await declared.send(None, size=-2)
            assert [(await anext(events)).size for _ in range(2)] == [-1, -2]


@forks
@no_fork_warnings
async def test_a_forked_child_has_no_lock_and_no_waiting_sender_of_the_parent(signal):
    """Its streams are closed: a lock that another thread holds is not held there, and a reader ends."""
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, signal.stream(buffer=1) as events:
            for number in range(3):
                group.start_soon(lambda number=number: signal.send(None, x=number))
                await anyio.wait_all_tasks_blocked()
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
                    with contextlib.suppress(StopIteration):
                        signal.send(None, x=4).send(None)
                    assert "closed, 0 of 1" in repr(events)
                    assert not signal.has_listeners()
                    with contextlib.suppress(StopIteration):
                        events.aclose().send(None)
                    os._exit(0)
                finally:
                    os._exit(1)
            thread.join()
            assert (await anyio.to_thread.run_sync(os.waitpid, child, 0))[1] == 0
            assert [(await anext(events)).x for _ in range(3)] == [0, 1, 2]
