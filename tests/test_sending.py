import asyncio
import contextlib
import contextvars
import gc
import itertools
import threading
from dataclasses import dataclass

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from asignals import Signal, monitor, raise_errors

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]

context = contextvars.ContextVar("context", default="outside")


def is_asyncio():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.fixture(params=[None, ("a",)], ids=["any", "declared"])
def made(request):
    return Signal(request.param, name="shop.sold")


@pytest.fixture(params=["send", "send_robust"])
def method(request):
    return request.param


@pytest.fixture
def log():
    return []


def logger(log, name, then=None):
    """A receiver that logs its name, and then does something."""

    def receiver(**named):
        log.append(name)
        if then is not None:
            then()

    return receiver


async def send(made, method="send", sender=None):
    return await getattr(made, method)(sender, a=1)


# -- the plain case --


async def test_nobody_hears_an_empty_list(made, method):
    """A signal without receivers returns an empty list."""
    assert await send(made, method) == []


async def test_sync_and_async_receivers_answer_in_order_of_connection(made, method):
    """One receiver ends before the next begins, whichever kind they are."""
    log = []

    async def slow(**named):
        log.append("slow begins")
        await checkpoint()
        log.append("slow ends")
        return 1

    def quick(**named):
        log.append("quick")
        return 2

    made.connect(slow)
    made.connect(quick)
    assert await send(made, method) == [(slow, 1), (quick, 2)]
    assert log == ["slow begins", "slow ends", "quick"]


async def test_receivers_run_in_the_senders_task_and_context(made, method):
    """What a receiver sets in a context variable, the sender and later receivers see."""
    seen = []

    async def sets(**named):
        seen.append(anyio.get_current_task().id)
        context.set("receiver")

    def gets(**named):
        seen.append(anyio.get_current_task().id)
        return context.get()

    made.connect(sets)
    made.connect(gets)
    context.set("sender")
    results = await send(made, method)
    assert results[1] == (gets, "receiver")
    assert context.get() == "receiver"
    assert set(seen) == {anyio.get_current_task().id}


