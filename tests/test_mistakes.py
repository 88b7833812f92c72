"""The mistakes that newcomers make most, and what each of them gets to read: what is wrong, where, and what to do."""

import asyncio
import functools
import gc
import re
import types
from collections.abc import Awaitable, Callable

import anyio
import pytest

from asignals import Background, ReceiverLostWarning, Signal, monitor, receiver, signal

pytestmark = pytest.mark.loops("asyncio")

HERE = r"\(.*test_mistakes\.py:\d+\)"


def done() -> Signal:
    return Signal(["toppings"], name="shop.pizza_done")


def anything() -> Signal:
    return Signal(name="shop.anything")


async def cook(toppings): ...


def note(toppings): ...


def forgetful(sender): ...


def misspelt(topping): ...


def generator(toppings):
    yield toppings


async def async_generator(toppings):
    yield toppings


def positional(sender, /, **named): ...


class Waiter:
    def __init__(self, table, name): ...

    def serve(self, toppings): ...


class Selfless:
    """Methods that forget `self`."""

    def by_name(toppings): ...  # noqa: N805  the mistake

    async def with_others(sender, **named): ...  # noqa: N805

    def of_others(**named): ...

    def of_nothing(): ...

    @classmethod
    def of_class(signal, **named): ...  # noqa: N804

    def __call__(sender, **named): ...  # noqa: N805


def unawaited(sending: Awaitable[object]) -> None:
    del sending
    gc.collect()


CONNECTING: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no **kwargs": (
        lambda: anything().connect(forgetful),
        ValueError,
        rf"cannot connect .*forgetful {HERE} to signal 'shop\.anything': .* add \*\*kwargs",
    ),
    "an argument that is never sent": (
        lambda: done().connect(misspelt),
        ValueError,
        rf"cannot connect .*misspelt {HERE} to signal 'shop\.pizza_done': it asks for 'topping', and the signal",
    ),
    "the result of a call": (
        lambda: done().connect(str(note)),
        TypeError,
        r"cannot connect to signal 'shop\.pizza_done': a receiver must be callable, not 'str'",
    ),
    "a method that takes its object for an argument": (
        lambda: done().connect(Selfless().by_name),
        ValueError,
        rf"by_name {HERE} to signal 'shop\.pizza_done': .* 'toppings' by name: the first parameter of a method is self",
    ),
    "a method without self": (
        lambda: anything().connect(Selfless().with_others),
        ValueError,
        rf"with_others {HERE} .* 'sender' by name: the first parameter of a method is self",
    ),
    "a method that takes nothing by position": (
        lambda: anything().connect(Selfless().of_others),
        ValueError,
        rf"of_others {HERE} .* the first parameter of a method is self",
    ),
    "a method that takes nothing": (
        lambda: done().connect(Selfless().of_nothing),
        ValueError,
        rf"of_nothing {HERE} .* the first parameter of a method is self",
    ),
    "a class method without cls": (
        lambda: anything().connect(Selfless.of_class),
        ValueError,
        rf"of_class {HERE} .* 'signal' by name: the first parameter of a method is self",
    ),
    "a callable object without self": (
        lambda: anything().connect(Selfless()),
        ValueError,
        rf"Selfless {HERE} .* 'sender' by name: the first parameter of a method is self",
    ),
    "a partial that gives what is sent": (
        lambda: anything().connect(functools.partial(lambda sender, **named: None, "web"), weak=False),
        ValueError,
        rf"<lambda> {HERE} .* 'sender' by name: .* a partial gives by name what is sent",
    ),
    "a partial of a method that gives what is sent": (
        lambda: Signal(["a"]).connect(functools.partial(types.MethodType(lambda self, a, **named: None, 1), 2)),
        ValueError,
        rf"<lambda> {HERE} .* 'a' by name: .* a partial gives by name what is sent",
    ),
    "a generator function": (
        lambda: done().connect(generator),
        ValueError,
        rf"generator {HERE} to signal 'shop\.pizza_done': it is a generator function, .* make it a function",
    ),
    "an async generator function": (
        lambda: done().connect(async_generator),
        ValueError,
        rf"async_generator {HERE} to signal 'shop\.pizza_done': it is a generator function",
    ),
    "a timeout for a sync receiver": (
        lambda: done().connect(note, timeout=1),
        ValueError,
        rf"note {HERE} to signal 'shop\.pizza_done': timeout is for async receivers",
    ),
    "a thread for an async receiver": (
        lambda: done().connect(cook, in_thread=True),
        ValueError,
        rf"cook {HERE} to signal 'shop\.pizza_done': in_thread=True is for sync receivers",
    ),
    "a timeout that is text": (
        lambda: done().connect(cook, timeout="3"),
        ValueError,
        rf"cook {HERE} .* timeout must be a positive number of seconds, not '",
    ),
    "a priority that is text": (
        lambda: done().connect(note, priority="high"),
        ValueError,
        rf"note {HERE} .* priority must be a number, not '",
    ),
    "a misspelt option": (
        lambda: done().connect(note, senders="web"),
        TypeError,
        r"connect\(\) got an unexpected keyword argument 'senders'",
    ),
    "a class with arguments of its own": (
        lambda: done().connect(Waiter),
        ValueError,
        r"Waiter.* to signal 'shop\.pizza_done': it asks for 'table', 'name', and the signal sends",
    ),
    "positional-only parameters": (
        lambda: done().connect(positional),
        ValueError,
        rf"positional {HERE} .*: arguments go by name, and its parameter 'sender' can only be given by position",
    ),
    "subclasses of what is no class": (
        lambda: done().connect(note, "web", subclasses=True),
        ValueError,
        rf"note {HERE} .* subclasses=True needs a class as the sender, not 'str'",
    ),
    "receiver without a signal": (lambda: receiver(note), TypeError, r"receiver\(\) takes a signal, or several"),
    "receiver of a name": (lambda: receiver("pizza_done"), TypeError, r"takes a signal, or several.*not 'pizza_done'"),
    "text as arguments": (
        lambda: Signal("toppings"),
        ValueError,
        r"an iterable of names, not the string 'toppings'; use name=",
    ),
    "sender as an argument": (lambda: Signal(["sender"]), ValueError, r"'sender' is reserved"),
    "a stub with positional arguments": (
        lambda: signal(lambda sender, toppings: None),
        ValueError,
        r"'toppings' must be keyword-only; write def .*\(sender, \*, \.\.\.\)",
    ),
    "a stub without a sender": (lambda: signal(note), ValueError, r"@signal stub .*note: its first parameter must be"),
    "a task group instead of its factory": (
        lambda: Signal(task_group=asyncio.TaskGroup()),
        TypeError,
        r"task_group must be a factory of task groups, such as anyio\.create_task_group, not",
    ),
    "calling the signal": (lambda: done()("web"), TypeError, "'Signal' object is not callable"),
    "overflow misspelt": (lambda: done().stream(overflow="drop"), ValueError, "one of 'wait', 'drop_oldest'"),
}


