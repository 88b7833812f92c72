"""Every public awaitable, cancelled at each of its checkpoints in turn: nothing is left, and the next one is whole."""

import asyncio
import contextlib
import threading
from concurrent.futures import Future

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from stepping import HOWS, cancel_everywhere, on_trio

from asignals import Background, Signal, monitor, stream
from asignals._core.loops import _call, _limiter, in_thread

pytestmark = pytest.mark.anyio

MODES = {
    "sequential": {},
    "anyio": {"task_group": anyio.create_task_group},
    "anyio, limit 2": {"task_group": anyio.create_task_group, "limit": 2},
    "asyncio": {"task_group": asyncio.TaskGroup},
}


@pytest.fixture(params=list(MODES), ids=lambda name: name.replace(" ", ""))
def mode(request, anyio_backend):
    if request.param == "asyncio" and anyio_backend[0] == "trio":
        pytest.skip("asyncio.TaskGroup needs asyncio")
    return MODES[request.param]


@pytest.fixture(params=HOWS, ids=lambda how: how.replace(" ", "-"))
def how(request):
    return request.param


class Receivers:
    """A receiver of every kind, and whether each that began has ended."""

    def __init__(self, signal):
        self.signal = signal
        self.begun = []  # a thread may append while the loop does
        self.ended = []
        for receiver, options in (
            (self.waits, {}),
            (self.is_sync, {}),
            (self.returns_awaitable, {}),
            (self.runs_in_thread, {"in_thread": True}),
            (self.is_limited, {"timeout": 60}),
            (self.cleans_up, {}),
            (self.waits_again, {}),
        ):
            signal.connect(receiver, **options)
        self.connections = signal.connections

    async def waits(self, x, **named):
        self.begun.append(1)
        try:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        finally:
            self.ended.append(1)
        return x

    def is_sync(self, x, **named):
        return x

    def returns_awaitable(self, x, **named):
        return self.waits(x)

    def runs_in_thread(self, x, **named):
        self.begun.append(1)
        self.ended.append(1)
        return x

    async def is_limited(self, x, **named):
        return await self.waits(x)

    async def cleans_up(self, x, **named):
        self.begun.append(1)
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                    await anyio.lowlevel.checkpoint()
            finally:  # a native cancellation breaks the shield
                self.ended.append(1)
        return x

    async def waits_again(self, x, **named):
        return await self.waits(x)

    async def check(self):
        """Nothing runs any more, and the next send is whole."""
        assert len(self.begun) == len(self.ended)
        assert self.signal.connections == self.connections
        assert [response for _, response in await self.signal.send(None, x=1)] == [1] * 7
        assert len(self.begun) == len(self.ended)


@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_a_send_leaves_nothing_wherever_it_is_cancelled(mode, how, method):
    """A cancelled send has ended all that it began, and the next one is whole."""
    receivers = Receivers(Signal(["x"], **mode))
    await cancel_everywhere(lambda: getattr(receivers.signal, method)(None, x=1), how, receivers.check)


@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_a_watched_send_is_reported_wherever_it_is_cancelled(mode, how, method):
    """Every call that began is left and reported once, with its cancellation, and then the send."""
    receivers = Receivers(Signal(["x"], **mode))
    entered, left, reports = [], [], []

    @contextlib.contextmanager
    def around(send, receiver):
        entered.append(receiver)
        try:
            yield
        finally:
            left.append(receiver)

    async def sends():
        reports.clear()
        with monitor(reports.append), monitor(around=around if method == "send" else lambda send, receiver: None):
            await getattr(receivers.signal, method)(None, x=1)

    async def check():
        called = [report.receiver for report in reports]
        assert called[-1:] == [None] * bool(called)  # a task that was cancelled before it began sends nothing
        assert len(called) == len(set(called))
        cancelled = anyio.get_cancelled_exc_class()
        assert all(report.error is None or isinstance(report.error, cancelled) for report in reports)
        assert sorted(map(repr, entered)) == sorted(map(repr, left))
        await receivers.check()

    await cancel_everywhere(sends, how, check)


