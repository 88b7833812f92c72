import asyncio
import functools
import inspect
import sys
import types
from inspect import Parameter, Signature
from unittest import mock

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asignals import InvalidReceiverError, Signal
from asignals._core import name_of

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]

NAMES = ("a", "b")


class Handler:
    def method(self, **named):
        return "method"

    async def coroutine(self, **named):
        return "coroutine"

    @classmethod
    def of_class(cls, **named):
        return cls, "of_class"

    @staticmethod
    def static(**named):
        return "static"

    def __call__(self, **named):
        return "called"


class AsyncHandler:
    async def __call__(self, **named):
        return "awaited"


class Inheriting(AsyncHandler):
    pass


class Yielding:
    """Awaitable, and no coroutine."""

    def __await__(self):
        yield from anyio.lowlevel.checkpoint().__await__()
        return "yielded"


def function(**named):
    return "function"


async def coroutine(**named):
    await anyio.lowlevel.checkpoint()
    return "coroutine"


def returns_coroutine(**named):
    return coroutine(**named)


def returns_awaitable(**named):
    return Yielding()


@types.coroutine
def generator_based(**named):
    yield from anyio.lowlevel.checkpoint().__await__()
    return "generator based"


@functools.wraps(coroutine)
def wrapper(*args, **kwargs):
    return coroutine(*args, **kwargs)


handler, async_handler, inheriting = Handler(), AsyncHandler(), Inheriting()

KINDS = {
    "function": (function, "function", False),
    "coroutine function": (coroutine, "coroutine", True),
    "lambda": (lambda **named: "lambda", "lambda", False),
    "method": (handler.method, "method", False),
    "coroutine method": (handler.coroutine, "coroutine", True),
    "classmethod": (Handler.of_class, (Handler, "of_class"), False),
    "staticmethod": (Handler.static, "static", False),
    "callable object": (handler, "called", False),
    "async callable object": (async_handler, "awaited", True),
    "inherited async __call__": (inheriting, "awaited", True),
    "partial": (functools.partial(function), "function", False),
    "partial of a coroutine function": (functools.partial(functools.partial(coroutine), x=1), "coroutine", True),
    "partial of an async callable object": (functools.partial(async_handler), "awaited", True),
    "partial of a method": (functools.partial(handler.coroutine), "coroutine", True),
    "returns a coroutine": (returns_coroutine, "coroutine", False),
    "returns another awaitable": (returns_awaitable, "yielded", False),
    "types.coroutine": (generator_based, "generator based", False),
    "wrapper": (wrapper, "coroutine", False),
    "lru_cache": (functools.lru_cache(function), "function", False),
    "method of a callable object": (types.MethodType(lambda self, **named: self, 5), 5, False),
    "bound __call__": (handler.__call__, "called", False),
    "class": (dict, None, False),
}


@pytest.fixture(params=[None, NAMES], ids=["any", "declared"])
def made(request):
    return Signal(request.param, name="shop.sold")


# -- kinds --


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("method", ["send", "send_robust"])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_callable_is_a_receiver(made, kind, method):
    """Whatever can be called with keywords can be connected, gets all arguments, and awaitables are awaited."""
    each, response, is_async = KINDS[kind]
    assert made.connect(each, weak=False) is each
    ((got, answer),) = await getattr(made, method)("s", a=1, b=2)
    assert got == each
    assert answer == ({"signal": made, "sender": "s", "a": 1, "b": 2} if kind == "class" else response)
    assert made.connections[0].is_async == is_async
    assert made.disconnect(each)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction came with Python 3.12")
async def test_a_function_marked_as_a_coroutine_function_is_async(made):
    """`inspect.markcoroutinefunction` makes functions, methods and objects async receivers."""
    mark = inspect.markcoroutinefunction

    def marked(**named):
        return coroutine(**named)

    class Marked:
        def __call__(self, **named):
            return coroutine(**named)

    thing = mark(Marked())
    for each in (mark(marked), thing):
        made.connect(each, timeout=5)
    assert all(connection.is_async for connection in made.connections)
    assert [response for _, response in await made.send(None, a=1, b=2)] == ["coroutine"] * 2


async def test_a_sync_receiver_may_return_a_future():
    """A future that is done, or will be, is awaited like a coroutine."""
    if asyncio_is_not_running():
        pytest.skip("futures are asyncio's")
    made = Signal()
    future = asyncio.get_running_loop().create_future()

    def start(**named):
        if not future.done():
            asyncio.get_running_loop().call_soon(future.set_result, 7)
        return future

    made.connect(start)
    assert await made.send(None) == [(start, 7)]
    assert future.done()
    assert await made.send_robust(None) == [(start, 7)]


