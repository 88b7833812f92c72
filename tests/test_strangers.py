"""What people who come from other libraries try: each test is a kind of input that once failed."""

import asyncio
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import types
import warnings

import anyio
import pytest
import wrapt

from asignals import Background, Event, InvalidReceiverError, Signal, asgi, monitor, signal
from asignals import _core as core
from asignals._core.loops import _start_child

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Nothing here waits: two loops will do."""
    return request.param


@pytest.fixture(params=[None, ["a"]], ids=["any", "declared"])
def made(request):
    """A signal with any keywords, and one with declared arguments."""
    return Signal(request.param, name="shop.sold")


def hear(sender, **named):
    return "heard"


# -- what can be connected ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, ["a"]], ids=["from any", "from declared"])
@pytest.mark.parametrize("how", ["send", "send_robust", "view", "partial"])
async def test_a_signal_forwards_to_another(source, how):
    """`a.connect(b.send)` sends the event on: the sender and the arguments as they were, the signal being `b`."""
    a, b = Signal(source, name="a"), Signal(name="b")
    calls = []

    def receives(**named):
        calls.append(named)

    b.connect(receives)
    forwards = {
        "send": lambda: b.send,
        "send_robust": lambda: b.send_robust,
        "view": lambda: b.using(task_group=anyio.create_task_group).send,
        "partial": lambda: functools.partial(b.send),
    }[how]()
    a.connect(forwards, weak=False)
    for _ in range(2):
        await a.send("s", a=1)
    await a.using(task_group=anyio.create_task_group).send("s", a=1)
    assert calls == [{"signal": b, "sender": "s", "a": 1}] * 3


async def test_a_signal_forwards_with_options(collect):
    """The other signal's `send` is not handed the first signal, whichever way it is called."""
    first, second = Signal(), Signal()
    second.connect(collect)
    first.connect(second.send, once=True)
    first.connect(second.send_robust, timeout=60)
    await first.send("oven", size=30)
    assert collect.calls == [{"signal": second, "sender": "oven", "size": 30}] * 2


async def test_a_declared_signal_forwards_to_a_declared_one():
    """Only what the other one declares is sent on."""
    a, b = Signal(["x", "y"]), Signal(["x"])
    calls = []

    def receives(**named):
        calls.append(named)

    b.connect(receives)
    a.connect(b.send)
    await a.send("s", x=1, y=2)
    assert calls == [{"signal": b, "sender": "s", "x": 1}]
    with pytest.raises(InvalidReceiverError, match="asks for 'x'"):
        Signal(["y"]).connect(b.send)


async def test_a_signal_forwards_to_a_background():
    """`background.send` for a signal is a receiver as well."""
    a, b = Signal(["x"]), Signal()
    calls = []

    def receives(sender, **named):
        calls.append(sender)

    b.connect(receives)
    async with Background() as background:
        a.connect(functools.partial(background.send, b), weak=False)
        a.connect(functools.partial(background.send_nowait, b), weak=False)
        await a.send("s", x=1)
    assert calls == ["s", "s"]


async def test_a_singledispatch_function_chooses_by_the_sender(made):
    """It gets the argument that it chooses by, by position."""

    @functools.singledispatch
    def chooses(sender, **named):
        return "anything"

    @chooses.register
    def _(sender: int, **named):
        return "a number"

    made.connect(chooses)
    assert [response for _, response in await made.send(3, a=1)] == ["a number"]
    assert [response for _, response in await made.send("s", a=1)] == ["anything"]


async def test_a_singledispatch_function_chooses_by_an_argument():
    """Also by another argument than the sender, if the signal declares it."""

    @functools.singledispatch
    def chooses(order, size):
        return type(order).__name__, size

    made = Signal(["order", "size"])
    made.connect(chooses)
    assert [response for _, response in await made.send(None, order=2.5, size=3)] == [("float", 3)]
    with pytest.raises(InvalidReceiverError, match="'order' is none of the sent"):
        Signal().connect(functools.singledispatch(lambda order, **named: None), weak=False)


class Shop:
    """Has methods of all kinds."""

    def hear(self, **named):
        return "heard"

    @classmethod
    def hear_as_class(cls, **named):
        return "class"

    @staticmethod
    def hear_without(**named):
        return "static"

    @wrapt.decorator
    def passing(wrapped, instance, args, kwargs):  # noqa: N805  as wrapt wants it
        return wrapped(*args, **kwargs)

    @passing
    def wrapped(self, **named):
        return "wrapped"

    wrapped_again = passing(hear)
    wrapped_twice = passing(passing(hear))
    wrapped_as_class = passing(hear_as_class)
    wrapped_without = passing(hear_without)

    def part(self, extra, **named):
        return extra

    partial = functools.partialmethod(part, 3)