async def test_waiting_for_a_signal_listens_no_longer(how):
    """A cancelled `wait` stops listening, whether the event was there already or not."""
    signal = Signal(["x"])

    async def sends():
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await signal.send(None, x=1)

    async def waits():
        async with anyio.create_task_group() as group:
            group.start_soon(sends)
            assert (await signal.wait()).x == 1

    async def check():
        assert not signal.has_listeners()

    await cancel_everywhere(waits, how, check)


async def test_reading_a_stream_loses_no_event(how):
    """An event that was given to a reader just as it was cancelled goes to the next."""
    signal = Signal(["x"])
    read = []
    sent = 0

    async with signal.stream(buffer=100) as events:

        async def reads():
            nonlocal sent

            async def sends():
                nonlocal sent
                await anyio.lowlevel.checkpoint()
                sent += 1
                await signal.send(None, x=sent)

            async with anyio.create_task_group() as group:
                group.start_soon(sends)
                event = await anext(events)
                read.append(event.x)

        async def check():
            await signal.send(None, x=0)
            while (event := await anext(events)).x:
                read.append(event.x)

        await cancel_everywhere(reads, how, check)
    assert sorted(read) == list(range(1, sent + 1))
    assert sent


async def test_leaving_a_stream_while_a_task_reads_it(how):
    """A block with readers can be cancelled anywhere: they end, and nobody listens any more."""
    signal, other = Signal(["x"]), Signal(["x"])

    async def reads(events):
        async for _ in events:
            await anyio.lowlevel.checkpoint()

    async def listens():
        async with anyio.create_task_group() as group, stream(signal, other, buffer=1) as events:
            group.start_soon(reads, events)
            group.start_soon(reads, events)
            for number in range(3):
                await signal.send(None, x=number)
                await other.send(None, x=number)

    async def check():
        assert not signal.has_listeners()
        assert not other.has_listeners()

    await cancel_everywhere(listens, how, check)


async def test_a_sender_that_waits_for_room_in_a_stream(mode, how):
    """A cancelled sender takes its event along, or has left it whole; the stream goes on."""
    signal = Signal(["x"], **mode)

    async with signal.stream(buffer=1) as events:

        async def sends():
            async def reads():
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                await anext(events)

            await signal.send(None, x=1)
            async with anyio.create_task_group() as group:
                group.start_soon(reads)
                await signal.send(None, x=2)

        async def check():
            assert not events._queue.waiting
            while events._queue.items:
                assert (await anext(events)).x in {1, 2}
            await signal.send(None, x=3)
            assert (await anext(events)).x == 3

        await cancel_everywhere(sends, how, check)


async def test_a_background_ends_all_that_it_began(mode, how):
    """A background that is cancelled while sending, waiting for room or draining leaves nothing, and says what."""
    receivers = Receivers(Signal(["x"], **mode))

    async def sends():
        background = Background(limit=1, buffer=1)
        try:
            async with background:
                for number in range(4):
                    await background.send(receivers.signal, None, x=number)
        finally:
            statistics = background.statistics()
            assert statistics.running == statistics.waiting == statistics.blocked == 0
            assert statistics.accepted == statistics.done + await background.drain()

    await cancel_everywhere(sends, how, receivers.check)


async def test_a_sender_that_waits_for_room_in_a_background(how):
    """Cancelled before there was room it sends nothing; nothing that was accepted is lost."""
    signal = Signal(["x"])
    seen = []

    async def receives(x, **named):
        await anyio.lowlevel.checkpoint()
        seen.append(x)

    signal.connect(receives)
    accepted = 0
    async with Background(limit=1, buffer=1) as background:
        await background.send(signal, None, x=0)  # makes the worker, which stays
        await background.drain()

        async def sends():
            for number in range(4):
                await background.send(signal, None, x=number)

        async def check():
            nonlocal accepted
            assert await background.drain() == 0
            assert background.statistics().blocked == 0
            accepted = background.statistics().accepted
            assert len(seen) == accepted

        await cancel_everywhere(sends, how, check)
    assert accepted == background.statistics().done


