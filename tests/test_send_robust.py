import asyncio
import contextlib
import functools
import gc
import logging
from dataclasses import dataclass

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asignals import Signal, raise_errors

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class EmptyError(Exception):
    """A falsy one, as an error that is a collection may be."""

    def __len__(self):
        return 0


class SlottedReceiver:
    """A receiver that cannot be weakly referenced, fails, and may leave while it does."""

    __slots__ = ("leave",)

    def __init__(self, leave=None):
        self.leave = leave

    def __call__(self, **named):
        if self.leave is not None:
            self.leave()
        raise ValueError


class CallableObject:
    def __call__(self, **named):
        raise ValueError

    def method(self, **named):
        raise ValueError


class AsyncCallableObject:
    async def __call__(self, **named):
        await checkpoint()
        raise ValueError


def fails(**named):
    raise ValueError


async def fails_late(**named):
    await checkpoint()
    raise ValueError


def fails_when_awaited(**named):
    return fails_late()


def answers(**named):
    return "answer"


@pytest.fixture(params=[None, ("a",)], ids=["any", "declared"])
def made(request):
    return Signal(request.param, name="shop.sold")


async def send(made, sender=None):
    return await made.send_robust(sender, a=1)


KINDS = {
    "function": fails,
    "coroutine function": fails_late,
    "awaitable": fails_when_awaited,
    "partial": functools.partial(fails),
    "async partial": functools.partial(fails_late),
    "callable object": CallableObject(),
    "async callable object": AsyncCallableObject(),
    "method": CallableObject().method,
    "slotted": SlottedReceiver(),
    "builtin": functools.partial(int, "not a number"),
    "bound __call__": CallableObject().__call__,
}


@pytest.mark.parametrize("options", [{}, {"once": True}, {"in_thread": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_fails_is_returned_and_logged_once(made, caplog, kind, options):
    """Any kind of receiver that fails has its exception in its place, and one log record with the traceback."""
    receiver = KINDS[kind]
    made.connect(answers)
    is_async = made.connect(receiver, weak=False) and made.connections[1].is_async
    if is_async and "in_thread" in options:
        options = {"timeout": 60}
    made.connect(receiver, weak=False, **options)
    made.connect(answers, sender="also after")
    with caplog.at_level(logging.ERROR, "asignals"):
        results = await send(made, "also after")
    assert [got for got, _ in results] == [answers, receiver, answers]
    error = results[1][1]
    assert isinstance(error, ValueError | TypeError)
    (record,) = caplog.records
    assert record.name == "asignals"
    assert record.exc_info[1] is error
    assert "shop.sold" in record.getMessage()
    assert record.exc_text or logging.Formatter().formatException(record.exc_info)
    caplog.clear()


async def test_without_failures_it_is_send(made):
    """Responses are what `send` gives, and nothing is logged."""
    made.connect(answers)
    assert await send(made) == await made.send(None, a=1) == [(answers, "answer")]


async def test_a_frozen_exception_is_returned(made):
    """An exception that lets nobody assign to it comes back, and a good traceback with it."""

    def breaks(**named):
        raise FrozenError(3)

    made.connect(breaks)
    made.connect(answers)
    ((_, error), (_, answer)) = await send(made)
    assert error == FrozenError(3)
    assert answer == "answer"
    assert error.__traceback__.tb_frame.f_code is breaks.__code__


async def test_a_falsy_exception_is_logged_with_its_traceback(made, caplog):
    """An exception that counts as false is logged like any other."""

    def breaks(**named):
        raise EmptyError

    made.connect(breaks)
    ((_, error),) = await send(made)
    (record,) = caplog.records
    assert record.exc_info[1] is error
    assert "EmptyError" in record.exc_text


async def test_failing_logging_keeps_no_receiver_from_running(made):
    """An error that cannot be logged is in the results all the same, and later receivers run."""

    def refuses(record):
        raise RuntimeError(record)

    made.connect(fails)
    made.connect(answers)
    logger = logging.getLogger("asignals")
    logger.addFilter(refuses)
    try:
        ((_, error), (_, answer)) = await send(made)
    finally:
        logger.removeFilter(refuses)
    assert isinstance(error, ValueError)
    assert answer == "answer"


@pytest.mark.parametrize("options", [{}, {"once": True}], ids=str)
async def test_a_failing_receiver_that_leaves_is_still_named(made, options):
    """A receiver that disconnects itself, and that nobody else holds, keeps its place in the results."""
    receiver = SlottedReceiver()
    receiver.leave = functools.partial(made.disconnect, receiver)
    made.connect(receiver, weak=False, **options)
    expected = receiver
    del receiver
    ((got, error),) = await send(made)
    assert got is expected
    assert isinstance(error, ValueError)
    assert made.connections == ()


async def test_a_method_whose_object_dies_in_its_call_is_still_named(made):
    """The results name the failed method even if only the send holds its object."""
    holder = []

    class Handler:
        def hear(self, **named):
            holder.clear()
            raise ValueError

    holder.append(Handler())
    made.connect(holder[0].hear)
    ((got, error),) = await send(made)
    assert got.__func__ is Handler.hear
    assert isinstance(error, ValueError)


async def test_all_receivers_run_whatever_fails(made):
    """Failures in front of a receiver do not keep it from running."""
    kept = [functools.partial(fails) for _ in range(3)]
    for each in kept:
        made.connect(each)
    made.connect(answers)
    assert [type(response) for _, response in await send(made)] == [ValueError, ValueError, ValueError, str]


async def test_one_exception_object_may_fail_again_and_again(made):
    """A receiver that raises the same object each time gives that object each time."""
    error = ValueError("same")

    def breaks(**named):
        raise error

    async def breaks_too(**named):
        raise error

    made.connect(breaks)
    made.connect(breaks_too)
    for _ in range(3):
        assert await send(made) == [(breaks, error), (breaks_too, error)]
    assert not getattr(error, "__notes__", None)


async def test_stop_iteration_is_an_error_like_others(made):
    """StopIteration, which Python changes when it leaves a coroutine, comes back as raised by a sync receiver."""

    def breaks(**named):
        raise StopIteration(3)

    made.connect(breaks)
    made.connect(answers)
    ((_, error), (_, answer)) = await send(made)
    assert type(error) is StopIteration
    assert answer == "answer"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_is_no_exception_is_no_answer(made, kind, caplog):
    """Only `Exception` is caught, and the rest is not logged as a failure."""

    def breaks(**named):
        raise kind

    made.connect(breaks)
    with pytest.raises(kind):
        await send(made)
    assert caplog.records == []


@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"once": True}], ids=str)
async def test_cancellation_is_never_reported_as_an_answer(made, options, caplog):
    """A cancelled send returns nothing: it is cancelled, and nothing is logged."""

    async def waits(**named):
        await anyio.sleep_forever()

    made.connect(waits, **options)
    results = []

    async def sender():
        results.append(await send(made))

    async with anyio.create_task_group() as group:
        group.start_soon(sender)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert results == []
    assert caplog.records == []