async def test_a_method_taken_from_its_class_is_refused(made):
    """No send has a `self` to give; the error says what to connect instead."""
    for each in (Shop.hear, Shop.__dict__["hear"]):
        with pytest.raises(InvalidReceiverError, match=r"asks for 'self'.*method of an object"):
            made.connect(each)
    with pytest.raises(TypeError, match="must be callable"):
        made.connect(Shop.__dict__["hear_as_class"])
    assert made.connections == ()
    made.connect(Shop.hear_as_class)
    made.connect(Shop.hear_without)
    assert [response for _, response in await made.send(None, a=1)] == ["class", "static"]


async def test_self_may_be_an_argument():
    """A signal that sends `self` has receivers that ask for it."""
    made = Signal(["self"])
    made.connect(receiver := lambda self: self)
    assert await made.send(None, self=1) == [(receiver, 1)]


@pytest.mark.parametrize(
    "name", ["hear", "wrapped", "wrapped_twice", "partial", "hear_as_class", "wrapped_as_class", "wrapped_without"]
)
async def test_what_is_a_new_object_at_each_access_is_one_receiver(made, name):
    """Bound methods, those that wrapt wraps and those of `partialmethod` are connected once and found by name."""
    shop, other = Shop(), Shop()
    for _ in range(2):
        made.connect(getattr(shop, name), weak=False)
    assert len(made.connections) == 1
    if name in {"hear", "wrapped", "wrapped_twice", "partial"}:
        assert not made.disconnect(getattr(other, name))
    assert len(await made.send(None, a=1)) == 1
    with made.muted(getattr(shop, name)):
        assert await made.send(None, a=1) == []
    assert made.disconnect(getattr(shop, name))
    assert made.connections == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda shop: (shop.hear, shop.wrapped_again),
        lambda shop: (shop.wrapped_again, shop.wrapped_twice),
        lambda shop: (Shop.passing(shop.hear), Shop.passing(shop.hear)),
        lambda shop: (shop.wrapped_as_class, shop.hear_as_class),
    ],
    ids=["bare and wrapped", "wrapped once and twice", "wrapped by hand", "class"],
)
async def test_wrappers_of_one_function_are_receivers_of_their_own(made, wrap):
    """Each does something else, so connecting one of them takes no place from another, in silence least of all."""
    first, second = wrap(Shop())
    made.connect(first, weak=False)
    made.connect(second, weak=False)
    assert len(await made.send(None, a=1)) == 2
    assert made.disconnect(second)
    assert [each.receiver for each in made.connections] == [first]


@wrapt.decorator
def in_passing(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs)


@wrapt.decorator
def at_once(wrapped, instance, args, kwargs):
    """Makes a sync function of a coroutine function, though what looks through the wrapper sees another."""
    wrapped(*args, **kwargs).close()
    return "scheduled"


class Wrapped:
    async def bare(self, **named):
        return "heard"

    method, sync_method = in_passing(bare), at_once(bare)


async def hear_async(**named):
    return "heard"