@pytest.mark.parametrize("mistake", CONNECTING)
def test_declaring_and_connecting(mistake: str) -> None:
    """Refused where it is done, and the message names the signal, the receiver with its place, and what to do."""
    action, kind, text = CONNECTING[mistake]
    with pytest.raises(kind, match=text):
        action()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((("web",), {"topping": 1}), "unexpected keyword argument 'topping'"),
        ((("web",), {}), "missing 1 required keyword-only argument: 'toppings'"),
        (((), {"toppings": 1}), "missing 1 required positional argument: 'sender'"),
        ((("web", ["basil"]), {}), r"takes 2 positional arguments but 3 were given"),
    ],
)
def test_sending_what_is_not_declared(arguments, text: str) -> None:
    """Python's own words, at the call, before there is anything to await."""
    positional, named = arguments
    with pytest.raises(TypeError, match=rf"Signal\.send\(\).* {text}" if "takes" not in text else text):
        done().send(*positional, **named)


def test_not_awaiting_a_send() -> None:
    """Python warns at the line of the call, also where nobody hears it."""
    heard = done()
    heard.connect(cook)
    for each in (heard, done()):
        with pytest.warns(RuntimeWarning, match=r"coroutine 'Signal\.send' was never awaited"):
            unawaited(each.send("web", toppings=1))
    for send in (heard.send_robust, heard.using(task_group=anyio.create_task_group).send):
        with pytest.warns(RuntimeWarning, match=r"coroutine 'Signal\.send' was never awaited"):
            unawaited(send("web", toppings=1))
    with monitor(str), pytest.warns(RuntimeWarning, match=r"coroutine 'Signal\.send' was never awaited"):
        unawaited(heard.send("web", toppings=1))