WAYS = {
    "plain": lambda made: contextlib.nullcontext(),
    "watched": lambda made: monitor(print),
    "muted": lambda made: made.muted(send),
    "view": lambda made: contextlib.nullcontext(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_send_suspends_only_where_a_receiver_does(made, method, way):
    """A send to receivers that never wait, or to nobody, is over before the loop runs anything else."""
    view = made.using(task_group=None) if way == "view" else made

    async def instant(**named):
        return 1

    sync = logger([], "sync")
    with WAYS[way](made):
        for expected in ([], [(instant, 1), (sync, None)]):
            coroutine = getattr(view, method)(None, a=1)
            with pytest.raises(StopIteration) as ended:
                coroutine.send(None)
            assert ended.value.value == expected
            made.connect(instant)
            made.connect(sync)


async def test_every_send_gives_a_list_of_its_own(made, method):
    """Changing a result changes no later one."""
    for expected in ([], [(answer := logger([], "answer"), None)]):
        if expected:
            made.connect(answer)
        first = await send(made, method)
        assert first == expected
        first.append("changed")
        assert await send(made, method) == expected


async def test_a_send_may_send_again(method):
    """Receivers may send the same signal, and each send has its own results."""
    made = Signal(["depth"])

    async def again(depth, **named):
        return depth if depth == 3 else await getattr(made, method)(None, depth=depth + 1)

    made.connect(again)
    assert await getattr(made, method)(None, depth=1) == [(again, [(again, [(again, 3)])])]


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("name", ["class", "a b", "", "1", "self", "plan", "named", "receiver", "__debug__", "\ud800"])
async def test_any_string_is_a_keyword_of_an_undeclared_signal(method, collect, name):
    """A keyword need not be an identifier, nor differ from parameters inside the library."""
    made = Signal()
    made.connect(collect)
    await getattr(made, method)("s", **{name: 1})
    assert collect.calls == [{"signal": made, "sender": "s", name: 1}]


async def test_keywords_are_not_normalised(method, collect):
    """Two keywords that Python would read as one identifier in source stay two, and none turns into `sender`."""
    made = Signal()
    made.connect(collect)
    named = {"ﬁ": 1, "fi": 2, "\u017fender": 3}
    await getattr(made, method)("s", **named)
    assert collect.calls == [{"signal": made, "sender": "s", **named}]


async def test_keywords_may_be_members_of_an_enumeration(method, collect):
    """A keyword of a string subclass counts by its value, also where code is written for keywords that come often."""

    class Field(str):
        __slots__ = ()

        def __format__(self, spec):
            return "a, __import__('os')"

    made = Signal()
    made.connect(collect)
    for _ in range(40):
        await getattr(made, method)("s", **{Field("size"): 1})
    assert collect.calls == [{"signal": made, "sender": "s", "size": 1}] * 40


# -- failing --


async def test_the_first_exception_propagates_and_ends_the_send(made, log):
    """The receiver's own exception object arrives, and later receivers are not called."""
    error = ValueError("broken")

    def fails(**named):
        raise error

    after = logger(log, "after")
    made.connect(fails)
    made.connect(after)
    with pytest.raises(ValueError, match="broken") as caught:
        await send(made)
    assert caught.value is error
    assert log == []


@pytest.mark.parametrize("kind", ["function", "coroutine", "method", "partial argument", "once", "thread", "timeout"])
async def test_an_exception_says_which_receiver_of_which_signal_raised_it(kind):
    """Every kind of receiver is named with its file:line in a note."""
    made = Signal(["a"], name="shop.sold")

    def function(**named):
        raise ValueError(kind)

    async def coroutine(**named):
        raise ValueError(kind)

    def picky(a):
        raise ValueError(kind)

    class Handler:
        def method(self, **named):
            raise ValueError(kind)

    handler = Handler()
    receiver, options = {
        "function": (function, {}),
        "coroutine": (coroutine, {}),
        "method": (handler.method, {}),
        "partial argument": (picky, {}),
        "once": (function, {"once": True}),
        "thread": (function, {"in_thread": True}),
        "timeout": (coroutine, {"timeout": 60}),
    }[kind]
    made.connect(receiver, **options)
    with pytest.raises(ValueError, match=kind) as caught:
        await send(made)
    (note,) = caught.value.__notes__
    code = getattr(receiver, "__func__", receiver).__code__
    for part in (code.co_qualname, f"{__file__}:{code.co_firstlineno}", "'shop.sold'"):
        assert part in note
    assert "connected at" not in note  # which is told of receivers without Python code


async def test_an_exception_raised_again_and_again_collects_no_notes(made):
    """The same exception object has one note for each receiver, however often it is raised."""
    error = ValueError()

    def fails(**named):
        raise error

    async def fails_too(**named):
        raise error

    made.connect(fails)
    for _ in range(3):
        with pytest.raises(ValueError):  # noqa: PT011  the object is compared
            await send(made)
    made.connect(fails_too, priority=1)
    with pytest.raises(ValueError):  # noqa: PT011  the object is compared
        await send(made)
    assert len(error.__notes__) == 2


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class NoNotesError(Exception):
    __notes__ = "not a list"


class RefusesNotesError(Exception):
    def add_note(self, note):
        raise RuntimeError


@pytest.mark.parametrize(
    "error", [FrozenError(3), NoNotesError(), RefusesNotesError()], ids=lambda error: type(error).__name__
)
async def test_exceptions_that_take_no_note_come_through(made, error):
    """A note that cannot be added never hides the exception."""

    def fails(**named):
        raise error

    made.connect(fails)
    with pytest.raises(type(error)) as caught:
        await send(made)
    assert caught.value is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
async def test_what_is_no_exception_passes_through(made, method, kind, log):
    """Only `Exception` is an answer; the rest ends sends of either sort at once."""

    def fails(**named):
        raise kind

    made.connect(fails)
    after = logger(log, "after")
    made.connect(after)
    with pytest.raises(kind):
        await send(made, method)
    assert log == []


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_failing_send_leaves_no_reference_cycle(made, depth):
    """An exception, its traceback and the receivers are freed without the garbage collector."""

    class Precious:
        pass

    async def fails(**named):
        precious = Precious()  # noqa: F841  lives as long as this frame
        raise ValueError

    def passing_on_to(signal):
        async def nested(**named):
            await signal.send(None, a=1)

        return nested

    signals = [Signal(made.providing_args) for _ in range(depth)]
    signals[-1].connect(fails)
    kept = [before.connect(passing_on_to(after)) for before, after in itertools.pairwise(signals)]
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            with contextlib.suppress(ValueError):
                await signals[0].send(None, a=1)
        alive = [each for each in gc.get_objects() if type(each) is Precious]
    finally:
        gc.enable()
    assert alive == []
    assert len(kept) == depth - 1


# -- changes while a send is under way --


async def test_receivers_connected_during_a_send_hear_the_next(made, method, log):
    """A send keeps to those who were connected when it began."""
    late = logger(log, "late")
    early = logger(log, "early", lambda: made.connect(late))
    made.connect(early)
    await send(made, method)
    assert log == ["early"]
    await send(made, method)
    assert log == ["early", "early", "late"]


@pytest.mark.parametrize("options", [{}, {"once": True}, {"in_thread": True}, {"priority": -1}], ids=str)
async def test_a_receiver_disconnected_during_a_send_is_not_called(made, method, log, options):
    """`disconnect` holds for sends that are under way."""
    victim = logger(log, "victim")
    first = logger(log, "first", lambda: made.disconnect(victim))
    made.connect(first)
    made.connect(victim, **options)
    await send(made, method)
    assert log == ["first"]


async def test_methods_and_picky_receivers_can_be_disconnected_during_a_send(method, log):
    """Whatever branch a receiver is called in, it is not called after `disconnect`."""
    made = Signal(["a"])

    class Handler:
        def method(self, **named):
            log.append("method")

        async def coroutine(self, **named):
            log.append("coroutine")

    def picky(a):
        log.append("picky")

    async def plain(**named):
        log.append("plain")

    handler = Handler()
    victims = [handler.method, handler.coroutine, picky, plain]
    first = logger(log, "first", lambda: [made.disconnect(victim) for victim in victims])
    made.connect(first)
    for victim in victims:
        made.connect(victim)
    assert len(await send(made, method)) == 1
    assert log == ["first"]


async def test_a_receiver_may_disconnect_itself(made, method, log):
    """It is called this once, and answers."""

    def leaves(**named):
        assert made.disconnect(leaves)
        log.append("left")
        return "bye"

    made.connect(leaves)
    after = logger(log, "after")
    made.connect(after)
    assert (await send(made, method))[0] == (leaves, "bye")
    await send(made, method)
    assert log == ["left", "after", "after"]
    made.disconnect(after)
    assert made.connections == ()


async def test_a_receiver_that_comes_back_during_a_send_hears_the_next(made, method, log):
    """Disconnecting and connecting again makes a new connection, at the end."""
    victim = logger(log, "victim")

    def swap():
        made.disconnect(victim)
        made.connect(victim)

    first = logger(log, "first", swap)
    made.connect(first)
    made.connect(victim)
    await send(made, method)
    assert log == ["first"]
    made.disconnect(first)
    await send(made, method)
    assert log == ["first", "victim"]


async def test_connecting_again_during_a_send_changes_the_call_under_way(method, log):
    """A receiver that is connected again before its turn is called by its new options, once."""
    made = Signal(["a"])
    threads = []

    def victim(a):
        threads.append(threading.current_thread())

    first = logger(log, "first", lambda: made.connect(victim, in_thread=True, priority=5, weak=False))
    made.connect(first)
    made.connect(victim)
    assert len(await send(made, method)) == 2
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_a_weak_receiver_made_strong_during_a_send_is_called(made, method, log):
    """Connecting again with `weak=False` during a send keeps a receiver alive for its turn."""
    holder = [logger(log, "victim")]

    def save():
        made.connect(holder[0], weak=False)
        holder.clear()
        gc.collect()

    first = logger(log, "first", save)
    made.connect(first)
    made.connect(holder[0])
    await send(made, method)
    assert log == ["first", "victim"]


async def test_a_receiver_that_dies_during_a_send_is_skipped(made, method, log):
    """A weak receiver whose last reference goes before its turn is not called and does not answer."""
    holder = [logger(log, "victim")]
    first = logger(log, "first", holder.clear)
    made.connect(first)
    made.connect(holder[0])
    assert await send(made, method) == [(first, None)]
    assert log == ["first"]
    assert len(made.connections) == 1


async def test_an_object_that_dies_during_a_send_is_skipped(made, method, log):
    """The same for bound methods, whose object dies."""

    class Handler:
        def hear(self, **named):
            log.append("victim")

        async def hear_async(self, **named):
            log.append("victim")

    holder = [Handler()]
    first = logger(log, "first", holder.clear)
    made.connect(first)
    made.connect(holder[0].hear)
    made.connect(holder[0].hear_async)
    assert await send(made, method) == [(first, None)]


async def test_a_receiver_that_dies_in_its_own_call_answers(made, method):
    """A receiver whose last reference goes while it runs runs to its end."""
    holder = []

    class Handler:
        async def hear(self, **named):
            holder.clear()
            gc.collect()
            await checkpoint()
            return "done"

    holder.append(Handler())
    made.connect(holder[0].hear)
    ((receiver, response),) = await send(made, method)
    assert response == "done"
    assert receiver.__func__ is Handler.hear
    del receiver
    gc.collect()
    assert await send(made, method) == []


async def test_a_sender_that_dies_with_the_send_under_way_is_no_trouble(made, method, log):
    """The send itself keeps its sender, so all its receivers are called."""

    class Sender:
        pass

    holder = [Sender()]
    first = logger(log, "first", holder.clear)
    second = logger(log, "second")
    made.connect(first, sender=holder[0])
    made.connect(second, sender=holder[0])
    await getattr(made, method)(holder[0], a=1)
    assert log == ["first", "second"]
    assert made.connections == ()


# -- the same for receivers of one kind, which a send walks along without asking each --


class Numbered:
    """An object whose methods do what `act` says when it is their turn."""

    def __init__(self, number, act):
        self.number = number
        self.act = act

    async def method(self, **named):
        return self.act(self.number)

    def sync_method(self, **named):
        return self.act(self.number)

    async def choosy_method(self, a):
        return self.act(self.number)


def numbered(kind, number, act):
    one = Numbered(number, act)

    async def coroutine_function(**named):
        return act(number)

    def function(**named):
        return act(number)

    async def choosy(a):
        return act(number)

    def sync_choosy(a):
        return act(number)

    functions = {
        "coroutine functions": coroutine_function,
        "functions": function,
        "choosy": choosy,
        "sync choosy": sync_choosy,
    }
    methods = {"methods": one.method, "sync methods": one.sync_method, "choosy methods": one.choosy_method}
    return functions[kind] if kind in functions else methods[kind]


KINDS = ["coroutine functions", "functions", "methods", "sync methods", "choosy", "sync choosy", "choosy methods"]


def replace(made, receivers, number):
    made.disconnect(receivers[number])
    made.connect(receivers[number])


def mute(made, receivers):
    with made.muted(everywhere=True):
        pass


# What receiver 1 of 0 to 3 does, who is called by that send, and by the next.
CHANGES = {
    "nothing": (lambda made, receivers: None, [0, 1, 2, 3], [0, 1, 2, 3]),
    "disconnects itself": (lambda made, receivers: made.disconnect(receivers[1]), [0, 1, 2, 3], [0, 2, 3]),
    "disconnects one before": (lambda made, receivers: made.disconnect(receivers[0]), [0, 1, 2, 3], [1, 2, 3]),
    "disconnects the next": (lambda made, receivers: made.disconnect(receivers[2]), [0, 1, 3], [0, 1, 3]),
    "disconnects the last": (lambda made, receivers: made.disconnect(receivers[3]), [0, 1, 2], [0, 1, 2]),
    "replaces the next": (lambda made, receivers: replace(made, receivers, 2), [0, 1, 3], [0, 1, 3, 2]),
    "makes the next once": (lambda made, receivers: made.connect(receivers[2], once=True), [0, 1, 2, 3], [0, 1, 3]),
    "makes one before the last": (
        lambda made, receivers: made.connect(receivers[0], priority=-1),
        [0, 1, 2, 3],
        [1, 2, 3, 0],
    ),
    "lets the next die": (lambda made, receivers: receivers.pop(2), [0, 1, 3], [0, 1, 3]),
    "connects another sender's": (
        lambda made, receivers: made.connect(receivers[0], sender="other"),
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ),
    "mutes and unmutes": (mute, [0, 1, 2, 3], [0, 1, 2, 3]),
}


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_receiver_of_one_kind_changes_the_send_under_way_minds(kind, change, method):
    """Where all receivers are of one kind, a change by one of them has its effect at once and moves nobody's turn."""
    made = Signal(["a"])
    act, during, afterwards = CHANGES[change]
    calls = []

    def called(number):
        calls.append(number)
        if number == 1 and len(calls) == 2:
            act(made, receivers)
            gc.collect()
        return number

    receivers = {number: numbered(kind, number, called) for number in range(4)}
    owners = {number: getattr(receiver, "__self__", None) for number, receiver in receivers.items()}
    if change == "lets the next die":
        owners.clear()
    for number in range(4):
        made.connect(receivers[number])
    assert [response for _, response in await send(made, method)] == during
    assert calls == during
    calls[:] = [None]  # so that nobody acts again
    results = await send(made, method)
    assert calls[1:] == afterwards
    assert results == [(receivers[number], number) for number in afterwards]


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_send_inside_a_send_minds_the_change_before_it(kind, method):
    """Both the inner and the outer send leave out a receiver that is disconnected, and call all others once."""
    made = Signal(["a"])
    calls = []
    inner = []

    def called(number):
        calls.append(number)
        return number

    async def nest(a):
        if not inner:
            inner.append(None)
            made.disconnect(receivers[2])
            inner[0] = await send(made, method)

    receivers = [numbered(kind, number, called) for number in range(4)]
    owners = [getattr(receiver, "__self__", None) for receiver in receivers]
    made.connect(receivers[0])
    made.connect(nest)
    for receiver in receivers[1:]:
        made.connect(receiver)
    outer = await send(made, method)
    assert [response for _, response in inner[0]] == [0, None, 1, 3]
    assert [response for _, response in outer] == [0, None, 1, 3]
    assert calls == [0, 0, 1, 3, 1, 3]
    del owners


async def test_one_receiver_under_two_uids_keeps_both_turns(method, log):
    """A change between the two calls of one receiver neither repeats nor drops one."""
    made = Signal()
    bystander = logger([], "bystander")

    def twice(**named):
        log.append("twice")
        made.disconnect(bystander)

    made.connect(twice, dispatch_uid=1)
    made.connect(twice, dispatch_uid=2)
    made.connect(bystander)
    assert len(await send(made, method)) == 2
    assert log == ["twice", "twice"]


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", range(3))
async def test_a_receiver_of_one_kind_that_fails_is_named(kind, failing, log):
    """The note names the receiver at its place, those before it were called and those after it were not."""
    made = Signal(["a"], name="shop.sold")

    def called(number):
        log.append(number)
        if number == failing:
            raise LookupError(number)
        return number

    receivers = [numbered(kind, number, called) for number in range(3)]
    for receiver in receivers:
        made.connect(receiver)
    with pytest.raises(LookupError) as caught:
        await send(made)
    assert log == list(range(failing + 1))
    (note,) = caught.value.__notes__
    assert receivers[failing].__qualname__ in note
    assert "shop.sold" in note
    log.clear()
    robust = await send(made, "send_robust")
    assert log == [0, 1, 2]
    assert [receiver for receiver, _ in robust] == receivers
    assert [type(response) for _, response in robust] == [LookupError if n == failing else int for n in range(3)]


# -- cancellation --


@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"once": True}], ids=str)
async def test_cancelling_a_scope_cancels_the_receiver_that_runs(made, method, log, options):
    """Cancellation reaches the receiver, is no answer, and keeps later receivers from being called."""

    async def waits(**named):
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cleaned up")

    made.connect(waits, **options)
    after = logger(log, "after")
    made.connect(after)
    results = []
    async with anyio.create_task_group() as group:

        async def sender():
            results.append(await send(made, method))

        group.start_soon(sender)
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert log == ["cleaned up"]
    assert results == []


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_cancelling_the_task_works_at_every_receiver(made, method, position):
    """A native `task.cancel()` arrives at whichever receiver waits, and the send ends with it."""
    if not is_asyncio():
        pytest.skip("tasks are cancelled this way in asyncio only")
    log = []

    def make(number):
        async def waits(**named):
            log.append(number)
            if number == position:
                await anyio.sleep_forever()

        return waits

    kept = [made.connect(make(number)) for number in range(3)]
    task = asyncio.create_task(send(made, method))
    await wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == list(range(position + 1))
    assert len(kept) == 3