def test_wrappers_of_wrapt_are_known_where_it_is_not_compiled():
    """They are looked through, have one identity as bound methods, and are warned of, as the compiled ones are."""
    program = """
        import wrapt
        from asignals import Signal
        @wrapt.decorator
        def passing(wrapped, instance, args, kwargs):
            return wrapped(*args, **kwargs)
        class Shop:
            @passing
            def hear(self, n): ...
        made, shop = Signal(["n"]), Shop()
        for _ in range(2):
            made.connect(shop.hear, weak=False)
        print(len(made.connections), "Shop.hear" in repr(made.connections), made.disconnect(shop.hear))
        made.connect(passing(Shop().hear))
        made.has_listeners()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {**os.environ, "WRAPT_DISABLE_EXTENSIONS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)  # noqa: S603
    assert done.stdout == "1 True True\n"
    assert done.stderr.count("ReceiverLostWarning: ") == 1


WRAPPED = {
    "function": (lambda: in_passing(hear_async), "heard"),
    "method": (lambda: Wrapped().method, "heard"),
    "bound method": (lambda: in_passing(Wrapped().bare), "heard"),
    "twice": (lambda: in_passing(in_passing(hear_async)), "heard"),
    "partial": (lambda: functools.partial(in_passing(hear_async)), "heard"),
    "sync function": (lambda: at_once(hear_async), "scheduled"),
    "sync method": (lambda: Wrapped().sync_method, "scheduled"),
}


@pytest.mark.parametrize("make", WRAPPED)
async def test_what_a_wrapper_object_returns_decides_whether_it_is_awaited(made, make):
    """As for wrappers that are functions: it may have made a coroutine function a sync one."""
    wrapped, response = WRAPPED[make][0](), WRAPPED[make][1]
    made.connect(wrapped, weak=False)
    for sending in made, made.using(task_group=anyio.create_task_group):
        assert await sending.send(None, a=1) == [(wrapped, response)]


@pytest.mark.parametrize("make", ["function", "method", "bound method", "twice", "partial"])
async def test_a_coroutine_function_in_a_wrapper_object_may_have_a_time_limit(made, make):
    """It can be cancelled as without the wrapper; messages name the function itself."""
    wrapped = WRAPPED[make][0]()
    made.connect(wrapped, weak=False, timeout=5)
    assert await made.send(None, a=1) == [(wrapped, "heard")]
    assert "test_strangers" in repr(made.connections[0])
    with pytest.raises(InvalidReceiverError, match=r"test_strangers.*in_thread=True is for sync"):
        made.connect(wrapped, weak=False, in_thread=True)


class Bound:
    """A descriptor that binds a function by an object of its own, as caches do, or by a partial, as asgiref does."""

    def __init__(self, function, *, by_partial):
        self.function, self.by_partial = function, by_partial

    def __get__(self, instance, owner):
        bound = functools.partial(self.call, instance) if self.by_partial else Call(self.function, instance)
        return functools.update_wrapper(bound, self.function)

    def call(self, *args, **named):
        return self.function(*args, **named)


class Call:
    def __init__(self, function, instance):
        self.function, self.instance = function, instance

    def __call__(self, *args, **named):
        return self.function(self.instance, *args, **named)


class Bounds:
    def hear(self, a, **named):
        return self, a

    by_object, by_partial = Bound(hear, by_partial=False), Bound(hear, by_partial=True)


@pytest.mark.parametrize("name", ["by_object", "by_partial"])
async def test_a_method_that_a_descriptor_binds_is_a_receiver(made, name):
    """Its signature has `self`, which comes from the object; it is named by the function."""
    shop, declared = Bounds(), Signal(["a"])
    for each in made, declared:
        receives = getattr(shop, name)
        each.connect(receives, weak=False)
        assert await each.send(None, a=1) == [(receives, (shop, 1))]
        assert "Bounds.hear" in repr(each.connections[0])
    if name == "by_partial":
        declared.connect(getattr(shop, name), weak=False)
        assert len(declared.connections) == 1
        assert declared.disconnect(getattr(shop, name))


async def test_a_static_method_object_is_named_by_its_function(made):
    """A decorator below `@staticmethod` gets the function, one above it gets this object."""
    made.connect(staticmethod(hear), weak=False)
    assert [response for _, response in await made.send(None, a=1)] == ["heard"]
    assert "test_strangers.hear" in repr(made.connections[0])
    with pytest.raises(TypeError, match=r"test_strangers\.hear .*weak=False"):
        made.connect(staticmethod(hear))


async def test_a_method_dies_with_its_object_and_with_its_function(made):
    """`weakref.WeakMethod` tracks both parts, also where the function is no attribute of the class."""
    shop = Shop()
    made.connect(shop.hear)

    def function(self, **named):
        return "function"

    shop.own = types.MethodType(function, shop)
    made.connect(shop.own)
    assert [response for _, response in await made.send(None, a=1)] == ["heard", "function"]
    del shop.own, function
    gc.collect()
    assert [response for _, response in await made.send(None, a=1)] == ["heard"]
    del shop
    gc.collect()
    assert made.connections == ()


async def test_none_is_no_receiver_and_nothing_is_the_decorator(made):
    """`connect(make_handler())` where that returns `None` is told; `connect()` is a decorator."""
    for connect in (lambda: made.connect(None), lambda: made.connect(None, "s"), lambda: made.connect(receiver=None)):
        with pytest.raises(TypeError, match=r"shop\.sold.*must be callable, not 'NoneType'"):
            connect()
    assert made.connect()(hear) is hear
    assert made.connect(sender="s", priority=2)(hear) is hear
    assert [connection.priority for connection in made.connections] == [2, 0]


@pytest.mark.parametrize("make", [lambda made: made.muted(), lambda made: made.connected(hear)])
async def test_a_block_is_no_decorator(made, make):
    """On an `async def` it would end before the body runs: it is refused, with words."""
    with pytest.raises(TypeError, match=r"no decorator.*inside of .*test_it"):

        @make(made)
        async def test_it(): ...


async def test_a_connection_that_ends_while_it_takes_options_is_connected(made, monkeypatch):
    """A finalizer may disconnect it in the middle of that, wherever the collector runs: `connect` returns later."""
    made.connect(hear)
    (connection,) = made.connections
    take = type(connection).set_options

    def interrupted(taking, *parts):
        if taking is connection:
            monkeypatch.undo()
            made.disconnect(hear)
        take(taking, *parts)

    monkeypatch.setattr(type(connection), "set_options", interrupted)
    made.connect(hear, priority=1)
    assert made.connections == (connection,)
    assert [receiver for receiver, _ in await made.send(None, a=1)] == [hear]
    assert made.disconnect(hear)


@pytest.mark.parametrize("make", [lambda made: made.muted(), lambda made: made.connected(hear)])
async def test_a_block_is_entered_once(made, make):
    """One that is entered again, inside of itself or later, is refused: else the inner end would undo the outer one."""
    block = make(made)
    with block:
        with pytest.raises(RuntimeError, match="entered once"):
            block.__enter__()
        is_muted = await made.send(None, a=1) == []
        assert is_muted == (made.connections == ())
    with pytest.raises(RuntimeError, match="entered once"):
        block.__enter__()
    assert made.connections == ()


@pytest.mark.parametrize("make", [lambda made: made.muted(), lambda made: made.connected(hear)])
async def test_leaving_a_block_that_was_not_entered_changes_nothing(made, make):
    """As when what was to enter it has failed before: nothing is muted or connected then, nor later."""
    block = make(made)
    block.__exit__(None, None, None)
    assert made.connections == ()
    with block:
        pass
    made.connect(hear)
    assert len(await made.send(None, a=1)) == 1


# -- reload ------------------------------------------------------------------------------------------------------------


async def test_replace_takes_the_place_under_a_uid(made):
    """A module that is loaded again connects its new function in the place of the old one."""
    old, new, after = (lambda **named: "old"), (lambda **named: "new"), (lambda **named: "after")
    made.connect(old, dispatch_uid="cook")
    made.connect(after)
    made.connect(new, dispatch_uid="cook")
    assert [response for _, response in await made.send(None, a=1)] == ["old", "after"]
    made.connect(new, dispatch_uid="cook", replace=True)
    assert [response for _, response in await made.send(None, a=1)] == ["new", "after"]
    made.connect(new, dispatch_uid="cook", replace=True, once=True)
    assert [response for _, response in await made.send(None, a=1)] == ["new", "after"]
    assert [response for _, response in await made.send(None, a=1)] == ["after"]


async def test_a_module_that_is_reloaded_is_heard_in_its_new_version(tmp_path, monkeypatch):
    """`dispatch_uid` with `replace=True` in the module, then `importlib.reload`."""
    shop = types.ModuleType("reload_shop")
    shop.sold = Signal(name="reload_shop.sold")
    monkeypatch.setitem(sys.modules, "reload_shop", shop)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # both versions are of the same second
    source = """
        from reload_shop import sold

        @sold.connect(dispatch_uid="handlers.hear", replace=True)
        def hear(**named):
            return VERSION
    """
    (tmp_path / "reload_handlers.py").write_text(textwrap.dedent(source).replace("VERSION", "1"))
    monkeypatch.delitem(sys.modules, "reload_handlers", raising=False)
    module = importlib.import_module("reload_handlers")
    assert [response for _, response in await shop.sold.send(None)] == [1]
    (tmp_path / "reload_handlers.py").write_text(textwrap.dedent(source).replace("VERSION", "22"))
    importlib.invalidate_caches()
    importlib.reload(module)
    assert [response for _, response in await shop.sold.send(None)] == [22]


# -- signals and events as data ----------------------------------------------------------------------------------------

module_level = Signal(["a"])


@signal
def typed_signal(sender: object, *, size: int) -> int:
    """A signal of a module."""
    raise NotImplementedError


class Holder:
    """Has a signal in its body."""

    changed = Signal()


@pytest.mark.parametrize(
    "each",
    [module_level, typed_signal, Holder.changed, asgi.request_finished],
    ids=["module", "stub", "class", "of the package"],
)
def test_a_signal_is_an_identity(each):
    """Copies are the signal, and a pickle finds it by its name."""
    assert copy.copy(each) is each
    assert copy.deepcopy({"in": each})["in"] is each
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(each, protocol)) is each  # noqa: S301  our own


@pytest.mark.parametrize(
    "each",
    [Signal(), Signal(name="no.such_module"), Signal(name=f"{__name__}.module_level"), module_level.using(limit=2)],
    ids=["local", "no module", "another's name", "view"],
)
def test_a_signal_that_cannot_be_found_is_not_pickled(each):
    """The error names the signal and says what to do."""
    with pytest.raises(
        pickle.PicklingError, match=r"cannot pickle signal .*(assign it to a name|a view.*pickle the s)"
    ):
        pickle.dumps(each)


def _tell(event):
    return event.signal is module_level, event.sender, event["a"]


def test_an_event_goes_through_a_process_pool():
    """With its signal, in a process that is started anew."""
    event = Event(module_level, "sender", {"a": 1})
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(_tell, event).result(timeout=60) == (True, "sender", 1)


def test_an_event_is_data():
    """It copies, compares, hashes, and becomes plain data."""
    event = Event(module_level, "sender", {"a": [1, 2]})
    twin = copy.deepcopy(event)
    assert twin == event
    assert twin.signal is module_level
    assert twin["a"] is not event["a"]
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301  our own
    assert dataclasses.asdict(event)["arguments"] == {"a": [1, 2]}
    assert dict(event.as_dict()["arguments"]) == {"a": [1, 2]}
    assert len(event.arguments) == 1
    assert hash(Event(module_level, "s", {"a": 1})) == hash(Event(module_level, "s", {"a": 1}))
    with pytest.raises(TypeError):
        hash(event)


async def test_an_event_is_passed_to_a_function_by_names():
    """`pass_to` gives the sender and all arguments; what the event is shown as has them."""
    event = Event(module_level, "sender", {"a": 1})
    assert event.pass_to(lambda sender, a: (sender, a)) == ("sender", 1)
    assert "{'a': 1}" in repr(event)
    assert typed_signal.checked(hear) is hear


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_a_log_record_has_the_facts(made, caplog):
    """Whoever groups log records by receiver need not read their text."""

    def fails(**named):
        raise ValueError

    made.connect(fails)
    await made.send_robust(Shop(), a=1)
    (record,) = caplog.records
    assert record.signal == "shop.sold"
    assert record.receiver == f"{fails.__module__}.{fails.__qualname__}"
    assert record.sender_type == f"{__name__}.Shop"
    assert record.location == f"{__file__}:{fails.__code__.co_firstlineno}"
    assert logging.getLogger("asignals").name == record.name


class Sullen(type):
    """A metaclass whose classes answer no question."""

    def __getattribute__(cls, name):
        raise RuntimeError


async def test_a_sender_whose_class_answers_nothing_breaks_no_robust_send(made, caplog):
    """The error is logged with the name of the sender's class all the same."""

    class Sender(metaclass=Sullen):
        pass

    def fails(**named):
        raise ValueError

    made.connect(fails)
    made.connect(hear)
    (_, error), (_, answer) = await made.send_robust(object.__new__(Sender), a=1)
    assert (type(error), answer) == (ValueError, "heard")
    assert caplog.records[0].sender_type.endswith("Sender")