@pytest.mark.parametrize(
    "lost", [lambda: lambda toppings: None, lambda: Waiter(1, "Ada").serve], ids=["lambda", "method"]
)
def test_connecting_what_nobody_holds(lost) -> None:
    """A warning at the line of the `connect`, which names both and says `weak=False`."""
    pizza_done = done()
    with pytest.warns(ReceiverLostWarning, match=r"signal 'shop\.pizza_done'.*weak=False") as warned:
        pizza_done.connect(lost())
    assert warned[0].filename == __file__


def test_disconnecting_another_lambda() -> None:
    """An equal lambda is another one: `disconnect` says that there was none."""
    some = done()
    some.connect(lambda toppings: None, weak=False)
    assert some.disconnect(lambda toppings: None) is False


@pytest.mark.anyio
async def test_a_receiver_that_starts_a_loop_of_its_own(anyio_backend) -> None:
    """The error is Python's or anyio's, with a note that names receiver and signal."""
    some = done()

    def starts(toppings) -> None:
        anyio.run(anyio.sleep, 0)

    some.connect(starts)
    with pytest.raises(RuntimeError) as caught:
        await some.send("web", toppings=1)
    assert re.search(rf"starts {HERE}, a receiver of signal 'shop\.pizza_done'", caught.value.__notes__[0])


@pytest.mark.anyio
async def test_a_background_that_is_not_entered(anyio_backend) -> None:
    """It says that its block must be run."""
    with pytest.raises(anyio.ClosedResourceError, match="only while its block is being run"):
        await Background().send(done(), "web", toppings=1)


@pytest.mark.anyio
async def test_a_stream_that_is_not_entered(anyio_backend) -> None:
    """It says how it is entered."""
    with pytest.raises(RuntimeError, match=r"enter the stream first: async with signal\.stream\(\) as events"):
        await anext(aiter(done().stream()))


@pytest.mark.anyio
async def test_a_misspelt_attribute_of_an_event(anyio_backend) -> None:
    """It names the signal, and what the event has."""
    some = done()
    async with some.stream() as events:
        await some.send("web", toppings=1)
        event = await anext(aiter(events))
        with pytest.raises(AttributeError, match=r"signal 'shop\.pizza_done' has no argument 'topping', but toppings"):
            _ = event.topping


@pytest.mark.anyio
async def test_a_receiver_that_takes_too_long(anyio_backend) -> None:
    """The error says how long it may take, and its note which receiver of which signal it is."""
    some = done()

    async def dawdle(toppings) -> None:
        await anyio.sleep_forever()

    some.connect(dawdle, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"longer than its timeout of 0\.01 s") as caught:
        await some.send("web", toppings=1)
    assert re.search(rf"dawdle {HERE}, a receiver of signal 'shop\.pizza_done'", caught.value.__notes__[0])


GIVEN = {
    "method": lambda: Waiter(1, "Ada").serve,
    "partial by position": lambda: functools.partial(lambda toppings, sender: sender, 1),
    "partial by name": lambda: functools.partial(lambda sender, **named: sender, sender="web"),
    "partial of the object": lambda: functools.partial(lambda db, sender, **named: sender, object()),
    "position only": lambda: functools.partial(lambda sender, /, **named: named["sender"], "web"),
    "self that is sent": lambda: types.MethodType(lambda self, sender: sender, "object"),
    "any arguments": lambda: types.MethodType(lambda *args, **named: named["sender"], "object"),
    "static method": lambda: staticmethod(lambda sender, **named: sender),
    "wrapper that takes the object": lambda: types.MethodType(taking_self(lambda sender, **named: sender), "object"),
    "wrapper of other names": lambda: types.MethodType(renaming(lambda self, other, **named: other), "object"),
}


def taking_self(function):
    @functools.wraps(function)
    def wrapper(self, *args, **named):
        return function(*args, **named)

    return wrapper


def renaming(function):
    @functools.wraps(function)
    def wrapper(self, sender, **named):
        return function(self, sender)

    return wrapper


@pytest.mark.parametrize("make", GIVEN.values(), ids=GIVEN)
async def test_what_is_given_by_position_and_not_sent_is_no_mistake(make, anyio_backend) -> None:
    """Objects of methods and arguments of partials are refused only where a send would give them once more."""
    names = ["toppings", "self"] if make is GIVEN["self that is sent"] else ["toppings"]
    fine = Signal(None if make is GIVEN["wrapper of other names"] else names)
    receives = make()
    fine.connect(receives, weak=False)
    ((_, response),) = await fine.send("web", **dict.fromkeys(names))
    assert response in {"web", None}