async def test_a_receiver_that_shields_itself_is_not_left_behind(made, method, log):
    """A cancelled send ends only after its receiver has."""

    async def shielded(**named):
        with anyio.CancelScope(shield=True):
            await release.wait()
            log.append("done")

    made.connect(shielded)
    release = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(send, made, method)
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        release.set()
    assert log == ["done"]


async def test_a_receiver_that_raises_the_cancellation_itself_ends_a_send(made, log):
    """`send` raises it like any exception: the cancellation exception is never an answer."""
    if not is_asyncio():
        pytest.skip("trio's exception cannot be constructed")

    def fails(**named):
        raise asyncio.CancelledError

    made.connect(fails)
    after = logger(log, "after")
    made.connect(after)
    with pytest.raises(asyncio.CancelledError):
        await send(made, "send")
    assert log == []


def raises_it(**named):
    raise asyncio.CancelledError


async def awaits_a_cancelled_future(**named):
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def awaits_a_cancelled_task(**named):
    task = asyncio.get_running_loop().create_task(anyio.sleep_forever())
    task.cancel()
    await task


@pytest.mark.parametrize("fails", [raises_it, awaits_a_cancelled_future, awaits_a_cancelled_task])
@pytest.mark.parametrize("mode", ["sequential", "group", "watched"])
async def test_a_cancellation_that_nobody_caused_is_the_receivers_error(made, log, caplog, fails, mode):
    """A robust send goes on, logs it once, and returns it as an error that has it as its cause."""
    if not is_asyncio():
        pytest.skip("trio's exception cannot be constructed")
    made.connect(fails)
    after = logger(log, "after")
    made.connect(after)
    view = made.using(task_group=anyio.create_task_group) if mode == "group" else made
    with monitor(lambda report: None) if mode == "watched" else contextlib.nullcontext(), anyio.fail_after(60):
        (first, error), (second, _) = await send(view, "send_robust")
    assert (first, second, log) == (fails, after, ["after"])
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, asyncio.CancelledError)
    assert len([record for record in caplog.records if record.name == "asignals"]) == 1
    with pytest.raises(ExceptionGroup):
        raise_errors([(first, error)])


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_cancellation_that_somebody_caused_passes_through(made, log, how):
    """A robust send that is cancelled, natively or by a scope, raises that and calls no more receivers."""
    if not is_asyncio():
        pytest.skip("natively cancelled tasks are asyncio's")
    task_scope = anyio.CancelScope()

    async def cancels(**named):
        if how == "task":
            asyncio.current_task().cancel()
        else:
            task_scope.cancel()
        await anyio.sleep_forever()

    made.connect(cancels)
    after = logger(log, "after")
    made.connect(after)

    async def run():
        with task_scope:
            await send(made, "send_robust")

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    assert task.cancelled() == (how == "task")
    assert log == []