async def test_an_error_of_a_misspelt_option_names_it(made):
    """Every way to connect refuses an option that there is not."""
    from asignals import receiver

    for connect in (
        lambda: made.connect(hear, prioriti=3),
        lambda: receiver(made, prioriti=3)(hear),
        lambda: made.connected(hear, prioriti=3).__enter__(),
    ):
        with pytest.raises(TypeError, match="prioriti"):
            connect()
    assert made.connections == ()


# -- threads that hold the places of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
async def test_sync_callers_never_wait_for_the_places_that_they_hold(depth):
    """More threads than anyio has places for send to receivers in threads, which send on: all end."""
    signals = [Signal(["n"]) for _ in range(depth)]
    calls = []

    def make(number):
        def receives(n):
            if number + 1 < depth:
                anyio.from_thread.run(functools.partial(signals[number + 1].send, None, n=n))
            else:
                calls.append(n)

        return receives

    receivers = [make(number) for number in range(depth)]
    for each, one in zip(signals, receivers, strict=True):
        each.connect(one, in_thread=True)

    def endpoint(n):
        anyio.from_thread.run(functools.partial(signals[0].send, None, n=n))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(anyio.to_thread.run_sync, endpoint, n)
    assert sorted(calls) == list(range(100))


# -- the interface for the packages around -----------------------------------------------------------------------------


