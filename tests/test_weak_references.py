import contextlib
import functools
import gc
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
import weakref

import anyio
import pytest
import wrapt
from anyio.lowlevel import checkpoint

import asignals
from asignals import ReceiverLostWarning, Signal, receiver

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """What dies how is the same on every loop, and costs a search of the heap: two of them will do."""
    return request.param


class Handler:
    def hear(self, **named):
        return "heard"

    def __call__(self, **named):
        return "called"


class Sender:
    pass


class Slotted:
    """Supports no weak references."""

    __slots__ = ()

    def __call__(self, **named):
        return "slotted"


@pytest.fixture
def made():
    return Signal(name="shop.sold")


@pytest.fixture
def warned():
    """The ReceiverLostWarnings of the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", ReceiverLostWarning)
        yield caught


def greet(**named):
    return "greet"


# -- dying --


async def test_receivers_are_held_weakly(made):
    """A connection ends with its receiver, at once."""
    handler, other = Handler(), Handler()
    made.connect(handler)
    made.connect(other.hear)
    assert len(made.connections) == 2
    del handler
    assert [response for _, response in await made.send(None)] == ["heard"]
    del other
    assert await made.send(None) == []
    assert made.connections == ()
    assert not made.has_listeners()


@pytest.mark.parametrize("make", [lambda: Handler().hear, Handler, Slotted, lambda: lambda **n: n, lambda: [].append])
async def test_weak_false_keeps_the_receiver(make):
    """A strongly connected receiver lives until it is disconnected or its signal dies."""
    made = Signal(["object"])
    try:
        made.connect(make(), weak=False)
    except ValueError:
        pytest.skip("takes no keywords")
    gc.collect()
    assert len(made.connections) == 1
    assert len(await made.send(None, object=1)) == 1
    (connection,) = made.connections
    assert made.disconnect(connection.receiver)


async def test_disconnecting_frees_a_strong_receiver(made):
    """After `disconnect` the signal holds the receiver no more."""
    handler = Handler()
    alive = weakref.ref(handler)
    made.connect(handler.hear, weak=False)
    made.disconnect(handler.hear)
    del handler
    assert alive() is None


async def test_a_signal_frees_its_receivers_when_it_dies():
    """Strong receivers die with the signal, without the garbage collector."""
    gc.disable()
    try:
        handler = Handler()
        alive = weakref.ref(handler)
        for names in (None, ["a"]):
            made = Signal(names)
            made.connect(handler, weak=False)
            await made.send(None, a=1)
            gone = weakref.ref(made)
            del made
            assert gone() is None
        del handler
        assert alive() is None
    finally:
        gc.enable()


async def test_a_receiver_that_cannot_be_weak_is_refused(made):
    """The error names the receiver and says what to do, and nothing is connected."""
    slotted = Slotted()
    with pytest.raises(TypeError, match=r"Slotted.*shop\.sold.*weak=False"):
        made.connect(slotted)
    handler = Handler()
    with pytest.raises(TypeError, match=r"shop\.sold.*weak=False"):
        made.connect(types.MethodType(slotted, handler))
    assert made.connections == ()
    made.connect(slotted, weak=False)
    with pytest.raises(TypeError, match="weak=False"):
        made.connect(slotted)
    assert await made.send(None) == [(slotted, "slotted")]


async def test_a_method_of_something_unweakrefable_is_a_receiver(made):
    """Methods whose object or function supports no weak references can be connected strongly."""

    class Parts:
        __slots__ = ()

        def hear(self, **named):
            return "parts"

    parts = Parts()
    made.connect(parts.hear, weak=False)
    made.connect(parts.hear, weak=False)
    odd = types.MethodType(lambda self, **named: self, 3)
    made.connect(odd, weak=False)
    made.connect(types.MethodType(functools.partial(greet), 3).__func__, weak=False)
    assert [response for _, response in await made.send(None)] == ["parts", 3, "greet"]
    assert made.disconnect(parts.hear)


async def test_a_weak_method_needs_object_and_function(made, warned):
    """A method whose function nobody else holds is lost as its function is."""
    handler = Handler()
    made.connect(types.MethodType(lambda self, **named: None, handler))
    assert await made.send(None) == []
    assert len(warned) == 1


async def test_a_method_connected_again_dies_with_its_function(made):
    """The function of a method that was connected twice is waited for once, and its death ends the connection."""
    handler = Handler()

    def greet_it(self, **named): ...

    for _ in range(2):
        made.connect(types.MethodType(greet_it, handler))
    assert len(await made.send(None)) == 1
    del greet_it
    gc.collect()
    assert await made.send(None) == []
    assert made.connections == ()


async def test_ids_used_again_reach_no_wrong_receiver(made):
    """A new object at a dead receiver's address is not connected."""
    for _ in range(200):
        handler = Handler()
        made.connect(handler)
        made.connect(handler.hear)
        del handler
        fresh = Handler()
        assert not made.disconnect(fresh)
        assert not made.disconnect(fresh.hear)
        assert made.receivers_for(None) == []
    assert await made.send(None) == []


