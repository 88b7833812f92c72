import contextlib
import enum
import gc
import linecache
import math
import sys
import sysconfig
import weakref
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asignals
from asignals import InvalidReceiverError, Signal, receiver
from asignals._core import registry as _registry

_signal = sys.modules["asignals._core.signal"]

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio")]


class Weakless:
    """A callable and a sender that cannot be weakly referenced."""

    __slots__ = ("calls",)

    def __init__(self):
        self.calls = []

    def __call__(self, **named):
        self.calls.append(named["sender"])


class Sender:
    pass


class Mortal:
    """A receiver that may die without anybody wondering."""

    def __call__(self, **named): ...


def other(**named):
    return "other"


def greet(**named):
    return "greet"


async def slow(**named): ...


@pytest.fixture
def made():
    return Signal(name="shop.sold")


# -- connect --


async def test_connect_returns_the_receiver_itself(made):
    """`connect` can be used on a function without changing it."""
    assert made.connect(greet) is greet


async def test_connect_without_a_receiver_is_a_decorator_with_options(made):
    """`@sig.connect(priority=…)` connects what it decorates and returns it."""

    @made.connect(sender="orders", priority=3, weak=False)
    def decorated(**named): ...

    assert decorated.__name__ == "decorated"
    (connection,) = made.connections
    assert (connection.receiver, connection.sender, connection.priority) == (decorated, "orders", 3)
    assert not connection.weak


async def test_djangos_positional_parameters_are_in_djangos_order(made):
    """`connect(receiver, sender, weak, dispatch_uid)` works by position, and so does disconnect."""
    made.connect(greet, "orders", False, "uid")  # noqa: FBT003  as Django's users write
    (connection,) = made.connections
    assert (connection.sender, connection.weak, connection.dispatch_uid) == ("orders", False, "uid")
    assert made.disconnect(None, "orders", "uid")


