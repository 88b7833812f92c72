import gc
import logging
import time
from contextlib import ExitStack
from contextvars import copy_context

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asignals import Signal, monitor

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]


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
    with monitor(reports.append):
        await made.send(None, a=1)
    await made.send(None, a=1)
    assert len(reports) == 2


async def test_streams_are_not_reported(made, method):
    """A stream is no receiver: a watched send hands it the event, and reports receivers and itself."""
    made.connect(quick)
    reports = []
    with monitor(reports.append):
        async with made.stream() as events:
            for view in (made, made.using(task_group=anyio.create_task_group)):
                await getattr(view, method)(None, a=1)
                assert (await anext(events)).a == 1
    assert [report.receiver for report in reports] == [quick, None] * 2


@pytest.mark.parametrize("task_group", [None, anyio.create_task_group], ids=["sequential", "group"])
async def test_reports_come_in_the_task_of_what_they_report(made, method, task_group):
    """A receiver's report comes in the task that it ran in, the sender's or its own; that of the send in the former."""
    tasks, reported = [], []

    async def tells(**named):
        tasks.append(anyio.get_current_task().id)
        await checkpoint()

    made.connect(tells)
    made.connect(slow)
    with monitor(lambda report: reported.append((report.receiver, anyio.get_current_task().id))):
        await getattr(made.using(task_group=task_group), method)(None, a=1)
    here = anyio.get_current_task().id
    assert sorted(reported, key=str) == sorted([(tells, tasks[0]), (slow, here), (None, here)], key=str)
    assert (tasks[0] == here) is (task_group is None)


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
    assert record.name == "asignals"
    assert isinstance(record.exc_info[1], RuntimeError)


async def test_a_monitor_that_fails_with_a_falsy_exception_is_logged_with_its_traceback(made, caplog):
    """An exception that counts as false is logged like any other."""

    class EmptyError(Exception):
        def __len__(self):
            return 0

    def broken(report):
        raise EmptyError

    made.connect(quick)
    with monitor(broken):
        await made.send(None, a=1)
    (record,) = caplog.records
    assert isinstance(record.exc_info[1], EmptyError)


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
    """A monitor that is not callable is refused at once, whichever of the two it is given as."""
    with pytest.raises(TypeError, match="callable"):
        monitor(callback)
    with pytest.raises(TypeError, match="callable"):
        monitor(around=callback)
    if callback is not None:
        with pytest.raises(TypeError, match="callable"):
            monitor(callback, around=slow)
        with pytest.raises(TypeError, match="callable"):
            monitor(slow, around=callback)


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


class Around:
    """Logs what it surrounds, and how that ended; raises where it is told to."""

    def __init__(self, log, fails_in=""):
        self.log = log
        self.fails_in = fails_in

    def __call__(self, send, receiver):
        if self.fails_in == "call":
            raise RuntimeError
        if receiver is quick:
            return None
        self.log.append(("in", receiver))

        def ends(error):
            self.log.append(("out", receiver, error and type(error)))
            if self.fails_in == "end":
                raise RuntimeError

        return ends


async def test_what_surrounds_calls_sees_their_errors_and_swallows_none(made):
    """It is called before each call and the send, and what it returns, if anything, afterwards with the exception."""
    made.connect(slow)
    made.connect(quick)
    made.connect(fails)
    log, reports = [], []
    with monitor(reports.append), monitor(around=Around(log)), pytest.raises(ValueError):  # noqa: PT011
        await made.send(None, a=1)
    assert log == [
        ("in", None),
        ("in", slow),
        ("out", slow, None),
        ("in", fails),
        ("out", fails, ValueError),
        ("out", None, ValueError),
    ]
    assert [report.receiver for report in reports] == [slow, quick, fails, None]


@pytest.mark.parametrize("fails_in", ["call", "end"])
async def test_what_surrounds_calls_and_fails_is_logged_and_removed(made, method, caplog, fails_in):
    """The send does not notice, and it is not asked again; others are left as they were entered."""
    made.connect(slow)
    log, others = [], []
    with (
        monitor(around=Around(others)),
        monitor(around=Around(log, fails_in)),
        caplog.at_level(logging.ERROR, "asignals"),
    ):
        assert await getattr(made, method)(None, a=1) == [(slow, "slow")]
        assert await getattr(made, method)(None, a=1) == [(slow, "slow")]
    assert len(caplog.records) == (2 if fails_in == "end" else 1)  # that of the send was entered before the first
    assert all(isinstance(record.exc_info[1], RuntimeError) for record in caplog.records)
    assert others == [("in", None), ("in", slow), ("out", slow, None), ("out", None, None)] * 2
    assert log == ([("in", None), ("in", slow), ("out", slow, None), ("out", None, None)] if fails_in == "end" else [])