async def test_ids_of_dead_senders_reach_no_wrong_receiver(made):
    """A new object at a dead sender's address is another sender."""
    for _ in range(200):
        sender = Sender()
        made.connect(greet, sender=sender)
        del sender
        fresh = Sender()
        assert await made.send(fresh) == []
        assert made.receivers_for(fresh) == []
        assert not made.has_listeners(fresh)
        assert not made.disconnect(greet, fresh)


async def test_the_send_after_a_death_forgets_the_dead(made):
    """The fast path is left for one send after a receiver has died, so that nothing is kept of it."""

    class Mortal:
        def __call__(self, **named): ...

    mortal = Mortal()
    made.connect(greet)
    made.connect(mortal)
    for _ in range(2):
        await made.send(None)
    del mortal
    gc.collect()
    assert await made.send(None) == [(greet, "greet")]
    assert not made._registry._dead
    assert len(made._registry._everyone.connections) == 1


async def test_a_purge_that_has_not_happened_changes_nothing(made):
    """Even while the dead are not yet forgotten, their ids mean nobody."""
    registry = made._registry
    sender = Sender()
    made.connect(greet, sender=sender)
    handler = Handler()
    made.connect(handler)
    registry.purge = lambda: None
    address = id(sender)
    del sender, handler
    fresh = [Sender() for _ in range(100)]
    same = [each for each in fresh if id(each) == address]
    for each in same:
        assert await made.send(each) == []
        made.connect(greet, sender=each)
        assert await made.send(each) == [(greet, "greet")]
    assert await made.send(None) == []
    assert [c for c in made.connections if c.receiver is None] == []


async def test_a_connection_dies_with_its_sender(made):
    """When a sender dies, its connections end and their strong receivers are freed."""
    sender = Sender()
    handler = Handler()
    alive = weakref.ref(handler)
    made.connect(handler.hear, sender=sender, weak=False)
    (connection,) = made.connections
    del sender, handler
    assert made.connections == ()
    assert connection.sender is None
    assert alive() is None


@pytest.mark.parametrize("make", [list, dict, lambda: (object(),), Slotted])
async def test_a_sender_that_cannot_be_weak_is_held_while_connected(made, make):
    """Its id is not used again before `disconnect`."""
    sender = make()
    address = id(sender)
    made.connect(greet, sender=sender)
    del sender
    gc.collect()
    assert all(id(each) != address for each in [make() for _ in range(100)])
    (connection,) = made.connections
    assert id(connection.sender) == address
    assert made.disconnect(greet, connection.sender)
    assert made.connections == ()


async def test_senders_in_reference_cycles_are_let_go(made):
    """A sender that only the garbage collector frees ends its connections then."""
    sender = Sender()
    sender.me = sender
    made.connect(greet, sender=sender)
    del sender
    gc.collect()
    assert made.connections == ()