async def test_a_coroutine_that_is_closed_cleans_up(made, method, log):
    """Closing a send's coroutine closes the receiver that it waits for."""

    async def waits(**named):
        try:
            await checkpoint()
        finally:
            log.append("closed")

    if not is_asyncio():
        pytest.skip("a coroutine can be stepped by hand in asyncio only")
    made.connect(waits)
    coroutine = send(made, method)
    coroutine.send(None)
    coroutine.close()
    assert log == ["closed"]


# -- once --


@pytest.mark.parametrize("kind", ["sync", "async", "picky"])
async def test_once_is_one_call(method, kind):
    """A receiver connected with `once` hears one send and is disconnected."""
    made = Signal(["a"])
    calls = []

    async def coroutine(**named):
        calls.append(named)
        await checkpoint()

    def plain(**named):
        calls.append(named)

    def picky(a):
        calls.append(a)

    receiver = {"sync": plain, "async": coroutine, "picky": picky}[kind]
    made.connect(receiver, once=True)
    assert len(await send(made, method)) == 1
    assert await send(made, method) == []
    assert len(calls) == 1
    assert made.connections == ()


async def test_once_is_disconnected_before_its_call(made, method):
    """Inside its call the receiver is connected no more, and may connect itself again."""

    def hears(**named):
        seen.append(made.connections)
        made.connect(hears, once=True)

    seen = []
    made.connect(hears, once=True)
    await send(made, method)
    await send(made, method)
    assert seen == [(), ()]
    assert len(made.connections) == 1
    assert made.disconnect(hears)  # or it would die unheard


