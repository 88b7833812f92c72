"""Sending via a task group: order, limits, errors, and whatever task groups do to receivers."""

import asyncio
import contextlib
import gc
import logging
import traceback
import weakref
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
import trio

from asignals import Signal

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["anyio", "asyncio"])
def group(request, anyio_backend):
    if request.param == "anyio":
        return anyio.create_task_group
    if anyio_backend[0] == "trio":
        pytest.skip("asyncio.TaskGroup needs asyncio")
    return asyncio.TaskGroup


@pytest.fixture(autouse=True)
def log():
    return []


def connect(signal, log, *kinds):
    """Connect a receiver for each kind; each logs its number when it begins, and minus its number when it ends."""
    for number, kind in enumerate(kinds, 1):
        signal.connect(KINDS[kind](number, log), weak=False)


def waiting(number, log):
    async def receives(**named):
        log.append(number)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        log.append(-number)
        return number

    return receives


def plain(number, log):
    def receives(**named):
        log.append(number)
        return number

    return receives


def returning(number, log):
    inner = waiting(number, log)
    return lambda **named: inner(**named)  # noqa: PLW0108  a sync function that returns an awaitable


def failing(number, log):
    async def receives(**named):
        log.append(number)
        await anyio.lowlevel.checkpoint()
        raise OSError(number)

    return receives


def failing_at_once(number, log):
    def receives(**named):
        log.append(number)
        raise OSError(number)

    return receives


def endless(number, log):
    async def receives(**named):
        log.append(number)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            log.append(-number)

    return receives


def cancelling(number, log):
    async def receives(**named):
        log.append(number)
        await anyio.lowlevel.checkpoint()
        raise asyncio.CancelledError

    return receives


KINDS = {
    "waits": waiting,
    "sync": plain,
    "returns": returning,
    "fails": failing,
    "sync fails": failing_at_once,
    "endless": endless,
    "cancels": cancelling,
}


async def test_responses_come_in_order_of_connection(group, log):
    """Whoever ends first, the responses are in order of connection."""
    signal = Signal(["x"], task_group=group)
    connect(signal, log, "waits", "sync", "returns", "waits", "sync")
    with anyio.fail_after(5):
        results = await signal.send(None, x=1)
    assert [response for _, response in results] == [1, 2, 3, 4, 5]


async def test_receivers_start_in_order_of_connection(group, log):
    """They begin in order, and a sync one after those before it have come to their first await."""
    signal = Signal(["x"], task_group=group)
    connect(signal, log, "waits", "returns", "waits", "sync", "returns", "sync", "waits", "waits")
    with anyio.fail_after(5):
        await signal.send(None, x=1)
    assert [number for number in log if number > 0] == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_at_most_limit_run_at_once(group, log):
    """A limit holds for all receivers of a send, those in the caller included."""
    signal = Signal(["x"], task_group=group, limit=2)
    connect(signal, log, "waits", "waits", "returns", "sync", "waits", "waits")
    with anyio.fail_after(5):
        results = await signal.send(None, x=1)
    running, most = 0, 0
    for number in log:
        running += (number > 0) - (number < 0) if number != 4 else 0
        most = max(most, running)
    assert most == 2
    assert len(results) == 6


async def test_a_lone_receiver_needs_no_task(group):
    """The last receiver, and so a lone one, runs in the sender's own task."""
    signal = Signal(["x"], task_group=group)

    async def receives(**named):
        return anyio.get_current_task().id

    signal.connect(receives)
    with anyio.fail_after(5):
        assert await signal.send(None, x=1) == [(receives, anyio.get_current_task().id)]


@pytest.mark.parametrize(
    "kinds",
    [
        ["fails", "endless", "endless"],
        ["endless", "endless", "fails"],
        ["endless", "sync fails", "endless"],
        ["endless", "sync fails"],
        ["fails"],
        ["sync fails"],
    ],
    ids=", ".join,
)
async def test_the_first_failure_cancels_the_rest(group, log, kinds):
    """One error, with its traceback, is raised in an `ExceptionGroup`; the others have cleaned up by then."""
    signal = Signal(["x"], task_group=group)
    connect(signal, log, *kinds)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await signal.send(None, x=1)
    (error,) = caught.value.exceptions
    assert traceback.extract_tb(error.__traceback__)[-1].name == "receives"
    assert isinstance(error, OSError)
    assert "a receiver of signal" in error.__notes__[0]
    begun = {number for number in log if number > 0 and kinds[number - 1] == "endless"}
    assert begun == {-number for number in log if number < 0}


async def test_nothing_starts_after_a_failure(group, log):
    """With a limit, the receivers that had to wait for the one that failed are not called."""
    signal = Signal(["x"], task_group=group, limit=1)
    connect(signal, log, "fails", "waits", "sync", "waits")
    with anyio.fail_after(5), pytest.raises(ExceptionGroup):
        await signal.send(None, x=1)
    assert log == [1]