async def test_native_cancellation_is_never_reported_as_an_answer(made, caplog):
    """The same for asyncio's `task.cancel()`."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()

        async def waits(**named):
            await anyio.sleep_forever()

        made.connect(waits)
        task = asyncio.create_task(send(made))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert caplog.records == []


async def test_a_timeout_is_an_answer(made):
    """A receiver that takes too long has TimeoutError as its response."""

    async def waits(**named):
        await anyio.sleep_forever()

    made.connect(waits, timeout=0.001)
    made.connect(answers)
    with anyio.fail_after(60):
        ((_, error), (_, answer)) = await send(made)
    assert isinstance(error, TimeoutError)
    assert answer == "answer"


async def test_a_robust_send_leaves_no_reference_cycle(made, monkeypatch):
    """Results with their exceptions and tracebacks are freed without the garbage collector."""
    monkeypatch.setattr(logging.getLogger("asignals"), "disabled", True)  # handlers may keep records

    class Precious:
        pass

    async def breaks(**named):
        precious = Precious()  # noqa: F841  lives as long as this frame
        raise ValueError

    async def breaks_inside(**named):
        return await send(inner)

    inner = Signal()
    inner.connect(breaks)
    made.connect(breaks)
    made.connect(breaks, dispatch_uid="the long way", timeout=60)
    made.connect(breaks_inside)
    gc.collect()
    gc.disable()
    try:
        results = await send(made)
        assert len(results) == 3
        del results
        alive = [each for each in gc.get_objects() if type(each) is Precious]
    finally:
        gc.enable()
    assert alive == []


async def test_a_failing_logger_is_the_only_trouble(made, monkeypatch, capsys):
    """A handler that fails is logging's own affair; the send goes on."""

    class Broken(logging.Handler):
        def emit(self, record):
            try:
                open("/nowhere/at/all").close()  # noqa: PTH123  fails
            except OSError:
                self.handleError(record)

    handler = Broken()
    logging.getLogger("asignals").addHandler(handler)
    try:
        made.connect(fails)
        made.connect(answers)
        assert [type(response) for _, response in await send(made)] == [ValueError, str]
    finally:
        logging.getLogger("asignals").removeHandler(handler)
    assert "FileNotFoundError" in capsys.readouterr().err


# -- raise_errors --


async def test_raise_errors_returns_results_without_errors(made):
    """Where nothing failed the results are handed on."""
    made.connect(answers)
    assert raise_errors(await send(made)) == [(answers, "answer")]
    assert raise_errors([]) == []


async def test_raise_errors_raises_all_of_them_in_order(made):
    """Every error is in one ExceptionGroup, as the objects they are, in order of the receivers."""
    made.connect(fails)
    made.connect(answers)
    made.connect(fails_late)
    results = await send(made)
    with pytest.raises(ExceptionGroup) as caught:
        raise_errors(results)
    assert list(caught.value.exceptions) == [results[0][1], results[2][1]]
    assert "2 of 3" in str(caught.value)


async def test_raise_errors_makes_a_group_of_a_single_error(made):
    """One error is raised in a group too, so that `except*` always works."""
    made.connect(fails)
    results = await send(made)
    caught = []
    try:
        raise_errors(iter(results))
    except* ValueError as group:
        caught.extend(group.exceptions)
    assert caught == [results[0][1]]


async def test_raise_errors_counts_returned_exceptions_as_failures(made):
    """A receiver that returns an exception cannot be told from one that raises it."""

    def returns(**named):
        return KeyError("returned")

    made.connect(returns)
    results = await send(made)
    with pytest.raises(ExceptionGroup):
        raise_errors(results)


async def test_an_error_that_hides_its_traceback_is_returned(made):
    """An exception class with a `__traceback__` of its own is an error like any other."""

    class HidingError(Exception):
        __traceback__ = None

    def fails(**named):
        raise HidingError

    made.connect(fails)
    ((receiver, error),) = await made.send_robust(None, a=1)
    assert receiver is fails
    assert type(error) is HidingError