def asyncio_is_not_running():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("declared", [None, NAMES], ids=["any", "declared"])
@pytest.mark.parametrize(
    "make",
    [
        mock.Mock,
        mock.MagicMock,
        lambda **options: mock.Mock(spec=function, **options),
        lambda **options: mock.MagicMock(spec=function, **options),
        lambda **options: mock.MagicMock(spec=coroutine, **options),
        lambda **options: mock.MagicMock(spec=handler.method, **options),
        lambda **options: mock.MagicMock(spec=Handler.of_class, **options),
        lambda **options: mock.MagicMock(spec=functools.partial(function), **options),
        lambda **options: mock.MagicMock(spec=handler, **options),
        lambda **options: mock.create_autospec(function, **options),
        mock.AsyncMock,
    ],
    ids=[
        "Mock",
        "MagicMock",
        "spec",
        "magic",
        "coroutine",
        "method",
        "class",
        "partial",
        "object",
        "auto",
        "AsyncMock",
    ],
)
async def test_mocks_are_receivers(make, declared):
    """A mock is called like what it is, whatever its `__class__` pretends to be."""
    made = Signal(declared)
    double = make(return_value=4)
    made.connect(double)
    assert await made.send("s", a=1, b=2) == [(double, 4)]
    double.assert_called_once_with(signal=made, sender="s", a=1, b=2)
    assert made.connections[0].receiver is double
    assert made.connections[0].location
    assert made.disconnect(double)


async def test_a_mock_of_a_coroutine_function_is_awaited(made):
    """`create_autospec` of a coroutine function gives one."""
    double = mock.create_autospec(coroutine, return_value=4)
    made.connect(double)
    assert await made.send("s", a=1, b=2) == [(double, 4)]
    double.assert_awaited_once_with(signal=made, sender="s", a=1, b=2)


async def test_hostile_receivers_are_only_called(made):
    """No special method but `__call__` is run to send to a receiver."""

    def refuse(*args, **kwargs):
        raise AssertionError

    def call(self, **named):
        return "called"

    names = ["__eq__", "__ne__", "__hash__", "__bool__", "__repr__", "__str__", "__len__", "__iter__", "__format__"]
    hostile = type("Hostile", (), {**dict.fromkeys(names, refuse), "__call__": call})()
    made.connect(hostile)
    made.connect(hostile, priority=1)
    ((got, answer),) = await made.send(None, a=1, b=2)
    assert got is hostile
    assert answer == "called"
    assert len(await made.send_robust(None, a=1, b=2)) == 1
    assert repr(made)
    assert repr(made.connections)
    assert made.receivers_for(None)[0] is hostile
    with made.connected(hostile, priority=3):
        assert len(await made.send(None, a=1, b=2)) == 1
    with made.muted(hostile):
        assert await made.send(None, a=1, b=2) == []
    assert made.disconnect(hostile)


@pytest.mark.parametrize("name", ["__getattr__", "__class__", "__signature__", "__wrapped__", "__partialmethod__"])
@pytest.mark.parametrize("kind", [Handler, AsyncHandler])
async def test_a_receiver_whose_attributes_raise_is_judged_by_its_class(made, kind, name):
    """A callable object that fails when it is asked about itself, as proxies do, can be connected and called."""

    def refuse(*args):
        raise RuntimeError

    refusing = refuse if name == "__getattr__" else property(refuse)
    hostile = type("Hostile", (kind,), {name: refusing})()
    made.connect(hostile)
    assert made.connections[0].is_async is (kind is AsyncHandler)
    ((got, answer),) = await made.send(None, a=1, b=2)
    assert got is hostile
    assert answer in {"called", "awaited"}
    assert made.disconnect(hostile)


async def test_responses_are_handed_on_untouched(made):
    """No special method of a response is run."""

    def refuse(*args, **kwargs):
        raise AssertionError

    names = ["__eq__", "__hash__", "__bool__", "__repr__", "__len__", "__iter__", "__getattr__"]
    hostile = type("Hostile", (), dict.fromkeys(names, refuse))()

    def answer(**named):
        return hostile

    made.connect(answer)
    for method in (made.send, made.send_robust):
        ((_, response),) = await method(None, a=1, b=2)
        assert response is hostile


async def test_arguments_are_handed_on_untouched(made):
    """Arguments arrive as the objects they are, without a special method of theirs being run."""

    def refuse(*args, **kwargs):
        raise AssertionError

    hostile = type("Hostile", (), dict.fromkeys(["__eq__", "__bool__", "__repr__", "__hash__"], refuse))()
    seen = []

    def hear(a, **named):
        seen.append(a)

    made.connect(lambda **named: seen.append(named["a"]), weak=False)
    with made.connected(hear) if made.providing_args else made.muted(hear):
        await made.send(hostile, a=hostile, b=2)
    assert all(each is hostile for each in seen)
    assert seen