@pytest.mark.parametrize("thing", [3, "greet", object(), [], Weakless], ids=["int", "str", "object", "list", "class"])
async def test_what_cannot_be_called_is_refused(made, thing):
    """A non-callable is a TypeError that names the signal; a class is callable, so the check is about its instances."""
    thing = thing if thing is not Weakless else object.__new__(Sender)
    for connect in (made.connect, made.connect(), receiver(made), made.connected, made.muted):
        with pytest.raises(TypeError, match=r"shop\.sold.*callable"), connect(thing) or pytest.fail("accepted"):
            pass
    assert made.connections == ()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"timeout": 1}, "nothing could stop a sync one"),
        ({"priority": "high"}, "priority must be a number"),
        ({"priority": math.nan}, "priority must be a number"),
        ({"priority": None}, "priority must be a number"),
        ({"subclasses": True}, "needs a class"),
        ({"subclasses": True, "sender": Sender()}, "needs a class"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_options_that_do_not_fit_a_sync_receiver_are_refused(made, options, reason):
    """The error is a ValueError that names signal, receiver and its file:line, and nothing is connected."""
    with pytest.raises(InvalidReceiverError, match=reason) as caught:
        made.connect(greet, **options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.signal is made
    assert caught.value.receiver is greet
    assert reason in caught.value.reason
    line = greet.__code__.co_firstlineno
    for part in ("shop.sold", "greet", f"{__file__}:{line}"):
        assert part in str(caught.value)
    assert made.connections == ()


async def test_a_uid_that_cannot_be_hashed_is_all_that_is_complained_of(made):
    """The advice for receivers that cannot be weakly referenced is given for these only."""
    with pytest.raises(TypeError, match=r"cannot connect .*greet .* to signal 'shop\.sold': unhashable type: 'list'$"):
        made.connect(greet, dispatch_uid=[])


@pytest.mark.parametrize("seconds", [0, -1, math.nan, True, "1"], ids=repr)
async def test_a_timeout_is_a_positive_number_of_seconds(made, seconds):
    """A timeout that would never be met, or is no number, is refused."""

    async def slow(**named): ...

    with pytest.raises(InvalidReceiverError, match="positive number of seconds"):
        made.connect(slow, timeout=seconds)


async def test_an_async_receiver_is_not_put_into_a_thread(made):
    """`in_thread` with a coroutine function is refused."""

    async def slow(**named): ...

    with pytest.raises(InvalidReceiverError, match="sync receivers"):
        made.connect(slow, in_thread=True)


async def test_a_refused_change_of_options_changes_nothing(made):
    """Connecting again with options that do not fit leaves the connection as it was."""
    made.connect(greet, priority=2)
    with pytest.raises(InvalidReceiverError):
        made.connect(greet, timeout=3)
    (connection,) = made.connections
    assert connection.priority == 2
    assert await made.send(None) == [(greet, "greet")]


class Sulking:
    """A value that answers no question."""

    def __bool__(self):
        raise RuntimeError

    __eq__ = __lt__ = __gt__ = __repr__ = __str__ = __hash__ = lambda self, *others: self.__bool__()


async def test_a_uid_that_cannot_be_hashed_for_a_reason_of_its_own_is_refused(made):
    """Whatever its `__hash__` raises, the error names the receiver and the signal, and nothing is connected."""
    with pytest.raises(TypeError, match=r"greet.*shop\.sold"):
        made.connect(greet, dispatch_uid=Sulking())
    assert made.connections == ()


async def test_any_truth_is_an_answer(made):
    """Options that are yes or no take whatever counts as true or false, and tell it as a `bool`."""
    made.connect(greet, weak=0, once="yes", in_thread=[], subclasses=None)
    (connection,) = made.connections
    assert (connection.weak, connection.options.once, connection.in_thread) == (False, True, False)


async def test_an_unhashable_uid_is_refused(made):
    """A `dispatch_uid` that cannot identify anything is a TypeError which names the receiver."""
    with pytest.raises(TypeError, match=r"greet.*unhashable"):
        made.connect(greet, dispatch_uid=[])
    assert made.connections == ()


async def test_numbers_of_any_size_are_priorities(made):
    """Infinities and integers beyond floats are ordered like any other priority."""
    names = {10**400: "huge", math.inf: "first", -math.inf: "last", 0: "middle", -1.5: "low"}
    kept = [
        made.connect(partial(lambda name, **named: name, name), priority=p, weak=False) for p, name in names.items()
    ]
    assert [response for _, response in await made.send(None)] == ["first", "huge", "middle", "low", "last"]
    assert len(kept) == 5


# -- order --


@given(
    st.lists(
        st.tuples(st.integers(-3, 3) | st.sampled_from([0.5, -0.5]), st.booleans(), st.booleans()),
        max_size=12,
    )
)
async def test_higher_priorities_come_first_then_the_order_of_connection(drawn):
    """Sync and async receivers, for all senders and for one, share one order."""
    made = Signal()
    connected = []
    for number, (priority, sync, for_all) in enumerate(drawn):

        def plain(number=number, **named):
            return number

        async def coroutine(number=number, **named):
            return number

        chosen = plain if sync else coroutine
        made.connect(chosen, sender=None if for_all else "s", priority=priority)
        connected.append((-priority, number, chosen))
    expected = [number for _, number, _ in sorted(connected, key=lambda each: each[:2])]
    assert [response for _, response in await made.send("s")] == expected
    assert [r for r, _ in await made.send("s")] == made.receivers_for("s")


async def test_connections_are_listed_in_order_across_senders(made):
    """`connections` has those of all senders together, by priority and then by connection."""
    a = made.connect(lambda **named: 1, weak=False, sender="x")
    b = made.connect(lambda **named: 2, weak=False, priority=1)
    c = made.connect(lambda **named: 3, weak=False)
    assert [connection.receiver for connection in made.connections] == [b, a, c]


# -- identity --


async def test_the_same_receiver_and_sender_is_one_connection(made):
    """Connecting again does not call twice."""
    made.connect(greet)
    made.connect(greet)
    assert await made.send(None) == [(greet, "greet")]


async def test_connecting_again_keeps_the_place_and_the_object(made):
    """A second `connect` changes the options of the connection that is there."""
    made.connect(greet)
    made.connect(other)
    before = made.connections
    made.connect(greet, weak=False)
    assert made.connections == before
    assert all(new is old for new, old in zip(made.connections, before, strict=True))
    assert not made.connections[0].weak


async def test_connecting_again_with_another_priority_sorts_again(made):
    """A new priority moves the connection, and the old one moves it back to its place."""
    made.connect(greet)
    made.connect(other)
    made.connect(other, priority=1)
    assert [r for r, _ in await made.send(None)] == [other, greet]
    made.connect(greet, priority=1)
    assert [r for r, _ in await made.send(None)] == [greet, other]


async def test_connecting_again_strongly_keeps_the_receiver(made):
    """A weak receiver that is connected again with `weak=False` outlives its last reference, and the reverse."""

    def local(**named):
        return "local"

    alive = weakref.ref(local)
    made.connect(local)
    made.connect(local, weak=False)
    del local
    gc.collect()
    assert [response for _, response in await made.send(None)] == ["local"]
    made.connect(made.connections[0].receiver, weak=True)
    gc.collect()
    assert alive() is None
    assert made.connections == ()


async def test_the_same_receiver_for_two_senders_is_two_connections(made):
    """A send to one sender calls the receiver once, one to both connections' sender twice."""
    made.connect(greet, sender="a")
    made.connect(greet)
    assert len(await made.send("a")) == 2
    assert len(await made.send("b")) == 1


@pytest.mark.parametrize("uid", [0, "", False, 0.0, (), "uid", ("a", 1), frozenset()], ids=repr)
async def test_every_hashable_uid_but_none_identifies(made, uid):
    """A uid that is falsy is a uid."""
    made.connect(greet, dispatch_uid=uid)
    (connection,) = made.connections
    assert connection.dispatch_uid == uid
    assert not made.disconnect(greet)
    assert made.disconnect(dispatch_uid=uid)
    assert made.connections == ()


async def test_the_same_receiver_with_and_without_a_uid_is_two_connections(made):
    """Uids and receivers are different identities."""
    made.connect(greet)
    made.connect(greet, dispatch_uid=0)
    made.connect(greet, dispatch_uid=1)
    assert len(await made.send(None)) == 3
    assert made.connections[0].dispatch_uid is None


async def test_a_different_receiver_under_a_taken_uid_is_not_added(made):
    """Django's rule: who has the uid first keeps it, with its options."""
    made.connect(greet, dispatch_uid="u", priority=1)
    made.connect(other, dispatch_uid="u", priority=2)
    assert await made.send(None) == [(greet, "greet")]
    assert made.connections[0].priority == 1


async def test_a_uid_is_per_sender(made):
    """One uid may be used for each sender."""
    made.connect(greet, "a", dispatch_uid="u")
    made.connect(other, "b", dispatch_uid="u")
    assert await made.send("a") == [(greet, "greet")]
    assert await made.send("b") == [(other, "other")]


async def test_a_uid_is_free_again_when_its_receiver_has_died(made):
    """A dead receiver does not occupy its uid."""
    mortal = Mortal()
    made.connect(mortal, dispatch_uid="u")
    await made.send(None)
    del mortal
    made.connect(greet, dispatch_uid="u")
    assert await made.send(None) == [(greet, "greet")]


async def test_bound_methods_of_equal_objects_are_different_receivers(made):
    """Receivers are the same by identity, whatever their objects' `__eq__` and `__hash__` say."""

    class Equal:
        def __init__(self, name):
            self.name = name

        def __eq__(self, other):
            return True

        __hash__ = None

        def hear(self, **named):
            return self.name

    a, b = Equal("a"), Equal("b")
    made.connect(a.hear)
    made.connect(b.hear)
    made.connect(a.hear)
    assert [response for _, response in await made.send(None)] == ["a", "b"]
    assert made.disconnect(b.hear)
    assert [response for _, response in await made.send(None)] == ["a"]


async def test_builtin_methods_are_known_by_their_object_and_name(made):
    """`d.update` is a new object at each access, and still one receiver."""
    d, e = {}, {}
    for _ in range(2):
        made.connect(d.update, weak=False)
        made.connect(e.update, weak=False)
    assert len(made.connections) == 2
    await made.send("s", a=1)
    assert d == e == {"signal": made, "sender": "s", "a": 1}
    assert made.disconnect(d.update)
    assert not made.disconnect(d.update)
    assert [connection.receiver for connection in made.connections] == [e.update]


async def test_methods_of_c_slots_are_known_by_their_object_and_name(made):
    """`f.__call__` of a function is a new object at each access, and still one receiver."""
    for _ in range(2):
        made.connect(greet.__call__, weak=False)
        made.connect(other.__call__, weak=False)
    assert [response for _, response in await made.send(None)] == ["greet", "other"]
    assert made.disconnect(greet.__call__)
    assert [response for _, response in await made.send(None)] == ["other"]


# -- disconnect --


async def test_disconnect_tells_whether_there_was_a_connection(made):
    """True once, False after that, and False for others."""
    made.connect(greet)
    assert not made.disconnect(other)
    assert not made.disconnect(greet, sender="a")
    assert not made.disconnect(greet, dispatch_uid="u")
    assert made.disconnect(greet) is True
    assert made.disconnect(greet) is False
    assert await made.send(None) == []


async def test_disconnect_needs_to_be_told_what(made):
    """Neither a receiver nor a uid is a TypeError."""
    with pytest.raises(TypeError, match=r"shop\.sold.*dispatch_uid"):
        made.disconnect(sender="a")


async def test_disconnect_for_one_sender_leaves_the_others(made):
    """Each sender's connection ends by itself."""
    made.connect(greet)
    made.connect(greet, sender="a")
    made.disconnect(greet, sender="a")
    assert len(await made.send("a")) == 1
    made.connect(greet, sender="a")
    made.disconnect(greet)
    assert len(await made.send("a")) == 1
    assert await made.send("b") == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.sampled_from([None, "a", "b"])), max_size=30))