async def test_several_errors_come_together(group, log):
    """Receivers that fail in the same moment, or while they are cancelled, are all in the group."""
    signal = Signal(["x"], task_group=group)

    async def fails_in_cleanup(**named):
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError

    signal.connect(fails_in_cleanup)
    connect(signal, log, "fails", "waits")
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await signal.send(None, x=1)
    assert {type(error) for error in caught.value.exceptions} == {KeyError, OSError}


@pytest.mark.parametrize("kinds", [["cancels", "waits"], ["waits", "cancels"], ["cancels"]], ids=", ".join)
async def test_a_receiver_that_raises_the_cancellation_itself(group, anyio_backend, log, kinds):
    """The send raises it, too, and never returns a shorter list; a robust send takes it for the receiver's error."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio's cancellation cannot be raised by oneself")
    signal = Signal(["x"], task_group=group)
    connect(signal, log, *kinds)
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
        await signal.send(None, x=1)
    with anyio.fail_after(5):
        results = await signal.send_robust(None, x=1)
    assert [isinstance(response, RuntimeError) for _, response in results] == [kind == "cancels" for kind in kinds]


@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_a_nursery_is_a_task_group(anyio_backend, log, method):
    """`task_group=trio.open_nursery` works as anyio's groups do."""
    if anyio_backend[0] != "trio":
        pytest.skip("nurseries are trio's")
    signal = Signal(["x"], task_group=trio.open_nursery)
    connect(signal, log, "waits", "sync", "waits", "waits")
    assert len(await getattr(signal, method)(None, x=1)) == 4
    connect(signal, log, "fails")
    connect(signal, log, "endless")
    if method == "send":
        with pytest.raises(ExceptionGroup):
            await signal.send(None, x=1)


async def test_what_makes_no_tasks_is_refused(log):
    """A factory of something else is told by the name of what it made; no receiver was called."""

    class Useless(contextlib.AsyncExitStack):
        """Makes no tasks."""

    signal = Signal(["x"], task_group=Useless)
    connect(signal, log, "waits", "sync")
    with pytest.raises(AttributeError, match="'Useless' object has no attribute") as caught:
        await signal.send(None, x=1)
    assert log == []
    (note,) = caught.value.__notes__
    assert "Useless" in note
    assert f"the task_group of signal {signal.name!r}; anyio.create_task_group and asyncio" in note


@pytest.mark.parametrize("useless", [dict, contextlib.nullcontext, contextlib.AsyncExitStack, lambda: None])
async def test_the_error_of_a_useless_factory_names_it_and_the_signal(log, useless):
    """It is called at the first send in a group, far from the line that named it."""
    signal = Signal(["x"], name="shop.sold").using(task_group=useless)
    connect(signal, log, "waits", "sync")
    with pytest.raises((TypeError, AttributeError)) as caught:
        await signal.send(None, x=1)
    (note,) = caught.value.__notes__
    assert useless.__name__ in note
    assert "the task_group of signal 'shop.sold'; anyio.create_task_group and asyncio" in note
    assert log == []