async def test_once_is_one_call_when_sends_race(made, method):
    """However many sends are under way, one of them calls the receiver."""
    calls = []

    async def waits(**named):
        await gate.wait()

    async def only(**named):
        calls.append(named)
        await checkpoint()

    gate = anyio.Event()
    made.connect(waits)
    made.connect(only, once=True)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(send, made, method)
        await wait_all_tasks_blocked()
        gate.set()
    assert len(calls) == 1


async def test_once_that_fails_is_used_up(made):
    """A failing call is the one call."""

    def fails(**named):
        raise ValueError

    made.connect(fails, once=True)
    with pytest.raises(ValueError):  # noqa: PT011  any
        await send(made)
    assert await send(made) == []


async def test_once_that_is_never_called_stays(made, log):
    """A send that does not come to the receiver leaves it connected."""

    def fails(**named):
        raise ValueError

    only = logger(log, "only")
    made.connect(fails)
    made.connect(only, once=True)
    with pytest.raises(ValueError):  # noqa: PT011  any
        await send(made)
    made.disconnect(fails)
    await send(made)
    assert log == ["only"]


# -- timeout --


async def test_a_timeout_cancels_the_receiver_and_is_its_error(made, log):
    """A receiver that takes too long gets cancelled and raises TimeoutError."""

    async def slow(**named):
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    made.connect(slow, timeout=0.001)
    with anyio.fail_after(60), pytest.raises(TimeoutError):
        await send(made)
    assert log == ["cancelled"]