async def test_any_sequence_of_connecting_and_disconnecting_leaves_what_it_should(steps):
    """The connections are those that a plain dictionary of the same steps has."""
    made = Signal()
    pool = [partial(greet) for _ in range(5)]
    expected = {}
    for connecting, index, sender in steps:
        if connecting:
            made.connect(pool[index], sender)
            expected.setdefault((index, sender), None)
        else:
            assert made.disconnect(pool[index], sender) == ((index, sender) in expected)
            expected.pop((index, sender), None)
        for who in ("a", "c"):
            wanted = [pool[i] for i, s in expected if s in (None, who)]
            assert [r for r, _ in await made.send(who)] == wanted
            assert made.receivers_for(who) == wanted
            assert made.has_listeners(who) == bool(wanted)
    assert [(c.receiver, c.sender) for c in made.connections] == [(pool[i], s) for i, s in expected]


# -- senders --


@pytest.mark.parametrize(
    ("connected", "sent"),
    [
        ("orders", b"orders".decode()),
        (b"orders", bytes(bytearray(b"orders"))),
        (10**30, int("1" + "0" * 30)),
        (1.5, float("1.5")),
        (1j, complex("1j")),
        (True, bool(1)),
        (0.0, -0.0),
    ],
    ids=repr,
)
async def test_values_are_the_same_sender_by_type_and_value(made, connected, sent):
    """An equal value of the same type, made elsewhere, is the same sender."""
    made.connect(greet, sender=connected)
    assert await made.send(sent) == [(greet, "greet")]
    assert made.disconnect(greet, sent)


@pytest.mark.parametrize(("connected", "sent"), [(1, 1.0), (1, True), (0, False), (1, 1 + 0j), ("a", b"a")], ids=repr)
async def test_equal_values_of_different_types_are_different_senders(made, connected, sent):
    """1, 1.0 and True are equal, but nobody means one by the other."""
    made.connect(greet, sender=connected)
    assert await made.send(sent) == []