async def test_finalizers_may_use_the_signal(made):
    """`__del__` of a receiver or a sender may connect, disconnect and ask, also from within the signal's own work."""
    log = []

    class Final:
        def __call__(self, **named): ...

        def __del__(self):
            made.disconnect(greet)
            made.connect(greet)
            log.append(made.has_listeners())

    thing = Final()
    made.connect(thing)
    made.connect(greet, sender=thing)
    await made.send(None)
    del thing
    assert log == [True]
    assert await made.send(None) == [(greet, "greet")]


# -- never silent --


def line_of(function, text):
    lines, first = __import__("inspect").getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **named):
        return function(*args, **named)

    return wrapper


def by_a_lambda(made):
    made.connect(lambda **named: None)


def by_a_partial(made):
    made.connect(functools.partial(greet))


def by_an_object(made):
    made.connect(Handler())


def by_a_method(made):
    made.connect(Handler().hear)


def by_a_wrapper(made):
    made.connect(logged(greet))


def by_a_cached_function(made):
    made.connect(functools.cache(lambda **named: None))


def by_a_method_with_options(made):
    made.connect(Handler().hear, priority=3, dispatch_uid="u")


def by_unpacking(made):
    made.connect(*[Handler().hear], priority=1)


def by_keyword(made):
    made.connect(receiver=Handler())


def by_the_decorator(made):
    receiver(made)(Handler().hear)


def by_the_method_as_a_decorator(made):
    made.connect(priority=1)(Handler().hear)


def by_map(made):
    list(map(made.connect, [Handler().hear]))


def by_a_comprehension(made):
    [made.connect(each) for each in [Handler()]]


def by_a_generator_expression(made):
    any(made.connect(each.hear) is None for each in [Handler()])


def by_an_argument_of_another_call(made):
    bool(made.connect(Handler()) is None)


def on_several_lines(made):
    made.connect(
        Handler().hear,
    )


def by_a_view(made):
    made.using(limit=2).connect(Handler())


def by_a_sender(made):
    made.connect(greet, sender=Sender())


def by_a_sender_of_the_decorator(made):
    receiver(made, sender=[Sender()])(greet)


AT_ONCE = [
    by_a_lambda,
    by_a_partial,
    by_an_object,
    by_a_method,
    by_a_wrapper,
    by_a_cached_function,
    by_a_method_with_options,
    by_unpacking,
    by_keyword,
    by_the_decorator,
    by_the_method_as_a_decorator,
    by_map,
    by_a_comprehension,
    by_a_generator_expression,
    by_an_argument_of_another_call,
    on_several_lines,
    by_a_view,
    by_a_sender,
    by_a_sender_of_the_decorator,
]


@pytest.mark.parametrize("connect", AT_ONCE, ids=lambda connect: connect.__name__)
async def test_connecting_what_dies_in_the_statement_warns_at_once(made, warned, connect):
    """The warning is at the line of the `connect`, names the signal and says what to do; there is one."""
    connect(made)
    (warning,) = warned
    assert issubclass(ReceiverLostWarning, UserWarning)
    assert warning.category is ReceiverLostWarning
    assert warning.filename == __file__
    assert warning.lineno in range(connect.__code__.co_firstlineno + 1, connect.__code__.co_firstlineno + 4)
    assert "shop.sold" in str(warning.message)
    assert "weak=False" in str(warning.message)
    assert [each for each in made.connections if each.receiver is None or each.sender] == []
    await made.send(None)
    gc.collect()
    assert len(warned) == 1


@pytest.mark.parametrize("connect", [by_a_sender, by_a_sender_of_the_decorator])
async def test_the_warning_of_a_sender_names_the_receiver_and_keeps_the_sender(made, warned, connect):
    """It advises what helps: `weak=False` would keep the receiver, which lives anyway."""
    connect(made)
    (text,) = (str(each.message) for each in warned)
    assert text.startswith("the sender of receiver test_weak_references.greet (")
    assert "Keep a reference to it: weak=False keeps receivers only" in text