async def test_a_receiver_whose_task_is_cancelled_before_it_began(anyio_backend, log):
    """Other code that cancels a task of the group makes the send raise, neither hang nor return less."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio has no native cancellation")

    class Cancelling(asyncio.TaskGroup):
        def create_task(self, coroutine):
            task = super().create_task(coroutine)
            task.cancel()
            return task

    for limit in (None, 1):
        signal = Signal(["x"], task_group=Cancelling, limit=limit)
        connect(signal, log, "waits", "waits", "sync", "waits")
        with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
            await signal.send(None, x=1)


async def test_robust_sends_call_everyone(group, log):
    """`send_robust` in a group returns errors in their places, and cancels nobody."""
    signal = Signal(["x"], task_group=group)
    connect(signal, log, "fails", "sync fails", "waits", "fails", "sync")
    with anyio.fail_after(5):
        results = await signal.send_robust(None, x=1)
    assert [type(response) for _, response in results] == [OSError, OSError, int, OSError, int]


class Stop(BaseException):
    pass


@pytest.mark.parametrize("method", ["send", "send_robust"])
@pytest.mark.parametrize("is_last", [True, False])
async def test_base_exceptions_are_never_caught(group, log, method, is_last):
    """They come as a `BaseExceptionGroup`, robust or not, from a task and from the caller."""
    signal = Signal(["x"], task_group=group)

    async def stops(**named):
        await anyio.lowlevel.checkpoint()
        raise Stop

    connect(signal, log, "endless")
    signal.connect(stops)
    if not is_last:
        connect(signal, log, "endless")
    with anyio.fail_after(5), pytest.raises(BaseExceptionGroup) as caught:
        await getattr(signal, method)(None, x=1)
    assert [type(error) for error in caught.value.exceptions] == [Stop]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_the_caller_s_interrupts_are_grouped_too(group, log, kind):
    """A sync receiver that exits does so in a `BaseExceptionGroup`, alone or after tasks were made."""
    for kinds in ([], ["endless"]):
        signal = Signal(["x"], task_group=group)

        def exits(**named):
            raise kind

        connect(signal, log, *kinds)
        signal.connect(exits)
        with anyio.fail_after(5), pytest.raises(BaseExceptionGroup) as caught:
            await signal.send(None, x=1)
        assert [type(error) for error in caught.value.exceptions] == [kind]


async def test_a_factory_that_cannot_be_entered(log):
    """Its error comes as it is, and nothing is left."""

    @asynccontextmanager
    async def broken():
        raise LookupError
        yield

    signal = Signal(["x"], task_group=broken)
    connect(signal, log, "returns", "waits")
    with anyio.fail_after(5), pytest.raises(LookupError):
        await signal.send(None, x=1)
    assert log == []
    gc.collect()


async def test_a_group_that_takes_no_tasks(log):
    """An error of `create_task` ends the send, and no coroutine is left that nobody awaits."""

    class Full:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            return None

        def create_task(self, coroutine):
            raise RuntimeError

    signal = Signal(["x"], task_group=Full)
    connect(signal, log, "waits", "waits")
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await signal.send(None, x=1)
    assert isinstance(caught.value.exceptions[0], RuntimeError)
    gc.collect()


async def test_a_group_that_swallows_errors(log):
    """With a factory that lets errors pass, the send raises them all the same."""

    @asynccontextmanager
    async def lax():
        try:
            async with anyio.create_task_group() as tasks:
                yield tasks
        except ExceptionGroup:
            pass

    signal = Signal(["x"], task_group=lax)
    connect(signal, log, "fails", "waits")
    with anyio.fail_after(5), pytest.raises(ExceptionGroup):
        await signal.send(None, x=1)


async def test_a_send_inside_a_cancelled_scope(group, log):
    """Nothing but what comes before the first checkpoint runs, and the next send is whole."""
    signal = Signal(["x"], task_group=group)
    connect(signal, log, "waits", "waits", "waits")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await signal.send(None, x=1)
    assert scope.cancelled_caught
    assert all(number > 0 for number in log)
    with anyio.fail_after(5):
        assert len(await signal.send(None, x=1)) == 3


async def test_views_send_in_their_own_way(group, log):
    """`using` gives a view: the same receivers, another mode, options left out are the signal's own."""
    signal = Signal(["x"], task_group=group, limit=1)
    connect(signal, log, "waits", "waits")
    with anyio.fail_after(5):
        await signal.using(limit=None).send(None, x=1)
        assert log == [1, 2, -1, -2] or log[:2] == [1, 2]
        for view in (
            signal.using(task_group=None),
            signal.using(task_group=group),
            signal.using(limit=None).using(limit=1).using(task_group=group),
        ):
            log.clear()
            await view.send(None, x=1)
            assert log == [1, -1, 2, -2]


class Witness:
    """An argument of a send: while it lives, so does a frame of that send."""


@pytest.mark.parametrize("method", ["send", "send_robust"])
@pytest.mark.parametrize(
    "kinds",
    [["fails", "waits"], ["waits", "fails"], ["waits", "sync fails", "waits"], ["fails", "fails", "fails"]],
    ids=", ".join,
)
async def test_a_failed_send_leaves_no_cycle(group, log, kinds, method, monkeypatch):
    """When its error or its results are let go, everything of the send dies without the collector."""
    monkeypatch.setattr(logging.getLogger("asignals"), "disabled", True)  # records would hold errors
    signal = Signal(["witness"], task_group=group)
    connect(signal, log, *kinds)

    async def sends(witness):
        with contextlib.suppress(ExceptionGroup):
            await getattr(signal, method)(None, witness=witness)

    async def checkpoints():
        for _ in range(5):
            await anyio.lowlevel.checkpoint()

    witness = Witness()
    reference = weakref.ref(witness)
    await checkpoints()
    gc.collect()
    gc.disable()
    try:
        with anyio.fail_after(5):
            await sends(witness)
            await checkpoints()
        del witness
        assert reference() is None
    finally:
        gc.enable()


async def test_a_signal_nobody_hears(group):
    """There is nothing to start, and nothing in the results."""
    with anyio.fail_after(5):
        assert await Signal(["x"], task_group=group).send(None, x=1) == []