async def test_a_value_of_a_subclass_is_a_sender_of_its_own(made):
    """A member of a string enumeration is heard by identity, not as the string it equals."""

    class Kind(enum.StrEnum):
        ORDERS = "orders"

    made.connect(greet, sender="orders")
    made.connect(other, sender=Kind.ORDERS)
    assert await made.send(Kind.ORDERS) == [(other, "other")]
    assert await made.send("orders") == [(greet, "greet")]


async def test_objects_are_senders_by_identity(made):
    """Equal objects are different senders, and none needs a hash."""
    a, b = [1], [1]
    made.connect(greet, sender=a)
    assert await made.send(a) == [(greet, "greet")]
    assert await made.send(b) == []


async def test_a_sender_that_lies_and_refuses_is_a_sender(made):
    """No special method of a sender is called."""

    def refuse(*args, **kwargs):
        raise AssertionError

    names = ["__eq__", "__hash__", "__bool__", "__repr__", "__str__", "__getattr__", "__len__", "__iter__", "__call__"]
    hostile = type("Hostile", (), {**dict.fromkeys(names, refuse), "__class__": property(refuse)})()
    made.connect(greet, sender=hostile)
    made.connect(other, sender=Sender, subclasses=True)
    assert await made.send(hostile) == [(greet, "greet")]
    assert await made.send_robust(hostile) == [(greet, "greet")]
    assert made.receivers_for(hostile) == [greet]
    assert made.has_listeners(hostile)
    with made.muted(greet), made.connected(greet, hostile):
        assert await made.send(hostile) == []
    assert made.disconnect(greet, hostile)


async def test_a_sender_whose_class_is_unhashable_is_a_sender(made):
    """A metaclass with `__eq__` and no `__hash__` makes classes that no set takes."""

    class Meta(type):
        def __eq__(cls, other):
            raise AssertionError

        __hash__ = None

    class Odd(metaclass=Meta):
        pass

    odd = Odd()
    made.connect(greet, sender=odd)
    made.connect(other, sender=Odd)
    assert await made.send(odd) == [(greet, "greet")]
    assert await made.send(Odd) == [(other, "other")]


async def test_none_hears_everyone(made):
    """A connection without a sender hears every sender, and a send by None only such connections."""
    made.connect(greet)
    made.connect(other, sender="a")
    assert await made.send("b") == [(greet, "greet")]
    assert await made.send(None) == [(greet, "greet")]


async def test_a_class_is_heard_alone_unless_subclasses_are_asked_for(made):
    """`subclasses=True` hears the class and all below it, others only the class."""

    class Below(Sender):
        pass

    made.connect(greet, sender=Sender)
    made.connect(other, sender=Sender, subclasses=True)
    assert await made.send(Sender) == [(greet, "greet"), (other, "other")]
    assert await made.send(Below) == [(other, "other")]
    assert await made.send(Below()) == []
    assert await made.send(object) == []


async def test_a_diamond_is_called_once(made):
    """A class that inherits from the heard class on two ways is one sender."""

    class Left(Sender):
        pass

    class Right(Sender):
        pass

    class Both(Left, Right):
        pass

    made.connect(greet, sender=Sender, subclasses=True)
    assert len(await made.send(Both)) == 1
    made.connect(greet, sender=Left, subclasses=True)
    assert len(await made.send(Both)) == 2
    assert len(await made.send(Right)) == 1


async def test_subclasses_follow_later_changes(made):
    """A subclass that has been sent to hears of connections of its base that come, change and go later."""

    class Below(Sender):
        pass

    assert await made.send(Below) == []
    made.connect(greet, sender=Sender, subclasses=True)
    assert len(await made.send(Below)) == 1
    made.connect(greet, sender=Sender, subclasses=False)
    assert await made.send(Below) == []
    made.connect(greet, sender=Sender, subclasses=True)
    assert len(await made.send(Below)) == 1
    made.disconnect(greet, sender=Sender)
    assert await made.send(Below) == []


async def test_each_connection_with_subclasses_counts_once(made):
    """However often options change, a connection's subclasses are heard until the last one stops to ask for them."""

    class Below(Sender):
        pass

    made.connect(greet, sender=Sender)
    made.connect(other, sender=Sender, subclasses=True)
    for _ in range(2):
        made.connect(greet, sender=Sender, subclasses=True)
        made.connect(greet, sender=Sender, subclasses=True)
        assert await made.send(Below) == [(greet, "greet"), (other, "other")]
        made.connect(greet, sender=Sender)
        made.connect(greet, sender=Sender)
        assert await made.send(Below) == [(other, "other")]
    made.connect(greet, sender=Sender, subclasses=True)
    made.disconnect(other, sender=Sender)
    assert await made.send(Below) == [(greet, "greet")]
    made.disconnect(greet, sender=Sender)
    sender = type("Dying", (), {})
    made.connect(greet, sender=sender, subclasses=True)
    del sender
    gc.collect()
    assert await made.send(Below) == []


async def test_classes_below_a_metaclass_are_heard(made):
    """A class with a metaclass of its own can be heard with its subclasses."""

    class Meta(type):
        pass

    class Base(metaclass=Meta):
        pass

    class Below(Base):
        pass

    made.connect(greet, sender=Base, subclasses=True)
    assert len(await made.send(Below)) == 1