async def test_a_sender_that_dies_after_its_receivers_were_disconnected_warns_nobody(made, warned):
    """Nothing is lost with it, though it dies in the statement that connected one."""
    [(made.connect(greet, each), made.disconnect(greet, each)) for each in [Sender()]]
    gc.collect()
    await made.send(None)
    assert warned == []


async def test_a_sender_of_a_connection_that_has_ended_warns_nobody(made, warned):
    """It dies in the statement that connected a receiver, and only somebody's `Connection` remembers it."""
    box, ended = [Sender()], []
    box.__setitem__(0, (made.connect(greet, box[0]), ended.extend(made.connections), made.disconnect(greet, box[0])))
    await made.send(None)
    assert (ended[0].sender, warned) == (None, [])


@pytest.mark.parametrize("connect", [by_a_method, by_a_partial, by_an_object])
async def test_the_warning_names_the_receiver(made, warned, connect):
    """Whatever has died is named as it was when it was connected."""
    connect(made)
    names = {by_a_method: "Handler.hear", by_a_partial: "greet", by_an_object: "Handler"}
    assert names[connect] in str(warned[0].message)


def local_variable(made):
    kept = Handler()
    made.connect(kept.hear)


def reassigned(made):
    kept = Handler()
    made.connect(kept.hear)
    kept = None


def in_a_loop(made):
    for _ in range(3):
        kept = Handler()
        made.connect(kept.hear)


def of_a_wrapper_object(made):
    kept = Decorated(greet)
    made.connect(kept.hear)


def by_another_statement_of_the_line(made):
    # fmt: off
    kept, sender = Handler(), Sender(); made.connect(kept.hear, sender); del kept, sender  # noqa: E702  as the name says
    # fmt: on


def in_a_loop_of_one_line(made):
    # fmt: off
    for kept in (Handler() for _ in range(3)): made.connect(kept.hear)  # noqa: E701  as the name says
    # fmt: on


def collected_while_the_next_one_is_connected(made):
    for _ in range(3):
        kept = Handler()
        kept.me = kept
        made.connect(kept.hear, priority=gc.collect())


def collected_after_the_next_one_is_connected(made):
    for _ in range(3):
        kept = Sender()
        kept.me = kept
        _ = made.connect(greet, kept), gc.collect()


LATER = [
    local_variable,
    reassigned,
    in_a_loop,
    of_a_wrapper_object,
    by_another_statement_of_the_line,
    in_a_loop_of_one_line,
    collected_while_the_next_one_is_connected,
    collected_after_the_next_one_is_connected,
]


@pytest.mark.parametrize("connect", LATER, ids=lambda connect: connect.__name__)
async def test_objects_that_die_later_warn_nobody(made, warned, connect):
    """An object that connects its methods and dies after the statement is what weak references are for."""
    connect(made)
    gc.collect()
    await made.send(None)
    assert warned == []


async def test_a_line_that_runs_often_warns_once():
    """Python's own record of warnings is asked: one line for each place, as the default filter has it."""
    made = Signal(name="shop.sold")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(50):
            made.connect(Handler().hear)
    assert len(caught) == 1


async def test_the_death_of_a_receiver_costs_the_same_whatever_is_alive():
    """A signal for each instance, with a nested receiver that is never reached: no look at the other objects."""

    def cost():
        start = time.process_time()
        for _ in range(200):
            made = Signal()

            def local(**named): ...

            made.connect(local)
            del local, made
        return time.process_time() - start

    few = min(cost() for _ in range(5))
    ballast = [[number] for number in range(300_000)]
    gc.freeze()
    many = min(cost() for _ in range(5))
    assert len(ballast) == 300_000
    assert many < 10 * few