# -- what a receiver asks for --


async def test_a_receiver_gets_the_arguments_it_names():
    """Without `**kwargs` a receiver of a declared signal is called with those arguments that it names."""
    made = Signal(NAMES)

    def one(b):
        return b

    async def two(sender, a):
        return sender, a

    def none():
        return "none"

    def keyword_only(*, signal, b):
        return signal, b

    class Object:
        def method(self, a):
            return a

    thing = Object()
    for each in (one, two, none, keyword_only, thing.method):
        made.connect(each)
    expected = [2, ("s", 1), "none", (made, 2), 1]
    assert [response for _, response in await made.send("s", a=1, b=2)] == expected
    assert [response for _, response in await made.send_robust("s", a=1, b=2)] == expected


async def test_defaults_of_a_receiver_stay_where_the_signal_sends_nothing():
    """A parameter with a default that the signal does not send keeps its default; one that is sent gets it."""
    made = Signal(NAMES)

    def hear(a=0, other="default", *args, more=3):
        return a, other, args, more

    made.connect(hear)
    assert await made.send(None, a=1, b=2) == [(hear, (1, "default", (), 3))]


async def test_a_receiver_that_asks_for_what_is_never_sent_is_refused():
    """The error names the argument and what the signal sends."""
    made = Signal(NAMES, name="shop.sold")

    def hear(a, price, *, tax): ...

    with pytest.raises(InvalidReceiverError, match=r"'price', 'tax'.*signal, sender, a, b"):
        made.connect(hear)
    assert made.connections == ()


@pytest.mark.parametrize(
    "each",
    [lambda: None, lambda sender: None, lambda sender, *args: None, print],
    ids=["none", "sender", "args", "print"],
)
async def test_a_signal_of_any_keywords_needs_receivers_that_take_them(each):
    """A receiver without `**kwargs` is refused where nothing is declared, and the error says what to do."""
    with pytest.raises(InvalidReceiverError, match=r"\*\*kwargs"):
        Signal().connect(each, weak=False)


@pytest.mark.parametrize("each", [lambda sender, /, **named: None, [].append], ids=["/", "append"])
async def test_parameters_by_position_only_are_refused(made, each):
    """Arguments go by name, so one that cannot be given by name can never be given."""
    with pytest.raises(InvalidReceiverError, match="by position"):
        made.connect(each, weak=False)


async def test_optional_parameters_by_position_do_no_harm(made):
    """A positional-only parameter with a default keeps it, and may have the name of an argument."""

    def hear(a="mine", /, **named):
        return a, named["a"]

    made.connect(hear)
    assert await made.send(None, a=1, b=2) == [(hear, ("mine", 1))]


async def test_a_callable_without_a_signature_gets_everything(made):
    """Builtins whose signature cannot be read are trusted with all arguments."""
    seen = {}
    made.connect(seen.update, weak=False)
    await made.send("s", a=1, b=2)
    assert seen == {"signal": made, "sender": "s", "a": 1, "b": 2}


async def test_a_broken_signature_is_no_signature(made):
    """An object with nonsense in `__signature__` is trusted with all arguments."""

    class Odd:
        __signature__ = "nonsense"

        def __call__(self, **named):
            return len(named)

    odd = Odd()
    made.connect(odd)
    assert await made.send(None, a=1, b=2) == [(odd, 4)]


async def test_a_wrapper_is_as_picky_as_what_it_wraps():
    """A decorator that passes everything on does not hide what the function takes."""

    def decorate(wrapped):
        @functools.wraps(wrapped)
        def passing(*args, **kwargs):
            return wrapped(*args, **kwargs)

        return passing

    made = Signal(NAMES)

    @decorate
    def hear(b):
        return b

    made.connect(hear)
    assert await made.send(None, a=1, b=2) == [(hear, 2)]
    with pytest.raises(InvalidReceiverError, match="'price'"):
        made.connect(decorate(lambda price: None), weak=False)


class Passing:
    """A decorator that is a class, and passes everything on, for methods as well."""

    def __init__(self, wrapped):
        functools.update_wrapper(self, wrapped)

    def __get__(self, instance, owner=None):
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)