async def test_object_with_subclasses_hears_every_class(made):
    """All classes are below `object`; instances are none."""
    made.connect(greet, sender=object, subclasses=True)
    assert len(await made.send(int)) == 1
    assert await made.send(1) == []


# -- the connection --


@pytest.mark.parametrize(
    "attribute",
    ["receiver", "sender", "weak", "dispatch_uid", "priority", "is_async", "in_thread", "location"],
)
async def test_a_connection_is_read_only(made, attribute):
    """What a connection says of itself cannot be assigned."""
    made.connect(greet)
    with pytest.raises(AttributeError):
        setattr(made.connections[0], attribute, None)


async def test_a_connection_tells_how_it_was_made(made):
    """Every option that `connect` took can be read."""

    async def slow(**named): ...

    made.connect(slow, "a", weak=False, dispatch_uid=7, priority=1.5)
    made.connect(greet, in_thread=True)
    first, second = made.connections
    assert (first.receiver, first.sender, first.weak, first.dispatch_uid) == (slow, "a", False, 7)
    assert (first.priority, first.is_async, first.in_thread) == (1.5, True, False)
    assert (second.is_async, second.in_thread, second.weak, second.sender) == (False, True, True, None)


async def test_the_location_is_where_the_receiver_is_defined(made):
    """`file:line` leads to the receiver's code, through partials, wrappers, methods and inherited `__call__`."""

    class Base:
        def __call__(self, **named): ...

        def hear(self, **named): ...

    class Below(Base):
        pass

    kept = [greet, partial(partial(greet)), Below(), Below().hear]
    expected = [greet, greet, Base.__call__, Base.hear]
    for each in kept:
        made.connect(each, weak=False)
    for connection, function in zip(made.connections, expected, strict=True):
        file, _, line = connection.location.rpartition(":")
        assert linecache.getline(file, int(line)).strip().startswith(f"def {function.__name__}")
        assert int(line) == function.__code__.co_firstlineno


async def test_a_receiver_without_code_is_located_where_it_was_connected(made):
    """For builtins and classes the location is the line of `connect`."""
    made.connect({}.update, weak=False)  # this line
    file, _, line = made.connections[0].location.rpartition(":")
    assert linecache.getline(file, int(line)).rstrip().endswith("# this line")


@pytest.mark.parametrize(
    ("thing", "name"),
    [({}.update, "dict.update"), (greet.__call__, "function.__call__")],
    ids=lambda value: str(value)[:9],
)
async def test_a_receiver_without_code_is_shown_by_its_name_and_where_it_was_connected(made, thing, name):
    """A connection of something written in C shows its type, its name and the line that connected it."""
    made.connect(thing, weak=False)
    (connection,) = made.connections
    assert repr(connection) == f"<asignals.Connection of {name} (connected at {connection.connected_at})>"


async def test_the_line_that_connects_is_the_users(made):
    """A block, a decorator and an overridden `connect` are told of by the line that uses them."""

    class Announced(Signal):
        def connect(self, receiver, *sender, **options):
            return self.really_connect(receiver, *sender, **options)

        def really_connect(self, *arguments, **options):
            return super().connect(*arguments, **options)

    def line():
        return f"{__file__}:{sys._getframe(1).f_lineno}"

    thing, own = {}, Announced(["x"])
    with made.connected(thing.update, weak=False), own.connected(thing.update, weak=False):
        expected = f"{__file__}:{sys._getframe().f_lineno - 1}"
        assert [each.connections[0].connected_at for each in (made, own)] == [expected, expected]
    with contextlib.ExitStack() as stack:
        here, _ = line(), stack.enter_context(made.connected(thing.update, weak=False))
        assert made.connections[0].connected_at == here
    here, _ = line(), receiver(own, weak=False)(thing.update)
    assert own.connections[0].connected_at == here


async def test_connections_can_be_kept_in_sets(made):
    """Connections are hashable and equal only to themselves, whatever their receivers are."""

    class Odd:
        __hash__ = None

        def __eq__(self, other):
            return True

        def __call__(self, **named): ...

    odd, odder = Odd(), Odd()
    made.connect(odd)
    made.connect(odder)
    first, second = made.connections
    assert first != second
    assert len({first, second, *made.connections}) == 2


async def test_a_connection_outlives_its_receiver_as_a_record(made):
    """After its receiver has died, a connection says so and can still be described."""
    mortal = Mortal()
    made.connect(mortal, priority=2)
    (connection,) = made.connections
    del mortal
    assert connection.receiver is None
    assert connection.priority == 2
    assert "test_connecting" in connection.location
    assert repr(connection).startswith("<asignals.Connection")


async def test_a_connection_outlives_the_object_of_its_method(made):
    """A connection to a method says that its receiver is gone when only the function is left."""

    class Handler:
        def hear(self, **named): ...

    handler = Handler()
    made.connect(handler.hear)
    (connection,) = made.connections
    assert connection.receiver == handler.hear
    del handler
    assert connection.receiver is None
    name = "test_connecting.test_a_connection_outlives_the_object_of_its_method.<locals>.Handler.hear"
    assert repr(connection) == f"<asignals.Connection of {name} (connected at {connection.connected_at})>"


async def test_has_listeners_counts_what_a_send_would_reach(made):
    """Only connections for that sender or for all count, and dead ones do not."""
    assert not made.has_listeners()
    mortal = Mortal()
    made.connect(mortal, sender="a")
    assert made.has_listeners("a")
    assert not made.has_listeners("b")
    assert not made.has_listeners()
    del mortal
    assert not made.has_listeners("a")
    made.connect(greet)
    assert made.has_listeners()
    assert made.has_listeners("anyone")