@pytest.mark.parametrize(
    "connect",
    [
        lambda made, kept: made.connect(kept),
        lambda made, kept: made.connect(kept.hear),
        lambda made, kept: made.connect(lambda **named: None, weak=False),
        lambda made, kept: made.connect(functools.partial(greet), weak=False),
        lambda made, kept: made.connect(greet),
        lambda made, kept: made.connect(kept.__call__),
        lambda made, kept: made.connect(dict),
        lambda made, kept: made.connect(vars(kept).setdefault("held", functools.partial(greet))),
        lambda made, kept: receiver(made)(kept),
        lambda made, kept: made.connect()(kept),
        lambda made, kept: made.connect(lambda **named: None, priority=1, weak=False),
    ],
)
async def test_connecting_what_somebody_holds_warns_nobody(made, warned, connect):
    """Receivers that are held elsewhere, or strongly by the signal, are no reason to warn."""
    kept = Handler()
    connect(made, kept)
    assert warned == []
    del kept


async def test_a_nested_function_that_dies_unheard_warns(made, warned):
    """A decorated local function that is gone before any send could reach it is told of, once for its line."""

    def register():
        for _ in range(3):

            @made.connect()
            def local(**named): ...

    warnings.simplefilter("default", ReceiverLostWarning)
    register()
    gc.collect()
    await made.send(None)
    (warning,) = warned
    assert warning.filename == __file__
    assert warning.lineno in range(register.__code__.co_firstlineno, register.__code__.co_firstlineno + 5)
    assert "weak=False" in str(warning.message)


class Decorated:
    """Wraps a function in an object, as class-based decorators do."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, **named):
        return self.function(**named)

    def hear(self, **named):
        return "heard"


EASILY_LOST = {
    "lambda": lambda: lambda **named: None,
    "partial": lambda: functools.partial(greet),
    "cached function": lambda: functools.cache(greet),
    "wrapper": lambda: logged(greet),
    "wrapper object": lambda: Decorated(greet),
    "wrapper object of wrapt": lambda: wrapt.FunctionWrapper(greet, lambda called, _, args, kwargs: called(**kwargs)),
}


@pytest.mark.parametrize("make", EASILY_LOST.values(), ids=EASILY_LOST)
async def test_a_lambda_a_partial_or_a_wrapper_that_dies_unheard_warns(made, warned, make):
    """One that somebody held while it was connected is told of as a nested function is."""
    kept = make()
    made.connect(kept)
    assert warned == []
    del kept
    await made.send(None)
    assert ["died before the signal was sent" in str(warning.message) for warning in warned] == [True]


USES = {
    "send": lambda made: made.send(None).close(),
    "connect": lambda made: made.connect(greet),
    "has_listeners": lambda made: made.has_listeners(),
    "connections": lambda made: made.connections,
    "disconnect": lambda made: made.disconnect(greet),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_lost_nested_function_is_told_at_the_next_use(made, warned, use):
    """Until the signal is used again it may be about to die itself."""

    def register():
        @made.connect
        @logged
        def local(**named): ...

    register()
    gc.collect()
    assert warned == []
    use(made)
    assert len(warned) == 1
    assert "shop.sold" in str(warned[0].message)


async def test_a_nested_function_that_a_send_could_reach_warns_nobody(made, warned):
    """Once a send has been made, to whatever sender, its end is a fair use."""

    async def use(sender):
        @made.connect(sender=sender)
        def local(**named): ...

        await made.send("a")

    await use(None)
    await use("a")
    await use("b")
    gc.collect()
    await made.send("a")
    assert warned == []


async def test_a_disconnected_receiver_warns_nobody(made, warned):
    """What is not connected any more cannot be lost."""

    def use():
        def local(**named): ...

        made.connect(local)
        made.disconnect(local)
        with made.connected(local):
            pass

    use()
    await made.send(None)
    assert warned == []


async def test_a_receiver_of_a_dead_sender_warns_nobody(made, warned):
    """A connection that ended with its sender cannot be lost any more."""

    def use():
        sender = Sender()

        def local(**named): ...

        made.connect(local, sender=sender)
        del sender

    use()
    await made.send(None)
    assert warned == []


def signal_first():
    made = Signal()

    def local(**named): ...

    made.connect(local)


def receiver_first():
    def local(**named): ...

    made = Signal()
    made.connect(local)


def several_receivers_first():
    kept = [functools.partial(greet) for _ in range(3)]
    made = Signal()
    for each in kept:
        made.connect(each)


def receiver_that_knows_its_signal():
    def local(**named):
        return made.name

    made = Signal()
    made.connect(local)


def receiver_that_disconnects_itself():
    def local(**named):
        made.disconnect(local)

    made = Signal()
    made.connect(local)


def signal_in_a_list():
    def local(**named): ...

    signals = [Signal(), Signal()]
    for each in signals:
        each.connect(local)


def signal_of_an_object():
    def local(**named): ...

    class Shop:
        def __init__(self):
            self.sold = Signal()

    shop = Shop()
    shop.sold.connect(local)


def failing_scope():
    def local(**named): ...

    made = Signal()
    made.connect(local)
    with contextlib.suppress(ZeroDivisionError):
        1 / 0  # noqa: B018  fails


def generator_scope():
    def local(**named): ...

    made = Signal()
    made.connect(local)
    yield made


def a_generator():
    list(generator_scope())


def an_abandoned_generator():
    next(generator_scope())


SCOPES = [
    signal_first,
    receiver_first,
    several_receivers_first,
    receiver_that_knows_its_signal,
    receiver_that_disconnects_itself,
    signal_in_a_list,
    signal_of_an_object,
    failing_scope,
    a_generator,
    an_abandoned_generator,
]


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.__name__)
async def test_receivers_that_die_with_their_signal_warn_nobody(warned, scope):
    """A signal and its receivers that are local to one scope are a fair use, in any order of definition."""
    scope()
    gc.collect()
    assert warned == []


async def test_garbage_that_is_collected_in_the_statement_warns_nobody(made, warned):
    """A collection may begin in any statement; what an earlier round of a loop has left dies in it."""

    class Ring:
        def __init__(self):
            self.me = self

        def hear(self, **named): ...

    for _ in range(3):
        made.connect((gc.collect(), Ring().hear)[1])
    gc.collect()
    assert warned == []


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.__name__)
async def test_the_same_inside_a_coroutine_warns_nobody(warned, scope):
    """The order in which a coroutine's variables die is no matter either."""

    async def run():
        await checkpoint()
        scope()
        await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
    gc.collect()
    assert warned == []