async def test_a_wrapper_that_is_an_object_is_as_picky_as_what_it_wraps():
    """What a decorator makes may be an instance, and a method of one."""

    class Shop:
        @Passing
        async def ship(self, a):
            return a

    @Passing
    def hear(b):
        return b

    made, shop = Signal(NAMES), Shop()
    made.connect(hear)
    made.connect(shop.ship)
    assert [response for _, response in await made.send(None, a=1, b=2)] == [2, 1]
    line = hear.__wrapped__.__code__.co_firstlineno
    assert [each.location for each in made.connections][:1] == [f"{__file__}:{line}"]
    assert [name_of(each.receiver).rpartition(".")[2] for each in made.connections] == ["hear", "ship"]
    with pytest.raises(InvalidReceiverError, match="'price'"):
        made.connect(Passing(lambda price: None), weak=False)


@pytest.mark.parametrize("decorate", [functools.cache, functools.lru_cache(maxsize=2)], ids=["cache", "lru_cache"])
async def test_a_wrapper_written_in_c_is_as_picky_as_what_it_wraps(decorate):
    """A cached function is given the arguments that the function names, and refused for those that it lacks."""
    made = Signal(NAMES)

    @decorate
    def hear(b):
        return b

    made.connect(hear)
    assert await made.send(None, a=1, b=2) == [(hear, 2)]
    for signal, reason in ((Signal(["a"]), "asks for 'b'"), (Signal(), "any keyword arguments")):
        with pytest.raises(InvalidReceiverError, match=reason):
            signal.connect(hear)


async def test_a_wrapper_with_parameters_of_its_own_is_asked_itself():
    """What counts is what can be called, not what is behind it."""

    def wrapped(price): ...

    @functools.wraps(wrapped)
    def hear(a):
        return a

    made = Signal(NAMES)
    made.connect(hear)
    assert await made.send(None, a=1, b=2) == [(hear, 1)]


async def test_wrappers_that_wrap_each_other_are_receivers(made):
    """A ring of `__wrapped__` does not keep `connect` busy."""

    def first(**named):
        return 1

    def second(**named):
        return 2

    first.__wrapped__, second.__wrapped__ = second, first
    made.connect(first)
    assert await made.send(None, a=1, b=2) == [(first, 1)]
    assert made.connections[0].location


async def test_arguments_bound_by_a_partial_are_not_asked_for():
    """What a partial has filled in by position is its own; what it filled in by name can be sent over it."""
    made = Signal(NAMES)

    def hear(price, a, b=0):
        return price, a, b

    by_position = functools.partial(hear, 5)
    by_name = functools.partial(hear, price=6, b=9)
    made.connect(by_position)
    made.connect(by_name)
    assert [response for _, response in await made.send(None, a=1, b=2)] == [(5, 1, 2), (6, 1, 2)]


@pytest.mark.parametrize("annotations", ["", "from __future__ import annotations\n"], ids=["now", "future"])
async def test_annotations_are_never_evaluated(annotations):
    """A receiver may name types that exist for type checkers only."""
    namespace = {}
    quoted = "Missing" if annotations else '"Missing"'
    exec(f"{annotations}def hear(a: {quoted}, sender: {quoted} = 3) -> {quoted}: return a", namespace)  # noqa: S102  a namespace of its own is the case
    made = Signal(NAMES)
    made.connect(namespace["hear"])
    assert await made.send(None, a=1, b=2) == [(namespace["hear"], 1)]
    with pytest.raises(InvalidReceiverError):
        Signal().connect(namespace["hear"])


async def generator_function(**named):
    yield 1


class GeneratorCall:
    def __call__(self, **named):
        yield 1


class AsyncGeneratorCall:
    async def __call__(self, **named):
        yield 1


def plain_generator(**named):
    yield 1


@pytest.mark.parametrize(
    "each",
    [
        generator_function,
        plain_generator,
        functools.partial(plain_generator),
        functools.partial(generator_function),
        GeneratorCall(),
        AsyncGeneratorCall(),
        GeneratorCall().__call__,
    ],
    ids=["async", "plain", "partial", "async partial", "object", "async object", "method"],
)
async def test_generator_functions_are_refused(made, each):
    """Calling one would run none of its code, so it would fail silently."""
    with pytest.raises(InvalidReceiverError, match="generator"):
        made.connect(each, weak=False)


async def test_a_partial_of_a_generator_based_coroutine_is_a_receiver(made):
    """`types.coroutine` makes awaitables of generators, through a partial too."""
    each = functools.partial(generator_based)
    made.connect(each)
    assert await made.send(None, a=1, b=2) == [(each, "generator based")]


# -- any signature --

KIND_ORDER = [
    Parameter.POSITIONAL_ONLY,
    Parameter.POSITIONAL_OR_KEYWORD,
    Parameter.VAR_POSITIONAL,
    Parameter.KEYWORD_ONLY,
    Parameter.VAR_KEYWORD,
]