# -- the decorator --


@pytest.mark.parametrize("several", [list, tuple, set, frozenset])
async def test_receiver_connects_to_several_signals_and_senders(made, several):
    """`@receiver([a, b], sender=[x, y])` makes a connection for each pair."""
    second = Signal()

    @receiver(several([made, second]), sender=several(["x", "y"]))
    def hear(**named):
        return named["sender"]

    for each in (made, second):
        assert await each.send("x") == [(hear, "x")]
        assert await each.send("y") == [(hear, "y")]
        assert await each.send("z") == []


@pytest.mark.parametrize("several", [iter, dict.fromkeys, lambda signals: dict(enumerate(signals)).values()])
async def test_receiver_takes_signals_from_wherever_they_come(several):
    """Whatever gives signals when it is iterated over, once, is several signals."""
    first, second = Signal(), Signal()
    decorate = receiver(several([first, second]))

    @decorate
    def hear(**named): ...

    @decorate
    def listen(**named): ...

    assert first.receivers_for(None) == second.receivers_for(None) == [hear, listen]


async def test_receiver_takes_one_signal_and_the_options_of_connect(made):
    """`@receiver(sig, priority=…)` is `sig.connect` as a decorator."""

    @receiver(made, priority=4, dispatch_uid="u", weak=False)
    def hear(**named): ...

    (connection,) = made.connections
    assert (connection.receiver, connection.priority, connection.dispatch_uid) == (hear, 4, "u")


@pytest.mark.parametrize("signals", [[], (), 3, None, ["x"], [Signal(), 3]], ids=repr)
async def test_receiver_takes_signals_only(signals):
    """Anything but a signal or a list of them is a TypeError at once."""
    with pytest.raises(TypeError, match="takes a signal"):
        receiver(signals)


async def test_receiver_needs_a_sender_where_it_is_given_several(made):
    """An empty list of senders is a TypeError at once, not a receiver that hears nobody."""
    with pytest.raises(TypeError, match="at least one sender"):
        receiver(made, sender=[])


async def test_receiver_connects_to_all_or_none():
    """When one signal refuses the function, those before it have what they had."""
    first, picky = Signal(["a"]), Signal(["b"])

    def hear(a, **named): ...

    first.connect(hear, priority=3)
    with pytest.raises(InvalidReceiverError):
        receiver([first, picky], priority=1)(hear)
    assert [connection.priority for connection in first.connections] == [3]
    first.disconnect(hear)
    with pytest.raises(InvalidReceiverError):
        receiver([first, picky])(hear)
    assert first.connections == picky.connections == ()


async def test_an_unknown_option_is_refused(made):
    """A misspelt option is a TypeError, and nothing is connected."""
    with pytest.raises(TypeError, match="prioritty"):
        receiver(made, prioritty=1)(greet)
    assert made.connections == ()


# -- inside --


async def test_a_finalizer_in_the_middle_of_connect_loses_nothing(made, monkeypatch):
    """A finalizer that ends the sender's last connection while another is being added leaves the new one connected."""
    made.connect(greet, sender="a")

    class Interrupted(dict):
        def get(self, key):
            monkeypatch.undo()
            found = made._registry._senders.get(key)
            made.disconnect(greet, sender="a")
            return found

    monkeypatch.setattr(made._registry, "_senders", Interrupted())
    made.connect(other, sender="a")
    assert await made.send("a") == [(other, "other")]
    assert made.disconnect(other, sender="a")


async def test_senders_that_come_and_go_leave_nothing_behind(made):
    """A signal holds nothing for senders that were disconnected or have died."""
    made.connect(greet)
    for number in range(50):
        sender = Sender()
        made.connect(other, sender=sender)
        await made.send(sender)
        if number % 2:
            made.disconnect(other, sender=sender)
    del sender
    await made.send(None)
    assert len(made._registry._senders) == 1  # of all senders
    assert not made._registry._dead
    assert len(made.connections) == 1


async def test_only_classes_whose_bases_may_be_heard_leave_a_plan_behind(made):
    """Sending from a value, or from a class while nobody asks for subclasses, keeps nothing for that sender."""
    made.connect(greet, sender=Sender)
    await made.send(int)
    made.connect(greet, sender=Sender, subclasses=True)
    for number in range(3):
        await made.send(number)
    assert len(made._registry._senders) == 2  # with that of all senders


async def test_a_change_for_one_sender_keeps_the_plans_of_others(made):
    """A plan is made again only when something changes that concerns it."""
    made.connect(greet, sender="a")
    made.connect(other, sender="b")
    run = made._registry.plan_for("a")
    made.connect(greet, sender="b")
    made.disconnect(other, sender="b")
    assert made._registry.plan_for("a") is run
    made.connect(other)
    assert made._registry.plan_for("a") is not run
    assert await made.send("a") == [(greet, "greet"), (other, "other")]


def steps_of(coroutine):
    """How many lines Python runs for a coroutine that never waits, those of loops each time, and its result."""
    steps = 0
    before = sys.gettrace()

    def trace(frame, event, argument):
        nonlocal steps
        steps += 1
        return trace

    gc.disable()  # what it finds of other tests may run code
    sys.settrace(trace)
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return steps, ended.value
    finally:
        sys.settrace(before)
        gc.enable()
    raise AssertionError