async def test_a_receiver_in_time_answers(made, method):
    """A timeout changes nothing for a receiver that keeps it."""

    async def quick(**named):
        await checkpoint()
        return "quick"

    made.connect(quick, timeout=60)
    assert await send(made, method) == [(quick, "quick")]


async def test_a_receivers_own_timeout_error_is_its_own(made):
    """TimeoutError raised by a receiver is passed on as the object it is."""
    error = TimeoutError("mine")

    async def fails(**named):
        raise error

    made.connect(fails, timeout=60)
    with pytest.raises(TimeoutError, match="mine") as caught:
        await send(made)
    assert caught.value is error


# -- in_thread --


async def test_in_thread_runs_elsewhere_with_the_senders_context(made, method):
    """The receiver runs in a worker thread, sees the sender's context, and changes only its copy."""

    def works(**named):
        seen = context.get(), threading.current_thread()
        context.set("worker")
        return seen

    context.set("sender")
    made.connect(works, in_thread=True)
    ((_, (value, thread)),) = await send(made, method)
    assert value == "sender"
    assert thread is not threading.current_thread()
    assert context.get() == "sender"


async def test_in_thread_keeps_its_place_in_the_order(made, method, log):
    """The send waits for the thread before it goes on."""
    first, second, third = logger(log, 1), logger(log, 2), logger(log, 3)
    made.connect(first)
    made.connect(second, in_thread=True)
    made.connect(third)
    await send(made, method)
    assert log == [1, 2, 3]