@pytest.mark.parametrize("is_first", [True, False], ids=["receiver first", "signal first"])
async def test_variables_of_a_coroutine_warn_nobody(warned, is_first):
    """Signal and receiver may be variables of a coroutine that ends, fails or is cancelled."""

    async def ends(how):
        if is_first:

            def local(**named): ...

        made = Signal()
        if not is_first:

            def local(**named): ...

        made.connect(local)
        if how == "cancelled":
            await anyio.sleep_forever()
        if how == "fails":
            raise ValueError

    for how in ("returns", "fails", "cancelled"):
        try:
            with anyio.move_on_after(0):
                await ends(how)
        except ValueError:
            pass
    gc.collect()
    assert warned == []


async def test_asking_whether_a_signal_is_held_does_not_hold_it(warned):
    """A local signal with unheard receivers dies when its scope ends, without the garbage collector."""

    def scope():
        kept = [functools.partial(greet) for _ in range(3)]
        made = Signal()
        for each in kept:
            made.connect(each)
        return weakref.ref(made)

    gc.disable()
    try:
        assert scope()() is None
    finally:
        gc.enable()
    assert warned == []


async def test_a_receiver_that_outlives_its_signal_is_not_lost(warned):
    """Nobody could have sent to it any more, whoever else still refers to what the signal was made of."""

    def local(**named): ...

    made = Signal()
    made.connect(local)
    registry = made._registry
    del made
    gc.collect()
    del local
    gc.collect()
    registry.purge()
    assert warned == []