@pytest.mark.parametrize("names", [None, ()], ids=["any", "declared"])
async def test_a_send_costs_what_its_own_receivers_cost(names):
    """It takes the same steps whoever is connected for other senders, after changes to those, too."""
    made = Signal(names)
    made.connect(greet, sender="a")
    made.connect(other)
    for each in ("a", "nobody's"):
        await made.send(each)
        alone, results = steps_of(made.send(each))
        for number in range(100):
            made.connect(greet, sender=number)
        assert steps_of(made.send(each)) == (alone, results)
        for number in range(100):
            made.disconnect(greet, sender=number)


async def test_the_fast_path_comes_back_when_the_last_sender_is_gone(made):
    """After all single senders' connections have ended, sends are as cheap as before there were any."""
    made.connect(greet)
    await made.send(None)
    assert made._registry.plan is not None
    made.connect(other, sender="a")
    await made.send(None)
    assert made._registry.plan is None
    made.disconnect(other, sender="a")
    await made.send(None)
    assert made._registry.plan is not None
    sender = Sender()
    made.connect(other, sender=sender)
    await made.send(None)
    del sender
    await made.send(None)
    assert made._registry.plan is not None


async def test_what_a_connection_tells_cannot_be_set(made):
    """All that `connect` was given can be read, and none of it changed."""
    made.connect(slow, sender=Sender, dispatch_uid=0, priority=2, subclasses=True, timeout=3, once=True)
    made.connect(greet, weak=False, in_thread=True)
    first, second = made.connections
    assert (first.receiver, first.sender, first.dispatch_uid, first.priority) == (slow, Sender, 0, 2)
    assert (first.options.subclasses, first.options.timeout, first.options.once) == (True, 3, True)
    assert (first.weak, first.in_thread) == (True, False)
    assert (second.receiver, second.sender, second.dispatch_uid, second.priority) == (greet, None, None, 0)
    assert (second.options.subclasses, second.options.timeout, second.options.once) == (False, None, False)
    assert (second.weak, second.in_thread) == (False, True)
    assert (first.is_async, second.is_async) == (True, False)
    assert first.location == f"{__file__}:{slow.__code__.co_firstlineno}"
    for name in (
        "receiver",
        "sender",
        "dispatch_uid",
        "priority",
        "subclasses",
        "timeout",
        "once",
        "weak",
        "in_thread",
    ):
        with pytest.raises(AttributeError):
            setattr(first, name, None)


async def test_a_finalizer_may_connect_and_disconnect_in_the_middle_of_anything(made):
    """Wherever the garbage collector interrupts a change with another, each receiver is connected once and called."""

    class Interrupting:
        def __init__(self, act):
            self.act = act
            self.cycle = self

        def __del__(self):
            self.act()

    def meddle():
        made.connect(greet)
        made.connect(greet, sender="s")
        made.connect(last)
        made.disconnect(last)

    async def last(**named):
        return "last"

    thresholds = gc.get_threshold()
    freed = 0
    gc.collect()
    gc.freeze()  # what is there already takes no part, for this collects often
    try:
        for allocations in range(1, 60):
            gc.collect()
            garbage = Interrupting(meddle)
            alive = weakref.ref(garbage)
            del garbage
            gc.set_threshold(allocations)
            made.connect(greet)
            made.connect(greet, sender="s")
            results = await made.send("s")
            made.disconnect(greet)
            made.disconnect(greet, "s")
            gc.set_threshold(*thresholds)
            freed += alive() is None
            assert [receiver for receiver, _ in results] in ([greet, greet], [greet], [])
            gc.collect()
            made.connect(other)
            made.connect(greet)
            made.connect(greet, sender="s")
            assert len(made.connections) == 3
            assert sorted(response for _, response in await made.send("s")) == ["greet", "greet", "other"]
            for receiver, sender in ((other, None), (greet, None), (greet, "s")):
                assert made.disconnect(receiver, sender)
            assert made.connections == ()
            assert await made.send("s") == []
    finally:
        gc.set_threshold(*thresholds)
    if freed == 0 and sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("the collector of free-threaded builds counts allocations by the hundred")
    assert freed > 5


async def test_a_finalizer_that_connects_the_same_first_leaves_one_connection(made, monkeypatch):
    """Of two connections of one receiver, one made in the middle of the other, the outer one stays."""
    make = _signal.connection_to

    def interrupted(*parts, **more):
        monkeypatch.undo()
        made.connect(greet, "s", priority=1)
        return make(*parts, **more)

    monkeypatch.setattr(_signal, "connection_to", interrupted)
    made.connect(greet, "s", priority=2)
    assert [(one.receiver, one.priority) for one in made.connections] == [(greet, 2)]
    assert await made.send("s") == [(greet, "greet")]
    assert made.disconnect(greet, "s")
    assert len(made._registry._senders) == 1  # of all senders


