import logging
import time

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asignals import Signal, monitor

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[None, ("a",)], ids=["any", "declared"])
def made(request):
    return Signal(request.param, name="shop.sold")


@pytest.fixture(params=["send", "send_robust"])
def method(request):
    return request.param


async def slow(**named):
    await checkpoint()
    return "slow"


def quick(**named):
    return "quick"


def fails(**named):
    raise ValueError


async def test_every_receiver_and_then_the_send_is_reported(made, method):
    """Reports come as calls end; that of the send, whose receiver is None, comes last."""
    made.connect(slow)
    made.connect(quick)
    reports = []
    with monitor(reports.append):
        before = time.perf_counter()
        await getattr(made, method)("s", a=1)
        after = time.perf_counter()
    assert [report.receiver for report in reports] == [slow, quick, None]
    for report in reports:
        assert (report.signal, report.sender, dict(report.arguments), report.error) == (made, "s", {"a": 1}, None)
        assert report.send is reports[0].send
        assert before <= report.start <= report.start + report.duration <= after
    assert reports[2].duration >= reports[0].duration + reports[1].duration


async def test_results_are_the_same_watched_or_not(made, method):
    """Watching changes nothing for the sender."""
    made.connect(slow)
    made.connect(quick, once=True, dispatch_uid="u")
    made.connect(quick, in_thread=True)
    expected = [(slow, "slow"), (quick, "quick"), (quick, "quick")]
    with monitor(lambda report: None):
        assert await getattr(made, method)(None, a=1) == expected
    assert await getattr(made, method)(None, a=1) == [expected[0], expected[2]]


async def test_a_send_that_nobody_hears_is_reported(made, method):
    """Also a send to nobody, and a muted one, is a send."""
    reports = []
    with monitor(reports.append):
        await getattr(made, method)(None, a=1)
        made.connect(quick)
        with made.muted():
            await getattr(made, method)(None, a=1)
    assert [report.receiver for report in reports] == [None, None]


async def test_a_failure_is_reported_where_it_happens(made):
    """A receiver's error is in its report; a failing send has it too, a robust one has not."""
    made.connect(fails)
    reports = []
    with monitor(reports.append):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the object is compared
            await made.send(None, a=1)
        ((_, returned),) = await made.send_robust(None, a=1)
    assert [report.error for report in reports] == [caught.value, caught.value, returned, None]


async def test_a_cancelled_receiver_is_reported(made, method):
    """Cancellation is the error of what it ended."""

    async def waits(**named):
        await anyio.sleep_forever()

    made.connect(waits)
    reports = []
    with monitor(reports.append):
        async with anyio.create_task_group() as group:

            async def sends():
                await getattr(made, method)(None, a=1)

            group.start_soon(sends)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert [report.receiver for report in reports] == [waits, None]
    assert all(isinstance(report.error, anyio.get_cancelled_exc_class()) for report in reports)


async def test_watching_can_be_undone_by_call_or_by_block(made):
    """What `monitor` returns stops the watching, once and for all."""
    reports = []
    undo = monitor(reports.append)
    await made.send(None, a=1)
    undo()
    undo()
    await made.send(None, a=1)
    assert len(reports) == 1


async def test_several_monitors_see_everything(made):
    """Monitors do not know of each other, not even the same one twice."""
    reports = []
    with monitor(reports.append), monitor(reports.append):
        await made.send(None, a=1)
    assert len(reports) == 2


async def test_a_failing_monitor_is_logged_and_removed(made, method, caplog):
    """The send does not notice, the others go on, and the failing one is not asked again."""
    calls, reports = [], []

    def broken(report):
        calls.append(report)
        raise RuntimeError

    made.connect(quick)
    with monitor(broken), monitor(reports.append), caplog.at_level(logging.ERROR, "asignals"):
        assert await getattr(made, method)(None, a=1) == [(quick, "quick")]
        await getattr(made, method)(None, a=1)
    assert len(calls) == 1
    assert len(reports) == 4
    (record,) = caplog.records
    assert isinstance(record.exc_info[1], RuntimeError)


async def test_a_monitor_may_leave_while_it_is_told(made):
    """Undoing from within the callback is fine."""
    reports = []

    def once(report):
        reports.append(report)
        undo()

    made.connect(quick)
    undo = monitor(once)
    await made.send(None, a=1)
    assert len(reports) == 1


async def test_sends_that_began_before_are_not_reported(made, method):
    """A monitor that comes during a send sees nothing of it."""
    reports, undo = [], []

    def starts(**named):
        undo.append(monitor(reports.append))

    made.connect(starts)
    made.connect(slow)
    for view in (made, made.using(limit=3)):
        try:
            await getattr(view, method)(None, a=1)
        finally:
            undo.pop()()
    assert reports == []


async def test_a_receiver_that_is_skipped_is_not_reported(made):
    """Who was disconnected before its turn made no call."""

    def leaves(**named):
        made.disconnect(quick)

    made.connect(leaves)
    made.connect(quick)
    reports = []
    with monitor(reports.append):
        await made.send(None, a=1)
    assert [report.receiver for report in reports] == [leaves, None]


async def test_a_send_within_a_send_is_told_apart():
    """Each send has its own `send` object."""
    outer, inner = Signal(), Signal()

    async def again(**named):
        await inner.send(None)

    outer.connect(again)
    inner.connect(quick)
    reports = []
    with monitor(reports.append):
        await outer.send(None)
    assert [(report.signal, report.receiver) for report in reports] == [
        (inner, quick),
        (inner, None),
        (outer, again),
        (outer, None),
    ]
    assert reports[0].send is reports[1].send is not reports[2].send is reports[3].send


@pytest.mark.parametrize("callback", [None, 3, "print"])
async def test_what_cannot_be_called_cannot_watch(callback):
    """A monitor that is not callable is refused at once."""
    with pytest.raises(TypeError, match="callable"):
        monitor(callback)


async def test_arguments_cannot_be_changed_by_a_monitor(made, collect):
    """A monitor sees the arguments, read-only."""
    seen = []

    def changes(report):
        with pytest.raises(TypeError):
            report.arguments["a"] = 2
        seen.append(report)

    made.connect(collect)
    with monitor(changes):
        await made.send(None, a=1)
    assert collect.calls[0]["a"] == 1
    assert len(seen) == 2