async def test_a_monitor_that_is_interrupted_leaves_nothing_entered(made):
    """A `BaseException` of a monitor passes through, and what surrounds the call is left all the same."""
    log = []

    def interrupted(report):
        raise KeyboardInterrupt

    made.connect(slow)
    with monitor(interrupted), monitor(around=Around(log)), pytest.raises(KeyboardInterrupt):
        await made.send(None, a=1)
    assert [kind for kind, *_ in log] == ["in", "in", "out", "out"]


def tells(event):
    async def inner():
        await event.wait()
        return "told"

    return lambda **named: inner()  # a sync receiver that returns an awaitable


@pytest.mark.parametrize("is_watched", [False, True])
async def test_watching_keeps_a_task_group_concurrent(made, method, is_watched):
    """The awaitable that a sync receiver returns gets a task, watched or not: it may need a later receiver to end."""
    event = anyio.Event()
    receiver = tells(event)

    async def sets(**named):
        event.set()

    made.connect(receiver, weak=False)
    made.connect(sets)
    reports = []
    view = made.using(task_group=anyio.create_task_group)
    with anyio.fail_after(60), ExitStack() as stack:
        if is_watched:
            stack.enter_context(monitor(reports.append))
        assert await getattr(view, method)(None, a=1) == [(receiver, "told"), (sets, None)]
    assert [report.receiver for report in reports] == ([sets, receiver, None] if is_watched else [])


async def test_what_surrounds_a_call_is_entered_and_left_in_one_task(made):
    """So an awaitable that a sync receiver returns is awaited in the sender's task then."""
    tasks = []

    async def inner():
        tasks.append(anyio.get_current_task().id)

    def receiver(**named):
        tasks.append(anyio.get_current_task().id)
        return inner()

    made.connect(receiver)
    made.connect(slow)
    with monitor(around=Around([])), anyio.fail_after(60):
        await made.using(task_group=anyio.create_task_group).send(None, a=1)
    assert tasks == [anyio.get_current_task().id] * 2


async def test_the_failures_of_watched_receivers_in_a_task_group(made):
    """Sync or in what they return, they are reported, raised by `send` and returned by `send_robust`."""

    async def inner():
        await checkpoint()
        raise KeyError

    def fails_later(**named):
        return inner()

    made.connect(fails_later)
    made.connect(fails)
    made.connect(slow)
    view = made.using(task_group=anyio.create_task_group)
    reports = []
    with monitor(reports.append), anyio.fail_after(60):
        results = await view.send_robust(None, a=1)
        assert [type(response) for _, response in results] == [KeyError, ValueError, str]
        assert {report.receiver: type(report.error) for report in reports} == {
            fails: ValueError,
            fails_later: KeyError,
            slow: type(None),
            None: type(None),
        }
        reports.clear()
        with pytest.raises(ExceptionGroup):
            await view.send(None, a=1)
    assert reports[-1].receiver is None
    assert isinstance(reports[-1].error, ExceptionGroup)


async def test_a_call_whose_awaitable_is_dropped_is_reported(made):
    """When a send ends before the task of that awaitable began, the report says so, and the coroutine is closed."""

    class Full:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            return None

        def create_task(self, coroutine):
            raise RuntimeError

    receiver = tells(anyio.Event())
    made.connect(receiver, weak=False)
    made.connect(slow)
    reports = []
    with monitor(reports.append), anyio.fail_after(60), pytest.raises(ExceptionGroup):
        await made.using(task_group=Full).send(None, a=1)
    gc.collect()
    assert [(report.receiver, type(report.error)) for report in reports] == [
        (receiver, GeneratorExit),
        (None, ExceptionGroup),
    ]


async def test_the_block_gives_what_ends_it_early(made):
    """`with monitor(…) as stop` watches until `stop()` is called, or the block ends."""
    reports = []
    with monitor(reports.append) as stop:
        await made.send("oven", **({} if made.providing_args is None else {"a": 1}))
        stop()
        await made.send("oven", **({} if made.providing_args is None else {"a": 1}))
    assert len(reports) == 1


async def test_a_send_that_is_closed_in_another_context_is_reported(made):
    """As the collector closes it: its report says so, and nothing else is raised."""

    async def waits(**named):
        await checkpoint()

    made.connect(waits)
    reports = []
    with monitor(reports.append):
        coroutine = made.send(None, a=1)
        copy_context().run(coroutine.send, None)
        coroutine.close()
    assert [(report.receiver, type(report.error)) for report in reports] == [
        (waits, GeneratorExit),
        (None, GeneratorExit),
    ]