async def test_the_interface_answers_for_signals_and_views():
    """What `asignals._core` exports for the packages around is one for a signal and its views."""
    made = Signal(["a"])
    view = made.using(limit=3)
    assert core.origin_of(view) is core.origin_of(made) is made
    assert core.registry_of(view) is core.registry_of(made)
    assert made._registries() == {"": core.registry_of(made)}
    assert core.bind(made, "s", a=1) == ("s", {"a": 1})
    with pytest.raises(TypeError, match="'b'"):
        core.bind(made, "s", a=1, b=2)
    assert not core.is_watched()
    with monitor(lambda report: None):
        assert core.is_watched()


def test_outside_of_a_loop_nobody_has_raised_a_cancellation_by_himself():
    """A coroutine that the collector closes is no receiver that failed."""
    assert not core.is_receivers_error(asyncio.CancelledError())
    assert core.is_receivers_error(ValueError())
    assert not core.is_receivers_error(KeyboardInterrupt())


async def test_calling_the_connections_of_a_send_one_by_one(made):
    """As a relay does: each gives a list of its pair, an error is annotated, and monitors see calls and send."""

    def fails(**named):
        raise LookupError

    made.connect(hear)
    made.connect(fails)
    reports = []
    for is_watched in (False, True):
        with monitor(reports.append) if is_watched else contextlib.nullcontext():
            send = core.Send(made, "me", {"a": 1})
            with send:
                heard, failed = core.registry_of(made).plan_for("me").connections
                assert await send.to(heard) == [(hear, "heard")]
                with pytest.raises(LookupError) as caught:
                    await send.to(failed)
        assert "a receiver of signal 'shop.sold'" in caught.value.__notes__[0]
    assert [report.receiver for report in reports] == [hear, fails, None]
    assert made._registries() == {"": core.registry_of(made)}  # a subclass may have several


