# ruff: noqa: PT017  what may be refused is tried, and the refusal looked at
"""Whatever users give, they get a named error or what they asked for; never a crash inside, and nothing half done."""

import contextlib
import functools
import keyword

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from asignals import Background, DeclarationError, InvalidReceiverError, Signal, monitor, signal, testing
from asignals import receiver as connect_to

pytestmark = pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning")

quick = settings(
    max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


NAMES = st.sampled_from(["n", "size", "sender", "signal", "self", "cls", "args", "_", "__n", "print", "match"])
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.builds(object),
    st.just(int),
    st.just(len),
)
NAMED = ["n", "size", "self", "cls", "args", "_", "__n", "print", "match"]
KINDS = ["def {}", "async def {}"]


@st.composite
def parameters(draw):
    """The parameters of a function, as they are written; not all of them make sense to a signal."""
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    cut, star = sorted([draw(st.integers(0, len(names))), draw(st.integers(0, len(names)))])
    parts, has_default = [], False
    for index, name in enumerate(names):
        if index == star:
            parts.append("*")
        with_default = draw(st.booleans()) or (has_default and index < star)
        has_default = with_default
        parts.append(f"{name}=1" if with_default else name)
        if index + 1 == cut:
            parts.append("/")
    if "/" in parts and "*" in parts and parts.index("/") > parts.index("*"):
        parts.remove("/")
    if draw(st.booleans()):
        parts.append("**named")
    return ", ".join(parts)


def make_function(kind, written):
    namespace = {}
    try:
        exec(f"{kind.format('made')}({written}):\n    return 'answer'", namespace)  # noqa: S102  written above
    except SyntaxError:
        return None
    return namespace["made"]