@pytest.mark.parametrize("is_heard_by", ["nobody else", "another"])
@pytest.mark.parametrize("how", ["disconnected", "replaced"])
async def test_a_receiver_whose_finalizer_disconnects_it_ends_once(made, monkeypatch, how, is_heard_by):
    """A strong receiver that leaves by its uid as it is let go leaves nothing behind, and takes nothing else along."""
    left = []

    class Leaving:
        def __call__(self, **named): ...

        def __del__(self):
            left.append(made.disconnect(sender=Sender, dispatch_uid="place"))

    class Below(Sender):
        pass

    def connect_leaving():
        made.connect(Leaving(), Sender, weak=False, dispatch_uid="place", subclasses=True)

    if is_heard_by == "another":
        made.connect(other, Sender, subclasses=True)
    if how == "disconnected":
        connect_leaving()
        assert made.disconnect(sender=Sender, dispatch_uid="place")
    else:  # only here does nothing but the connection hold the receiver as it ends
        make = _signal.connection_to

        def interrupted(*parts, **more):
            monkeypatch.undo()
            connect_leaving()
            return make(*parts, **more)

        monkeypatch.setattr(_signal, "connection_to", interrupted)
        made.connect(greet, Sender, dispatch_uid="place", subclasses=True)  # the uid is taken by then
        assert made.disconnect(sender=Sender, dispatch_uid="place")
    assert len(left) == 1
    if is_heard_by == "another":
        assert await made.send(Below) == [(other, "other")]
        assert made.disconnect(other, Sender)
    assert made.connections == ()
    assert await made.send(Below) == []


async def test_a_receiver_that_dies_while_a_send_is_prepared_is_forgotten_by_the_next(made, monkeypatch):
    """A death in the middle of making a plan is not hidden by that plan."""
    holder = [Mortal()]
    made.connect(holder[0])
    made.connect(greet)
    run = _registry.Plan

    def interrupted(*parts, **more):
        monkeypatch.undo()
        holder.clear()
        return run(*parts, **more)

    monkeypatch.setattr(_registry, "Plan", interrupted)
    assert await made.send(None) == [(greet, "greet")]
    assert await made.send(None) == [(greet, "greet")]
    assert not made._registry._dead
    assert len(made._registry._everyone.connections) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_another_callback_of_a_dying_receiver_may_connect_in_its_place(made, when):
    """A weak reference's callback that runs first finds the place free, and what it connects there stays."""

    class Dying:
        def __call__(self, **named): ...

    def connect(reference):
        made.connect(greet, dispatch_uid="place")

    dying = Dying()
    dying.cycle = dying
    kept = [weakref.ref(dying, connect)] if when == "before" else []
    made.connect(dying, dispatch_uid="place")
    await made.send(None)
    kept += [weakref.ref(dying, connect)] if when == "after" else []
    del dying
    gc.collect()
    assert await made.send(None) == [(greet, "greet")]
    assert [one.receiver for one in made.connections] == [greet]
    assert kept


async def test_a_connection_that_somebody_keeps_outlives_its_sender_and_its_signal_in_peace(made):
    """Whatever dies first, an ended connection that is still referred to troubles nobody."""

    def local(**named): ...

    sender = Sender()
    made.connect(local, sender=sender)
    (ended,) = made.connections
    assert made.disconnect(local, sender)
    del sender
    gc.collect()
    assert ended.sender is None
    assert await made.send(None) == []
    signal = Signal()
    signal.connect(local)
    await signal.send(None)
    (orphan,) = signal.connections
    del signal
    gc.collect()
    del local
    gc.collect()
    assert orphan.receiver is None
    assert ended.receiver is None


async def test_signals_are_listed_by_name_while_they_live():
    """`signals()` has every signal that somebody refers to, by name, and no view of one."""
    names = [f"zz.{letter}" for letter in "bcaed"]
    made = [Signal(name=name) for name in names]
    view = made[0].using(limit=2)
    assert [one.name for one in asignals.signals() if one in made] == sorted(names)
    assert view not in asignals.signals()
    del made[1:], view
    gc.collect()
    assert [one for one in asignals.signals() if one.name in names] == made


async def test_signals_that_compare_equal_or_cannot_be_hashed_are_all_listed():
    """A subclass with an `__eq__` of its own, as dataclasses have it, makes signals as others do."""

    class Alike(Signal):
        def __eq__(self, other):
            return isinstance(other, Alike)

        __hash__ = None

    made = [Alike(name="zz.alike"), Alike(name="zz.alike")]
    assert {id(one) for one in asignals.signals() if one.name == "zz.alike"} == set(map(id, made))


async def test_a_signal_tells_where_it_was_made():
    """`location` is the file and line of the call that made it."""
    made = Signal()
    assert made.location == f"{__file__}:{sys._getframe().f_lineno - 1}"


async def test_receiver_takes_back_what_it_connected_under_a_uid():
    """A signal that refuses the function leaves it connected to none of those before."""
    first, second = Signal(["x"]), Signal(["y"])
    with pytest.raises(InvalidReceiverError):

        @receiver([first, second], dispatch_uid="sell")
        def sell(x): ...

    assert first.connections == ()


async def test_a_receiver_that_is_connected_while_a_plan_is_made_hears_the_next_send(made, monkeypatch):
    """As by a finalizer that the garbage collector runs in the middle of it."""
    in_order = _registry._in_order
    connected = []

    def and_connect(links):
        plan = in_order(links)
        if not connected:
            connected.append(made.connect(other))
        return plan

    monkeypatch.setattr(_registry, "_in_order", and_connect)
    made.connect(greet)
    await made.send(None)
    assert connected == [other]
    assert [each for each, _ in await made.send(None)] == [greet, other]