async def test_what_a_forked_child_closes():
    """Streams and backgrounds of the parent are closed there: sends neither wait nor are accepted."""
    made = Signal(["a"])
    async with made.stream(buffer=1) as events, Background(limit=1) as background:
        background.send_nowait(made, None, a=0)
        _start_child()
        for _ in range(3):
            await made.send(None, a=1)
        with pytest.raises(anyio.ClosedResourceError):
            background.send_nowait(made, None, a=1)
        assert events.dropped == 0


# -- type checkers and interpreters ------------------------------------------------------------------------------------


def test_errors_of_submodules_come_through(tmp_path):
    """An `AttributeError` inside of the core is not taken for a missing name of the package."""
    code = """
        import sys, types
        broken = types.ModuleType("anyio")
        sys.modules["anyio"] = broken
        import asignals
        asignals.Signal
    """
    done = subprocess.run(  # noqa: S603  the test's own code
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "has no attribute 'Signal'" not in done.stderr
    assert "anyio" in done.stderr


async def test_no_warning_for_an_ordinary_life(made):
    """Connecting, sending and letting go as the documentation has it warns of nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shop = Shop()
        made.connect(hear)
        made.connect(shop.hear)
        await made.send(None, a=1)
        del shop
        made.disconnect(hear)
        await made.send(None, a=1)
        gc.collect()
    assert [warning for warning in caught if warning.category is not ResourceWarning] == []


async def test_a_send_from_a_callback_of_the_loop_is_one_like_others(made):
    """`asyncio.create_task(sig.send(…))` and `gather` take a send for a coroutine."""
    made.connect(hear)
    if asyncio.get_running_loop.__module__ and not _is_trio():
        task = asyncio.create_task(made.send("s", a=1))
        assert await task == [(hear, "heard")]
        assert await asyncio.gather(made.send(1, a=1), made.send(2, a=1)) == [[(hear, "heard")]] * 2


def _is_trio():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False