def drive(work):
    """Run a coroutine that suspends nowhere."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError


@quick
@given(
    st.sampled_from(KINDS), parameters(), st.none() | st.lists(st.sampled_from(["n", "size", "self", "_"]), unique=True)
)
def test_receiver_is_refused_or_can_be_called(kind, written, names):
    """A receiver is called without a `TypeError` by each send, or `connect` refuses it and names it and the signal."""
    made = make_function(kind, written)
    if made is None:
        return
    tested = Signal(names, name="the.signal")
    try:
        tested.connect(made)
    except InvalidReceiverError as error:
        assert "'the.signal'" in str(error)
        assert "made" in str(error)
        assert error.receiver is made
        assert tested.connections == ()
    else:
        results = drive(tested.send(None, **dict.fromkeys(NAMED if names is None else names, 1)))
        assert results == [(made, "answer")]


@quick
@given(st.sampled_from(KINDS), parameters())
def test_stub_is_refused_or_makes_a_signal(kind, written):
    """A stub is refused with its name in the error, or its signal can be sent with what it declares."""
    stub = make_function(kind, written)
    if stub is None:
        return
    try:
        tested = signal(stub)
    except DeclarationError as error:
        assert "made" in str(error)
    else:
        assert drive(tested.send(None, **dict.fromkeys(tested.providing_args, 1))) == []
        with pytest.raises(TypeError, match="unknown_name"):
            drive(tested.send(None, **dict.fromkeys(tested.providing_args, 1), unknown_name=1))


@quick
@given(ANYTHING | st.lists(ANYTHING | NAMES | st.text(max_size=6) | st.sampled_from(keyword.kwlist), max_size=3))
def test_argument_names_are_refused_or_can_be_sent(names):
    """Names of arguments are refused as such, or can be sent."""
    try:
        tested = Signal(names)
    except (TypeError, ValueError):
        return
    sent = dict.fromkeys(tested.providing_args or (), 1)
    tested.connect(hear_all := lambda **named: named, weak=False)
    ((_, heard),) = drive(tested.send("me", **sent))
    assert heard == {"signal": tested, "sender": "me", **sent}
    assert tested.disconnect(hear_all)


@quick
@given(st.dictionaries(st.text(max_size=6), st.integers(), max_size=4))
def test_any_keywords_can_be_sent(named):
    """A signal without declared arguments sends every keyword there can be, besides its own two."""
    named = {name: value for name, value in named.items() if name not in {"sender", "signal"}}
    tested = Signal()
    tested.connect(hear_all := lambda **named: named, weak=False)
    for send in (tested.send, tested.send_robust):
        assert drive(send(None, **named)) == [(hear_all, {"signal": tested, "sender": None, **named})]


@quick
@given(
    st.dictionaries(
        st.sampled_from(["sender", "weak", "dispatch_uid", "priority", "subclasses", "in_thread", "timeout", "once"]),
        ANYTHING,
        max_size=3,
    ),
    st.booleans(),
)
def test_options_are_refused_or_taken(options, is_async):
    """`connect` takes its options or refuses them with a `TypeError` or `ValueError`; then nothing has changed."""

    def receiver(**named): ...

    async def async_receiver(**named): ...

    tested = Signal()
    used = async_receiver if is_async else receiver
    for connect in (tested.connect, tested.connect(**options)):
        try:
            connect(used, **options) if connect == tested.connect else connect(used)
        except (TypeError, ValueError):
            assert tested.connections == ()
            assert len(tested._registry._senders) == 1  # of all senders
        else:
            (connection,) = tested.connections
            assert connection.receiver is used
            repr(connection)
            assert tested.disconnect(used, options.get("sender"), options.get("dispatch_uid"))
            assert tested.connections == ()


@quick
@given(ANYTHING)
def test_what_is_no_receiver_is_refused(thing):
    """What cannot be called is refused with a `TypeError` that names the signal."""
    tested = Signal(name="the.signal")
    for use in (lambda: tested.connect()(thing), lambda: tested.muted(thing), lambda: connect_to(tested)(thing)):
        if callable(thing):
            continue
        with pytest.raises(TypeError, match=r"the\.signal"):
            use()
    assert tested.connections == ()


@quick
@given(st.dictionaries(st.sampled_from(["where", "buffer", "overflow"]), ANYTHING, max_size=3))
def test_stream_refuses_or_takes(options):
    """A stream takes its options, or refuses them where it is made, and names the one that is wrong."""
    tested = Signal()
    try:
        made = tested.stream(**options)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in options)
    else:
        assert "new" in repr(made)
    assert not tested.has_listeners()


@quick
@given(st.dictionaries(st.sampled_from(["limit", "buffer", "on_error"]), ANYTHING, max_size=3))
def test_background_refuses_or_takes(options):
    """A background takes its options, or refuses them where it is made, and names the one that is wrong."""
    try:
        made = Background(**options)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in options)
    else:
        assert made.statistics().accepted == 0


@quick
@given(st.dictionaries(st.sampled_from(["task_group", "limit"]), ANYTHING, max_size=2))
def test_modes_are_refused_or_taken(options):
    """`Signal` and `using` refuse the same modes of sending, with the same words."""
    refusals = []
    for use in (functools.partial(Signal, **options), functools.partial(Signal().using, **options)):
        try:
            use()
        except (TypeError, ValueError) as error:
            assert any(name in str(error) for name in options)
            refusals.append(str(error))
    assert len(refusals) in {0, 2}
    assert len(set(refusals)) <= 1


@quick
@given(ANYTHING)
def test_monitor_refuses_what_cannot_be_called(thing):
    """A monitor that could not be called is refused, and nobody watches."""
    from asignals._core.dispatch import watchers

    before = list(watchers)
    if callable(thing):
        monitor(thing)()
    else:
        with pytest.raises(TypeError, match="monitor"):
            monitor(thing)
    assert watchers == before


@quick
@given(ANYTHING)
def test_test_tools_refuse_what_is_no_signal(thing):
    """What takes signals says what it takes and what it was given, before anything is changed."""
    tested = Signal(["n"], name="the.signal")
    tested.connect(hear_all := lambda **named: named, weak=False)
    for tool in (testing.capture, testing.muted, testing.restored, testing.swap_receivers):
        with pytest.raises(TypeError, match=r"takes signals, not |needs a signal|swap_receivers"), tool(thing):
            pass
    for tool in (testing.muted, testing.restored):
        with pytest.raises(TypeError, match="takes signals, not "), tool(tested, thing):
            pass
    if not callable(thing):
        with pytest.raises(TypeError, match=r"the\.signal"), testing.swap_receivers(tested, thing):
            pass
        with contextlib.suppress(TypeError), testing.capture(tested, where=thing):
            assert thing is None
    assert tested._registry.mutes == frozenset()
    assert [connection.receiver for connection in tested.connections] == [hear_all]