async def test_what_a_thread_returns_to_be_awaited_is_awaited_by_the_sender(made, method):
    """A sync receiver in a thread that returns a coroutine has it run in the sender's task."""

    async def later():
        await checkpoint()
        return threading.current_thread()

    def works(**named):
        return later()

    made.connect(works, in_thread=True)
    assert await send(made, method) == [(works, threading.current_thread())]


async def test_the_loop_goes_on_while_a_thread_works(made, method):
    """A blocking receiver in a thread waits for something that only the loop can do."""
    gate = threading.Event()

    def blocks(**named):
        return gate.wait(60)

    async def opens():
        await checkpoint()
        gate.set()

    made.connect(blocks, in_thread=True)
    async with anyio.create_task_group() as group:
        group.start_soon(opens)
        assert await send(made, method) == [(blocks, True)]


# -- views --


async def test_a_view_sends_with_the_signals_own_receivers(made, method, log):
    """`using` gives the same signal: same receivers, same name, and receivers get the signal itself."""

    def hears(signal, **named):
        return signal

    view = made.using(task_group=None)
    view.connect(hears)
    assert view.name == made.name
    assert view.connections == made.connections
    ((_, signal),) = await send(view, method)
    assert signal is made
    ((_, signal),) = await send(view.using().using(limit=3), method)
    assert signal is made
    assert made.disconnect(hears)


async def test_a_signal_that_counts_as_false_is_still_the_signal(method):
    """A subclass whose `len` is 0 reaches its receivers through views too."""

    class Counted(Signal):
        def __len__(self):
            return 0

    made = Counted(["a"])

    def hears(signal, a):
        return signal is made

    made.connect(hears)
    assert await send(made.using(), method) == [(hears, True)]
    assert await send(made.using().using(), method) == [(hears, True)]