@pytest.mark.parametrize("later", [["sync", "waits"], ["waits"], ["waits", "returns", "waits"]], ids=", ".join)
@pytest.mark.parametrize("limit", [None, 1])
async def test_nothing_is_called_after_a_failure_without_an_await(group, log, later, limit):
    """Neither a sync receiver nor the last one, which wait for those before them to begin, nor one that has a task."""
    signal = Signal(["x"], task_group=group, limit=limit)

    async def fails_at_once(**named):
        raise OSError

    signal.connect(fails_at_once)
    connect(signal, log, *later)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup):
        await signal.send(None, x=1)
    assert log == []


async def test_receivers_that_vanish_during_a_send(group):
    """Those that die or are disconnected before their turn are not called, of whatever kind."""
    signal = Signal(["x"], task_group=group)
    called = []

    async def removes(**named):
        called.append("removes")
        signal.disconnect(leaves)
        receivers.clear()

    def leaves(**named):
        called.append("leaves")

    async def dies(**named):
        called.append("dies")

    receivers = [dies]
    signal.connect(removes)
    signal.connect(leaves)
    signal.connect(dies)
    signal.connect(removes, dispatch_uid="again")
    del dies
    with anyio.fail_after(5):
        results = await signal.send(None, x=1)
    gc.collect()
    assert called == ["removes", "removes"]
    assert [receiver for receiver, _ in results] == [removes, removes]


class Given:
    """What a sync receiver may return: to be awaited, and no coroutine."""

    def __await__(self):
        yield from anyio.lowlevel.checkpoint().__await__()
        return "awaited"


async def test_any_awaitable_may_be_returned(group, log):
    """It gets a task, and when the send fails before, it is just let go."""
    for kinds, expected in ((["waits"], ["awaited", 1]), (["sync fails", "waits"], OSError)):
        signal = Signal(["x"], task_group=group)
        signal.connect(lambda **named: Given(), weak=False)
        connect(signal, log, *kinds)
        with anyio.fail_after(5):
            if expected is OSError:
                with pytest.raises(ExceptionGroup):
                    await signal.send(None, x=1)
            else:
                assert [response for _, response in await signal.send(None, x=1)] == expected


async def test_an_awaitable_that_no_task_came_to_await():
    """It is let go, and a coroutine closed, when the group takes no tasks."""

    class Full:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            return None

        def create_task(self, coroutine):
            raise RuntimeError

    for given in (Given, Given().__await__, anyio.lowlevel.checkpoint):
        signal = Signal(["x"], task_group=Full)
        signal.connect(lambda given=given, **named: given(), weak=False)
        signal.connect(lambda **named: None, weak=False)
        with anyio.fail_after(5), contextlib.suppress(ExceptionGroup):
            await signal.send(None, x=1)
    gc.collect()


async def test_closing_a_send():
    """A coroutine that is closed while its lone receiver waits is closed with it, and nothing is raised."""
    signal = Signal(["x"], task_group=anyio.create_task_group)
    log = []

    async def receives(**named):
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            log.append("closed")

    signal.connect(receives)
    coroutine = signal.send(None, x=1)
    coroutine.send(None)
    coroutine.close()
    assert log == ["closed"]


@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_what_a_sync_receiver_returns_may_fail(group, method):
    """Its error is the receiver's, and says so."""
    signal = Signal(["x"], task_group=group)

    async def inner():
        await anyio.lowlevel.checkpoint()
        raise OSError

    def returns(**named):
        return inner()

    async def ends(**named):
        pass

    signal.connect(returns)
    signal.connect(ends)
    with anyio.fail_after(5):
        if method == "send_robust":
            assert [type(response) for _, response in await signal.send_robust(None, x=1)] == [OSError, type(None)]
        else:
            with pytest.raises(ExceptionGroup) as caught:
                await signal.send(None, x=1)
            assert "returns" in caught.value.exceptions[0].__notes__[0]


async def test_errors_that_follow_the_first_keep_their_tracebacks(group):
    """Each error of the `ExceptionGroup` says where it was raised."""
    signal = Signal(["x"], task_group=group)

    async def second(x):
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError

    async def first(x):
        raise LookupError

    async def last(x):
        await anyio.sleep_forever()

    for each in (second, first, last):
        signal.connect(each)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await signal.send(None, x=1)
    places = {type(error): traceback.extract_tb(error.__traceback__)[-1].name for error in caught.value.exceptions}
    assert places == {LookupError: "first", OSError: "second"}


async def test_a_useless_factory_that_cannot_be_shown_raises_its_own_error():
    """Neither a broken `__repr__` nor an exception that takes no notes hides what it raised."""

    class FrozenError(Exception):
        def add_note(self, note):
            raise TypeError(note)

    class Useless:
        def __call__(self):
            raise FrozenError

        def __repr__(self):
            raise LookupError

    signal = Signal(["x"], task_group=Useless())
    receivers = [lambda x: x, lambda x: x]
    for receiver in receivers:
        signal.connect(receiver)
    with pytest.raises(FrozenError):
        await signal.send(None, x=1)