async def test_draining_can_be_cancelled(how):
    """A cancelled `drain` waits no longer, and cancels nothing."""
    signal = Signal(["x"])
    seen = []

    async def receives(x, **named):
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        seen.append(x)

    signal.connect(receives)
    sent = 1
    async with Background(limit=1) as background:
        await background.send(signal, None, x=sent)  # makes the worker, which stays
        await background.drain()

        async def drains():
            nonlocal sent
            sent += 1
            await background.send(signal, None, x=sent)
            await background.drain()

        async def check():
            assert not background._drains

        await cancel_everywhere(drains, how, check)
    assert sorted(seen) == list(range(1, sent + 1))


async def test_nested_backgrounds(how):
    """A receiver that opens a background of its own is cancelled with all that it began."""
    outer, inner = Signal(["x"]), Receivers(Signal(["x"]))

    async def receives(x, **named):
        async with Background(limit=2) as background:
            await background.send(inner.signal, None, x=x)
            await background.send(inner.signal, None, x=x)

    outer.connect(receives)

    async def sends():
        async with Background(limit=1, buffer=1) as background:
            await background.send(outer, None, x=1)
            await background.send(outer, None, x=2)

    await cancel_everywhere(sends, how, inner.check)


@pytest.mark.parametrize("depth", [3])
async def test_background_sends_of_receivers(how, depth):
    """Sends to the background from within it are cancelled with it, at any depth."""
    signal = Signal(["x"])
    running = 0

    async with anyio.create_task_group():

        async def sends():
            nonlocal running
            async with Background(limit=1, buffer=1) as background:

                async def receives(x, **named):
                    nonlocal running
                    running += 1
                    try:
                        if x < depth:
                            await background.send(signal, None, x=x + 1)
                            background.send_nowait(signal, None, x=x + 1)
                        await anyio.lowlevel.checkpoint()
                    finally:
                        running -= 1

                with signal.connected(receives):
                    await background.send(signal, None, x=0)
                    await background.drain()
                    # What the receivers added is drained by leaving, connected or not.

        async def check():
            assert running == 0
            assert not signal.has_listeners()

        await cancel_everywhere(sends, how, check)


def test_the_helper_knows_the_loop():
    """Outside of asyncio, the tests for cancelling take the loop for trio."""
    assert on_trio()


async def test_a_thread_s_call_that_was_cancelled_before_a_thread_was_free():
    """It is withdrawn: nobody calls the receiver afterwards, whenever a thread comes to it."""
    signal = Signal(["x"])
    called = []
    release = threading.Event()

    def receives(x):
        called.append(x)

    signal.connect(receives, in_thread=True)
    await in_thread(int)  # makes the limiter of this loop
    limiter = _limiter.get()
    before = limiter.total_tokens
    limiter.total_tokens = 1
    try:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(in_thread, release.wait)
                await anyio.wait_all_tasks_blocked()
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as senders:
                        senders.create_task(signal.send(None, x=1))
                        await anyio.wait_all_tasks_blocked()
                        scope.cancel()
                release.set()
    finally:
        release.set()
        limiter.total_tokens = before
    assert called == []


async def test_a_thread_that_comes_too_late_makes_no_call():
    """Once a call has been withdrawn, it is not made."""
    called, outcome = [], Future()
    outcome.cancel()
    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(_call, outcome, called.append)
    assert called == []


async def test_a_thread_s_end_is_awaited_however_often_this_is_cancelled(anyio_backend):
    """`Task.cancel()` three times leaves no thread running."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no native cancellation")
    signal = Signal(["x"])
    began, release = threading.Event(), threading.Event()
    log = []

    def receives(x):
        began.set()
        log.append(release.wait(60))

    signal.connect(receives, in_thread=True)
    with anyio.fail_after(60):
        task = asyncio.ensure_future(signal.send(None, x=1))
        while not began.is_set():
            await anyio.lowlevel.checkpoint()
        for _ in range(3):
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not task.done()
        release.set()
        await asyncio.wait([task])
    assert task.cancelled()
    assert log == [True]