@st.composite
def functions(draw):
    """A function with any parameters, which returns the arguments it got."""
    chosen = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["signal", "sender", "a", "b", "other"]),
                st.sampled_from(KIND_ORDER),
                st.booleans(),
            ),
            unique_by=lambda each: each[0],
            max_size=5,
        )
    )
    parameters, has_default, seen = [], False, set()
    for name, kind, optional in sorted(chosen, key=lambda each: KIND_ORDER.index(each[1])):
        is_variable = kind in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
        if is_variable and kind in seen:
            continue
        seen.add(kind)
        positional = kind in KIND_ORDER[:2]
        has_default = has_default or (positional and optional)
        default = Parameter.empty if is_variable or not (has_default if positional else optional) else "default"
        parameters.append(Parameter(name, kind, default=default))
    text = str(Signature(parameters))
    namespace = {}
    body = ", ".join(f"{each.name!r}: {each.name}" for each in parameters)
    exec(f"def hear{text}: return {{{body}}}", namespace)  # noqa: S102  a namespace of its own is the case
    return namespace["hear"]


@given(functions(), st.sampled_from([(), ("a",), ("a", "b"), ("b", "other"), None]))
async def test_connect_accepts_exactly_what_every_send_can_call(hear, names):
    """A receiver is refused exactly if calling it by name with what the signal sends would raise a TypeError."""
    made = Signal(names)
    sent = dict.fromkeys(names or (), "sent")
    everything = {"signal": made, "sender": "s", **sent}
    parameters = inspect.signature(hear).parameters
    takes_all = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    wanted = everything
    if not takes_all:
        by_name = {n for n, p in parameters.items() if p.kind in {Parameter.KEYWORD_ONLY, KIND_ORDER[1]}}
        wanted = {name: value for name, value in everything.items() if name in by_name}
    try:
        expected = hear(**wanted)
        fits = True
    except TypeError:
        fits = False
    # Nothing declared: whatever is sent must be accepted.
    if names is None:
        fits = takes_all and not [
            p for p in parameters.values() if p.default is p.empty and p.kind is Parameter.POSITIONAL_ONLY
        ]
        if fits and any(
            p.default is p.empty and n in {"a", "b", "other"}
            for n, p in parameters.items()
            if p.kind not in {Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL}
        ):
            return  # it depends on the send
    if not fits:
        with pytest.raises(InvalidReceiverError):
            made.connect(hear)
        return
    made.connect(hear)
    assert await made.send("s", **sent) == [(hear, expected)]
    assert await made.send_robust("s", **sent) == [(hear, expected)]


async def test_a_method_without_a_parameter_for_its_object_is_a_receiver():
    """`self` among the positional extras is no reason to refuse a method."""

    class Handler:
        def hear(*everything, **named):
            return everything, named

    made = Signal(["a"])
    handler = Handler()
    made.connect(handler.hear)
    ((_, response),) = await made.send("s", a=1)
    assert response == ((handler,), {"signal": made, "sender": "s", "a": 1})


@pytest.mark.parametrize("is_inherited", [False, True])
@pytest.mark.parametrize("is_wrapping", [False, True])
async def test_objects_with_an_eq_of_their_own_get_what_they_name(is_inherited, is_wrapping):
    """What an object's `__call__` takes is found out whatever its `__eq__` does, and through a wrapper as well."""
    compared = []

    class Base:
        def __eq__(self, other):
            compared.append(other)
            return NotImplemented

        __hash__ = object.__hash__

    def call(self, a):
        return a

    @functools.wraps(call)
    def wrapper(self, **named):
        return call(self, **named)

    parts = {"__call__": wrapper if is_wrapping else call}
    kind = type("Below", (Base,), parts) if is_inherited else type("Handler", (), {**vars(Base), **parts})
    made = Signal(["a", "b"])
    made.connect(kind(), weak=False)
    assert [response for _, response in await made.send("s", a=1, b=2)] == [1]
    assert compared == [] or is_wrapping


async def test_a_class_may_say_what_its_objects_take():
    """A `__signature__` goes before the parameters of `__call__`, for objects with an `__eq__` as well."""

    class Handler:
        __signature__ = inspect.Signature([inspect.Parameter("a", inspect.Parameter.KEYWORD_ONLY)])

        def __eq__(self, other):
            raise AssertionError

        __hash__ = object.__hash__

        def __call__(self, **named):
            return named

    made = Signal(["a"])
    made.connect(Handler(), weak=False)
    ((_, response),) = await made.send("s", a=1)
    assert response == {"a": 1}