async def test_a_loss_that_a_filter_made_an_error_is_reported_as_unraisable(monkeypatch):
    """It goes to `sys.unraisablehook`, and nothing else keeps the error or the signal."""
    kept = []
    monkeypatch.setattr(sys, "unraisablehook", kept.append)
    holder = [Signal()]

    def register():
        def local(**named): ...

        holder[0].connect(local)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ReceiverLostWarning)
        register()
        gc.collect()
        await holder[0].send(None)
    assert [type(each.exc_value) for each in kept] == [ReceiverLostWarning]
    alive = weakref.ref(holder.pop())
    kept.clear()
    gc.collect()
    assert alive() is None


async def test_a_loss_in_another_thread_is_told(made, warned):
    """A receiver that dies in another thread is told of like any other."""

    def register():
        def local(**named): ...

        made.connect(local)

    thread = threading.Thread(target=register)
    thread.start()
    thread.join()
    await made.send(None)
    assert len(warned) == 1


def run(code, *options):
    done = subprocess.run(  # noqa: S603  the test's own code
        [sys.executable, *options, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_loss_with_warnings_as_errors_breaks_nobody():
    """With `-W error` Python reports the warning as it does a finalizer's error, with all its text."""
    code = """
        import asyncio
        from asignals import Signal
        made = Signal()
        class Handler:
            def hear(self, **named): ...
        def register():
            def local(**named): ...
            made.connect(local)
        register()
        print(asyncio.run(made.send(None)))
        made.connect(Handler().hear)
    """
    status, out, err = run(code, "-W", "error")
    assert (status, out) == (0, "[]\n")
    assert err.count("ReceiverLostWarning: ") == 2
    for words in ("register.<locals>.local", "Handler.hear", "'__main__.made'", "<string>:9", "weak=False"):
        assert words in err


def test_lines_are_enough_to_know_the_statement():
    """An interpreter that keeps no columns still knows the statement by its lines."""
    code = """
        from asignals import Signal
        made = Signal()
        class Handler:
            def hear(self, **named): ...
        made.connect(
            Handler().hear
        )
        kept = Handler()
        made.connect(kept.hear)
        kept = None
    """
    status, _, err = run(code, "-X", "no_debug_ranges")
    assert status == 0
    assert err.count("ReceiverLostWarning: ") == 1


def test_the_end_of_the_program_warns_nobody():
    """Receivers and signals that live until the interpreter ends are no loss."""
    code = """
        from asignals import Signal
        def make():
            def local(**named): ...
            return local
        aaa = make()
        made = Signal()
        zzz = make()
        made.connect(aaa)
        made.connect(zzz)
        print("end")
    """
    assert run(code, "-W", "error") == (0, "end\n", "")


def test_a_lost_module_level_receiver_is_told_of_by_its_line():
    """The warning that a user sees names file and line of the connect."""
    code = """
        from asignals import Signal
        made = Signal()
        made.connect(lambda **named: None)
        import gc
        gc.collect()  # free-threaded builds keep it until then
        made.has_listeners()
    """
    status, _, err = run(code)
    assert status == 0
    assert "<string>:4: ReceiverLostWarning: " in err
    assert "'__main__.made'" in err


def test_the_package_is_not_the_caller():
    """`stacklevel` is never off by one: no warning points into the library."""
    package = asignals.__file__.rpartition("/")[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = Signal()
        made.connect(lambda **named: None)
        made.using(limit=2).connect(lambda **named: None)
        receiver(made, sender=3)(functools.partial(greet))
    assert caught
    assert not [warning.filename for warning in caught if warning.filename.startswith(package)]


def test_a_receiver_that_was_disconnected_before_it_dies_in_that_statement_is_not_warned_of(made, warned):
    """Nothing was lost: the program has ended the connection, though a plan made before may still know it."""
    owners = [Handler()]
    (made.connect(owners[0].hear), made.has_listeners(), made.disconnect(owners[0].hear), owners.clear())
    gc.collect()
    assert warned == []
